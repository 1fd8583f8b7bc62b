//! A validation run: opens the sessions, publishes probes, and compares what both sides receive.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{join, join_all},
    stream,
};
use rand::{Rng as _, seq::IndexedRandom as _};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Outcome, Sides, ValidationError, Validator,
    compare::{Comparison, Counts, ExpectedRange, Side},
    listener::{Listener, Transport},
};
use crate::{
    broker::{Publication, Range},
    lifecycle,
    protocol::{Channel, Data, Draft, MessageId, Position},
    rollout::flag::Component,
};

/// Channel that probes are published to.
const PROBE_CHANNEL: &str = "crossfade-validation";

/// Shortest interval between probes. With many sessions it is longer, so that the deliveries of all
/// sessions stay below `DELIVERIES_PER_SECOND`: a validation must not slow down the delivery to
/// clients.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
const DELIVERIES_PER_SECOND: u32 = 10_000;

/// With more sessions than this, probes larger than 64 KiB are left out.
const LARGE_PROBE_SESSIONS: usize = 20;

/// Time after the last probe for events to arrive.
const GRACE: Duration = Duration::from_secs(5);

/// Sessions that are opened concurrently.
const MAX_CONCURRENT_OPENS: usize = 64;

/// Recorded events: limit over all sessions, and minimum per session.
const MAX_EVENTS: usize = 400_000;
const MIN_EVENTS_PER_SESSION: usize = 100;

/// One in this many events of the new side may be late.
const LATE_ONE_IN: u64 = 100;

/// Two sessions that read the same channel, one per side.
struct Pair {
    channel: Channel,
    old: Result<Listener, String>,
    new: Result<Listener, String>,
}

pub(super) async fn run(
    validator: &Validator,
    component: &Component,
    sample: usize,
    duration: Duration,
) -> Result<Outcome, ValidationError> {
    let probes: Channel =
        PROBE_CHANNEL.parse().map_err(|err| ValidationError::Failed(format!("{err}")))?;
    let channels = choose_channels(validator, &probes, sample);
    let starts = heads(validator, &channels).await?;
    let max_events = (MAX_EVENTS / (2 * sample)).max(MIN_EVENTS_PER_SESSION);
    let started = Instant::now();
    let opening = channels.into_iter().map(|channel| {
        let start = starts[&channel];
        async move {
            let open = |transport| {
                let channel = &channel;
                async move {
                    let ticket = validator.auth.issue_ticket();
                    let (connector, limits) = (&validator.connector, (started, max_events));
                    let position = (channel, start);
                    Box::pin(Listener::open(connector, transport, position, &ticket, limits)).await
                }
            };
            let (old, new) = join(open(Transport::Sse), open(Transport::WebSocket)).await;
            Pair { channel, old, new }
        }
    });
    let mut pairs: Vec<Pair> =
        stream::iter(opening).buffer_unordered(MAX_CONCURRENT_OPENS).collect().await;
    let opened = pairs.iter().any(|pair| pair.old.is_ok() || pair.new.is_ok());
    if !opened {
        let reason = pairs.iter().find_map(|pair| pair.new.as_ref().err()).cloned();
        let reason = reason.unwrap_or_default();
        let address = validator.connector.address;
        return Err(ValidationError::Failed(format!("no session opened at {address}: {reason}")));
    }
    let all_open_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let deadline = Instant::now() + duration;
    let no_ends = HashMap::new();
    let listening = listen(&mut pairs, deadline, &no_ends);
    let publishing = publish(validator, &probes, deadline, sample);
    let (known, ()) = join(publishing, listening).await;
    let ends = heads(validator, starts.keys()).await?;
    listen(&mut pairs, Instant::now() + GRACE, &ends).await;

    let mut comparison = Comparison::default();
    for pair in &pairs {
        let (start, end) = (starts[&pair.channel], ends[&pair.channel]);
        let full =
            [&pair.old, &pair.new].into_iter().flatten().filter_map(Listener::full_at_offset).min();
        let until = if start.epoch == end.epoch { end.offset } else { u64::MAX };
        let range = ExpectedRange {
            channel: &pair.channel,
            after: start.offset,
            until: full.map_or(until, |full| until.min(full)),
            started: all_open_ms,
            known: if pair.channel == probes { &known } else { &[] },
        };
        compare_pair(&mut comparison, &range, pair);
    }
    let node = validator.node.name().to_string();
    Ok(outcome(component, (&pairs, node, duration), comparison))
}

/// The channels of the sessions: half read probes, the others channels with readers on this node.
fn choose_channels(validator: &Validator, probes: &Channel, sample: usize) -> Vec<Channel> {
    let mut active = validator.node.reader_counts();
    active
        .retain(|(channel, readers)| *readers != 0 && !channel.is_reserved() && channel != probes);
    let mut rng = rand::rng();
    let active_sessions = if active.is_empty() { 0 } else { sample / 2 };
    // Every active channel is used once before any is used again.
    let first =
        active.choose_multiple(&mut rng, active_sessions).map(|(channel, _)| channel.clone());
    let mut chosen: Vec<Channel> = first.collect();
    while chosen.len() < active_sessions {
        let index = rng.random_range(0..active.len());
        chosen.push(active[index].0.clone());
    }
    chosen.resize(sample, probes.clone());
    chosen
}

