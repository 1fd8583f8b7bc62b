//! The records in PostgreSQL: three small tables.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio_postgres::{Row, types::Type};

use super::{
    failure::Failure,
    health::HealthTracker,
    pool::{Params, Pool},
    values::millis,
};
use crate::broker::{
    BrokerError,
    store::{JOURNAL_NOTES, Note, Record, Store, Write, Written},
};

/// Keeps the records in PostgreSQL.
#[derive(Debug)]
pub(super) struct PostgresStore {
    pub(super) pool: Pool,
    pub(super) vitals: Arc<HealthTracker>,
}

const LIST: &str =
    "select key, version, value from crossfade.record where starts_with(key, $1) order by key";
const GET: &str = "select version, value from crossfade.record where key = $1";
const PUT: &str = "select done, version, value from crossfade.put_record($1, $2, $3, $4, $5)";
const JOURNAL: &str = "select number, key, version, time, note from crossfade.journal \
     where number < $1 and starts_with(key, $2) order by number desc limit $3";
const TELL: &str = "with gone as (delete from crossfade.told where expires < now() and key <> $1) \
     insert into crossfade.told values ($1, $2, now() + $3 * interval '1 ms') \
     on conflict (key) do update set value = excluded.value, expires = excluded.expires";
const TOLD: &str = "select key, value from crossfade.told \
     where starts_with(key, $1) and now() < expires order by key";

impl PostgresStore {
    async fn ask<T>(
        &self,
        sql: &str,
        params: &Params<'_>,
        read: impl Fn(&[Row]) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, BrokerError> {
        let rows = self.pool.ask(sql, params).await;
        let answer = rows.and_then(|rows| read(&rows).map_err(Failure::Server));
        answer.map_err(|trouble| self.vitals.unavailable(&trouble))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, BrokerError> {
        self.ask(GET, &[(&key, Type::TEXT)], |rows| {
            rows.first().map(|row| record(row, 0)).transpose()
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Record)>, BrokerError> {
        self.ask(LIST, &[(&prefix, Type::TEXT)], |rows| {
            rows.iter().map(|row| Ok((row.try_get(0)?, record(row, 1)?))).collect()
        })
        .await
    }

    async fn put(&self, key: &str, write: Write) -> Result<Written, BrokerError> {
        let Write { expected, value, note } = write;
        let (expected, most) = (whole(expected), whole(JOURNAL_NOTES as u64));
        let params: &Params<'_> = &[
            (&key, Type::TEXT),
            (&expected, Type::INT8),
            (&value, Type::TEXT),
            (&note, Type::TEXT),
            (&most, Type::INT8),
        ];
        self.ask(PUT, params, |rows| {
            let Some(row) = rows.first() else { return Ok(Written::Conflict(None)) };
            if row.try_get(0)? {
                return Ok(Written::Done(natural(row.try_get(1)?)));
            }
            let found = row.try_get::<_, Option<i64>>(1)?;
            Ok(Written::Conflict(found.map(|_| record(row, 1)).transpose()?))
        })
        .await
    }

    async fn journal(
        &self,
        prefix: &str,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Note>, BrokerError> {
        let (before, limit) = (whole(before), whole(limit as u64));
        let params: &Params<'_> =
            &[(&before, Type::INT8), (&prefix, Type::TEXT), (&limit, Type::INT8)];
        self.ask(JOURNAL, params, |rows| rows.iter().map(note).collect()).await
    }

    async fn tell(&self, key: &str, value: &str, keep: Duration) -> Result<(), BrokerError> {
        let keep = millis(keep.min(DAY)) as f64;
        let params: &Params<'_> =
            &[(&key, Type::TEXT), (&value, Type::TEXT), (&keep, Type::FLOAT8)];
        self.ask(TELL, params, |_| Ok(())).await
    }

    async fn told(&self, prefix: &str) -> Result<Vec<(String, String)>, BrokerError> {
        self.ask(TOLD, &[(&prefix, Type::TEXT)], |rows| {
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
        .await
    }
}

/// Nothing is told for longer.
const DAY: Duration = Duration::from_secs(24 * 3600);

fn record(row: &Row, at: usize) -> Result<Record, tokio_postgres::Error> {
    Ok(Record { version: natural(row.try_get(at)?), value: row.try_get(at + 1)? })
}

fn note(row: &Row) -> Result<Note, tokio_postgres::Error> {
    Ok(Note {
        number: natural(row.try_get(0)?),
        key: row.try_get(1)?,
        version: natural(row.try_get(2)?),
        time: natural(row.try_get(3)?),
        text: row.try_get(4)?,
    })
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
