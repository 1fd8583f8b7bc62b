//! Observations and the totals they produce; reports merged in any order, late or repeated.

use proptest::{collection::vec, prelude::*};

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn window(stage: u64, percent: f64) -> Window {
    let percentage = Percentage::new(percent).unwrap();
    Window { epoch: 1, stage, percentage, slow_above_ms: 500.0 }
}

fn collector(percent: f64) -> Collector {
    Collector::new(7, window(1, percent), 1_000)
}

/// The first `count` users of a cohort.
fn users(cohort: Cohort, percent: f64, count: usize) -> Vec<UserKey> {
    let percentage = Percentage::new(percent).unwrap();
    let all = (0..).map(|id| {
        UserKey::new(HashRule::CrossfadeV1, "websocket-transport", "r1", &format!("u{id}"))
    });
    all.filter(|key| cohort::cohort(key.bucket, percentage) == cohort).take(count).collect()
}

fn start_sessions(collector: &mut Collector, keys: &[UserKey]) {
    for key in keys {
        assert!(collector.record(*key, Observation::Assigned, NOW));
        assert!(collector.record(*key, Observation::SessionStarted, NOW));
    }
}

const FAILED: Observation<'static> =
    Observation::Connect { ok: false, to_new: true, migrated: false };

#[test]
fn only_the_first_failure_of_a_user_is_evidence_and_counts_for_the_assigned_arm() {
    let mut collector = collector(10.0);
    let new = users(Cohort::New, 10.0, 2);
    let control = users(Cohort::Control, 10.0, 3);
    let rest = users(Cohort::Rest, 10.0, 15);
    start_sessions(&mut collector, &[new.clone(), control.clone(), rest].concat());
    for _ in 0..3 {
        collector.record(new[0], Observation::Interrupted, NOW);
    }
    // The user is on the old side now and still counts for the new arm.
    collector.record(new[0], Observation::FellBack, NOW);
    collector.record(
        new[0],
        Observation::Connect { ok: true, to_new: false, migrated: false },
        NOW,
    );
    collector.record(control[0], Observation::Interrupted, NOW);

    let totals = &collector.current;
    assert_eq!((totals.new.users, totals.control.users, totals.rest.users), (2, 3, 15));
    assert_eq!((totals.new.interruptions, totals.new.users_with(Failure::Interrupted)), (3, 1));
    assert_eq!((totals.new.fallbacks, totals.new.connects, totals.new.users_on_new), (1, 1, 0));
    let evidence = totals.evidence(Failure::Interrupted);
    assert_eq!((evidence.events(), evidence.new_events()), (2, 1));
    let mut expected = crate::rollout::statistics::count::Evidence::default();
    expected.observe(true, 2.0 / 20.0);
    expected.observe(false, 1.0 / 19.0);
    assert_eq!(evidence, &expected);
}

#[test]
fn connect_failures_compare_with_the_percentage_or_with_users_seen_before() {
    let mut collector = collector(10.0);
    let new = users(Cohort::New, 10.0, 1);
    collector.record(new[0], Observation::Assigned, NOW);
    collector.record(new[0], FAILED, NOW);
    collector.record(new[0], Observation::Interrupted, NOW);
    let mut expected = crate::rollout::statistics::count::Evidence::default();
    expected.observe(true, 0.1);
    assert_eq!(collector.current.evidence(Failure::ConnectFailed), &expected);
    // Users seen in this stage stay in the risk set after their session ended.
    let known = users(Cohort::New, 10.0, 3)[1..].to_vec();
    start_sessions(&mut collector, &[known.clone(), users(Cohort::Rest, 10.0, 6)].concat());
    collector.record(known[0], Observation::SessionEnded, NOW);
    collector.record(known[0], FAILED, NOW);
    expected.observe(true, 2.0 / 8.0);
    assert_eq!(collector.current.evidence(Failure::ConnectFailed), &expected);
    let interrupted = collector.current.evidence(Failure::Interrupted);
    assert_eq!(interrupted.events(), 0, "a user without a session cannot be interrupted");
}

#[test]
fn connects_asked_for_by_the_gateway_are_no_evidence() {
    let mut collector = collector(10.0);
    let new = users(Cohort::New, 10.0, 1);
    let migration = |ok| Observation::Connect { ok, to_new: true, migrated: true };
    collector.record(new[0], migration(false), NOW);
    collector.record(new[0], migration(true), NOW);
    let arm = &collector.current.new;
    assert_eq!((arm.migrations, arm.migration_failures, arm.connects), (2, 1, 0));
    assert_eq!((arm.failures(), arm.users_on_new), ((1, 2), 1));
    assert_eq!(collector.current.evidence(Failure::ConnectFailed).events(), 0);
}

