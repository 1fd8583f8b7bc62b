//! Rollout API for operators and their tools: `/api/migration/…`.
//!
//! Reading needs the scope `read`, changes need `admin`. Requests become changes of the rollout
//! registry, which decides whether they are valid; its errors become status codes.

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    AppState,
    error::{ApiError, read_body},
};
use crate::{
    alert::{Alert, AlertKind},
    auth::{Identity, Scope},
    broker::store::Note,
    protocol::ErrorCode,
    rollout::{
        cohort::Percentage,
        flag::{Change, Component, Settings, TRANSPORT},
        node_counts::Figures,
        registry::{Actor, ChangeError, Changed, Entry, RolloutRecord},
        schedule::{Effect, Stop},
    },
};

/// Default and largest number of journal entries of a page.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// Most bytes of a reason.
const REASON_MAX: usize = 500;

type ComponentPath = Result<Path<String>, PathRejection>;

/// `GET /api/migration/feature-flags`: all rollouts, and how many clients are on which side.
pub(super) async fn list(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let registry = &app.connections.rollouts.registry;
    let now = registry.now();
    let flags: Vec<_> = now.all().map(|record| to_json(record)).collect();
    let target = now.get(TRANSPORT).map_or(0.0, |record| record.flag.effective().percent());
    Ok(Json(json!({
        "flags": flags,
        "figures": Figures::new(target, app.connections.rollouts.node_counts.all()),
        "environment": registry.environment(),
        "storeUnreachableMs": now.cut_off.map(|since| since.elapsed().as_millis()),
    })))
}

/// `GET /api/migration/feature-flags/{component}`: one rollout.
pub(super) async fn get(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: ComponentPath,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let component = component_in(path)?;
    let now = app.connections.rollouts.registry.now();
    let record = now.get(component.as_str());
    record
        .map(|record| Json(to_json(record)))
        .ok_or_else(|| ApiError::from(ChangeError::Unknown(component)))
}

/// `PUT /api/migration/feature-flags/{component}`: changes the settings of a rollout, or creates it.
pub(super) async fn put(
    State(app): State<AppState>,
    path: ComponentPath,
    request: Request,
) -> Result<Response, ApiError> {
    let operator = app.require_operator(request.headers()).await?;
    let component = component_in(path)?;
    let mut fields: Map<String, Value> = parse(&read_body(request, &app).await?)?;
    let version = take_field(&mut fields, "version")?;
    let reason = valid_reason(take_field(&mut fields, "reason")?)?;
    let settings: Settings = parse_value(Value::Object(fields))?;
    app.change(&component, &Change::Set(Box::new(settings)), version, Actor { reason, ..operator })
        .await
}

/// The body of an action; every field is optional, and so is the body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct ActionBody {
    version: Option<u64>,
    reason: Option<String>,
    percentage: Option<Percentage>,
    keep_salt: bool,
    force: bool,
    mode: Option<Stop>,
}

/// `POST /api/migration/{action}/{component}`: `start`, `pause`, `resume`, `advance`, `approve`,
/// `complete`, `rollback` or `stop`.
pub(super) async fn perform_action(
    State(app): State<AppState>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let operator = app.require_operator(request.headers()).await?;
    let Path((action, name)) = path?;
    let component = parse_component(&name)?;
    let body = read_body(request, &app).await?;
    let body: ActionBody = if body.is_empty() { ActionBody::default() } else { parse(&body)? };
    let ActionBody { version, reason, percentage, keep_salt, force, mode } = body;
    let reason = valid_reason(reason)?;
    let change = match action.as_str() {
        "start" => {
            let waits_for = app.waits_for(&component);
            Change::Start { percentage, keep_salt, force, waits_for }
        }
        "pause" => Change::Pause,
        "resume" => Change::Resume,
        "advance" => Change::Advance,
        "approve" => Change::Approve,
        "complete" => Change::Complete,
        "rollback" if reason.is_empty() => {
            let message = "a rollback needs a \"reason\" for the journal";
            return Err(ApiError::new(ErrorCode::Malformed, message));
        }
        // By default, stop leaves users where they are, and rollback moves them back.
        "stop" => Change::Stop(mode.unwrap_or(Stop::Freeze)),
        "rollback" => Change::Stop(mode.unwrap_or_default()),
        _ => {
            let message = format!(
                "no such action: {action}; use start, pause, resume, advance, approve, complete, \
                 stop or rollback"
            );
            return Err(ApiError::new(ErrorCode::NotFound, message));
        }
    };
    app.change(&component, &change, version, Actor { reason, ..operator }).await
}

