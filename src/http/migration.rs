//! `/api/migration/…`: the rollouts, for operators and their tools.
//!
//! Reading takes the scope `read`, changing the scope `admin`. What a rollout may become is decided
//! below; here requests become changes, and refusals status codes.

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

/// Lines of the journal on a page whose request names no limit, and the most of one that does.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// Bytes of a reason.
const REASON_MAX: usize = 500;

type Named = Result<Path<String>, PathRejection>;

/// All rollouts.
pub(super) async fn flags(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let registry = &app.connections.rollouts.registry;
    let now = registry.now();
    let flags: Vec<_> = now.all().map(|standing| shown(standing)).collect();
    let target = now.get(TRANSPORT).map_or(0.0, |standing| standing.flag.effective().percent());
    Ok(Json(json!({
        "flags": flags,
        "figures": Figures::new(target, app.connections.rollouts.node_counts.all()),
        "environment": registry.environment(),
        "cutOff": now.cut_off.map(|since| since.elapsed().as_millis()),
    })))
}

/// One of them.
pub(super) async fn flag(
    State(app): State<AppState>,
    headers: HeaderMap,
    path: Named,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let component = component(path)?;
    let now = app.connections.rollouts.registry.now();
    let standing = now.get(component.as_str());
    standing
        .map(|standing| Json(shown(standing)))
        .ok_or_else(|| ApiError::from(ChangeError::Unknown(component)))
}

/// Says how a rollout is to be, and creates it where there is none.
pub(super) async fn put(
    State(app): State<AppState>,
    path: Named,
    request: Request,
) -> Result<Response, ApiError> {
    let by = app.operator(request.headers()).await?;
    let component = component(path)?;
    let mut fields: Map<String, Value> = parse(&read_body(request, &app).await?)?;
    let version = field(&mut fields, "version")?;
    let reason = reason(field(&mut fields, "reason")?)?;
    let settings: Settings = typed(Value::Object(fields))?;
    app.change(&component, &Change::Set(Box::new(settings)), version, Actor { reason, ..by }).await
}

/// What can be said beside a verb. Nothing has to be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Order {
    version: Option<u64>,
    reason: Option<String>,
    percentage: Option<Percentage>,
    keep_salt: bool,
    force: bool,
    mode: Option<Stop>,
}

/// `start`, `pause`, `resume`, `advance`, `approve`, `complete`, `rollback`, `stop`.
pub(super) async fn order(
    State(app): State<AppState>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let by = app.operator(request.headers()).await?;
    let Path((verb, name)) = path?;
    let component = named(&name)?;
    let body = read_body(request, &app).await?;
    let order: Order = if body.is_empty() { Order::default() } else { parse(&body)? };
    let Order { version, reason: said, percentage, keep_salt, force, mode } = order;
    let reason = reason(said)?;
    let change = match verb.as_str() {
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
            let message = "a rollback needs a \"reason\": those who come after want to know why";
            return Err(ApiError::new(ErrorCode::Malformed, message));
        }
        // What is stopped softly stays where it is.
        "stop" => Change::Stop(mode.unwrap_or(Stop::Freeze)),
        "rollback" => Change::Stop(mode.unwrap_or_default()),
        _ => {
            let message = format!(
                "nothing can be done by {verb:?}: start, pause, resume, advance, approve, \
                 complete, stop, rollback"
            );
            return Err(ApiError::new(ErrorCode::NotFound, message));
        }
    };
    app.change(&component, &change, version, Actor { reason, ..by }).await
}

/// All rollouts off, everybody back.
pub(super) async fn emergency_stop(
    State(app): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let by = app.operator(request.headers()).await?;
    let body = read_body(request, &app).await?;
    let order: Order = if body.is_empty() { Order::default() } else { parse(&body)? };
    let by = Actor { reason: reason(order.reason)?, ..by };
    let change = Change::EmergencyStop(order.mode.unwrap_or_default());
    let registry = &app.connections.rollouts.registry;
    if !registry.now().read {
        let message =
            "this node has not read the rollouts yet: ask another one, or again in a moment";
        return Err(ApiError::new(ErrorCode::Unavailable, message));
    }
    // What is known here stops at once; what was begun elsewhere a moment ago, after a look.
    let (mut stopped, mut kept) = (Map::new(), true);
    let mut failed = Vec::new();
    for _ in 0..2 {
        for standing in registry.now().all() {
            let component = &standing.flag.component;
            if stopped.contains_key(component.as_str()) {
                continue;
            }
            match registry.change(component, &change, None, &by).await {
                Ok(changed) => {
                    kept &= changed.saved;
                    stopped.insert(component.to_string(), shown(&changed.now));
                }
                Err(err) => failed.push(format!("{component}: {err}")),
            }
        }
        if !kept || registry.refresh().await.is_err() {
            break;
        }
    }
    if !failed.is_empty() {
        return Err(ApiError::new(ErrorCode::Unavailable, failed.join("; ")));
    }
    let flags: Vec<_> = stopped.into_values().collect();
    Ok((status(kept), Json(json!({ "flags": flags, "kept": kept }))).into_response())
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    component: Option<String>,
    /// Lines before this number: the `next` of the page before.
    before: Option<u64>,
    /// Lines since this moment, in milliseconds since 1970.
    since: Option<u64>,
    limit: Option<usize>,
}

