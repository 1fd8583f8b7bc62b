//! The moves of a rollout: what each input does to its state.

use super::{Effect, Look, Refused, Schedule, State, Status, Step, Stop, Validation};
use crate::rollout::{cohort::Percentage, guardrail::Demand};

/// Between two looks no more than so many milliseconds count as baked: in the time that nobody
/// looked, nobody knows.
pub(super) const LONGEST_LOOK: u64 = 60_000;

/// A state on its way to the next.
pub(super) struct Transition<'a> {
    schedule: &'a Schedule,
    now: u64,
    state: State,
    acts: Vec<Effect>,
}

impl<'a> Transition<'a> {
    pub(super) fn new(schedule: &'a Schedule, state: State, now: u64) -> Self {
        Self { schedule, now, state, acts: Vec::new() }
    }

    pub(super) fn outcome(self) -> (State, Vec<Effect>) {
        (self.state, self.acts)
    }
    pub(super) fn start(
        &mut self,
        reason: String,
        waits_for: &[String],
        force: bool,
    ) -> Result<(), Refused> {
        let again = match self.state.status {
            Status::Pending => false,
            Status::RolledBack | Status::Stopped | Status::Failed => true,
            _ => return refuse("it has been started; pause it, set it or roll it back"),
        };
        if !force {
            self.may_go_up_again()?;
        }
        if again && reason.trim().is_empty() {
            return refuse("it was stopped; give the reason why it may start again");
        }
        if !waits_for.is_empty() {
            return refuse(format!("complete {} first", waits_for.join(", ")));
        }
        self.begin(again, reason);
        if self.schedule.steps.is_empty() {
            self.tell(false, "started, to be set by hand".to_owned());
        } else {
            self.enter(0);
        }
        Ok(())
    }

