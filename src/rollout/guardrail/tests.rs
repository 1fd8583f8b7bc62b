//! Crowds of users who do well or badly, and what is said about them.

use super::*;
use crate::rollout::{
    cohort::{Cohort, HashRule, Percentage},
    measure::{Fact, Measure, Reports, Unit, Window},
};

const NOW: u64 = 1_800_000_000_000;

/// Users of one node who are all here.
struct Crowd {
    measure: Measure,
    units: Vec<Unit>,
    percentage: Percentage,
}

impl Crowd {
    fn of(users: usize, percent: f64) -> Self {
        let percentage = Percentage::new(percent).unwrap();
        let window = Window { epoch: 1, stage: 1, percentage, slow_above_ms: 500.0 };
        let mut measure = Measure::new(7, window, users);
        let unit =
            |id| Unit::new(HashRule::CrossfadeV1, "websocket-transport", "r1", &format!("u{id}"));
        let units: Vec<_> = (0..users).map(unit).collect();
        for unit in &units {
            measure.record(*unit, Fact::Assigned, NOW);
            measure.record(*unit, Fact::Arrived, NOW);
        }
        Self { measure, units, percentage }
    }

    /// Something happens to the first so many users of a cohort.
    fn each(&mut self, cohort: Cohort, count: usize, fact: Fact<'_>) {
        let of =
            |unit: &&Unit| crate::rollout::cohort::cohort(unit.bucket(), self.percentage) == cohort;
        let chosen: Vec<_> = self.units.iter().filter(of).take(count).copied().collect();
        assert_eq!(chosen.len(), count, "there are not so many {cohort} users");
        for unit in chosen {
            self.measure.record(unit, fact, NOW);
        }
    }

    fn measured(&mut self) -> Measured {
        let mut reports = Reports::default();
        reports.take(self.measure.report(NOW, 0.5)).unwrap();
        reports.measured(1)
    }

    fn verdicts(&mut self, guardrails: &Guardrails) -> Vec<Verdict> {
        judge(guardrails, &self.measured(), &Recent::default(), NOW + 1_000)
    }

    fn verdict(&mut self, name: Name) -> Verdict {
        let mut verdicts = self.verdicts(&Guardrails::default());
        verdicts.swap_remove(verdicts.iter().position(|verdict| verdict.name == name).unwrap())
    }
}

fn connect(ok: bool) -> Fact<'static> {
    Fact::Connect { ok, to_new: true, moved: false }
}

#[test]
fn a_crowd_that_does_well_is_let_be() {
    let mut crowd = Crowd::of(2_000, 10.0);
    for cohort in [Cohort::New, Cohort::Control] {
        crowd.each(cohort, 150, connect(true));
        crowd.each(cohort, 150, Fact::Delivered { events: 50, latencies: &[20.0, 30.0] });
        crowd.each(cohort, 1, Fact::Interrupted);
    }
    let verdicts = crowd.verdicts(&Guardrails::default());
    assert_eq!(verdicts.len(), 16);
    let (most, by) = demand(&verdicts);
    assert_eq!((most, by), (Demand::Nothing, Vec::new()), "{verdicts:#?}");
    assert!(verdicts.iter().all(|verdict| !verdict.sentence.is_empty()));
    let text = serde_json::to_string(&verdicts).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Verdict>>(&text).unwrap().len(), 16);
}

#[test]
fn many_failures_break_the_tripwire_at_once_and_one_client_never() {
    let mut crowd = Crowd::of(2_000, 1.0);
    for _ in 0..20 {
        crowd.each(Cohort::New, 1, connect(false));
        crowd.each(Cohort::New, 1, Fact::Request { ok: false });
    }
    assert_eq!(crowd.verdict(Name::ErrorRate).demand, Demand::Nothing, "one client's word");
    crowd.each(Cohort::New, 4, connect(false));
    let verdict = crowd.verdict(Name::ErrorRate);
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Broken, Demand::RollBack));
    assert!(verdict.sentence.starts_with("failures in the new arm: 2"), "{}", verdict.sentence);
}

