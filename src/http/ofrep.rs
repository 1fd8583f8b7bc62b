//! OFREP, the OpenFeature Remote Evaluation Protocol 0.3: backend services evaluate rollouts as boolean
//! flags. `POST /ofrep/v1/evaluate/flags` and `POST /ofrep/v1/evaluate/flags/{key}`.

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use super::{
    AppState,
    error::{ApiError, read_body},
};
use crate::{
    auth::Scope,
    rollout::{
        assignment::{Reason, Unit},
        registry::{RolloutRecord, RolloutRegistry},
    },
};

/// The request body.
#[derive(Deserialize)]
struct Evaluation {
    #[serde(default)]
    context: Value,
}

/// Evaluates one flag: whether the user belongs to the new side.
pub(super) async fn evaluate_one(
    State(app): State<AppState>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(request.headers()).await?, Scope::Read)?;
    let Path(key) = path?;
    let unit = match unit(&read_body(request, &app).await?) {
        Ok(unit) => unit,
        Err((code, details)) => return Ok(bad_request(Some(&key), code, details)),
    };
    let now = app.connections.rollouts.registry.now();
    Ok(match now.get(&key) {
        Some(record) => {
            Json(evaluation(record, &unit, &app.connections.rollouts.registry)).into_response()
        }
        None => {
            let details = format!("no such rollout: {key}");
            let body = json!({"key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": details});
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    })
}

/// Evaluates all flags for a user, with an `ETag`.
pub(super) async fn evaluate_all(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    app.require_scope(&*app.authenticate(request.headers()).await?, Scope::Read)?;
    let known_tag = if_none_match(request.headers());
    let unit = match unit(&read_body(request, &app).await?) {
        Ok(unit) => unit,
        Err((code, details)) => return Ok(bad_request(None, code, details)),
    };
    let now = app.connections.rollouts.registry.now();
    let flags: Vec<_> =
        now.all().map(|flag| evaluation(flag, &unit, &app.connections.rollouts.registry)).collect();
    let body = json!({ "flags": flags });
    let digest = Sha1::digest(body.to_string().as_bytes());
    let tag =
        format!("\"{}\"", digest.iter().take(8).map(|b| format!("{b:02x}")).collect::<String>());
    let header =
        [(header::ETAG, HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("")))];
    if known_tag.as_deref() == Some(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, header).into_response());
    }
    Ok((header, Json(body)).into_response())
}

fn if_none_match(headers: &HeaderMap) -> Option<String> {
    headers.get(header::IF_NONE_MATCH)?.to_str().ok().map(str::to_owned)
}

/// The user and groups in the context: `targetingKey`, and `groups` as a list or separated by commas.
fn unit(body: &[u8]) -> Result<Unit, (&'static str, String)> {
    let evaluation: Evaluation =
        serde_json::from_slice(body).map_err(|err| ("PARSE_ERROR", err.to_string()))?;
    let context = evaluation.context;
    if !context.is_object() {
        return Err(("INVALID_CONTEXT", "\"context\" must be an object".to_owned()));
    }
    let Some(id) = context["targetingKey"].as_str().filter(|id| !id.is_empty()) else {
        let details = "\"context\" has no \"targetingKey\": set it to the user's id".to_owned();
        return Err(("TARGETING_KEY_MISSING", details));
    };
    let groups = match &context["groups"] {
        Value::String(text) => text.split(',').map(|group| group.trim().to_owned()).collect(),
        Value::Array(list) => {
            list.iter().filter_map(|group| group.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    Ok(Unit { id: id.to_owned(), groups })
}

fn evaluation(record: &RolloutRecord, unit: &Unit, registry: &RolloutRegistry) -> Value {
    let flag = &record.flag;
    let assignment = flag.assignment(unit, registry.environment());
    let reason = match assignment.reason {
        Reason::Split => "SPLIT",
        Reason::Allowed | Reason::Denied | Reason::NotEligible => "TARGETING_MATCH",
        Reason::Off => "DISABLED",
    };
    let variant = if assignment.new { &flag.to } else { &flag.from };
    json!({
        "key": flag.component,
        "value": assignment.new,
        "reason": reason,
        "variant": variant,
        "metadata": {
            "cohort": assignment.cohort.to_string(),
            "percentage": flag.effective().percent(),
            "version": flag.version,
            "epoch": flag.course.epoch,
        },
    })
}

fn bad_request(key: Option<&str>, code: &'static str, details: String) -> Response {
    let mut body = json!({ "errorCode": code, "errorDetails": details });
    if let Some(key) = key {
        body["key"] = json!(key);
    }
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}