    pub(super) fn pause(&mut self, reason: String) -> Result<(), Refused> {
        self.needs(&[Status::Running], "only a running rollout can be paused")?;
        self.state.status = Status::Paused;
        self.state.looked = None;
        self.tell(false, format!("paused at {}: {reason}", self.state.percentage));
        self.state.reason = reason;
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Refused> {
        self.needs(&[Status::Paused], "only a paused rollout can be resumed")?;
        self.state.status = Status::Running;
        self.state.looked = None;
        self.tell(false, format!("resumed at {}", self.state.percentage));
        Ok(())
    }

    pub(super) fn approve(&mut self) -> Result<(), Refused> {
        let going = [Status::Running, Status::Paused];
        self.needs(&going, "only a running or paused rollout can be approved")?;
        self.state.approved = true;
        self.tell(false, format!("approved at {}", self.state.percentage));
        Ok(())
    }

    /// The bake time counts as passed; the next look goes on if nothing else is missing.
    pub(super) fn hurry(&mut self) -> Result<(), Refused> {
        self.needs(&[Status::Running], "only a running rollout can be advanced; resume it first")?;
        let Some(step) = self.planned() else {
            return refuse("there is no schedule to advance; set the percentage");
        };
        self.state.baked = self.state.baked.max(1_000 * step.bake_seconds);
        self.tell(
            false,
            format!("the rest of the bake time at {} is skipped", self.state.percentage),
        );
        Ok(())
    }

    pub(super) fn complete(&mut self) -> Result<(), Refused> {
        let going = [Status::Running, Status::Paused];
        self.needs(&going, "only a running or paused rollout can be completed")?;
        if self.state.percentage < Percentage::ALL {
            return refuse(format!("it stands at {}; go to 100 % first", self.state.percentage));
        }
        self.finish();
        Ok(())
    }

    pub(super) fn set(&mut self, to: Percentage, reason: String) -> Result<(), Refused> {
        let rises = to > self.state.percentage;
        match self.state.status {
            Status::RolledBack | Status::Stopped | Status::Failed if rises => {
                return refuse("it was stopped; start it first, which needs a reason");
            }
            Status::Pending if rises => self.begin(false, reason.clone()),
            _ => {}
        }
        if to == self.state.percentage {
            return Ok(());
        }
        let ended =
            matches!(self.state.status, Status::RolledBack | Status::Stopped | Status::Failed);
        if !ended {
            let by_hand = self.schedule.steps.is_empty();
            self.state.status = if by_hand { Status::Running } else { Status::Paused };
        }
        let reached = |step: &Step| step.percentage <= to;
        self.state.step = self.schedule.steps.iter().rposition(reached);
        self.turn_to(to);
        self.tell(false, format!("set to {to} by hand: {reason}"));
        self.state.reason = reason;
        Ok(())
    }

    pub(super) fn freeze(&mut self, reason: String) -> Result<(), Refused> {
        let alive = [Status::Pending, Status::Running, Status::Paused, Status::Completed];
        self.needs(
            &alive,
            "it has been stopped already; to bring users back, choose another mode",
        )?;
        self.end(Status::Stopped, Stop::Freeze, reason);
        self.tell(true, format!("frozen at {}: {}", self.state.percentage, self.state.reason));
        Ok(())
    }

    /// Back to nobody, from wherever it stands.
    pub(super) fn go_back(&mut self, status: Status, how: Stop, reason: String) {
        // What failed stays so, and a harder stop may follow a softer one.
        let status = if self.state.status == Status::Failed { Status::Failed } else { status };
        let from = self.state.percentage;
        self.end(status, how, reason);
        self.state.step = None;
        if from > Percentage::ZERO {
            self.turn_to(Percentage::ZERO);
        }
        let what = if status == Status::Failed { "emergency stop" } else { "rolled back" };
        self.tell(true, format!("{what} from {from}: {}", self.state.reason));
    }

    pub(super) fn validated(&mut self, stage: u64, differs: Option<String>) {
        if stage != self.state.stage {
            return;
        }
        if let Some(differs) = &differs {
            self.tell(true, format!("the two sides deliver differently: {differs}"));
        }
        self.state.validation = differs.map_or(Validation::Passed, Validation::Failed);
    }

    pub(super) fn look(&mut self, look: &Look) {
        if look.demand == Demand::RollBack && self.state.percentage > Percentage::ZERO {
            // What was measured of a stage that is over counts as well: it was harm.
            if look.of.0 == self.state.epoch {
                return self.go_back(Status::RolledBack, Stop::DrainBack, look.reasons.join("; "));
            }
        }
        if self.state.status != Status::Running {
            return;
        }
        let since = self.state.looked.replace(self.now).map(|at| self.now.saturating_sub(at));
        let Some(step) = self.planned() else {
            self.state.holds = held(look, self.state.epoch, self.state.stage);
            return;
        };
        let mut holds = held(look, self.state.epoch, self.state.stage);
        if let (true, Some(since)) = (holds.is_empty(), since) {
            self.state.baked = self.state.baked.saturating_add(since.min(LONGEST_LOOK));
        }
        holds.extend(self.missing(step, look));
        if holds.is_empty() && step.validation {
            holds.extend(self.unvalidated());
        }
        self.state.holds = holds;
        let new = look.asking.iter().any(|name| !self.state.held_by.contains(name));
        if self.state.holds.is_empty() {
            self.advance();
        } else if look.demand == Demand::Hold && new {
            self.state.held_by.clone_from(&look.asking);
            self.tell(
                true,
                format!("holds at {}: {}", self.state.percentage, look.reasons.join("; ")),
            );
        }
    }

    /// What a step has not seen yet.
    fn missing(&self, step: Step, look: &Look) -> Vec<String> {
        let mut missing = Vec::new();
        let (baked, bake) = (self.state.baked / 1_000, step.bake_seconds);
        if baked < bake {
            missing.push(format!("bakes for another {} s", bake - baked));
        }
        if look.users < step.min_users {
            missing.push(format!("{} of {} users seen", look.users, step.min_users));
        }
        if look.events < step.min_events {
            missing.push(format!("{} of {} events seen", look.events, step.min_events));
        }
        if step.approval && !self.state.approved {
            missing.push("waits for approval".to_owned());
        }
        missing
    }

    /// Comparing the two sides is asked for when nothing else is missing.
    fn unvalidated(&mut self) -> Option<String> {
        match &self.state.validation {
            Validation::Passed => None,
            Validation::Failed(differs) => {
                Some(format!("the two sides deliver differently: {differs}"))
            }
            Validation::Asked => Some("waits for validation".to_owned()),
            Validation::Unknown => {
                self.state.validation = Validation::Asked;
                self.acts.push(Effect::Validate);
                Some("waits for validation".to_owned())
            }
        }
    }

    /// To the next step, or to the end.
    fn advance(&mut self) {
        let next = self.state.step.map_or(0, |step| step + 1);
        if next < self.schedule.steps.len() {
            self.enter(next);
        } else if self.state.percentage == Percentage::ALL {
            self.finish();
        } else {
            self.state.holds =
                vec!["the last step is done; set the percentage or roll back".to_owned()];
        }
    }

    fn enter(&mut self, step: usize) {
        let to = self.schedule.steps[step].percentage;
        self.state.step = Some(step);
        let from = self.state.percentage;
        self.turn_to(to);
        self.tell(false, format!("goes from {from} to {to}"));
    }

    fn finish(&mut self) {
        self.state.status = Status::Completed;
        self.state.holds.clear();
        self.tell(false, "completed: everybody is on the new side".to_owned());
    }

    /// A new epoch, at nobody.
    fn begin(&mut self, again: bool, reason: String) {
        let before = std::mem::take(&mut self.state);
        self.state.status = Status::Running;
        self.state.epoch = before.epoch + 1;
        self.state.stage = before.stage;
        self.state.reason = reason;
        self.acts.push(Effect::Begin { new_salt: again && !self.schedule.keep_salt });
        if before.percentage > Percentage::ZERO {
            let (from, to) = (before.percentage, Percentage::ZERO);
            self.acts.push(Effect::Move { from, to });
        }
    }

    fn end(&mut self, status: Status, how: Stop, reason: String) {
        self.state.status = status;
        // A stop never becomes softer by another one.
        self.state.stop = self.state.stop.max(Some(how));
        self.state.reason = reason;
        self.state.looked = None;
        self.state.approved = false;
        self.state.holds.clear();
        let until = self.now.saturating_add(1_000 * self.schedule.cool_down_seconds);
        self.state.cool_until = Some(self.state.cool_until.map_or(until, |at| at.max(until)));
    }

    /// Another percentage is another stage, of which nothing is known yet.
    fn turn_to(&mut self, to: Percentage) {
        let from = std::mem::replace(&mut self.state.percentage, to);
        self.state.stage += 1;
        self.state.baked = 0;
        self.state.looked = None;
        self.state.approved = false;
        self.state.validation = Validation::Unknown;
        self.state.holds.clear();
        self.state.held_by.clear();
        self.acts.push(Effect::Move { from, to });
    }

    fn may_go_up_again(&self) -> Result<(), Refused> {
        match self.state.cool_until {
            Some(until) if until > self.now => {
                let rest = (until - self.now).div_ceil(1_000);
                refuse(format!(
                    "it cools down for another {rest} s after: {}; force it if you know better",
                    self.state.reason
                ))
            }
            _ => Ok(()),
        }
    }

    /// What has to be seen before the next step. By hand below the first, nothing.
    fn planned(&self) -> Option<Step> {
        let nothing = Step {
            percentage: self.state.percentage,
            bake_seconds: 0,
            min_users: 0,
            min_events: 0,
            approval: false,
            validation: false,
        };
        let steps = &self.schedule.steps;
        let planned = |at: usize| steps.get(at).copied().unwrap_or(nothing);
        (!steps.is_empty()).then(|| self.state.step.map_or(nothing, planned))
    }

    fn needs(&self, statuses: &[Status], otherwise: &str) -> Result<(), Refused> {
        if statuses.contains(&self.state.status) { Ok(()) } else { refuse(otherwise) }
    }

    fn tell(&mut self, urgent: bool, text: String) {
        self.acts.push(Effect::Tell { urgent, text });
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

/// What a look holds a rollout for.
fn held(look: &Look, epoch: u64, stage: u64) -> Vec<String> {
    let mut holds = Vec::new();
    if look.of != (epoch, stage) {
        holds.push("waits for the first counts of this stage".to_owned());
    }
    if !look.waits_for.is_empty() {
        holds.push(format!("waits for {} to be completed", look.waits_for.join(", ")));
    }
    match look.demand {
        Demand::Nothing => {}
        Demand::Hold if !look.reasons.is_empty() => holds.extend(look.reasons.iter().cloned()),
        Demand::Hold | Demand::RollBack => holds.push("a guardrail holds".to_owned()),
    }
    holds
}
