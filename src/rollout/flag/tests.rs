use super::*;

fn flag() -> Flag {
    Flag::new(TRANSPORT.parse().unwrap(), &Settings::default()).unwrap()
}

fn percent(percent: f64) -> Percentage {
    Percentage::new(percent).unwrap()
}

fn set(share: f64) -> Change {
    let rollout_percentage = Some(percent(share));
    Change::Set(Box::new(Settings { rollout_percentage, ..Settings::default() }))
}

fn start(percentage: Option<f64>) -> Change {
    let percentage = percentage.map(percent);
    Change::Start { percentage, keep_salt: false, force: true, waits_for: Vec::new() }
}

impl Flag {
    fn then(&self, change: &Change) -> Self {
        self.after(change, "a reason", 1).unwrap().0
    }

    fn refuses(&self, change: &Change) -> String {
        self.after(change, "a reason", 1).unwrap_err().0
    }
}

#[test]
fn a_rollout_runs_once_somebody_is_on_its_new_side() {
    assert_eq!(flag().effective(), Percentage::ZERO);
    let running = flag().then(&set(25.0));
    assert_eq!((running.course.status, running.course.epoch), (Status::Running, 1));
    assert_eq!(running.effective(), percent(25.0));
    let off = Settings { enabled: Some(false), ..Settings::default() };
    assert_eq!(running.then(&Change::Set(Box::new(off))).effective(), Percentage::ZERO);
}

#[test]
fn an_end_is_left_only_by_a_start_with_another_epoch_and_other_first_users() {
    let ended = flag().then(&start(Some(50.0))).then(&Change::Stop(Stop::DrainBack));
    assert_eq!(ended.effective(), Percentage::ZERO);
    assert!(ended.refuses(&set(60.0)).contains("start it first"));
    ended.refuses(&Change::Resume);
    let again = ended.then(&start(None));
    assert_eq!((again.course.epoch, again.course.stop), (2, None));
    assert_eq!(again.effective(), Percentage::ZERO);
    assert_ne!(again.salt, ended.salt);
    let same = Change::Start {
        percentage: Some(percent(1.0)),
        keep_salt: true,
        force: true,
        waits_for: Vec::new(),
    };
    let same = ended.then(&same);
    assert_eq!((&same.salt, same.schedule.keep_salt), (&ended.salt, false));
}

#[test]
fn a_stop_holds_in_every_state_and_never_gets_softer() {
    let begun = flag().then(&start(Some(5.0)));
    for state in [flag(), begun.clone(), begun.then(&Change::Pause)] {
        let hard = state.then(&Change::EmergencyStop(Stop::Hard));
        assert_eq!((hard.course.status, hard.enabled), (Status::Failed, false));
        let softer = hard.then(&Change::Stop(Stop::DrainBack));
        assert_eq!(softer.course.stop, Some(Stop::Hard));
    }
}

#[test]
fn users_are_not_shuffled_while_somebody_is_on_the_new_side() {
    let salted = Settings { salt: Some("other".to_owned()), ..Settings::default() };
    let salted = Change::Set(Box::new(salted));
    assert!(flag().then(&start(Some(5.0))).refuses(&salted).contains("at random"));
    assert_eq!(flag().then(&salted).salt, "other");
}

#[test]
fn a_frozen_rollout_keeps_its_share_for_those_who_are_there() {
    let frozen = flag().then(&start(Some(40.0))).then(&Change::Stop(Stop::Freeze));
    assert_eq!(frozen.effective(), percent(40.0));
}

#[test]
fn names_and_sides_are_checked() {
    assert!("a b".parse::<Component>().is_err() && "".parse::<Component>().is_err());
    let other: Component = "postgres-broker".parse().unwrap();
    assert!(Flag::new(other.clone(), &Settings::default()).is_err());
    let sides =
        Settings { from: "redis".parse().ok(), to: "postgres".parse().ok(), ..Settings::default() };
    let flag = Flag::new(other, &sides).unwrap();
    let json = serde_json::to_string(&flag).unwrap();
    assert_eq!(serde_json::from_str::<Flag>(&json).unwrap(), flag);
}
