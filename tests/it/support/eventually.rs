//! Waiting for something to become true, with a deadline and a name for what never did.

use std::{fmt::Display, future::Future, time::Duration};

use tokio::time::{Instant, timeout};

/// Long enough for a loaded machine; a green test never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `probe` until it answers.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: impl Display,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tick.tick().await;
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "within {PATIENCE:?} it never happened that {what}");
    }
}

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    let Ok(value) = timeout(PATIENCE, future).await else {
        panic!("within {PATIENCE:?} it never happened that {what}");
    };
    value
}

/// The same for what may take long.
pub(crate) async fn soon_within<T>(
    within: Duration,
    what: impl Display,
    future: impl Future<Output = T>,
) -> T {
    let Ok(value) = timeout(within, future).await else {
        panic!("within {within:?} it never happened that {what}");
    };
    value
}
