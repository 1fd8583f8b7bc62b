//! Behaviour, seen from outside. One binary; a file per behaviour.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

mod alerts;
mod bad_input;
mod broker_contract;
mod cli;
mod credentials;
mod delivery;
mod docs;
mod edge;
mod fixtures;
mod layers;
mod legacy;
mod outage;
mod presence;
mod reference;
mod resilience;
mod rollout;
mod shutdown;
mod slow_reader;
mod structure;
mod support;
mod tls;
mod validation;
