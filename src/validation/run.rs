//! One run: opens the sessions, publishes probes, listens, and judges.

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
    compare::{Counts, ExpectedRange, Findings, Side},
    listener::{Listener, Transport},
};
use crate::{
    broker::{Publication, Range},
    lifecycle,
    protocol::{Channel, Data, Draft, MessageId, Position},
    rollout::flag::Component,
};

/// The channel of the probes.
const PROBES: &str = "crossfade-validation";

/// How often one is published, at the most: with many sessions less often, so that all of them
/// together get about so many a second. A trial must not crowd out those who are served.
const PROBE_EVERY: Duration = Duration::from_millis(50);
const DELIVERIES_PER_SECOND: u32 = 10_000;

/// With more sessions there are no probes of more than 64 KiB.
const LARGE_PROBES: usize = 20;

/// How long both sides may take for what was published to the end.
const GRACE: Duration = Duration::from_secs(5);

/// Sessions opened at once.
const AT_ONCE: usize = 64;

/// Events that are written down over all sessions, and of one at the least.
const EVENTS: usize = 400_000;
const EVENTS_OF_ONE: usize = 100;

/// Of the new side's events so many may be late: one in this.
const LATE_ONE_IN: u64 = 100;

/// A session of both sides.
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
        PROBES.parse().map_err(|err| ValidationError::Failed(format!("{err}")))?;
    let channels = choose(validator, &probes, sample);
    let starts = heads(validator, &channels).await?;
    let room = (EVENTS / (2 * sample)).max(EVENTS_OF_ONE);
    let begun = Instant::now();
    let opening = channels.into_iter().map(|channel| {
        let start = starts[&channel];
        async move {
            let open = |transport| {
                let channel = &channel;
                async move {
                    let pass = validator.auth.pass();
                    let place = (channel, start);
                    let (door, pace) = (&validator.door, (begun, room));
                    Box::pin(Listener::open(door, transport, place, &pass, pace)).await
                }
            };
            let (old, new) = join(open(Transport::Sse), open(Transport::WebSocket)).await;
            Pair { channel, old, new }
        }
    });
    let mut pairs: Vec<Pair> = stream::iter(opening).buffer_unordered(AT_ONCE).collect().await;
    let opened = pairs.iter().any(|pair| pair.old.is_ok() || pair.new.is_ok());
    if !opened {
        let why = pairs.iter().find_map(|pair| pair.new.as_ref().err()).cloned();
        let why = why.unwrap_or_default();
        let address = validator.door.address;
        return Err(ValidationError::Failed(format!("no session opened at {address}: {why}")));
    }
    let all_there = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let until = Instant::now() + duration;
    let no_end = HashMap::new();
    let listening = listen(&mut pairs, until, &no_end);
    let publishing = publish(validator, &probes, until, sample);
    let (known, ()) = join(publishing, listening).await;
    let ends = heads(validator, starts.keys()).await?;
    listen(&mut pairs, Instant::now() + GRACE, &ends).await;

    let mut findings = Findings::default();
    for pair in &pairs {
        let (start, end) = (starts[&pair.channel], ends[&pair.channel]);
        let full = [&pair.old, &pair.new].into_iter().flatten().filter_map(Listener::full_at).min();
        let until = if start.epoch == end.epoch { end.offset } else { u64::MAX };
        let span = ExpectedRange {
            channel: &pair.channel,
            after: start.offset,
            until: full.map_or(until, |full| until.min(full)),
            begun: all_there,
            known: if pair.channel == probes { &known } else { &[] },
        };
        judge_pair(&mut findings, &span, pair);
    }
    let node = validator.node.name().to_string();
    Ok(outcome(component, (&pairs, node, duration), findings))
}

/// Half of the sessions read the probes, the others what is read here at the moment.
fn choose(validator: &Validator, probes: &Channel, sample: usize) -> Vec<Channel> {
    let mut active = validator.node.occupied();
    active
        .retain(|(channel, readers)| *readers != 0 && !channel.is_reserved() && channel != probes);
    let mut rng = rand::rng();
    let of_others = if active.is_empty() { 0 } else { sample / 2 };
    // Each channel once before any is taken again.
    let first = active.choose_multiple(&mut rng, of_others).map(|(channel, _)| channel.clone());
    let mut chosen: Vec<Channel> = first.collect();
    while chosen.len() < of_others {
        let any = rng.random_range(0..active.len());
        chosen.push(active[any].0.clone());
    }
    chosen.resize(sample, probes.clone());
    chosen
}

