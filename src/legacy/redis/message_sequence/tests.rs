use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn sequence(more: &str) -> MessageSequence {
    let text = format!(
        "url = \"redis://h\"\npatterns = [\"room.*\", \"*.42\"]\nchannel = \"room:{{1}}\"\n{more}"
    );
    let config: IngestConfig = toml::from_str(&text).unwrap();
    let settings =
        GatewaySettings { event_bytes: 100, broker_prefix: Some("crossfade".to_owned()) };
    MessageSequence::new(MessageMapper::new(&config, settings))
}

fn receive(sequence: &mut MessageSequence, channel: &'static str, payload: &str) -> MessageOutcome {
    sequence.message(b"room.*", Bytes::from_static(channel.as_bytes()), payload.as_bytes())
}

fn written(mark: &str) -> HolderProgress<'_> {
    HolderProgress { written: Some(mark), since: None }
}

fn ids(sequence: &mut MessageSequence) -> Vec<String> {
    let (_, batch) = sequence.next_batch(usize::MAX, true);
    batch.into_iter().map(|publication| publication.draft.id.to_string()).collect()
}

fn payloads(batch: &[Publication]) -> Vec<&str> {
    batch.iter().map(|publication| publication.draft.data.as_str()).collect()
}

#[test]
fn equal_payloads_get_distinct_ids_that_all_nodes_agree_on() {
    let mut nodes = [sequence(""), sequence("")];
    for node in &mut nodes {
        node.mark("a.1", HolderProgress::default());
        assert_eq!(receive(node, "room.1", "1"), MessageOutcome::Queued);
        assert_eq!(receive(node, "room.1", "1"), MessageOutcome::Queued);
        node.mark("b.1", HolderProgress::default());
        assert_eq!(receive(node, "room.1", "1"), MessageOutcome::Queued);
    }
    let [one, other] = nodes.each_mut().map(ids);
    assert_eq!(one, other);
    assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(one.iter().all(|id| id.starts_with(MADE_ID)));
}

#[test]
fn messages_before_the_first_mark_or_after_an_interruption_are_not_queued() {
    let mut sequence = sequence("");
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::TooEarly);
    sequence.mark("a.1", HolderProgress::default());
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::Queued);
    sequence.interrupted();
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::TooEarly);
    assert_eq!(ids(&mut sequence).len(), 1, "an interruption keeps the backlog");
}

#[test]
fn duplicate_pattern_matches_and_gateway_channels_are_ignored() {
    let mut sequence = sequence("");
    sequence.mark("a.1", HolderProgress::default());
    let receive_for = |sequence: &mut MessageSequence, pattern: &[u8], channel: &'static str| {
        sequence.message(pattern, Bytes::from_static(channel.as_bytes()), b"1")
    };
    assert_eq!(receive_for(&mut sequence, b"room.*", "room.42"), MessageOutcome::Queued);
    assert_eq!(receive_for(&mut sequence, b"*.42", "room.42"), MessageOutcome::Ignored);
    assert_eq!(receive_for(&mut sequence, b"*.42", "other.42"), MessageOutcome::Queued);
    assert_eq!(receive_for(&mut sequence, b"*", "crossfade-legacy:marks"), MessageOutcome::Ignored);
    assert_eq!(receive_for(&mut sequence, b"*", "crossfade:{room:1}"), MessageOutcome::Ignored);
    let (_, batch) = sequence.next_batch(9, true);
    let channels: Vec<_> = batch.iter().map(|p| p.channel.as_str()).collect();
    assert_eq!(channels, ["room:42", "room:other"]);
}

#[test]
fn id_and_name_of_the_payload_are_used_if_valid() {
    let mut sequence = sequence("id = \"meta.id\"\nname = \"kind\"");
    sequence.mark("a.1", HolderProgress::default());
    receive(&mut sequence, "room.1", r#"{"meta":{"id":"m1"},"kind":"tick"}"#);
    receive(&mut sequence, "room.1", r#"{"meta":{"id":"has space"},"kind":"open"}"#);
    receive(&mut sequence, "room.1", "hello");
    let (_, batch) = sequence.next_batch(9, true);
    assert_eq!(batch[0].draft.id.as_str(), "m1");
    assert_eq!(batch[0].draft.name.as_ref().unwrap().as_str(), "tick");
    assert!(batch[1].draft.id.as_str().starts_with(MADE_ID) && batch[1].draft.name.is_none());
    assert!(batch[2].draft.id.as_str().starts_with(TEXT_ID));
    assert_eq!(batch[2].draft.data.as_str(), "\"hello\"");
}

#[test]
fn a_republished_message_is_recognised_once() {
    let mut sequence = sequence("");
    sequence.mark("a.1", HolderProgress::default());
    sequence.expect_republished(Bytes::from_static(b"room.1"));
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::Republished);
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::Queued);
    sequence.expect_republished(Bytes::from_static(b"elsewhere"));
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::Queued);
    assert_eq!(receive(&mut sequence, "room.1", "1"), MessageOutcome::Queued);
}

#[test]
fn invalid_channels_and_oversized_payloads_are_refused() {
    let mut sequence = sequence("");
    sequence.mark("a.1", HolderProgress::default());
    assert_eq!(receive(&mut sequence, "room.a b", "1"), MessageOutcome::Refused("channel"));
    let oversized = "x".repeat(101);
    assert_eq!(receive(&mut sequence, "room.1", &oversized), MessageOutcome::Refused("size"));
}

