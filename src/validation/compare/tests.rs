use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::*;

const UNTIL: u64 = 40;

fn channel() -> Channel {
    "news".parse().unwrap()
}

/// A session that received every event once and in order.
fn complete() -> Vec<ReceivedEvent> {
    (1..=UNTIL)
        .map(|offset| ReceivedEvent { offset, digest: offset * 31, at: 1_000 + offset })
        .collect()
}

fn compare(old: &[ReceivedEvent], new: &[ReceivedEvent], known: &[u64]) -> Comparison {
    let channel = channel();
    let range = ExpectedRange { channel: &channel, after: 0, until: UNTIL, started: 1_000, known };
    let mut comparison = Comparison::default();
    comparison.compare(&range, old, new);
    comparison
}

#[test]
fn identical_sessions_have_no_discrepancies() {
    let result = compare(&complete(), &complete(), &[1, 2, UNTIL]);
    let all = Counts { received: UNTIL, ..Counts::default() };
    assert_eq!(result, Comparison { events: UNTIL, old: all, new: all, ..Comparison::default() });
}

#[test]
fn known_events_that_neither_side_received_are_missing_on_both() {
    let mut some = complete();
    some.remove(6);
    let result = compare(&some, &some, &[7]);
    assert_eq!((result.old.missing, result.new.missing, result.events), (1, 1, UNTIL));
    assert_eq!(result.examples[0].offset, 7);
}

#[test]
fn events_outside_of_the_range_are_ignored() {
    let channel = channel();
    let range =
        ExpectedRange { channel: &channel, after: 5, until: 10, started: 0, known: &[3, 12] };
    let mut comparison = Comparison::default();
    comparison.compare(&range, &complete(), &complete()[..10]);
    assert_eq!((comparison.events, comparison.new.missing, comparison.examples.len()), (5, 0, 0));
}

#[test]
fn lateness_is_measured_against_the_other_side_once_both_are_open() {
    let mut late = complete();
    late[3].at += LATE_AFTER_MS + 1;
    late[4].at += LATE_AFTER_MS;
    let result = compare(&complete(), &late, &[]);
    assert_eq!((result.new.late, result.old.late), (1, 0));
    let early: Vec<_> =
        complete().into_iter().map(|event| ReceivedEvent { at: 10, ..event }).collect();
    assert_eq!(compare(&early, &complete(), &[]).new.late, 0);
}

#[test]
fn different_content_is_reported_with_its_offset() {
    let mut other = complete();
    other[8].digest += 1;
    let result = compare(&complete(), &other, &[]);
    assert_eq!(result.different, 1);
    let example = &result.examples[0];
    assert_eq!((example.offset, example.discrepancy), (9, Discrepancy::Different));
}

proptest! {
    #[test]
    fn events_removed_from_one_side_are_missing_there(
        kept in subsequence((0..UNTIL as usize).collect::<Vec<_>>(), 0..=UNTIL as usize),
    ) {
        let some: Vec<_> = kept.iter().map(|at| complete()[*at]).collect();
        let missing = UNTIL - kept.len() as u64;
        let result = compare(&complete(), &some, &[]);
        prop_assert_eq!((result.new.missing, result.old.missing), (missing, 0));
        prop_assert_eq!((result.new.received, result.events), (kept.len() as u64, UNTIL));
        prop_assert_eq!((result.new.reordered, result.new.duplicated), (0, 0));
        prop_assert!(result.examples.len() <= 10);
    }

    #[test]
    fn repeated_events_are_only_duplicated(repeated in vec(0..UNTIL as usize, 0..20)) {
        let mut with_repeats = complete();
        with_repeats.extend(repeated.iter().map(|at| complete()[*at]));
        let result = compare(&with_repeats, &complete(), &[]);
        let expected = Counts {
            received: UNTIL, duplicated: repeated.len() as u64, ..Counts::default()
        };
        prop_assert_eq!(result.old, expected);
    }

    #[test]
    fn shuffled_events_are_reordered_and_not_missing(shuffled in Just(complete()).prop_shuffle()) {
        let result = compare(&complete(), &shuffled, &[]);
        let sorted = shuffled.is_sorted_by_key(|event| event.offset);
        prop_assert_eq!(result.new.reordered == 0, sorted);
        prop_assert_eq!((result.new.missing, result.new.duplicated, result.different), (0, 0, 0));
    }

    #[test]
    fn comparison_is_symmetric(
        one in vec((1..20u64, 0..3u64, 0..2_000u64), 0..40),
        other in vec((1..20u64, 0..3u64, 0..2_000u64), 0..40),
    ) {
        let events = |list: &[(u64, u64, u64)]| -> Vec<ReceivedEvent> {
            list.iter().map(|&(offset, digest, at)| ReceivedEvent { offset, digest, at }).collect()
        };
        let (one, other) = (events(&one), events(&other));
        let (a, b) = (compare(&one, &other, &[3]), compare(&other, &one, &[3]));
        prop_assert_eq!((a.old, a.new, a.different, a.events), (b.new, b.old, b.different, b.events));
    }
}
