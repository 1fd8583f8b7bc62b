//! Rollouts of a simulated crowd: how often a harmless one is rolled back, and how soon a harmful one.
//!
//! The same counting and judging as in service, on two nodes, with a look after every trouble. The
//! small runs belong to the tests; those of docs/statistics.md are
//! `cargo test --release --lib rollout::simulation -- --ignored --nocapture`.

mod crowd;
mod runs;
