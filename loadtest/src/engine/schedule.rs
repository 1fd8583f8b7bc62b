//! When bursts are due, and where they go.

use super::{Pace, Plan};
use crate::clock;

/// One turn's bursts.
#[derive(Debug)]
pub struct Schedule {
    began: u64,
    until: u64,
    /// Nanoseconds between two bursts, in an open loop.
    every: Option<f64>,
    left: u64,
    made: u64,
}

impl Schedule {
    /// Begins now.
    pub fn new(plan: &Plan, now: u64) -> Self {
        let every = match plan.pace {
            Pace::Rate(rate) => Some(1e9 / rate),
            Pace::Window(_) => None,
        };
        let until = now.saturating_add(clock::seconds(plan.time.as_secs_f64()));
        Self { began: now, until, every, left: plan.publishes, made: 0 }
    }

    /// When the next burst was due, if it is. One that had to wait for its turn is as old as it was
    /// meant to be. `may` says whether a closed loop has room.
    pub fn take(&mut self, now: u64, may: bool) -> Option<u64> {
        if self.is_over(now) {
            return None;
        }
        let due = match self.every {
            Some(_) => self.next_due().filter(|due| *due <= now)?,
            None if may => now,
            None => return None,
        };
        self.made += 1;
        self.left -= 1;
        Some(due)
    }

    /// Whether nothing more will be due.
    pub fn is_over(&self, now: u64) -> bool {
        let is_late = match self.next_due() {
            // What was due before the end is published, however late it is.
            Some(due) => self.until <= due,
            None => self.until <= now,
        };
        self.left == 0 || is_late
    }

    /// Bursts that were due.
    pub fn made(&self) -> u64 {
        self.made
    }

    fn next_due(&self) -> Option<u64> {
        Some(self.began + (self.every? * self.made as f64) as u64)
    }
}

/// Where the next burst goes: to a room, as part of a stream, from a desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The channel.
    pub room: usize,
    /// Whose words they are there.
    pub stream: usize,
    /// The connection. One stream of one room always has the same, which keeps its order.
    pub desk: usize,
}

impl Destination {
    /// That of a burst by its number.
    pub fn of(number: u64, plan: &Plan, desks: usize) -> Self {
        let number = number as usize;
        let room = number % plan.channels;
        // One after the other, also where each has a word in every channel: none waits while another
        // goes round them all.
        let round = if plan.shared { number / plan.channels } else { 0 };
        let publisher = (round + room) % plan.publishers;
        let stream = if plan.shared { publisher } else { 0 };
        Self { room, stream, desk: publisher % desks }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use crate::engine::tests::plan;

    #[test]
    fn publishers_take_turns_and_each_speaks_in_every_channel() {
        let plan = Plan { channels: 10, publishers: 4, shared: true, ..plan() };
        let bursts: Vec<_> = (0..40).map(|number| Destination::of(number, &plan, 4)).collect();
        for four in bursts.chunks(4) {
            let desks: BTreeSet<_> = four.iter().map(|to| to.desk).collect();
            assert!(3 <= desks.len(), "they wait for each other: {four:?}");
        }
        let pairs: BTreeSet<_> = bursts.iter().map(|to| (to.room, to.stream)).collect();
        assert_eq!(pairs.len(), 40, "somebody is never heard in some channel");
    }

    #[test]
    fn an_open_loop_neither_waits_nor_forgets() {
        let plan = Plan {
            pace: Pace::Rate(10.0),
            publishes: 100,
            time: Duration::from_millis(450),
            ..plan()
        };
        let mut schedule = Schedule::new(&plan, 1_000);
        assert_eq!(schedule.take(1_000, false), Some(1_000));
        assert_eq!(schedule.take(1_001, true), None);
        let late = 10_000_000_000;
        let mut dues = Vec::new();
        while let Some(due) = schedule.take(late, false) {
            dues.push(due);
        }
        assert_eq!(dues, [100_001_000, 200_001_000, 300_001_000, 400_001_000]);
        assert!(schedule.is_over(late) && schedule.made() == 5);
    }

    #[test]
    fn a_closed_loop_takes_what_it_may() {
        let plan = Plan { pace: Pace::Window(1), publishes: 2, ..plan() };
        let mut schedule = Schedule::new(&plan, 0);
        assert_eq!(schedule.take(5, false), None);
        assert_eq!((schedule.take(6, true), schedule.take(7, true)), (Some(6), Some(7)));
        assert_eq!((schedule.take(8, true), schedule.is_over(8)), (None, true));
    }

    #[test]
    fn a_stream_of_a_room_keeps_to_its_desk() {
        for shared in [false, true] {
            let plan = Plan { channels: 3, publishers: 4, shared, ..plan() };
            let mut desks = std::collections::HashMap::new();
            for number in 0..100 {
                let to = Destination::of(number, &plan, 2);
                let desk = *desks.entry((to.room, to.stream)).or_insert(to.desk);
                assert_eq!(desk, to.desk);
            }
            assert_eq!(desks.len(), if shared { 12 } else { 3 });
        }
    }
}
