//! Validation runs, which compare both sides of a rollout: `POST` and `GET
//! /api/migration/validation/{component}`.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
    http::HeaderMap,
};
use serde::Deserialize;

use super::{
    AppState,
    error::{ApiError, read_body},
};
use crate::{
    auth::Scope,
    connection,
    protocol::ErrorCode,
    rollout::flag::{Change, Component},
    validation::{Outcome, SECONDS_MAX, SESSIONS_MAX, ValidationError},
};

/// The request body; every field is optional, and so is the body.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ValidationRequest {
    phase: Option<u64>,
    sample_size: usize,
    seconds: u64,
}

impl Default for ValidationRequest {
    fn default() -> Self {
        Self { phase: None, sample_size: 100, seconds: 10 }
    }
}

/// `POST`: runs a validation and answers with its outcome. Closing the request cancels the run. Needs the
/// scope `admin`.
pub(super) async fn run(
    State(app): State<AppState>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<Outcome>, ApiError> {
    let operator = app.require_operator(request.headers()).await?;
    let component = parse_component(path)?;
    let body = read_body(request, &app).await?;
    let invalid = |message: String| ApiError::new(ErrorCode::Malformed, message);
    let parameters = match body.is_empty() {
        true => ValidationRequest::default(),
        false => {
            serde_json::from_slice(&body).map_err(|err| invalid(format!("invalid body: {err}")))?
        }
    };
    let ValidationRequest { phase, sample_size, seconds } = parameters;
    if !(1..=SESSIONS_MAX).contains(&sample_size) {
        return Err(invalid(format!("sampleSize must be 1 to {SESSIONS_MAX}, not {sample_size}")));
    }
    if !(1..=SECONDS_MAX).contains(&seconds) {
        return Err(invalid(format!("seconds must be 1 to {SECONDS_MAX}, not {seconds}")));
    }
    let duration = Duration::from_secs(seconds);
    let run = app.validation.validate_phase(&component, phase, sample_size, duration);
    let outcome = Box::pin(run).await?;
    // A schedule that waits for a validation of this stage advances or holds.
    let registry = &app.connections.rollouts.registry;
    if let Some(record) = registry.now().get(component.as_str()) {
        let stage = record.flag.course.stage;
        let change = Change::Validated { stage, differs: outcome.difference() };
        registry.change(&component, &change, None, &operator).await?;
    }
    Ok(Json(outcome))
}

/// `GET`: the latest outcome. Needs the scope `read`.
pub(super) async fn latest(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Outcome>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let component = parse_component(path)?;
    let outcome = app.validation.latest(&component).await?;
    outcome.map(Json).ok_or_else(|| {
        let message = format!(
            "no validation of {component} yet: POST to /api/migration/validation/{component}"
        );
        ApiError::new(ErrorCode::NotFound, message)
    })
}

fn parse_component(path: Result<Path<String>, PathRejection>) -> Result<Component, ApiError> {
    let Path(name) = path?;
    name.parse().map_err(|err| ApiError::new(ErrorCode::Malformed, err))
}

impl From<ValidationError> for ApiError {
    fn from(err: ValidationError) -> Self {
        let code = match &err {
            ValidationError::NothingToCompare(_) | ValidationError::Running(_) => {
                ErrorCode::RolloutRefused
            }
            ValidationError::Failed(_) => ErrorCode::Unavailable,
            ValidationError::Broker(err) => connection::code_of(err),
        };
        Self::new(code, err)
    }
}
