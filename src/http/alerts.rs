//! Alerts: `GET /api/migration/alerts`, `POST /api/migration/alerts/{id}/acknowledge`.

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::HeaderMap,
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{AppState, error::ApiError};
use crate::{alert::MAX_ALERTS, auth::Scope, protocol::ErrorCode};

#[derive(Deserialize)]
pub(super) struct ListQuery {
    component: Option<String>,
    /// Only acknowledged alerts, or only those that are not.
    acknowledged: Option<bool>,
    limit: Option<usize>,
}

/// `GET /api/migration/alerts`: the stored alerts, newest first. Needs the scope `read`.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let mut alerts = app.alerts.list().await?;
    alerts.retain(|alert| {
        let matches = query.component.as_ref().is_none_or(|name| *name == alert.component);
        matches
            && query
                .acknowledged
                .is_none_or(|acknowledged| acknowledged == alert.acknowledged.is_some())
    });
    alerts.truncate(query.limit.unwrap_or(MAX_ALERTS));
    Ok(Json(json!({ "alerts": alerts, "lost": app.alerts.lost() })))
}

/// `POST /api/migration/alerts/{id}/acknowledge`: marks an alert as seen. Needs the scope `admin`.
pub(super) async fn acknowledge(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let operator = app.require_operator(&headers).await?;
    let Path(id) = path?;
    let missing = || {
        let message = format!("no such alert: {id}; only the last {MAX_ALERTS} are stored");
        ApiError::new(ErrorCode::NotFound, message)
    };
    let alert_id = id.parse::<Uuid>().map_err(|_| missing())?;
    let alert = app.alerts.acknowledge(alert_id, &operator.name).await?;
    alert.map(|alert| Json(json!(alert))).ok_or_else(missing)
}