#[test]
fn observations_of_a_user_are_limited_per_minute() {
    let mut collector = collector(10.0);
    let control = users(Cohort::Control, 10.0, 1)[0];
    start_sessions(&mut collector, &[control]);
    let recorded =
        (0..100).filter(|_| collector.record(control, Observation::Request { ok: false }, NOW));
    assert_eq!(recorded.count(), usize::from(budget::OBSERVATIONS));
    let many = [1e300; 100];
    let delivered = Observation::Delivered { events: u32::MAX, latencies: &many };
    assert!(!collector.record(control, delivered, NOW));
    assert!(!collector.record(control, Observation::Dropped { events: u32::MAX }, NOW));
    let arm = &collector.current.control;
    assert_eq!((arm.requests, arm.errors), (20, 20));
    assert_eq!((arm.latency.count(), arm.delivered, arm.dropped), (30, 60_000, 0));
    let invalid = [f64::NAN, f64::INFINITY, -5.0, 7.0];
    let invalid = Observation::Delivered { events: 4, latencies: &invalid };
    assert!(!collector.record(control, invalid, NOW + 60_000));
    assert_eq!(collector.current.control.latency.count(), 31);
    assert!(collector.record(control, Observation::Memory { bytes: u64::MAX }, NOW + 60_000));
    let bytes: f64 = collector.current.control.memory.pairs().map(|(_, bytes)| bytes).sum();
    assert_eq!(bytes, 1024_f64.powi(3));
}

#[test]
fn tracked_users_are_limited() {
    assert_eq!(size_of::<(u64, User)>(), 24, "a hash map of them is between 1/2 and 7/8 full");
    let mut collector = Collector::new(7, window(1, 10.0), 2);
    let control = users(Cohort::Control, 10.0, 3);
    let recorded: Vec<_> =
        control.iter().map(|key| collector.record(*key, Observation::Interrupted, NOW)).collect();
    assert_eq!(recorded, [true, true, false]);
    assert_eq!((collector.users(), collector.report(NOW, 0.1).untracked), (2, 1));
}

#[test]
fn a_new_stage_starts_with_the_connected_users() {
    let mut collector = collector(10.0);
    let new = users(Cohort::New, 10.0, 3);
    // In neither arm at 10 %, in the new one at 20 %.
    let joining =
        users(Cohort::New, 20.0, 30).into_iter().find(|key| key.bucket.number() >= 10_000);
    let joining = joining.unwrap();
    start_sessions(&mut collector, &new);
    start_sessions(&mut collector, &[joining]);
    collector.record(new[0], Observation::Interrupted, NOW);
    collector.record(new[2], Observation::SessionEnded, NOW);
    collector.enter_window(window(2, 20.0));
    assert_eq!(collector.current.new.users, 3, "two stay connected and one joins the arm");
    assert_eq!(collector.at_risk[Failure::Interrupted as usize], (3, 0));
    collector.record(new[0], Observation::Interrupted, NOW);
    let report = collector.report(NOW, 0.2);
    assert_eq!(report.earlier.new.users_with(Failure::Interrupted), 1);
    assert_eq!(report.current.new.users_with(Failure::Interrupted), 1);
    collector.enter_window(window(1, 10.0));
    assert_eq!(collector.window().stage, 2, "an older stage is ignored");
    collector.enter_window(Window { epoch: 2, ..window(1, 1.0) });
    assert_eq!((collector.users(), collector.report(NOW, 0.2).earlier), (0, Totals::default()));
}

#[test]
fn above_half_arms_are_compared_within_one_stage() {
    let mut collector = collector(50.0);
    let new = users(Cohort::New, 50.0, 4);
    start_sessions(&mut collector, &new);
    collector.record(new[0], FAILED, NOW);
    collector.enter_window(window(2, 75.0));
    collector.record(new[0], FAILED, NOW);
    let mut reports = Reports::default();
    reports.insert(collector.report(NOW, 0.0)).unwrap();
    let totals = reports.merge(1).comparable();
    assert_eq!((totals.new.users, totals.evidence(Failure::ConnectFailed).events()), (4, 2));
    collector.enter_window(window(3, 100.0));
    assert_eq!(collector.earlier.new.users, 4, "the stage at 75 % is not pooled");
    assert_eq!(collector.earlier.evidence(Failure::ConnectFailed).events(), 2);
}

