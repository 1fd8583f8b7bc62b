//! `GET /api/route`: which transport a client is to use, and why.

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
    /// A durable id of the client, for whoever has no user.
    client: Option<String>,
    /// What it uses at the moment.
    transport: Option<String>,
}

/// What a client is told.
#[derive(Serialize)]
struct Route {
    #[serde(flatten)]
    first: Transport,
    /// What to use when the first cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<Transport>,
    component: &'static str,
    /// The part in comparisons.
    cohort: Cohort,
    /// The place, in percent; none where nothing is split.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<f64>,
    reason: Reason,
    /// The rollout's version; 0 where there is none.
    version: u64,
}

#[derive(Clone, Copy, Serialize)]
struct Transport {
    transport: &'static str,
    url: &'static str,
}

const WEBSOCKET: Transport = Transport { transport: "websocket", url: "/ws" };
const SSE: Transport = Transport { transport: "sse", url: "/events" };

pub(super) async fn route(
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
    let route = decide(&app, unit.as_ref(), query.transport.as_deref());
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(route)).into_response())
}

fn decide(app: &AppState, unit: Option<&Unit>, uses: Option<&str>) -> Route {
    let flags = app.connections.rollouts.registry.now();
    let Some(standing) = flags.get(TRANSPORT) else {
        // Nothing is rolled out: the better transport is simply used. Before the first look at the
        // store that is not known, and the old one does no harm.
        let (first, other) = if flags.read { (WEBSOCKET, SSE) } else { (SSE, WEBSOCKET) };
        return Route {
            first,
            fallback: Some(other),
            component: TRANSPORT,
            cohort: Cohort::Rest,
            bucket: None,
            reason: Reason::Off,
            version: 0,
        };
    };
    let flag = &standing.flag;
    // Who cannot be told from others next time belongs where everybody was before.
    let assignment =
        unit.map(|unit| flag.assignment(unit, app.connections.rollouts.registry.environment()));
    let frozen = flag.course.stop == Some(Stop::Freeze) && uses != Some(WEBSOCKET.transport);
    let new = assignment.is_some_and(|assignment| assignment.new) && !frozen;
    let (first, other) = if new { (WEBSOCKET, SSE) } else { (SSE, WEBSOCKET) };
    Route {
        first,
        // The old side has nothing to fall back to: the new one is what is being tried.
        fallback: (new && flag.fallback_enabled).then_some(other),
        component: TRANSPORT,
        cohort: assignment.map_or(Cohort::Rest, |assignment| assignment.cohort),
        bucket: assignment.map(|assignment| f64::from(assignment.bucket.number()) / 1000.0),
        reason: assignment.map_or(Reason::NotEligible, |assignment| assignment.reason),
        version: flag.version,
    }
}
