//! The schema `crossfade`: looked for on every new connection, created or brought up to date by the
//! first that finds it missing or old.

use std::time::Duration;

use tokio_postgres::{Client, error::SqlState};

use super::failure::Failure;

/// What turned version n into n + 1. A released one never changes, and the tables it leaves have to
/// serve the gateways of the version before: both run during a rolling update.
const MIGRATIONS: [&[&str]; 2] = [
    &[
        include_str!("sql/tables.sql"),
        include_str!("sql/append.sql"),
        include_str!("sql/publish.sql"),
        include_str!("sql/log.sql"),
    ],
    &[include_str!("sql/records.sql")],
];

const LOOK: &str = include_str!("sql/look.sql");

/// PostgreSQL 15.
const SERVER_VERSION_MIN: i32 = 150_000;

/// Makes a new connection fit for use.
pub(super) async fn prepare(client: &Client, limit: Option<Duration>) -> Result<(), Failure> {
    if let Some(limit) = limit {
        // The keepalives are the server's: it frees the locks of a node that vanished.
        let limit = limit.as_millis();
        let settings = format!(
            "set statement_timeout = {limit}; set tcp_user_timeout = {limit}; \
             set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; \
             set tcp_keepalives_count = 3"
        );
        client.batch_execute(&settings).await?;
    }
    if look(client).await? < MIGRATIONS.len() {
        migrate(client).await?;
    }
    Ok(())
}

/// The schema's version; 0 when it is not there.
async fn look(client: &Client) -> Result<usize, Failure> {
    let row = client.query_typed_one(LOOK, &[]).await?;
    let encoding: &str = row.try_get(0)?;
    let version: i32 = row.try_get(1)?;
    let other = |text: String| Err(Failure::Other(text));
    if encoding != "UTF8" {
        return other(format!("the database's encoding is {encoding}, it has to be UTF8"));
    }
    if version < SERVER_VERSION_MIN {
        return other(format!("the server's version is {version}, it has to be 15 or newer"));
    }
    if row.try_get(2)? {
        return other(
            "the server is a standby that takes no writes: name the primary, or all hosts with \
             target_session_attrs=read-write"
                .to_owned(),
        );
    }
    if !row.try_get(3)? {
        return Ok(0);
    }
    let (role, database): (&str, &str) = (row.try_get(4)?, row.try_get(5)?);
    let sql = "select coalesce(max(version), 0) from crossfade.schema_version";
    let found = client.query_typed_one(sql, &[]).await;
    let found: i32 = found.map_err(|error| with_remedy(error, role, database))?.try_get(0)?;
    Ok(usize::try_from(found).unwrap_or_default())
}

/// One transaction, under a lock: of many nodes that start together one does it, the others find
/// it done.
async fn migrate(client: &Client) -> Result<(), Failure> {
    let place = client.query_typed_one(LOOK, &[]).await?;
    let (role, database): (&str, &str) = (place.try_get(4)?, place.try_get(5)?);
    let done = migrate_in_transaction(client).await;
    if done.is_err() {
        // What went wrong is known; when this fails too, the connection is gone and with it all.
        let _ = client.batch_execute("rollback").await;
    }
    done.map_err(|trouble| match trouble {
        Failure::Server(error) => with_remedy(error, role, database),
        trouble => trouble,
    })
}

async fn migrate_in_transaction(client: &Client) -> Result<(), Failure> {
    client.batch_execute("begin; select pg_advisory_xact_lock(1668444019, 1)").await?;
    let found = look(client).await?;
    for (version, scripts) in (1..).zip(MIGRATIONS).skip(found) {
        for script in scripts {
            client.batch_execute(script).await?;
        }
        let note = format!("insert into crossfade.schema_version values ({version})");
        client.batch_execute(&note).await?;
    }
    client.batch_execute("commit").await?;
    if found < MIGRATIONS.len() {
        tracing::info!(version = MIGRATIONS.len(), "installed the schema crossfade");
    }
    Ok(())
}

/// A missing right, with what would give it.
fn with_remedy(error: tokio_postgres::Error, role: &str, database: &str) -> Failure {
    if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Failure::Server(error);
    }
    Failure::Other(format!(
        "the role {role} has no right to the schema crossfade: as the database's owner run \
         GRANT CREATE ON DATABASE {database} TO {role}, or CREATE SCHEMA crossfade AUTHORIZATION \
         {role}; if the schema is there and belongs to another role, GRANT that role TO {role}"
    ))
}