#[test]
fn report_stays_below_16_kib_and_round_trips_through_json() {
    let mut collector = Collector::new(7, window(1, 50.0), 10_000);
    for (index, key) in users(Cohort::New, 50.0, 2_000).into_iter().enumerate() {
        start_sessions(&mut collector, &[key]);
        let latencies = [index as f64, 10.0 * index as f64];
        collector.record(key, Observation::Delivered { events: 9, latencies: &latencies }, NOW);
        collector.record(key, Observation::Memory { bytes: 20_000 + index as u64 }, NOW);
    }
    let report = collector.report(NOW, 0.25);
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.len() < 16_384, "{} bytes", text.len());
    let mut read: Report = serde_json::from_str(&text).unwrap();
    // Floats may differ in the last digit.
    read.current.evidence = report.current.evidence.clone();
    assert_eq!(read, report);
}

#[test]
fn inconsistent_and_stale_reports_are_rejected() {
    let mut reports = Reports::default();
    let mut report = collector(10.0).report(NOW, 0.0);
    report.current.new.errors = 5;
    assert_eq!(reports.insert(report.clone()), Err(RejectedReport::Inconsistent));
    report.current.new.requests = 5;
    assert_eq!(reports.insert(report.clone()), Ok(()));
    assert_eq!(reports.insert(report), Err(RejectedReport::Stale));
}

/// A random action: the index of a user and the kind of observation.
fn any_action() -> impl Strategy<Value = (usize, u8)> {
    (0..40_usize, 0..10_u8)
}

fn replay(collector: &mut Collector, keys: &[UserKey], actions: &[(usize, u8)]) {
    for (user, action) in actions {
        let observation = match action {
            0 | 1 => Observation::SessionStarted,
            2 => Observation::SessionEnded,
            3 => FAILED,
            4 => Observation::Interrupted,
            5 => Observation::Resumed(Resume::Reset),
            6 => Observation::Dropped { events: 2 },
            7 => Observation::Request { ok: false },
            8 => Observation::Delivered { events: 1, latencies: &[700.0] },
            _ => Observation::Flapped,
        };
        collector.record(keys[*user], observation, NOW);
    }
}

proptest! {
    #[test]
    fn risk_sets_match_the_connected_users_without_failures(actions in vec(any_action(), 0..200)) {
        let keys = users(Cohort::New, 100.0, 40);
        let mut collector = collector(30.0);
        for (half, percent) in actions.chunks(100).zip([30.0, 60.0]) {
            collector.enter_window(window(percent as u64, percent));
            replay(&mut collector, &keys, half);
            for failure in Failure::ALL {
                let (mut at_risk, mut seen) = ((0, 0), (0, 0));
                for user in collector.users.values().filter(|user| user.flags & failure.bit() == 0) {
                    let is_new = collector.cohort(user).is_new();
                    if user.sessions > 0 {
                        increment(&mut at_risk, is_new);
                    }
                    if user.flags & SEEN != 0 {
                        increment(&mut seen, is_new);
                    }
                }
                prop_assert_eq!(collector.at_risk[failure as usize], at_risk);
                prop_assert_eq!(collector.seen[failure as usize], seen);
            }
            prop_assert!(collector.current.is_consistent());
        }
    }

    /// Three nodes report twice each; the merged result does not depend on order or repetition.
    #[test]
    fn merging_does_not_depend_on_order_delay_or_repetition(
        actions in vec(vec(any_action(), 0..60), 6),
        order in vec(0..6_usize, 0..12),
    ) {
        let keys = users(Cohort::New, 100.0, 40);
        let mut reports = Vec::new();
        for node in 0..3 {
            let mut collector = Collector::new(node as u64, window(1, 30.0), 1_000);
            replay(&mut collector, &keys, &actions[2 * node]);
            reports.push(collector.report(NOW, 0.1));
            if node > 0 {
                collector.enter_window(window(2, 40.0));
            }
            replay(&mut collector, &keys, &actions[2 * node + 1]);
            reports.push(collector.report(NOW + 1, 0.2));
        }
        let mut in_order = Reports::default();
        for report in &reports {
            in_order.insert(report.clone()).unwrap();
        }
        let mut shuffled = Reports::default();
        for at in order.into_iter().chain([5, 3, 1, 0, 2, 4]) {
            let _: Result<_, _> = shuffled.insert(reports[at].clone());
        }
        let (one, other) = (in_order.merge(1), shuffled.merge(1));
        prop_assert_eq!(&one, &other);
        prop_assert_eq!((one.nodes, one.last_report_at, one.window), (3, NOW + 1, Some(window(2, 40.0))));
        prop_assert_eq!(in_order.merge(2).nodes, 0);
    }
}
