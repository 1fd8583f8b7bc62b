//! Comparing what the old server sent on one stream with what the logs of its channels have. Pure:
//! time is handed in, in milliseconds of any clock.
//!
//! An event is the same by its id where both sides have one, else by its content; the oldest not yet
//! matched first, so equal events are counted, not confused. What is still alone after
//! [`PATIENCE`] × `within` is judged.

use std::collections::VecDeque;

/// An event of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The id in its content, where one is configured and there.
    pub id: Option<String>,
    /// What its content is, whatever its spaces are.
    pub print: u64,
    /// The beginning of its content, for whoever looks into it.
    pub data: String,
}

impl Seen {
    fn is(&self, other: &Self) -> bool {
        match (&self.id, &other.id) {
            (Some(one), Some(another)) => one == another,
            _ => self.print == other.print,
        }
    }
}

/// What a comparison finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Both sides have it. The other findings about it come on top.
    Matched,
    /// The old server sent it, the log does not have it.
    Lost,
    /// The log has it once more than the old server sent it.
    Doubled,
    /// The log had it later than the old server sent it, by more than `within`.
    Late,
    /// The log has it in another order.
    Reordered,
    /// The same id with another content.
    Different,
    /// The log has it, the old server did not send it.
    Extra,
    /// The old server sent it once more than the log has it.
    Repeated,
    /// Too much was waiting, or too large, to be compared.
    Skipped,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Matched,
        Self::Lost,
        Self::Doubled,
        Self::Late,
        Self::Reordered,
        Self::Different,
        Self::Extra,
        Self::Repeated,
        Self::Skipped,
    ];

    /// As reports and metrics call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Late => "late",
            Self::Reordered => "reordered",
            Self::Different => "different",
            Self::Extra => "extra",
            Self::Repeated => "repeated",
            Self::Skipped => "skipped",
        }
    }
}

/// One thing that was found, about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// In which of the stream's channels, where that is known: the old stream does not say.
    pub channel: Option<usize>,
    /// About which event.
    pub seen: Seen,
}

/// After how many times `within` an event that is alone is judged.
pub const PATIENCE: u64 = 3;

/// Events of one side that wait for the other.
const MOST: usize = 10_000;

/// Events matched lately, to tell a double from a loss and an order from another.
const REMEMBERED: usize = 1000;

/// The comparison of one stream.
#[derive(Debug)]
pub struct Comparer {
    within: u64,
    upstream: VecDeque<Waiting>,
    log: VecDeque<Waiting>,
    matched: VecDeque<Match>,
    sent: u64,
}

#[derive(Debug)]
struct Waiting {
    seen: Seen,
    at: u64,
    /// Its place on its side: a running number, or an offset.
    place: u64,
    channel: Option<usize>,
    /// It may be matched, and means nothing if it is not.
    free: bool,
}

#[derive(Debug)]
struct Match {
    seen: Seen,
    channel: Option<usize>,
    sent: u64,
    offset: u64,
}

impl Comparer {
    /// Of a stream that has just begun.
    pub fn new(within: u64) -> Self {
        let empty = VecDeque::new;
        Self { within, upstream: empty(), log: empty(), matched: VecDeque::new(), sent: 0 }
    }

    /// The old server sent this.
    pub fn sent(&mut self, seen: Seen, now: u64, found: &mut Vec<Finding>) {
        self.sent += 1;
        let place = self.sent;
        let waiting = Waiting { seen, at: now, place, channel: None, free: false };
        match self.log.iter().position(|log| log.seen.is(&waiting.seen)) {
            Some(at) => {
                if let Some(log) = self.log.remove(at) {
                    self.pair(waiting, log, found);
                }
            }
            None => push(&mut self.upstream, waiting, found),
        }
    }

    /// The log of a channel has this, at an offset. `free` is what it had before the stream began.
    pub fn logged(
        &mut self,
        (channel, offset): (usize, u64),
        seen: Seen,
        (now, free): (u64, bool),
        found: &mut Vec<Finding>,
    ) {
        let waiting = Waiting { seen, at: now, place: offset, channel: Some(channel), free };
        match self.upstream.iter().position(|sent| sent.seen.is(&waiting.seen)) {
            Some(at) => {
                if let Some(sent) = self.upstream.remove(at) {
                    self.pair(sent, waiting, found);
                }
            }
            None => push(&mut self.log, waiting, found),
        }
    }

