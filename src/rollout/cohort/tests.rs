//! The published vectors of every rule, and that a growing percentage takes nobody back.

use proptest::prelude::*;

use super::*;

fn place(rule: HashRule, salt: &str, unit: &str) -> u32 {
    bucket(rule, "websocket-transport", salt, unit).number()
}

fn is_new(rule: HashRule, salt: &str, unit: &str, percent: f64) -> bool {
    let place = bucket(rule, "websocket-transport", salt, unit);
    cohort(place, Percentage::new(percent).unwrap()).is_new()
}

#[test]
fn unleash_agrees_with_its_client_specification() {
    let vectors = [
        ("Feature.flexibleRollout.10", "174", 10),
        ("Feature.flexibleRollout.10", "499", 32),
        ("Feature.flexibleRollout.userId.55", "25", 55),
        ("Feature.flexibleRollout.sessionId.42", "147", 42),
        ("Feature.flexible.rollout.custom.stickiness_50", "388", 10),
        ("Feature.flexible.rollout.custom.stickiness_50", "39", 25),
        ("Feature.flexible.rollout.custom.stickiness_50", "402", 55),
        ("gr1", "123", 73),
        ("groupX", "999", 25),
        ("transport-ws", "user-1", 82),
        ("transport-ws", "user-2", 45),
        ("transport-ws", "user-42", 72),
        ("transport-ws", "alice", 82),
        ("transport-ws", "bob", 36),
        ("transport-ws", "Ωmega", 54),
    ];
    for (group, id, theirs) in vectors {
        assert_eq!(place(HashRule::Unleash, group, id) / 1_000 + 1, theirs, "{group} {id}");
        for percent in 0..=100 {
            let verdict = is_new(HashRule::Unleash, group, id, f64::from(percent));
            assert_eq!(verdict, theirs <= percent, "{group} {id} at {percent}");
        }
    }
}

#[test]
fn flagd_agrees_with_its_fractional_tests() {
    let quarters = ["red", "blue", "green", "yellow"];
    let vectors = [
        ("headerColor", "rachel@faas.com", 42, "blue"),
        ("headerColor", "monica@faas.com", 77, "yellow"),
        ("headerColor", "joey@faas.com", 7, "red"),
        ("headerColor", "ross@faas.com", 37, "blue"),
        ("my-seed", "rachel@faas.com", 68, "green"),
        ("my-seed", "monica@faas.com", 7, "red"),
        ("my-seed", "joey@faas.com", 30, "blue"),
        ("my-seed", "ross@faas.com", 70, "green"),
    ];
    for (key, unit, theirs, color) in vectors {
        let place = place(HashRule::Flagd, key, unit);
        assert_eq!(place / 1_000, theirs, "{key} {unit}");
        assert_eq!(quarters[place as usize / 25_000], color, "{key} {unit}");
    }
    let fine = [("user-1", 1_568), ("user-2", 5_264), ("user-42", 4_728)];
    let more = [("alice", 6_032), ("bob", 1_048), ("Ωmega", 7_362)];
    for (unit, theirs) in fine.into_iter().chain(more) {
        assert_eq!(place(HashRule::Flagd, "transport-ws", unit) / 10, theirs, "{unit}");
    }
}

#[test]
fn growthbook_agrees_with_its_cases() {
    let vectors = [
        ("seed", "a", 505),
        ("seed", "b", 2_696),
        ("foo", "ab", 2_575),
        ("foo", "def", 2_019),
        ("89123klj", "8952klfjas09ujkasdf", 1_240),
        ("90850943850283058242805", "123", 7_516),
        ("()**(%$##$%#$#", "___)((*\":&", 128),
        ("transport-ws", "user-1", 1_017),
        ("transport-ws", "user-2", 125),
        ("transport-ws", "user-42", 1_178),
        ("transport-ws", "alice", 4_141),
        ("transport-ws", "bob", 686),
        ("transport-ws", "Ωmega", 9_546),
    ];
    for (seed, id, theirs) in vectors {
        assert_eq!(place(HashRule::GrowthbookV2, seed, id), theirs * 10, "{seed} {id}");
        let at = f64::from(theirs) / 100.0;
        assert!(!is_new(HashRule::GrowthbookV2, seed, id, at), "a range is half open");
        assert!(is_new(HashRule::GrowthbookV2, seed, id, at + 0.01), "{seed} {id}");
    }
}

#[test]
fn launchdarkly_agrees_with_its_variations() {
    let vectors = [
        ("hashKey.saltyA", "userKeyA", 0.421_575_87),
        ("hashKey.saltyA", "userKeyB", 0.670_848_5),
        ("hashKey.saltyA", "userKeyC", 0.103_431_06),
        ("hashKey.saltyA", "33333", 0.547_714_23),
        ("hashKey.saltyA", "99999", 0.730_965_8),
        ("61", "userKeyA", 0.098_012_07),
        ("61", "userKeyB", 0.144_837_77),
        ("61", "userKeyC", 0.924_264_1),
        ("60", "userKeyA", 0.700_881_6),
    ];
    for (salt, unit, theirs) in vectors {
        assert!((launchdarkly(salt, unit) - theirs).abs() < f32::EPSILON, "{salt} {unit}");
        assert_eq!(place(HashRule::Launchdarkly, salt, unit), (theirs * 1e5) as u32);
    }
}

