//! One target with its subscribers, for as long as the comparison goes on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;

use super::{
    super::{connect_time, progress},
    Fanout,
    figures::{Figures, Round},
};
use crate::{
    publisher::{Event, Publisher},
    swarm::Swarm,
    target::Target,
    verify,
};

const CHANNEL: &str = "fanout";

/// Publish calls before the first round, which are not counted.
const WARM_UP: u64 = 20;

/// A target's lane.
pub(super) struct Lane {
    // Before the target, so that the subscribers leave before the server ends.
    swarm: Swarm,
    publisher: Box<dyn Publisher>,
    target: Box<dyn Target>,
    /// The next event's number.
    next: u64,
    figures: Figures,
}

impl Lane {
    pub(super) fn open(mut target: Box<dyn Target>, plan: &Fanout) -> anyhow::Result<Self> {
        let bar = progress(&format!("{} connects", target.name()), plan.subscribers as u64);
        let (within, channel) = (connect_time(plan.subscribers), Arc::from(CHANNEL));
        let channel_of = |_| Arc::clone(&channel);
        let mut swarm = Swarm::connect(&*target, plan.subscribers, within, channel_of, |ready| {
            bar.set_position(ready as u64);
        })?;
        bar.finish_and_clear();
        swarm.watch(plan.watch)?;
        let publisher = target.publisher()?;
        let figures = Figures::new(target.name())?;
        Ok(Self { swarm, publisher, target, next: 0, figures })
    }

    pub(super) fn name(&self) -> &str {
        self.target.name()
    }

    pub(super) fn tend(&mut self) -> anyhow::Result<()> {
        self.swarm.tend(&mut |_| {})?;
        self.target.expect_alive()
    }

    pub(super) fn into_figures(self) -> Figures {
        self.figures
    }

    /// A few calls, of which nothing counts but what went wrong.
    pub(super) fn warm_up(&mut self, plan: &Fanout) -> anyhow::Result<()> {
        let mut pace = Pace::new(plan, self.next, plan.publishes.min(WARM_UP));
        self.publish_all(plan, &mut pace, &ProgressBar::hidden(), &mut |_| {})?;
        self.swarm.tend(&mut |_| {})?;
        self.figures.warm_up = self.swarm.close_books(self.next);
        Ok(())
    }

    pub(super) fn round(&mut self, plan: &Fanout, bar: &ProgressBar) -> anyhow::Result<()> {
        let process = self.target.process();
        let mut latency = self.figures.latency.clone();
        let (cpu, began) = (process.cpu()?, Instant::now());
        let mut pace = Pace::new(plan, self.next, plan.publishes);
        self.publish_all(plan, &mut pace, bar, &mut |nanos| latency.saturating_record(nanos))?;
        let (wall, cpu) = (began.elapsed(), process.cpu()?.saturating_sub(cpu));
        // What came twice may come last.
        self.swarm.tend(&mut |_| {})?;
        let tally = self.swarm.close_books(self.next);
        self.figures.latency = latency;
        self.figures.rounds.push(Round { wall, cpu, tally });
        Ok(())
    }

    /// Publishes what `pace` says when it says so, and reads until everybody has it all.
    fn publish_all(
        &mut self,
        plan: &Fanout,
        pace: &mut Pace,
        bar: &ProgressBar,
        record: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(plan.max_seconds);
        let patience = Duration::from_millis(plan.patience);
        let mut heard_at = Instant::now();
        loop {
            let now = Instant::now();
            let settled = self.publisher.is_settled()?;
            let given_up = patience < now.duration_since(heard_at);
            let arrived = (settled && self.swarm.has_all(self.next)) || given_up;
            if deadline < now || (arrived && pace.is_over()) {
                return Ok(());
            }
            if settled && pace.is_due(now, arrived) {
                self.publisher.publish(&self.burst(plan))?;
                self.next += plan.burst;
                pace.published(now);
                heard_at = now;
                bar.inc(1);
            }
            self.swarm.attend(self.next, &mut |seq| {
                heard_at = Instant::now();
                if let Some(nanos) = pace.age(seq, heard_at) {
                    record(nanos);
                }
            })?;
        }
    }

    fn burst(&self, plan: &Fanout) -> Vec<Event> {
        let event =
            |seq| Event { channel: CHANNEL.to_owned(), data: verify::payload(seq, plan.bytes) };
        (self.next..self.next + plan.burst).map(event).collect()
    }
}

/// When calls are due, and when each was.
struct Pace {
    /// The first event's number.
    first: u64,
    burst: u64,
    calls: u64,
    began: Instant,
    /// In an open loop.
    every: Option<Duration>,
    /// When each call was due.
    due: Vec<Instant>,
}

impl Pace {
    fn new(plan: &Fanout, first: u64, calls: u64) -> Self {
        let every = plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        Self { first, burst: plan.burst, calls, began: Instant::now(), every, due: Vec::new() }
    }

    fn is_over(&self) -> bool {
        self.due.len() as u64 == self.calls
    }

    fn is_due(&self, now: Instant, arrived: bool) -> bool {
        !self.is_over() && self.next_due().map_or(arrived, |due| due <= now)
    }

    fn published(&mut self, now: Instant) {
        // A call that had to wait for its turn is as old as it was meant to be.
        self.due.push(self.next_due().unwrap_or(now));
    }

    fn next_due(&self) -> Option<Instant> {
        Some(self.began + self.every?.mul_f64(self.due.len() as f64))
    }

    fn age(&self, seq: u64, now: Instant) -> Option<u64> {
        let call = usize::try_from(seq.checked_sub(self.first)? / self.burst).ok()?;
        let age = now.saturating_duration_since(*self.due.get(call)?);
        u64::try_from(age.as_nanos()).ok()
    }
}
