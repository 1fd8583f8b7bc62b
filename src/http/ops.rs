//! What orchestrators and Prometheus ask.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::AppState;
use crate::broker::Health;

/// The process answers.
pub(super) async fn live() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

/// New clients may come: the broker is there and the node is not stopping.
pub(super) async fn ready(State(app): State<AppState>) -> Response {
    let node = app.connections.node.name();
    let reason = match app.connections.node.health() {
        _ if app.draining.is_cancelled() => "the node is stopping".to_owned(),
        Health::Down { reason } => reason,
        Health::Up if !app.connections.cluster.is_synced() => {
            "the node has not been told yet who is where".to_owned()
        }
        Health::Up if !app.legacy.ingest_ready() => {
            "the node does not hear yet what is PUBLISHed on legacy.redis".to_owned()
        }
        // It would send everybody to the old side.
        Health::Up if !app.connections.rollouts.registry.now().read => {
            "the node has not read the rollouts yet".to_owned()
        }
        Health::Up => return Json(json!({ "status": "ready", "node": node })).into_response(),
    };
    let body = Json(json!({ "status": "not ready", "node": node, "reason": reason }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// Counters and gauges in the Prometheus text format.
pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.connections.node.metrics().render()).into_response()
}
