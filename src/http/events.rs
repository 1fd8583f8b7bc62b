//! `GET /events`: a stream for `EventSource` and curl; `POST /events/{session}`: what its client
//! has to say.

use std::{collections::HashSet, convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::value::RawValue;

use super::{
    AppState,
    admission::Refusal,
    detach::DetachableSocket,
    error::{ApiError, read_body},
    legacy::IssuedCookie,
    legacy::LegacyRequest,
    origin::Allowed,
};
use crate::{
    auth::{TokenError, Verb},
    connection::{
        Accepted, Connection, StreamRequest,
        socket::{Pipe, Socket},
    },
    protocol::{Channel, ErrorCode, Positions, SessionId, WireFormat, frame::About},
};

/// The head of a stream on HTTP/1: it ends when the connection does.
const HEAD: &str = "HTTP/1.1 200 OK\r\n\
    content-type: text/event-stream\r\n\
    cache-control: no-cache, no-transform\r\n\
    x-accel-buffering: no\r\n\
    connection: close\r\n";

fn head(page: Option<&Allowed>, issued: Option<&IssuedCookie>) -> Bytes {
    let page = page.map(Allowed::head_lines).unwrap_or_default();
    let issued = issued.map(IssuedCookie::head_line).unwrap_or_default();
    format!("{HEAD}{page}{issued}\r\n").into()
}

pub(super) async fn open(
    State(app): State<AppState>,
    Extension(lend): Extension<DetachableSocket>,
    request: Request,
) -> Result<Response, ApiError> {
    // The router sends HEAD here too; it must not be answered with a stream.
    if request.method() != Method::GET {
        let message = "/events answers to GET, with a stream";
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, message));
    }
    let query = request.uri().query().unwrap_or_default();
    let mut asked = parse(query, request.headers(), app.connections.limits.subscriptions)?;
    if let Some(LegacyRequest(unit)) = request.extensions().get::<LegacyRequest>() {
        asked.about = About { client: None, unit: Some(unit.clone()), old_address: true };
    }
    let identity = match app.client(request.headers(), request.uri()).await {
        Err(TokenError::KeysUnavailable) => return Ok(Refusal::without_keys().into_stream()),
        identity => app.required(identity?)?,
    };
    for (channel, _) in &asked.channels {
        app.allow(&identity, Verb::Subscribe, channel)?;
        if asked.presence {
            app.allow(&identity, Verb::Presence, channel)?;
        }
    }
    let admission = match app.admit(&request, identity.own) {
        Ok(admission) => Box::new(admission),
        Err(refusal) => return Ok(refusal.into_stream()),
    };
    let arrival = Accepted { identity: Ok(Some(identity)), admission };
    if request.version() == Version::HTTP_2 {
        lend.carries_a_client();
        return Ok(stream_body(&app, asked, arrival));
    }
    if let Some(socket) = lend.take(&app.client_tasks) {
        let mut connection = Connection::sse(Arc::clone(&app.connections), socket, asked, arrival);
        let (page, issued) = (request.extensions().get(), request.extensions().get());
        connection.write_first(head(page, issued));
        run(&app, connection);
    }
    // Goes nowhere: the HTTP stack has no socket any more and ends.
    Ok(StatusCode::OK.into_response())
}

