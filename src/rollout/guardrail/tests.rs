//! Verdicts on populations of users with and without failures.

use super::*;
use crate::rollout::{
    cohort::{Cohort, HashRule, Percentage},
    measure::{Collector, Observation, Reports, UserKey, Window},
};

const NOW: u64 = 1_800_000_000_000;

/// Users of one node, all with a session.
struct Population {
    collector: Collector,
    keys: Vec<UserKey>,
    percentage: Percentage,
}

impl Population {
    fn new(users: usize, percent: f64) -> Self {
        let percentage = Percentage::new(percent).unwrap();
        let window = Window { epoch: 1, stage: 1, percentage, slow_above_ms: 500.0 };
        let mut collector = Collector::new(7, window, users);
        let key = |id| {
            UserKey::new(HashRule::CrossfadeV1, "websocket-transport", "r1", &format!("u{id}"))
        };
        let keys: Vec<_> = (0..users).map(key).collect();
        for key in &keys {
            collector.record(*key, Observation::Assigned, NOW);
            collector.record(*key, Observation::SessionStarted, NOW);
        }
        Self { collector, keys, percentage }
    }

    /// Records an observation for each of the first `count` users of a cohort.
    fn record_first(&mut self, cohort: Cohort, count: usize, observation: Observation<'_>) {
        let in_cohort = |key: &&UserKey| {
            crate::rollout::cohort::cohort(key.bucket(), self.percentage) == cohort
        };
        let chosen: Vec<_> = self.keys.iter().filter(in_cohort).take(count).copied().collect();
        assert_eq!(chosen.len(), count, "the population has fewer {cohort} users");
        for key in chosen {
            self.collector.record(key, observation, NOW);
        }
    }

    fn measurements(&mut self) -> Measurements {
        let mut reports = Reports::default();
        reports.insert(self.collector.report(NOW, 0.5)).unwrap();
        reports.merge(1)
    }

    fn verdicts(&mut self, guardrails: &Guardrails) -> Vec<Verdict> {
        judge(guardrails, &self.measurements(), &RecentCounts::default(), NOW + 1_000)
    }

    fn verdict(&mut self, name: GuardrailName) -> Verdict {
        let mut verdicts = self.verdicts(&Guardrails::default());
        verdicts.swap_remove(verdicts.iter().position(|verdict| verdict.name == name).unwrap())
    }
}

fn connect(ok: bool) -> Observation<'static> {
    Observation::Connect { ok, to_new: true, migrated: false }
}

#[test]
fn healthy_population_demands_nothing() {
    let mut population = Population::new(2_000, 10.0);
    for cohort in [Cohort::New, Cohort::Control] {
        population.record_first(cohort, 150, connect(true));
        population.record_first(
            cohort,
            150,
            Observation::Delivered { events: 50, latencies: &[20.0, 30.0] },
        );
        population.record_first(cohort, 1, Observation::Interrupted);
    }
    let verdicts = population.verdicts(&Guardrails::default());
    assert_eq!(verdicts.len(), 16);
    let (demand, asking) = strongest_demand(&verdicts);
    assert_eq!((demand, asking), (Demand::Nothing, Vec::new()), "{verdicts:#?}");
    assert!(verdicts.iter().all(|verdict| !verdict.summary.is_empty()));
    let text = serde_json::to_string(&verdicts).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Verdict>>(&text).unwrap().len(), 16);
}

#[test]
fn many_failures_violate_the_tripwire_at_once_but_one_user_never_does() {
    let mut population = Population::new(2_000, 1.0);
    for _ in 0..20 {
        population.record_first(Cohort::New, 1, connect(false));
        population.record_first(Cohort::New, 1, Observation::Request { ok: false });
    }
    assert_eq!(
        population.verdict(GuardrailName::ErrorRate).demand,
        Demand::Nothing,
        "only one user is affected"
    );
    population.record_first(Cohort::New, 4, connect(false));
    let verdict = population.verdict(GuardrailName::ErrorRate);
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Violated, Demand::RollBack));
    assert!(verdict.summary.starts_with("failures in the new arm: 2"), "{}", verdict.summary);
}

