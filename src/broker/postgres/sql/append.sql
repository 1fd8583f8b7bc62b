-- Appends to the logs: the only way in, for publishes and for the sequencer.

create function crossfade.now_ms() returns bigint language sql volatile
return (extract(epoch from clock_timestamp()) * 1000)::bigint;

-- Below 36^8: at most eight characters of base 36.
create function crossfade.draw_epoch() returns bigint language sql volatile
return floor(random() * 2821109907456)::bigint;

-- One row for each item, in their order. All arrays are of one length; an item's id is remembered
-- for its window, in milliseconds.
--
-- Channels are created and locked in the order of their names, so two batches never wait for each
-- other in a circle. Planner settings: the tables may have grown a thousandfold since the plan was
-- made, and only index lookups stay right.
create function crossfade.append(
    channels text[], ids text[], names text[], contents text[], windows bigint[]
)
returns table (epoch bigint, "offset" bigint, duplicate boolean)
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan set jit = off set lock_timeout = '3s'
as $$
#variable_conflict use_column
declare
    now_ms bigint;
begin
    insert into crossfade.channel (name, epoch)
    select missing.name, crossfade.draw_epoch()
    from (select distinct wanted collate "C" as name from unnest(channels) wanted) missing
    where not exists (select from crossfade.channel c where c.name = missing.name)
    order by missing.name
    on conflict (name) do nothing;

    perform from crossfade.channel c where c.name = any (channels)
    order by c.name for no key update;

    -- Read under the locks: within a channel, time does not run against the offsets.
    now_ms := crossfade.now_ms();

    return query
    with item as (
        select i.*, c.id as log, c.epoch, c.head, c.shard
        from unnest(channels, ids, names, contents, windows)
            with ordinality i (channel, id, name, content, span, nth)
        join crossfade.channel c on c.name = i.channel
    ),
    known as (
        select item.*, r."offset" as seen_at,
            row_number() over (partition by item.log, item.id collate "C" order by nth) as repeat
        from item
        left join crossfade.receipt r
            on r.channel = item.log and r.id = item.id collate "C" and now_ms < r.until
    ),
    judged as (
        select known.*, seen_at is null and repeat = 1 as fresh from known
    ),
    placed as materialized (
        select judged.*, head + count(*) filter (where fresh) over (
            partition by log order by nth rows unbounded preceding
        ) as place
        from judged
    ),
    stored as (
        insert into crossfade.event (channel, "offset", time, id, name, data)
        select log, place, now_ms, id, name, content from placed where fresh order by log, place
    ),
    remembered as (
        insert into crossfade.receipt (channel, id, "offset", until)
        select log, id, place, now_ms + span from placed where fresh order by log, id collate "C"
        on conflict (channel, id) do update set "offset" = excluded."offset", until = excluded.until
    ),
    raised as (
        update crossfade.channel c set head = top.place
        from (select log, max(place) as place from placed where fresh group by log) top
        where c.id = top.log
    ),
    -- The bell: [channel, epoch, offset, id, name, data, time] for what is small and not too much
    -- at once, [channel, epoch, head] for the rest. A payload has less than 8000 bytes: pieces begin
    -- anew every 3900, and none of their elements is longer than that. Offsets tell any two payloads
    -- apart; one that repeats another in its transaction would be dropped.
    entry as (
        select shard, nth, channel, epoch, place,
            place = max(place) over (partition by log) as last,
            case when octet_length(content) < 3900 then
                json_build_array(channel, epoch, place, id, name, content, now_ms)::text
            end as whole
        from placed where fresh
    ),
    sized as (
        select entry.*, coalesce(octet_length(whole) < 3900, false)
            and sum(octet_length(whole)) over (partition by shard) < 65536 as fits
        from entry
    ),
    element as (
        select shard, nth,
            case when fits then whole else json_build_array(channel, epoch, place)::text end as body
        from sized where fits or last
    ),
    piece as (
        select shard, nth, body,
            sum(octet_length(body) + 1) over (partition by shard order by nth) / 3900 as part
        from element
    ),
    payload as (
        select shard, part, '[' || string_agg(body, ',' order by nth) || ']' as body
        from piece group by shard, part order by shard, part
    ),
    rung as materialized (
        select pg_notify('crossfade_' || shard, body) as bell from payload
    )
    select p.epoch,
        coalesce(p.seen_at, first_value(p.place) over (
            partition by p.log, p.id collate "C" order by p.nth
        )),
        not p.fresh
    -- A part that nobody asks for is not run: the count makes the bells ring.
    from placed p cross join (select count(bell) from rung) bells
    order by p.nth;
end
$$;
revoke all on function crossfade.append from public;