/// On HTTP/2 the connection is shared with other requests, so the stack keeps it.
fn stream_body(app: &AppState, asked: StreamRequest, arrival: Accepted) -> Response {
    let pipe = Arc::new(Pipe::default());
    let socket = Socket::Pipe(Arc::clone(&pipe));
    run(app, Connection::sse(Arc::clone(&app.connections), socket, asked, arrival));
    let pieces = stream::unfold(Tap(pipe), |tap| async move {
        tap.0.next().await.map(|piece| (Ok::<_, Infallible>(piece), tap))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    let no_cache = HeaderValue::from_static("no-cache, no-transform");
    headers.insert(header::CACHE_CONTROL, no_cache);
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn run(app: &AppState, connection: Connection) {
    app.client_tasks.spawn_client(async move {
        connection.run(crate::protocol::CloseCode::Normal).await;
    });
}

/// The stack's end of a pipe: when the stack drops it, the client is gone.
struct Tap(Arc<Pipe>);

impl Drop for Tap {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// Reads what a stream is asked for: `channel=` once for each, `since=` or `Last-Event-ID`,
/// `session=`, `presence=1`, `overlap=1`, `client=`, `unit=`, `format=raw` or `frames`.
fn parse(query: &str, headers: &HeaderMap, most: usize) -> Result<StreamRequest, ApiError> {
    let mut channels: Vec<Channel> = Vec::new();
    let (mut since, mut session, mut format) = (None, None, WireFormat::Sse);
    let (mut presence, mut overlap) = (false, false);
    let (mut client, mut unit) = (None, None);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "channel" => channels.push(refuse(ErrorCode::ChannelInvalid, value.parse())?),
            "since" => since = Some(refuse(ErrorCode::PositionInvalid, value.parse())?),
            "session" => session = Some(refuse(ErrorCode::SessionUnknown, value.parse())?),
            "presence" => presence = value == "1",
            "overlap" => overlap = value == "1",
            "client" => client = Some(value),
            "unit" => unit = Some(value),
            "format" if value == "raw" => format = WireFormat::SseRaw,
            "format" if value == "frames" => format = WireFormat::SseFrames,
            "format" => {
                let message = format!("format={value}: raw and frames are known, or leave it out");
                return Err(ApiError::new(ErrorCode::Malformed, message));
            }
            // An EventSource polyfill may add keys of its own.
            _ => {}
        }
    }
    let mut seen = HashSet::new();
    channels.retain(|channel| seen.insert(channel.clone()));
    if channels.is_empty() {
        let message = "name at least one channel: /events?channel=news";
        return Err(ApiError::new(ErrorCode::ChannelInvalid, message));
    }
    if most < channels.len() {
        let message = format!("a stream may have {most} channels");
        return Err(ApiError::new(ErrorCode::TooMany, message));
    }
    // What the browser remembers is newer than what the page's address says.
    if let Some(last) = headers.get("last-event-id").filter(|last| !last.is_empty()) {
        since = Some(refuse(
            ErrorCode::PositionInvalid,
            last.to_str().unwrap_or_default().parse::<Positions>(),
        )?);
    }
    if matches!(since, Some(Positions::One(_))) && channels.len() != 1 {
        let message = "a bare position is for a stream of one channel: \
                       write CHANNEL~POSITION,CHANNEL~POSITION";
        return Err(ApiError::new(ErrorCode::PositionInvalid, message));
    }
    let place = |channel: Channel| {
        let position = since.as_ref().and_then(|since| since.of(&channel));
        (channel, position)
    };
    let channels = channels.into_iter().map(place).collect();
    let about = About::new(client.as_deref(), unit.as_deref());
    Ok(StreamRequest { session, channels, presence, overlap, about, format })
}

fn refuse<T, E: ToString>(code: ErrorCode, parsed: Result<T, E>) -> Result<T, ApiError> {
    parsed.map_err(|err| ApiError::new(code, err))
}

/// Takes one frame, or a list of them, and answers with as many.
pub(super) async fn ask(
    State(app): State<AppState>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Path(session) = path?;
    let session: SessionId = refuse(ErrorCode::SessionUnknown, session.parse())?;
    let limits = &app.connections.limits;
    let body = read_body(request, &app).await?;
    let text = refuse(ErrorCode::Malformed, String::from_utf8(body.into()))?;
    if text.trim_start().starts_with('[') {
        let frames: Vec<&RawValue> = refuse(ErrorCode::Malformed, serde_json::from_str(&text))?;
        if limits.batch_events < frames.len() {
            let message = format!("a list may have {} frames", limits.batch_events);
            return Err(ApiError::new(ErrorCode::TooMany, message));
        }
    }
    match app.connections.ask(session, text).await {
        None => {
            let message = format!("session {session} has no stream open");
            Err(ApiError::new(ErrorCode::SessionUnknown, message))
        }
        Some(replies) if replies.is_empty() => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(replies) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            Ok((json, replies).into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str, last_event_id: &str) -> Result<StreamRequest, ErrorCode> {
        let mut headers = HeaderMap::new();
        headers.insert("last-event-id", HeaderValue::from_str(last_event_id).unwrap());
        parse(query, &headers, 2).map_err(|err| err.code)
    }

    #[test]
    fn each_channel_gets_its_own_position() {
        let asked = asked("channel=a&channel=b&since=a~z-1,b~z-2&format=raw", "").unwrap();
        let offsets: Vec<_> = asked.channels.iter().map(|(_, p)| p.map(|p| p.offset)).collect();
        assert_eq!(offsets, [Some(1), Some(2)]);
        assert_eq!(asked.format, WireFormat::SseRaw);
    }

    #[test]
    fn what_the_browser_remembers_counts_more_than_the_address() {
        let asked = asked("channel=a&since=z-1", "z-7").unwrap();
        assert_eq!(asked.channels[0].1.map(|p| p.offset), Some(7));
    }

    #[test]
    fn a_wrong_address_is_refused_with_its_reason() {
        assert_eq!(asked("", "").unwrap_err(), ErrorCode::ChannelInvalid);
        assert_eq!(asked("channel=a%20b", "").unwrap_err(), ErrorCode::ChannelInvalid);
        assert_eq!(asked("channel=a&since=7", "").unwrap_err(), ErrorCode::PositionInvalid);
        assert_eq!(asked("channel=a&channel=b", "z-7").unwrap_err(), ErrorCode::PositionInvalid);
        assert_eq!(asked("channel=a&format=xml", "").unwrap_err(), ErrorCode::Malformed);
        assert_eq!(asked("channel=a&format=frames", "").unwrap().format, WireFormat::SseFrames);
        assert_eq!(asked("channel=a&channel=b&channel=c", "").unwrap_err(), ErrorCode::TooMany);
        assert!(asked("channel=a&channel=a&channel=b", "").is_ok());
    }
}
