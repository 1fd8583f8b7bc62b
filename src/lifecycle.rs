//! Starting tasks that can be waited for, and stopping them in order.
//!
//! Every task belongs to a [`Stage`]; nothing here knows what the tasks do.

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

/// The tasks of one gateway, in the order they are stopped in.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Accepting sockets and reading requests.
    pub listening: Stage,
    /// A task for each client.
    pub connections: Stage,
    /// Telling the other nodes, to the end that the last client has gone.
    pub cluster: Stage,
    /// What those lean on: the broker, the pump, the sweepers.
    pub background: Stage,
}

impl Lifecycle {
    /// Refuses the new, parts from the old, then stops what they leaned on. Returns how many tasks
    /// had not ended by then.
    pub async fn drain(&self, within: Duration) -> usize {
        let deadline = Instant::now() + within;
        // An HTTP/2 connection ends with its last stream, which is one of the connections.
        self.listening.stop.cancel();
        let mut abandoned = self.connections.finish(deadline).await;
        abandoned += self.listening.finish(deadline).await;
        abandoned += self.cluster.finish(deadline).await;
        abandoned + self.background.finish(deadline).await
    }
}

/// Tasks that stop together.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Stage {
    /// Starts a task. It has to end soon after [`stopping`](Self::stopping) is cancelled.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task.instrument(info_span!("task", name)));
    }

    /// Starts a task without a span of its own: there are as many as there are clients.
    pub fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// What tells the tasks to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Counts as a task for as long as it is held.
    pub fn token(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    async fn finish(&self, deadline: Instant) -> usize {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout_at(deadline, self.tasks.wait()).await;
        self.tasks.len()
    }
}

/// Resolves when the process is asked to stop: SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn interrupted() -> std::io::Result<impl Future<Output = ()>> {
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

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
