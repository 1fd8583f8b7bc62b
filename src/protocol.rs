//! The words that clients, publishers and nodes use, and how they are written on the wire.
//!
//! This is the ground floor: it imports nothing of ours and knows no socket, no clock and no
//! broker. A value of one of these types is valid; whoever holds a [`Channel`] need not check it.
//!
//! In reading order: [`channel`], [`id`] and [`position`] name things, [`event`] is what travels,
//! [`presence`] who is there,
//! [`code`] and [`frame`] are what the two sides say, [`codec`] turns both into bytes, and
//! [`rfc6455`] wraps bytes into WebSocket frames and back. The reference is protocol/PROTOCOL.md.

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
