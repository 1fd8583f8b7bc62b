//! Behaviour, seen from outside. One binary; a file per behaviour.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

mod broker_contract;
mod support;
