//! `/api/migration/dashboard`: everything the operator's page shows, once or live.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{Edge, error::ApiError, migration};
use crate::{
    auth::Scope,
    lifecycle,
    rollout::{flag::TRANSPORT, tally::Figures},
};

/// How often a live page is told.
const EVERY: Duration = Duration::from_secs(2);

/// Lines of the journal that are shown.
const LINES: usize = 50;

/// All of it, now.
pub(super) async fn now(
    State(edge): State<Edge>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    edge.allow_scope(&*edge.caller(&headers).await?, Scope::Admin)?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(shown(&edge).await)).into_response())
}

/// The same again and again, as SSE, until either side ends it.
pub(super) async fn live(
    State(edge): State<Edge>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    edge.allow_scope(&*edge.caller(&headers).await?, Scope::Admin)?;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = edge.draining.clone();
    let pieces = stream::unfold((edge, tick, stopping), |(edge, mut tick, stopping)| async move {
        stopping.run_until_cancelled(tick.tick()).await?;
        let text = format!("event: dashboard\ndata: {}\n\n", shown(&edge).await);
        Some((Ok::<_, Infallible>(Bytes::from(text)), (edge, tick, stopping)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn shown(edge: &Edge) -> Value {
    let rollouts = &edge.floor.rollouts;
    let flags = rollouts.board.now();
    let target = flags.get(TRANSPORT).map_or(0.0, |flag| flag.flag.effective().percent());
    let (mut measured, mut verdicts) = (Map::new(), Map::new());
    let mut evaluator = Value::Null;
    for (component, finding) in rollouts.findings.newest() {
        evaluator = json!({ "node": finding.node });
        measured.insert(component.to_string(), finding.measured);
        verdicts.insert(component.to_string(), json!(finding.verdicts));
    }
    let history = migration::lines(edge, None, u64::MAX, LINES).await;
    json!({
        "now": lifecycle::unix_ms(),
        "environment": rollouts.board.environment(),
        "node": edge.floor.node.name(),
        "cutOffMs": flags.cut_off.map(|since| since.elapsed().as_millis()),
        "evaluator": evaluator,
        "rights": { "operate": true },
        "flags": flags.all().map(|flag| migration::shown(flag)).collect::<Vec<_>>(),
        "figures": Figures::new(target, rollouts.tallies.all()),
        "measured": measured,
        "verdicts": verdicts,
        "series": rollouts.findings.series(),
        "alerts": edge.alerts.list().await.unwrap_or_default(),
        "history": history.unwrap_or_default(),
    })
}
