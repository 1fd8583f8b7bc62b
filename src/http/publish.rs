//! `POST /api/publish` and `POST /api/publish/batch`.

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

/// An event as a backend service sends it. Unknown fields are refused: one that is misspelt would
/// lose what it says.
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

/// A batch of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    events: Vec<Box<RawValue>>,
}

/// What became of one event in one channel.
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

/// Publishes an event to one channel, or to each of several. 2xx means that it is in all of them.
pub(super) async fn one(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.connections.limits;
    let caller = app.authenticate(request.headers()).await?;
    let body: Body = read_json(request, &app).await?;
    let several = body.channels.is_some();
    let batch = publications(body, limits.event_bytes, limits.batch_events)?;
    for publication in &batch {
        app.authorize(&caller, Verb::Publish, &publication.channel)?;
    }
    let mut outcomes = publish(&app, batch).await;
    match outcomes.iter().find_map(Outcome::error) {
        Some(error) if !several => return Err(error.clone()),
        None if !several => return Ok(Json(outcomes.pop()).into_response()),
        Some(_) | None => {}
    }
    Ok(results(&outcomes))
}

/// One result for each channel; the status and `Retry-After` are those of the first that failed.
fn results(outcomes: &[Outcome]) -> Response {
    let error = outcomes.iter().find_map(Outcome::error);
    let status = error.map_or(200, |error| error.code.status());
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = Json(serde_json::json!({ "results": outcomes }));
    let mut response = (status, body).into_response();
    if error.is_some_and(ApiError::passes) {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// Publishes many events. Each has its own result; a bad one does not spoil the rest. 503 only when
/// none of them could be stored.
pub(super) async fn batch(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.connections.limits;
    let caller = app.authenticate(request.headers()).await?;
    let body: Batch = read_json(request, &app).await?;
    if limits.batch_events < body.events.len() {
        let (len, most) = (body.events.len(), limits.batch_events);
        let message = format!("the batch has {len} events, it may have {most}");
        return Err(ApiError::new(ErrorCode::TooMany, message));
    }
    let single = |raw: &RawValue| {
        let body: Body = serde_json::from_str(raw.get())
            .map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
        let one = publications(body, limits.event_bytes, 1).map(|mut one| one.remove(0))?;
        app.authorize(&caller, Verb::Publish, &one.channel)?;
        Ok(one)
    };
    let parsed: Vec<_> = body.events.iter().map(|raw| single(raw)).collect();
    let good = parsed.iter().filter_map(|event| event.as_ref().ok().cloned()).collect();
    let mut stored = publish(&app, good).await.into_iter();
    let results: Vec<_> = parsed
        .into_iter()
        .filter_map(|event| match event {
            Ok(_) => stored.next(),
            Err(error) => Some(Outcome::Failed { error }),
        })
        .collect();
    let away = |outcome: &Outcome| {
        outcome.error().is_some_and(|error| error.code == ErrorCode::Unavailable)
    };
    match results.first().and_then(Outcome::error) {
        Some(error) if results.iter().all(away) => Err(error.clone()),
        _ => Ok(Json(serde_json::json!({ "results": results })).into_response()),
    }
}

async fn publish(app: &AppState, batch: Vec<Publication>) -> Vec<Outcome> {
    let receipts = app.connections.node.publish(batch.clone()).await;
    batch.into_iter().zip(receipts).map(|(event, receipt)| Outcome::new(event, receipt)).collect()
}

fn publications(body: Body, event_bytes: usize, most: usize) -> Result<Vec<Publication>, ApiError> {
    let Some(data) = body.data else {
        return Err(ApiError::new(ErrorCode::Malformed, "\"data\" is missing: any JSON will do"));
    };
    let draft: Draft = draft(body.id.as_deref(), body.name.as_deref(), &data)?;
    if event_bytes < draft.data.len() {
        let message =
            format!("\"data\" has {} bytes, an event may have {event_bytes}", draft.data.len());
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let names = match (body.channel, body.channels) {
        (Some(one), None) => vec![one],
        (None, Some(several)) if !several.is_empty() && several.len() <= most => several,
        (None, Some(several)) if most < several.len() => {
            let message = format!("{} channels are named, {most} may be", several.len());
            return Err(ApiError::new(ErrorCode::TooMany, message));
        }
        _ => {
            let message = "name a \"channel\", or \"channels\", but not both";
            return Err(ApiError::new(ErrorCode::ChannelInvalid, message));
        }
    };
    let to = |name: String| match name.parse() {
        Ok(channel) => Ok(Publication { channel, draft: draft.clone() }),
        Err(err) => Err(ApiError::new(ErrorCode::ChannelInvalid, format!("{name:?}: {err}"))),
    };
    names.into_iter().map(to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_away_says_when_to_come_back_for_several_channels_too() {
        let away = |code| Outcome::Failed { error: ApiError::new(code, "away") };
        let response = results(&[away(ErrorCode::Unavailable)]);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        let response = results(&[away(ErrorCode::Refused)]);
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