/// The journal: who did what when, why, and what was measured then.
pub(super) async fn history(
    State(app): State<AppState>,
    headers: HeaderMap,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Read)?;
    let Query(query) = query.map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    let component = query.component.as_deref().map(named).transpose()?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let before = query.before.unwrap_or(u64::MAX);
    let lines = lines(&app, component.as_ref(), before, limit).await?;
    let next = lines.last().filter(|_| lines.len() == limit).map(|line| line["number"].clone());
    let since = query.since.unwrap_or(0);
    let late = |line: &&Value| since <= line["time"].as_u64().unwrap_or(0);
    let shown: Vec<_> = lines.iter().filter(late).collect();
    Ok(Json(json!({ "entries": shown, "next": next })))
}

/// Lines of the journal as they are shown, the newest first.
pub(super) async fn lines(
    app: &AppState,
    component: Option<&Component>,
    before: u64,
    limit: usize,
) -> Result<Vec<Value>, ApiError> {
    let lines = app.connections.rollouts.registry.journal(component, before, limit).await?;
    let shown = |(note, entry): &(Note, Option<Entry>)| {
        let mut line = json!(entry);
        line["number"] = json!(note.number);
        line["component"] = json!(note.key.rsplit('/').next().unwrap_or_default());
        line["version"] = json!(note.version);
        line["time"] = json!(note.time);
        line
    };
    Ok(lines.iter().map(shown).collect())
}

impl AppState {
    /// Who may change rollouts, and how the journal calls them.
    pub(super) async fn operator(&self, headers: &HeaderMap) -> Result<Actor, ApiError> {
        let identity = self.caller(headers).await?;
        self.allow_scope(&identity, Scope::Admin)?;
        Ok(Actor { name: known_as(&identity), reason: String::new() })
    }

    /// What has to be completed before this one may begin.
    fn waits_for(&self, component: &Component) -> Vec<String> {
        let now = self.connections.rollouts.registry.now();
        let Some(standing) = now.get(component.as_str()) else { return Vec::new() };
        let status = |other: &str| now.get(other).map(|other| other.flag.course.status);
        standing.flag.schedule.waits_for(status)
    }

    async fn change(
        &self,
        component: &Component,
        change: &Change,
        version: Option<u64>,
        by: Actor,
    ) -> Result<Response, ApiError> {
        let Changed { now, saved: kept, effects: acts } =
            self.connections.rollouts.registry.change(component, change, version, &by).await?;
        for act in acts {
            if let Effect::Tell { urgent, text } = act {
                self.alerts.raise(Alert {
                    component: component.to_string(),
                    kind: AlertKind::of_action(change.name()),
                    urgent,
                    text: format!("{text} (by {})", by.name),
                    figures: None,
                });
            }
        }
        let mut body = shown(&now);
        body["kept"] = json!(kept);
        if !kept {
            body["message"] = json!(
                "stopped on this node; the store is away, so the other nodes follow when it is \
                 back: keep this node up, or repeat the call there"
            );
        }
        Ok((status(kept), Json(body)).into_response())
    }
}

fn status(kept: bool) -> StatusCode {
    if kept { StatusCode::OK } else { StatusCode::ACCEPTED }
}

fn known_as(identity: &Identity) -> String {
    let key = identity.name.as_ref().map(|name| format!("key {name}"));
    let user = identity.user.as_ref().map(|user| format!("user {user}"));
    key.or(user).unwrap_or_else(|| "anonymous".to_owned())
}

/// A rollout as it is shown: what everybody asks for comes first.
pub(super) fn shown(standing: &RolloutRecord) -> Value {
    let flag = &standing.flag;
    let course = &flag.course;
    let mut value = json!(flag);
    value["status"] = json!(course.status);
    value["rolloutPercentage"] = json!(course.percentage);
    value["effectivePercentage"] = json!(flag.effective());
    value["epoch"] = json!(course.epoch);
    value["stop"] = json!(course.stop);
    value["reason"] = json!(course.reason);
    value["unsaved"] = json!(standing.unsaved);
    value
}

fn component(path: Named) -> Result<Component, ApiError> {
    let Path(name) = path?;
    named(&name)
}

fn named(name: &str) -> Result<Component, ApiError> {
    name.parse().map_err(|err| ApiError::new(ErrorCode::Malformed, err))
}

fn reason(said: Option<String>) -> Result<String, ApiError> {
    let reason = said.unwrap_or_default();
    if REASON_MAX < reason.len() {
        let message = format!("a reason may have {REASON_MAX} bytes");
        return Err(ApiError::new(ErrorCode::Malformed, message));
    }
    Ok(reason)
}

fn field<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, ApiError> {
    fields.remove(name).map(typed).transpose()
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value)
        .map_err(|err| ApiError::new(ErrorCode::Malformed, format!("the body: {err}")))
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let value = serde_json::from_slice(body);
    typed(value.map_err(|err| ApiError::new(ErrorCode::Malformed, format!("the body: {err}")))?)
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
