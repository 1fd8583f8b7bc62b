//! `crossfade rollout`: rollouts from a shell, over the gateway's own API.

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
    act: Act,
    /// Print the gateway's answer as it came.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Say how rollouts stand.
    Status,
    /// Say how a rollout is to be; creates it where there is none.
    Set(Box<Set>),
    /// Begin, or begin anew after an end.
    Start(Start),
    /// Hold a rollout where it is.
    Pause(Verb),
    /// Go on.
    Resume(Verb),
    /// Do not wait for the rest of the bake time.
    Advance(Verb),
    /// Approve of the next step.
    Approve(Verb),
    /// Everybody belongs on the new side, for good.
    Complete(Verb),
    /// End a rollout; everybody stays where they are, unless --mode says otherwise.
    Stop(Halt),
    /// Turn back. Needs a reason.
    Rollback(Halt),
    /// All rollouts off, everybody back.
    EmergencyStop(Emergency),
    /// Who did what when, why, and what was measured then.
    History(History),
}

#[derive(Args, Debug)]
struct Set {
    #[command(flatten)]
    verb: Verb,
    /// The share of users for the new side, 0 to 100.
    #[arg(long, value_name = "PERCENT")]
    percentage: Option<Percentage>,
    /// Whether it counts at all.
    #[arg(long)]
    enabled: Option<bool>,
    /// Whether clients may fall back to the old side.
    #[arg(long)]
    fallback: Option<bool>,
    /// Only these environments.
    #[arg(long, value_name = "NAME")]
    environment: Vec<String>,
    /// Only users of these groups.
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// Users who belong on the new side whatever the percentage.
    #[arg(long, value_name = "USER")]
    allow: Vec<String>,
    /// Users who belong on the old side.
    #[arg(long, value_name = "USER")]
    deny: Vec<String>,
    /// crossfade-v1, unleash, flagd, growthbook-v2 or launchdarkly.
    #[arg(long, value_name = "RULE")]
    algorithm: Option<String>,
    /// What a user's place is computed with.
    #[arg(long)]
    salt: Option<String>,
    /// The old side, for a component that is new here.
    #[arg(long)]
    from: Option<String>,
    /// The new side, for a component that is new here.
    #[arg(long)]
    to: Option<String>,
    /// How it goes up: `usual` (1, 5, 25, 50, 100 % over two days), or a JSON file.
    #[arg(long, value_name = "usual|FILE")]
    schedule: Option<String>,
    /// What it must not do: a JSON file.
    #[arg(long, value_name = "FILE")]
    guardrails: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Start {
    #[command(flatten)]
    verb: Verb,
    /// Begin with so many percent of the users.
    #[arg(long, value_name = "PERCENT")]
    percentage: Option<Percentage>,
    /// The same users first as the last time.
    #[arg(long)]
    keep_salt: bool,
    /// Do not wait until it has cooled down.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct Halt {
    #[command(flatten)]
    verb: Verb,
    /// freeze (the default of stop), stop-and-keep, drain-back (the default of rollback) or hard.
    #[arg(long)]
    mode: Option<String>,
}

#[derive(Args, Debug)]
struct Verb {
    /// What is rolled out.
    #[arg(default_value = TRANSPORT)]
    component: String,
    /// Why, for the journal.
    #[arg(long, default_value = "")]
    reason: String,
    /// Only if the rollout still has this version.
    #[arg(long)]
    version: Option<u64>,
}

#[derive(Args, Debug)]
struct Emergency {
    /// Why, for the journal.
    #[arg(long, default_value = "")]
    reason: String,
    /// freeze, stop-and-keep, drain-back (the default) or hard.
    #[arg(long)]
    mode: Option<String>,
}

#[derive(Args, Debug)]
struct History {
    /// What was rolled out; everything without it.
    component: Option<String>,
    /// At most so many lines.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

/// A request to the gateway.
struct Ask {
    method: Method,
    path: String,
    body: Value,
}

pub(super) async fn run(args: RolloutArgs) -> anyhow::Result<ExitCode> {
    let RolloutArgs { act, json, target } = args;
    let lists = matches!(act, Act::Status);
    let history = matches!(act, Act::History(_));
    let Ask { method, path, body } = ask(act)?;
    let mut request = reqwest::Client::new().request(method.clone(), target.join(&path));
    if let Some(token) = &target.token {
        request = request.bearer_auth(token.reveal());
    }
    if method != Method::GET {
        request = request.json(&body);
    }
    let response = request.send().await.with_context(|| {
        format!("the gateway at {} cannot be reached: is it running? (--url)", target.url)
    })?;
    let status = response.status();
    let answer: Value = response.json().await.context("the answer is no JSON")?;
    if !status.is_success() {
        let error = &answer["error"];
        let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
        bail!("{}: {}", text("code"), text("message"));
    }
    if json {
        print(&serde_json::to_string_pretty(&answer)?);
    } else if history {
        list(&answer["entries"], line_of_journal, "nothing has been done yet");
    } else if lists || answer["flags"].is_array() {
        list(&answer["flags"], line, "no rollout: begin with crossfade rollout start");
    } else {
        print(&line(&answer));
    }
    if let Some(message) = answer["message"].as_str() {
        print(message);
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(act: Act) -> anyhow::Result<Ask> {
    const BASE: &str = "/api/migration";
    let get = |path: String| Ask { method: Method::GET, path, body: Value::Null };
    let post = |path: String, body| Ask { method: Method::POST, path, body };
    let order = |word: &str, verb: Verb, more: Value| {
        let component = &verb.component;
        post(format!("{BASE}/{word}/{component}"), verb.with(more))
    };
    Ok(match act {
        Act::Status => get(format!("{BASE}/feature-flags")),
        Act::Set(set) => {
            let path = format!("{BASE}/feature-flags/{}", set.verb.component);
            Ask { method: Method::PUT, path, body: set.into_body()? }
        }
        Act::Start(Start { verb, percentage, keep_salt, force }) => {
            let more = json!({ "percentage": percentage, "keepSalt": keep_salt, "force": force });
            order("start", verb, more)
        }
        Act::Pause(verb) => order("pause", verb, json!({})),
        Act::Resume(verb) => order("resume", verb, json!({})),
        Act::Advance(verb) => order("advance", verb, json!({})),
        Act::Approve(verb) => order("approve", verb, json!({})),
        Act::Complete(verb) => order("complete", verb, json!({})),
        Act::Stop(Halt { verb, mode }) => order("stop", verb, json!({ "mode": mode })),
        Act::Rollback(Halt { verb, .. }) if verb.reason.is_empty() => {
            bail!("say why: crossfade rollout rollback {} --reason \"…\"", verb.component)
        }
        Act::Rollback(Halt { verb, mode }) => order("rollback", verb, json!({ "mode": mode })),
        Act::EmergencyStop(Emergency { reason, mode }) => {
            post(format!("{BASE}/emergency-stop"), some(json!({ "reason": reason, "mode": mode })))
        }
        Act::History(History { component, limit }) => {
            let of = component.map(|name| format!("&component={name}")).unwrap_or_default();
            get(format!("{BASE}/history?limit={limit}{of}"))
        }
    })
}

impl Verb {
    fn with(&self, more: Value) -> Value {
        let mut body = json!({ "version": self.version, "reason": self.reason });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        some(body)
    }
}

impl Set {
    fn into_body(self) -> anyhow::Result<Value> {
        let read = |path: &Path| -> anyhow::Result<Value> {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
        };
        let schedule = match self.schedule.as_deref() {
            Some("usual") => Some(serde_json::to_value(Schedule::usual())?),
            Some(path) => Some(read(Path::new(path))?),
            None => None,
        };
        let guardrails = self.guardrails.as_deref().map(read).transpose()?;
        let named = [&self.environment, &self.group, &self.allow, &self.deny];
        let conditions = named.iter().any(|list| !list.is_empty()).then(|| {
            json!({
                "environment": self.environment,
                "userGroups": self.group,
                "allow": self.allow,
                "deny": self.deny,
            })
        });
        Ok(self.verb.with(json!({
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

/// Without the fields that nothing was said about.
fn some(body: Value) -> Value {
    let Value::Object(fields) = body else { return body };
    let said = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(said.collect::<Map<_, _>>())
}

fn line(flag: &Value) -> String {
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

fn line_of_journal(entry: &Value) -> String {
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

fn list(lines: &Value, line: impl Fn(&Value) -> String, none: &str) {
    match lines.as_array() {
        Some(lines) if !lines.is_empty() => lines.iter().for_each(|one| print(&line(one))),
        _ => print(none),
    }
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(text: &str) {
    println!("{text}");
}
