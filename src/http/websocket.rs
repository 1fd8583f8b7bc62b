//! The WebSocket handshake, after which the socket is detached from the HTTP stack.
//!
//! One handler serves every [`WebSocketWire`]: the path and the subprotocol select the wire, the wire
//! begins the conversation.

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
    wire::{Handshake, Opening, WEBSOCKETS, WebSocketWire},
};

/// The paths that wires upgrade at, each once.
pub(super) fn paths() -> Vec<&'static str> {
    let mut paths: Vec<_> = WEBSOCKETS.iter().map(|wire| wire.path()).collect();
    paths.dedup();
    paths
}

pub(super) async fn open(
    State(app): State<AppState>,
    Extension(detachable): Extension<DetachableSocket>,
    path: &'static str,
    mut request: Request,
) -> Result<Response, ApiError> {
    let accept_key = check_handshake(request.method(), request.headers())?;
    let (wire, offered) = choose_wire(path, request.headers())?;
    let subscriptions = app.connections.limits.subscriptions;
    let (uri, headers) = (request.uri(), request.headers());
    let conversation = wire.open(Handshake { uri, headers, subscriptions })?;
    let permit = match app.admit(&request, app.is_internal(request.headers())) {
        Ok(permit) => Box::new(permit),
        Err(refusal) => return Ok(refusal.into_response()),
    };
    // A browser does not show a page why a handshake failed: the reason goes over the WebSocket.
    let identity = app.client_identity(request.headers(), request.uri()).await;
    let accepted = Accepted { identity, permit };
    let upgrade = hyper::upgrade::on(&mut request);
    let (stage, connections) = (app.client_tasks.clone(), Arc::clone(&app.connections));
    app.client_tasks.spawn_client(Box::pin(async move {
        let Ok(upgraded) = upgrade.await else { return };
        // Bytes that came right behind the handshake belong to the first frame.
        let Ok(parts) = downcast::<TokioIo<DetachableSocket>>(upgraded) else { return };
        let Some(socket) = detachable.detach(&stage) else { return };
        let from = (socket, &*parts.read_buf);
        let connection =
            Connection::open(connections, from, conversation, Opening::Connect, accepted);
        drop(parts);
        // In a task of its own, so that nothing of the handshake stays with the client.
        stage.spawn_client(async move {
            connection.run().await;
        });
    }));
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept_key);
    if offered {
        let value = HeaderValue::from_static(wire.subprotocol());
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(response)
}

/// Checks the RFC 6455 handshake. Returns the accept key.
fn check_handshake(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let refused = |message: &str| Err(ApiError::new(ErrorCode::Malformed, message));
    if *method != Method::GET
        || !lists(headers, header::CONNECTION, "upgrade")
        || !lists(headers, header::UPGRADE, "websocket")
    {
        return refused(
            "a WebSocket handshake is required: send Connection: Upgrade, Upgrade: websocket",
        );
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return refused("Sec-WebSocket-Version has to be 13");
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refused("Sec-WebSocket-Key is missing");
    };
    let mut digest = Sha1::new();
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept_key = BASE64_STANDARD.encode(digest.finalize());
    HeaderValue::from_str(&accept_key).map_err(|err| ApiError::new(ErrorCode::Malformed, err))
}

/// The wire of a path whose subprotocol the client offers, and whether it offered any: one that offers
/// none gets the first.
fn choose_wire(
    path: &str,
    headers: &HeaderMap,
) -> Result<(&'static dyn WebSocketWire, bool), ApiError> {
    let offered = headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL);
    let mut wires = WEBSOCKETS.iter().copied().filter(|wire| wire.path() == path);
    let wire = wires.clone().find(|wire| {
        !offered || lists(headers, header::SEC_WEBSOCKET_PROTOCOL, wire.subprotocol())
    });
    let Some(wire) = wire else {
        let known: Vec<_> = wires.by_ref().map(|wire| wire.subprotocol()).collect();
        let message =
            format!("{path} has the subprotocol {}: offer it or none", known.join(" or "));
        return Err(ApiError::new(ErrorCode::Malformed, message));
    };
    Ok((wire, offered))
}

/// Whether a header's comma-separated list has a word.
fn lists(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
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
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let accept_key = check_handshake(&Method::GET, &headers).unwrap();
        assert_eq!(accept_key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn the_subprotocol_selects_the_wire() {
        let mut headers = HeaderMap::new();
        let (wire, offered) = choose_wire("/ws", &headers).unwrap();
        assert_eq!((wire.subprotocol(), offered), ("crossfade.v1", false));
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("other, crossfade.v1"));
        assert!(choose_wire("/ws", &headers).unwrap().1);
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("graphql-ws"));
        assert!(choose_wire("/ws", &headers).is_err());
    }
}