/// The current head of each channel's log.
async fn heads<'a>(
    validator: &Validator,
    channels: impl IntoIterator<Item = &'a Channel>,
) -> Result<HashMap<Channel, Position>, ValidationError> {
    let mut heads = HashMap::new();
    for channel in channels {
        if let Entry::Vacant(vacant) = heads.entry(channel.clone()) {
            let slice = validator.node.read(channel, Range::Until(u64::MAX), 1).await?;
            vacant.insert(Position::new(slice.epoch, slice.head));
        }
    }
    Ok(heads)
}

/// Publishes probes until the deadline. Returns the offsets of those that were accepted.
async fn publish(
    validator: &Validator,
    channel: &Channel,
    deadline: Instant,
    sample: usize,
) -> Vec<u64> {
    let deliveries = u32::try_from(2 * sample).unwrap_or(u32::MAX);
    let min_interval = Duration::from_secs(1) * deliveries / DELIVERIES_PER_SECOND;
    let mut tick = interval(min_interval.max(PROBE_INTERVAL));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut offsets = Vec::new();
    let mut number = 0_u64;
    while tick.tick().await < deadline {
        number += 1;
        // Each of these lengths gives a WebSocket frame with another header size.
        let padding = "x".repeat(match number % 20 {
            15 if sample <= LARGE_PROBE_SESSIONS => 70_000,
            5 | 15 => 200,
            _ => 8,
        });
        let data = serde_json::json!({ "probe": number, "padding": padding });
        let Ok(data) = Data::json(&data.to_string()) else { continue };
        let draft = Draft { id: MessageId::generate(), name: None, data };
        let publication = Publication { channel: channel.clone(), draft };
        let receipts = validator.node.publish(vec![publication]).await;
        offsets.extend(receipts.into_iter().flatten().map(|receipt| receipt.position.offset));
    }
    offsets
}

async fn listen(pairs: &mut [Pair], deadline: Instant, ends: &HashMap<Channel, Position>) {
    let listeners = pairs.iter_mut().flat_map(|Pair { channel, old, new }| {
        let end = ends.get(channel).map(|end| end.offset);
        let sessions = [old, new].into_iter().flatten();
        sessions.map(move |listener| Box::pin(listener.listen(deadline, end)))
    });
    join_all(listeners).await;
}

fn compare_pair(comparison: &mut Comparison, range: &ExpectedRange<'_>, pair: &Pair) {
    for (side, session) in [(Side::Old, &pair.old), (Side::New, &pair.new)] {
        let counts = comparison.side(side);
        match session {
            Ok(listener) => {
                counts.resets += listener.resets;
                counts.broken += u64::from(listener.ended.is_some());
            }
            Err(_) => counts.broken += 1,
        }
    }
    // A session that never opened counts as broken, not as missing every event.
    if let (Ok(old), Ok(new)) = (&pair.old, &pair.new) {
        comparison.compare(range, &old.received, &new.received);
    }
}

fn outcome(
    component: &Component,
    (pairs, node, duration): (&[Pair], String, Duration),
    comparison: Comparison,
) -> Outcome {
    let Comparison { events, old, new, different, examples } = comparison;
    let sum = |count: fn(&Counts) -> u64| count(&old) + count(&new);
    let mut outcome = Outcome {
        component: component.clone(),
        phase: None,
        at: lifecycle::unix_ms(),
        node,
        seconds: duration.as_secs(),
        sessions: pairs.len(),
        events,
        missing: sum(|counts| counts.missing),
        duplicated: sum(|counts| counts.duplicated),
        reordered: sum(|counts| counts.reordered),
        late: sum(|counts| counts.late),
        different,
        sides: Sides { old, new },
        passed: false,
        summary: String::new(),
        examples,
    };
    let reason = pairs.iter().flat_map(|pair| [&pair.new, &pair.old]).find_map(|side| match side {
        Ok(listener) => listener.ended.clone(),
        Err(reason) => Some(reason.clone()),
    });
    let problems = problems(&outcome, reason.as_deref());
    let Outcome { sessions, seconds, .. } = outcome;
    let scope = format!("{events} events in {sessions} sessions per side over {seconds} s");
    outcome.passed = problems.is_empty() && events != 0;
    outcome.summary = if !problems.is_empty() {
        format!("the sides deliver different events: {}; of {scope}", problems.join(", "))
    } else if events == 0 {
        "no event arrived on either side, so nothing was compared: check the broker".to_owned()
    } else {
        format!("both sides delivered the same {scope}")
    };
    outcome
}

/// Descriptions of the discrepancies, for the summary.
fn problems(outcome: &Outcome, reason: Option<&str>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, counts) in [("SSE", &outcome.sides.old), ("WebSocket", &outcome.sides.new)] {
        for (count, description) in [
            (counts.broken, "sessions could not be opened or ended early"),
            (counts.missing, "events missing"),
            (counts.duplicated, "events duplicated"),
            (counts.reordered, "events out of order"),
        ] {
            if count != 0 {
                problems.push(format!("{count} {description} on {name}"));
            }
        }
    }
    if outcome.different != 0 {
        problems.push(format!("{} events different", outcome.different));
    }
    // Compared with the old side: a slow machine is late on both, and a slow old side is no reason
    // to stay there.
    let late = outcome.sides.new.late.saturating_sub(outcome.sides.old.late);
    if outcome.events < late * LATE_ONE_IN {
        problems.push(format!("{late} more events late on WebSocket than on SSE"));
    }
    let broken = outcome.sides.old.broken + outcome.sides.new.broken;
    if let Some(reason) = reason.filter(|_| broken != 0) {
        problems.push(format!("first error: {reason}"));
    }
    problems
}
