//! Another flag system that says the percentage, asked by OFREP (the OpenFeature Remote Evaluation
//! Protocol): an object flag `{"percentage": 25, "salt": "…", "epoch": 3, "paused": false}`.
//!
//! It can raise and lower the percentage like a person. A rollout that was turned back here stays so
//! until the source says a higher epoch: its operator has looked at it then. One node asks at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{
    cohort::Percentage,
    flag::{Change, Component, Flag, Settings, TRANSPORT},
    lease::Lease,
    registry::{Actor, ChangeError, RolloutRegistry},
    schedule::Status,
};
use crate::{
    broker::store::{Write, Written},
    lifecycle::Stage,
};

/// Section `[rollout.source]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The system's address; `/ofrep/v1/evaluate/flags/…` is put behind it.
    pub url: String,
    /// The flag there.
    pub flag: String,
    /// The rollout here.
    #[serde(default = "transport")]
    pub component: Component,
    /// A file with the token that is sent as `Authorization: Bearer`.
    #[serde(default)]
    pub token_file: Option<std::path::PathBuf>,
    /// It is asked this often.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    pub every: Duration,
    /// An answer that takes longer is none.
    #[serde(default = "two_seconds", with = "humantime_serde")]
    pub timeout: Duration,
}

fn transport() -> Component {
    TRANSPORT.parse().expect("it is a name")
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

/// Asks another flag system.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    http: reqwest::Client,
    token: Option<String>,
    registry: Arc<RolloutRegistry>,
    /// Of the answer that was seen last.
    tag: Option<header::HeaderValue>,
    /// Not before this.
    not_before: Option<Instant>,
}

/// What the flag says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Said {
    percentage: Percentage,
    #[serde(default)]
    salt: Option<String>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    paused: bool,
}

/// Why there is no source as configured.
#[derive(Debug, thiserror::Error)]
#[error("rollout.source: {0}")]
pub struct SourceError(String);

/// Bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// Pauses that a source asks for are not longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

impl Source {
    /// Begins to ask, whenever it is this node's turn.
    ///
    /// # Errors
    /// When the token cannot be read or there can be no client.
    pub fn start(
        config: &SourceConfig,
        registry: Arc<RolloutRegistry>,
        run: &str,
        stage: &Stage,
    ) -> Result<(), SourceError> {
        let wrong = |err: &dyn std::fmt::Display| SourceError(err.to_string());
        let token = match &config.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|err| SourceError(format!("{}: {err}", path.display())))?;
                Some(text.trim().to_owned())
            }
        };
        // Needed once per process; a second installation changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().timeout(config.timeout);
        let http = builder.redirect(reqwest::redirect::Policy::none()).build();
        let source = Self {
            config: config.clone(),
            http: http.map_err(|err| wrong(&err))?,
            token,
            registry,
            tag: None,
            not_before: None,
        };
        let time = config.every.max(Duration::from_secs(1)) * 3;
        let lease = Lease::new("lease/source", run, time);
        let stopping = stage.stopping().clone();
        stage.spawn("source", async move {
            let _ = stopping.run_until_cancelled(source.run(lease)).await;
        });
        Ok(())
    }

    async fn run(mut self, mut lease: Lease) {
        let mut tick = interval(self.config.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mine = matches!(lease.hold(&**self.registry.store()).await, Ok(true));
            if !mine || self.not_before.is_some_and(|at| Instant::now() < at) {
                continue;
            }
            match self.ask().await {
                Ok(None) => {}
                Ok(Some(said)) => self.obey(&said).await,
                Err(err) => {
                    warn!(url = self.config.url, %err, "the source of a rollout's percentage")
                }
            }
        }
    }

    /// What the flag says; none when it says what it said.
    async fn ask(&mut self) -> Result<Option<Said>, SourceError> {
        let SourceConfig { url, flag, .. } = &self.config;
        let url = format!("{}/ofrep/v1/evaluate/flags/{flag}", url.trim_end_matches('/'));
        let context =
            json!({ "targetingKey": "crossfade", "environment": self.registry.environment() });
        let mut request = self.http.post(url).json(&json!({ "context": context }));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(tag) = &self.tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let failed = |err: reqwest::Error| SourceError(err.without_url().to_string());
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        if let Some(pause) = retry_after(answer.headers()) {
            self.not_before = Some(Instant::now() + pause.min(LONGEST_PAUSE));
        }
        if status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let tag = answer.headers().get(header::ETAG).cloned();
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
            if ANSWER_BYTES < bytes.len() {
                return Err(SourceError(format!("its answer has more than {ANSWER_BYTES} bytes")));
            }
        }
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if !status.is_success() {
            let details = body["errorDetails"].as_str().unwrap_or_default();
            let code = body["errorCode"].as_str().unwrap_or_default();
            return Err(SourceError(format!("it answered {status} {code} {details}")));
        }
        let said = serde_json::from_value(body["value"].clone());
        let said: Said = said.map_err(|err| {
            SourceError(format!(
                "the flag's value is not like {{\"percentage\": 25, \"epoch\": 1}}: {err}"
            ))
        })?;
        self.tag = tag;
        Ok(Some(said))
    }

    async fn obey(&mut self, said: &Said) {
        let component = &self.config.component;
        let key = format!("source/{component}");
        let store = self.registry.store();
        let Ok(found) = store.get(&key).await else { return self.tag = None };
        let heard: u64 =
            found.as_ref().and_then(|record| record.value.parse().ok()).unwrap_or_default();
        let flags = self.registry.now();
        let flag = flags.get(component.as_str()).map(|standing| &standing.flag);
        let by = Actor {
            name: format!("source {}", self.config.flag),
            reason: format!("{} says so", self.config.url),
        };
        for change in changes(flag, heard, said) {
            match self.registry.change(component, &change, None, &by).await {
                Ok(_) => info!(%component, ?said, "the source was obeyed"),
                Err(ChangeError::Store(_)) => return self.tag = None,
                Err(err) => warn!(%component, %err, "the source was not obeyed"),
            }
        }
        if heard < said.epoch {
            let expected = found.map_or(0, |record| record.version);
            let write = Write { expected, value: said.epoch.to_string(), note: None };
            if !matches!(store.put(&key, write).await, Ok(Written::Done(_))) {
                self.tag = None;
            }
        }
    }
}

