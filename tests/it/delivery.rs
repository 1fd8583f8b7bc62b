//! What is published reaches the subscribers, whatever carries it: once, in order, and again after
//! a break.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    client::{Sse, Ws},
    eventually::soon,
    gateway::{Api, TestGateway},
    spawn,
};

#[tokio::test]
async fn a_returning_client_receives_what_it_missed_once_and_in_order() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut ana = Ws::open(gateway.addr).await;
    ana.subscribe("news", None).await;
    api.publish("news", 1).await;
    let left_at = ana.expect("event").await["position"].as_str().unwrap().to_owned();
    drop(ana);

    api.publish("news", 2).await;
    api.publish("news", 3).await;

    let mut ana = Ws::open(gateway.addr).await;
    let subscribed = ana.subscribe("news", Some(&left_at)).await;
    assert_eq!(subscribed["recovered"], true);
    ana.expect_data([2, 3]).await;
    api.publish("news", 4).await;
    ana.expect_data([4]).await;
}

#[tokio::test]
async fn an_event_source_that_never_received_an_event_still_misses_nothing() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let ben = Sse::open(gateway.addr, "channel=a&channel=b").await;
    let last_id = ben.last_id.clone();
    drop(ben);

    api.publish("a", 1).await;
    api.publish("b", 2).await;
    api.publish("a", 3).await;

    let mut ben =
        Sse::try_open(gateway.addr, "channel=a&channel=b", last_id.as_deref()).await.unwrap();
    assert_eq!(ben.next().await.event.as_deref(), Some("open"));
    let mut got = Vec::new();
    for _ in 0..3 {
        let event = ben.next().await.json();
        got.push((event["channel"].as_str().unwrap().to_owned(), event["data"].as_i64().unwrap()));
    }
    got.sort();
    assert_eq!(got, [("a".into(), 1), ("a".into(), 3), ("b".into(), 2)]);
}

#[tokio::test]
async fn both_transports_tell_the_same_story() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    let mut sse = Sse::open(gateway.addr, "channel=news").await;
    let odd = ["null", "\"line\\nbreak \\u0000 é 😀\"", "{ \"a\" :\r\n [1, 2.50] }", "1e3"];
    for (n, data) in odd.iter().enumerate() {
        let name = if n % 2 == 0 { "\"name\":\"created é\"," } else { "" };
        let body = format!("{{\"channel\":\"news\",{name}\"data\":{data}}}");
        assert_eq!(api.post("/api/publish", body).await.0, 200);
    }
    for _ in odd {
        let mut on_ws = ws.expect("event").await;
        let block = sse.next().await;
        let mut on_sse = block.json();
        assert_eq!(block.id.as_deref(), on_ws["position"].as_str());
        // On SSE the name stands on the `event:` line, and the type is that it is no control frame.
        if let Some(name) = block.event {
            on_sse["name"] = name.into();
        }
        on_sse["type"] = "event".into();
        assert_eq!(on_ws.take(), on_sse);
    }
}

#[tokio::test]
async fn raw_format_gives_a_pages_own_data_and_nothing_else() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut page = Sse::open(gateway.addr, "channel=news&format=raw").await;
    api.publish("news", json!({ "total": 9 })).await;
    let block = page.next().await;
    assert_eq!((block.event, block.data.as_str()), (None, "{\"total\":9}"));
}

