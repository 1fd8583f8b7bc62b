-- Publishing from SQL: an event is sent exactly if the transaction that published it commits.

-- It takes no lock and no offset, so a transaction may stay open for as long as it likes. Give a role
-- the right to publish with: grant usage on schema crossfade to that_role;
create function crossfade.publish(
    channel text, data jsonb, name text default null, id text default null
)
returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    message text := coalesce(id, gen_random_uuid()::text);
begin
    if channel is null or octet_length(channel) not between 1 and 200 then
        raise exception 'a channel name has 1 to 200 bytes, this one has %',
            coalesce(octet_length(channel), 0)
        using errcode = 'invalid_parameter_value',
            hint = 'Name the channel, such as crossfade.publish(''orders:42'', ''{"state": "paid"}'').';
    elsif channel ~ '[^-A-Za-z0-9_.:/@#=]' then
        raise exception 'the channel name % has a character that may not be in it', quote_literal(channel)
        using errcode = 'invalid_parameter_value',
            hint = 'Only A-Z a-z 0-9 _ - . : / @ # = may be in a channel name.';
    elsif split_part(channel, ':', 1) = 'crossfade' and strpos(channel, ':') > 0 then
        raise exception 'the namespace crossfade is the gateway''s own'
        using errcode = 'invalid_parameter_value',
            hint = 'Choose another namespace: what stands there tells the nodes what to do.';
    elsif data is null then
        raise exception 'the event has no data'
        using errcode = 'null_value_not_allowed',
            hint = 'SQL''s NULL is no JSON. For an event without content write ''null''::jsonb.';
    elsif octet_length(data::text) > 16777216 then
        raise exception 'the data has % bytes, it may have 16777216', octet_length(data::text)
        using errcode = 'invalid_parameter_value',
            hint = 'Publish a reference to big content instead of the content.';
    elsif octet_length(name) not between 1 and 128 then
        raise exception 'the event name has % bytes, it may have 1 to 128', octet_length(name)
        using errcode = 'invalid_parameter_value',
            hint = 'Leave the name out, or pass NULL, for an event without one.';
    elsif name ~ '[\u0001-\u001F\u007F-\u009F]' then
        raise exception 'the event name may not contain control characters'
        using errcode = 'invalid_parameter_value',
            hint = 'A line break would end the line of the stream that the name stands on.';
    elsif name in ('open', 'error') or starts_with(name, 'crossfade.') then
        raise exception 'the event name % is reserved', quote_literal(name)
        using errcode = 'invalid_parameter_value',
            hint = 'Choose another than open, error and crossfade.…';
    elsif octet_length(message) not between 1 and 128 or message ~ '[^!-~]' then
        raise exception 'a message id has 1 to 128 bytes of visible ASCII'
        using errcode = 'invalid_parameter_value',
            hint = 'Leave the id out and one is made; give one to have a repeat recognised.';
    end if;
    insert into crossfade.outbox (channel, id, name, data)
    values (channel, message, name, data::text);
    if (select s.notify_on_sql_publish from crossfade.setting s) then
        perform pg_notify('crossfade_outbox', '');
    end if;
    return message;
end
$$;

-- Moves what is visible of the outbox into the logs, at most so many rows, in one transaction.
-- Returns how many were moved or set aside, and -1 when one of several cannot be appended: try one
-- at a time then. A row whose transaction commits late is simply seen later.
create function crossfade.sequence(
    most int, namespaces text[], windows bigint[], default_window bigint
)
returns int
language plpgsql
as $$
declare
    taken bigint[];
    channels text[];
    ids text[];
    names text[];
    contents text[];
    spans bigint[];
begin
    -- The seat is a session's; this keeps two apart that both believe to have it.
    if not pg_try_advisory_xact_lock(1668444019, 3) then
        return 0;
    end if;
    with locked as (
        select o.seq, o.channel, o.id, o.name, o.data,
            case when position(':' in o.channel) = 0 then 'default'
                else split_part(o.channel, ':', 1) end as namespace
        from crossfade.outbox o where o.refused is null
        order by o.seq limit most for update skip locked
    ),
    -- Not more at once than fits well into memory, and at least one.
    row as (
        select * from (
            select locked.*, row_number() over (order by locked.seq) as nth,
                sum(octet_length(locked.data)) over (order by locked.seq) as bytes
            from locked
        ) sized
        where nth = 1 or bytes < 16777216
    )
    select array_agg(row.seq order by row.seq), array_agg(row.channel order by row.seq),
        array_agg(row.id order by row.seq), array_agg(row.name order by row.seq),
        array_agg(row.data order by row.seq),
        array_agg(coalesce(windows[array_position(namespaces, row.namespace)], default_window)
            order by row.seq)
    into taken, channels, ids, names, contents, spans
    from row;
    if taken is null then
        return 0;
    end if;
    begin
        perform from crossfade.append(channels, ids, names, contents, spans);
    exception when data_exception or integrity_constraint_violation or program_limit_exceeded then
        if cardinality(taken) > 1 then
            return -1;
        end if;
        update crossfade.outbox set refused = sqlerrm where seq = taken[1];
        return 1;
    end;
    delete from crossfade.outbox where seq = any (taken);
    return cardinality(taken);
end
$$;
revoke all on function crossfade.sequence from public;