#[test]
fn a_fault_of_both_sides_holds_and_is_not_blamed_on_the_new_one() {
    let mut crowd = Crowd::of(2_000, 10.0);
    for cohort in [Cohort::New, Cohort::Control, Cohort::Rest] {
        crowd.each(cohort, 150, connect(true));
        crowd.each(cohort, 9, connect(false));
    }
    let verdict = crowd.verdict(Name::ErrorRate);
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Broken, Demand::Hold));
    assert!(verdict.sentence.contains("what both sides share"), "{}", verdict.sentence);
    let strict = Tripwires { if_both: Demand::RollBack, ..Tripwires::default() };
    let strict = Guardrails { tripwires: strict, ..Guardrails::default() };
    assert_eq!(demand(&crowd.verdicts(&strict)).0, Demand::RollBack);
}

#[test]
fn interruptions_of_the_new_arm_alone_roll_back() {
    let mut crowd = Crowd::of(2_000, 10.0);
    crowd.each(Cohort::New, 12, Fact::Interrupted);
    crowd.each(Cohort::Rest, 8, Fact::Interrupted);
    let verdict = crowd.verdict(Name::Interruptions);
    assert_eq!(verdict.demand, Demand::RollBack, "{verdict:#?}");
    assert!(verdict.interval.unwrap().lower > 1.1 && verdict.estimate.unwrap() > 5.0);
    assert!(verdict.log_e.unwrap() > verdict.log_e_needed.unwrap());
    assert_eq!((verdict.new.with, verdict.control.with), (12, 8));
    assert!(verdict.sentence.contains("times as often"), "{}", verdict.sentence);

    let mut comparisons = Comparisons::default();
    for (mode, asked) in [(Mode::Signal, Demand::Hold), (Mode::DryRun, Demand::Nothing)] {
        comparisons.interruptions.mode = mode;
        let guardrails = Guardrails { comparisons: comparisons.clone(), ..Guardrails::default() };
        let verdicts = crowd.verdicts(&guardrails);
        assert_eq!(demand(&verdicts).0, asked);
        let verdict = verdicts.iter().find(|verdict| verdict.name == Name::Interruptions);
        assert_eq!(verdict.unwrap().outcome, Outcome::Broken, "it is told all the same");
    }
}

#[test]
fn slow_deliveries_are_found_by_both_kinds_of_limits() {
    let mut crowd = Crowd::of(4_000, 25.0);
    let (fast, slow) = ([20.0; 10], [900.0; 2]);
    for cohort in [Cohort::New, Cohort::Control] {
        crowd.each(cohort, 900, Fact::Delivered { events: 10, latencies: &fast });
    }
    crowd.each(Cohort::Control, 60, Fact::Delivered { events: 2, latencies: &slow });
    crowd.each(Cohort::New, 300, Fact::Delivered { events: 2, latencies: &slow });
    let absolute = crowd.verdict(Name::Latency);
    assert_eq!((absolute.demand, absolute.new.with), (Demand::RollBack, 600));
    let compared = crowd.verdict(Name::Slow);
    assert_eq!(compared.demand, Demand::RollBack, "{compared:#?}");
    assert!(compared.interval.unwrap().lower > 1.1, "{compared:#?}");
    assert!(compared.sentence.contains("above 500 ms"), "{}", compared.sentence);
}

#[test]
fn a_session_that_costs_twice_as_much_holds() {
    let mut crowd = Crowd::of(2_000, 25.0);
    crowd.each(Cohort::Control, 300, Fact::Memory { bytes: 20_000 });
    crowd.each(Cohort::New, 300, Fact::Memory { bytes: 41_000 });
    let verdict = crowd.verdict(Name::Memory);
    assert_eq!(verdict.demand, Demand::Hold, "{verdict:#?}");
    assert!(verdict.sentence.contains("40.0 KiB against 19.5 KiB"), "{}", verdict.sentence);
}

#[test]
fn arms_of_the_wrong_sizes_hold() {
    let mut crowd = Crowd::of(20_000, 10.0);
    assert_eq!(crowd.verdict(Name::SampleRatio).outcome, Outcome::Kept);
    // A tenth of the new arm is lost before it is counted.
    let mut measured = crowd.measured();
    let lost = measured.current.new.users / 5;
    measured.current.new.users -= lost;
    let verdicts = judge(&Guardrails::default(), &measured, &Recent::default(), NOW);
    let verdict = verdicts.iter().find(|verdict| verdict.name == Name::SampleRatio).unwrap();
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Broken, Demand::Hold));
    assert!(verdict.sentence.contains("instead of 50.0 %"), "{}", verdict.sentence);
}

