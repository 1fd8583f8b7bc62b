//! Stories of rollouts, and that whatever happens in whatever order: no step is skipped, nothing goes
//! up by itself but for a reason, and going back is always honoured.

use proptest::{collection::vec, prelude::*};

use super::{transition::LONGEST_LOOK, *};

const START: u64 = 1_800_000_000_000;

fn percent(percent: f64) -> Percentage {
    Percentage::new(percent).unwrap()
}

fn planned(percentage: f64, bake_seconds: u64, min: u64, approval: bool) -> Step {
    let percentage = percent(percentage);
    let (min_users, min_events) = (min, 10 * min);
    Step { percentage, bake_seconds, min_users, min_events, approval, validation: false }
}

fn schedule() -> Schedule {
    let steps = vec![
        planned(1.0, 60, 10, false),
        planned(5.0, 60, 10, true),
        planned(25.0, 0, 0, false),
        planned(100.0, 60, 10, false),
    ];
    Schedule { steps, cool_down_seconds: 600, ..Schedule::default() }
}

/// A rollout that is told things one after the other.
struct Scenario {
    schedule: Schedule,
    state: State,
    now: u64,
}

impl Scenario {
    fn new(schedule: Schedule) -> Self {
        schedule.check("postgres-broker").unwrap();
        Self { schedule, state: State::default(), now: START }
    }

    fn started() -> Self {
        let mut story = Self::new(schedule());
        story.tell(start("first"));
        story
    }

    fn try_to(&mut self, input: Input) -> Result<Vec<Effect>, String> {
        let (state, acts) = step(&self.schedule, &self.state, input, self.now)
            .map_err(|refused| refused.to_string())?;
        self.state = state;
        Ok(acts)
    }

    fn tell(&mut self, input: Input) -> Vec<Effect> {
        self.try_to(input).unwrap()
    }

    /// Looks at good counts once a second for so many seconds.
    fn pass(&mut self, seconds: u64) -> Vec<Effect> {
        let mut acts = Vec::new();
        for _ in 0..seconds {
            self.now += 1_000;
            acts.extend(self.look(Demand::Nothing));
        }
        acts
    }

    fn look(&mut self, demand: Demand) -> Vec<Effect> {
        let reasons = vec!["interruptions are twice as many".to_owned()];
        let reasons = if demand == Demand::Nothing { Vec::new() } else { reasons };
        let asking = reasons.iter().map(|_| "interruptions".to_owned()).collect();
        self.tell(Input::Look(Look { demand, reasons, asking, ..self.good() }))
    }

    fn good(&self) -> Look {
        Look { of: (self.state.epoch, self.state.stage), users: 50, events: 500, ..Look::default() }
    }

    fn at(&self) -> (Status, f64) {
        (self.state.status, self.state.percentage.percent())
    }
}

fn start(reason: &str) -> Input {
    Input::Start { reason: reason.to_owned(), waits_for: Vec::new(), force: false }
}

fn stop(how: Stop) -> Input {
    Input::Stop { how, reason: "High error rate detected".to_owned() }
}

fn moves(acts: &[Effect]) -> Vec<(f64, f64)> {
    let moved = |act: &Effect| match act {
        Effect::Move { from, to } => Some((from.percent(), to.percent())),
        _ => None,
    };
    acts.iter().filter_map(moved).collect()
}

#[test]
fn it_goes_up_step_by_step_and_is_completed() {
    let mut story = Scenario::new(schedule());
    let acts = story.tell(start(""));
    assert_eq!(acts[0], Effect::Begin { new_salt: false });
    assert_eq!((story.at(), moves(&acts)), ((Status::Running, 1.0), vec![(0.0, 1.0)]));
    assert_eq!(moves(&story.pass(60)), [], "the first look only begins to bake");
    assert_eq!(story.state.holds, ["bakes for another 1 s"]);
    assert_eq!(moves(&story.pass(1)), [(1.0, 5.0)]);

    assert_eq!(moves(&story.pass(120)), []);
    assert_eq!(story.state.holds, ["waits for approval"]);
    story.tell(Input::Approve);
    assert_eq!(moves(&story.pass(2)), [(5.0, 25.0), (25.0, 100.0)]);
    story.pass(61);
    assert_eq!(story.at(), (Status::Completed, 100.0));
    assert_eq!((story.state.epoch, story.state.stage), (1, 4));
}

