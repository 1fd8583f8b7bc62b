//! Whatever bytes come, in whatever pieces: no panic, and the same messages as in one piece.
#![no_main]

use crossfade::protocol::rfc6455::{Decoder, Message};
use libfuzzer_sys::fuzz_target;

const PAYLOAD_MAX: usize = 1 << 16;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(decode(bytes, usize::from(piece).max(1)), whole);
});

fn decode(bytes: &[u8], piece: usize) -> (Vec<Message>, bool) {
    let mut decoder = Decoder::default();
    let mut out = Vec::new();
    let alive = bytes.chunks(piece).all(|piece| decoder.feed(piece, PAYLOAD_MAX, &mut out).is_ok());
    (out, alive)
}
