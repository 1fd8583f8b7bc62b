//! WebSocket framing, server side: pure functions of bytes, no socket.
//!
//! Writing puts a header in front of a payload. Reading checks masks, fragments, interleaved control
//! frames, UTF-8 and sizes. An idle [`Decoder`] holds no buffer: that is why no crate is used, those
//! measured hold 8 to 130 KB per connection.

use bytes::{BufMut, Bytes, BytesMut};

use super::CloseCode;

/// A text frame, whole and unmasked.
pub fn text(payload: &str) -> Bytes {
    frame(0x1, payload.as_bytes())
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Bytes {
    frame(0xA, payload)
}

/// A close frame.
pub fn close(code: CloseCode) -> Bytes {
    let mut payload = code.number().to_be_bytes().to_vec();
    payload.extend_from_slice(code.as_str().as_bytes());
    frame(0x8, &payload)
}

fn frame(opcode: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 10);
    out.put_u8(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => out.put_u8(len as u8),
        len @ 126..=0xFFFF => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        len => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
    out.put_slice(payload);
    out.freeze()
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A whole text message, joined from its fragments.
    Text(String),
    /// A ping: it is answered with the same payload.
    Ping(Vec<u8>),
    /// A pong, solicited or not.
    Pong,
    /// The client closes.
    Close,
}

/// Decodes what a client sends, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes of an incomplete frame.
    partial: Vec<u8>,
    /// Payload of a text whose last fragment has not arrived.
    fragments: Option<Vec<u8>>,
}

impl Decoder {
    /// Decodes the next bytes and appends the messages that they complete to `out`.
    ///
    /// # Errors
    /// With the code to close with. What was complete before the mistake is in `out`.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        payload_max: usize,
        out: &mut Vec<Message>,
    ) -> Result<(), CloseCode> {
        if self.partial.is_empty() {
            let used = self.take_frames(bytes, payload_max, out)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut buffered = std::mem::take(&mut self.partial);
        buffered.extend_from_slice(bytes);
        let used = self.take_frames(&buffered, payload_max, out)?;
        buffered.drain(..used);
        if !buffered.is_empty() {
            self.partial = buffered;
        }
        Ok(())
    }

    fn take_frames(
        &mut self,
        bytes: &[u8],
        payload_max: usize,
        out: &mut Vec<Message>,
    ) -> Result<usize, CloseCode> {
        let mut used = 0;
        while let Some(head) = Head::read(&bytes[used..])? {
            // An interleaved control frame does not count against the text's size.
            let gathered = self.fragments.as_ref().filter(|_| head.opcode & 0x8 == 0);
            let gathered = gathered.map_or(0, Vec::len);
            if payload_max < head.payload.saturating_add(gathered) {
                return Err(CloseCode::TooBig);
            }
            let from = used + head.len;
            let Some(masked) = bytes.get(from..from + head.payload) else {
                break;
            };
            used = from + head.payload;
            let payload = unmask(masked, head.mask);
            out.extend(self.message(&head, payload)?);
        }
        Ok(used)
    }

    fn message(&mut self, head: &Head, payload: Vec<u8>) -> Result<Option<Message>, CloseCode> {
        match (head.opcode, self.fragments.take()) {
            (0x1, None) => self.fragment(head.fin, payload),
            (0x0, Some(mut gathered)) => {
                gathered.extend_from_slice(&payload);
                self.fragment(head.fin, gathered)
            }
            (0x2, None) => Err(CloseCode::BadFrame),
            (0x8..=0xA, between) => {
                self.fragments = between;
                control(head.opcode, payload).map(Some)
            }
            _ => Err(CloseCode::ProtocolError),
        }
    }

    fn fragment(&mut self, fin: bool, gathered: Vec<u8>) -> Result<Option<Message>, CloseCode> {
        if !fin {
            self.fragments = Some(gathered);
            return Ok(None);
        }
        let text = String::from_utf8(gathered).map_err(|_| CloseCode::InvalidText)?;
        Ok(Some(Message::Text(text)))
    }
}

fn control(opcode: u8, payload: Vec<u8>) -> Result<Message, CloseCode> {
    match opcode {
        0x9 => Ok(Message::Ping(payload)),
        0xA => Ok(Message::Pong),
        _ => match payload.as_slice() {
            [] => Ok(Message::Close),
            [high, low, reason @ ..] => {
                if std::str::from_utf8(reason).is_err() {
                    return Err(CloseCode::InvalidText);
                }
                // RFC 6455, 7.4: the codes that may be sent.
                match u16::from_be_bytes([*high, *low]) {
                    1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(Message::Close),
                    _ => Err(CloseCode::ProtocolError),
                }
            }
            [_] => Err(CloseCode::ProtocolError),
        },
    }
}

struct Head {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    payload: usize,
    len: usize,
}