#[tokio::test]
async fn a_position_the_log_no_longer_reaches_is_reset_not_guessed() {
    let gateway = TestGateway::with(|config| {
        config.channels.get_mut("default").unwrap().history_events = Some(5);
        config.node.ring_events = std::num::NonZeroUsize::new(4).unwrap();
    })
    .await;
    let api = Api::of(gateway.addr);
    let first = api.publish("news", 1).await;
    for n in 2..=20 {
        api.publish("news", n).await;
    }
    for (since, reason) in [(first.as_str(), "expired"), ("zzz-7", "epoch")] {
        let mut ws = Ws::open(gateway.addr).await;
        assert_eq!(ws.subscribe("news", Some(since)).await["recovered"], false);
        let reset = ws.expect("reset").await;
        assert_eq!(reset["reason"], reason);
        let query = format!("channel=news&since={since}");
        let mut sse = Sse::open(gateway.addr, &query).await;
        let block = sse.next().await;
        assert_eq!(block.event.as_deref(), Some("crossfade.reset"));
        assert_eq!(block.json()["position"], reset["position"]);
        assert_eq!(block.id.as_deref(), reset["position"].as_str());
    }
    // Still within the log: nothing is lost, though the ring is smaller.
    let epoch = first.split('-').next().unwrap();
    let mut ws = Ws::open(gateway.addr).await;
    let subscribed = ws.subscribe("news", Some(&format!("{epoch}-15"))).await;
    assert_eq!(subscribed["recovered"], true);
    ws.expect_data([16, 17, 18, 19, 20]).await;
}

#[tokio::test]
async fn a_client_may_subscribe_leave_publish_and_read_history() {
    let gateway = TestGateway::start().await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    let publish = json!({
        "type": "publish", "id": 2, "channel": "news", "name": "n", "data": 1, "message_id": "m1",
    });
    ws.send(publish.clone()).await;
    ws.send(publish).await;
    let mut frames: Vec<Value> = Vec::new();
    for _ in 0..3 {
        frames.push(ws.next().await);
    }
    let published: Vec<_> = frames.iter().filter(|frame| frame["type"] == "published").collect();
    assert_eq!(
        (&published[0]["duplicate"], &published[1]["duplicate"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(published[0]["position"], published[1]["position"]);
    let events: Vec<_> = frames.iter().filter(|frame| frame["type"] == "event").collect();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["id"], &events[0]["name"]), (&json!("m1"), &json!("n")));

    ws.send(json!({ "type": "history", "id": 3, "channel": "news" })).await;
    let history = ws.expect("history").await;
    assert_eq!(history["events"][0]["id"], "m1");
    assert_eq!(history["complete"], true);

    ws.send(json!({ "type": "unsubscribe", "id": 4, "channel": "news" })).await;
    assert_eq!(ws.expect("unsubscribed").await["id"], 4);
    Api::of(gateway.addr).publish("news", 2).await;
    ws.subscribe("other", None).await;
    Api::of(gateway.addr).publish("other", 3).await;
    ws.expect_data([3]).await;
}

#[tokio::test]
async fn an_sse_session_speaks_by_post_what_a_websocket_speaks_by_frame() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut sse = Sse::try_open(gateway.addr, "channel=a", None).await.unwrap();
    let session = sse.next().await.json()["session"].as_str().unwrap().to_owned();
    let path = format!("/events/{session}");
    let (status, reply, _) = api.post(&path, r#"{"type":"subscribe","id":1,"channel":"b"}"#).await;
    assert_eq!(
        (status, &reply["type"], &reply["channel"]),
        (200, &json!("subscribed"), &json!("b"))
    );
    let frames = json!([
        { "type": "publish", "id": 2, "channel": "b", "data": 5 },
        { "type": "subscribe", "id": 3, "channel": "b" },
        { "type": "pong" },
    ]);
    let (_, replies, _) = api.post(&path, frames).await;
    assert_eq!(replies[0]["type"], "published");
    assert_eq!(replies[1]["code"], "already_subscribed");
    assert_eq!(replies.as_array().unwrap().len(), 2);
    let block = sse.next().await;
    assert_eq!(block.json()["data"], 5);
    // From now on the stream stands in two channels, and says so.
    assert_eq!(block.id.unwrap().matches('~').count(), 2);
    let nobody = "/events/00000000-0000-4000-8000-000000000000";
    let (status, error, _) = api.post(nobody, r#"{"type":"pong"}"#).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("session_unknown")));
}

#[tokio::test]
async fn the_same_channel_asked_for_many_times_at_once_is_subscribed_to_once() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut ana = Sse::try_open(gateway.addr, "channel=lobby", None).await.unwrap();
    let session = ana.next().await.json()["session"].as_str().unwrap().to_owned();
    let path = format!("/events/{session}");
    let ask = || api.post(&path, json!({"type": "subscribe", "channel": "news"}));
    let answers = futures_util::future::join_all((0..16).map(|_| ask())).await;
    let subscribed = answers.iter().filter(|(_, body, _)| body["type"] == "subscribed").count();
    assert_eq!(subscribed, 1, "{answers:?}");
    api.publish("news", 1).await;
    api.publish("news", 2).await;
    ana.expect_data([1, 2]).await;
}

#[tokio::test]
async fn a_stream_that_left_a_channel_comes_back_by_its_old_address() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let query = "channel=a&channel=b";
    let mut ana = Sse::try_open(gateway.addr, query, None).await.unwrap();
    let session = ana.next().await.json()["session"].as_str().unwrap().to_owned();
    let leave = json!({"type": "unsubscribe", "channel": "b"});
    assert_eq!(api.post(&format!("/events/{session}"), leave).await.0, 200);
    api.publish("a", 1).await;
    ana.expect_data([1]).await;
    api.publish("a", 2).await;
    let mut back = Sse::try_open(gateway.addr, query, ana.last_id.as_deref()).await.unwrap();
    back.next().await;
    back.expect_data([2]).await;
}

