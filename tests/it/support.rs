//! What the tests lean on: private servers, clients, and waiting without sleeping.

pub(crate) mod client;
pub(crate) mod eventually;
pub(crate) mod gateway;
pub(crate) mod old;
pub(crate) mod postgres;
pub(crate) mod raw;
pub(crate) mod redis;

/// Runs something beside the test; it ends with the test's runtime.
#[expect(clippy::disallowed_methods, reason = "a test has no lifecycle to wait for its tasks")]
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}
