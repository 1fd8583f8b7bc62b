-- What the gateway keeps. Created once, in the migration's transaction.

do $$
begin
    -- "if not exists" would ask for the right to create although nothing is to be created.
    if not exists (select from pg_namespace where nspname = 'crossfade') then
        create schema crossfade;
    end if;
end
$$;

create table crossfade.schema_version (
    version int primary key,
    installed_at timestamptz not null default now()
);

-- Gateways raise heads all the time: room on each page keeps those updates off the indexes.
create table crossfade.channel (
    id bigint generated always as identity primary key,
    name text collate "C" not null unique,
    epoch bigint not null,
    head bigint not null default 0,
    -- Which of the 16 bells rings for it. The alphabet of names has no backslash: the cast is plain.
    shard smallint not null generated always as (get_byte(sha256(name::bytea), 0) & 15) stored
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- The logs. Content is text: JSON such as "\u0000" cannot be kept as jsonb.
create table crossfade.event (
    channel bigint not null,
    "offset" bigint not null,
    time bigint not null,
    id text collate "C" not null,
    name text,
    data text not null,
    primary key (channel, "offset")
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2);

-- Ids seen lately, and where the event of that id stands. `until` is in milliseconds since 1970.
create table crossfade.receipt (
    channel bigint not null,
    id text collate "C" not null,
    "offset" bigint not null,
    until bigint not null,
    primary key (channel, id)
) with (autovacuum_vacuum_scale_factor = 0.05);
create index receipt_until on crossfade.receipt (until);

-- Published from SQL, not yet in a log. A row that no log would take stays, with the reason.
create table crossfade.outbox (
    seq bigint generated always as identity primary key,
    channel text not null,
    id text not null,
    name text,
    data text not null,
    at timestamptz not null default clock_timestamp(),
    refused text
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000
);

create table crossfade.setting (
    sole boolean primary key default true check (sole),
    notify_on_sql_publish boolean not null default false
);
insert into crossfade.setting default values;