#[tokio::test]
async fn publishing_to_several_channels_and_in_batches_answers_for_each() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let several = r#"{"channels":["a","b"],"id":"m","data":1}"#;
    let (status, answer, _) = api.post("/api/publish", several).await;
    assert_eq!((status, answer["results"].as_array().unwrap().len()), (200, 2));
    let batch = r#"{"events":[
        {"channel":"a","id":"m","data":2}, {"channel":"a b","data":3}, {"channel":"a","data":4},
        {"channel":"a"}, 7
    ]}"#;
    let (status, answer, _) = api.post("/api/publish/batch", batch).await;
    assert_eq!(status, 200);
    assert_eq!(answer["results"][0]["duplicate"], true);
    assert_eq!(answer["results"][1]["error"]["code"], "channel_invalid");
    assert_eq!(answer["results"][2]["duplicate"], false);
    assert_eq!(answer["results"][3]["error"]["code"], "malformed");
    assert_eq!(answer["results"][4]["error"]["code"], "malformed");
    let (_, history) = api.get("/api/channels/a/history").await;
    let data: Vec<_> = history["events"].as_array().unwrap().iter().map(|e| &e["data"]).collect();
    assert_eq!(data, [&json!(1), &json!(4)]);
}

#[tokio::test]
async fn history_is_paged_in_both_directions() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    for n in 1..=5 {
        api.publish("a/b:c", n).await;
    }
    let path = "/api/channels/a%2Fb:c/history";
    let data = |page: &Value| -> Vec<i64> {
        page["events"].as_array().unwrap().iter().map(|e| e["data"].as_i64().unwrap()).collect()
    };
    let (_, page) = api.get(&format!("{path}?limit=2")).await;
    assert_eq!((data(&page), &page["complete"]), (vec![1, 2], &json!(false)));
    let since = page["events"][1]["position"].as_str().unwrap();
    let (_, page) = api.get(&format!("{path}?since={since}")).await;
    assert_eq!((data(&page), &page["complete"]), (vec![3, 4, 5], &json!(true)));
    let (_, page) = api.get(&format!("{path}?reverse=true&limit=2")).await;
    assert_eq!((data(&page), &page["complete"]), (vec![5, 4], &json!(false)));
    let since = page["events"][1]["position"].as_str().unwrap();
    let (_, page) = api.get(&format!("{path}?reverse=true&since={since}")).await;
    assert_eq!((data(&page), &page["complete"]), (vec![3, 2, 1], &json!(true)));
}