#[test]
fn failures_in_both_arms_hold_instead_of_rolling_back() {
    let mut population = Population::new(2_000, 10.0);
    for cohort in [Cohort::New, Cohort::Control, Cohort::Rest] {
        population.record_first(cohort, 150, connect(true));
        population.record_first(cohort, 9, connect(false));
    }
    let verdict = population.verdict(GuardrailName::ErrorRate);
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Violated, Demand::Hold));
    assert!(verdict.summary.contains("what both sides share"), "{}", verdict.summary);
    let strict = Tripwires { if_both: Demand::RollBack, ..Tripwires::default() };
    let strict = Guardrails { tripwires: strict, ..Guardrails::default() };
    assert_eq!(strongest_demand(&population.verdicts(&strict)).0, Demand::RollBack);
}

#[test]
fn interruptions_in_the_new_arm_alone_roll_back() {
    let mut population = Population::new(2_000, 10.0);
    population.record_first(Cohort::New, 12, Observation::Interrupted);
    population.record_first(Cohort::Rest, 8, Observation::Interrupted);
    let verdict = population.verdict(GuardrailName::Interruptions);
    assert_eq!(verdict.demand, Demand::RollBack, "{verdict:#?}");
    assert!(verdict.interval.unwrap().lower > 1.1 && verdict.estimate.unwrap() > 5.0);
    assert!(verdict.log_e.unwrap() > verdict.log_e_needed.unwrap());
    assert_eq!((verdict.new.affected, verdict.control.affected), (12, 8));
    assert!(verdict.summary.contains("times as often"), "{}", verdict.summary);

    let mut comparisons = Comparisons::default();
    for (mode, expected) in [(Mode::Signal, Demand::Hold), (Mode::DryRun, Demand::Nothing)] {
        comparisons.interruptions.mode = mode;
        let guardrails = Guardrails { comparisons: comparisons.clone(), ..Guardrails::default() };
        let verdicts = population.verdicts(&guardrails);
        assert_eq!(strongest_demand(&verdicts).0, expected);
        let verdict = verdicts.iter().find(|verdict| verdict.name == GuardrailName::Interruptions);
        assert_eq!(verdict.unwrap().outcome, Outcome::Violated, "the mode changes only the demand");
    }
}

#[test]
fn slow_deliveries_violate_the_tripwire_and_the_comparison() {
    let mut population = Population::new(4_000, 25.0);
    let (fast, slow) = ([20.0; 10], [900.0; 2]);
    for cohort in [Cohort::New, Cohort::Control] {
        population.record_first(
            cohort,
            900,
            Observation::Delivered { events: 10, latencies: &fast },
        );
    }
    population.record_first(
        Cohort::Control,
        60,
        Observation::Delivered { events: 2, latencies: &slow },
    );
    population.record_first(
        Cohort::New,
        300,
        Observation::Delivered { events: 2, latencies: &slow },
    );
    let absolute = population.verdict(GuardrailName::Latency);
    assert_eq!((absolute.demand, absolute.new.affected), (Demand::RollBack, 600));
    let compared = population.verdict(GuardrailName::Slow);
    assert_eq!(compared.demand, Demand::RollBack, "{compared:#?}");
    assert!(compared.interval.unwrap().lower > 1.1, "{compared:#?}");
    assert!(compared.summary.contains("above 500 ms"), "{}", compared.summary);
}

#[test]
fn doubled_memory_per_session_holds() {
    let mut population = Population::new(2_000, 25.0);
    population.record_first(Cohort::Control, 300, Observation::Memory { bytes: 20_000 });
    population.record_first(Cohort::New, 300, Observation::Memory { bytes: 41_000 });
    let verdict = population.verdict(GuardrailName::Memory);
    assert_eq!(verdict.demand, Demand::Hold, "{verdict:#?}");
    assert!(verdict.summary.contains("40.0 KiB against 19.5 KiB"), "{}", verdict.summary);
}

#[test]
fn sample_ratio_mismatch_holds() {
    let mut population = Population::new(20_000, 10.0);
    assert_eq!(population.verdict(GuardrailName::SampleRatio).outcome, Outcome::Passed);
    // A fifth of the new arm is lost before it is counted.
    let mut measurements = population.measurements();
    let lost = measurements.current.new.users / 5;
    measurements.current.new.users -= lost;
    let verdicts = judge(&Guardrails::default(), &measurements, &RecentCounts::default(), NOW);
    let verdict =
        verdicts.iter().find(|verdict| verdict.name == GuardrailName::SampleRatio).unwrap();
    assert_eq!((verdict.outcome, verdict.demand), (Outcome::Violated, Demand::Hold));
    assert!(verdict.summary.contains("instead of 50.0 %"), "{}", verdict.summary);
}

