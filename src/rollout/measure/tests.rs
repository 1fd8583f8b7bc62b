//! What users do and what is counted of it; that reports can come in any order, late or twice.

use proptest::{collection::vec, prelude::*};

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn window(stage: u64, percent: f64) -> Window {
    let percentage = Percentage::new(percent).unwrap();
    Window { epoch: 1, stage, percentage, slow_above_ms: 500.0 }
}

fn measure(percent: f64) -> Measure {
    Measure::new(7, window(1, percent), 1_000)
}

/// The first `count` users of a cohort.
fn users(cohort: Cohort, percent: f64, count: usize) -> Vec<Unit> {
    let percentage = Percentage::new(percent).unwrap();
    let all = (0..)
        .map(|id| Unit::new(HashRule::CrossfadeV1, "websocket-transport", "r1", &format!("u{id}")));
    all.filter(|unit| cohort::cohort(unit.bucket, percentage) == cohort).take(count).collect()
}

fn arrive(measure: &mut Measure, units: &[Unit]) {
    for unit in units {
        assert!(measure.record(*unit, Fact::Assigned, NOW));
        assert!(measure.record(*unit, Fact::Arrived, NOW));
    }
}

const FAILED: Fact<'static> = Fact::Connect { ok: false, to_new: true, moved: false };

#[test]
fn a_user_counts_once_as_evidence_and_always_for_the_arm_assigned() {
    let mut measure = measure(10.0);
    let new = users(Cohort::New, 10.0, 2);
    let control = users(Cohort::Control, 10.0, 3);
    let rest = users(Cohort::Rest, 10.0, 15);
    arrive(&mut measure, &[new.clone(), control.clone(), rest].concat());
    for _ in 0..3 {
        measure.record(new[0], Fact::Interrupted, NOW);
    }
    // It stands on the old side now, and still is a user of the new arm.
    measure.record(new[0], Fact::FellBack, NOW);
    measure.record(new[0], Fact::Connect { ok: true, to_new: false, moved: false }, NOW);
    measure.record(control[0], Fact::Interrupted, NOW);

    let sums = &measure.current;
    assert_eq!((sums.new.users, sums.control.users, sums.rest.users), (2, 3, 15));
    assert_eq!((sums.new.interruptions, sums.new.users_with(Failure::Interrupted)), (3, 1));
    assert_eq!((sums.new.fallbacks, sums.new.connects, sums.new.users_on_new), (1, 1, 0));
    let evidence = sums.evidence(Failure::Interrupted);
    assert_eq!((evidence.events(), evidence.new_events()), (2, 1));
    let mut expected = crate::rollout::statistics::count::Evidence::default();
    expected.observe(true, 2.0 / 20.0);
    expected.observe(false, 1.0 / 19.0);
    assert_eq!(evidence, &expected);
}

#[test]
fn who_comes_is_compared_with_the_percentage_and_who_is_here_with_the_others() {
    let mut measure = measure(10.0);
    let new = users(Cohort::New, 10.0, 1);
    measure.record(new[0], Fact::Assigned, NOW);
    measure.record(new[0], FAILED, NOW);
    measure.record(new[0], Fact::Interrupted, NOW);
    let mut expected = crate::rollout::statistics::count::Evidence::default();
    expected.observe(true, 0.1);
    assert_eq!(measure.current.evidence(Failure::ConnectFailed), &expected);
    // Who was here is known, also after leaving.
    let known = users(Cohort::New, 10.0, 3)[1..].to_vec();
    arrive(&mut measure, &[known.clone(), users(Cohort::Rest, 10.0, 6)].concat());
    measure.record(known[0], Fact::Left, NOW);
    measure.record(known[0], FAILED, NOW);
    expected.observe(true, 2.0 / 8.0);
    assert_eq!(measure.current.evidence(Failure::ConnectFailed), &expected);
    let interrupted = measure.current.evidence(Failure::Interrupted);
    assert_eq!(interrupted.events(), 0, "who is not here cannot be interrupted");
}

#[test]
fn a_move_that_we_asked_for_is_no_evidence() {
    let mut measure = measure(10.0);
    let new = users(Cohort::New, 10.0, 1);
    let moved = |ok| Fact::Connect { ok, to_new: true, moved: true };
    measure.record(new[0], moved(false), NOW);
    measure.record(new[0], moved(true), NOW);
    let arm = &measure.current.new;
    assert_eq!((arm.moves, arm.move_failures, arm.connects), (2, 1, 0));
    assert_eq!((arm.failures(), arm.users_on_new), ((1, 2), 1));
    assert_eq!(measure.current.evidence(Failure::ConnectFailed).events(), 0);
}

