-- What kind of server this is, and whether the schema is there. The catalog is read and not
-- to_regclass asked, which in an open transaction may remember that there was none.
select current_setting('server_encoding'),
    current_setting('server_version_num')::int,
    pg_is_in_recovery(),
    exists (
        select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'crossfade' and c.relname = 'schema_version'
    ),
    quote_ident(current_user),
    quote_ident(current_database())