/// What follows from what the source says, given the last epoch that was heard of it.
fn changes(flag: Option<&Flag>, heard: u64, said: &Said) -> Vec<Change> {
    let settings = |percentage, salt| {
        Change::Set(Box::new(Settings {
            rollout_percentage: percentage,
            salt,
            ..Settings::default()
        }))
    };
    let start = Change::Start {
        percentage: None,
        keep_salt: said.salt.is_some(),
        force: true,
        waits_for: Vec::new(),
    };
    let mut changes = Vec::new();
    let salt = said.salt.clone().filter(|salt| flag.is_none_or(|flag| flag.salt != *salt));
    let Some(flag) = flag else {
        changes.push(settings(Some(said.percentage), salt));
        return changes;
    };
    if flag.has_ended() {
        // What was turned back here stays so, until somebody there has looked at it.
        if said.epoch <= heard {
            return changes;
        }
        if salt.is_some() {
            changes.push(settings(None, salt));
        }
        changes.push(start);
        changes.push(settings(Some(said.percentage), None));
        return changes;
    }
    if salt.is_some() || flag.course.percentage != said.percentage {
        changes.push(settings(Some(said.percentage), salt));
    }
    match (flag.course.status, said.paused) {
        (Status::Running, true) => changes.push(Change::Pause),
        (Status::Paused, false) if flag.schedule.steps.is_empty() => changes.push(Change::Resume),
        _ => {}
    }
    changes
}

/// Seconds; a date is not worth reading here: the next tick asks again.
fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::schedule::Stop;

    fn said(percentage: f64, epoch: u64) -> Said {
        Said { percentage: Percentage::new(percentage).unwrap(), salt: None, epoch, paused: false }
    }

    fn after(flag: Option<Flag>, heard: u64, said: &Said) -> Flag {
        let begin = flag.clone().unwrap_or_else(|| {
            Flag::new(TRANSPORT.parse().unwrap(), &Settings::default()).unwrap()
        });
        let changes = changes(flag.as_ref(), heard, said);
        changes.iter().fold(begin, |flag, change| flag.after(change, "source", 1).unwrap().0)
    }

    #[test]
    fn it_raises_and_lowers_and_pauses() {
        let flag = after(None, 0, &said(25.0, 1));
        assert_eq!(flag.effective(), Percentage::new(25.0).unwrap());
        let flag = after(Some(flag), 1, &said(10.0, 1));
        assert_eq!(flag.effective(), Percentage::new(10.0).unwrap());
        assert!(changes(Some(&flag), 1, &said(10.0, 1)).is_empty());
        let paused = after(Some(flag), 1, &Said { paused: true, ..said(10.0, 1) });
        assert_eq!(paused.course.status, Status::Paused);
        assert_eq!(after(Some(paused), 1, &said(10.0, 1)).course.status, Status::Running);
    }

    #[test]
    fn what_was_turned_back_stays_so_until_a_higher_epoch() {
        let flag = after(None, 0, &said(25.0, 1));
        let back = flag.after(&Change::Stop(Stop::DrainBack), "it burns", 1).unwrap().0;
        assert!(changes(Some(&back), 1, &said(25.0, 1)).is_empty());
        let again = after(Some(back), 1, &said(5.0, 2));
        assert_eq!(again.effective(), Percentage::new(5.0).unwrap());
        assert_eq!(again.course.epoch, 2);
    }
}
