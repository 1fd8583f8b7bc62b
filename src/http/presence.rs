//! Presence and forced disconnects: `GET /api/channels/{channel}/presence`,
//! `POST /api/sessions/disconnect`. Both cover all nodes of the cluster.

use axum::{
    Json,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};

use super::{
    AppState,
    error::{ApiError, read_json},
};
use crate::{
    auth::{Scope, Verb},
    cluster::Disconnect,
    protocol::{Channel, ErrorCode, Member, MemberId, SessionId, UserId},
};

/// Default and largest number of members of a page.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

#[derive(Deserialize)]
pub(super) struct PresenceQuery {
    limit: Option<usize>,
    cursor: Option<MemberId>,
}

#[derive(Serialize)]
pub(super) struct Presence {
    channel: Channel,
    /// Members of the channel, on all pages.
    count: usize,
    members: Vec<std::sync::Arc<Member>>,
    /// The `cursor` of the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<MemberId>,
}

/// `GET /api/channels/{channel}/presence`: the members of a channel in pages; with `limit=0` only their
/// count.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<PresenceQuery>, QueryRejection>,
) -> Result<Json<Presence>, ApiError> {
    let Path(channel) = path?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let channel: Channel =
        channel.parse().map_err(|err| ApiError::new(ErrorCode::ChannelInvalid, err))?;
    app.authorize(&*app.authenticate(&headers).await?, Verb::Presence, &channel)?;
    let cluster = &app.connections.cluster;
    cluster.synced().await;
    let limit = query.limit.unwrap_or(PAGE).min(PAGE_MAX);
    let (count, mut members) = cluster.members(&channel, query.cursor, limit + 1);
    let more = limit < members.len();
    members.truncate(limit);
    let cursor = members.last().filter(|_| more).map(|member| member.session);
    Ok(Json(Presence { channel, count, members, cursor }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    session: Option<String>,
    user: Option<UserId>,
    reason: Option<String>,
    #[serde(default)]
    reconnect: bool,
}

/// Most bytes of a reason: a WebSocket close frame has 125 bytes, two of them for the code.
const REASON_MAX: usize = 120;

/// `POST /api/sessions/disconnect`: disconnects a session, or all sessions of a user. The session is
/// identified by its session id or by its member id in presence.
pub(super) async fn disconnect(
    State(app): State<AppState>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    app.require_scope(&*app.authenticate(request.headers()).await?, Scope::Admin)?;
    let target: Target = read_json(request, &app).await?;
    let session = target.session.as_deref().map(parse_session).transpose()?;
    if session.is_some() == target.user.is_some() {
        let message = "set either \"session\" or \"user\"";
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    if target.reason.as_ref().is_some_and(|reason| REASON_MAX < reason.len()) {
        let message = format!("\"reason\" is longer than {REASON_MAX} bytes");
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    app.connections.cluster.disconnect(Disconnect {
        session,
        user: target.user,
        reconnect: target.reconnect,
        reason: target.reason.map(Into::into),
    });
    Ok(StatusCode::ACCEPTED)
}

fn parse_session(text: &str) -> Result<MemberId, ApiError> {
    let by_session_id = text.parse::<SessionId>().map(MemberId::of);
    let member = by_session_id.or_else(|_| text.parse::<MemberId>());
    member.map_err(|err| ApiError::new(ErrorCode::SessionUnknown, err))
}