#[test]
fn a_client_has_an_allowance_a_minute() {
    let mut measure = measure(10.0);
    let control = users(Cohort::Control, 10.0, 1)[0];
    arrive(&mut measure, &[control]);
    let taken = (0..100).filter(|_| measure.record(control, Fact::Request { ok: false }, NOW));
    assert_eq!(taken.count(), usize::from(allowance::ACTS));
    let many = [1e300; 100];
    let delivered = Fact::Delivered { events: u32::MAX, latencies: &many };
    assert!(!measure.record(control, delivered, NOW));
    assert!(!measure.record(control, Fact::Dropped { events: u32::MAX }, NOW));
    let arm = &measure.current.control;
    assert_eq!((arm.requests, arm.errors), (20, 20));
    assert_eq!((arm.latency.count(), arm.delivered, arm.dropped), (30, 60_000, 0));
    let odd = [f64::NAN, f64::INFINITY, -5.0, 7.0];
    let odd = Fact::Delivered { events: 4, latencies: &odd };
    assert!(!measure.record(control, odd, NOW + 60_000));
    assert_eq!(measure.current.control.latency.count(), 31);
    assert!(measure.record(control, Fact::Memory { bytes: u64::MAX }, NOW + 60_000));
    let bytes: f64 = measure.current.control.memory.pairs().map(|(_, bytes)| bytes).sum();
    assert_eq!(bytes, 1024_f64.powi(3));
}

#[test]
fn the_memory_for_users_is_bounded() {
    assert_eq!(size_of::<(u64, User)>(), 24, "a map of them is half to seven eighths full");
    let mut measure = Measure::new(7, window(1, 10.0), 2);
    let control = users(Cohort::Control, 10.0, 3);
    let taken: Vec<_> =
        control.iter().map(|unit| measure.record(*unit, Fact::Interrupted, NOW)).collect();
    assert_eq!(taken, [true, true, false]);
    assert_eq!((measure.users(), measure.report(NOW, 0.1).untracked), (2, 1));
}

#[test]
fn a_new_stage_begins_with_those_who_are_here() {
    let mut measure = measure(10.0);
    let new = users(Cohort::New, 10.0, 3);
    // In neither arm at 10 %, in the new one at 20 %.
    let joins =
        users(Cohort::New, 20.0, 30).into_iter().find(|unit| unit.bucket.number() >= 10_000);
    let joins = joins.unwrap();
    arrive(&mut measure, &new);
    arrive(&mut measure, &[joins]);
    measure.record(new[0], Fact::Interrupted, NOW);
    measure.record(new[2], Fact::Left, NOW);
    measure.enter(window(2, 20.0));
    assert_eq!(measure.current.new.users, 3, "two who stay and one who joins the arm");
    assert_eq!(measure.at_risk[Failure::Interrupted as usize], (3, 0));
    measure.record(new[0], Fact::Interrupted, NOW);
    let report = measure.report(NOW, 0.2);
    assert_eq!(report.earlier.new.users_with(Failure::Interrupted), 1);
    assert_eq!(report.current.new.users_with(Failure::Interrupted), 1);
    measure.enter(window(1, 10.0));
    assert_eq!(measure.window().stage, 2, "an older stage does not come back");
    measure.enter(Window { epoch: 2, ..window(1, 1.0) });
    assert_eq!((measure.users(), measure.report(NOW, 0.2).earlier), (0, Sums::default()));
}

#[test]
fn above_a_half_arms_are_compared_within_a_stage() {
    let mut measure = measure(50.0);
    let new = users(Cohort::New, 50.0, 4);
    arrive(&mut measure, &new);
    measure.record(new[0], FAILED, NOW);
    measure.enter(window(2, 75.0));
    measure.record(new[0], FAILED, NOW);
    let mut reports = Reports::default();
    reports.take(measure.report(NOW, 0.0)).unwrap();
    let sums = reports.measured(1).comparable();
    assert_eq!((sums.new.users, sums.evidence(Failure::ConnectFailed).events()), (4, 2));
    measure.enter(window(3, 100.0));
    assert_eq!(measure.earlier.new.users, 4, "the stage of 75 % is not pooled");
    assert_eq!(measure.earlier.evidence(Failure::ConnectFailed).events(), 2);
}