#[test]
fn a_standby_discards_what_the_holder_has_written() {
    let mut sequence = sequence("");
    sequence.mark("a.1", HolderProgress::default());
    receive(&mut sequence, "room.1", "1");
    sequence.mark("a.2", HolderProgress::default());
    receive(&mut sequence, "room.1", "2");
    sequence.mark("a.3", written("a.2"));
    let (_, batch) = sequence.next_batch(9, true);
    assert_eq!(payloads(&batch), ["2"]);
    assert_eq!(sequence.written_mark().map(|mark| &**mark), Some("a.2"));
    sequence.mark("a.4", written("unknown mark"));
    assert_eq!(ids(&mut sequence).len(), 1);
}

#[test]
fn a_standby_writes_what_the_holder_did_not_receive() {
    let [mut standby, mut holder] = [sequence(""), sequence("")];
    standby.mark("a.1", HolderProgress::default());
    receive(&mut standby, "room.1", "1");
    for node in [&mut standby, &mut holder] {
        node.mark("b.1", HolderProgress::default());
        receive(node, "room.1", "2");
    }
    assert_eq!(holder.since_mark().map(|mark| &**mark), Some("b.1"));
    let (end, batch) = holder.next_batch(9, true);
    assert_eq!(batch.len(), 1);
    holder.discard_written(end);
    standby.mark("b.2", HolderProgress { written: Some("b.1"), since: Some("b.1") });
    let (end, batch) = standby.next_batch(9, false);
    assert_eq!(payloads(&batch), ["1"]);
    standby.discard_written(end);
    assert_eq!(standby.next_batch(9, false).1.len(), 0);
    standby.mark("b.3", HolderProgress { written: Some("b.2"), since: Some("b.1") });
    assert_eq!(standby.len(), 0);
}

#[test]
fn the_oldest_messages_are_dropped_beyond_backlog_bytes() {
    let mut sequence = sequence("backlog_bytes = 2000");
    sequence.mark("a.1", HolderProgress::default());
    for _ in 0..100 {
        receive(&mut sequence, "room.1", "1");
    }
    let kept = ids(&mut sequence).len() as u64;
    assert!(0 < kept && kept < 100, "{kept}");
    assert_eq!(sequence.take_dropped(), 100 - kept);
    assert_eq!(sequence.take_dropped(), 0);
}

/// A step of a simulation with two nodes that receive the same messages.
#[derive(Clone, Debug)]
enum Step {
    Message(u8),
    Mark,
    /// The holder writes up to this many messages.
    Write(usize),
    /// The holder dies and the other node takes the lease.
    Failover,
    /// The standby restarts with an empty backlog.
    RestartStandby,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8).prop_map(Step::Message),
        2 => Just(Step::Mark),
        2 => (0..6usize).prop_map(Step::Write),
        1 => Just(Step::Failover),
        1 => Just(Step::RestartStandby),
    ]
}

/// Two nodes and the deduplicated log that they write to.
struct Simulation {
    nodes: [MessageSequence; 2],
    holder: usize,
    marks: u32,
    log: Vec<(String, String)>,
}

impl Simulation {
    fn write(&mut self, node: usize, limit: usize) -> u64 {
        let (end, batch) = self.nodes[node].next_batch(limit, node == self.holder);
        for Publication { draft, .. } in batch {
            let (id, data) = (draft.id.to_string(), draft.data.as_str().to_owned());
            // The broker deduplicates by id.
            if self.log.iter().all(|(known, _)| *known != id) {
                self.log.push((id, data));
            }
        }
        end
    }

    fn mark(&mut self) {
        self.marks += 1;
        let mark = format!("m{}", self.marks);
        let (written, since) = {
            let holder = &self.nodes[self.holder];
            (holder.written_mark().cloned(), holder.since_mark().cloned())
        };
        let progress = HolderProgress { written: written.as_deref(), since: since.as_deref() };
        self.nodes.iter_mut().for_each(|node| node.mark(&mark, progress));
        // The standby writes what the holder did not receive.
        let standby = 1 - self.holder;
        let end = self.write(standby, usize::MAX);
        self.nodes[standby].discard_written(end);
    }
}

proptest! {
    /// Each message is in the log once, whichever node writes it and however often. The order is
    /// kept, unless a restarted node takes over that had not received what the other still had to
    /// write.
    #[test]
    fn each_message_is_in_the_log_once(steps in prop::collection::vec(step(), 0..80)) {
        let (mut published, mut restarted) = (Vec::new(), false);
        let mut simulation =
            Simulation { nodes: [sequence(""), sequence("")], holder: 0, marks: 0, log: Vec::new() };
        simulation.mark();
        for step in steps {
            match step {
                Step::Message(n) => {
                    let payload = n.to_string();
                    for node in &mut simulation.nodes {
                        receive(node, "room.1", &payload);
                    }
                    published.push(payload);
                }
                Step::Mark => simulation.mark(),
                Step::Write(limit) => {
                    let end = simulation.write(simulation.holder, limit);
                    simulation.nodes[simulation.holder].discard_written(end);
                }
                Step::Failover => {
                    // The holder dies after it appended and before it recorded that.
                    simulation.write(simulation.holder, 3);
                    simulation.holder = 1 - simulation.holder;
                    simulation.mark();
                }
                Step::RestartStandby => {
                    simulation.nodes[1 - simulation.holder] = sequence("");
                    simulation.mark();
                    restarted = true;
                }
            }
        }
        simulation.write(simulation.holder, usize::MAX);
        simulation.mark();
        let mut written: Vec<_> = simulation.log.into_iter().map(|(_, data)| data).collect();
        if restarted {
            written.sort();
            published.sort();
        }
        prop_assert_eq!(written, published);
    }
}