#[test]
fn no_news_hold_and_are_no_failure() {
    let nothing = Measured::default();
    let verdicts = judge(&Guardrails::default(), &nothing, &Recent::default(), NOW);
    let (most, by) = demand(&verdicts);
    assert_eq!(most, Demand::Hold);
    assert_eq!(by.iter().map(|verdict| verdict.name).collect::<Vec<_>>(), [Name::FreshData]);
    let stale = Crowd::of(10, 10.0).measured();
    let verdicts = judge(&Guardrails::default(), &stale, &Recent::default(), NOW + 31_000);
    assert_eq!(demand(&verdicts).0, Demand::Hold);
    assert!(verdicts[0].sentence.contains("31 s"), "{}", verdicts[0].sentence);
}

#[test]
fn tripwires_look_back_only_so_far() {
    let guardrails = Guardrails::default();
    let mut crowd = Crowd::of(20_000, 50.0);
    for _ in 0..10 {
        crowd.each(Cohort::New, 8_000, connect(true));
    }
    let mut recent = Recent::default();
    recent.look(&crowd.measured(), 300, NOW);
    // A few of very many, but most of the last five minutes.
    crowd.each(Cohort::New, 50, connect(false));
    let at = NOW + 300_000;
    let measured = Measured { freshest: at, ..crowd.measured() };
    recent.look(&measured, 300, at);
    let error_rate = |recent: &Recent| {
        let verdicts = judge(&guardrails, &measured, recent, at);
        verdicts.into_iter().find(|verdict| verdict.name == Name::ErrorRate).unwrap()
    };
    assert_eq!(error_rate(&recent).demand, Demand::RollBack);
    assert_eq!(error_rate(&Recent::default()).demand, Demand::Nothing, "the whole stage is well");
    for second in 1..10_000 {
        recent.look(&measured, 300, at + 1_000 * second);
    }
    assert!(recent.looks.len() <= 102, "{}", recent.looks.len());
}

#[test]
fn memory_of_a_node_breaks_its_limit_at_once() {
    let measured = Measured { memory: 0.95, ..Crowd::of(10, 10.0).measured() };
    let verdicts = judge(&Guardrails::default(), &measured, &Recent::default(), NOW);
    let (most, by) = demand(&verdicts);
    assert_eq!((most, by[0].name), (Demand::RollBack, Name::NodeMemory));
}

#[test]
fn alpha_is_shared_by_the_guardrails() {
    let mut guardrails = Guardrails::default();
    let level = |guardrails: &Guardrails| guardrails.level(&guardrails.comparisons.errors);
    assert!((level(&guardrails) - 0.01).abs() < 1e-12, "five of them");
    guardrails.comparisons.interruptions.alpha = Some(0.02);
    assert!((level(&guardrails) - 0.0075).abs() < 1e-12);
    guardrails.check().unwrap();
    guardrails.comparisons.interruptions.alpha = Some(0.06);
    assert!(guardrails.check().unwrap_err().to_string().contains("guardrails.alpha"));
}

#[test]
fn settings_are_read_with_their_defaults_and_refused_by_name() {
    let read = |text| serde_json::from_str::<Guardrails>(text);
    let some = read(
        r#"{"alpha":0.02,"tripwires":{"drops":{"above":2,"min_count":9}},"comparisons":{"flaps":{"mode":"dry_run"}}}"#,
    );
    let some = some.unwrap();
    assert_eq!((some.alpha, some.margin), (0.02, 0.1));
    let drops = Tripwire { mode: Mode::Guardrail, above: 2.0, min_count: 9 };
    assert_eq!(some.tripwires.drops, drops);
    assert_eq!(some.comparisons.flaps.mode, Mode::DryRun);
    some.check().unwrap();
    assert_eq!(read("{}").unwrap(), Guardrails::default());
    assert!(
        read(r#"{"comparisons":{"interuptions":{}}}"#)
            .unwrap_err()
            .to_string()
            .contains("interuptions")
    );
    for (text, key) in [
        (r#"{"alpha":0}"#, "alpha"),
        (r#"{"margin":3}"#, "margin"),
        (r#"{"slow_above_ms":0}"#, "slow_above_ms"),
        (r#"{"tripwires":{"memory":{"above":100,"min_count":1}}}"#, "tripwires"),
        (r#"{"fresh_within_seconds":0}"#, "fresh_within_seconds"),
    ] {
        let error = read(text).unwrap().check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("guardrails.{key}")), "{error}");
    }
}