#[test]
fn a_report_is_a_few_kilobytes_and_comes_back_as_it_was() {
    let mut measure = Measure::new(7, window(1, 50.0), 10_000);
    for (place, unit) in users(Cohort::New, 50.0, 2_000).into_iter().enumerate() {
        arrive(&mut measure, &[unit]);
        let latencies = [place as f64, 10.0 * place as f64];
        measure.record(unit, Fact::Delivered { events: 9, latencies: &latencies }, NOW);
        measure.record(unit, Fact::Memory { bytes: 20_000 + place as u64 }, NOW);
    }
    let report = measure.report(NOW, 0.25);
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.len() < 16_384, "{} bytes", text.len());
    let mut read: Report = serde_json::from_str(&text).unwrap();
    // Floats may come back with their last digit another.
    read.current.evidence = report.current.evidence.clone();
    assert_eq!(read, report);
}

#[test]
fn what_contradicts_itself_is_not_taken() {
    let mut reports = Reports::default();
    let mut report = measure(10.0).report(NOW, 0.0);
    report.current.new.errors = 5;
    assert_eq!(reports.take(report.clone()), Err(RejectedReport::Unsound));
    report.current.new.requests = 5;
    assert_eq!(reports.take(report.clone()), Ok(()));
    assert_eq!(reports.take(report), Err(RejectedReport::Late));
}

/// Something that a user may do: which user, what, and whether time goes on.
fn anything() -> impl Strategy<Value = (usize, u8)> {
    (0..40_usize, 0..10_u8)
}

fn play(measure: &mut Measure, units: &[Unit], acts: &[(usize, u8)]) {
    for (user, act) in acts {
        let fact = match act {
            0 | 1 => Fact::Arrived,
            2 => Fact::Left,
            3 => FAILED,
            4 => Fact::Interrupted,
            5 => Fact::Resumed(Resume::Reset),
            6 => Fact::Dropped { events: 2 },
            7 => Fact::Request { ok: false },
            8 => Fact::Delivered { events: 1, latencies: &[700.0] },
            _ => Fact::Flapped,
        };
        measure.record(units[*user], fact, NOW);
    }
}

proptest! {
    #[test]
    fn those_at_risk_are_who_is_here_and_had_nothing(acts in vec(anything(), 0..200)) {
        let units = users(Cohort::New, 100.0, 40);
        let mut measure = measure(30.0);
        for (half, percent) in acts.chunks(100).zip([30.0, 60.0]) {
            measure.enter(window(percent as u64, percent));
            play(&mut measure, &units, half);
            for trouble in Failure::ALL {
                let (mut here, mut met) = ((0, 0), (0, 0));
                for user in measure.users.values().filter(|user| user.marks & trouble.bit() == 0) {
                    let is_new = measure.cohort(user).is_new();
                    if user.sessions > 0 {
                        count_in(&mut here, is_new);
                    }
                    if user.marks & MET != 0 {
                        count_in(&mut met, is_new);
                    }
                }
                prop_assert_eq!(measure.at_risk[trouble as usize], here);
                prop_assert_eq!(measure.met[trouble as usize], met);
            }
            prop_assert!(measure.current.is_sound());
        }
    }

    /// Three nodes report twice each; whatever comes when and how often, the same is known.
    #[test]
    fn reports_come_in_any_order_late_and_twice(
        acts in vec(vec(anything(), 0..60), 6),
        order in vec(0..6_usize, 0..12),
    ) {
        let units = users(Cohort::New, 100.0, 40);
        let mut told = Vec::new();
        for node in 0..3 {
            let mut measure = Measure::new(node as u64, window(1, 30.0), 1_000);
            play(&mut measure, &units, &acts[2 * node]);
            told.push(measure.report(NOW, 0.1));
            if node > 0 {
                measure.enter(window(2, 40.0));
            }
            play(&mut measure, &units, &acts[2 * node + 1]);
            told.push(measure.report(NOW + 1, 0.2));
        }
        let mut straight = Reports::default();
        for report in &told {
            straight.take(report.clone()).unwrap();
        }
        let mut shuffled = Reports::default();
        for at in order.into_iter().chain([5, 3, 1, 0, 2, 4]) {
            let _: Result<_, _> = shuffled.take(told[at].clone());
        }
        let (one, other) = (straight.measured(1), shuffled.measured(1));
        prop_assert_eq!(&one, &other);
        prop_assert_eq!((one.nodes, one.freshest, one.window), (3, NOW + 1, Some(window(2, 40.0))));
        prop_assert_eq!(straight.measured(2).nodes, 0);
    }
}
