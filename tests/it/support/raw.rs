//! HTTP as bare bytes, for what no client would say or show.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::eventually::soon;

/// A request as bare bytes, and what came back; the socket stays open as long as this is held.
pub(crate) struct Raw {
    pub(crate) socket: TcpStream,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn send(addr: SocketAddr, begin: &str, headers: &[(&str, &str)]) -> Self {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let lines: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
        let host =
            if lines.contains("host: ") { String::new() } else { format!("host: {addr}\r\n") };
        socket.write_all(format!("{begin}{host}{lines}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = loop {
            if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            let read = soon("it is answered", socket.read_buf(&mut answer)).await.unwrap();
            assert_ne!(read, 0, "closed without an answer");
        };
        let body = answer.split_off(end);
        Self { socket, head: String::from_utf8(answer).unwrap(), body }
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The body up to some text.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            let body = String::from_utf8_lossy(&self.body).into_owned();
            if body.contains(text) {
                return body;
            }
            let read = soon(format!("{text:?} comes"), self.socket.read_buf(&mut self.body)).await;
            assert_ne!(read.unwrap(), 0, "closed after {body:?}");
        }
    }

    /// Told that it is too much for now, each in the way it understands.
    pub(crate) async fn expect_sent_away(mut self, code: &str, status: u16) {
        if self.header("content-type") == Some("text/event-stream") {
            assert_eq!(self.status(), 200);
            let body = self.until("\n\n").await;
            let retry = body.strip_prefix("retry: ").and_then(|rest| rest.split_once('\n'));
            assert!(1000 <= retry.unwrap().0.parse::<u64>().unwrap(), "{body}");
            assert!(body.contains("event: crossfade.goodbye\n"), "{body}");
            assert!(
                body.contains("\"code\":1013") && body.contains("\"reconnect\":true"),
                "{body}"
            );
        } else {
            assert_eq!(self.status(), status, "{}", self.head);
            assert!(1 <= self.header("retry-after").unwrap().parse::<u64>().unwrap());
            self.until(code).await;
        }
    }
}
