//! Streams of Server-Sent Events: the request, after which the socket is detached from the HTTP stack.
//!
//! One handler serves every [`StreamWire`]: the path selects the wire, the wire reads the request and
//! begins the conversation.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Request, State},
    http::{HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;

use super::{
    AppState,
    admission::Refusal,
    detach::DetachableSocket,
    error::ApiError,
    legacy::{IssuedCookie, LegacyRequest},
    origin::AllowedOrigin,
};
use crate::{
    auth::{TokenError, Verb},
    connection::{
        Accepted, Connection,
        socket::{Pipe, Socket},
    },
    protocol::{ErrorCode, frame::About},
    wire::{Handshake, Opening, StreamWire},
};

/// The head of a stream on HTTP/1.1: it ends when the connection does.
const HEAD: &str = "HTTP/1.1 200 OK\r\n\
    content-type: text/event-stream\r\n\
    cache-control: no-cache, no-transform\r\n\
    x-accel-buffering: no\r\n\
    connection: close\r\n";

pub(super) async fn open(
    State(app): State<AppState>,
    Extension(detachable): Extension<DetachableSocket>,
    wire: &'static dyn StreamWire,
    request: Request,
) -> Result<Response, ApiError> {
    // The router sends HEAD here too; it must not be answered with a stream.
    if request.method() != Method::GET {
        let message = format!("{} answers GET requests, with a stream", wire.path());
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, message));
    }
    let subscriptions = app.connections.limits.subscriptions;
    let (uri, headers) = (request.uri(), request.headers());
    let (conversation, mut stream) = wire.open(Handshake { uri, headers, subscriptions })?;
    if let Some(LegacyRequest(unit)) = request.extensions().get::<LegacyRequest>() {
        stream.about = About { client: None, unit: Some(unit.clone()), legacy_address: true };
    }
    let identity = match app.client_identity(request.headers(), request.uri()).await {
        Err(TokenError::KeysUnavailable) => return Ok(Refusal::keys_unavailable().into_stream()),
        identity => app.require_identity(identity?)?,
    };
    for (channel, _) in &stream.channels {
        app.authorize(&identity, Verb::Subscribe, channel)?;
        if stream.presence {
            app.authorize(&identity, Verb::Presence, channel)?;
        }
    }
    let permit = match app.admit(&request, identity.internal) {
        Ok(permit) => Box::new(permit),
        Err(refusal) => return Ok(refusal.into_stream()),
    };
    let accepted = Accepted { identity: Ok(Some(identity)), permit };
    let connections = Arc::clone(&app.connections);
    let connect = |socket| {
        let opening = Opening::Stream(stream);
        Connection::open(connections, (socket, &[]), conversation, opening, accepted)
    };
    if request.version() == Version::HTTP_2 {
        detachable.release_socket_permit();
        return Ok(http2_stream(&app, connect));
    }
    if let Some(socket) = detachable.detach(&app.client_tasks) {
        let mut connection = connect(socket);
        let (origin, cookie) = (request.extensions().get(), request.extensions().get());
        connection.write_first(head(origin, cookie));
        run(&app, connection);
    }
    // Never written: the HTTP stack has no socket any more and ends.
    Ok(StatusCode::OK.into_response())
}

fn head(origin: Option<&AllowedOrigin>, cookie: Option<&IssuedCookie>) -> Bytes {
    let origin = origin.map(AllowedOrigin::head_lines).unwrap_or_default();
    let cookie = cookie.map(IssuedCookie::head_line).unwrap_or_default();
    format!("{HEAD}{origin}{cookie}\r\n").into()
}

/// On HTTP/2 the connection is shared with other requests, so the HTTP stack keeps it.
fn http2_stream(app: &AppState, connect: impl FnOnce(Socket) -> Connection) -> Response {
    let pipe = Arc::new(Pipe::default());
    run(app, connect(Socket::Pipe(Arc::clone(&pipe))));
    let pieces = stream::unfold(PipeEnd(pipe), |end| async move {
        end.0.next().await.map(|piece| (Ok::<_, Infallible>(piece), end))
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
        connection.run().await;
    });
}

/// The HTTP stack's end of a pipe: when the stack drops it, the client is gone.
struct PipeEnd(Arc<Pipe>);

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}
