//! `crossfade rollout`: controls rollouts through the API under `/api/migration`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::Target;
use crate::rollout::{cohort::Percentage, flag::TRANSPORT, schedule::Schedule};

#[derive(Args, Debug)]
pub(super) struct RolloutArgs {
    #[command(subcommand)]
    action: Action,
    /// Print the response of the gateway as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all rollouts.
    Status,
    /// Change the settings of a rollout, or create it.
    Set(Box<SetArgs>),
    /// Start a rollout, or restart it after its end.
    Start(StartArgs),
    /// Keep a rollout at its percentage.
    Pause(CommonArgs),
    /// Continue a paused or held rollout.
    Resume(CommonArgs),
    /// Go to the next step without waiting for the rest of the bake time.
    Advance(CommonArgs),
    /// Approve the next step.
    Approve(CommonArgs),
    /// Assign all users to the new side permanently.
    Complete(CommonArgs),
    /// Stop a rollout; users stay where they are, unless --mode says otherwise.
    Stop(StopArgs),
    /// Roll back: users move back to the old side. Needs --reason.
    Rollback(StopArgs),
    /// Stop all rollouts; by default all users move back.
    EmergencyStop(EmergencyStopArgs),
    /// Show the journal: who changed what, when and why.
    History(HistoryArgs),
}

#[derive(Args, Debug)]
struct SetArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Percentage of users on the new side, 0 to 100.
    #[arg(long, value_name = "PERCENT")]
    percentage: Option<Percentage>,
    /// Whether the rollout is in effect.
    #[arg(long)]
    enabled: Option<bool>,
    /// Whether clients may fall back to the old side when the new one cannot connect.
    #[arg(long)]
    fallback: Option<bool>,
    /// Only in these environments (auth.environment). Repeatable, as are the lists below.
    #[arg(long, value_name = "NAME")]
    environment: Vec<String>,
    /// Only for users of these groups.
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Users who are always on the new side.
    #[arg(long, value_name = "USER")]
    allow: Vec<String>,
    /// Users who are always on the old side.
    #[arg(long, value_name = "USER")]
    deny: Vec<String>,
    /// Bucketing algorithm: crossfade-v1, unleash, flagd, growthbook-v2 or launchdarkly.
    #[arg(long, value_name = "NAME")]
    algorithm: Option<String>,
    /// Salt of the hash that assigns users to buckets.
    #[arg(long)]
    salt: Option<String>,
    /// Name of the old side, when the rollout is created.
    #[arg(long)]
    from: Option<String>,
    /// Name of the new side, when the rollout is created.
    #[arg(long)]
    to: Option<String>,
    /// Schedule: `usual` (1, 5, 25, 50, 100 % over two days) or a JSON file.
    #[arg(long, value_name = "usual|FILE")]
    schedule: Option<String>,
    /// Guardrails: a JSON file.
    #[arg(long, value_name = "FILE")]
    guardrails: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct StartArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Percentage of users to start with.
    #[arg(long, value_name = "PERCENT")]
    percentage: Option<Percentage>,
    /// Keep the salt, so that the same users are first as the last time.
    #[arg(long)]
    keep_salt: bool,
    /// Start during the cool-down after a rollback.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct StopArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// freeze (default of stop), stop-and-keep, drain-back (default of rollback) or hard.
    #[arg(long)]
    mode: Option<String>,
}

#[derive(Args, Debug)]
struct CommonArgs {
    /// Component that is rolled out.
    #[arg(default_value = TRANSPORT)]
    component: String,
    /// Reason, for the journal.
    #[arg(long, default_value = "")]
    reason: String,
    /// Fail if the rollout has another version by now.
    #[arg(long)]
    version: Option<u64>,
}

#[derive(Args, Debug)]
struct EmergencyStopArgs {
    /// Reason, for the journal.
    #[arg(long, default_value = "")]
    reason: String,
    /// freeze, stop-and-keep, drain-back (the default) or hard.
    #[arg(long)]
    mode: Option<String>,
}

