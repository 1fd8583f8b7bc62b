//! Crossfading: who belongs on the new side, and whether it does well there.
//!
//! Everything here that judges is pure: time comes in as a number, and what was seen as counts.

pub mod cohort;
pub mod guardrail;
pub mod measure;
mod percentage;
pub mod schedule;
#[cfg(test)]
mod simulation;
pub mod statistics;