/// Where the logs stand.
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

/// Publishes probes until a moment. The offsets of those that were taken.
async fn publish(
    validator: &Validator,
    channel: &Channel,
    until: Instant,
    sample: usize,
) -> Vec<u64> {
    let deliveries = u32::try_from(2 * sample).unwrap_or(u32::MAX);
    let pace = Duration::from_secs(1) * deliveries / DELIVERIES_PER_SECOND;
    let mut tick = interval(pace.max(PROBE_EVERY));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut offsets = Vec::new();
    let mut number = 0_u64;
    while tick.tick().await < until {
        number += 1;
        // A frame's head is another for each of these lengths.
        let filling = "x".repeat(match number % 20 {
            15 if sample <= LARGE_PROBES => 70_000,
            5 | 15 => 200,
            _ => 8,
        });
        let data = serde_json::json!({ "probe": number, "filling": filling });
        let Ok(data) = Data::json(&data.to_string()) else { continue };
        let draft = Draft { id: MessageId::generate(), name: None, data };
        let publication = Publication { channel: channel.clone(), draft };
        let receipts = validator.node.publish(vec![publication]).await;
        offsets.extend(receipts.into_iter().flatten().map(|receipt| receipt.position.offset));
    }
    offsets
}

async fn listen(pairs: &mut [Pair], until: Instant, ends: &HashMap<Channel, Position>) {
    let listeners = pairs.iter_mut().flat_map(|Pair { channel, old, new }| {
        let end = ends.get(channel).map(|end| end.offset);
        [old, new].into_iter().flatten().map(move |listener| Box::pin(listener.listen(until, end)))
    });
    join_all(listeners).await;
}

fn judge_pair(findings: &mut Findings, span: &ExpectedRange<'_>, pair: &Pair) {
    for (which, side) in [(Side::Old, &pair.old), (Side::New, &pair.new)] {
        let counts = findings.side(which);
        match side {
            Ok(listener) => {
                counts.resets += listener.resets;
                counts.broken += u64::from(listener.ended.is_some());
            }
            Err(_) => counts.broken += 1,
        }
    }
    // One that was never there has not missed anything: it counts as broken.
    if let (Ok(old), Ok(new)) = (&pair.old, &pair.new) {
        findings.compare(span, &old.seen, &new.seen);
    }
}

fn outcome(
    component: &Component,
    (pairs, node, duration): (&[Pair], String, Duration),
    findings: Findings,
) -> Outcome {
    let Findings { events, old, new, different, examples } = findings;
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
        sentence: String::new(),
        examples,
    };
    let why = pairs.iter().flat_map(|pair| [&pair.new, &pair.old]).find_map(|side| match side {
        Ok(listener) => listener.ended.clone(),
        Err(reason) => Some(reason.clone()),
    });
    let faults = faults(&outcome, why.as_deref());
    let Outcome { sessions, seconds, .. } = outcome;
    let over = format!("{events} events in {sessions} sessions a side over {seconds} s");
    outcome.passed = faults.is_empty() && events != 0;
    outcome.sentence = if !faults.is_empty() {
        format!("both sides do not deliver the same: {}; of {over}", faults.join(", "))
    } else if events == 0 {
        "nothing came on either side, so nothing can be compared: is the broker there?".to_owned()
    } else {
        format!("both sides delivered the same {over}")
    };
    outcome
}

/// What is wrong, in words.
fn faults(outcome: &Outcome, why: Option<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, counts) in [("SSE", &outcome.sides.old), ("WebSocket", &outcome.sides.new)] {
        for (count, words) in [
            (counts.broken, "sessions could not be opened or ended early"),
            (counts.missing, "events missing"),
            (counts.duplicated, "events doubled"),
            (counts.reordered, "events out of order"),
        ] {
            if count != 0 {
                faults.push(format!("{count} {words} on {name}"));
            }
        }
    }
    if outcome.different != 0 {
        faults.push(format!("{} events different", outcome.different));
    }
    // A machine that is slow itself is late on both sides, and an old side that is slow is no reason
    // to stay there.
    let late = outcome.sides.new.late.saturating_sub(outcome.sides.old.late);
    if outcome.events < late * LATE_ONE_IN {
        faults.push(format!("{late} events more late on WebSocket than on SSE"));
    }
    let broken = outcome.sides.old.broken + outcome.sides.new.broken;
    if let Some(why) = why.filter(|_| broken != 0) {
        faults.push(format!("the first reason was: {why}"));
    }
    faults
}
