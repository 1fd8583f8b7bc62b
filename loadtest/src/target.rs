//! Something that can be subscribed to and published to. A server to be measured implements
//! [`Target`], and [`Dialogue`] is what a subscriber says to it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::bail;

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
    fn dialogue(&self, transport: Transport) -> Arc<dyn Dialogue>;

    /// One more connection that publishes.
    ///
    /// # Errors
    /// When the server does not take it.
    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>>;

    /// How many connections may publish.
    fn most_publishers(&self) -> usize {
        usize::MAX
    }

    /// Fails if the server has ended.
    ///
    /// # Errors
    /// With how it ended.
    fn expect_alive(&mut self) -> anyhow::Result<()>;

    /// Whether subscribers may come and go while events flow.
    ///
    /// # Errors
    /// When this server knows all its subscribers beforehand.
    fn expect_visitors(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// How a subscriber is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// A WebSocket, or the one transport of a server that has neither.
    WebSocket,
    /// A `text/event-stream`.
    EventStream,
}

/// Where a subscriber sits.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// The channel's name.
    pub channel: &'a str,
    /// The channel's number.
    pub room: u32,
    /// A position from before, to go on from.
    pub since: Option<&'a str>,
    /// The session that it had before, where servers know such a thing.
    pub session: Option<&'a str>,
    /// The number it goes by, if it says who it is: only such a client is asked to move.
    pub unit: Option<usize>,
}

/// A subscriber's side of a server's protocol.
pub trait Dialogue {
    /// How the server separates its messages.
    fn wire(&self) -> Wire;

    /// What a subscriber says first.
    fn opening(&self, seat: &Seat<'_>) -> Vec<u8>;

    /// What a subscriber makes of the response's head.
    fn greet(&self, head: &[u8], seat: &Seat<'_>) -> Meaning;

    /// What a message that is no event means.
    fn understand(&self, message: &[u8], seat: &Seat<'_>) -> Meaning;

    /// The position that a message tells of.
    fn position<'a>(&self, _message: &'a [u8]) -> Option<&'a str> {
        None
    }

    /// Whether a subscriber can go on from a position.
    fn resumes(&self) -> bool {
        false
    }

    /// Whether a subscriber gets events as soon as it is connected.
    fn is_ready_at_once(&self) -> bool {
        false
    }
}

/// What a message that is no event means to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// From now on it gets events.
    Subscribed,
    /// It has to answer this.
    Answer(Vec<u8>),
    /// This is the session it has.
    Session(String),
    /// The same, and from now on it gets events.
    SubscribedAs(String),
    /// It is to move to this transport.
    Move(Transport),
    /// The server refuses it or ends it.
    Refused,
    /// Nothing to do.
    Nothing,
}

/// Transports by their share.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix(Vec<(Transport, u32)>);

impl Mix {
    /// All the same.
    pub fn only(transport: Transport) -> Self {
        Self(vec![(transport, 1)])
    }

    /// Parses `ws=70,sse=30`.
    ///
    /// # Errors
    /// When it is nothing like that.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let part = |part: &str| -> Option<(Transport, u32)> {
            let (name, share) = part.split_once('=')?;
            let transport = match name {
                "ws" => Transport::WebSocket,
                "sse" => Transport::EventStream,
                _ => return None,
            };
            Some((transport, share.parse().ok().filter(|share| *share <= 100)?))
        };
        let parts: Option<Vec<_>> = text.split(',').map(part).collect();
        match parts {
            Some(parts) if parts.iter().any(|(_, share)| *share != 0) => Ok(Self(parts)),
            _ => bail!("{text:?} is not like ws=70,sse=30"),
        }
    }

    /// The transport of a subscriber by its number, mixed finely.
    pub fn of(&self, number: usize) -> Transport {
        let all: u32 = self.0.iter().map(|(_, share)| share).sum();
        // A step that has no divisor in common with the sum spreads a share over any run of numbers.
        let mut at = (number as u64 * 7_919 % u64::from(all)) as u32;
        for (transport, share) in &self.0 {
            if at < *share {
                return *transport;
            }
            at -= share;
        }
        Transport::WebSocket
    }

    /// The transports in it.
    pub fn transports(&self) -> impl Iterator<Item = Transport> {
        self.0.iter().map(|(transport, _)| *transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept() {
        let mix = Mix::parse("ws=70,sse=30").unwrap();
        let sse = (0..1_000).filter(|number| mix.of(*number) == Transport::EventStream).count();
        assert_eq!(sse, 300);
        let first_hundred = (0..100).filter(|n| mix.of(*n) == Transport::EventStream).count();
        assert_eq!(first_hundred, 30);
        assert!(Mix::parse("ws").is_err() && Mix::parse("ws=0").is_err());
    }
}
