//! The vocabulary of clients, publishers and nodes: names, positions, events, frames and codes.
//!
//! The lowest layer: it imports no other module and knows no socket, clock or broker. A value of one
//! of these types is valid; whoever holds a [`Channel`] need not check it.
//!
//! In reading order: [`channel`], [`id`] and [`position`] name things, [`event`] is what is published,
//! [`presence`] describes members, [`code`] and [`frame`] are what clients and the gateway exchange,
//! and [`rfc6455`] is WebSocket framing. How frames are written is decided in `wire`.
//! The reference is protocol/PROTOCOL.md.

pub mod channel;
pub mod code;
pub mod event;
pub mod frame;
pub mod id;
pub mod position;
pub mod presence;
pub mod rfc6455;

pub use channel::{Channel, ChannelError};
pub use code::{CloseCode, ErrorCode};
pub use event::{Data, Draft, Event};
pub use frame::{ClientFrame, FrameError, ServerFrame};
pub use id::{EventName, MessageId, SessionId, Token, UserId};
pub use position::{Epoch, Position, Positions};
pub use presence::{Left, Member, MemberId, PresenceFrame};
