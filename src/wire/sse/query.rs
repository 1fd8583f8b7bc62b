//! Reads what a stream is asked for: the query of `GET /events` and `Last-Event-ID`.

use std::collections::HashSet;

use crate::{
    protocol::{Channel, ErrorCode, Positions, frame::About},
    wire::{
        Handshake, HandshakeError, StreamRequest, WireFormat,
        sse::{ENVELOPE, FRAMES, RAW},
    },
};

/// Reads `channel=` (repeated), `since=` or `Last-Event-ID`, `session=`, `presence=1`, `overlap=1`,
/// `client=`, `unit=` and `format=raw` or `frames`. Unknown keys are ignored: `EventSource`
/// polyfills add their own.
///
/// # Errors
/// When a value is not valid, no channel is named, or too many are.
pub(super) fn parse(request: Handshake<'_>) -> Result<(WireFormat, StreamRequest), HandshakeError> {
    let query = request.uri.query().unwrap_or_default();
    let mut channels: Vec<Channel> = Vec::new();
    let (mut since, mut session, mut format) = (None, None, ENVELOPE);
    let (mut presence, mut overlap) = (false, false);
    let (mut client, mut unit) = (None, None);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "channel" => channels.push(valid(ErrorCode::ChannelInvalid, value.parse())?),
            "since" => since = Some(valid(ErrorCode::PositionInvalid, value.parse())?),
            "session" => session = Some(valid(ErrorCode::SessionUnknown, value.parse())?),
            "presence" => presence = value == "1",
            "overlap" => overlap = value == "1",
            "client" => client = Some(value),
            "unit" => unit = Some(value),
            "format" => format = format_named(&value)?,
            _ => {}
        }
    }
    let mut seen = HashSet::new();
    channels.retain(|channel| seen.insert(channel.clone()));
    if channels.is_empty() {
        let message = "name at least one channel: /events?channel=news";
        return Err(HandshakeError::new(ErrorCode::ChannelInvalid, message));
    }
    let max = request.subscriptions;
    if max < channels.len() {
        let message = format!("a stream may have {max} channels (limits.subscriptions)");
        return Err(HandshakeError::new(ErrorCode::TooMany, message));
    }
    // What the browser remembers is newer than what the page's address says.
    let mut unknown_position = false;
    if let Some(last) = request.headers.get("last-event-id").filter(|last| !last.is_empty()) {
        since = last.to_str().ok().and_then(|last| last.parse().ok());
        // An EventSource that is refused gives up for good, and one that comes from another server,
        // or whose page has other channels now, cannot forget the id that it sends.
        if since.is_none() || is_ambiguous(since.as_ref(), channels.len()) {
            (since, unknown_position) = (None, true);
        }
    }
    if is_ambiguous(since.as_ref(), channels.len()) {
        let message = "a bare position is for a stream of one channel: \
                       write CHANNEL~POSITION,CHANNEL~POSITION";
        return Err(HandshakeError::new(ErrorCode::PositionInvalid, message));
    }
    let with_position = |channel: Channel| {
        let position = since.as_ref().and_then(|since| since.of(&channel));
        (channel, position)
    };
    let channels = channels.into_iter().map(with_position).collect();
    let about = About::new(client.as_deref(), unit.as_deref());
    Ok((format, StreamRequest { session, channels, unknown_position, presence, overlap, about }))
}

/// Whether it is a bare position, which does not name its channel, for a stream of several.
fn is_ambiguous(since: Option<&Positions>, channels: usize) -> bool {
    matches!(since, Some(Positions::One(_))) && channels != 1
}

fn format_named(name: &str) -> Result<WireFormat, HandshakeError> {
    match name {
        "raw" => Ok(RAW),
        "frames" => Ok(FRAMES),
        other => {
            let message = format!("format={other}: use raw or frames, or leave it out");
            Err(HandshakeError::new(ErrorCode::Malformed, message))
        }
    }
}

fn valid<T, E: ToString>(code: ErrorCode, parsed: Result<T, E>) -> Result<T, HandshakeError> {
    parsed.map_err(|err| HandshakeError::new(code, err))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, Uri};

    use super::*;

    fn parsed(query: &str, last_event_id: &str) -> Result<(WireFormat, StreamRequest), ErrorCode> {
        let mut headers = HeaderMap::new();
        headers.insert("last-event-id", HeaderValue::from_str(last_event_id).unwrap());
        let uri: Uri = format!("/events?{query}").parse().unwrap();
        let request = Handshake { uri: &uri, headers: &headers, subscriptions: 2 };
        parse(request).map_err(|err| err.code)
    }

    fn offsets(query: &str, last_event_id: &str) -> Vec<Option<u64>> {
        let (_, stream) = parsed(query, last_event_id).unwrap();
        stream.channels.iter().map(|(_, since)| since.map(|since| since.offset)).collect()
    }

    #[test]
    fn each_channel_gets_its_own_position() {
        let query = "channel=a&channel=b&since=a~z-1,b~z-2&format=raw";
        assert_eq!(offsets(query, ""), [Some(1), Some(2)]);
        assert_eq!(parsed(query, "").unwrap().0, RAW);
    }

    #[test]
    fn last_event_id_overrides_since() {
        assert_eq!(offsets("channel=a&since=z-1", "z-7"), [Some(7)]);
    }

    #[test]
    fn a_last_event_id_that_is_no_position_here_is_unknown_not_refused() {
        for (query, last) in [
            ("channel=a", "42"),
            ("channel=a", "\"42\""),
            ("channel=a", "a~z-1,b"),
            ("channel=a&channel=b", "z-7"),
        ] {
            let (_, stream) = parsed(query, last).unwrap();
            assert!(stream.unknown_position, "{last}");
            assert!(stream.channels.iter().all(|(_, since)| since.is_none()), "{last}");
        }
        assert!(!parsed("channel=a", "z-7").unwrap().1.unknown_position);
        assert!(!parsed("channel=a&channel=b", "a~z-7").unwrap().1.unknown_position);
    }

    #[test]
    fn an_invalid_query_is_refused_with_its_code() {
        assert_eq!(parsed("", "").unwrap_err(), ErrorCode::ChannelInvalid);
        assert_eq!(parsed("channel=a%20b", "").unwrap_err(), ErrorCode::ChannelInvalid);
        assert_eq!(parsed("channel=a&since=7", "").unwrap_err(), ErrorCode::PositionInvalid);
        let bare = parsed("channel=a&channel=b&since=z-7", "");
        assert_eq!(bare.unwrap_err(), ErrorCode::PositionInvalid);
        assert_eq!(parsed("channel=a&format=xml", "").unwrap_err(), ErrorCode::Malformed);
        assert_eq!(parsed("channel=a&format=frames", "").unwrap().0, FRAMES);
        assert_eq!(parsed("channel=a&channel=b&channel=c", "").unwrap_err(), ErrorCode::TooMany);
        assert!(parsed("channel=a&channel=a&channel=b", "").is_ok());
    }
}
