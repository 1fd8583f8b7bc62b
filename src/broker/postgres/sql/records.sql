-- What the nodes decide together: records with a version, the journal of their changes, and what
-- nodes tell each other for a while.

create table crossfade.record (
    key text collate "C" primary key,
    version bigint not null,
    value text not null
);

create table crossfade.journal (
    number bigint generated always as identity primary key,
    key text collate "C" not null,
    version bigint not null,
    time bigint not null,
    note text not null
);

-- Nothing is lost with it that would be worth a write to the disk.
create unlogged table crossfade.told (
    key text collate "C" primary key,
    value text not null,
    expires timestamptz not null
);

-- Writes where the record has the expected version, 0 meaning that there is none.
create function crossfade.put_record(
    of_key text, expected bigint, new_value text, note text, notes_max bigint,
    out done boolean, out version bigint, out value text)
language plpgsql
set search_path = pg_catalog
as $$
declare
    written int;
begin
    if expected = 0 then
        insert into crossfade.record as r values (of_key, 1, new_value) on conflict do nothing;
    else
        update crossfade.record r set version = expected + 1, value = new_value
        where r.key = of_key and r.version = expected;
    end if;
    get diagnostics written = row_count;
    if written = 0 then
        done := false;
        select r.version, r.value into put_record.version, put_record.value
        from crossfade.record r where r.key = of_key;
        return;
    end if;
    done := true;
    version := expected + 1;
    if note is not null then
        -- One at a time, so that numbers are given in the order of the commits.
        lock table crossfade.journal in exclusive mode;
        insert into crossfade.journal (key, version, time, note)
        values (of_key, expected + 1, extract(epoch from clock_timestamp()) * 1000, note);
        delete from crossfade.journal j
        where j.number < (select max(number) from crossfade.journal) - notes_max;
    end if;
end
$$;
