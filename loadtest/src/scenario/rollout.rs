//! A rollout's percentage moves while events flow: everybody who is told to move does, over a
//! second connection that replaces the first, and nobody may miss or hear twice anything.

use anyhow::bail;
use clap::Args;

use super::flow::{Flow, Preset};
use crate::{
    clock,
    engine::{Pace, lane::Turmoil},
    report::Report,
    swarm::{Swarm, Watch},
    target::Transport,
    targets::{Kind, crossfade::set_percentage},
};

/// The arguments.
#[derive(Args, Debug)]
pub struct Rollout {
    /// What is rolled out.
    #[arg(long, default_value = "websocket-transport")]
    component: String,
    /// The percentages, one after the other, each for the same part of the time.
    #[arg(long, value_delimiter = ',', default_value = "0,25,50,100,0")]
    percentages: Vec<f64>,
    /// Connections under way at once.
    #[arg(long, default_value_t = 100)]
    at_once: usize,
    #[command(flatten)]
    flow: Flow,
}

const PRESET: Preset = Preset {
    name: "rollout",
    pace: Pace::Rate(50.0),
    publishes: u64::MAX,
    seconds: 30.0,
    rounds: 1,
    compare: &["crossfade-sse"],
    watch: Watch::Epoll,
    names: true,
    ..Preset::FANOUT
};

impl Rollout {
    /// Measures.
    ///
    /// # Errors
    /// When a server does not do its part.
    pub fn run(&self) -> anyhow::Result<Report> {
        if self.percentages.is_empty() || self.at_once == 0 {
            bail!("--percentages names at least one, and --at-once is at least 1");
        }
        if self.flow.targets(&PRESET)?.iter().any(|spec| spec.kind != Kind::Crossfade) {
            bail!("no other server than the gateway has a rollout");
        }
        let plan = self.flow.plan(&PRESET)?;
        let mut steps = Vec::new();
        let figures = self.flow.measure(&PRESET, &plan, &mut |_, lane, bar| {
            lane.swarm.remember_positions();
            let address = lane.target().address();
            let mut mover = Mover {
                set: Box::new(move |component, percent| {
                    set_percentage(address, component, percent)
                }),
                component: &self.component,
                left: self.percentages.iter().copied().rev().collect(),
                every: clock::seconds(plan.time.as_secs_f64() / self.percentages.len() as f64),
                next: 0,
                at_once: self.at_once,
                queue: Vec::new(),
                moved: 0,
                steps: Vec::new(),
                current: None,
            };
            lane.turn(&plan, &mut mover, bar)?;
            mover.note_step(&lane.swarm);
            steps.append(&mut mover.steps);
            Ok(())
        })?;
        let mut findings = self.flow.findings(&PRESET, &plan, figures);
        steps.iter().for_each(|step| findings.note(step));
        Ok(findings.into_report())
    }
}

type SetPercentage = Box<dyn Fn(&str, f64) -> anyhow::Result<()>>;

/// Moves the percentage, and whoever is told to move.
struct Mover<'a> {
    set: SetPercentage,
    component: &'a str,
    /// Percentages to come, the next one last.
    left: Vec<f64>,
    every: u64,
    next: u64,
    at_once: usize,
    queue: Vec<(usize, Transport)>,
    moved: u64,
    steps: Vec<String>,
    current: Option<f64>,
}

impl Mover<'_> {
    /// Notes where everybody is at the end of a step.
    fn note_step(&mut self, swarm: &Swarm) {
        let Some(percent) = self.current else { return };
        let (ws, sse) = (swarm.on(Transport::WebSocket), swarm.on(Transport::EventStream));
        let moved = std::mem::take(&mut self.moved);
        self.steps.push(format!(
            "{percent} %: {moved} moved; at the end {ws} on WebSocket, {sse} on SSE."
        ));
    }
}

impl Turmoil for Mover<'_> {
    fn stir(&mut self, swarm: &mut Swarm, now: u64) -> anyhow::Result<()> {
        if self.next <= now
            && let Some(percent) = self.left.pop()
        {
            self.note_step(swarm);
            (self.set)(self.component, percent)?;
            self.current = Some(percent);
            self.next = now + self.every;
        }
        self.queue.append(&mut swarm.take_moves());
        while swarm.under_way() < self.at_once
            && let Some((who, to)) = self.queue.pop()
        {
            swarm.move_over(who, to)?;
            self.moved += 1;
        }
        Ok(())
    }
}
