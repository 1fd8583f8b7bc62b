//! The handshake of every WebSocket, and the request of every stream.

/// Asks for a WebSocket at `target`.
pub(super) fn upgrade(target: &str, more: &str) -> Vec<u8> {
    // The key is RFC 6455's own example: what comes back is not checked, any server's is right.
    format!(
        "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
    .into_bytes()
}

/// Asks for a stream at `target`.
pub(super) fn stream(target: &str, more: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n{more}\r\n")
        .into_bytes()
}

/// Whether a head is that of an accepted WebSocket.
pub(super) fn is_upgraded(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.1 101")
}

/// Whether a head is that of a stream that was begun.
pub(super) fn is_streamed(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.1 200")
}

/// What stands behind `before` up to `end`, as text.
pub(super) fn behind<'a>(message: &'a [u8], before: &str, end: u8) -> Option<&'a str> {
    let at = memchr::memmem::rfind(message, before.as_bytes())? + before.len();
    let rest = &message[at..];
    let len = memchr::memchr(end, rest).unwrap_or(rest.len());
    str::from_utf8(&rest[..len]).ok()
}
