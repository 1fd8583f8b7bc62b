//! Who is where, and cutting somebody off: calls that concern sessions, on whichever node they are.

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

/// Members of a page whose request names no limit, and the most of one that does.
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
    /// All of them, on this page or not.
    count: usize,
    members: Vec<std::sync::Arc<Member>>,
    /// For the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<MemberId>,
}

/// Who is in a channel, cluster-wide, in pages. With `limit=0` only how many.
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

/// Bytes of a reason: it has to fit into a close frame's neighbour, not tell a story.
const REASON_MAX: usize = 120;

/// Cuts off a session, or all of a user's, on whichever node. The session is named by its own id or
/// by the one that presence shows.
pub(super) async fn disconnect(
    State(app): State<AppState>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    app.require_scope(&*app.authenticate(request.headers()).await?, Scope::Admin)?;
    let whom: Target = read_json(request, &app).await?;
    let session = whom.session.as_deref().map(session).transpose()?;
    if session.is_some() == whom.user.is_some() {
        let message = "name either a \"session\" or a \"user\"";
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    if whom.reason.as_ref().is_some_and(|reason| REASON_MAX < reason.len()) {
        let message = format!("a reason may have {REASON_MAX} bytes");
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    app.connections.cluster.disconnect(Disconnect {
        session,
        user: whom.user,
        reconnect: whom.reconnect,
        reason: whom.reason.map(Into::into),
    });
    Ok(StatusCode::ACCEPTED)
}

fn session(raw: &str) -> Result<MemberId, ApiError> {
    let secret = raw.parse::<SessionId>().map(MemberId::of);
    let session = secret.or_else(|_| raw.parse::<MemberId>());
    session.map_err(|err| ApiError::new(ErrorCode::SessionUnknown, err))
}
