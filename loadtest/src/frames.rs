//! Takes a server's bytes apart, however they were cut on the way.
//!
//! Sans-IO: it is fed what a socket gave and says what it heard. It knows where a WebSocket frame or
//! an SSE record ends and nothing of what is inside. A connection without half a frame holds no
//! memory here, because there are tens of thousands of them.

#[cfg(test)]
mod tests;

use std::{fmt, mem};

use memchr::{memchr, memmem};

/// How a server separates its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// RFC 6455 frames behind an HTTP head.
    WebSocket,
    /// `text/event-stream` records behind an HTTP head, ending with the connection.
    EventStream,
    /// RFC 6455 frames from the first byte on.
    BareFrames,
    /// Values of Redis's protocol, version 2.
    Resp,
}

/// What a server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// The response's head, without the empty line.
    Head(&'a [u8]),
    /// A text frame's payload, an SSE record's lines, or a whole RESP value.
    Message(&'a [u8]),
    /// A WebSocket ping.
    Ping(&'a [u8]),
    /// A WebSocket close.
    Close(&'a [u8]),
}

/// Reads one connection.
#[derive(Debug)]
pub struct FrameReader {
    wire: Wire,
    headed: bool,
    rest: Vec<u8>,
}

/// What a server may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A server's frames are not masked.
    Masked,
    /// No gateway cuts its messages into fragments, so neither are they put together here.
    Fragmented,
    /// Longer than anything that was published.
    TooLong,
}

/// A message longer than this is taken for a mistake.
const LONGEST: usize = 16 << 20;

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masked => "the server masked a frame",
            Self::Fragmented => "the server sent a fragment",
            Self::TooLong => "the server sent a message longer than any that was published",
        })
    }
}

impl std::error::Error for FrameError {}

impl FrameReader {
    /// A reader at the start of a connection.
    pub fn new(wire: Wire) -> Self {
        Self { wire, headed: matches!(wire, Wire::BareFrames | Wire::Resp), rest: Vec::new() }
    }

    /// Takes what came next and tells `hear` of everything that is complete by now.
    ///
    /// # Errors
    /// When the bytes cannot be a server's. The reader is of no use after that.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            let used = self.take_all(bytes, hear)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            let mut joined = mem::take(&mut self.rest);
            joined.extend_from_slice(bytes);
            let used = self.take_all(&joined, hear)?;
            if used < joined.len() {
                joined.drain(..used);
                self.rest = joined;
            }
        }
        if LONGEST < self.rest.len() { Err(FrameError::TooLong) } else { Ok(()) }
    }

    fn take_all(
        &mut self,
        bytes: &[u8],
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Result<usize, FrameError> {
        let mut used = 0;
        while let Some(len) = self.take_one(&bytes[used..], hear)? {
            used += len;
        }
        Ok(used)
    }

    fn take_one(
        &mut self,
        bytes: &[u8],
        hear: &mut dyn FnMut(Heard<'_>),
    ) -> Result<Option<usize>, FrameError> {
        if !self.headed {
            let end = memmem::find(bytes, b"\r\n\r\n");
            return Ok(end.map(|end| {
                self.headed = true;
                hear(Heard::Head(&bytes[..end]));
                end + 4
            }));
        }
        match self.wire {
            Wire::EventStream => Ok(take_record(bytes, hear)),
            Wire::WebSocket | Wire::BareFrames => take_frame(bytes, hear),
            Wire::Resp => Ok(resp_len(bytes).inspect(|len| hear(Heard::Message(&bytes[..*len])))),
        }
    }
}

/// A record ends with an empty line. One without lines is nothing.
fn take_record(bytes: &[u8], hear: &mut dyn FnMut(Heard<'_>)) -> Option<usize> {
    let mut line = 0;
    loop {
        let end = line + memchr(b'\n', &bytes[line..])?;
        if end == line {
            if line != 0 {
                hear(Heard::Message(&bytes[..line - 1]));
            }
            return Some(end + 1);
        }
        line = end + 1;
    }
}

/// The length of the first RESP value; none until all of it is there.
pub fn resp_len(bytes: &[u8]) -> Option<usize> {
    let line = memchr(b'\n', bytes)?;
    let mut end = line + 1;
    let number = || str::from_utf8(&bytes[1..line]).ok()?.trim_end().parse::<i64>().ok();
    match bytes[0] {
        b'$' => end += number().and_then(|len| usize::try_from(len).ok()).map_or(0, |len| len + 2),
        b'*' => {
            for _ in 0..number().unwrap_or(0) {
                end += resp_len(bytes.get(end..)?)?;
            }
        }
        _ => {}
    }
    (end <= bytes.len()).then_some(end)
}

fn take_frame(bytes: &[u8], hear: &mut dyn FnMut(Heard<'_>)) -> Result<Option<usize>, FrameError> {
    let [first, second, tail @ ..] = bytes else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(FrameError::Masked);
    }
    let (long, tail) = match second & 0x7f {
        126 => match tail.split_first_chunk::<2>() {
            Some((len, tail)) => (u64::from(u16::from_be_bytes(*len)), tail),
            None => return Ok(None),
        },
        127 => match tail.split_first_chunk::<8>() {
            Some((len, tail)) => (u64::from_be_bytes(*len), tail),
            None => return Ok(None),
        },
        short => (u64::from(short), tail),
    };
    let len = usize::try_from(long).unwrap_or(usize::MAX);
    if LONGEST < len {
        return Err(FrameError::TooLong);
    }
    let Some(payload) = tail.get(..len) else { return Ok(None) };
    match first {
        0x81 | 0x82 => hear(Heard::Message(payload)),
        0x88 => hear(Heard::Close(payload)),
        0x89 => hear(Heard::Ping(payload)),
        0x8a => {}
        _ => return Err(FrameError::Fragmented),
    }
    Ok(Some(bytes.len() - tail.len() + len))
}

/// A client's text frame.
pub fn text(payload: &[u8]) -> Vec<u8> {
    client_frame(0x81, payload)
}

/// A client's answer to a ping.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    client_frame(0x8a, payload)
}

/// A server's text frame.
pub fn server_text(payload: &[u8]) -> Vec<u8> {
    let mut frame = head(0x81, 0, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// The mask hides a payload from proxies that do not know WebSocket. There are none on a loopback,
/// so one mask does for all.
const MASK: [u8; 4] = *b"mask";

fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(first, 0x80, payload.len());
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn head(first: u8, masked: u8, len: usize) -> Vec<u8> {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len @ ..126), _) => vec![first, masked | len],
        (_, Ok(len)) => [[first, masked | 126], len.to_be_bytes()].concat(),
        (_, Err(_)) => [&[first, masked | 127], &(len as u64).to_be_bytes()[..]].concat(),
    }
}
