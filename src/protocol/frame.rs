//! Frames: what clients send and what the gateway answers, as two closed enums.
//!
//! A [`ClientFrame`] that exists is valid: it is parsed and checked once. How a frame is written on a
//! wire is `wire`'s business; `parse` reads the JSON form, which both of our own wires and POSTed
//! requests share.

mod client;
mod parse;
mod server;

pub use self::{
    client::{About, ClientFrame, RequestId},
    parse::{FrameError, draft, present},
    server::{Page, PageEvent, ResetReason, ServerFrame},
};
