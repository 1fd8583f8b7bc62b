use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn tally(more: &str) -> MessageSequence {
    let text = format!(
        "url = \"redis://h\"\npatterns = [\"room.*\", \"*.42\"]\nchannel = \"room:{{1}}\"\n{more}"
    );
    let config: TakeInConfig = toml::from_str(&text).unwrap();
    let bounds = Bounds { event_bytes: 100, bells: Some("crossfade".to_owned()) };
    MessageSequence::new(Ingest::new(&config, bounds))
}

fn hear(tally: &mut MessageSequence, channel: &'static str, payload: &str) -> Verdict {
    tally.message(b"room.*", Bytes::from_static(channel.as_bytes()), payload.as_bytes())
}

fn done(mark: &str) -> Holder<'_> {
    Holder { done: Some(mark), since: None }
}

fn ids(tally: &mut MessageSequence) -> Vec<String> {
    let (_, batch) = tally.next(usize::MAX, true);
    batch.into_iter().map(|publication| publication.draft.id.to_string()).collect()
}

#[test]
fn equal_payloads_are_as_many_messages_as_were_sent_and_the_same_on_every_node() {
    let mut nodes = [tally(""), tally("")];
    for node in &mut nodes {
        node.mark("a.1", Holder::default());
        assert_eq!(hear(node, "room.1", "1"), Verdict::Kept);
        assert_eq!(hear(node, "room.1", "1"), Verdict::Kept);
        node.mark("b.1", Holder::default());
        assert_eq!(hear(node, "room.1", "1"), Verdict::Kept);
    }
    let [one, other] = nodes.each_mut().map(ids);
    assert_eq!(one, other);
    assert_eq!(one.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(one.iter().all(|id| id.starts_with(MADE_ID)));
}

#[test]
fn who_did_not_hear_everything_since_a_mark_waits_for_the_next() {
    let mut tally = tally("");
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Unnumbered);
    tally.mark("a.1", Holder::default());
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Kept);
    tally.interrupted();
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Unnumbered);
    assert_eq!(ids(&mut tally).len(), 1, "what it heard before stays");
}

#[test]
fn a_message_said_for_two_patterns_is_one_and_the_gateways_own_is_none() {
    let mut tally = tally("");
    tally.mark("a.1", Holder::default());
    let said = |tally: &mut MessageSequence, pattern: &[u8], channel: &'static str| {
        tally.message(pattern, Bytes::from_static(channel.as_bytes()), b"1")
    };
    assert_eq!(said(&mut tally, b"room.*", "room.42"), Verdict::Kept);
    assert_eq!(said(&mut tally, b"*.42", "room.42"), Verdict::NotMeant);
    assert_eq!(said(&mut tally, b"*.42", "other.42"), Verdict::Kept);
    assert_eq!(said(&mut tally, b"*", "crossfade-legacy:marks"), Verdict::NotMeant);
    assert_eq!(said(&mut tally, b"*", "crossfade:{room:1}"), Verdict::NotMeant);
    let (_, batch) = tally.next(9, true);
    let channels: Vec<_> = batch.iter().map(|p| p.channel.as_str()).collect();
    assert_eq!(channels, ["room:42", "room:other"]);
}

#[test]
fn an_id_and_a_name_of_the_publishers_own_are_used() {
    let mut tally = tally("id = \"meta.id\"\nname = \"kind\"");
    tally.mark("a.1", Holder::default());
    hear(&mut tally, "room.1", r#"{"meta":{"id":"m1"},"kind":"tick"}"#);
    hear(&mut tally, "room.1", r#"{"meta":{"id":"has space"},"kind":"open"}"#);
    hear(&mut tally, "room.1", "hello");
    let (_, batch) = tally.next(9, true);
    assert_eq!(batch[0].draft.id.as_str(), "m1");
    assert_eq!(batch[0].draft.name.as_ref().unwrap().as_str(), "tick");
    assert!(batch[1].draft.id.as_str().starts_with(MADE_ID) && batch[1].draft.name.is_none());
    assert!(batch[2].draft.id.as_str().starts_with(TEXT_ID));
    assert_eq!(batch[2].draft.data.as_str(), "\"hello\"");
}

#[test]
fn a_copy_is_recognised_once() {
    let mut tally = tally("");
    tally.mark("a.1", Holder::default());
    tally.copied(Bytes::from_static(b"room.1"));
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Copy);
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Kept);
    tally.copied(Bytes::from_static(b"elsewhere"));
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Kept);
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Kept);
}

#[test]
fn what_can_be_no_event_is_refused() {
    let mut tally = tally("");
    tally.mark("a.1", Holder::default());
    assert_eq!(hear(&mut tally, "room.a b", "1"), Verdict::Refused("channel"));
    assert_eq!(hear(&mut tally, "room.1", &"x".repeat(101)), Verdict::Refused("size"));
}

