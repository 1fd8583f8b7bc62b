//! What goes over the wire, as files in protocol/fixtures that the clients' tests read too.

use std::{fs, sync::Arc};

use axum::http::HeaderMap;
use bytes::Bytes;
use crossfade::{
    protocol::{
        Channel, ClientFrame, CloseCode, Data, ErrorCode, Event, Left, Member, MemberId, Position,
        Positions, PresenceFrame, ServerFrame, SessionId,
        channel::CHANNEL_LEN_MAX,
        frame::{Page, PageEvent, ResetReason},
    },
    wire::{Handshake, StreamWire as _, WireFormat, sse, websocket},
};
use serde_json::{Map, Value, json};

const TIME: u64 = 1_763_692_800_000;

fn fixture(name: &str) -> Value {
    let path = format!("{}/protocol/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn channel_names() {
    let names = fixture("channels");
    for good in texts(&names["good"]) {
        assert!(good.parse::<Channel>().is_ok(), "{good}");
    }
    for bad in texts(&names["bad"]) {
        assert!(bad.parse::<Channel>().is_err(), "{bad}");
    }
    assert_eq!(names["longest"], CHANNEL_LEN_MAX);
}

#[test]
fn positions() {
    let positions = fixture("positions");
    for good in positions["good"].as_array().unwrap() {
        let position: Position = good["text"].as_str().unwrap().parse().unwrap();
        assert_eq!(json!(position.epoch.to_string()), good["epoch"]);
        assert_eq!(json!(position.offset), good["offset"]);
        assert_eq!(json!(position), good["text"]);
    }
    for bad in texts(&positions["bad"]) {
        assert!(bad.parse::<Position>().is_err(), "{bad}");
    }
    for stream in positions["streams"].as_array().unwrap() {
        let places: Positions = stream["text"].as_str().unwrap().parse().unwrap();
        for (channel, position) in stream["positions"].as_object().unwrap() {
            assert_eq!(json!(places.of(&channel.parse().unwrap())), *position);
        }
        assert_eq!(json!(places.to_string()), stream["text"]);
    }
}

#[test]
fn close_codes() {
    let row = |code: CloseCode| json!({ "code": code.number(), "reason": code.as_str(), "reconnect": code.reconnect() });
    assert_eq!(fixture("closes"), json!(CloseCode::ALL.map(row)));
}

#[test]
fn what_clients_say_is_understood() {
    let (single, story) = (fixture("client-frames"), fixture("story"));
    let all = single.as_object().unwrap().iter().chain(story["client"].as_object().unwrap());
    for (name, frame) in all {
        let parsed = ClientFrame::parse(&frame.to_string()).unwrap();
        assert_eq!(json!(parsed.id()), frame["id"], "{name}");
        assert_eq!(frame["type"] == "report", matches!(parsed, ClientFrame::Report { .. }));
    }
}

#[test]
fn what_the_gateway_says_is_written_so() {
    let fixtures = fixture("server-frames");
    for (name, expected) in fixtures.as_object().unwrap() {
        let (frame, sse) = written(name);
        let member = MemberId::of(session()).to_string();
        let expected = expected.to_string().replace("MEMBER", &member);
        let expected: Map<String, Value> = serde_json::from_str(&expected).unwrap();
        assert_eq!(frame, expected["frame"], "{name}");
        if let Some(text) = expected.get("sse") {
            assert_eq!(json!(sse), *text, "{name}");
        }
    }
}

fn session() -> SessionId {
    "00000000-0000-4000-8000-000000000001".parse().unwrap()
}

/// The frame of this name as a WebSocket carries it, and as a stream does.
fn written(name: &str) -> (Value, String) {
    match name {
        "event" => event(Some("created"), r#"{"total":9}"#),
        "event unnamed" => event(None, "null"),
        _ => {
            let frame = frame(name);
            (serde_json::to_value(&frame).unwrap(), text(&sse_reply(&frame)))
        }
    }
}

/// A frame as a stream that stands at one position carries it.
fn sse_reply(frame: &ServerFrame) -> Bytes {
    let (uri, headers) = ("/events?channel=a".parse().unwrap(), HeaderMap::new());
    let request = Handshake { uri: &uri, headers: &headers, subscriptions: 1 };
    let (mut conversation, _) = sse::Crossfade.open(request).unwrap();
    let positions = || Positions::One("k3f9-17".parse().unwrap());
    conversation.replies.frame(frame, &positions)
}

fn event(name: Option<&str>, data: &str) -> (Value, String) {
    let event = Event {
        id: "m1".parse().unwrap(),
        name: name.map(|name| name.parse().unwrap()),
        data: Data::json(data).unwrap(),
        time: TIME,
    };
    let channel = "orders:42".parse().unwrap();
    let written =
        |format: WireFormat| format.codec.event(&channel, "k3f9-18".parse().unwrap(), &event).bytes;
    let websocket = text(&written(websocket::TEXT)[2..]);
    let json = &websocket[websocket.find('{').unwrap()..];
    (serde_json::from_str(json).unwrap(), text(&written(sse::ENVELOPE)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn frame(name: &str) -> ServerFrame {
    let channel: Channel = "orders:42".parse().unwrap();
    let at = |text: &str| text.parse::<Position>().unwrap();
    match name {
        "welcome" => ServerFrame::Welcome {
            id: None,
            session: session(),
            member: MemberId::of(session()),
            node: Arc::from("n1"),
            heartbeat: 25_000,
            time: TIME,
            version: 1,
        },
        "subscribed" => subscribed(None),
        "subscribed with members" => subscribed(Some(all())),
        "unsubscribed" => ServerFrame::Unsubscribed { id: Some(3), channel, code: None },
        "taken away" => {
            ServerFrame::Unsubscribed { id: None, channel, code: Some(ErrorCode::Forbidden) }
        }
        "expiring" => ServerFrame::Expiring { within: 30_000 },
        "presence" => ServerFrame::Presence { channel, frame: Box::new(changes()) },
        "presence counted" => {
            let news = PresenceFrame { count: 4711, ..PresenceFrame::default() };
            ServerFrame::Presence { channel, frame: Box::new(news) }
        }
        "shown" => {
            let session = Some("00112233445566778899".parse().unwrap());
            ServerFrame::Shown { id: Some(6), channel, session }
        }
        "reset" => {
            ServerFrame::Reset { channel, position: at("k3f9-17"), reason: ResetReason::Expired }
        }
        "published" => ServerFrame::Published {
            id: Some(4),
            message_id: "m1".parse().unwrap(),
            position: at("k3f9-18"),
            duplicate: false,
        },
        "history" => ServerFrame::History { id: Some(5), page: page() },
        "goodbye" => ServerFrame::goodbye(CloseCode::Draining, 1200),
        "ping" => ServerFrame::Ping { time: TIME },
        "error" => ServerFrame::Error {
            id: Some(2),
            code: ErrorCode::ChannelInvalid,
            message: "a channel name has at least one character".to_owned(),
        },
        other => panic!("no frame is called {other:?}: build it here"),
    }
}

fn all() -> PresenceFrame {
    let ann = Member {
        user: Some("ann".parse().unwrap()),
        info: Some(Data::json(r#"{"name":"Ann"}"#).unwrap()),
        ..member("00112233445566778899", r#"{"at":3}"#)
    };
    PresenceFrame { members: Some(vec![Arc::new(ann)]), count: 1, ..PresenceFrame::default() }
}

fn changes() -> PresenceFrame {
    PresenceFrame {
        members: None,
        joined: vec![Arc::new(member("00112233445566778899", "1"))],
        updated: vec![Arc::new(member("11112233445566778899", "2"))],
        left: vec![Left { session: "22112233445566778899".parse().unwrap() }],
        count: 2,
    }
}

fn page() -> Page {
    let event = PageEvent {
        id: "m1".parse().unwrap(),
        name: Some("created".parse().unwrap()),
        data: Data::json(r#"{"total":9}"#).unwrap(),
        position: "k3f9-18".parse().unwrap(),
        time: TIME,
    };
    Page {
        channel: "orders:42".parse().unwrap(),
        events: vec![event],
        position: "k3f9-18".parse().unwrap(),
        complete: true,
    }
}

fn subscribed(presence: Option<PresenceFrame>) -> ServerFrame {
    ServerFrame::Subscribed {
        id: Some(2),
        channel: "orders:42".parse().unwrap(),
        position: "k3f9-17".parse().unwrap(),
        recovered: true,
        presence: presence.map(Box::new),
    }
}

fn member(session: &str, state: &str) -> Member {
    Member {
        session: session.parse().unwrap(),
        user: None,
        info: None,
        state: Some(Data::json(state).unwrap()),
        since: TIME,
    }
}
