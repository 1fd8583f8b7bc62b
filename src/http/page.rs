//! The pages that the gateway serves itself: the operator's, and on a developer's machine the demo.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};

use super::{AppState, error::ApiError, legacy};
use crate::protocol::ErrorCode;

const DEMO: &str = include_str!("../../client/demo/dist/index.html");

const DASHBOARD: &str = include_str!("../../dashboard/dist/index.html");

/// Nothing of a page comes from elsewhere, and no other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    img-src data:; connect-src *; base-uri 'none'; frame-ancestors 'none'";

/// `GET /`: panes that publish and listen, and show what carries them.
pub(super) async fn demo(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    // Where an old server stands behind, its own start page stays.
    if let Some(upstream) = app.legacy.upstream() {
        return Ok(legacy::forward(&app, upstream, request).await);
    }
    if !app.connections.auth.is_development() {
        let message =
            "there is nothing at /: the demo page is for auth.environment = \"development\"";
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    Ok(html(DEMO))
}

/// `GET /dashboard`: the operator's page. It holds nothing: what it shows it asks for with a key.
pub(super) async fn dashboard() -> Response {
    html(DASHBOARD)
}

fn html(page: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, page).into_response()
}
