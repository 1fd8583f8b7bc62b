//! What is remembered of one connection for the rollout's measurements.

/// What is remembered of one connection for the rollout's measurements.
#[derive(Debug, Default)]
pub(super) struct SessionStats {
    /// The rollout's epoch in which the session was counted as connected; 0 if it was not.
    pub(super) epoch: u64,
    /// Whether its resume was recorded.
    pub(super) resume_recorded: bool,
    /// The client left on purpose.
    pub(super) left: bool,
}
