//! Webhook delivery: request, signature (Standard Webhooks), retries, backoff, circuit breaker.
//!
//! An alert is retried until the webhook answers 2xx, for at most `alerts.give_up`. A 3xx, and a
//! 4xx other than 408 and 429, is final. Redirects are not followed, because the signed alert is
//! meant for the configured URL only. Secrets, and the path of a URL, which can contain one, are
//! never shown.

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
    AlertConfig, AlertError, AlertKind, MAX_ALERTS,
    alert_log::{DeliveryResult, StoredAlert},
    breaker::Breaker,
};
use crate::{
    auth::Secret,
    lifecycle,
    metrics::{Metrics, WebhookLabel},
};

/// Shortest secret that Standard Webhooks allows.
const MIN_SECRET_BYTES: usize = 24;

/// Prefix of a secret in the notation of Standard Webhooks; base64 follows.
const SECRET_PREFIX: &str = "whsec_";

/// Section `[[alerts.webhook]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Unique name, 1 to 64 bytes; the label of its metrics.
    pub name: String,
    /// URL that alerts are posted to, http or https.
    pub url: WebhookUrl,
    /// Secret that signs the alerts, at least 24 bytes. Set either this or `file`.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// File that contains the secret.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Kinds of alerts to send; empty for all.
    #[serde(default)]
    pub events: Vec<AlertKind>,
    /// Send only urgent alerts.
    #[serde(default)]
    pub urgent_only: bool,
}

/// A URL whose path can be a secret: it is displayed and serialised without the path.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct WebhookUrl(String);

impl WebhookUrl {
    /// Wraps a URL. It is checked when the configuration is.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = self.0.parse::<Url>() else { return f.write_str("(invalid url)") };
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str("/…")
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for WebhookUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A parsed webhook configuration.
pub(super) struct WebhookTarget {
    name: Arc<str>,
    url: Url,
    key: hmac::Key,
    filter: Filter,
}

/// Which alerts a webhook gets.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) name: Arc<str>,
    events: Vec<AlertKind>,
    urgent_only: bool,
}

impl Filter {
    pub(super) fn matches(&self, alert: &StoredAlert) -> bool {
        let kind_matches = self.events.is_empty() || self.events.contains(&alert.kind);
        kind_matches && (alert.urgent || !self.urgent_only)
    }
}

