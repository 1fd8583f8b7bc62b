//! Simulated rollouts: how often a harmless one is rolled back, and how soon a harmful one.
//!
//! Uses the production counters and guardrails, on two nodes, with an evaluation after every
//! failure. Small runs are tests; the figures of docs/statistics.md come from
//! `cargo test --release --lib rollout::simulation -- --ignored --nocapture`.

mod population;
mod runs;
