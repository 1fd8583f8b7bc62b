//! What the tests lean on: private servers, clients, and waiting without sleeping.

pub(crate) mod client;
pub(crate) mod eventually;
pub(crate) mod gateway;
pub(crate) mod legacy_server;
pub(crate) mod migrating_client;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod redis;

/// Runs something beside the test; it ends with the test's runtime.
#[expect(clippy::disallowed_methods, reason = "a test has no lifecycle to wait for its tasks")]
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// What a client waits before it does something, because clients do. No test waits like this for
/// something to become true.
#[expect(clippy::disallowed_methods, reason = "a client's own pause, part of what is played")]
pub(crate) async fn pause(time: std::time::Duration) {
    tokio::time::sleep(time).await;
}

/// A figure for whoever reads the output.
#[expect(clippy::print_stdout, reason = "shown with --nocapture")]
pub(crate) fn tell(text: String) {
    println!("{text}");
}
