//! The edge of the node: how long it waits, whom it lets in, and what the others are told.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::support::{eventually::soon, gateway::TestGateway};

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
        b"GET /events?channel=a HTTP/1.1\r\nhost: x\r\n",
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
    socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
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
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
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