#[test]
fn it_waits_for_users_events_and_counts_of_its_own_stage() {
    let mut story = Scenario::started();
    story.pass(30);
    story.now += 1_000;
    let of_another_stage = Look { of: (1, 0), ..story.good() };
    story.tell(Input::Look(of_another_stage));
    assert_eq!(story.state.holds[0], "waits for the first counts of this stage");
    assert_eq!(story.state.baked, 29_000, "such time does not bake");
    story.pass(30);
    let few = Look { users: 9, events: 7, ..story.good() };
    story.now += 1_000;
    story.tell(Input::Look(few));
    assert_eq!(story.state.holds, ["9 of 10 users seen", "7 of 100 events seen"]);
    assert_eq!(story.at().1, 1.0);
}

#[test]
fn time_in_which_nobody_looked_does_not_bake() {
    let mut story = Scenario::started();
    story.schedule.steps[0].bake_seconds = 90;
    story.pass(1);
    story.now += 3_600_000;
    story.look(Demand::Nothing);
    assert_eq!((story.state.baked, story.at().1), (60_000, 1.0), "a minute at most");
    let mut story = Scenario::started();
    story.pass(10);
    story.tell(Input::Pause { reason: "lunch".to_owned() });
    story.now += 3_600_000;
    story.look(Demand::Nothing);
    story.tell(Input::Resume);
    story.pass(1);
    assert_eq!(story.state.baked, 9_000);
}

#[test]
fn a_signal_holds_and_lets_go_again() {
    let mut story = Scenario::started();
    story.pass(58);
    let mut told = 0;
    for _ in 0..100 {
        story.now += 1_000;
        told += story.look(Demand::Hold).len();
    }
    assert_eq!((story.at(), told), ((Status::Running, 1.0), 1), "it is told once");
    assert_eq!(story.state.holds[0], "interruptions are twice as many");
    story.pass(10);
    assert_eq!(story.at(), (Status::Running, 5.0));
}

#[test]
fn a_guardrail_rolls_back_wherever_it_stands() {
    let waiting_for_approval = |story: &mut Scenario| {
        story.pass(200);
        assert_eq!(story.state.holds, ["waits for approval"]);
    };
    let paused = |story: &mut Scenario| {
        story.tell(Input::Pause { reason: "lunch".to_owned() });
    };
    let completed = |story: &mut Scenario| {
        story.tell(Input::Set { percentage: Percentage::ALL, reason: "sure".to_owned() });
        story.tell(Input::Complete);
    };
    for bring in [&waiting_for_approval as &dyn Fn(&mut Scenario), &paused, &completed] {
        let mut story = Scenario::started();
        bring(&mut story);
        let acts = story.look(Demand::RollBack);
        assert_eq!(story.at(), (Status::RolledBack, 0.0));
        assert_eq!(story.state.stop, Some(Stop::DrainBack));
        assert_eq!(story.state.reason, "interruptions are twice as many");
        assert!(acts.iter().any(|act| matches!(act, Effect::Tell { urgent: true, .. })));
        assert!(story.look(Demand::RollBack).is_empty(), "once is enough");
    }
}

#[test]
fn a_verdict_on_an_earlier_epoch_is_void() {
    let mut story = Scenario::started();
    let old = Look { of: (0, 9), demand: Demand::RollBack, ..story.good() };
    story.tell(Input::Look(old));
    assert_eq!(story.at(), (Status::Running, 1.0));
}

#[test]
fn after_going_back_it_cools_down_and_needs_a_reason() {
    let mut story = Scenario::started();
    story.pass(100);
    let stage = story.state.stage;
    story.tell(stop(Stop::DrainBack));
    let refused = story.try_to(start("fixed")).unwrap_err();
    assert_eq!(
        refused,
        "it cools down for another 600 s after: High error rate detected; force it if you know better"
    );
    story.now += 600_000;
    assert!(story.try_to(start(" ")).unwrap_err().contains("reason"));
    let raised = Input::Set { percentage: Percentage::ALL, reason: "sure".to_owned() };
    assert!(story.try_to(raised).unwrap_err().contains("start it first"));
    let acts = story.tell(start("fixed in 1.4.2"));
    assert_eq!(acts[0], Effect::Begin { new_salt: true });
    assert_eq!((story.at(), story.state.epoch), ((Status::Running, 1.0), 2));
    assert_eq!((story.state.stop, story.state.cool_until), (None, None));
    assert!(story.state.stage > stage + 1, "stages never repeat");

    story.schedule.keep_salt = true;
    story.tell(Input::EmergencyStop { how: Stop::Hard, reason: "all red".to_owned() });
    assert_eq!(story.at(), (Status::Failed, 0.0));
    story.tell(stop(Stop::DrainBack));
    assert_eq!(story.state.status, Status::Failed, "failed stays failed");
    story.now += 600_000;
    assert_eq!(story.tell(start("again"))[0], Effect::Begin { new_salt: false });
}

