//! HTML pages of the gateway: the operator's dashboard, and in development the demo page.
//!
//! Both are built from TypeScript (`dashboard/`, `client/demo/`) and embedded in the binary.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};

use super::{AppState, error::ApiError, legacy};
use crate::protocol::ErrorCode;

const DEMO: &str = include_str!("../../client/demo/dist/index.html");

const DASHBOARD: &str = include_str!("../../dashboard/dist/index.html");

/// A page loads nothing from elsewhere and cannot be framed; it may connect to any gateway.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    img-src data:; connect-src *; base-uri 'none'; frame-ancestors 'none'";

/// `GET /`: the demo page, which publishes, subscribes and shows the transport in use.
pub(super) async fn demo(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    // The start page of a legacy upstream takes precedence.
    if let Some(upstream) = app.legacy.upstream() {
        return Ok(legacy::forward(&app, upstream, request).await);
    }
    if !app.connections.auth.is_development() {
        let message = "no such path: /. The demo page needs auth.environment = \"development\"";
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    Ok(html(DEMO))
}

/// `GET /dashboard`: the operator's page. It contains no data and needs no authentication; it calls the
/// API with the operator's key.
pub(super) async fn dashboard() -> Response {
    html(DASHBOARD)
}

fn html(page: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, page).into_response()
}
