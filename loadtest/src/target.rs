//! Something that can be subscribed to and published to. A server to be measured implements
//! [`Target`], and [`Dialogue`] is what a subscriber says to it.

use std::{net::SocketAddr, sync::Arc};

use crate::{frames::Wire, measure::Process, publisher::Publisher};

/// A running server.
pub trait Target {
    /// What it is called in figures.
    fn name(&self) -> &str;

    /// Its process, whose memory and CPU are read.
    fn process(&self) -> Process;

    /// Where subscribers connect to.
    fn address(&self) -> SocketAddr;

    /// What they say there.
    fn dialogue(&self) -> Arc<dyn Dialogue>;

    /// A way to publish, to be asked for once.
    ///
    /// # Errors
    /// When the server does not take publishers.
    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>>;

    /// Fails if the server has ended.
    ///
    /// # Errors
    /// With how it ended.
    fn expect_alive(&mut self) -> anyhow::Result<()>;
}

/// A subscriber's side of a server's protocol.
pub trait Dialogue {
    /// How the server separates its messages.
    fn wire(&self) -> Wire;

    /// What a subscriber says first.
    fn opening(&self, channel: &str) -> Vec<u8>;

    /// What it says when the response's head is there.
    fn after_head(&self, channel: &str) -> Vec<u8>;

    /// Whether the head is that of a served request.
    fn accepts(&self, head: &[u8]) -> bool;

    /// What a message that is no event means.
    fn understand(&self, message: &[u8]) -> Meaning;
}

/// What a message that is no event means to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// From now on it gets events.
    Subscribed,
    /// It has to answer this.
    Answer(Vec<u8>),
    /// The server refuses it or ends it.
    Refused,
    /// Nothing to do.
    Nothing,
}