#[test]
fn a_freeze_keeps_who_is_there() {
    let mut story = Scenario::started();
    story.pass(100);
    assert_eq!(moves(&story.tell(stop(Stop::Freeze))), []);
    assert_eq!(story.at(), (Status::Stopped, 5.0));
    assert_eq!(moves(&story.pass(1_000)), []);
    story.look(Demand::RollBack);
    assert_eq!(story.at(), (Status::RolledBack, 0.0), "who is there can still be harmed");
    let mut story = Scenario::started();
    story.tell(stop(Stop::Freeze));
    story.now += 600_000;
    let acts = story.tell(start("go on"));
    assert_eq!(moves(&acts), [(1.0, 0.0), (0.0, 1.0)], "others are chosen");
}

#[test]
fn a_hand_on_the_percentage_pauses_the_schedule() {
    let mut story = Scenario::started();
    story.tell(Input::Set { percentage: percent(30.0), reason: "a test".to_owned() });
    assert_eq!((story.at(), story.state.step), ((Status::Paused, 30.0), Some(2)));
    assert_eq!(moves(&story.pass(500)), []);
    story.tell(Input::Resume);
    assert_eq!(moves(&story.pass(2)), [(30.0, 100.0)]);
    story.tell(Input::Set { percentage: percent(0.5), reason: "less".to_owned() });
    assert_eq!((story.at(), story.state.step), ((Status::Paused, 0.5), None));
    story.tell(Input::Resume);
    assert_eq!(moves(&story.pass(2)), [(0.5, 1.0)]);

    let mut by_hand = Scenario::new(Schedule::default());
    by_hand.tell(Input::Set { percentage: percent(50.0), reason: "by hand".to_owned() });
    assert_eq!((by_hand.at(), by_hand.state.epoch), ((Status::Running, 50.0), 1));
    assert_eq!(moves(&by_hand.pass(500)), []);
    assert!(by_hand.try_to(Input::Complete).unwrap_err().contains("go to 100 %"));
    assert!(by_hand.try_to(Input::Advance).unwrap_err().contains("set the percentage"));
}

#[test]
fn haste_skips_the_bake_time_alone() {
    let mut story = Scenario::started();
    story.tell(Input::Advance);
    assert_eq!(moves(&story.pass(1)), [(1.0, 5.0)]);
    story.tell(Input::Advance);
    assert_eq!(moves(&story.pass(1)), []);
    assert_eq!(story.state.holds, ["waits for approval"]);
}

#[test]
fn both_sides_are_compared_before_a_step() {
    let mut schedule = schedule();
    schedule.steps[0].validation = true;
    let mut story = Scenario::new(schedule);
    story.tell(start(""));
    assert!(!story.pass(60).contains(&Effect::Validate), "not before all else is there");
    assert_eq!(story.pass(5).iter().filter(|act| **act == Effect::Validate).count(), 1);
    story.tell(Input::Validated { stage: 0, differs: None });
    assert_eq!(story.state.holds, ["waits for validation"], "an answer for another stage");
    let differs = Some("3 events missing".to_owned());
    story.tell(Input::Validated { stage: story.state.stage, differs });
    story.pass(5);
    assert_eq!(story.state.holds, ["the two sides deliver differently: 3 events missing"]);
    story.tell(Input::Validated { stage: story.state.stage, differs: None });
    assert_eq!(moves(&story.pass(1)), [(1.0, 5.0)]);
}

#[test]
fn a_component_waits_for_others() {
    let after = vec!["websocket-transport".to_owned()];
    let mut story = Scenario::new(Schedule { after, ..schedule() });
    let status = |of: Status| move |name: &str| (name == "websocket-transport").then_some(of);
    let waits_for = story.schedule.waits_for(status(Status::Running));
    let early = Input::Start { reason: String::new(), waits_for: waits_for.clone(), force: false };
    assert_eq!(story.try_to(early).unwrap_err(), "complete websocket-transport first");
    assert_eq!(story.schedule.waits_for(status(Status::Completed)), Vec::<String>::new());
    story.tell(start(""));
    story.pass(59);
    for _ in 0..10 {
        story.now += 1_000;
        let look = Look { waits_for: waits_for.clone(), ..story.good() };
        story.tell(Input::Look(look));
    }
    assert_eq!(story.at().1, 1.0);
    assert_eq!(story.state.holds[0], "waits for websocket-transport to be completed");
}

