//! Why a call to the server failed, for a person; and how long to wait before the next try.

use std::{error::Error as _, fmt::Write as _, time::Duration};

use rand::Rng as _;

/// Why a call to the server failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It took too long.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// The server or the way to it.
    #[error("{}", told(.0))]
    Server(#[from] tokio_postgres::Error),
    /// The connection ended.
    #[error("the server closed the connection")]
    Closed,
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// The driver's words are "db error" and the like; what happened stands in the sources.
fn told(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        let mut text = format!("{} ({})", error.message(), error.code().code());
        if let Some(hint) = error.hint() {
            let _ = write!(text, "; {hint}");
        }
        return text;
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Waits that grow with each failure. The jitter is full: nodes that lost the same server do not
/// come back in step.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// One that has not failed yet.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: waits.
    pub(super) async fn pause(&mut self) {
        let wait = self.wait();
        #[expect(
            clippy::disallowed_methods,
            reason = "a server that is away is not asked in a row"
        )]
        tokio::time::sleep(wait).await;
    }

    /// It failed: so long to wait.
    fn wait(&mut self) -> Duration {
        let longest = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures += 1;
        longest.mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}
