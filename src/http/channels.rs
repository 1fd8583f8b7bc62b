//! Channel list and history: `GET /api/channels`, `GET /api/channels/{channel}/history`.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::HeaderMap,
};
use serde::{Deserialize, Serialize};

use super::{AppState, error::ApiError};
use crate::{
    auth::{Scope, Verb},
    broker::Range,
    connection::page,
    protocol::{
        Channel, ErrorCode, Position,
        frame::{Page, PageEvent},
    },
};

#[derive(Deserialize)]
pub(super) struct ListQuery {
    prefix: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Serialize)]
pub(super) struct List {
    node: String,
    channels: Vec<ActiveChannel>,
    /// The `cursor` of the next page; none on the last.
    cursor: Option<Channel>,
}

#[derive(Serialize)]
struct ActiveChannel {
    channel: Channel,
    subscribers: usize,
}

/// Most channels of a page.
const PAGE_MAX: usize = 1000;

/// `GET /api/channels`: the channels with subscribers on this node, sorted by name, in pages.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let limit = query.limit.unwrap_or(100).clamp(1, PAGE_MAX);
    let prefix = query.prefix.unwrap_or_default();
    let after = query.cursor.unwrap_or_default();
    let mut active = app.connections.node.occupied();
    active.retain(|(channel, readers)| {
        let name = channel.as_str();
        *readers != 0 && name.starts_with(&prefix) && after.as_str() < name
    });
    active.sort_unstable();
    let more = limit < active.len();
    active.truncate(limit);
    let cursor = active.last().filter(|_| more).map(|(channel, _)| channel.clone());
    let to_json = |(channel, subscribers)| ActiveChannel { channel, subscribers };
    let channels = active.into_iter().map(to_json).collect();
    Ok(Json(List { node: app.connections.node.name().to_string(), channels, cursor }))
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    since: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    reverse: bool,
}

/// `GET /api/channels/{channel}/history`: a page of the log after `since`, oldest first; with `reverse`
/// before `since`, newest first.
pub(super) async fn history(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<Page>, ApiError> {
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let Path(channel) = path?;
    let channel: Channel =
        channel.parse().map_err(|err| ApiError::new(ErrorCode::ChannelInvalid, err))?;
    app.authorize(&*app.authenticate(&headers).await?, Verb::History, &channel)?;
    let since: Option<Position> = query
        .since
        .map(|since| since.parse())
        .transpose()
        .map_err(|err| ApiError::new(ErrorCode::PositionInvalid, err))?;
    let limit = query.limit.unwrap_or(100).clamp(1, app.connections.limits.history_events);
    if !query.reverse {
        let after = Range::After(since.map_or(0, |since| since.offset));
        let slice = app.connections.node.read(&channel, after, limit).await?;
        return Ok(Json(page(channel, since, slice)));
    }
    let before = since.map_or(u64::MAX, |since| since.offset.saturating_sub(1));
    let slice = app.connections.node.read(&channel, Range::Until(before), limit).await?;
    let to_json =
        |(offset, event): &(u64, _)| PageEvent::new(Position::new(slice.epoch, *offset), event);
    let is_empty = before == 0 || slice.head == 0;
    let complete = is_empty || slice.events.last().is_some_and(|(first, _)| *first == 1);
    Ok(Json(Page {
        channel,
        events: slice.events.iter().map(to_json).collect(),
        position: Position::new(slice.epoch, slice.head),
        complete,
    }))
}