#[test]
fn a_float_stands_where_its_system_would_compare_it() {
    let mut value = 0.0_f32;
    while value <= 1.0 {
        let place = first_above(value);
        let theirs = |weight: u32| value < weight as f32 / 100_000.0;
        assert!(theirs(place + 1) || place == 99_999, "{value}");
        assert!(place == 0 || !theirs(place), "{value}");
        value += 0.000_003_3;
    }
    assert_eq!(first_above(1.0), 99_999);
}

/// Salt, unit, place, group.
const VECTORS: &[(&str, &str, u32, u16)] = &[
    ("websocket-transport", "user-1", 8_564, 298),
    ("websocket-transport", "user-2", 79_125, 828),
    ("websocket-transport", "user-42", 51_605, 601),
    ("websocket-transport", "alice", 66_120, 457),
    ("websocket-transport", "bob", 6_233, 599),
    ("websocket-transport", "Ωmega", 71_337, 348),
    ("websocket-transport", "", 94_132, 409),
    ("r1", "user-1", 15_114, 814),
    ("r1", "user-2", 78_672, 160),
    ("r1", "user-42", 46_228, 604),
    ("r1", "alice", 30_550, 660),
    ("r1", "bob", 65_763, 887),
    ("r1", "Ωmega", 59_154, 752),
    ("r1", "", 7_354, 781),
];

/// Computed apart from this code, by a few lines of Python.
#[test]
fn crossfade_v1_is_as_it_was_specified() {
    for (salt, unit, theirs, group) in VECTORS {
        assert_eq!(place(HashRule::CrossfadeV1, salt, unit), *theirs, "{salt} {unit}");
        let found = jackknife("websocket-transport", salt, unit);
        assert_eq!(found.number(), *group, "{salt} {unit}");
    }
    let by_name = bucket(HashRule::CrossfadeV1, "websocket-transport", "", "alice");
    assert_eq!(by_name, bucket(HashRule::CrossfadeV1, "", "websocket-transport", "alice"));
}

#[test]
fn the_separator_keeps_names_apart() {
    let one = bucket(HashRule::CrossfadeV1, "", "a", "bc");
    assert_ne!(one, bucket(HashRule::CrossfadeV1, "", "ab", "c"));
}

#[test]
fn arms_are_of_one_size_up_to_a_half() {
    for percent in [0.0, 0.001, 1.0, 2.5, 25.0, 50.0, 50.001, 75.0, 100.0] {
        let percentage = Percentage::new(percent).unwrap();
        let mut sizes = [0, 0, 0];
        for place in 0..Bucket::COUNT {
            sizes[cohort(Bucket(place), percentage) as usize] += 1;
        }
        let new = percentage.thousandths();
        let control = if new <= 50_000 { new } else { 100_000 - new };
        assert_eq!(sizes, [new, control, 100_000 - new - control], "{percent}");
    }
}

#[test]
fn a_percentage_takes_its_share_of_a_hundred_thousand_users() {
    let rules = [
        HashRule::CrossfadeV1,
        HashRule::Unleash,
        HashRule::Flagd,
        HashRule::GrowthbookV2,
        HashRule::Launchdarkly,
    ];
    for rule in rules {
        let mut per_percent = [0_u32; 100];
        let mut both = 0;
        for id in 0..100_000 {
            let id = id.to_string();
            let place = place(rule, "transport-ws", &id);
            per_percent[place as usize / 1_000] += 1;
            let group = jackknife("websocket-transport", "transport-ws", &id).number();
            both += u32::from(place < 50_000 && group < 500);
        }
        let square = |count: &u32| (f64::from(*count) - 1_000.0).powi(2) / 1_000.0;
        let chi: f64 = per_percent.iter().map(square).sum();
        assert!(chi < 148.2, "{rule:?}: chi square {chi} of 99 degrees, p < 0.001");
        assert!((24_500..25_500).contains(&both), "{rule:?}: the groups depend on the arm: {both}");
    }
}

#[test]
fn rules_are_written_as_the_design_writes_them() {
    let written = serde_json::to_string(&[
        HashRule::CrossfadeV1,
        HashRule::Unleash,
        HashRule::Flagd,
        HashRule::GrowthbookV2,
        HashRule::Launchdarkly,
    ]);
    let names = r#"["crossfade-v1","unleash","flagd","growthbook-v2","launchdarkly"]"#;
    assert_eq!(written.unwrap(), names);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// 100,000 users, in random steps from nobody to everybody: nobody leaves the new arm, and up
    /// to a half nobody leaves the control arm either.
    #[test]
    fn raising_the_percentage_moves_nobody_out(
        salt in "[a-z0-9]{1,12}",
        steps in proptest::collection::btree_set(0..=100_000_u32, 1..12),
    ) {
        let places: Vec<_> = (0..100_000)
            .map(|id| bucket(HashRule::CrossfadeV1, "websocket-transport", &salt, &format!("u{id}")))
            .collect();
        let mut before = vec![Cohort::Rest; places.len()];
        for step in steps {
            let percentage = Percentage::of_thousandths(step).unwrap();
            for (place, before) in places.iter().zip(&mut before) {
                let now = cohort(*place, percentage);
                prop_assert!(*before != Cohort::New || now == Cohort::New);
                prop_assert!(*before != Cohort::Control || now != Cohort::Rest);
                if step <= 50_000 {
                    prop_assert!(*before != Cohort::Control || now == Cohort::Control);
                }
                *before = now;
            }
        }
    }
}