#[test]
fn a_state_and_a_schedule_go_through_the_store() {
    let mut story = Scenario::started();
    story.pass(30);
    let text = serde_json::to_string(&story.state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), story.state);
    let usual = Schedule::usual();
    usual.check("websocket-transport").unwrap();
    let text = serde_json::to_string(&usual).unwrap();
    assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), usual);
    let text = r#"{"steps":[{"percentage":5},{"percentage":5}]}"#;
    let error = serde_json::from_str::<Schedule>(text).unwrap().check("a").unwrap_err();
    assert!(error.to_string().starts_with("schedule.steps[1].percentage"), "{error}");
    let own = Schedule { after: vec!["a".to_owned()], ..Schedule::default() };
    assert!(own.check("a").is_err());
}

fn anything() -> impl Strategy<Value = (u8, u64, u64)> {
    (0..22_u8, 0..90_000_u64, 0..20_u64)
}

fn input(story: &Scenario, kind: u8, number: u64) -> Input {
    let reason = || "because".to_owned();
    let demand = match kind {
        10 => Demand::Hold,
        11 if number < 4 => Demand::RollBack,
        _ => Demand::Nothing,
    };
    match kind {
        0 => start("again"),
        1 => Input::Pause { reason: reason() },
        2 | 3 => Input::Resume,
        4 => Input::Advance,
        5 => Input::Approve,
        6 => Input::Set { percentage: percent(5.0 * number as f64), reason: reason() },
        7 => Input::Complete,
        8 => match number {
            0 => Input::Stop { how: Stop::Freeze, reason: reason() },
            1 => Input::Stop { how: Stop::DrainBack, reason: reason() },
            2 => Input::EmergencyStop { how: Stop::Hard, reason: reason() },
            _ => Input::Resume,
        },
        9 => Input::Validated { stage: story.state.stage, differs: None },
        12 => Input::Look(Look { users: number, events: 10 * number, ..story.good() }),
        13 => Input::Look(Look { of: (story.state.epoch, number), ..story.good() }),
        _ => Input::Look(Look { demand, reasons: vec![reason()], ..story.good() }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens(inputs in vec(anything(), 0..250)) {
        let mut story = Scenario::new(schedule());
        let mut approved_in = None;
        for (kind, later, number) in inputs {
            story.now += later;
            let before = story.state.clone();
            let what = input(&story, kind, number);
            let Ok(acts) = story.try_to(what.clone()) else {
                prop_assert_eq!(&before, &story.state);
                continue;
            };
            let state = &story.state;
            if what == Input::Approve {
                approved_in = Some(before.stage);
            }
            let rises = state.percentage > before.percentage;
            let moved = moves(&acts);
            // Each change of the percentage is another stage and is told, in order.
            prop_assert!(moved.is_empty() == (before.stage == state.stage));
            prop_assert!(state.stage >= before.stage && state.epoch >= before.epoch);
            if let Some((_, to)) = moved.last() {
                prop_assert_eq!(*to, state.percentage.percent());
            }
            match &what {
                Input::Stop { how: Stop::Freeze, .. } => prop_assert!(!rises),
                Input::Stop { .. } | Input::EmergencyStop { .. } => {
                    prop_assert_eq!(state.percentage, Percentage::ZERO);
                    prop_assert!(matches!(state.status, Status::RolledBack | Status::Failed));
                }
                Input::Look(look) if look.demand == Demand::RollBack => {
                    prop_assert_eq!(state.percentage, Percentage::ZERO);
                }
                Input::Look(look) if rises => {
                    // One step up, from a running state, with all there was to see in this stage.
                    prop_assert_eq!(before.status, Status::Running);
                    let next = before.step.map_or(0, |step| step + 1);
                    prop_assert_eq!(state.step, Some(next));
                    prop_assert_eq!(state.percentage, story.schedule.steps[next].percentage);
                    prop_assert_eq!(look.demand, Demand::Nothing);
                    prop_assert_eq!(look.of, (before.epoch, before.stage));
                    if let Some(step) = before.step.map(|at| story.schedule.steps[at]) {
                        let since = before.looked.map_or(0, |at| story.now - at).min(LONGEST_LOOK);
                        prop_assert!(before.baked + since >= 1_000 * step.bake_seconds);
                        prop_assert!(look.users >= step.min_users);
                        prop_assert!(look.events >= step.min_events);
                        prop_assert!(!step.approval || approved_in == Some(before.stage));
                    }
                    prop_assert_eq!((state.baked, state.approved), (0, false));
                }
                Input::Start { .. } | Input::Set { .. } => {}
                _ => prop_assert!(!rises, "{:?} raised it", what),
            }
            if matches!(state.status, Status::RolledBack | Status::Failed) {
                prop_assert_eq!(state.percentage, Percentage::ZERO);
            }
            if before.cool_until.is_some_and(|until| until > story.now) {
                prop_assert!(!rises, "it cools down");
            }
        }
    }
}
