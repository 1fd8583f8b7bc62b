//! Publishing over HTTP: `POST /api/publish` and `POST /api/publish/batch`.
//!
//! Parses events and checks limits and permissions; ids, offsets and deduplication are the broker's.

use axum::{
    Json,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    AppState,
    error::{ApiError, RETRY_AFTER, read_json},
};
use crate::{
    auth::Verb,
    broker::{BrokerError, Publication, Receipt},
    protocol::{
        Channel, Draft, ErrorCode, MessageId, Position,
        frame::{draft, present},
    },
};

/// The event of a request. Unknown fields are rejected, as a misspelt one would be lost silently.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    channel: Option<String>,
    channels: Option<Vec<String>>,
    id: Option<String>,
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    data: Option<Box<RawValue>>,
}

/// The body of a batch request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    events: Vec<Box<RawValue>>,
}

/// The result of publishing one event to one channel.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Stored { id: MessageId, channel: Channel, position: Position, duplicate: bool },
    Failed { error: ApiError },
}

impl Outcome {
    fn new(publication: Publication, receipt: Result<Receipt, BrokerError>) -> Self {
        match receipt {
            Ok(Receipt { position, duplicate }) => Self::Stored {
                id: publication.draft.id,
                channel: publication.channel,
                position,
                duplicate,
            },
            Err(err) => Self::Failed { error: err.into() },
        }
    }

    fn error(&self) -> Option<&ApiError> {
        match self {
            Self::Stored { .. } => None,
            Self::Failed { error } => Some(error),
        }
    }
}

/// `POST /api/publish`: publishes an event to one channel, or to each of channels. 200 means that it is
/// in all of them.
pub(super) async fn publish_one(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.connections.limits;
    let caller = app.authenticate(request.headers()).await?;
    let body: Body = read_json(request, &app).await?;
    let is_multi_channel = body.channels.is_some();
    let batch = publications(body, limits.event_bytes, limits.batch_events)?;
    for publication in &batch {
        app.authorize(&caller, Verb::Publish, &publication.channel)?;
    }
    let mut outcomes = publish(&app, batch).await;
    match outcomes.iter().find_map(Outcome::error) {
        Some(error) if !is_multi_channel => return Err(error.clone()),
        None if !is_multi_channel => return Ok(Json(outcomes.pop()).into_response()),
        Some(_) | None => {}
    }
    Ok(results(&outcomes))
}

/// The response with one result per channel; status and `Retry-After` are those of the first error.
fn results(outcomes: &[Outcome]) -> Response {
    let error = outcomes.iter().find_map(Outcome::error);
    let status = error.map_or(200, |error| error.code.status());
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = Json(serde_json::json!({ "results": outcomes }));
    let mut response = (status, body).into_response();
    if error.is_some_and(ApiError::is_retryable) {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// `POST /api/publish/batch`: publishes many events. Each has its own result, so an invalid event does
/// not affect the others. 503 only when the broker is unavailable for all of them.
pub(super) async fn publish_batch(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.connections.limits;
    let caller = app.authenticate(request.headers()).await?;
    let body: Batch = read_json(request, &app).await?;
    if limits.batch_events < body.events.len() {
        let (len, max) = (body.events.len(), limits.batch_events);
        let message = format!("the batch has {len} events, limits.batch_events is {max}");
        return Err(ApiError::new(ErrorCode::TooMany, message));
    }
    let parse = |raw: &RawValue| {
        let body: Body = serde_json::from_str(raw.get())
            .map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
        let mut publications = publications(body, limits.event_bytes, 1)?;
        let publication = publications.remove(0);
        app.authorize(&caller, Verb::Publish, &publication.channel)?;
        Ok(publication)
    };
    let parsed: Vec<_> = body.events.iter().map(|raw| parse(raw)).collect();
    let valid = parsed.iter().filter_map(|event| event.as_ref().ok().cloned()).collect();
    let mut outcomes = publish(&app, valid).await.into_iter();
    let results: Vec<_> = parsed
        .into_iter()
        .filter_map(|event| match event {
            Ok(_) => outcomes.next(),
            Err(error) => Some(Outcome::Failed { error }),
        })
        .collect();
    let is_unavailable = |outcome: &Outcome| {
        outcome.error().is_some_and(|error| error.code == ErrorCode::Unavailable)
    };
    match results.first().and_then(Outcome::error) {
        Some(error) if results.iter().all(is_unavailable) => Err(error.clone()),
        _ => Ok(Json(serde_json::json!({ "results": results })).into_response()),
    }
}

async fn publish(app: &AppState, batch: Vec<Publication>) -> Vec<Outcome> {
    let receipts = app.connections.node.publish(batch.clone()).await;
    batch.into_iter().zip(receipts).map(|(event, receipt)| Outcome::new(event, receipt)).collect()
}

/// Validates an event; one publication per channel.
fn publications(
    body: Body,
    event_bytes: usize,
    max_channels: usize,
) -> Result<Vec<Publication>, ApiError> {
    let Some(data) = body.data else {
        return Err(ApiError::new(ErrorCode::Malformed, "\"data\" is missing: any JSON value"));
    };
    let draft: Draft = draft(body.id.as_deref(), body.name.as_deref(), &data)?;
    if event_bytes < draft.data.len() {
        let message =
            format!("\"data\" has {} bytes, limits.event_bytes is {event_bytes}", draft.data.len());
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let names = match (body.channel, body.channels) {
        (Some(channel), None) => vec![channel],
        (None, Some(channels)) if !channels.is_empty() && channels.len() <= max_channels => {
            channels
        }
        (None, Some(channels)) if max_channels < channels.len() => {
            let message =
                format!("{} channels, at most {max_channels} are allowed", channels.len());
            return Err(ApiError::new(ErrorCode::TooMany, message));
        }
        _ => {
            let message = "set either \"channel\" or \"channels\" (not empty)";
            return Err(ApiError::new(ErrorCode::ChannelInvalid, message));
        }
    };
    let publication = |name: String| match name.parse() {
        Ok(channel) => Ok(Publication { channel, draft: draft.clone() }),
        Err(err) => Err(ApiError::new(ErrorCode::ChannelInvalid, format!("{name:?}: {err}"))),
    };
    names.into_iter().map(publication).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unavailable_broker_sends_retry_after_for_multiple_channels_too() {
        let failed = |code| Outcome::Failed { error: ApiError::new(code, "") };
        let response = results(&[failed(ErrorCode::Unavailable)]);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        let response = results(&[failed(ErrorCode::Refused)]);
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
