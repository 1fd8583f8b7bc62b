//! API errors: `{"error": {"code", "message"}}` with the status of the code, and reading request bodies
//! within `limits.body_bytes` and `server.body_timeout`.
//!
//! Codes and their statuses are defined in `protocol` and documented in PROTOCOL.md.

use axum::{
    Json,
    body::Bytes,
    extract::{
        FromRequest, Request,
        rejection::{BytesRejection, PathRejection},
    },
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};

use super::AppState;
use crate::{broker::BrokerError, connection, protocol::ErrorCode, wire::HandshakeError};

/// The error response of a request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ApiError {
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

/// `Retry-After` of retryable errors, in seconds.
pub(super) const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    pub(super) fn new(code: ErrorCode, message: impl ToString) -> Self {
        Self { code, message: message.to_string() }
    }

    /// Whether the same request can succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        match self.code {
            ErrorCode::Unavailable
            | ErrorCode::LimitExceeded
            | ErrorCode::NodeFull
            | ErrorCode::BadGateway
            | ErrorCode::GatewayTimeout => true,
            ErrorCode::Malformed
            | ErrorCode::UnknownType
            | ErrorCode::ChannelInvalid
            | ErrorCode::PositionInvalid
            | ErrorCode::IdInvalid
            | ErrorCode::NameInvalid
            | ErrorCode::SessionUnknown
            | ErrorCode::Unauthorised
            | ErrorCode::TokenExpired
            | ErrorCode::Forbidden
            | ErrorCode::AlreadySubscribed
            | ErrorCode::NotSubscribed
            | ErrorCode::TooMany
            | ErrorCode::TooLarge
            | ErrorCode::NotFound
            | ErrorCode::MethodNotAllowed
            | ErrorCode::RequestTimeout
            | ErrorCode::OriginForbidden
            | ErrorCode::VersionConflict
            | ErrorCode::RolloutRefused
            | ErrorCode::Refused => false,
        }
    }
}

impl From<BrokerError> for ApiError {
    fn from(err: BrokerError) -> Self {
        Self::new(connection::code_of(&err), err)
    }
}

impl From<HandshakeError> for ApiError {
    fn from(err: HandshakeError) -> Self {
        Self::new(err.code, err)
    }
}

impl From<PathRejection> for ApiError {
    fn from(err: PathRejection) -> Self {
        Self::new(ErrorCode::Malformed, format!("invalid path: {}", err.body_text()))
    }
}

impl From<(ErrorCode, String)> for ApiError {
    fn from((code, message): (ErrorCode, String)) -> Self {
        Self { code, message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let body = Json(serde_json::json!({ "error": self }));
        let mut response = (status, body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if self.is_retryable() {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if self.code == ErrorCode::RequestTimeout {
            // The rest of the body may still arrive and would be read as a request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

pub(super) fn not_found(uri: &Uri) -> ApiError {
    let path = uri.path();
    ApiError::new(ErrorCode::NotFound, format!("no such path: {path}"))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{path} does not support the method {method}"),
    )
}

/// Reads and parses a JSON body. The content type is ignored, as `curl -d` sends a wrong one.
pub(super) async fn read_json<T: DeserializeOwned>(
    request: Request,
    app: &AppState,
) -> Result<T, ApiError> {
    let body = read_body(request, app).await?;
    serde_json::from_slice(&body)
        .map_err(|err| ApiError::new(ErrorCode::Malformed, format!("invalid body: {err}")))
}

/// Reads a body of at most `limits.body_bytes` within `server.body_timeout`.
pub(super) async fn read_body(request: Request, app: &AppState) -> Result<Bytes, ApiError> {
    let timeout = app.server.body_timeout;
    let reading = Box::pin(read_limited(request, app.connections.limits.body_bytes));
    tokio::time::timeout(timeout, reading).await.unwrap_or_else(|_| {
        let message = format!("the body was not received within server.body_timeout = {timeout:?}");
        Err(ApiError::new(ErrorCode::RequestTimeout, message))
    })
}

async fn read_limited(request: Request, body_bytes: usize) -> Result<Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    let limited = axum::body::Body::new(http_body_util::Limited::new(body, body_bytes));
    let read = Bytes::from_request(Request::from_parts(parts, limited), &()).await;
    read.map_err(|err| match err {
        BytesRejection::FailedToBufferBody(_) if err.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body is larger than limits.body_bytes = {body_bytes}");
            ApiError::new(ErrorCode::TooLarge, message)
        }
        _ => ApiError::new(ErrorCode::Malformed, format!("invalid body: {err}")),
    })
}
