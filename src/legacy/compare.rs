//! Comparison of one upstream stream with the logs of its channels. Pure: time is passed in, in
//! milliseconds of any clock.
//!
//! Two events are the same if their ids are equal, or their content where either has no id. An event
//! is matched with the oldest unmatched one of the other side, so equal events are counted correctly.
//! An event still unmatched after [`GRACE_FACTOR`] × `within` gets an outcome of its own.

use std::collections::VecDeque;

/// An event of either side, reduced to what the comparison needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedEvent {
    /// The id in the payload, where `legacy.redis.id` is set and finds one.
    pub id: Option<String>,
    /// Hash of the payload, independent of JSON whitespace and key order.
    pub content_hash: u64,
    /// The beginning of the payload, for reports.
    pub data: String,
}

impl ComparedEvent {
    fn is_same(&self, other: &Self) -> bool {
        match (&self.id, &other.id) {
            (Some(one), Some(another)) => one == another,
            _ => self.content_hash == other.content_hash,
        }
    }
}

/// Outcome of the comparison for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Both sides have it. `Late`, `Reordered` and `Different` are reported in addition.
    Matched,
    /// The upstream sent it, the log does not have it.
    Lost,
    /// The log has it once more than the upstream sent it.
    Duplicated,
    /// The log had it later than the upstream sent it, by more than `within`.
    Late,
    /// The log has it in another order than the upstream.
    Reordered,
    /// The same id with different content.
    Different,
    /// The log has it, the upstream did not send it.
    Extra,
    /// The upstream sent it once more than the log has it.
    Repeated,
    /// It was too large to be compared, or too many events were unmatched.
    Skipped,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 9] = [
        Self::Matched,
        Self::Lost,
        Self::Duplicated,
        Self::Late,
        Self::Reordered,
        Self::Different,
        Self::Extra,
        Self::Repeated,
        Self::Skipped,
    ];

    /// The name in reports and in the metric label `outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Late => "late",
            Self::Reordered => "reordered",
            Self::Different => "different",
            Self::Extra => "extra",
            Self::Repeated => "repeated",
            Self::Skipped => "skipped",
        }
    }
}

/// An outcome and the event it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the comparison found.
    pub outcome: Outcome,
    /// Index of the channel, where known: an upstream stream does not name the channel of an event.
    pub channel: Option<usize>,
    /// The event.
    pub event: ComparedEvent,
}

/// An event may stay unmatched for this many times `within`.
pub const GRACE_FACTOR: u64 = 3;

/// Limit of unmatched events per side; beyond it the oldest are skipped.
const UNMATCHED_MAX: usize = 10_000;

/// Recently matched events that are kept to detect duplicates and reordering.
const MATCHED_MAX: usize = 1000;

/// Compares one stream with its channels' logs.
#[derive(Debug)]
pub struct Comparer {
    within: u64,
    upstream: VecDeque<UnmatchedEvent>,
    log: VecDeque<UnmatchedEvent>,
    matched: VecDeque<MatchedEvent>,
    /// Events that the upstream has sent.
    sent: u64,
}

#[derive(Debug)]
struct UnmatchedEvent {
    event: ComparedEvent,
    /// When it arrived.
    at: u64,
    /// Its order on its side: a running number for the upstream, the offset for a log.
    order: u64,
    channel: Option<usize>,
    /// It may be matched, and is not reported if it is not.
    optional: bool,
}

#[derive(Debug)]
struct MatchedEvent {
    event: ComparedEvent,
    channel: Option<usize>,
    sent: u64,
    offset: u64,
}

impl Comparer {
    /// A comparison of a stream that has just begun; `within` is in milliseconds.
    pub fn new(within: u64) -> Self {
        let empty = VecDeque::new;
        Self { within, upstream: empty(), log: empty(), matched: VecDeque::new(), sent: 0 }
    }

