//! Transport assignment: `GET /api/route` tells a client which transport to use, and why.

use axum::{
    Json,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{AppState, error::ApiError};
use crate::{
    protocol::ErrorCode,
    rollout::{
        assignment::{Reason, Unit},
        cohort::Cohort,
        flag::TRANSPORT,
        schedule::Stop,
    },
};

#[derive(Deserialize)]
pub(super) struct RouteQuery {
    /// Durable id of the client; identifies it where the token names no user.
    client: Option<String>,
    /// The transport that the client uses now.
    transport: Option<String>,
}

/// The response.
#[derive(Serialize)]
struct Route {
    #[serde(flatten)]
    assigned: Transport,
    /// The transport to use when the assigned one cannot connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<Transport>,
    component: &'static str,
    /// The cohort that the user is measured in.
    cohort: Cohort,
    /// The user's bucket in percent: below the rollout's percentage is the new side. None without a
    /// rollout or a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<f64>,
    reason: Reason,
    /// The version of the rollout; 0 without one.
    version: u64,
}

#[derive(Clone, Copy, Serialize)]
struct Transport {
    transport: &'static str,
    url: &'static str,
}

const WEBSOCKET: Transport = Transport { transport: "websocket", url: "/ws" };
const SSE: Transport = Transport { transport: "sse", url: "/events" };

/// `GET /api/route`.
pub(super) async fn assign(
    State(app): State<AppState>,
    query: Result<Query<RouteQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let identity = app.client_identity(request.headers(), request.uri()).await?;
    let identity = app.require_identity(identity)?;
    let user = identity.user.as_ref().map(ToString::to_string);
    let id = user.or(query.client.filter(|id| !id.is_empty()));
    let unit = id.map(|id| Unit { id, groups: identity.groups.clone() });
    let route = assignment(&app, unit.as_ref(), query.transport.as_deref());
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(route)).into_response())
}

fn assignment(app: &AppState, unit: Option<&Unit>, current: Option<&str>) -> Route {
    let flags = app.connections.rollouts.registry.now();
    let Some(record) = flags.get(TRANSPORT) else {
        // Without a rollout, WebSocket is the default. Until this node has read the store it does not
        // know whether there is one, and assigns SSE, which is always safe.
        let (assigned, other) = if flags.read { (WEBSOCKET, SSE) } else { (SSE, WEBSOCKET) };
        return Route {
            assigned,
            fallback: Some(other),
            component: TRANSPORT,
            cohort: Cohort::Rest,
            bucket: None,
            reason: Reason::Off,
            version: 0,
        };
    };
    let flag = &record.flag;
    // Without an id the assignment would change with each request, so it is the old side.
    let assignment =
        unit.map(|unit| flag.assignment(unit, app.connections.rollouts.registry.environment()));
    let frozen = flag.course.stop == Some(Stop::Freeze) && current != Some(WEBSOCKET.transport);
    let new = assignment.is_some_and(|assignment| assignment.new) && !frozen;
    let (assigned, other) = if new { (WEBSOCKET, SSE) } else { (SSE, WEBSOCKET) };
    Route {
        assigned,
        // Only the new side has a fallback: the old one must not fall back to what is on trial.
        fallback: (new && flag.fallback_enabled).then_some(other),
        component: TRANSPORT,
        cohort: assignment.map_or(Cohort::Rest, |assignment| assignment.cohort),
        bucket: assignment.map(|assignment| f64::from(assignment.bucket.number()) / 1000.0),
        reason: assignment.map_or(Reason::NotEligible, |assignment| assignment.reason),
        version: flag.version,
    }
}
