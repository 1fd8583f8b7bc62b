-- Looking at logs, and letting go of what they need not keep.

create function crossfade.open(wanted text)
returns table (epoch bigint, head bigint, shard smallint)
language plpgsql
as $$
#variable_conflict use_column
begin
    return query select c.epoch, c.head, c.shard from crossfade.channel c where c.name = wanted;
    if found then
        return;
    end if;
    insert into crossfade.channel (name, epoch) values (wanted, crossfade.draw_epoch())
    on conflict (name) do nothing;
    return query select c.epoch, c.head, c.shard from crossfade.channel c where c.name = wanted;
end
$$;
revoke all on function crossfade.open from public;

-- The heads of these channels, in their order. A log that ends before it is known to have ended has
-- lost entries: what is left of it goes on under a new epoch.
create function crossfade.verify(channels text[], epochs bigint[], offsets bigint[])
returns table (epoch bigint, head bigint)
language plpgsql
set plan_cache_mode = force_custom_plan set lock_timeout = '3s'
as $$
#variable_conflict use_column
begin
    insert into crossfade.channel (name, epoch)
    select missing.name, crossfade.draw_epoch()
    from (select distinct wanted collate "C" as name from unnest(channels) wanted) missing
    where not exists (select from crossfade.channel c where c.name = missing.name)
    order by missing.name
    on conflict (name) do nothing;

    -- Locked like a batch locks them, in the order of their names.
    perform from crossfade.channel c
    where exists (
        select from unnest(channels, epochs, offsets) k (channel, epoch, "offset")
        where k.channel = c.name and k.epoch = c.epoch and c.head < k."offset"
    )
    order by c.name for no key update;
    if found then
        update crossfade.channel c set epoch = crossfade.draw_epoch()
        from unnest(channels, epochs, offsets) k (channel, epoch, "offset")
        where k.channel = c.name and k.epoch = c.epoch and c.head < k."offset";
    end if;

    return query
    select c.epoch, c.head
    from unnest(channels) with ordinality k (channel, nth)
    join crossfade.channel c on c.name = k.channel
    order by k.nth;
end
$$;
revoke all on function crossfade.verify from public;

-- Deletes the oldest events of these channels: all but the newest `keeps` of each, and those older
-- than `ages` milliseconds; at most so many rows, always a piece from the log's beginning. Returns
-- the channels that it did not come to the end of.
create function crossfade.trim(channels text[], keeps bigint[], ages bigint[], most bigint)
returns setof text
language plpgsql
as $$
declare
    log record;
    kept_from bigint;
    seen_to bigint;
    deleted bigint;
begin
    if not pg_try_advisory_xact_lock(1668444019, 4) then
        return query select unnest(channels);
        return;
    end if;
    for log in
        select c.name, c.id, c.head - k.keep as last_dead, crossfade.now_ms() - k.age as oldest
        from unnest(channels, keeps, ages) k (channel, keep, age)
        join crossfade.channel c on c.name = k.channel
    loop
        if most <= 0 then
            return next log.name;
            continue;
        end if;
        perform from (
            select e."offset", e.time from crossfade.event e where e.channel = log.id
            order by e."offset" limit 1
        ) first
        where first."offset" <= log.last_dead or first.time < log.oldest;
        continue when not found;
        select min(e."offset") filter (where log.last_dead < e."offset" and log.oldest <= e.time),
            max(e."offset")
        into kept_from, seen_to
        from (
            select e."offset", e.time from crossfade.event e where e.channel = log.id
            order by e."offset" limit most
        ) e;
        delete from crossfade.event e
        where e.channel = log.id and e."offset" < coalesce(kept_from, seen_to + 1);
        get diagnostics deleted = row_count;
        most := most - deleted;
        if kept_from is null then
            return next log.name;
        end if;
    end loop;
end
$$;
revoke all on function crossfade.trim from public;