    /// Judges what has been alone for too long.
    pub fn judge(&mut self, now: u64, found: &mut Vec<Finding>) {
        let patience = self.within.saturating_mul(PATIENCE);
        let due = |waiting: &Waiting| waiting.at.saturating_add(patience) < now;
        while let Some(alone) = self.upstream.pop_front_if(|waiting| due(waiting)) {
            let kind = if self.knows(&alone.seen) { Kind::Repeated } else { Kind::Lost };
            found.push(Finding { kind, channel: None, seen: alone.seen });
        }
        while let Some(alone) = self.log.pop_front_if(|waiting| due(waiting)) {
            if alone.free {
                continue;
            }
            let kind = if self.knows(&alone.seen) { Kind::Doubled } else { Kind::Extra };
            found.push(Finding { kind, channel: alone.channel, seen: alone.seen });
        }
    }

    /// The stream has ended: what the log has and the old server has not sent yet, it cannot send.
    pub fn end(&mut self) {
        for waiting in &mut self.log {
            waiting.free = true;
        }
    }

    /// Nothing that the old server sent waits any more.
    pub fn is_settled(&self) -> bool {
        self.upstream.is_empty()
    }

    fn knows(&self, seen: &Seen) -> bool {
        self.matched.iter().any(|matched| matched.seen.is(seen))
    }

    fn pair(&mut self, sent: Waiting, log: Waiting, found: &mut Vec<Finding>) {
        let channel = log.channel;
        let mut find = |kind| found.push(Finding { kind, channel, seen: sent.seen.clone() });
        find(Kind::Matched);
        if sent.seen.print != log.seen.print {
            find(Kind::Different);
        }
        if sent.at.saturating_add(self.within) < log.at {
            find(Kind::Late);
        }
        let crosses = |other: &&Match| {
            other.channel == channel && (other.sent < sent.place) != (other.offset < log.place)
        };
        // What was there before the stream began may be sent as the old server likes.
        if !log.free && self.matched.iter().any(|other| crosses(&other)) {
            find(Kind::Reordered);
        }
        if REMEMBERED <= self.matched.len() {
            self.matched.pop_front();
        }
        let (sent, offset) = (sent.place, log.place);
        self.matched.push_back(Match { seen: log.seen, channel, sent, offset });
    }
}

