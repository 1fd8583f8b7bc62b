//! Data of the dashboard page: `GET /api/migration/dashboard` once, `…/stream` as Server-Sent Events.
//! Both need the scope `admin`.

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

/// Interval of the stream.
const INTERVAL: Duration = Duration::from_secs(2);

/// Number of journal entries shown.
const JOURNAL_ENTRIES: usize = 50;

/// All data of the page at this moment.
pub(super) async fn snapshot(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Admin)?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(collect(&app).await)).into_response())
}

/// The same every 2 s as `event: dashboard`, until the client disconnects or the node shuts down.
pub(super) async fn stream(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Admin)?;
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = app.draining.clone();
    let chunks = stream::unfold((app, tick, stopping), |(app, mut tick, stopping)| async move {
        stopping.run_until_cancelled(tick.tick()).await?;
        let text = format!("event: dashboard\ndata: {}\n\n", collect(&app).await);
        Some((Ok::<_, Infallible>(Bytes::from(text)), (app, tick, stopping)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

async fn collect(app: &AppState) -> Value {
    let rollouts = &app.connections.rollouts;
    let flags = rollouts.registry.now();
    let target = flags.get(TRANSPORT).map_or(0.0, |flag| flag.flag.effective().percent());
    let (mut measured, mut verdicts) = (Map::new(), Map::new());
    let mut evaluator = Value::Null;
    for (component, result) in rollouts.evaluation_results.newest() {
        evaluator = json!({ "node": result.node });
        measured.insert(component.to_string(), result.measured);
        verdicts.insert(component.to_string(), json!(result.verdicts));
    }
    let history = migration::journal_entries(app, None, u64::MAX, JOURNAL_ENTRIES).await;
    json!({
        "now": lifecycle::unix_ms(),
        "environment": rollouts.registry.environment(),
        "node": app.connections.node.name(),
        "storeUnreachableMs": flags.cut_off.map(|since| since.elapsed().as_millis()),
        "evaluator": evaluator,
        "rights": { "operate": true },
        "flags": flags.all().map(|record| migration::to_json(record)).collect::<Vec<_>>(),
        "figures": Figures::new(target, rollouts.node_counts.all()),
        "measured": measured,
        "verdicts": verdicts,
        "series": rollouts.evaluation_results.series(),
        "alerts": app.alerts.list().await.unwrap_or_default(),
        "history": history.unwrap_or_default(),
    })
}
