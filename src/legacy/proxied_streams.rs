//! Streams of the old server's that pass, and whose they are: so that somebody whose side has changed
//! need not stay until the connection breaks by itself.

use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tokio_util::sync::CancellationToken;

/// Everybody who has a stream of the old server's through this node.
#[derive(Debug, Default)]
pub struct ProxiedStreams(Mutex<Slab<ProxiedStreamGuard>>);

#[derive(Debug)]
struct ProxiedStreamGuard {
    unit: String,
    groups: Vec<String>,
    leave: CancellationToken,
}

/// A stream's place among them, given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    passengers: Arc<ProxiedStreams>,
    key: usize,
    leave: CancellationToken,
}

impl ProxiedStreams {
    /// A stream begins. It has to end with [`Seat::leave`], as it has to with `stop`.
    pub fn registry(
        self: &Arc<Self>,
        unit: String,
        groups: Vec<String>,
        stop: &CancellationToken,
    ) -> Seat {
        let leave = stop.child_token();
        let key = self.0.lock().insert(ProxiedStreamGuard { unit, groups, leave: leave.clone() });
        Seat { passengers: Arc::clone(self), key, leave }
    }

    /// Ends the streams of those who are to go, at most so many. How many it were.
    pub fn let_off(&self, most: usize, goes: impl Fn(&str, &[String]) -> bool) -> usize {
        let seats = self.0.lock();
        let staying = seats.iter().filter(|(_, passenger)| !passenger.leave.is_cancelled());
        let going = staying.filter(|(_, passenger)| goes(&passenger.unit, &passenger.groups));
        going.take(most).map(|(_, passenger)| passenger.leave.cancel()).count()
    }
}

impl Seat {
    /// What tells the stream to end.
    pub fn leave(&self) -> &CancellationToken {
        &self.leave
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.passengers.0.lock().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_go_are_let_off_as_many_at_a_time_as_is_said() {
        let (passengers, stop) = (Arc::new(ProxiedStreams::default()), CancellationToken::new());
        let registry = |unit: &str| passengers.registry(unit.to_owned(), Vec::new(), &stop);
        let seats = ["anna", "bert", "carl", "anna"].map(registry);
        let left = || seats.iter().filter(|seat| seat.leave().is_cancelled()).count();
        assert_eq!(passengers.let_off(1, |unit, _| unit == "anna"), 1);
        assert_eq!(left(), 1);
        assert_eq!(passengers.let_off(9, |unit, _| unit == "anna"), 1, "nobody twice");
        assert!(!seats[1].leave().is_cancelled() && !seats[2].leave().is_cancelled());
        stop.cancel();
        assert_eq!(left(), 4);
        drop(seats);
        assert!(passengers.0.lock().is_empty());
    }
}
