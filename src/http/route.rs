//! `GET /api/route`: which transport a client is to use, and why.

use axum::{
    Json,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{Edge, error::ApiError};
use crate::{
    protocol::ErrorCode,
    rollout::{
        cohort::Cohort,
        flag::TRANSPORT,
        schedule::Stop,
        verdict::{Because, Unit},
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
    because: Because,
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
    State(edge): State<Edge>,
    query: Result<Query<RouteQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let identity = edge.client(request.headers(), request.uri()).await?;
    let identity = edge.required(identity)?;
    let user = identity.user.as_ref().map(ToString::to_string);
    let id = user.or(query.client.filter(|id| !id.is_empty()));
    let unit = id.map(|id| Unit { id, groups: identity.groups.clone() });
    let route = decide(&edge, unit.as_ref(), query.transport.as_deref());
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(route)).into_response())
}

fn decide(edge: &Edge, unit: Option<&Unit>, uses: Option<&str>) -> Route {
    let flags = edge.floor.rollouts.board.now();
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
            because: Because::Off,
            version: 0,
        };
    };
    let flag = &standing.flag;
    // Who cannot be told from others next time belongs where everybody was before.
    let verdict = unit.map(|unit| flag.verdict(unit, edge.floor.rollouts.board.environment()));
    let frozen = flag.course.stop == Some(Stop::Freeze) && uses != Some(WEBSOCKET.transport);
    let new = verdict.is_some_and(|verdict| verdict.new) && !frozen;
    let (first, other) = if new { (WEBSOCKET, SSE) } else { (SSE, WEBSOCKET) };
    Route {
        first,
        // The old side has nothing to fall back to: the new one is what is being tried.
        fallback: (new && flag.fallback_enabled).then_some(other),
        component: TRANSPORT,
        cohort: verdict.map_or(Cohort::Rest, |verdict| verdict.cohort),
        bucket: verdict.map(|verdict| f64::from(verdict.bucket.number()) / 1000.0),
        because: verdict.map_or(Because::NotEligible, |verdict| verdict.because),
        version: flag.version,
    }
}