#[derive(Args, Debug)]
struct HistoryArgs {
    /// Component; all without it.
    component: Option<String>,
    /// Most entries to show.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// A request to the API.
struct ApiRequest {
    method: Method,
    path: String,
    body: Value,
}

pub(super) async fn run(args: RolloutArgs) -> anyhow::Result<ExitCode> {
    let RolloutArgs { action, json, target } = args;
    let is_status = matches!(action, Action::Status);
    let is_history = matches!(action, Action::History(_));
    let ApiRequest { method, path, body } = api_request(action)?;
    let mut request = reqwest::Client::new().request(method.clone(), target.join(&path));
    if let Some(token) = &target.token {
        request = request.bearer_auth(token.reveal());
    }
    if method != Method::GET {
        request = request.json(&body);
    }
    let response = request.send().await.with_context(|| {
        format!("cannot connect to {}: is the gateway running? (--url)", target.url)
    })?;
    let status = response.status();
    let answer: Value = response.json().await.context("the response is not JSON")?;
    if !status.is_success() {
        let error = &answer["error"];
        let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
        bail!("{}: {}", text("code"), text("message"));
    }
    if json {
        print(&serde_json::to_string_pretty(&answer)?);
    } else if is_history {
        print_list(&answer["entries"], journal_line, "the journal is empty");
    } else if is_status || answer["flags"].is_array() {
        print_list(
            &answer["flags"],
            rollout_line,
            "no rollouts; create one with crossfade rollout start",
        );
    } else {
        print(&rollout_line(&answer));
    }
    if let Some(message) = answer["message"].as_str() {
        print(message);
    }
    Ok(ExitCode::SUCCESS)
}

fn api_request(action: Action) -> anyhow::Result<ApiRequest> {
    const BASE: &str = "/api/migration";
    let get = |path: String| ApiRequest { method: Method::GET, path, body: Value::Null };
    let post = |path: String, body| ApiRequest { method: Method::POST, path, body };
    let perform = |action: &str, common: CommonArgs, fields: Value| {
        let component = &common.component;
        post(format!("{BASE}/{action}/{component}"), common.body_with(fields))
    };
    Ok(match action {
        Action::Status => get(format!("{BASE}/feature-flags")),
        Action::Set(set) => {
            let path = format!("{BASE}/feature-flags/{}", set.common.component);
            ApiRequest { method: Method::PUT, path, body: set.into_body()? }
        }
        Action::Start(StartArgs { common, percentage, keep_salt, force }) => {
            let fields = json!({ "percentage": percentage, "keepSalt": keep_salt, "force": force });
            perform("start", common, fields)
        }
        Action::Pause(common) => perform("pause", common, json!({})),
        Action::Resume(common) => perform("resume", common, json!({})),
        Action::Advance(common) => perform("advance", common, json!({})),
        Action::Approve(common) => perform("approve", common, json!({})),
        Action::Complete(common) => perform("complete", common, json!({})),
        Action::Stop(StopArgs { common, mode }) => perform("stop", common, json!({ "mode": mode })),
        Action::Rollback(StopArgs { common, .. }) if common.reason.is_empty() => {
            bail!(
                "a rollback needs a reason: crossfade rollout rollback {} --reason \"…\"",
                common.component
            )
        }
        Action::Rollback(StopArgs { common, mode }) => {
            perform("rollback", common, json!({ "mode": mode }))
        }
        Action::EmergencyStop(EmergencyStopArgs { reason, mode }) => post(
            format!("{BASE}/emergency-stop"),
            without_nulls(json!({ "reason": reason, "mode": mode })),
        ),
        Action::History(HistoryArgs { component, limit }) => {
            let filter = component.map(|name| format!("&component={name}")).unwrap_or_default();
            get(format!("{BASE}/history?limit={limit}{filter}"))
        }
    })
}

impl CommonArgs {
    fn body_with(&self, fields: Value) -> Value {
        let mut body = json!({ "version": self.version, "reason": self.reason });
        if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
            body.extend(fields);
        }
        without_nulls(body)
    }
}

impl SetArgs {
    fn into_body(self) -> anyhow::Result<Value> {
        let read = |path: &Path| -> anyhow::Result<Value> {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
        };
        let schedule = match self.schedule.as_deref() {
            Some("usual") => Some(serde_json::to_value(Schedule::usual())?),
            Some(path) => Some(read(Path::new(path))?),
            None => None,
        };
        let guardrails = self.guardrails.as_deref().map(read).transpose()?;
        let lists = [&self.environment, &self.group, &self.allow, &self.deny];
        let conditions = lists.iter().any(|list| !list.is_empty()).then(|| {
            json!({
                "environment": self.environment,
                "userGroups": self.group,
                "allow": self.allow,
                "deny": self.deny,
            })
        });
        Ok(self.common.body_with(json!({
            "schedule": schedule,
            "guardrails": guardrails,
            "enabled": self.enabled,
            "rolloutPercentage": self.percentage,
            "conditions": conditions,
            "fallbackEnabled": self.fallback,
            "algorithm": self.algorithm,
            "salt": self.salt,
            "from": self.from,
            "to": self.to,
        })))
    }
}

/// Removes the fields that are null.
fn without_nulls(body: Value) -> Value {
    let Value::Object(fields) = body else { return body };
    let set = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(set.collect::<Map<_, _>>())
}

fn rollout_line(flag: &Value) -> String {
    let text = |key: &str| flag[key].as_str().unwrap_or_default();
    let stop = flag["stop"].as_str().map(|mode| format!(", {mode}")).unwrap_or_default();
    let off = if flag["enabled"] == json!(false) { ", off" } else { "" };
    let reason = match text("reason") {
        "" => String::new(),
        reason => format!("  \"{reason}\""),
    };
    format!(
        "{}  {} -> {}  {} %  {}{stop}{off}  version {}{reason}",
        text("component"),
        text("from"),
        text("to"),
        flag["effectivePercentage"],
        text("status").replace('_', " "),
        flag["version"],
    )
}

fn journal_line(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let millis = entry["time"].as_u64().unwrap_or(0);
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis);
    let reason = match text("reason") {
        "" => String::new(),
        reason => format!("  \"{reason}\""),
    };
    format!(
        "{}  {}  {}  {} -> {} %  {}  by {}{reason}",
        humantime::format_rfc3339_seconds(at),
        text("component"),
        text("action"),
        entry["percentage"][0],
        entry["percentage"][1],
        entry["status"][1].as_str().unwrap_or_default().replace('_', " "),
        text("by"),
    )
}

fn print_list(items: &Value, line: impl Fn(&Value) -> String, if_empty: &str) {
    match items.as_array() {
        Some(items) if !items.is_empty() => items.iter().for_each(|item| print(&line(item))),
        _ => print(if_empty),
    }
}

#[expect(clippy::print_stdout, reason = "output of the command")]
fn print(text: &str) {
    println!("{text}");
}
