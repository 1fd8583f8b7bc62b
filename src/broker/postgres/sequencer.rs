//! Empties the outbox: what was published from SQL gets its place in the logs. One node does it at a
//! time; it holds the seat, an advisory lock that ends with its connection.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;
use tokio_postgres::types::Type;
use tracing::{info, warn};

use super::{
    failure::{Backoff, Failure},
    health::{HealthTracker, Part},
    interest::{Hearing, Interest},
    session::{Session, Target},
    values::millis,
};
use crate::broker::Retentions;

/// Rows moved in one transaction.
const ROWS_MAX: i32 = 1000;

/// How often a node without the seat tries to take it.
const SEAT_INTERVAL: Duration = Duration::from_secs(1);

const SEQUENCE: &str = "select crossfade.sequence($1, $2, $3, $4)";
const TAKE_SEAT: &str = "select pg_try_advisory_lock(1668444019, 2)";
const SETTING: &str = "update crossfade.setting set notify_on_sql_publish = $1 \
                       where notify_on_sql_publish <> $1";

/// Empties the outbox.
pub(super) struct Sequencer {
    pub(super) target: Target,
    pub(super) ears: Arc<Interest>,
    pub(super) seat: Arc<Seat>,
    pub(super) vitals: Arc<HealthTracker>,
    pub(super) retentions: Arc<Retentions>,
    pub(super) notify: bool,
    pub(super) poll_min: Duration,
    pub(super) poll_max: Duration,
    pub(super) backoff: Backoff,
}

/// Whether this node holds the seat. Who does also prunes.
#[derive(Debug, Default)]
pub(super) struct Seat(AtomicBool);

impl Seat {
    pub(super) fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Sequencer {
    /// Sequences, or waits for its turn to.
    pub(super) async fn run(mut self) {
        loop {
            let trouble = match Session::open(&self.target).await {
                Ok(session) => {
                    self.backoff.reset();
                    self.vitals.up(Part::Sequencer);
                    self.serve(session).await
                }
                Err(trouble) => Err(trouble),
            };
            self.seat.0.store(false, Ordering::Relaxed);
            let Err(trouble) = trouble;
            self.vitals.down(Part::Sequencer, &trouble);
            self.backoff.pause().await;
        }
    }

    async fn serve(&self, mut session: Session) -> Result<Infallible, Failure> {
        let client = session.client();
        session.drive(client.query_typed(SETTING, &[(&self.notify, Type::BOOL)])).await?;
        session.drive(client.batch_execute("listen crossfade_outbox")).await?;
        self.take_seat(&mut session).await?;
        self.seat.0.store(true, Ordering::Relaxed);
        let mut wait = self.poll_min;
        let mut rows = ROWS_MAX;
        loop {
            match self.sequence(&mut session, rows).await? {
                -1 => {
                    warn!("the outbox holds a row that cannot be appended; looking for it");
                    rows = 1;
                    continue;
                }
                0 => wait = (wait * 2).min(self.poll_max),
                moved => {
                    wait = self.poll_min;
                    let full = moved == rows;
                    rows = rows.saturating_mul(2).min(ROWS_MAX);
                    if full {
                        continue;
                    }
                }
            }
            pause(&mut session, wait).await?;
        }
    }

    /// Returns when this node may sequence. Where LISTEN does not work sessions do not either, and
    /// every node tries: then the transaction's own lock lets one of them through at a time.
    async fn take_seat(&self, session: &mut Session) -> Result<(), Failure> {
        loop {
            let hearing = tokio::select! {
                hearing = self.ears.known() => hearing,
                trouble = session.ended() => return Err(trouble),
            };
            if hearing == Hearing::Deaf {
                return Ok(());
            }
            let client = session.client();
            let row = session.drive(client.query_typed_one(TAKE_SEAT, &[])).await?;
            if row.try_get(0)? {
                info!(database = self.target.label(), "this node sequences what SQL publishes");
                return Ok(());
            }
            pause(session, SEAT_INTERVAL).await?;
        }
    }

    async fn sequence(&self, session: &mut Session, rows: i32) -> Result<i32, Failure> {
        let rules = &self.retentions.by_namespace;
        let namespaces: Vec<_> = rules.keys().map(String::as_str).collect();
        let windows: Vec<_> = rules.values().map(|rule| millis(rule.dedup)).collect();
        let default = millis(self.retentions.default_retention().dedup);
        let client = session.client();
        let row = session
            .drive(client.query_typed_one(
                SEQUENCE,
                &[
                    (&rows, Type::INT4),
                    (&namespaces, Type::TEXT_ARRAY),
                    (&windows, Type::INT8_ARRAY),
                    (&default, Type::INT8),
                ],
            ))
            .await?;
        Ok(row.try_get(0)?)
    }
}

/// Waits, or less if the outbox's bell rings.
async fn pause(session: &mut Session, wait: Duration) -> Result<(), Failure> {
    match timeout(wait, session.notification()).await {
        Ok(rung) => rung.map(|_| ()),
        Err(_) => Ok(()),
    }
}