fn push(side: &mut VecDeque<Waiting>, waiting: Waiting, found: &mut Vec<Finding>) {
    if MOST <= side.len()
        && let Some(Waiting { channel, seen, .. }) = side.pop_front()
    {
        found.push(Finding { kind: Kind::Skipped, channel, seen });
    }
    side.push_back(waiting);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const WITHIN: u64 = 100;

    fn seen(print: u64) -> Seen {
        Seen { id: None, print, data: print.to_string() }
    }

    fn named(id: u64, print: u64) -> Seen {
        Seen { id: Some(id.to_string()), ..seen(print) }
    }

    /// What is found, counted, once everything has been judged.
    fn counted(steps: impl IntoIterator<Item = (u64, Step)>) -> BTreeMap<&'static str, usize> {
        let mut comparer = Comparer::new(WITHIN);
        let (mut found, mut last, mut offset) = (Vec::new(), 0, 0);
        for (now, step) in steps {
            comparer.judge(now, &mut found);
            last = last.max(now);
            match step {
                Step::Sent(seen) => comparer.sent(seen, now, &mut found),
                Step::Logged(seen, free) => {
                    offset += 1;
                    comparer.logged((0, offset), seen, (now, free), &mut found);
                }
                Step::End => comparer.end(),
            }
        }
        comparer.judge(last + WITHIN * PATIENCE + 1, &mut found);
        assert!(comparer.is_settled());
        let mut counts = BTreeMap::new();
        for finding in found {
            *counts.entry(finding.kind.as_str()).or_default() += 1;
        }
        counts
    }

    #[derive(Clone, Debug)]
    enum Step {
        Sent(Seen),
        Logged(Seen, bool),
        End,
    }

    fn sent(seen: Seen) -> Step {
        Step::Sent(seen)
    }

    fn logged(seen: Seen) -> Step {
        Step::Logged(seen, false)
    }

    fn is(expected: &[(&'static str, usize)]) -> BTreeMap<&'static str, usize> {
        expected.iter().copied().collect()
    }

    #[test]
    fn equal_events_are_counted_and_not_confused() {
        let steps = [sent(seen(1)), sent(seen(1)), logged(seen(1)), logged(seen(1))];
        assert_eq!(counted(steps.map(|step| (0, step))), is(&[("matched", 2)]));
        let steps = [sent(seen(1)), logged(seen(1)), logged(seen(1))];
        assert_eq!(counted(steps.map(|step| (0, step))), is(&[("matched", 1), ("doubled", 1)]));
        let steps = [sent(seen(1)), sent(seen(1)), logged(seen(1))];
        assert_eq!(counted(steps.map(|step| (0, step))), is(&[("matched", 1), ("repeated", 1)]));
    }

    #[test]
    fn what_only_one_side_has_is_lost_or_extra() {
        let steps = [(0, sent(seen(1))), (0, logged(seen(2)))];
        assert_eq!(counted(steps), is(&[("lost", 1), ("extra", 1)]));
    }

    #[test]
    fn late_is_told_from_lost() {
        let after = |delay| counted([(0, sent(seen(1))), (delay, logged(seen(1)))]);
        assert_eq!(after(WITHIN), is(&[("matched", 1)]));
        assert_eq!(after(WITHIN + 1), is(&[("matched", 1), ("late", 1)]));
        assert_eq!(after(WITHIN * PATIENCE), is(&[("matched", 1), ("late", 1)]));
        assert_eq!(after(WITHIN * PATIENCE + 1), is(&[("lost", 1), ("extra", 1)]));
        // The old server may take its time.
        let first = counted([(0, logged(seen(1))), (WITHIN * 2, sent(seen(1)))]);
        assert_eq!(first, is(&[("matched", 1)]));
    }

    #[test]
    fn the_same_id_with_another_content_is_different() {
        let steps = [(0, sent(named(1, 1))), (0, logged(named(1, 2)))];
        assert_eq!(counted(steps), is(&[("matched", 1), ("different", 1)]));
        let steps = [(0, sent(named(1, 1))), (0, logged(named(2, 1)))];
        assert_eq!(counted(steps), is(&[("lost", 1), ("extra", 1)]));
    }

    #[test]
    fn another_order_is_told() {
        let steps = [sent(seen(1)), sent(seen(2)), logged(seen(2)), logged(seen(1))];
        assert_eq!(counted(steps.map(|step| (0, step))), is(&[("matched", 2), ("reordered", 1)]));
    }

    #[test]
    fn what_was_there_before_or_comes_after_means_nothing() {
        let steps = [
            (0, Step::Logged(seen(1), true)),
            (0, Step::Logged(seen(2), true)),
            (0, sent(seen(2))),
            (0, logged(seen(3))),
            (0, Step::End),
        ];
        assert_eq!(counted(steps), is(&[("matched", 1)]));
    }

    #[test]
    fn no_more_waits_than_is_bounded() {
        let mut comparer = Comparer::new(WITHIN);
        let mut found = Vec::new();
        for print in 0..MOST as u64 + 5 {
            comparer.sent(seen(print), 0, &mut found);
        }
        assert_eq!(found.iter().filter(|found| found.kind == Kind::Skipped).count(), 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Both sides in order, each event at the log's side up to `within` earlier or later.
        #[test]
        fn two_sides_that_agree_match(
            prints in prop::collection::vec(0..5u64, 1..60),
            delays in prop::collection::vec(0..2 * WITHIN, 60),
        ) {
            let (mut steps, mut last) = (Vec::new(), 0);
            for (n, print) in prints.iter().enumerate() {
                let at = 10 * n as u64 + WITHIN;
                last = (at + delays[n] - WITHIN).max(last);
                steps.push((at, 0, sent(seen(*print))));
                steps.push((last.min(at + WITHIN), 1, logged(seen(*print))));
            }
            steps.sort_by_key(|(at, _, _)| *at);
            let counts = counted(steps.into_iter().map(|(at, _, step)| (at, step)));
            prop_assert_eq!(counts, is(&[("matched", prints.len())]));
        }

        /// Some are taken from the log, some put there twice; each is found, and nothing else.
        #[test]
        fn each_loss_and_each_double_is_found(fates in prop::collection::vec(0..3usize, 1..80)) {
            let mut steps = Vec::new();
            for (n, copies) in fates.iter().enumerate() {
                let (at, event) = (n as u64 * 7, named(n as u64, n as u64));
                steps.push((at, sent(event.clone())));
                steps.extend((0..*copies).map(|_| (at, logged(event.clone()))));
            }
            let of = |copies| fates.iter().filter(|fate| **fate == copies).count();
            let expected = [("matched", of(1) + of(2)), ("lost", of(0)), ("doubled", of(2))];
            let expected = expected.into_iter().filter(|(_, n)| 0 < *n).collect::<Vec<_>>();
            prop_assert_eq!(counted(steps), is(&expected));
        }

        /// Any other order of the log is found as one, and as nothing else.
        #[test]
        fn each_other_order_is_found(
            order in Just((0..12u64).collect::<Vec<_>>()).prop_shuffle(),
            log_first: bool,
        ) {
            let sent = (0..12).map(|n| (0, sent(seen(n))));
            let logged = order.iter().map(|n| (0, logged(seen(*n))));
            let counts = if log_first {
                counted(logged.chain(sent))
            } else {
                counted(sent.chain(logged))
            };
            let moved = counts.get("reordered").copied().unwrap_or(0);
            prop_assert_eq!(0 < moved, !order.is_sorted());
            prop_assert_eq!(counts["matched"], 12);
            prop_assert_eq!(counts.keys().filter(|k| !["matched", "reordered"].contains(k)).count(), 0);
        }
    }
}
