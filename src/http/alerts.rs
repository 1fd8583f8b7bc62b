//! `GET /api/migration/alerts`, and `POST /api/migration/alerts/{id}/acknowledge`: what people are
//! told, and that one of them has seen it.

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
    /// Only those that somebody has seen, or nobody.
    acknowledged: Option<bool>,
    limit: Option<usize>,
}

/// Those that are kept, the newest first.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let mut alerts = app.alerts.list().await?;
    alerts.retain(|alert| {
        let named = query.component.as_ref().is_none_or(|name| *name == alert.component);
        named && query.acknowledged.is_none_or(|seen| seen == alert.acknowledged.is_some())
    });
    alerts.truncate(query.limit.unwrap_or(MAX_ALERTS));
    Ok(Json(json!({ "alerts": alerts, "lost": app.alerts.lost() })))
}

/// Somebody has seen one.
pub(super) async fn acknowledge(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let by = app.operator(&headers).await?;
    let Path(id) = path?;
    let missing = || {
        let message = format!("there is no alert {id}: only the last {MAX_ALERTS} are kept");
        ApiError::new(ErrorCode::NotFound, message)
    };
    let found = id.parse::<Uuid>().map_err(|_| missing())?;
    let alert = app.alerts.acknowledge(found, &by.name).await?;
    alert.map(|alert| Json(json!(alert))).ok_or_else(missing)
}
