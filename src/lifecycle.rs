//! Graceful shutdown: every background task belongs to a [`Stage`], and stages stop in order.
//!
//! Owns task tracking, stop signals and the shutdown deadline; does not know what the tasks do. All
//! code spawns tasks through a stage (clippy.toml forbids `tokio::spawn`), so that shutdown can wait
//! for each of them.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{Instrument as _, info_span};

/// The stages of one gateway, in the order in which they are told to stop.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Accepting sockets and serving HTTP requests.
    pub listening: Stage,
    /// The tasks of connected clients.
    pub client_tasks: Stage,
    /// Cluster messages, alerts, the legacy takeover: they run until the last client is gone, so that
    /// the other nodes learn of every disconnect.
    pub cluster: Stage,
    /// What all others depend on: the broker, the hub's feed, periodic cleanup.
    pub background: Stage,
}

impl Lifecycle {
    /// Stops accepting sockets, closes all clients, then stops the remaining stages, all within one
    /// deadline. Returns how many tasks had not ended when it passed.
    pub async fn drain(&self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        // An HTTP/2 connection ends with its last stream, which is a client task: so accepting stops
        // first, but is waited for after the clients.
        self.listening.stop.cancel();
        let mut unfinished = self.client_tasks.finish(deadline).await;
        unfinished += self.listening.finish(deadline).await;
        unfinished += self.cluster.finish(deadline).await;
        unfinished + self.background.finish(deadline).await
    }
}

/// A group of tasks that stop together.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Stage {
    /// Spawns a task in a tracing span with its name. The task must end soon after
    /// [`stopping`](Self::stopping) is cancelled.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task.instrument(info_span!("task", name)));
    }

    /// Spawns a task without a span, to save memory: for tasks of which there is one per client.
    pub fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// The token that is cancelled when the tasks have to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// A guard that counts as a task until it is dropped.
    pub fn token(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Cancels the token and waits for the tasks. Returns how many are left at the deadline.
    async fn finish(&self, deadline: Instant) -> usize {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout_at(deadline, self.tasks.wait()).await;
        self.tasks.len()
    }
}

/// A future that resolves when the process receives SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Unix time in milliseconds.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