    /// Adds an event that the upstream sent.
    pub fn sent(&mut self, event: ComparedEvent, now: u64, findings: &mut Vec<Finding>) {
        self.sent += 1;
        let order = self.sent;
        let sent = UnmatchedEvent { event, at: now, order, channel: None, optional: false };
        match self.log.iter().position(|logged| logged.event.is_same(&sent.event)) {
            Some(at) => {
                if let Some(logged) = self.log.remove(at) {
                    self.record_match(sent, logged, findings);
                }
            }
            None => push(&mut self.upstream, sent, findings),
        }
    }

    /// Adds an event that a channel's log has at an offset. Events that the log had before the stream
    /// began are `optional`.
    pub fn logged(
        &mut self,
        (channel, offset): (usize, u64),
        event: ComparedEvent,
        (now, optional): (u64, bool),
        findings: &mut Vec<Finding>,
    ) {
        let channel = Some(channel);
        let logged = UnmatchedEvent { event, at: now, order: offset, channel, optional };
        match self.upstream.iter().position(|sent| sent.event.is_same(&logged.event)) {
            Some(at) => {
                if let Some(sent) = self.upstream.remove(at) {
                    self.record_match(sent, logged, findings);
                }
            }
            None => push(&mut self.log, logged, findings),
        }
    }

    /// Reports events that have been unmatched for too long.
    pub fn expire(&mut self, now: u64, findings: &mut Vec<Finding>) {
        let grace = self.within.saturating_mul(GRACE_FACTOR);
        let expired = |unmatched: &UnmatchedEvent| unmatched.at.saturating_add(grace) < now;
        while let Some(sent) = self.upstream.pop_front_if(|unmatched| expired(unmatched)) {
            let known = self.was_matched(&sent.event);
            let outcome = if known { Outcome::Repeated } else { Outcome::Lost };
            findings.push(Finding { outcome, channel: None, event: sent.event });
        }
        while let Some(logged) = self.log.pop_front_if(|unmatched| expired(unmatched)) {
            if logged.optional {
                continue;
            }
            let known = self.was_matched(&logged.event);
            let outcome = if known { Outcome::Duplicated } else { Outcome::Extra };
            findings.push(Finding { outcome, channel: logged.channel, event: logged.event });
        }
    }

    /// Records that the upstream's stream has ended: it cannot send what only the log has so far.
    pub fn end(&mut self) {
        for unmatched in &mut self.log {
            unmatched.optional = true;
        }
    }

    /// Whether every event of the upstream has an outcome.
    pub fn is_settled(&self) -> bool {
        self.upstream.is_empty()
    }

    fn was_matched(&self, event: &ComparedEvent) -> bool {
        self.matched.iter().any(|matched| matched.event.is_same(event))
    }

    fn record_match(
        &mut self,
        sent: UnmatchedEvent,
        logged: UnmatchedEvent,
        findings: &mut Vec<Finding>,
    ) {
        let channel = logged.channel;
        let mut report =
            |outcome| findings.push(Finding { outcome, channel, event: sent.event.clone() });
        report(Outcome::Matched);
        if sent.event.content_hash != logged.event.content_hash {
            report(Outcome::Different);
        }
        if sent.at.saturating_add(self.within) < logged.at {
            report(Outcome::Late);
        }
        let crosses = |other: &&MatchedEvent| {
            other.channel == channel && (other.sent < sent.order) != (other.offset < logged.order)
        };
        // The upstream may send events from before the stream began in any order.
        if !logged.optional && self.matched.iter().any(|other| crosses(&other)) {
            report(Outcome::Reordered);
        }
        if MATCHED_MAX <= self.matched.len() {
            self.matched.pop_front();
        }
        let (sent, offset) = (sent.order, logged.order);
        self.matched.push_back(MatchedEvent { event: logged.event, channel, sent, offset });
    }
}

