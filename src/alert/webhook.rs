//! One webhook: what it is told, how it is signed (Standard Webhooks), and when it is tried again.
//!
//! It is tried until it answers 2xx, for `alerts.give_up`; a 3xx and a 4xx other than 408 and 429
//! is an answer too, and final. Redirects are not followed: what is signed for one address is
//! nobody else's. Neither a secret nor the path of an address, which may hold one, is ever shown.

use std::{
    collections::HashSet,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rand::Rng as _;
use reqwest::{StatusCode, Url, header::RETRY_AFTER, redirect};
use ring::hmac;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use tokio::{sync::mpsc, time::sleep_until};
use tracing::{debug, warn};

use super::{
    AlertConfig, AlertError, AlertKind, KEPT,
    alert_log::{StoredAlert, Told},
    breaker::Breaker,
};
use crate::{
    auth::Secret,
    lifecycle,
    metrics::{Metrics, WebhookLabel},
};

/// Bytes of a secret, by Standard Webhooks.
const SECRET_BYTES: usize = 24;

/// What a secret in their own notation begins with; base64 follows.
const SECRET_PREFIX: &str = "whsec_";

/// One of `[[alerts.webhook]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// What it is called; each another.
    pub name: String,
    /// Where alerts are posted to.
    pub url: Address,
    /// What they are signed with, at least 24 bytes.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The same, in a file.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// What it is told of; empty for everything.
    #[serde(default)]
    pub events: Vec<AlertKind>,
    /// Only what somebody should be woken for.
    #[serde(default)]
    pub urgent_only: bool,
}

/// An address whose path may be a secret: it is written out without one.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// Hides what an address has behind its host.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = self.0.parse::<Url>() else { return f.write_str("(no address)") };
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str("/…")
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A webhook as it is used.
pub(super) struct Target {
    name: Arc<str>,
    url: Url,
    key: hmac::Key,
    filter: Filter,
}

/// What a webhook is told of.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) name: Arc<str>,
    events: Vec<AlertKind>,
    urgent_only: bool,
}

impl Filter {
    pub(super) fn wants(&self, alert: &StoredAlert) -> bool {
        let named = self.events.is_empty() || self.events.contains(&alert.happening);
        named && (alert.urgent || !self.urgent_only)
    }
}

