//! `POST /events/{session}`: requests of a client beside its SSE stream.

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::value::RawValue;

use super::{
    AppState,
    error::{ApiError, read_body},
};
use crate::protocol::{ErrorCode, SessionId};

/// Performs one frame or a list of them, and answers with the replies.
pub(super) async fn perform(
    State(app): State<AppState>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Path(session) = path?;
    let session: SessionId = valid(ErrorCode::SessionUnknown, session.parse())?;
    let limits = &app.connections.limits;
    let body = read_body(request, &app).await?;
    let text = valid(ErrorCode::Malformed, String::from_utf8(body.into()))?;
    if text.trim_start().starts_with('[') {
        let frames: Vec<&RawValue> = valid(ErrorCode::Malformed, serde_json::from_str(&text))?;
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

fn valid<T, E: ToString>(code: ErrorCode, parsed: Result<T, E>) -> Result<T, ApiError> {
    parsed.map_err(|err| ApiError::new(code, err))
}