impl Head {
    /// The head of the next frame; none while it is not complete.
    fn read(bytes: &[u8]) -> Result<Option<Self>, CloseCode> {
        let &[first, second, ref rest @ ..] = bytes else {
            return Ok(None);
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let is_control = opcode & 0x8 != 0;
        let short = usize::from(second & 0x7F);
        let reserved = first & 0x70 != 0 || matches!(opcode, 0x3..=0x7 | 0xB..=0xF);
        let unmasked = second & 0x80 == 0;
        if reserved || unmasked || (is_control && (!fin || 125 < short)) {
            return Err(CloseCode::ProtocolError);
        }
        let (payload, extra) = match (short, rest) {
            (126, &[a, b, ..]) => (usize::from(u16::from_be_bytes([a, b])), 2),
            (127, &[a, b, c, d, e, f, g, h, ..]) => {
                let long = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                (usize::try_from(long).map_err(|_| CloseCode::TooBig)?, 8)
            }
            (126 | 127, _) => return Ok(None),
            (short, _) => (short, 0),
        };
        let Some(&[a, b, c, d]) = rest.get(extra..extra + 4) else {
            return Ok(None);
        };
        Ok(Some(Self { fin, opcode, mask: [a, b, c, d], payload, len: 2 + extra + 4 }))
    }
}

fn unmask(masked: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut payload = masked.to_vec();
    let (fours, rest) = payload.as_chunks_mut::<4>();
    for four in fours {
        *four = (u32::from_ne_bytes(*four) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask) {
        *byte ^= key;
    }
    payload
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [7, 99, 200, 31];

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let server = frame(first & 0x0F, payload);
        let head = server.len() - payload.len();
        let mut out = server[..head].to_vec();
        out[0] = first;
        out[1] |= 0x80;
        out.extend(MASK);
        out.extend(unmask(payload, MASK));
        out
    }

    fn decode(bytes: &[u8], piece: usize) -> (Vec<Message>, Result<(), CloseCode>) {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            if let Err(code) = decoder.feed(piece, 1 << 20, &mut out) {
                return (out, Err(code));
            }
        }
        (out, Ok(()))
    }

    fn refusal(bytes: &[u8]) -> CloseCode {
        decode(bytes, usize::MAX).1.unwrap_err()
    }

    proptest! {
        #[test]
        fn a_text_arrives_whole_however_it_was_cut(
            parts in prop::collection::vec("[ -~é€😀]{0,300}", 1..5), piece in 1usize..400,
        ) {
            let mut bytes = Vec::new();
            for (n, part) in parts.iter().enumerate() {
                let opcode = if n == 0 { 0x1 } else { 0x0 };
                let fin = if n + 1 == parts.len() { 0x80 } else { 0 };
                bytes.extend(masked(fin | opcode, part.as_bytes()));
                bytes.extend(masked(0x89, b"between"));
            }
            let (out, end) = decode(&bytes, piece);
            prop_assert_eq!(end, Ok(()));
            let texts: Vec<_> =
                out.into_iter().filter(|m| !matches!(m, Message::Ping(_))).collect();
            prop_assert_eq!(texts, vec![Message::Text(parts.concat())]);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, piece in 1usize..64) {
            let _ = decode(&bytes, piece);
        }
    }

    #[test]
    fn what_breaks_the_rules_is_closed_with_the_fitting_code() {
        assert_eq!(refusal(&frame(0x1, b"unmasked")), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x82, b"binary")), CloseCode::BadFrame);
        assert_eq!(refusal(&masked(0xC1, b"rsv")), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x83, b"opcode")), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x80, b"no start")), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x09, b"ping in parts")), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x89, &[0; 126])), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x81, &[0xFF, 0xFE])), CloseCode::InvalidText);
        assert_eq!(refusal(&masked(0x88, &[3])), CloseCode::ProtocolError);
        assert_eq!(refusal(&masked(0x88, &1005u16.to_be_bytes())), CloseCode::ProtocolError);
        let twice = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
        assert_eq!(refusal(&twice), CloseCode::ProtocolError);
    }

    #[test]
    fn a_frame_over_the_size_is_refused_by_its_head_alone() {
        let mut decoder = Decoder::default();
        let head = [0x81, 0x80 | 127, 0, 0, 0, 0, 0xFF, 0, 0, 0, 1, 2, 3, 4];
        let refused = decoder.feed(&head, 65_536, &mut Vec::new());
        assert_eq!(refused, Err(CloseCode::TooBig));
    }

    #[test]
    fn an_idle_decoder_holds_no_memory() {
        let mut decoder = Decoder::default();
        let bytes = masked(0x81, b"hello");
        let mut out = Vec::new();
        for byte in &bytes {
            decoder.feed(&[*byte], 100, &mut out).unwrap();
        }
        assert_eq!(out, [Message::Text("hello".to_owned())]);
        assert_eq!((decoder.partial.capacity(), decoder.fragments), (0, None));
    }
}
