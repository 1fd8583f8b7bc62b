use proptest::{collection::vec, prelude::*, sample::subsequence};

use super::*;

const UNTIL: u64 = 40;

fn channel() -> Channel {
    "news".parse().unwrap()
}

/// A side that got all of it, each as soon as it could.
fn whole() -> Vec<Seen> {
    (1..=UNTIL).map(|offset| Seen { offset, digest: offset * 31, at: 1_000 + offset }).collect()
}

fn found(old: &[Seen], new: &[Seen], known: &[u64]) -> Findings {
    let channel = channel();
    let span = ExpectedRange { channel: &channel, after: 0, until: UNTIL, begun: 1_000, known };
    let mut findings = Findings::default();
    findings.compare(&span, old, new);
    findings
}

#[test]
fn the_same_on_both_sides_is_nothing_to_speak_of() {
    let found = found(&whole(), &whole(), &[1, 2, UNTIL]);
    let all = Counts { received: UNTIL, ..Counts::default() };
    assert_eq!(found, Findings { events: UNTIL, old: all, new: all, ..Findings::default() });
}

#[test]
fn what_neither_side_got_is_missed_on_both_if_it_is_known() {
    let mut some = whole();
    some.remove(6);
    let found = found(&some, &some, &[7]);
    assert_eq!((found.old.missing, found.new.missing, found.events), (1, 1, UNTIL));
    assert_eq!(found.examples[0].offset, 7);
}

#[test]
fn what_lies_outside_of_the_span_does_not_count() {
    let channel = channel();
    let span = ExpectedRange { channel: &channel, after: 5, until: 10, begun: 0, known: &[3, 12] };
    let mut findings = Findings::default();
    findings.compare(&span, &whole(), &whole()[..10]);
    assert_eq!((findings.events, findings.new.missing, findings.examples.len()), (5, 0, 0));
}

#[test]
fn an_event_is_late_by_the_other_side_and_not_before_both_were_there() {
    let mut late = whole();
    late[3].at += LATE_MS + 1;
    late[4].at += LATE_MS;
    let found = found(&whole(), &late, &[]);
    assert_eq!((found.new.late, found.old.late), (1, 0));
    let early: Vec<_> = whole().into_iter().map(|seen| Seen { at: 10, ..seen }).collect();
    assert_eq!(self::found(&early, &whole(), &[]).new.late, 0);
}

#[test]
fn another_content_is_told_by_its_place() {
    let mut other = whole();
    other[8].digest += 1;
    let found = found(&whole(), &other, &[]);
    assert_eq!(found.different, 1);
    let example = &found.examples[0];
    assert_eq!((example.offset, example.fault), (9, Discrepancy::Different));
}

proptest! {
    #[test]
    fn what_is_taken_from_a_side_is_missing_there(
        kept in subsequence((0..UNTIL as usize).collect::<Vec<_>>(), 0..=UNTIL as usize),
    ) {
        let some: Vec<_> = kept.iter().map(|at| whole()[*at]).collect();
        let lost = UNTIL - kept.len() as u64;
        let found = found(&whole(), &some, &[]);
        prop_assert_eq!((found.new.missing, found.old.missing), (lost, 0));
        prop_assert_eq!((found.new.received, found.events), (kept.len() as u64, UNTIL));
        prop_assert_eq!((found.new.reordered, found.new.duplicated), (0, 0));
        prop_assert!(found.examples.len() <= 10);
    }

    #[test]
    fn what_comes_again_is_doubled_and_nothing_else(again in vec(0..UNTIL as usize, 0..20)) {
        let mut more = whole();
        more.extend(again.iter().map(|at| whole()[*at]));
        let found = found(&more, &whole(), &[]);
        let doubled = Counts {
            received: UNTIL, duplicated: again.len() as u64, ..Counts::default()
        };
        prop_assert_eq!(found.old, doubled);
    }

    #[test]
    fn any_other_order_is_found_and_loses_nothing(mixed in Just(whole()).prop_shuffle()) {
        let found = found(&whole(), &mixed, &[]);
        let sorted = mixed.is_sorted_by_key(|seen| seen.offset);
        prop_assert_eq!(found.new.reordered == 0, sorted);
        prop_assert_eq!((found.new.missing, found.new.duplicated, found.different), (0, 0, 0));
    }

    #[test]
    fn the_sides_may_be_swapped(
        one in vec((1..20u64, 0..3u64, 0..2_000u64), 0..40),
        other in vec((1..20u64, 0..3u64, 0..2_000u64), 0..40),
    ) {
        let seen = |list: &[(u64, u64, u64)]| -> Vec<Seen> {
            list.iter().map(|&(offset, digest, at)| Seen { offset, digest, at }).collect()
        };
        let (one, other) = (seen(&one), seen(&other));
        let (a, b) = (found(&one, &other, &[3]), found(&other, &one, &[3]));
        prop_assert_eq!((a.old, a.new, a.different, a.events), (b.new, b.old, b.different, b.events));
    }
}
