//! Connections: one client on one socket, from the handshake to the close.
//!
//! The session decides what a client gets, the connection writes it: to whatever [`socket`] it is
//! given, in whatever format its wire has. It knows no HTTP heads and no broker. In reading order:
//! [`Connections`] is the registry and what all connections share; [`client`] is what the fan-out
//! and a connection's task share, with `client_state` behind a mutex and `delivery` writing to the
//! socket; `task` is the loop, `closing` its
//! end; `requests`, `subscribe` and `presence_requests` perform what clients
//! ask for, `posted_requests` what SSE clients POST beside their stream; `cluster_commands` applies
//! what other nodes order; `migration` asks clients to change transport; `observations` reports
//! sessions to the rollout's meter.

mod active_subscription;
mod admission;
pub mod client;
mod client_state;
mod close_reason;
mod closing;
mod cluster_commands;
mod config;
mod delivery;
mod disconnected_sessions;
mod heartbeat;
mod migration;
mod migration_state;
mod observations;
mod open_session;
mod pipe;
mod posted_requests;
mod presence_requests;
mod registry;
mod replies;
mod requests;
mod session_stats;
pub mod socket;
mod subscribe;
mod task;
mod token_expiry;

pub(crate) use self::replies::{code_of, page};
pub use self::{
    admission::{Accepted, AdmissionPermit},
    cluster_commands::obey,
    config::ConnectionConfig,
    migration::Migrator,
    registry::Connections,
    task::Connection,
};