#[test]
fn who_stands_by_drops_what_the_holder_has_written() {
    let mut tally = tally("");
    tally.mark("a.1", Holder::default());
    hear(&mut tally, "room.1", "1");
    tally.mark("a.2", Holder::default());
    hear(&mut tally, "room.1", "2");
    tally.mark("a.3", done("a.2"));
    let (_, batch) = tally.next(9, true);
    assert_eq!(batch.iter().map(|p| p.draft.data.as_str()).collect::<Vec<_>>(), ["2"]);
    assert_eq!(tally.done().map(|mark| &**mark), Some("a.2"));
    tally.mark("a.4", done("of another life"));
    assert_eq!(ids(&mut tally).len(), 1);
}

#[test]
fn what_the_holder_did_not_hear_is_written_by_who_did() {
    let [mut senior, mut newcomer] = [tally(""), tally("")];
    senior.mark("a.1", Holder::default());
    hear(&mut senior, "room.1", "1");
    for node in [&mut senior, &mut newcomer] {
        node.mark("b.1", Holder::default());
        hear(node, "room.1", "2");
    }
    assert_eq!(newcomer.since().map(|mark| &**mark), Some("b.1"));
    let (upto, batch) = newcomer.next(9, true);
    assert_eq!(batch.len(), 1);
    newcomer.written(upto);
    let says = Holder { done: Some("b.1"), since: Some("b.1") };
    senior.mark("b.2", says);
    let (upto, batch) = senior.next(9, false);
    assert_eq!(batch.iter().map(|p| p.draft.data.as_str()).collect::<Vec<_>>(), ["1"]);
    senior.written(upto);
    assert_eq!(senior.next(9, false).1.len(), 0);
    senior.mark("b.3", Holder { done: Some("b.2"), since: Some("b.1") });
    assert_eq!(senior.len(), 0);
}

#[test]
fn the_oldest_go_when_too_much_waits() {
    let mut tally = tally("backlog_bytes = 2000");
    tally.mark("a.1", Holder::default());
    for _ in 0..100 {
        hear(&mut tally, "room.1", "1");
    }
    let kept = ids(&mut tally).len() as u64;
    assert!(0 < kept && kept < 100, "{kept}");
    assert_eq!(tally.overflown(), 100 - kept);
    assert_eq!(tally.overflown(), 0);
}

/// What happens to two nodes that hear the same.
#[derive(Clone, Debug)]
enum Step {
    Message(u8),
    Mark,
    /// The holder writes so many.
    Write(usize),
    /// It is gone; the other one takes over.
    HandOver,
    /// The one that does not hold begins anew.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8).prop_map(Step::Message),
        2 => Just(Step::Mark),
        2 => (0..6usize).prop_map(Step::Write),
        1 => Just(Step::HandOver),
        1 => Just(Step::Restart),
    ]
}

/// Two nodes and the log that they write.
struct World {
    nodes: [MessageSequence; 2],
    holder: usize,
    marks: u32,
    log: Vec<(String, String)>,
}

impl World {
    fn write(&mut self, node: usize, most: usize) -> u64 {
        let (upto, batch) = self.nodes[node].next(most, node == self.holder);
        for Publication { draft, .. } in batch {
            let (id, data) = (draft.id.to_string(), draft.data.as_str().to_owned());
            // The broker's own dedup.
            if self.log.iter().all(|(known, _)| *known != id) {
                self.log.push((id, data));
            }
        }
        upto
    }

    fn mark(&mut self) {
        self.marks += 1;
        let mark = format!("m{}", self.marks);
        let (done, since) = {
            let holder = &self.nodes[self.holder];
            (holder.done().cloned(), holder.since().cloned())
        };
        let says = Holder { done: done.as_deref(), since: since.as_deref() };
        self.nodes.iter_mut().for_each(|node| node.mark(&mark, says));
        // What the holder did not hear, the other one writes.
        let other = 1 - self.holder;
        let upto = self.write(other, usize::MAX);
        self.nodes[other].written(upto);
    }
}

proptest! {
    /// Whoever writes when, and whatever of it the other writes again: each message is once in the
    /// log; and in order, unless one took over that had not heard what the other still had to write.
    #[test]
    fn each_message_is_once_in_the_log(steps in prop::collection::vec(step(), 0..80)) {
        let (mut sent, mut restarted) = (Vec::new(), false);
        let mut world =
            World { nodes: [tally(""), tally("")], holder: 0, marks: 0, log: Vec::new() };
        world.mark();
        for step in steps {
            match step {
                Step::Message(n) => {
                    let payload = n.to_string();
                    world.nodes.iter_mut().for_each(|node| { hear(node, "room.1", &payload); });
                    sent.push(payload);
                }
                Step::Mark => world.mark(),
                Step::Write(most) => {
                    let upto = world.write(world.holder, most);
                    world.nodes[world.holder].written(upto);
                }
                Step::HandOver => {
                    // It ends after it wrote and before it noted so.
                    world.write(world.holder, 3);
                    world.holder = 1 - world.holder;
                    world.mark();
                }
                Step::Restart => {
                    world.nodes[1 - world.holder] = tally("");
                    world.mark();
                    restarted = true;
                }
            }
        }
        world.write(world.holder, usize::MAX);
        world.mark();
        let mut written: Vec<_> = world.log.into_iter().map(|(_, data)| data).collect();
        if restarted {
            written.sort();
            sent.sort();
        }
        prop_assert_eq!(written, sent);
    }
}