#[tokio::test]
async fn the_list_of_channels_is_paged_and_counts_subscribers() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut ws = Ws::open(gateway.addr).await;
    for channel in ["orders:1", "orders:2", "orders:3", "news"] {
        ws.subscribe(channel, None).await;
    }
    let _sse = Sse::open(gateway.addr, "channel=orders:2").await;
    let (_, page) = api.get("/api/channels?prefix=orders:&limit=2").await;
    assert_eq!(page["channels"][0], json!({ "channel": "orders:1", "subscribers": 1 }));
    assert_eq!(page["channels"][1], json!({ "channel": "orders:2", "subscribers": 2 }));
    let (_, page) = api.get("/api/channels?prefix=orders:&cursor=orders:2").await;
    assert_eq!(page["channels"].as_array().unwrap().len(), 1);
    assert_eq!(page["cursor"], Value::Null);
}

#[tokio::test]
async fn a_crowd_of_readers_gets_all_of_a_rapid_channel() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let mut readers = Vec::new();
    for _ in 0..200 {
        let mut ws = Ws::open(gateway.addr).await;
        ws.subscribe("news", None).await;
        readers.push(ws);
    }
    let reading = readers.into_iter().map(|mut ws| {
        spawn(async move {
            for n in 1..=500 {
                assert_eq!(ws.expect("event").await["data"], n);
            }
        })
    });
    let reading: Vec<_> = reading.collect();
    for chunk in 0..50 {
        let events: Vec<_> =
            (1..=10).map(|n| json!({ "channel": "news", "data": chunk * 10 + n })).collect();
        api.post("/api/publish/batch", json!({ "events": events })).await;
    }
    for reader in reading {
        soon("a reader has all of it", reader).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_carried_calls_before_becomes_a_stream() {
    let gateway = TestGateway::start().await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let body = r#"{"channel":"news","data":1}"#;
    for _ in 0..2 {
        let len = body.len();
        let call = format!(
            "POST /api/publish HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n\r\n"
        );
        socket.write_all(format!("{call}{body}").as_bytes()).await.unwrap();
        read_until(&mut socket, "\"duplicate\":false}").await;
    }
    socket
        .write_all(b"GET /events?channel=news HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut socket, "event: open").await;
    Api::of(gateway.addr).publish("news", "after").await;
    read_until(&mut socket, "\"after\"").await;
}

#[tokio::test]
async fn a_frame_sent_right_behind_the_handshake_is_heard() {
    let gateway = TestGateway::start().await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let text = br#"{"type":"subscribe","channel":"news"}"#;
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend([0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0]);
    bytes.extend(text);
    socket.write_all(&bytes).await.unwrap();
    read_until(&mut socket, "subscribed").await;
}

async fn read_until(socket: &mut TcpStream, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let len = soon(format!("{text} comes"), socket.read_buf(&mut seen)).await.unwrap();
        assert_ne!(len, 0, "the gateway hung up after {}", String::from_utf8_lossy(&seen));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_with_an_id_of_another_server_is_reset_and_goes_on() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    api.publish("news", 1).await;
    for last in ["42", "1733052000000-0", "zzzz-1", "news~z-1,"] {
        let mut sse = Sse::try_open(gateway.addr, "channel=news", Some(last)).await.unwrap();
        let open = sse.next().await;
        assert_eq!(open.event.as_deref(), Some("open"), "{last}");
        let reset = sse.next().await;
        assert_eq!(reset.event.as_deref(), Some("crossfade.reset"), "{last}");
        assert_eq!(reset.json()["reason"], "epoch", "{last}");
        let position = reset.json()["position"].as_str().unwrap().to_owned();
        assert_eq!((reset.id, sse.last_id.clone()), (Some(position.clone()), Some(position)));
        api.publish("news", 2).await;
        assert_eq!(sse.next().await.json()["data"], 2, "{last}");
    }
}
