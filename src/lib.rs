//! Crossfade: a real-time event gateway that delivers channels over WebSocket and Server-Sent Events,
//! and moves users between an old and a new system by percentage.
//!
//! **A channel is a log, a connection is a set of cursors.** Publishing appends an event to the log of
//! a channel. A subscription is a cursor into that log. Live delivery, resume after a reconnect and a
//! slow reader are the same operation: read the log from a cursor.
//!
//! # The path of an event
//!
//! 1. [`http`] parses `POST /api/publish` and calls [`node::Node::publish`].
//! 2. [`broker`] appends the event to the channel's log: in memory, in Redis or in PostgreSQL.
//! 3. Every node that has a subscriber receives the entry from its broker's feed. [`node`] keeps the
//!    newest entries of each open channel in a ring, encodes each once per format of [`wire`] and fans
//!    it out.
//! 4. [`connection`] writes the encoded frame to the socket, or marks the client as behind; its task
//!    then reads what is missing from the ring or from the broker's log.
//!
//! # Modules
//!
//! In order of dependency; a module imports only modules above it. ARCHITECTURE.md has the exact table,
//! and the test `tests/it/layers.rs` compares it with the code.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`protocol`] | Types that appear on the wire: channels, positions, events, frames, codes |
//! | [`lifecycle`] | Tasks that shutdown waits for, in stages |
//! | [`metrics`], [`telemetry`], [`memory`], [`dedup`] | Prometheus metrics, logs, memory usage, a window of recently seen keys |
//! | [`broker`] | The logs of all channels, behind one trait, with three backends |
//! | [`wire`] | Byte formats and handshakes of the client protocols |
//! | [`node`] | The channels open on this node: ring, fan-out, repair of gaps |
//! | [`presence`], [`cluster`] | The members of each channel, and the log by which nodes agree on them |
//! | [`auth`] | From a token or an API key to an identity and its permissions |
//! | [`rollout`], [`alert`], [`validation`] | Percentage rollouts with guardrails and automatic rollback, alerts to operators, comparison of both sides |
//! | [`session`], [`connection`] | The rules of one client, and the client on its socket |
//! | [`legacy`] | Taking over from an existing system: proxying, old addresses as channels, Redis `PUBLISH` into the logs, shadow comparison |
//! | [`http`] | Sockets, TLS, admission limits, routes and status codes |
//! | [`config`], [`gateway`], [`cli`] | Settings, composition and shutdown of all parts, the command line |
//!
//! # Running a gateway
//!
//! [`cli::Cli`] is the `crossfade` binary. To embed a gateway, load a [`config::Config`], pass it to
//! [`gateway::Gateway::bind`], and call [`gateway::Gateway::run`] with a future that resolves when it has
//! to stop.

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
