//! Bytes cut in every way.

use proptest::{collection::vec, prelude::*};

use super::*;

const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n";

/// Feeds `bytes` in pieces of the given sizes and writes down what is heard.
fn heard(wire: Wire, bytes: &[u8], cuts: &[usize]) -> Result<Vec<String>, FrameError> {
    let mut reader = FrameReader::new(wire);
    let mut heard = Vec::new();
    let (mut rest, mut cuts) = (bytes, cuts.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap_or(&1)));
        rest = after;
        reader.feed(piece, &mut |said| {
            heard.push(match said {
                Heard::Head(_) => "head".to_owned(),
                Heard::Message(text) => format!("text {}", String::from_utf8_lossy(text)),
                Heard::Ping(payload) => format!("ping {payload:?}"),
                Heard::Close(payload) => format!("close {payload:?}"),
            });
        })?;
    }
    assert_eq!(reader.rest.capacity(), 0, "nothing stays of what was heard");
    Ok(heard)
}

proptest! {
    #[test]
    fn frames_are_heard_however_they_are_cut(
        texts in vec("[a-z]{0,300}", 1..12),
        cuts in vec(1_usize..400, 1..20),
    ) {
        let mut bytes = HEAD.to_vec();
        let mut expected = vec!["head".to_owned()];
        for text in &texts {
            bytes.extend(server_text(text.as_bytes()));
            bytes.extend([0x89, 2, 7, 8, 0x8a, 0]);
            expected.extend([format!("text {text}"), "ping [7, 8]".to_owned()]);
        }
        prop_assert_eq!(heard(Wire::WebSocket, &bytes, &cuts).unwrap(), expected);
    }

    #[test]
    fn records_are_heard_however_they_are_cut(
        texts in vec("[a-z]{0,300}", 1..12),
        cuts in vec(1_usize..400, 1..20),
    ) {
        let mut bytes = HEAD.to_vec();
        let mut expected = vec!["head".to_owned()];
        for text in &texts {
            bytes.extend(format!("id: 1\ndata: {text}\n\n\n: ping\n\n").bytes());
            expected.extend([format!("text id: 1\ndata: {text}"), "text : ping".to_owned()]);
        }
        prop_assert_eq!(heard(Wire::EventStream, &bytes, &cuts).unwrap(), expected);
    }
}

#[test]
fn lengths_of_all_three_sizes_are_read() {
    for len in [0, 125, 126, 0xffff, 0x1_0000] {
        let text = "x".repeat(len);
        let said = heard(Wire::BareFrames, &server_text(text.as_bytes()), &[4096]).unwrap();
        assert_eq!(said, [format!("text {text}")]);
    }
}

#[test]
fn what_no_server_may_send_is_refused() {
    assert_eq!(heard(Wire::BareFrames, &text(b"hi"), &[9]), Err(FrameError::Masked));
    assert_eq!(heard(Wire::BareFrames, &[0x01, 0], &[9]), Err(FrameError::Fragmented));
    let long = [[0x81, 127].as_slice(), &[0xff; 8]].concat();
    assert_eq!(heard(Wire::BareFrames, &long, &[10]), Err(FrameError::TooLong));
}

proptest! {
    #[test]
    fn values_are_heard_however_they_are_cut(
        texts in vec("[a-z]{0,300}", 1..12),
        cuts in vec(1_usize..400, 1..20),
    ) {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let values: Vec<String> =
            texts.iter().map(|text| format!("*3\r\n{}:1\r\n{}", bulk("message"), bulk(text))).collect();
        let expected: Vec<String> = values.iter().map(|value| format!("text {value}")).collect();
        prop_assert_eq!(heard(Wire::Resp, values.concat().as_bytes(), &cuts).unwrap(), expected);
    }
}

#[test]
fn a_value_that_is_nothing_has_a_length_too() {
    assert_eq!((resp_len(b"$-1\r\n"), resp_len(b"*0\r\n+OK\r\n")), (Some(5), Some(4)));
    assert_eq!((resp_len(b"+OK\r\n"), resp_len(b"*1\r\n$2\r\nhi")), (Some(5), None));
}
