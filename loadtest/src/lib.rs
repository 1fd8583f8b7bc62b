//! What a connection costs an event gateway and what a delivery does, measured from outside.
//!
//! Many clients in one thread speak a gateway's public protocol, count every delivery, and read from
//! `/proc` what the server spent on them. Nothing of the gateway is imported: what is measured is
//! what a stranger would measure.
//!
//! In reading order: a [`scenario`] opens [`targets`](target) and lets the [`engine`] loose on
//! them: a [`swarm`] that listens and [publishers](publisher) that speak. The swarm takes bytes apart
//! with [`frames`] and keeps the books with [`verify`]; [`measure`] reads what it cost and [`report`]
//! says so.

pub mod cli;
pub mod clock;
pub mod engine;
pub mod frames;
pub mod measure;
pub mod process;
pub mod publisher;
pub mod report;
pub mod scenario;
pub mod swarm;
pub mod target;
pub mod targets;
pub mod verify;
