//! The edge of the node: how long it waits, whom it lets in, and what the others are told.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::support::{
    client::{Sse, Ws},
    eventually::{eventually, soon},
    gateway::{Api, TestGateway},
    raw::Raw,
};

/// Less than any other timeout of the gateway, more than a loaded machine needs for a request.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_socket_that_does_not_come_to_the_point_is_closed_in_every_phase() {
    let gateway = TestGateway::with(|config| config.server.header_timeout = SHORT).await;
    for phase in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /events?chann",
        b"GET /events?channel=a HTTP/1.1\r\nhost: localhost\r\n",
    ] {
        let begun = Instant::now();
        let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
        socket.write_all(phase).await.unwrap();
        until_closed(&mut socket).await;
        assert!(begun.elapsed() < SHORT * 10, "{phase:?} took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_head_that_trickles_buys_no_time() {
    let gateway = TestGateway::with(|config| config.server.header_timeout = SHORT).await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: ").await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let closed = async {
        loop {
            tick.tick().await;
            if socket.write_all(b"y").await.is_err() {
                break;
            }
        }
    };
    soon("the gateway closes", closed).await;
}

#[tokio::test]
async fn a_connection_that_rests_between_two_requests_may_rest_longer() {
    let gateway = TestGateway::with(|config| {
        config.server.header_timeout = Duration::from_millis(300);
        config.server.idle_timeout = Duration::from_secs(3);
    })
    .await;
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    assert!(asks(&mut socket, "/health/live").await.starts_with("HTTP/1.1 200"));
    let quiet = tokio::time::timeout(SHORT, socket.readable()).await;
    assert!(quiet.is_err(), "closed after a head's time already");
    assert!(asks(&mut socket, "/health/live").await.starts_with("HTTP/1.1 200"));
    until_closed(&mut socket).await;
    // A head that was begun after a rest has a head's time.
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    asks(&mut socket, "/health/live").await;
    socket.write_all(b"GET /hea").await.unwrap();
    let begun = Instant::now();
    until_closed(&mut socket).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

/// Sends a request on a connection that stays, and reads the answer's head and body.
async fn asks(socket: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = soon("it is answered", socket.read_buf(&mut answer)).await.unwrap();
        assert_ne!(read, 0, "closed: {}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

/// A reset is an end, too.
async fn until_closed(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    drop(soon("the gateway hangs up", socket.read_to_end(&mut rest)).await);
}

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const STREAM: &str = "GET /events?channel=a HTTP/1.1\r\n";

/// Whether a client was let in: it holds its place while it is kept.
fn let_in(answer: &Raw) -> bool {
    answer.status() == 101 || (answer.status() == 200 && answer.head.contains("x-accel-buffering"))
}

#[tokio::test]
async fn a_full_node_sends_the_next_one_away_until_one_leaves() {
    for kind in [WEBSOCKET, STREAM] {
        let gateway = TestGateway::with(|config| config.server.limits.clients = 2).await;
        let api = Api::of(gateway.addr);
        let ws = Ws::open(gateway.addr).await;
        let _sse = Sse::open(gateway.addr, "channel=a").await;
        Raw::send(gateway.addr, kind, &[]).await.expect_sent_away("node_full", 503).await;
        assert_eq!(api.metric("crossfade_refused_total{reason=\"clients\"}").await, 1.0);
        drop(ws);
        eventually("there is room again", async || {
            let_in(&Raw::send(gateway.addr, kind, &[]).await).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_address_has_so_many_clients_and_a_proxy_speaks_for_others() {
    let gateway = TestGateway::with(|config| {
        config.server.limits.clients_per_ip = 1;
        config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let from =
        async |kind, ip: &str| Raw::send(gateway.addr, kind, &[("x-forwarded-for", ip)]).await;
    let one = from(WEBSOCKET, "1.1.1.1").await;
    let two = from(STREAM, "2.2.2.2").await;
    assert!(let_in(&one) && let_in(&two));
    for kind in [WEBSOCKET, STREAM] {
        from(kind, "1.1.1.1").await.expect_sent_away("limit_exceeded", 429).await;
        // What the client itself wrote stands further left.
        from(kind, "9.9.9.9, 2.2.2.2").await.expect_sent_away("limit_exceeded", 429).await;
    }
    let forwarded = [("forwarded", "for=\"1.1.1.1:4000\";proto=https")];
    let again = Raw::send(gateway.addr, WEBSOCKET, &forwarded).await;
    again.expect_sent_away("limit_exceeded", 429).await;
    let metric = "crossfade_refused_total{reason=\"clients_per_ip\"}";
    assert_eq!(Api::of(gateway.addr).metric(metric).await, 5.0);
}

#[tokio::test]
async fn who_is_no_trusted_proxy_speaks_for_himself() {
    let gateway = TestGateway::with(|config| config.server.limits.clients_per_ip = 1).await;
    let claims = |ip: &'static str| [("x-forwarded-for", ip), ("forwarded", "for=3.3.3.3")];
    let one = Raw::send(gateway.addr, WEBSOCKET, &claims("1.1.1.1")).await;
    assert!(let_in(&one));
    for kind in [WEBSOCKET, STREAM] {
        let other = Raw::send(gateway.addr, kind, &claims("2.2.2.2")).await;
        other.expect_sent_away("limit_exceeded", 429).await;
    }
}

#[tokio::test]
async fn an_address_that_comes_too_fast_is_slowed_down() {
    for kind in [WEBSOCKET, STREAM] {
        let gateway = TestGateway::with(|config| {
            config.server.limits.arrivals_per_second = 1;
            config.server.limits.arrivals_burst = 3;
            config.server.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        })
        .await;
        let mut let_through = 0;
        let sent_away = loop {
            let answer = Raw::send(gateway.addr, kind, &[]).await;
            if !let_in(&answer) {
                break answer;
            }
            let_through += 1;
        };
        sent_away.expect_sent_away("limit_exceeded", 429).await;
        assert!(3 <= let_through);
        let other = Raw::send(gateway.addr, kind, &[("x-forwarded-for", "1.1.1.1")]).await;
        assert!(let_in(&other), "{}", other.head);
    }
}

#[tokio::test]
async fn sockets_that_are_no_clients_are_bounded_and_clients_are_not_among_them() {
    let gateway = TestGateway::with(|config| {
        config.server.limits.sockets = 2;
        config.server.header_timeout = SHORT;
    })
    .await;
    let mut clients = Vec::new();
    while clients.len() < 4 {
        // A place is given back a moment after the answer is out.
        clients.push(
            eventually("a client gets in", async || Ws::try_open(gateway.addr).await.ok()).await,
        );
    }
    let silent = eventually("two are silent", async || {
        let silent =
            [TcpStream::connect(gateway.addr).await, TcpStream::connect(gateway.addr).await];
        let mut third = TcpStream::connect(gateway.addr).await.unwrap();
        let mut byte = [0];
        let closed = tokio::time::timeout(SHORT / 10, third.read(&mut byte)).await;
        closed.is_ok().then_some(silent)
    })
    .await;
    eventually("the silent ones are gone", async || Ws::try_open(gateway.addr).await.ok()).await;
    drop(silent);
    let refused = Api::of(gateway.addr).metric("crossfade_refused_total{reason=\"sockets\"}").await;
    assert!(1.0 <= refused, "{refused}");
}

#[tokio::test]
async fn a_page_of_a_listed_origin_is_served_and_told_so() {
    let gateway = TestGateway::with(|config| {
        config.server.allowed_origins = vec!["https://*.example.com".parse().unwrap()];
    })
    .await;
    let good = [("origin", "https://app.example.com")];
    for kind in [WEBSOCKET, STREAM, "GET /api/channels HTTP/1.1\r\n", "GET /events HTTP/1.1\r\n"] {
        let answer = Raw::send(gateway.addr, kind, &good).await;
        let told = answer.header("access-control-allow-origin");
        assert_eq!(told, Some("https://app.example.com"), "{kind} {}", answer.head);
        assert_eq!(answer.header("vary"), Some("origin"), "{}", answer.head);
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    for path in ["/events", "/events/s1", "/api/publish", "/api/channels/a/history"] {
        let asked = [good[0], ("access-control-request-method", "POST")];
        let begin = format!("OPTIONS {path} HTTP/1.1\r\n");
        let answer = Raw::send(gateway.addr, &begin, &asked).await;
        assert_eq!(answer.status(), 204, "{}", answer.head);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"));
        assert_eq!(answer.header("access-control-allow-methods"), Some("GET, POST"));
        assert!(answer.header("access-control-allow-headers").unwrap().contains("authorization"));
    }
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_and_whoever_is_no_page_is_not() {
    let gateway = TestGateway::with(|config| {
        config.server.allowed_origins = vec!["https://example.com".parse().unwrap()];
    })
    .await;
    let publish = "POST /api/publish HTTP/1.1\r\ncontent-length: 0\r\n";
    let preflight = "OPTIONS /events HTTP/1.1\r\naccess-control-request-method: GET\r\n";
    let kinds = [WEBSOCKET, STREAM, publish, preflight];
    for kind in kinds {
        let bad = [("origin", "https://example.com.evil.com")];
        let mut answer = Raw::send(gateway.addr, kind, &bad).await;
        assert_eq!(answer.status(), 403, "{}", answer.head);
        assert_eq!(answer.header("access-control-allow-origin"), None);
        answer.until("origin_forbidden").await;
    }
    for kind in [WEBSOCKET, STREAM] {
        assert!(let_in(&Raw::send(gateway.addr, kind, &[]).await));
        let own = [("host", "gate.example.org"), ("origin", "https://gate.example.org")];
        assert!(let_in(&Raw::send(gateway.addr, kind, &own).await));
    }
    let api = Api::of(gateway.addr);
    assert_eq!(api.metric("crossfade_refused_total{reason=\"origin\"}").await, 4.0);
}

#[tokio::test]
async fn a_development_server_on_another_port_is_served_by_default() {
    let gateway = TestGateway::start().await;
    for kind in [WEBSOCKET, STREAM] {
        let local = Raw::send(gateway.addr, kind, &[("origin", "http://localhost:5173")]).await;
        assert!(let_in(&local), "{}", local.head);
        let other = Raw::send(gateway.addr, kind, &[("origin", "http://evil.com")]).await;
        assert_eq!(other.status(), 403);
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let gateway = TestGateway::with(|config| config.server.body_timeout = SHORT).await;
    let begin = "POST /api/publish HTTP/1.1\r\ncontent-length: 1000\r\n";
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    socket.write_all(format!("{begin}host: localhost\r\n\r\n{{").as_bytes()).await.unwrap();
    let mut tick = tokio::time::interval(SHORT / 10);
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        tokio::select! {
            read = socket.read_buf(&mut answer) => assert_ne!(read.unwrap(), 0),
            _ = tick.tick() => drop(socket.write_all(b" ").await),
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    until_closed(&mut socket).await;
}

#[tokio::test]
async fn a_node_that_stops_says_so_before_it_turns_anybody_away() {
    let mut gateway =
        TestGateway::with(|config| config.server.drain_delay = Duration::from_secs(2)).await;
    let api = Api::of(gateway.addr);
    gateway.begin_stop();
    eventually("it is not ready", async || (api.get("/health/ready").await.0 == 503).then_some(()))
        .await;
    let mut late = Ws::open(gateway.addr).await;
    late.subscribe("news", None).await;
    api.publish("news", 1).await;
    late.expect_data([1]).await;
    assert_eq!(late.expect("goodbye").await["code"], 4003);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_developers_gateway_answers_to_the_names_of_this_machine_only() {
    let gateway = TestGateway::start().await;
    let api = Api::of(gateway.addr);
    let status = async |host: &str| {
        let request = api.http.get(format!("{}/api/channels", api.base)).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(status("evil.example:8080").await, 403);
    for host in ["localhost:8080", "127.0.0.1", "page.localhost:1", "[::1]:8080"] {
        assert_eq!(status(host).await, 200, "{host}");
    }
}