#[test]
fn missing_reports_hold_without_rolling_back() {
    let none = Measurements::default();
    let verdicts = judge(&Guardrails::default(), &none, &RecentCounts::default(), NOW);
    let (demand, asking) = strongest_demand(&verdicts);
    assert_eq!(demand, Demand::Hold);
    assert_eq!(
        asking.iter().map(|verdict| verdict.name).collect::<Vec<_>>(),
        [GuardrailName::FreshData]
    );
    let stale = Population::new(10, 10.0).measurements();
    let verdicts = judge(&Guardrails::default(), &stale, &RecentCounts::default(), NOW + 31_000);
    assert_eq!(strongest_demand(&verdicts).0, Demand::Hold);
    assert!(verdicts[0].summary.contains("31 s"), "{}", verdicts[0].summary);
}

#[test]
fn tripwires_cover_only_their_time_window() {
    let guardrails = Guardrails::default();
    let mut population = Population::new(20_000, 50.0);
    for _ in 0..10 {
        population.record_first(Cohort::New, 8_000, connect(true));
    }
    let mut recent = RecentCounts::default();
    recent.sample(&population.measurements(), 300, NOW);
    // Few failures among all attempts of the stage, but most of the attempts of the last five
    // minutes.
    population.record_first(Cohort::New, 50, connect(false));
    let at = NOW + 300_000;
    let measurements = Measurements { last_report_at: at, ..population.measurements() };
    recent.sample(&measurements, 300, at);
    let error_rate = |recent: &RecentCounts| {
        let verdicts = judge(&guardrails, &measurements, recent, at);
        verdicts.into_iter().find(|verdict| verdict.name == GuardrailName::ErrorRate).unwrap()
    };
    assert_eq!(error_rate(&recent).demand, Demand::RollBack);
    assert_eq!(
        error_rate(&RecentCounts::default()).demand,
        Demand::Nothing,
        "the stage as a whole passes"
    );
    for second in 1..10_000 {
        recent.sample(&measurements, 300, at + 1_000 * second);
    }
    assert!(recent.samples.len() <= 102, "{}", recent.samples.len());
}

#[test]
fn memory_of_a_node_violates_its_tripwire_at_once() {
    let measurements = Measurements { memory: 0.95, ..Population::new(10, 10.0).measurements() };
    let verdicts = judge(&Guardrails::default(), &measurements, &RecentCounts::default(), NOW);
    let (demand, asking) = strongest_demand(&verdicts);
    assert_eq!((demand, asking[0].name), (Demand::RollBack, GuardrailName::NodeMemory));
}

#[test]
fn alpha_is_shared_by_the_comparisons_in_mode_guardrail() {
    let mut guardrails = Guardrails::default();
    let level = |guardrails: &Guardrails| guardrails.level(&guardrails.comparisons.errors);
    assert!((level(&guardrails) - 0.01).abs() < 1e-12, "0.05 shared by five");
    guardrails.comparisons.interruptions.alpha = Some(0.02);
    assert!((level(&guardrails) - 0.0075).abs() < 1e-12);
    guardrails.check().unwrap();
    guardrails.comparisons.interruptions.alpha = Some(0.06);
    assert!(guardrails.check().unwrap_err().to_string().contains("guardrails.alpha"));
}

#[test]
fn settings_have_defaults_and_errors_name_the_key() {
    let read = |text| serde_json::from_str::<Guardrails>(text);
    let settings = read(
        r#"{"alpha":0.02,"tripwires":{"drops":{"above":2,"min_count":9}},"comparisons":{"flaps":{"mode":"dry_run"}}}"#,
    );
    let settings = settings.unwrap();
    assert_eq!((settings.alpha, settings.margin), (0.02, 0.1));
    let drops = Tripwire { mode: Mode::Guardrail, above: 2.0, min_count: 9 };
    assert_eq!(settings.tripwires.drops, drops);
    assert_eq!(settings.comparisons.flaps.mode, Mode::DryRun);
    settings.check().unwrap();
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