impl Target {
    pub(super) fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

/// Where the alerts for a webhook go.
#[derive(Debug)]
pub(super) struct WebhookQueue {
    pub(super) filter: Filter,
    pub(super) post: mpsc::Sender<StoredAlert>,
}

/// The webhooks as they are configured.
pub(super) fn read(config: &AlertConfig) -> Result<Vec<Target>, AlertError> {
    let mut names = HashSet::new();
    let mut targets = Vec::new();
    for (number, hook) in config.webhook.iter().enumerate() {
        let place = format!("alerts.webhook[{number}]");
        let wrong =
            |field: &str, reason: String| AlertError { key: format!("{place}.{field}"), reason };
        if hook.name.is_empty() || 64 < hook.name.len() || !names.insert(&hook.name) {
            let reason = "give it a name of 1 to 64 bytes that no other webhook has".to_owned();
            return Err(wrong("name", reason));
        }
        // What the parser says of it does not repeat it.
        let url: Url = hook.url.0.parse().map_err(|err| wrong("url", format!("{err}")))?;
        if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
            return Err(wrong("url", "it has to be an https or http address".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "it must not hold a password: the secret signs what is sent".to_owned();
            return Err(wrong("url", reason));
        }
        let secret = Secret::read(&place, hook.secret.as_ref(), hook.file.as_deref())
            .map_err(|err| AlertError { key: err.key, reason: err.reason })?;
        let key = key(&secret).ok_or_else(|| {
            let reason = format!(
                "take at least {SECRET_BYTES} random bytes, as they are or as whsec_ and base64"
            );
            wrong("secret", reason)
        })?;
        let name: Arc<str> = hook.name.as_str().into();
        let filter = Filter {
            name: Arc::clone(&name),
            events: hook.events.clone(),
            urgent_only: hook.urgent_only,
        };
        targets.push(Target { name, url, key, filter });
    }
    Ok(targets)
}

fn key(secret: &Secret) -> Option<hmac::Key> {
    let raw = secret.bytes();
    let bytes = match raw.strip_prefix(SECRET_PREFIX.as_bytes()) {
        Some(encoded) => BASE64_STANDARD.decode(encoded).ok()?,
        None => raw.to_vec(),
    };
    (SECRET_BYTES <= bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The value of `webhook-signature`.
fn signature(key: &hmac::Key, id: &str, timestamp: u64, body: &str) -> String {
    let signed = hmac::sign(key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(signed))
}

/// What a webhook is told.
fn body(alert: &StoredAlert) -> String {
    json!({
        "id": alert.id,
        "type": alert.happening,
        "component": alert.component,
        "at": alert.at,
        "urgent": alert.urgent,
        "text": alert.text,
        "figures": alert.figures,
        "environment": alert.environment,
        "node": alert.node,
    })
    .to_string()
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Heard,
    /// Try again, not before this time has passed.
    Later(Option<Duration>, String),
    Final(String),
}

fn judge(status: StatusCode, retry_after: Option<&str>, now: SystemTime) -> Answer {
    let said = format!("it answered {}", status.as_u16());
    if status.is_success() {
        return Answer::Heard;
    }
    if status.is_redirection() {
        let help = "redirects are not followed, give the address it leads to";
        return Answer::Final(format!("{said}: {help}"));
    }
    let passes = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if status.is_client_error() && !passes {
        return Answer::Final(said);
    }
    let after = retry_after.and_then(|text| {
        let seconds = text.trim().parse().ok().map(Duration::from_secs);
        let date = || httpdate::parse_http_date(text).ok()?.duration_since(now).ok();
        seconds.or_else(date)
    });
    Answer::Later(after, said)
}

/// When a webhook is tried again: a random part of what doubles with each try.
#[derive(Clone, Copy, Debug)]
struct RetryPolicy {
    min: Duration,
    max: Duration,
    give_up: Duration,
}

impl RetryPolicy {
    fn most(&self, tries: u32) -> Duration {
        self.min.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(self.max)
    }

    fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
        let jitter = self.most(tries).mul_f64(rand::rng().random());
        jitter.max(asked.unwrap_or_default()).min(self.give_up)
    }

    fn is_over(&self, alert: &StoredAlert) -> bool {
        let give_up = u64::try_from(self.give_up.as_millis()).unwrap_or(u64::MAX);
        alert.at.saturating_add(give_up) < lifecycle::unix_ms()
    }
}

/// An alert on its way.
struct Delivery {
    alert: StoredAlert,
    tries: u32,
    due: Instant,
}

/// Tells one webhook, one alert at a time.
pub(super) struct Post {
    target: Target,
    http: reqwest::Client,
    patience: RetryPolicy,
    breaker: Breaker,
    letters: Vec<Delivery>,
    told: mpsc::Sender<Told>,
    sent: Counter,
    failed: Counter,
    open: Gauge,
}

impl Post {
    pub(super) fn new(
        target: Target,
        config: &AlertConfig,
        metrics: &Metrics,
        told: mpsc::Sender<Told>,
    ) -> Result<Self, AlertError> {
        // Needed once per process; a second installation changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("crossfade/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|err| AlertError { key: "alerts".to_owned(), reason: err.to_string() })?;
        let label = WebhookLabel { webhook: target.name.to_string() };
        let sent = metrics.webhooks_sent.get_or_create(&label).clone();
        let failed = metrics.webhooks_failed.get_or_create(&label).clone();
        let open = metrics.webhooks_broken.clone();
        let (min, max, give_up) = (config.backoff_min, config.backoff_max, config.give_up);
        let patience = RetryPolicy { min, max, give_up };
        let (breaker, letters) = (Breaker::new(), Vec::new());
        Ok(Self { target, http, patience, breaker, letters, told, sent, failed, open })
    }

    /// Tells what comes, until it is dropped.
    pub(super) async fn run(mut self, mut posted: mpsc::Receiver<StoredAlert>) {
        let mut rests = Instant::now();
        loop {
            let due = self.letters.iter().map(|letter| letter.due).min().map(|due| due.max(rests));
            let turn = sleep_until(due.unwrap_or_else(Instant::now).into());
            tokio::select! {
                alert = posted.recv(), if self.letters.len() < KEPT => {
                    let Some(alert) = alert else { return };
                    self.letters.push(Delivery { alert, tries: 0, due: Instant::now() });
                }
                () = turn, if due.is_some() => {
                    self.give_up().await;
                    match self.breaker.ask(Instant::now()) {
                        Ok(()) => self.deliver().await,
                        Err(until) => rests = until,
                    }
                }
            }
        }
    }

    /// What is too old is not sent any more.
    async fn give_up(&mut self) {
        let patience = self.patience;
        for letter in self.letters.extract_if(.., |letter| patience.is_over(&letter.alert)) {
            warn!(
                webhook = &*self.target.name, alert = %letter.alert.id, tries = letter.tries,
                "a webhook was not told of an alert within alerts.give_up"
            );
            self.failed.inc();
            let (id, webhook) = (letter.alert.id, Arc::clone(&self.target.name));
            let _ = self.told.send(Told { id, webhook, heard: false }).await;
        }
    }

    /// Tries the one that is due first.
    async fn deliver(&mut self) {
        let first = self.letters.iter().enumerate().min_by_key(|(_, letter)| letter.due);
        let Some((at, _)) = first else { return self.breaker_says(true) };
        let mut letter = self.letters.swap_remove(at);
        letter.tries += 1;
        let answer = self.post(&letter.alert).await;
        let webhook = Arc::clone(&self.target.name);
        let id = letter.alert.id;
        let heard = match answer {
            Answer::Heard => true,
            Answer::Final(reason) => {
                warn!(%webhook, alert = %id, %reason, "a webhook does not take an alert");
                false
            }
            Answer::Later(after, reason) => {
                self.breaker_says(false);
                let pause = self.patience.pause(letter.tries, after);
                let tries = letter.tries;
                debug!(%webhook, alert = %id, %reason, tries, ?pause, "a webhook is tried again");
                letter.due = Instant::now() + pause;
                return self.letters.push(letter);
            }
        };
        self.breaker_says(true);
        if heard {
            self.sent.inc()
        } else {
            self.failed.inc()
        };
        let _ = self.told.send(Told { id, webhook, heard }).await;
    }

    fn breaker_says(&mut self, answered: bool) {
        let before = self.breaker.is_open();
        if answered {
            self.breaker.succeeded();
        } else {
            self.breaker.failed(Instant::now());
        }
        match (before, self.breaker.is_open()) {
            (false, true) => {
                warn!(webhook = &*self.target.name, "a webhook fails again and again: it rests");
                self.open.inc();
            }
            (true, false) => drop(self.open.dec()),
            _ => {}
        }
    }

    async fn post(&self, alert: &StoredAlert) -> Answer {
        let (id, body) = (alert.id.to_string(), body(alert));
        let timestamp = lifecycle::unix_ms() / 1000;
        let request = self
            .http
            .post(self.target.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature(&self.target.key, &id, timestamp, &body))
            .body(body);
        match request.send().await {
            Ok(answer) => {
                let after = answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok());
                judge(answer.status(), after, SystemTime::now())
            }
            Err(err) => Answer::Later(None, err.without_url().to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
