//! Whether the server can be reached: what each part last saw of it, and one log line per change.

use parking_lot::Mutex;
use tracing::{info, warn};

use super::failure::Failure;
use crate::broker::{BrokerError, Health};

/// Who keeps a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Publishes; there are two.
    Writer(usize),
    /// Hears the news.
    Listener,
    /// Empties the outbox.
    Sequencer,
}

/// What is known of the server.
#[derive(Debug)]
pub(super) struct HealthTracker {
    label: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    down: [Option<String>; 4],
    said_down: bool,
}

impl HealthTracker {
    /// Nobody has reached the server yet.
    pub(super) fn new(label: String) -> Self {
        let down = std::array::from_fn(|_| Some("not connected yet".to_owned()));
        Self { label, state: Mutex::new(State { down, said_down: false }) }
    }

    /// A part is connected.
    pub(super) fn up(&self, part: Part) {
        let mut state = self.state.lock();
        state.down[index(part)] = None;
        if state.said_down && state.down.iter().all(Option::is_none) {
            state.said_down = false;
            info!(broker = self.label, "PostgreSQL is back");
        }
    }

    /// A part is not.
    pub(super) fn down(&self, part: Part, trouble: &Failure) {
        let mut state = self.state.lock();
        state.down[index(part)] = Some(trouble.to_string());
        if !state.said_down {
            state.said_down = true;
            warn!(broker = self.label, ?part, %trouble, "PostgreSQL cannot be reached; trying on");
        }
    }

    /// The sum of it.
    pub(super) fn health(&self) -> Health {
        let state = self.state.lock();
        match state.down.iter().flatten().next() {
            None => Health::Up,
            Some(why) => Health::Down { reason: format!("PostgreSQL at {}: {why}", self.label) },
        }
    }

    /// The answer to a caller whose call met trouble.
    pub(super) fn unavailable(&self, reason: &impl ToString) -> BrokerError {
        let broker = format!("PostgreSQL at {}", self.label);
        BrokerError::Unavailable { broker, reason: reason.to_string() }
    }

    /// The answer to a caller who is better told not to try again.
    pub(super) fn refused(&self, reason: &impl ToString) -> BrokerError {
        let broker = format!("PostgreSQL at {}", self.label);
        BrokerError::Refused { broker, reason: reason.to_string() }
    }
}

fn index(part: Part) -> usize {
    match part {
        Part::Writer(which) => which.min(1),
        Part::Listener => 2,
        Part::Sequencer => 3,
    }
}
