//! What is wrong gets a clear error or close code, and has no effect on anybody else.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

use crate::support::{
    client::Ws,
    eventually::soon,
    gateway::{Api, TestGateway},
    spawn,
};

#[tokio::test]
async fn a_frame_that_is_none_is_closed_with_the_code_that_says_why() {
    let gateway = TestGateway::start().await;
    let mut witness = Ws::open(gateway.addr).await;
    witness.subscribe("news", None).await;
    let close = |code: u16| CloseFrame { code: code.into(), reason: "".into() };
    for (message, code) in [
        (Message::text("{"), "4000"),
        (Message::text("[]"), "4000"),
        (Message::text(""), "4000"),
        (Message::binary(&b"{}"[..]), "4000"),
        (Message::text("x".repeat(400_000)), "1009"),
        (Message::Close(Some(close(1000))), "1000"),
    ] {
        let mut ws = Ws::open(gateway.addr).await;
        ws.send_raw(message.clone()).await;
        assert_eq!(ws.closed().await, code, "{message:?}");
    }
    Api::of(gateway.addr).publish("news", 1).await;
    witness.expect_data([1]).await;
}

#[tokio::test]
async fn bytes_that_break_the_framing_are_closed_not_waited_for() {
    let gateway = TestGateway::start().await;
    // A head of 2^62 bytes, an unmasked frame, a reserved opcode, a stray continuation, text that is
    // no UTF-8: each with the close code that answers it.
    let huge = [0x81, 0xFF, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    for (bytes, code) in [
        (&huge[..], 1009_u16),
        (&[0x81, 0x01, b'x'][..], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0][..], 1002),
        (&[0x80, 0x80, 0, 0, 0, 0][..], 1002),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xFF][..], 1007),
    ] {
        let mut socket = shaken(&gateway).await;
        socket.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        soon("the gateway closes", socket.read_to_end(&mut answer)).await.unwrap();
        let close = answer.windows(4).rev().find(|w| w[0] == 0x88).unwrap();
        assert_eq!(u16::from_be_bytes([close[2], close[3]]), code, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_is_refused_and_the_connection_goes_on() {
    let gateway = TestGateway::with(|config| config.limits.subscriptions = 1).await;
    let mut ws = Ws::open(gateway.addr).await;
    ws.subscribe("news", None).await;
    for (frame, code) in [
        (json!({ "type": "dance", "id": 9 }), "unknown_type"),
        (json!({ "type": "subscribe", "id": 9, "channel": "a b" }), "channel_invalid"),
        (json!({ "type": "subscribe", "id": 9 }), "channel_invalid"),
        (json!({ "type": "subscribe", "id": 9, "channel": "a", "since": "7" }), "position_invalid"),
        (json!({ "type": "subscribe", "id": 9, "channel": "news" }), "already_subscribed"),
        (json!({ "type": "subscribe", "id": 9, "channel": "more" }), "limit_exceeded"),
        (json!({ "type": "unsubscribe", "id": 9, "channel": "more" }), "not_subscribed"),
        (json!({ "type": "publish", "id": 9, "channel": "news" }), "malformed"),
        (
            json!({ "type": "publish", "id": 9, "channel": "news", "name": "open", "data": 1 }),
            "name_invalid",
        ),
        (
            json!({ "type": "publish", "id": 9, "channel": "news", "message_id": "", "data": 1 }),
            "id_invalid",
        ),
        (
            json!({ "type": "publish", "id": 9, "channel": "news", "data": "x".repeat(300_000) }),
            "too_large",
        ),
        (json!({ "type": "connect", "id": 9 }), "malformed"),
    ] {
        ws.send(frame.clone()).await;
        let error = ws.expect("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!(9), &json!(code)), "{frame}");
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    Api::of(gateway.addr).publish("news", 1).await;
    ws.expect_data([1]).await;
}

#[tokio::test]
async fn a_call_that_cannot_be_is_refused_with_status_code_and_reason() {
    let gateway = TestGateway::with(|config| config.limits.batch_events = 2).await;
    let api = Api::of(gateway.addr);
    let big = format!("{{\"channel\":\"a\",\"data\":\"{}\"}}", "x".repeat(300_000));
    let huge = "x".repeat(9 << 20);
    let three = r#"{"events":[{"channel":"a","data":1},{"channel":"a","data":1},{"channel":"a","data":1}]}"#;
    for (path, body, status, code) in [
        ("/api/publish", "", 400, "malformed"),
        ("/api/publish", "{\"channel\":\"a\"", 400, "malformed"),
        ("/api/publish", "{\"channel\":\"a\"}", 400, "malformed"),
        ("/api/publish", "{\"data\":1}", 400, "channel_invalid"),
        (
            "/api/publish",
            "{\"channel\":\"a\",\"channels\":[\"b\"],\"data\":1}",
            400,
            "channel_invalid",
        ),
        ("/api/publish", "{\"channel\":\"ä\",\"data\":1}", 400, "channel_invalid"),
        ("/api/publish", "{\"channel\":\"a\",\"id\":\"x y\",\"data\":1}", 400, "id_invalid"),
        ("/api/publish", "{\"channel\":\"a\",\"name\":\"error\",\"data\":1}", 400, "name_invalid"),
        ("/api/publish", "{\"channel\":\"a\",\"event\":\"x\",\"data\":1}", 400, "malformed"),
        ("/api/publish", &big, 413, "too_large"),
        ("/api/publish", &huge, 413, "too_large"),
        ("/api/publish/batch", three, 400, "too_many"),
        ("/api/nothing", "", 404, "not_found"),
        ("/health/live", "", 405, "method_not_allowed"),
        ("/events/%ff", "{\"type\":\"pong\"}", 400, "malformed"),
        ("/events/nobody", "{\"type\":\"pong\"}", 404, "session_unknown"),
    ] {
        let (found, answer, _) = api.post(path, body).await;
        let short = &body[..body.len().min(80)];
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{path} {short}");
    }
    for (path, code) in [
        ("/events", "channel_invalid"),
        ("/events?channel=a%20b", "channel_invalid"),
        ("/events?channel=a&since=x", "position_invalid"),
        ("/api/channels/a%20b/history", "channel_invalid"),
        ("/api/channels/a/history?since=x", "position_invalid"),
        ("/api/channels/a/history?limit=x", "malformed"),
        ("/api/channels/%ff/history", "malformed"),
        ("/api/channels/%ff/presence", "malformed"),
        ("/ws", "malformed"),
    ] {
        let (status, answer) = api.get(path).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(code)), "{path}");
    }
}

#[tokio::test]
async fn a_head_request_is_not_answered_with_a_stream() {
    let gateway = TestGateway::start().await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let head = b"HEAD /events?channel=a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(head).await.unwrap();
    let mut answer = String::new();
    soon("it is answered", socket.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn a_client_that_floods_is_cut_off_and_nobody_else_is() {
    let gateway = TestGateway::with(|config| {
        config.limits.frames_per_second = 10;
        config.limits.frames_burst = 20;
    })
    .await;
    let mut witness = Ws::open(gateway.addr).await;
    witness.subscribe("news", None).await;
    let mut flood = Ws::open(gateway.addr).await;
    for _ in 0..100 {
        flood.send(json!({ "type": "pong" })).await;
    }
    assert_eq!(flood.closed().await, "4005");
    Api::of(gateway.addr).publish("news", 1).await;
    witness.expect_data([1]).await;
}

#[tokio::test]
async fn a_socket_that_never_says_what_it_wants_is_given_up() {
    let gateway = TestGateway::with(|config| {
        config.connection.connect_timeout = std::time::Duration::from_millis(200);
        config.server.header_timeout = std::time::Duration::from_millis(200);
    })
    .await;
    let mut silent = Ws::open(gateway.addr).await;
    assert_eq!(silent.closed().await, "4001");
    let mut slow = TcpStream::connect(gateway.addr).await.unwrap();
    slow.write_all(b"GET /events?channel=a HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon("the gateway hangs up", slow.read_to_end(&mut answer)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_stays_silent_is_given_up_and_one_that_answers_is_not() {
    let gateway = TestGateway::with(|config| {
        config.connection.heartbeat = std::time::Duration::from_millis(100);
    })
    .await;
    let mut answering = Ws::open(gateway.addr).await;
    answering.subscribe("news", None).await;
    let stays = spawn(async move {
        answering.expect_data([1]).await;
    });
    let mut dead = shaken(&gateway).await;
    let subscribe = masked(br#"{"type":"subscribe","channel":"news"}"#);
    dead.write_all(&subscribe).await.unwrap();
    let mut answer = Vec::new();
    soon("the gateway gives it up", dead.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.windows(4).any(|w| w == b"4008"), "no goodbye with 4008");
    Api::of(gateway.addr).publish("news", 1).await;
    soon("the other one is still there", stays).await.unwrap();
}

/// A WebSocket whose handshake is done, as bare bytes.
async fn shaken(gateway: &TestGateway) -> TcpStream {
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        soon("the handshake is answered", socket.read_buf(&mut answer)).await.unwrap();
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    socket
}

/// A short text frame with a mask of zeros.
fn masked(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(text);
    frame
}
