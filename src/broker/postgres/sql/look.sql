-- What kind of server this is, and whether the schema is there.
select current_setting('server_encoding'),
    current_setting('server_version_num')::int,
    pg_is_in_recovery(),
    to_regclass('crossfade.schema_version') is not null,
    quote_ident(current_user),
    quote_ident(current_database())
