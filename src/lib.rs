//! Crossfade.
pub mod broker;
pub mod dedup;
pub mod lifecycle;
pub mod protocol;
