//! Publishing without waiting, so that the thread that reads every subscriber can publish as well.

pub mod http;
pub mod pipe;

/// What is published.
#[derive(Clone, Debug)]
pub struct Event {
    /// The channel's name.
    pub channel: std::sync::Arc<str>,
    /// The channel's number.
    pub room: u32,
    /// A JSON string.
    pub data: String,
}

/// Something that publishes.
pub trait Publisher {
    /// Publishes events in one call. Only when the last call [is settled](Self::is_settled).
    ///
    /// # Errors
    /// When the server is gone.
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()>;

    /// Whether the last call was answered.
    ///
    /// # Errors
    /// When the server refused it.
    fn is_settled(&mut self) -> anyhow::Result<bool>;
}
