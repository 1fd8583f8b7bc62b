//! A real-time event gateway: a channel is a log, a connection is a set of cursors.
//!
//! Read from the bottom: [`protocol`] has the words, [`broker`] keeps the logs, [`node`] holds the
//! newest of them ready for whoever reads here, [`cluster`] is what the nodes tell each other, above
//! all [`presence`], [`session`] decides what a client gets next,
//! [`connection`] puts it on a socket, [`legacy`] takes over from the system that was there, [`http`]
//! is the edge, [`gateway`] wires all of it.
//! ARCHITECTURE.md has the table of who may import whom; a test keeps it.

pub mod alert;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod dedup;
pub mod gateway;
pub mod http;
pub mod legacy;
pub mod lifecycle;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod presence;
pub mod protocol;
pub mod rollout;
pub mod session;
pub mod telemetry;
pub mod validation;
pub mod wire;
