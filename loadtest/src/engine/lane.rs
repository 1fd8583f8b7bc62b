//! One target with its subscribers and publishers, for as long as a comparison goes on.

use std::{sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;

use super::{
    Pace, Plan,
    desk::Desk,
    figures::{Figures, Turn},
    sampler::{Sampler, histogram},
    schedule::{Destination, Schedule},
};
use crate::{
    clock,
    swarm::Swarm,
    target::{Mix, Target},
};

/// A target's lane.
#[derive(Debug)]
pub struct Lane {
    // Before the target, so that the subscribers leave before the server ends.
    /// Who listens.
    pub swarm: Swarm,
    desks: Vec<Desk>,
    target: TargetBox,
    rooms: Vec<Arc<str>>,
    /// Bursts so far.
    bursts: u64,
    sampler: Sampler,
    figures: Figures,
}

/// What happens beside the flow of events.
pub trait Turmoil {
    /// Does what is due.
    ///
    /// # Errors
    /// When it cannot.
    fn stir(&mut self, swarm: &mut Swarm, now: u64) -> anyhow::Result<()>;
}

/// Nothing happens.
#[derive(Debug)]
pub struct Calm;

impl Turmoil for Calm {
    fn stir(&mut self, _swarm: &mut Swarm, _now: u64) -> anyhow::Result<()> {
        Ok(())
    }
}

struct TargetBox(Box<dyn Target>);

impl std::fmt::Debug for TargetBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

/// Bursts before the first turn, which are not counted.
const WARM_UP: u64 = 20;

impl Lane {
    /// Connects everybody. `progress` hears how many are.
    ///
    /// # Errors
    /// When the server does not take them.
    pub fn open(
        mut target: Box<dyn Target>,
        plan: &Plan,
        mix: &Mix,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<Self> {
        let seating = plan.seating(mix);
        let mut swarm = Swarm::new(&*target, &seating)?;
        swarm.connect(connect_time(plan.subscribers), progress)?;
        swarm.watch(plan.watch)?;
        let mut desks = Vec::new();
        for _ in 0..plan.publishers.min(target.most_publishers()) {
            desks.push(Desk::new(target.publisher()?));
        }
        let figures = Figures::new(target.name());
        let sampler = Sampler::new();
        let (target, rooms) = (TargetBox(target), seating.rooms);
        Ok(Self { swarm, desks, target, rooms, bursts: 0, sampler, figures })
    }

    /// The server.
    pub fn target(&mut self) -> &mut dyn Target {
        &mut *self.target.0
    }

    /// What its figures are called.
    pub fn name(&self) -> &str {
        self.target.0.name()
    }

    /// Lets those who wait answer pings.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn tend(&mut self) -> anyhow::Result<()> {
        self.swarm.tend(&mut |_| {})?;
        self.target().expect_alive()
    }

    /// What came of it.
    pub fn into_figures(self) -> Figures {
        Figures { samples: self.sampler.samples().to_vec(), ..self.figures }
    }

    /// Some bursts, of which nothing counts but what went wrong.
    ///
    /// # Errors
    /// When the server does not do its part.
    pub fn warm_up(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let publishes = plan.publishes.min(WARM_UP);
        let once = Plan { pace: Pace::Window(1), publishes, ..plan.clone() };
        self.flow(&once, &mut Calm, &ProgressBar::hidden(), &mut Records::default())?;
        self.swarm.tend(&mut |_| {})?;
        self.figures.warm_up += self.swarm.close_books();
        Ok(())
    }

    /// Publishes without anything being recorded: for those who are away.
    ///
    /// # Errors
    /// When the server does not do its part.
    pub fn publish_unseen(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.flow(plan, &mut Calm, &ProgressBar::hidden(), &mut Records::default())
    }

    /// One turn of the plan.
    ///
    /// # Errors
    /// When the server does not do its part.
    pub fn turn(
        &mut self,
        plan: &Plan,
        turmoil: &mut dyn Turmoil,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let process = self.target.0.process();
        let mut records = Records::counted();
        let (cpu, began) = (process.cpu()?, clock::now());
        self.sampler.begin(process, began)?;
        self.flow(plan, turmoil, bar, &mut records)?;
        let wall = Duration::from_nanos(clock::now() - began);
        let cpu = process.cpu()?.saturating_sub(cpu);
        self.add(records, wall, cpu)
    }

    /// Enters a turn that somebody else conducted.
    ///
    /// # Errors
    /// When the server has ended, or says what none may say.
    pub fn add(&mut self, records: Records, wall: Duration, cpu: Duration) -> anyhow::Result<()> {
        self.sampler.take(self.target.0.process(), clock::now(), self.swarm.subscribed())?;
        // What came twice may come last.
        self.swarm.tend(&mut |_| {})?;
        let ms = |quantile| records.latency.value_at_quantile(quantile) as f64 / 1e6;
        let (p50_ms, p99_ms) = (ms(0.5), ms(0.99));
        let tally = self.swarm.close_books();
        self.figures.latency.add(&records.latency)?;
        self.figures.answers.add(&records.answers)?;
        let published = records.published;
        self.figures.turns.push(Turn { wall, cpu, published, tally, p50_ms, p99_ms });
        Ok(())
    }

    /// Reads and takes samples; for turns that somebody else conducts.
    ///
    /// # Errors
    /// When the server does not do its part.
    pub fn attend(&mut self, records: &mut Records) -> anyhow::Result<()> {
        let Self { swarm, sampler, .. } = self;
        swarm.attend(&mut |age| records.deliver(age, sampler))?;
        sampler.look(self.target.0.process(), clock::now(), swarm.subscribed())
    }

    /// Begins a turn that somebody else conducts.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.sampler.begin(self.target.0.process(), clock::now())
    }

    /// Publishes what is due when it is due, and reads until everybody has it all.
    fn flow(
        &mut self,
        plan: &Plan,
        turmoil: &mut dyn Turmoil,
        bar: &ProgressBar,
        records: &mut Records,
    ) -> anyhow::Result<()> {
        let mut schedule = Schedule::new(plan, clock::now());
        let patience = clock::seconds(plan.patience.as_secs_f64());
        let (mut heard_at, mut written_off) = (clock::now(), 0);
        loop {
            let now = clock::now();
            written_off = self.swarm.owed().min(written_off);
            let published = self.publish(plan, &mut schedule, written_off, now, records)?;
            if published != 0 {
                heard_at = now;
                bar.set_position(schedule.made());
            }
            let idle = self.desks.iter().all(Desk::is_empty) && records.unanswered == 0;
            if idle && schedule.is_over(now) && self.swarm.owed() <= written_off {
                return Ok(());
            }
            let before = records.heard;
            if records.sampled {
                self.attend(records)?;
            } else {
                self.swarm.attend(&mut |_| records.heard += 1)?;
            }
            turmoil.stir(&mut self.swarm, now)?;
            if records.heard != before {
                heard_at = now;
            } else if heard_at + patience < now {
                // What did not come by now is lost; it shows when the books are closed.
                written_off = self.swarm.owed();
                heard_at = now;
            }
        }
    }

    fn publish(
        &mut self,
        plan: &Plan,
        schedule: &mut Schedule,
        written_off: u64,
        now: u64,
        records: &mut Records,
    ) -> anyhow::Result<u64> {
        let mut published = 0;
        records.unanswered = 0;
        let in_window = self.room_for(plan);
        for at in 0..self.desks.len() {
            if !self.desks[at].is_settled(now, &mut |age| records.answers.saturating_record(age))? {
                records.unanswered += 1;
            }
        }
        while let Some(due) = {
            let waiting: usize = self.desks.iter().filter(|desk| !desk.is_empty()).count();
            let free = records.unanswered + waiting < self.desks.len();
            schedule.take(now, free && self.swarm.owed() <= in_window.saturating_add(written_off))
        } {
            let to = Destination::of(self.bursts, plan, self.desks.len());
            self.bursts += 1;
            self.desks[to.desk].put(to.room, to.stream, due, plan.burst);
            if matches!(plan.pace, Pace::Window(_)) {
                published += self.serve(to.desk, plan, now, records)?;
            }
        }
        for at in 0..self.desks.len() {
            published += self.serve(at, plan, now, records)?;
        }
        if records.sampled {
            self.sampler.published(published);
        }
        records.published += published;
        Ok(published)
    }

    /// Lets a desk publish what waits for it, if it is free.
    fn serve(
        &mut self,
        at: usize,
        plan: &Plan,
        now: u64,
        records: &mut Records,
    ) -> anyhow::Result<u64> {
        let desk = &mut self.desks[at];
        if desk.is_empty()
            || !desk.is_settled(now, &mut |age| records.answers.saturating_record(age))?
        {
            return Ok(0);
        }
        let count = desk.publish(plan, &self.rooms, &mut self.swarm)?;
        records.unanswered += usize::from(count != 0);
        Ok(count)
    }

    /// Deliveries that may be under way when a closed loop publishes.
    fn room_for(&self, plan: &Plan) -> u64 {
        let Pace::Window(window) = plan.pace else { return u64::MAX };
        let each = plan.burst * plan.subscribers.div_ceil(plan.channels) as u64;
        (window - 1) * each
    }
}

/// What is recorded while events flow.
#[derive(Debug)]
pub struct Records {
    latency: Histogram<u64>,
    answers: Histogram<u64>,
    published: u64,
    heard: u64,
    unanswered: usize,
    /// Whether it counts.
    sampled: bool,
}

impl Default for Records {
    fn default() -> Self {
        let (latency, answers) = (histogram(), histogram());
        Self { latency, answers, published: 0, heard: 0, unanswered: 0, sampled: false }
    }
}

impl Records {
    /// Those of a turn that counts.
    pub fn counted() -> Self {
        Self { sampled: true, ..Self::default() }
    }

    fn deliver(&mut self, age: u64, sampler: &mut Sampler) {
        self.heard += 1;
        self.latency.saturating_record(age);
        sampler.delivered(age);
    }
}

/// How long `count` subscribers may take to connect, on a machine that does other things as well.
pub fn connect_time(count: usize) -> Duration {
    Duration::from_secs(20) + Duration::from_millis(count as u64)
}
