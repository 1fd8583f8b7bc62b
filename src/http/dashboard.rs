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

use super::{AppState, error::ApiError, migration};
use crate::{
    auth::Scope,
    lifecycle,
    rollout::{flag::TRANSPORT, node_counts::Figures},
};

/// How often a live page is told.
const EVERY: Duration = Duration::from_secs(2);

/// Lines of the journal that are shown.
const LINES: usize = 50;

/// All of it, now.
pub(super) async fn now(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Admin)?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(shown(&app).await)).into_response())
}

/// The same again and again, as SSE, until either side ends it.
pub(super) async fn live(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Admin)?;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = app.draining.clone();
    let pieces = stream::unfold((app, tick, stopping), |(app, mut tick, stopping)| async move {
        stopping.run_until_cancelled(tick.tick()).await?;
        let text = format!("event: dashboard\ndata: {}\n\n", shown(&app).await);
        Some((Ok::<_, Infallible>(Bytes::from(text)), (app, tick, stopping)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn shown(app: &AppState) -> Value {
    let rollouts = &app.connections.rollouts;
    let flags = rollouts.registry.now();
    let target = flags.get(TRANSPORT).map_or(0.0, |flag| flag.flag.effective().percent());
    let (mut measured, mut verdicts) = (Map::new(), Map::new());
    let mut evaluator = Value::Null;
    for (component, finding) in rollouts.evaluation_results.newest() {
        evaluator = json!({ "node": finding.node });
        measured.insert(component.to_string(), finding.measured);
        verdicts.insert(component.to_string(), json!(finding.verdicts));
    }
    let history = migration::lines(app, None, u64::MAX, LINES).await;
    json!({
        "now": lifecycle::unix_ms(),
        "environment": rollouts.registry.environment(),
        "node": app.connections.node.name(),
        "cutOffMs": flags.cut_off.map(|since| since.elapsed().as_millis()),
        "evaluator": evaluator,
        "rights": { "operate": true },
        "flags": flags.all().map(|flag| migration::shown(flag)).collect::<Vec<_>>(),
        "figures": Figures::new(target, rollouts.node_counts.all()),
        "measured": measured,
        "verdicts": verdicts,
        "series": rollouts.evaluation_results.series(),
        "alerts": app.alerts.list().await.unwrap_or_default(),
        "history": history.unwrap_or_default(),
    })
}
