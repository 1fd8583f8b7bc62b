use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn tally(more: &str) -> Tally {
    let text = format!(
        "url = \"redis://h\"\npatterns = [\"room.*\", \"*.42\"]\nchannel = \"room:{{1}}\"\n{more}"
    );
    let config: TakeInConfig = toml::from_str(&text).unwrap();
    let bounds = Bounds { event_bytes: 100, bells: Some("crossfade".to_owned()) };
    Tally::new(Taking::new(&config, bounds))
}

fn hear(tally: &mut Tally, channel: &'static str, payload: &str) -> Verdict {
    tally.message(b"room.*", Bytes::from_static(channel.as_bytes()), payload.as_bytes())
}

fn ids(tally: &mut Tally) -> Vec<String> {
    let (_, batch) = tally.next(usize::MAX);
    batch.into_iter().map(|publication| publication.draft.id.to_string()).collect()
}

#[test]
fn equal_payloads_are_as_many_messages_as_were_sent_and_the_same_on_every_node() {
    let mut nodes = [tally(""), tally("")];
    for node in &mut nodes {
        node.mark("a.1", None);
        assert_eq!(hear(node, "room.1", "1"), Verdict::Kept);
        assert_eq!(hear(node, "room.1", "1"), Verdict::Kept);
        node.mark("b.1", None);
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
    tally.mark("a.1", None);
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Kept);
    tally.interrupted();
    assert_eq!(hear(&mut tally, "room.1", "1"), Verdict::Unnumbered);
    assert_eq!(ids(&mut tally).len(), 1, "what it heard before stays");
}

#[test]
fn a_message_said_for_two_patterns_is_one_and_the_gateways_own_is_none() {
    let mut tally = tally("");
    tally.mark("a.1", None);
    let said = |tally: &mut Tally, pattern: &[u8], channel: &'static str| {
        tally.message(pattern, Bytes::from_static(channel.as_bytes()), b"1")
    };
    assert_eq!(said(&mut tally, b"room.*", "room.42"), Verdict::Kept);
    assert_eq!(said(&mut tally, b"*.42", "room.42"), Verdict::NotMeant);
    assert_eq!(said(&mut tally, b"*.42", "other.42"), Verdict::Kept);
    assert_eq!(said(&mut tally, b"*", "crossfade-legacy:marks"), Verdict::NotMeant);
    assert_eq!(said(&mut tally, b"*", "crossfade:{room:1}"), Verdict::NotMeant);
    let (_, batch) = tally.next(9);
    let channels: Vec<_> = batch.iter().map(|p| p.channel.as_str()).collect();
    assert_eq!(channels, ["room:42", "room:other"]);
}

#[test]
fn an_id_and_a_name_of_the_publishers_own_are_used() {
    let mut tally = tally("id = \"meta.id\"\nname = \"kind\"");
    tally.mark("a.1", None);
    hear(&mut tally, "room.1", r#"{"meta":{"id":"m1"},"kind":"tick"}"#);
    hear(&mut tally, "room.1", r#"{"meta":{"id":"has space"},"kind":"open"}"#);
    hear(&mut tally, "room.1", "hello");
    let (_, batch) = tally.next(9);
    assert_eq!(batch[0].draft.id.as_str(), "m1");
    assert_eq!(batch[0].draft.name.as_ref().unwrap().as_str(), "tick");
    assert!(batch[1].draft.id.as_str().starts_with(MADE_ID) && batch[1].draft.name.is_none());
    assert!(batch[2].draft.id.as_str().starts_with(TEXT_ID));
    assert_eq!(batch[2].draft.data.as_str(), "\"hello\"");
}

#[test]
fn a_copy_is_recognised_once() {
    let mut tally = tally("");
    tally.mark("a.1", None);
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
    tally.mark("a.1", None);
    assert_eq!(hear(&mut tally, "room.a b", "1"), Verdict::Refused("channel"));
    assert_eq!(hear(&mut tally, "room.1", &"x".repeat(101)), Verdict::Refused("size"));
}

#[test]
fn who_stands_by_drops_what_the_holder_has_written() {
    let mut tally = tally("");
    tally.mark("a.1", None);
    hear(&mut tally, "room.1", "1");
    tally.mark("a.2", None);
    hear(&mut tally, "room.1", "2");
    tally.mark("a.3", Some("a.2"));
    let (_, batch) = tally.next(9);
    assert_eq!(batch.iter().map(|p| p.draft.data.as_str()).collect::<Vec<_>>(), ["2"]);
    assert_eq!(tally.done().map(|mark| &**mark), Some("a.2"));
    tally.mark("a.4", Some("of another life"));
    assert_eq!(ids(&mut tally).len(), 1);
}

#[test]
fn the_oldest_go_when_too_much_waits() {
    let mut tally = tally("backlog_bytes = 2000");
    tally.mark("a.1", None);
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
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3u8).prop_map(Step::Message),
        2 => Just(Step::Mark),
        2 => (0..6usize).prop_map(Step::Write),
        1 => Just(Step::HandOver),
    ]
}

proptest! {
    /// Whoever writes when, and whatever of it the other writes again: each message is once in the
    /// log, in order.
    #[test]
    fn each_message_is_once_in_the_log(steps in prop::collection::vec(step(), 0..80)) {
        let mut nodes = [tally(""), tally("")];
        let (mut holder, mut marks) = (0, 0);
        let (mut sent, mut log): (Vec<String>, Vec<(String, String)>) = Default::default();
        let mut write = |node: &mut Tally, most: usize| {
            let (upto, batch) = node.next(most);
            for Publication { draft, .. } in batch {
                let (id, data) = (draft.id.to_string(), draft.data.as_str().to_owned());
                // The broker's own dedup.
                if log.iter().all(|(known, _)| *known != id) {
                    log.push((id, data));
                }
            }
            upto
        };
        nodes.iter_mut().for_each(|node| node.mark("first", None));
        for step in steps {
            match step {
                Step::Message(n) => {
                    let payload = n.to_string();
                    nodes.iter_mut().for_each(|node| { hear(node, "room.1", &payload); });
                    sent.push(payload);
                }
                Step::Mark => {
                    marks += 1;
                    let done = nodes[holder].done().cloned();
                    nodes.iter_mut().for_each(|node| node.mark(&format!("m{marks}"), done.as_deref()));
                }
                Step::Write(most) => {
                    let upto = write(&mut nodes[holder], most);
                    nodes[holder].written(upto);
                }
                Step::HandOver => {
                    // It dies after it wrote and before it noted so.
                    write(&mut nodes[holder], 3);
                    holder = 1 - holder;
                }
            }
        }
        write(&mut nodes[holder], usize::MAX);
        let written: Vec<_> = log.into_iter().map(|(_, data)| data).collect();
        prop_assert_eq!(written, sent);
    }
}