fn push(
    side: &mut VecDeque<UnmatchedEvent>,
    unmatched: UnmatchedEvent,
    findings: &mut Vec<Finding>,
) {
    if UNMATCHED_MAX <= side.len()
        && let Some(UnmatchedEvent { channel, event, .. }) = side.pop_front()
    {
        findings.push(Finding { outcome: Outcome::Skipped, channel, event });
    }
    side.push_back(unmatched);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const WITHIN: u64 = 100;

    fn event(content_hash: u64) -> ComparedEvent {
        ComparedEvent { id: None, content_hash, data: content_hash.to_string() }
    }

    fn event_with_id(id: u64, content_hash: u64) -> ComparedEvent {
        ComparedEvent { id: Some(id.to_string()), ..event(content_hash) }
    }

    /// Outcomes by name, once every event has one.
    fn outcomes(steps: impl IntoIterator<Item = (u64, Step)>) -> BTreeMap<&'static str, usize> {
        let mut comparer = Comparer::new(WITHIN);
        let (mut findings, mut last, mut offset) = (Vec::new(), 0, 0);
        for (now, step) in steps {
            comparer.expire(now, &mut findings);
            last = last.max(now);
            match step {
                Step::Sent(event) => comparer.sent(event, now, &mut findings),
                Step::Logged(event, optional) => {
                    offset += 1;
                    comparer.logged((0, offset), event, (now, optional), &mut findings);
                }
                Step::End => comparer.end(),
            }
        }
        comparer.expire(last + WITHIN * GRACE_FACTOR + 1, &mut findings);
        assert!(comparer.is_settled());
        let mut counts = BTreeMap::new();
        for finding in findings {
            *counts.entry(finding.outcome.as_str()).or_default() += 1;
        }
        counts
    }

    #[derive(Clone, Debug)]
    enum Step {
        Sent(ComparedEvent),
        Logged(ComparedEvent, bool),
        End,
    }

    fn sent(event: ComparedEvent) -> Step {
        Step::Sent(event)
    }

    fn logged(event: ComparedEvent) -> Step {
        Step::Logged(event, false)
    }

    fn counts(expected: &[(&'static str, usize)]) -> BTreeMap<&'static str, usize> {
        expected.iter().copied().collect()
    }

    #[test]
    fn equal_events_are_matched_one_to_one() {
        let at_once = |steps: &[Step]| outcomes(steps.iter().map(|step| (0, step.clone())));
        let [sent, logged] = [sent(event(1)), logged(event(1))];
        let steps = [sent.clone(), sent.clone(), logged.clone(), logged.clone()];
        assert_eq!(at_once(&steps), counts(&[("matched", 2)]));
        let steps = [sent.clone(), logged.clone(), logged.clone()];
        assert_eq!(at_once(&steps), counts(&[("matched", 1), ("duplicated", 1)]));
        let steps = [sent.clone(), sent, logged];
        assert_eq!(at_once(&steps), counts(&[("matched", 1), ("repeated", 1)]));
    }

    #[test]
    fn an_event_of_only_one_side_is_lost_or_extra() {
        let steps = [(0, sent(event(1))), (0, logged(event(2)))];
        assert_eq!(outcomes(steps), counts(&[("lost", 1), ("extra", 1)]));
    }

    #[test]
    fn an_event_is_late_after_within_and_lost_after_the_grace() {
        let after = |delay| outcomes([(0, sent(event(1))), (delay, logged(event(1)))]);
        assert_eq!(after(WITHIN), counts(&[("matched", 1)]));
        assert_eq!(after(WITHIN + 1), counts(&[("matched", 1), ("late", 1)]));
        assert_eq!(after(WITHIN * GRACE_FACTOR), counts(&[("matched", 1), ("late", 1)]));
        assert_eq!(after(WITHIN * GRACE_FACTOR + 1), counts(&[("lost", 1), ("extra", 1)]));
        // A delay of the upstream is not reported.
        let upstream_delayed = outcomes([(0, logged(event(1))), (WITHIN * 2, sent(event(1)))]);
        assert_eq!(upstream_delayed, counts(&[("matched", 1)]));
    }

    #[test]
    fn equal_ids_with_different_content_are_different() {
        let steps = [(0, sent(event_with_id(1, 1))), (0, logged(event_with_id(1, 2)))];
        assert_eq!(outcomes(steps), counts(&[("matched", 1), ("different", 1)]));
        let steps = [(0, sent(event_with_id(1, 1))), (0, logged(event_with_id(2, 1)))];
        assert_eq!(outcomes(steps), counts(&[("lost", 1), ("extra", 1)]));
    }

    #[test]
    fn a_swapped_event_is_reordered() {
        let steps = [sent(event(1)), sent(event(2)), logged(event(2)), logged(event(1))];
        let steps = steps.map(|step| (0, step));
        assert_eq!(outcomes(steps), counts(&[("matched", 2), ("reordered", 1)]));
    }

    #[test]
    fn unmatched_log_events_from_before_or_after_the_stream_are_not_reported() {
        let steps = [
            (0, Step::Logged(event(1), true)),
            (0, Step::Logged(event(2), true)),
            (0, sent(event(2))),
            (0, logged(event(3))),
            (0, Step::End),
        ];
        assert_eq!(outcomes(steps), counts(&[("matched", 1)]));
    }

    #[test]
    fn unmatched_events_beyond_the_limit_are_skipped() {
        let mut comparer = Comparer::new(WITHIN);
        let mut findings = Vec::new();
        for n in 0..UNMATCHED_MAX as u64 + 5 {
            comparer.sent(event(n), 0, &mut findings);
        }
        let skipped = findings.iter().filter(|finding| finding.outcome == Outcome::Skipped);
        assert_eq!(skipped.count(), 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Both sides in order, each log event up to `within` earlier or later than the upstream's.
        #[test]
        fn two_sides_that_agree_match(
            hashes in prop::collection::vec(0..5u64, 1..60),
            delays in prop::collection::vec(0..2 * WITHIN, 60),
        ) {
            let (mut steps, mut last) = (Vec::new(), 0);
            for (n, hash) in hashes.iter().enumerate() {
                let at = 10 * n as u64 + WITHIN;
                last = (at + delays[n] - WITHIN).max(last);
                steps.push((at, 0, sent(event(*hash))));
                steps.push((last.min(at + WITHIN), 1, logged(event(*hash))));
            }
            steps.sort_by_key(|(at, _, _)| *at);
            let found = outcomes(steps.into_iter().map(|(at, _, step)| (at, step)));
            prop_assert_eq!(found, counts(&[("matched", hashes.len())]));
        }

        /// The log has each event zero, one or two times; exactly the losses and duplicates are found.
        #[test]
        fn each_loss_and_each_duplicate_is_found(copies in prop::collection::vec(0..3usize, 1..80)) {
            let mut steps = Vec::new();
            for (n, copies) in copies.iter().enumerate() {
                let (at, event) = (n as u64 * 7, event_with_id(n as u64, n as u64));
                steps.push((at, sent(event.clone())));
                steps.extend((0..*copies).map(|_| (at, logged(event.clone()))));
            }
            let events_with = |n| copies.iter().filter(|copies| **copies == n).count();
            let expected = [
                ("matched", events_with(1) + events_with(2)),
                ("lost", events_with(0)),
                ("duplicated", events_with(2)),
            ];
            let expected = expected.into_iter().filter(|(_, n)| 0 < *n).collect::<Vec<_>>();
            prop_assert_eq!(outcomes(steps), counts(&expected));
        }

        /// Any other order of the log is reported as reordered, and as nothing else.
        #[test]
        fn each_reordering_is_found(
            order in Just((0..12u64).collect::<Vec<_>>()).prop_shuffle(),
            log_first: bool,
        ) {
            let sent = (0..12).map(|n| (0, sent(event(n))));
            let logged = order.iter().map(|n| (0, logged(event(*n))));
            let found = if log_first {
                outcomes(logged.chain(sent))
            } else {
                outcomes(sent.chain(logged))
            };
            let reordered = found.get("reordered").copied().unwrap_or(0);
            prop_assert_eq!(0 < reordered, !order.is_sorted());
            prop_assert_eq!(found["matched"], 12);
            prop_assert_eq!(found.keys().filter(|k| !["matched", "reordered"].contains(k)).count(), 0);
        }
    }
}
