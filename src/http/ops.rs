//! Health checks and metrics: `GET /health/live`, `GET /health/ready`, `GET /metrics`.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::AppState;
use crate::broker::Health;

/// Liveness: 200 while the process serves requests.
pub(super) async fn live() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

/// Readiness: 200 when the node can serve new clients, else 503 with the reason.
pub(super) async fn ready(State(app): State<AppState>) -> Response {
    let node = app.connections.node.name();
    let reason = match app.connections.node.health() {
        _ if app.draining.is_cancelled() => "the node is shutting down".to_owned(),
        Health::Down { reason } => reason,
        Health::Up if !app.connections.cluster.is_synced() => {
            "the node has not received the presence of the cluster yet".to_owned()
        }
        Health::Up if !app.legacy.ingest_ready() => {
            "the node is not subscribed to the channels of legacy.redis yet".to_owned()
        }
        // Without the rollouts, every user would be assigned to the old side.
        Health::Up if !app.connections.rollouts.registry.now().read => {
            "the node has not read the rollouts yet".to_owned()
        }
        Health::Up => return Json(json!({ "status": "ready", "node": node })).into_response(),
    };
    let body = Json(json!({ "status": "not ready", "node": node, "reason": reason }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// All metrics in the OpenMetrics text format.
pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], app.connections.node.metrics().render())
        .into_response()
}
