//! `GET /api/channels` and `GET /api/channels/{channel}/history`.

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
    channels: Vec<Occupied>,
    /// To ask on with; none at the end.
    cursor: Option<Channel>,
}

#[derive(Serialize)]
struct Occupied {
    channel: Channel,
    subscribers: usize,
}

/// Most channels of one answer.
const LIST_MAX: usize = 1000;

/// The channels that have subscribers on this node, by name.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<List>, ApiError> {
    app.allow_scope(&*app.caller(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let limit = query.limit.unwrap_or(100).clamp(1, LIST_MAX);
    let prefix = query.prefix.unwrap_or_default();
    let after = query.cursor.unwrap_or_default();
    let mut occupied = app.connections.node.reader_counts();
    occupied.retain(|(channel, readers)| {
        let name = channel.as_str();
        *readers != 0 && name.starts_with(&prefix) && after.as_str() < name
    });
    occupied.sort_unstable();
    let more = limit < occupied.len();
    occupied.truncate(limit);
    let cursor = occupied.last().filter(|_| more).map(|(channel, _)| channel.clone());
    let show = |(channel, subscribers)| Occupied { channel, subscribers };
    let channels = occupied.into_iter().map(show).collect();
    Ok(Json(List { node: app.connections.node.name().to_string(), channels, cursor }))
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    since: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    reverse: bool,
}

/// A piece of a channel's log: behind `since`, or with `reverse` before it, the newest first.
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
    app.allow(&*app.caller(&headers).await?, Verb::History, &channel)?;
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
    let show =
        |(offset, event): &(u64, _)| PageEvent::new(Position::new(slice.epoch, *offset), event);
    let nothing_before = before == 0 || slice.head == 0;
    let complete = nothing_before || slice.events.last().is_some_and(|(first, _)| *first == 1);
    Ok(Json(Page {
        channel,
        events: slice.events.iter().map(show).collect(),
        position: Position::new(slice.epoch, slice.head),
        complete,
    }))
}
