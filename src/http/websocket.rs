//! `GET /ws`: the handshake, after which the socket leaves the HTTP stack.

use std::sync::Arc;

use axum::{
    extract::{Extension, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper_util::{rt::TokioIo, server::conn::auto::upgrade::downcast};
use sha1::{Digest as _, Sha1};

use super::{AppState, detach::DetachableSocket, error::ApiError};
use crate::{
    connection::{Accepted, Connection},
    protocol::ErrorCode,
};

/// The subprotocol; a client that names others only is refused, one that names none is served.
const SUBPROTOCOL: &str = "crossfade.v1";

pub(super) async fn open(
    State(app): State<AppState>,
    Extension(lend): Extension<DetachableSocket>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let (accept, subprotocol) = shake(request.method(), request.headers())?;
    let admission = match app.admit(&request, app.shows_pass(request.headers())) {
        Ok(admission) => admission,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    // A browser is not shown why a handshake failed: it is told over the WebSocket.
    let identity = app.client(request.headers(), request.uri()).await;
    let arrival = Accepted { identity, admission: Box::new(admission) };
    let upgrade = hyper::upgrade::on(&mut request);
    let (stage, connections) = (app.client_tasks.clone(), Arc::clone(&app.connections));
    app.client_tasks.spawn_client(Box::pin(async move {
        let Ok(upgraded) = upgrade.await else { return };
        // Bytes that came right behind the handshake belong to the first frame.
        let Ok(parts) = downcast::<TokioIo<DetachableSocket>>(upgraded) else { return };
        let Some(socket) = lend.take(&stage) else { return };
        let (connection, first) =
            Connection::websocket(connections, socket, &parts.read_buf, arrival);
        drop(parts);
        // Its own task, so that nothing of the handshake stays with the client.
        stage.spawn_client(async move {
            connection.run(first).await;
        });
    }));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if subprotocol {
        let value = HeaderValue::from_static(SUBPROTOCOL);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(response)
}

/// Checks a handshake. The accept key, and whether the client asked for the subprotocol.
fn shake(method: &Method, headers: &HeaderMap) -> Result<(HeaderValue, bool), ApiError> {
    let refused = |message: &str| Err(ApiError::new(ErrorCode::Malformed, message));
    if *method != Method::GET
        || !names(headers, header::CONNECTION, "upgrade")
        || !names(headers, header::UPGRADE, "websocket")
    {
        return refused(
            "this address speaks WebSocket: send Connection: Upgrade, Upgrade: websocket",
        );
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return refused("Sec-WebSocket-Version has to be 13");
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refused("Sec-WebSocket-Key is missing");
    };
    let asked = headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let ours = names(headers, header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if asked && !ours {
        return refused("the only subprotocol spoken here is crossfade.v1");
    }
    let mut digest = Sha1::new();
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = BASE64_STANDARD.encode(digest.finalize());
    let accept = HeaderValue::from_str(&accept);
    Ok((accept.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?, ours))
}

/// Whether a header's comma-separated list has a word.
fn names(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "other, crossfade.v1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let (accept, subprotocol) = shake(&Method::GET, &headers).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(subprotocol);
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("graphql-ws"));
        assert!(shake(&Method::GET, &headers).is_err());
    }
}