/// `POST /api/migration/emergency-stop`: stops all rollouts; by default all users move back.
pub(super) async fn emergency_stop(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let operator = app.require_operator(request.headers()).await?;
    let body = read_body(request, &app).await?;
    let body: ActionBody = if body.is_empty() { ActionBody::default() } else { parse(&body)? };
    let operator = Actor { reason: valid_reason(body.reason)?, ..operator };
    let change = Change::EmergencyStop(body.mode.unwrap_or_default());
    let registry = &app.connections.rollouts.registry;
    if !registry.now().read {
        let message = "this node has not read the rollouts yet: retry, or send it to another node";
        return Err(ApiError::new(ErrorCode::Unavailable, message));
    }
    // Rollouts known to this node stop at once. After a refresh, a second pass stops those that were
    // started on other nodes a moment ago.
    let (mut stopped, mut saved) = (Map::new(), true);
    let mut failed = Vec::new();
    for _ in 0..2 {
        for record in registry.now().all() {
            let component = &record.flag.component;
            if stopped.contains_key(component.as_str()) {
                continue;
            }
            match registry.change(component, &change, None, &operator).await {
                Ok(changed) => {
                    saved &= changed.saved;
                    stopped.insert(component.to_string(), to_json(&changed.now));
                }
                Err(err) => failed.push(format!("{component}: {err}")),
            }
        }
        if !saved || registry.refresh().await.is_err() {
            break;
        }
    }
    if !failed.is_empty() {
        return Err(ApiError::new(ErrorCode::Unavailable, failed.join("; ")));
    }
    let flags: Vec<_> = stopped.into_values().collect();
    Ok((status(saved), Json(json!({ "flags": flags, "saved": saved }))).into_response())
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    component: Option<String>,
    /// Entries before this number: the `next` of the previous page.
    before: Option<u64>,
    /// Entries since this Unix time in milliseconds.
    since: Option<u64>,
    limit: Option<usize>,
}

/// `GET /api/migration/history`: the journal of changes, newest first, with who made each, why, and what
/// was measured at the time.
pub(super) async fn history(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let component = query.component.as_deref().map(parse_component).transpose()?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let before = query.before.unwrap_or(u64::MAX);
    let entries = journal_entries(&app, component.as_ref(), before, limit).await?;
    let next =
        entries.last().filter(|_| entries.len() == limit).map(|entry| entry["number"].clone());
    let since = query.since.unwrap_or(0);
    let is_recent = |entry: &&Value| since <= entry["time"].as_u64().unwrap_or(0);
    let recent: Vec<_> = entries.iter().filter(is_recent).collect();
    Ok(Json(json!({ "entries": recent, "next": next })))
}

/// Entries of the journal as JSON, newest first.
pub(super) async fn journal_entries(
    app: &AppState,
    component: Option<&Component>,
    before: u64,
    limit: usize,
) -> Result<Vec<Value>, ApiError> {
    let entries = app.connections.rollouts.registry.journal(component, before, limit).await?;
    let to_json = |(note, entry): &(Note, Option<Entry>)| {
        let mut json = json!(entry);
        json["number"] = json!(note.number);
        json["component"] = json!(note.key.rsplit('/').next().unwrap_or_default());
        json["version"] = json!(note.version);
        json["time"] = json!(note.time);
        json
    };
    Ok(entries.iter().map(to_json).collect())
}

