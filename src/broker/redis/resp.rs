//! The wire of a listening connection: RESP2, as far as it is spoken there.
//!
//! Written out by hand since it is read once per event and node; [`take`] copies nothing.

use bytes::{Buf as _, Bytes, BytesMut};

/// What a server says on a listening connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+OK`, or a bare number.
    Status,
    /// `-MOVED 42 host:port`.
    Error(Bytes),
    /// An array: its texts; a number in it is left empty.
    Array(Vec<Bytes>),
}

/// The server does not speak RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError;

/// Longest text and longest array taken for real: Redis's own limit for a text.
const LEN_MAX: usize = 512 << 20;

/// Takes the next message out of `buffer` if all of it has come.
pub(crate) fn take(buffer: &mut BytesMut) -> Result<Option<Reply>, ProtocolError> {
    let Some(len) = measure(buffer)? else { return Ok(None) };
    let mut message = buffer.split_to(len).freeze();
    let (kind, line) = take_line(&mut message);
    Ok(Some(match kind {
        b'-' => Reply::Error(line),
        b'*' => {
            Reply::Array((0..number(&line)?.unwrap_or(0)).map(|_| element(&mut message)).collect())
        }
        _ => Reply::Status,
    }))
}

/// Writes a command.
pub(crate) fn put(buffer: &mut BytesMut, words: &[&[u8]]) {
    buffer.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        buffer.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        buffer.extend_from_slice(word);
        buffer.extend_from_slice(b"\r\n");
    }
}

/// How long the first message in `buffer` is, once all of it has come.
fn measure(buffer: &[u8]) -> Result<Option<usize>, ProtocolError> {
    let Some((kind, line, mut at)) = line_at(buffer, 0)? else { return Ok(None) };
    let elements = match kind {
        b'+' | b'-' | b':' => 0,
        b'*' => number(line)?.unwrap_or(0),
        _ => return Err(ProtocolError),
    };
    for _ in 0..elements {
        let Some((kind, line, behind)) = line_at(buffer, at)? else { return Ok(None) };
        at = behind;
        match kind {
            b'+' | b'-' | b':' => {}
            b'$' => at += number(line)?.map_or(0, |len| len + 2),
            _ => return Err(ProtocolError),
        }
    }
    Ok((at <= buffer.len()).then_some(at))
}

/// A line's kind, its text, and where the next one begins.
type Line<'a> = (u8, &'a [u8], usize);

/// The line at `at`, if all of it has come.
fn line_at(buffer: &[u8], at: usize) -> Result<Option<Line<'_>>, ProtocolError> {
    let Some((kind, rest)) = buffer.get(at..).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    match rest.iter().position(|byte| *byte == b'\r') {
        Some(end) => Ok(Some((*kind, &rest[..end], at + 1 + end + 2))),
        None if rest.len() < 64 * 1024 => Ok(None),
        None => Err(ProtocolError),
    }
}

/// A length; none is what the server writes for "no text".
fn number(line: &[u8]) -> Result<Option<usize>, ProtocolError> {
    if line == b"-1" {
        return Ok(None);
    }
    let number: usize =
        std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or(ProtocolError)?;
    if LEN_MAX < number { Err(ProtocolError) } else { Ok(Some(number)) }
}

fn take_line(message: &mut Bytes) -> (u8, Bytes) {
    let kind = message.get_u8();
    let end = message.iter().position(|byte| *byte == b'\r').unwrap_or(message.len());
    let line = message.split_to(end);
    message.advance(message.len().min(2));
    (kind, line)
}

fn element(message: &mut Bytes) -> Bytes {
    let (kind, line) = take_line(message);
    if kind != b'$' {
        return if kind == b':' { Bytes::new() } else { line };
    }
    let Ok(Some(len)) = number(&line) else { return Bytes::new() };
    let text = message.split_to(len);
    message.advance(2);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(wire: &str) -> Vec<Reply> {
        let mut buffer = BytesMut::from(wire);
        std::iter::from_fn(|| take(&mut buffer).unwrap()).collect()
    }

    #[test]
    fn every_kind_of_message_is_understood() {
        let wire = "+OK\r\n:7\r\n-ERR no\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n*1\r\n$-1\r\n*-1\r\n";
        let array = |texts: &[&'static str]| {
            Reply::Array(texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect())
        };
        assert_eq!(
            said(wire),
            [
                Reply::Status,
                Reply::Status,
                Reply::Error(Bytes::from_static(b"ERR no")),
                array(&["subscribe", "a", ""]),
                array(&["pong", ""]),
                array(&[""]),
                array(&[]),
            ]
        );
    }

    #[test]
    fn a_message_is_taken_only_when_all_of_it_has_come() {
        let wire = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n\r\n\r\n";
        for len in 0..wire.len() {
            let mut buffer = BytesMut::from(&wire[..len]);
            assert_eq!(take(&mut buffer), Ok(None), "{len}");
            assert_eq!(buffer.len(), len);
        }
        assert!(take(&mut BytesMut::from(&wire[..])).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), any::<u8>()],
            0..60,
        )) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }

        #[test]
        fn what_was_written_is_read_back(words in prop::collection::vec(".{0,30}", 0..5)) {
            let mut buffer = BytesMut::new();
            put(&mut buffer, &words.iter().map(String::as_bytes).collect::<Vec<_>>());
            let words = words.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(take(&mut buffer), Ok(Some(Reply::Array(words))));
        }
    }
}