impl WebhookTarget {
    pub(super) fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

/// The queue of a webhook's task, with its filter.
#[derive(Debug)]
pub(super) struct WebhookQueue {
    pub(super) filter: Filter,
    pub(super) queue: mpsc::Sender<StoredAlert>,
}

/// Parses and checks the configured webhooks.
pub(super) fn parse_targets(config: &AlertConfig) -> Result<Vec<WebhookTarget>, AlertError> {
    let mut names = HashSet::new();
    let mut targets = Vec::new();
    for (number, config) in config.webhook.iter().enumerate() {
        let section = format!("alerts.webhook[{number}]");
        let invalid =
            |field: &str, reason: String| AlertError { key: format!("{section}.{field}"), reason };
        if config.name.is_empty() || 64 < config.name.len() || !names.insert(&config.name) {
            let reason = "set a name of 1 to 64 bytes that no other webhook has".to_owned();
            return Err(invalid("name", reason));
        }
        // The parser's message does not repeat the URL.
        let url: Url = config.url.0.parse().map_err(|err| invalid("url", format!("{err}")))?;
        if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
            return Err(invalid("url", "set an https or http URL".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let reason =
                "remove the user name and password: alerts are signed with the secret".to_owned();
            return Err(invalid("url", reason));
        }
        let secret = Secret::read(&section, config.secret.as_ref(), config.file.as_deref())
            .map_err(|err| AlertError { key: err.key, reason: err.reason })?;
        let key = key(&secret).ok_or_else(|| {
            let reason = format!(
                "set at least {MIN_SECRET_BYTES} random bytes, plain or as whsec_ and base64"
            );
            invalid("secret", reason)
        })?;
        let name: Arc<str> = config.name.as_str().into();
        let filter = Filter {
            name: Arc::clone(&name),
            events: config.events.clone(),
            urgent_only: config.urgent_only,
        };
        targets.push(WebhookTarget { name, url, key, filter });
    }
    Ok(targets)
}

fn key(secret: &Secret) -> Option<hmac::Key> {
    let raw = secret.bytes();
    let bytes = match raw.strip_prefix(SECRET_PREFIX.as_bytes()) {
        Some(encoded) => BASE64_STANDARD.decode(encoded).ok()?,
        None => raw.to_vec(),
    };
    (MIN_SECRET_BYTES <= bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The value of `webhook-signature`.
fn signature(key: &hmac::Key, id: &str, timestamp: u64, body: &str) -> String {
    let signed = hmac::sign(key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(signed))
}

/// The JSON body of a webhook request.
fn body(alert: &StoredAlert) -> String {
    json!({
        "id": alert.id,
        "type": alert.kind,
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

/// What a webhook's answer means for the delivery.
#[derive(Debug, PartialEq, Eq)]
enum Response {
    Accepted,
    /// Retry, no earlier than after the given time. The text is the reason.
    Retry(Option<Duration>, String),
    /// Final failure, with the reason.
    Rejected(String),
}

fn classify(status: StatusCode, retry_after: Option<&str>, now: SystemTime) -> Response {
    let answer = format!("the webhook answered {}", status.as_u16());
    if status.is_success() {
        return Response::Accepted;
    }
    if status.is_redirection() {
        let hint = "redirects are not followed, set the URL it redirects to";
        return Response::Rejected(format!("{answer}: {hint}"));
    }
    let temporary = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if status.is_client_error() && !temporary {
        return Response::Rejected(answer);
    }
    let after = retry_after.and_then(|text| {
        let seconds = text.trim().parse().ok().map(Duration::from_secs);
        let date = || httpdate::parse_http_date(text).ok()?.duration_since(now).ok();
        seconds.or_else(date)
    });
    Response::Retry(after, answer)
}

/// Exponential backoff with full jitter, limited by `alerts.backoff_max` and `alerts.give_up`.
#[derive(Clone, Copy, Debug)]
struct RetryPolicy {
    min: Duration,
    max: Duration,
    give_up: Duration,
}

impl RetryPolicy {
    fn max_pause(&self, attempts: u32) -> Duration {
        self.min.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(self.max)
    }

    fn pause(&self, attempts: u32, retry_after: Option<Duration>) -> Duration {
        let jitter = self.max_pause(attempts).mul_f64(rand::rng().random());
        jitter.max(retry_after.unwrap_or_default()).min(self.give_up)
    }

    fn is_expired(&self, alert: &StoredAlert) -> bool {
        let give_up = u64::try_from(self.give_up.as_millis()).unwrap_or(u64::MAX);
        alert.at.saturating_add(give_up) < lifecycle::unix_ms()
    }
}

/// An alert that is still to be delivered, with its attempts and the time of the next one.
struct Delivery {
    alert: StoredAlert,
    attempts: u32,
    due: Instant,
}

/// Sends alerts to one webhook, one at a time.
pub(super) struct WebhookSender {
    target: WebhookTarget,
    http: reqwest::Client,
    retry_policy: RetryPolicy,
    breaker: Breaker,
    deliveries: Vec<Delivery>,
    results: mpsc::Sender<DeliveryResult>,
    sent: Counter,
    failed: Counter,
    open: Gauge,
}

impl WebhookSender {
    pub(super) fn new(
        target: WebhookTarget,
        config: &AlertConfig,
        metrics: &Metrics,
        results: mpsc::Sender<DeliveryResult>,
    ) -> Result<Self, AlertError> {
        // Required once per process; a second installation is ignored.
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
        let open = metrics.webhook_breakers_open.clone();
        let (min, max, give_up) = (config.backoff_min, config.backoff_max, config.give_up);
        let retry_policy = RetryPolicy { min, max, give_up };
        let (breaker, deliveries) = (Breaker::new(), Vec::new());
        Ok(Self { target, http, retry_policy, breaker, deliveries, results, sent, failed, open })
    }

    /// Delivers queued alerts until the queue is closed.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<StoredAlert>) {
        let mut paused_until = Instant::now();
        loop {
            let due = self
                .deliveries
                .iter()
                .map(|delivery| delivery.due)
                .min()
                .map(|due| due.max(paused_until));
            let next_attempt = sleep_until(due.unwrap_or_else(Instant::now).into());
            tokio::select! {
                alert = queue.recv(), if self.deliveries.len() < MAX_ALERTS => {
                    let Some(alert) = alert else { return };
                    self.deliveries.push(Delivery { alert, attempts: 0, due: Instant::now() });
                }
                () = next_attempt, if due.is_some() => {
                    self.give_up().await;
                    match self.breaker.try_acquire(Instant::now()) {
                        Ok(()) => self.deliver().await,
                        Err(until) => paused_until = until,
                    }
                }
            }
        }
    }

    /// Drops alerts older than `alerts.give_up`.
    async fn give_up(&mut self) {
        let retry_policy = self.retry_policy;
        for delivery in
            self.deliveries.extract_if(.., |delivery| retry_policy.is_expired(&delivery.alert))
        {
            warn!(
                webhook = &*self.target.name,
                alert = %delivery.alert.id,
                attempts = delivery.attempts,
                "alert not delivered within alerts.give_up"
            );
            self.failed.inc();
            let (id, webhook) = (delivery.alert.id, Arc::clone(&self.target.name));
            let _ = self.results.send(DeliveryResult { id, webhook, delivered: false }).await;
        }
    }

    /// Attempts the delivery that is due first.
    async fn deliver(&mut self) {
        let first = self.deliveries.iter().enumerate().min_by_key(|(_, delivery)| delivery.due);
        let Some((at, _)) = first else { return self.record_health(true) };
        let mut delivery = self.deliveries.swap_remove(at);
        delivery.attempts += 1;
        let answer = self.post(&delivery.alert).await;
        let webhook = Arc::clone(&self.target.name);
        let id = delivery.alert.id;
        let delivered = match answer {
            Response::Accepted => true,
            Response::Rejected(reason) => {
                warn!(%webhook, alert = %id, %reason, "webhook rejected an alert");
                false
            }
            Response::Retry(after, reason) => {
                self.record_health(false);
                let pause = self.retry_policy.pause(delivery.attempts, after);
                let attempts = delivery.attempts;
                debug!(%webhook, alert = %id, %reason, attempts, ?pause, "alert delivery retried");
                delivery.due = Instant::now() + pause;
                return self.deliveries.push(delivery);
            }
        };
        self.record_health(true);
        if delivered {
            self.sent.inc()
        } else {
            self.failed.inc()
        };
        let _ = self.results.send(DeliveryResult { id, webhook, delivered }).await;
    }

    fn record_health(&mut self, answered: bool) {
        let before = self.breaker.is_open();
        if answered {
            self.breaker.record_success();
        } else {
            self.breaker.record_failure(Instant::now());
        }
        match (before, self.breaker.is_open()) {
            (false, true) => {
                warn!(
                    webhook = &*self.target.name,
                    "webhook paused after repeated failures, see crossfade_webhooks_broken"
                );
                self.open.inc();
            }
            (true, false) => drop(self.open.dec()),
            _ => {}
        }
    }

    async fn post(&self, alert: &StoredAlert) -> Response {
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
                classify(answer.status(), after, SystemTime::now())
            }
            Err(err) => Response::Retry(None, err.without_url().to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