impl AppState {
    /// The caller as the journal names it. Needs the scope `admin`.
    pub(super) async fn require_operator(&self, headers: &HeaderMap) -> Result<Actor, ApiError> {
        let identity = self.authenticate(headers).await?;
        self.require_scope(&identity, Scope::Admin)?;
        Ok(Actor { name: journal_name(&identity), reason: String::new() })
    }

    /// The rollouts that must be complete before this one can start.
    fn waits_for(&self, component: &Component) -> Vec<String> {
        let now = self.connections.rollouts.registry.now();
        let Some(record) = now.get(component.as_str()) else { return Vec::new() };
        let status = |other: &str| now.get(other).map(|other| other.flag.course.status);
        record.flag.schedule.waits_for(status)
    }

    async fn change(
        &self,
        component: &Component,
        change: &Change,
        version: Option<u64>,
        operator: Actor,
    ) -> Result<Response, ApiError> {
        let Changed { now, saved, effects } = self
            .connections
            .rollouts
            .registry
            .change(component, change, version, &operator)
            .await?;
        for effect in effects {
            if let Effect::Tell { urgent, text } = effect {
                self.alerts.raise(Alert {
                    component: component.to_string(),
                    kind: AlertKind::of_action(change.name()),
                    urgent,
                    text: format!("{text} (by {})", operator.name),
                    figures: None,
                });
            }
        }
        let mut body = to_json(&now);
        body["saved"] = json!(saved);
        if !saved {
            body["message"] = json!(
                "stopped on this node only: the store is unreachable, and the other nodes follow \
                 when it is back. Keep this node running, or repeat the request on each node"
            );
        }
        Ok((status(saved), Json(body)).into_response())
    }
}

fn status(saved: bool) -> StatusCode {
    if saved { StatusCode::OK } else { StatusCode::ACCEPTED }
}

/// How the journal names a caller: `key NAME`, `user ID` or `anonymous`.
fn journal_name(identity: &Identity) -> String {
    let key = identity.name.as_ref().map(|name| format!("key {name}"));
    let user = identity.user.as_ref().map(|user| format!("user {user}"));
    key.or(user).unwrap_or_else(|| "anonymous".to_owned())
}

/// A rollout as JSON: its settings, with the state at the top level.
pub(super) fn to_json(record: &RolloutRecord) -> Value {
    let flag = &record.flag;
    let course = &flag.course;
    let mut value = json!(flag);
    value["status"] = json!(course.status);
    value["rolloutPercentage"] = json!(course.percentage);
    value["effectivePercentage"] = json!(flag.effective());
    value["epoch"] = json!(course.epoch);
    value["stop"] = json!(course.stop);
    value["reason"] = json!(course.reason);
    value["unsaved"] = json!(record.unsaved);
    value
}

fn component_in(path: ComponentPath) -> Result<Component, ApiError> {
    let Path(name) = path?;
    parse_component(&name)
}

fn parse_component(name: &str) -> Result<Component, ApiError> {
    name.parse().map_err(|err| ApiError::new(ErrorCode::Malformed, err))
}

fn valid_reason(reason: Option<String>) -> Result<String, ApiError> {
    let reason = reason.unwrap_or_default();
    if REASON_MAX < reason.len() {
        let message = format!("\"reason\" is longer than {REASON_MAX} bytes");
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    Ok(reason)
}

fn take_field<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    fields.remove(name).map(parse_value).transpose()
}

fn parse_value<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value)
        .map_err(|err| ApiError::new(ErrorCode::Malformed, format!("invalid body: {err}")))
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let value = serde_json::from_slice(body);
    parse_value(
        value.map_err(|err| ApiError::new(ErrorCode::Malformed, format!("invalid body: {err}")))?,
    )
}

impl From<ChangeError> for ApiError {
    fn from(err: ChangeError) -> Self {
        let code = match &err {
            ChangeError::Unknown(_) => ErrorCode::NotFound,
            ChangeError::Version { .. } => ErrorCode::VersionConflict,
            ChangeError::Refused(_) => ErrorCode::RolloutRefused,
            ChangeError::Store(_) => ErrorCode::Unavailable,
        };
        Self::new(code, err)
    }
}
