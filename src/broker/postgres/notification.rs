//! What a bell says: a NOTIFY payload, as `append.sql` writes it.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    broker::{Entry, Incoming},
    protocol::{Channel, Data, Epoch, Event, EventName, MessageId, Position},
};

#[derive(Deserialize)]
#[serde(untagged)]
enum Notification {
    Entry(Channel, u64, u64, MessageId, Option<EventName>, String, u64),
    Head(Channel, u64, u64),
}

/// The news in a payload, in its order. What a stranger may have sent is left out.
pub(super) fn news(payload: &str) -> Vec<Incoming> {
    let notes: Vec<&RawValue> = serde_json::from_str(payload).unwrap_or_default();
    notes
        .into_iter()
        .filter_map(|note| serde_json::from_str(note.get()).ok())
        .map(incoming)
        .collect()
}

fn incoming(note: Notification) -> Incoming {
    match note {
        Notification::Entry(channel, epoch, offset, id, name, data, time) => {
            let position = Position::new(Epoch::new(epoch), offset);
            let event = Event { id, name, data: Data::lenient(&data), time };
            Incoming::Entry(Entry { channel, position, event })
        }
        Notification::Head(channel, epoch, offset) => {
            Incoming::Head { channel, position: Position::new(Epoch::new(epoch), offset) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_heads_are_told_apart_and_nonsense_is_left_out() {
        let payload = r#"[["news",7,3,"id",null,"[1, 2]",99], 5, ["a b",1,1], ["news",7,4]]"#;
        let [Incoming::Entry(entry), Incoming::Head { position, .. }] = &news(payload)[..] else {
            panic!("{:?}", news(payload));
        };
        assert_eq!((entry.position.offset, entry.event.data.as_str()), (3, "[1, 2]"));
        assert_eq!(*position, Position::new(Epoch::new(7), 4));
        assert!(news("").is_empty());
    }
}
