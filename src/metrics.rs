//! Prometheus metrics of one gateway, all with the prefix `crossfade_`.
//!
//! Owns the names, help texts and labels. A [`Metrics`] is a value, not a global: two gateways in one
//! process count separately. Other modules increment the public fields, which are named as the metrics
//! are; they do not know the Prometheus format.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The metrics of one gateway. [`Metrics::new`] registers each with its help text.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Events that the broker accepted from this node.
    pub events_published: Counter,
    /// Publishes whose message id was a duplicate.
    pub publish_duplicates: Counter,
    /// Publishes that the broker did not accept.
    pub publish_failures: Counter,
    /// Duration of publishes, from the call to the broker's answer, in seconds.
    pub publish_seconds: Histogram,
    /// Events received from the broker's feed and appended to an open channel.
    pub events_ingested: Counter,
    /// Events received whose message id was delivered shortly before, and which were dropped.
    pub events_deduplicated: Counter,
    /// Reads of the broker's log that repaired a gap.
    pub log_repairs: Counter,
    /// Reads of the broker's log for a subscription that was behind the ring.
    pub catch_ups: Counter,
    /// Events written to clients, by transport.
    pub deliveries: Family<TransportLabel, Counter>,
    /// Open connections, by transport.
    pub connections: Family<TransportLabel, Gauge>,
    /// Connections that ended, by close code.
    pub connections_closed: Family<CloseLabel, Counter>,
    /// Refused sockets, clients, requests and frames, by reason.
    pub refused: Family<RefusedLabel, Counter>,
    /// Subscriptions that lost their position: the events in between could not be delivered.
    pub resets: Counter,
    /// Subscriptions of open connections.
    pub subscriptions: Gauge,
    /// Channels open on this node.
    pub channels: Gauge,
    /// Presence members of all channels, on all nodes.
    pub members: Gauge,
    /// Presence frames written to clients.
    pub presence_frames: Counter,
    /// Clients asked to migrate, by the transport that they are to use.
    pub clients_asked_to_migrate: Family<TransportLabel, Counter>,
    /// Alerts raised on this node.
    pub alerts: Counter,
    /// Alerts that a webhook accepted, by webhook.
    pub webhooks_sent: Family<WebhookLabel, Counter>,
    /// Alerts that a webhook rejected or did not accept within `alerts.give_up`, by webhook.
    pub webhooks_failed: Family<WebhookLabel, Counter>,
    /// Webhooks whose circuit breaker is open.
    pub webhook_breakers_open: Gauge,
    /// 1 while the broker can be reached, else 0.
    pub broker_up: Gauge,
    /// Metrics of the migration from an existing system.
    pub legacy: LegacyMetrics,
}

/// Metrics of the migration from an existing system, with the prefix `crossfade_legacy_`.
#[derive(Debug)]
pub struct LegacyMetrics {
    /// Requests that matched a `[[legacy.route]]`, by the side that served them.
    pub requests: Family<SideLabel, Counter>,
    /// Requests forwarded to the upstream, by the status of the response or the failure.
    upstream: Family<AnswerLabel, Counter>,
    /// Open streams and WebSockets proxied to the upstream.
    pub streams: Gauge,
    /// 1 while this node holds the ingest lease, else 0.
    pub holder: Gauge,
    /// Messages received from Redis Pub/Sub, by outcome.
    messages: Family<OutcomeLabel, Counter>,
    /// Messages received and not known to be in the logs yet.
    pub backlog: Gauge,
    /// Interruptions of the subscription to the legacy Redis channels.
    pub interruptions: Counter,
    /// Events republished to the legacy Redis channels, by outcome.
    republished: Family<OutcomeLabel, Counter>,
    /// Events compared between the upstream and the logs, by outcome.
    compared: Family<OutcomeLabel, Counter>,
}

impl LegacyMetrics {
    fn new(registrar: &mut Registrar<'_>) -> Self {
        Self {
            requests: registrar
                .family("legacy_requests", "Requests to addresses of legacy.route, by side"),
            upstream: registrar.family(
                "legacy_upstream",
                "Requests forwarded to the upstream, by response status or failure",
            ),
            streams: registrar
                .gauge("legacy_streams", "Open streams and WebSockets proxied to the upstream"),
            holder: registrar.gauge("legacy_holder", "1 while this node holds the ingest lease"),
            messages: registrar
                .family("legacy_messages", "Messages received from legacy Redis, by outcome"),
            backlog: registrar
                .gauge("legacy_backlog", "Messages received and not known to be in the logs"),
            interruptions: registrar.counter(
                "legacy_interruptions",
                "Interruptions of the subscription to legacy Redis channels",
            ),
            republished: registrar.family(
                "legacy_republished",
                "Events republished to legacy Redis channels, by outcome",
            ),
            compared: registrar.family(
                "legacy_compared",
                "Events compared between the upstream and the logs, by outcome",
            ),
        }
    }

    /// Counts a forwarded request. `answer` is the response status or the failure.
    pub fn upstream(&self, answer: &str) {
        self.upstream.get_or_create(&AnswerLabel { answer: answer.to_owned() }).inc();
    }

    /// Counts received messages with the same outcome.
    pub fn messages(&self, outcome: &'static str, number: u64) {
        self.messages.get_or_create(&OutcomeLabel { outcome }).inc_by(number);
    }

    /// Counts republished events with the same outcome.
    pub fn republished(&self, outcome: &'static str, number: u64) {
        self.republished.get_or_create(&OutcomeLabel { outcome }).inc_by(number);
    }

    /// Counts a compared event.
    pub fn compared(&self, outcome: &'static str) {
        self.compared.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Label of requests to legacy addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SideLabel {
    /// `upstream`, `shadow` or `gateway`.
    pub side: &'static str,
}

/// Label of requests to the upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabel {
    /// The response status, or `unreachable`, `timeout`, `broken`, `loop`, `full`.
    pub answer: String,
}

/// Label of messages and events that can end in several ways.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// The outcome; the module that counts defines the values.
    pub outcome: &'static str,
}

/// Label of connections and deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransportLabel {
    /// `websocket` or `sse`.
    pub transport: &'static str,
}

/// Label of webhook requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookLabel {
    /// `name` in `[[alerts.webhook]]`.
    pub webhook: String,
}

/// Label of closed connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CloseLabel {
    /// The close code of PROTOCOL.md.
    pub code: u16,
}

/// Label of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabel {
    /// Why. A refusal by a limit has the limit's key: `sockets`, `clients`, `clients_per_ip`,
    /// `clients_per_user`, `arrivals_per_second` in `[server.limits]`; `frames_per_second`,
    /// `publishes_per_second` in `[limits]`. The others are `origin` (not in
    /// `server.allowed_origins`), `unauthenticated` (no token where one is required),
    /// `invalid_token`, and `forbidden` (a permission or scope is missing).
    pub reason: &'static str,
}

impl Metrics {
    /// Registers all metrics, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("crossfade");
        let publish_seconds = Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
        registry.register_with_unit(
            "publish",
            "Duration of publishes, from the call to the broker's answer",
            Unit::Seconds,
            publish_seconds.clone(),
        );
        let mut registrar = Registrar(&mut registry);
        Self {
            events_published: registrar
                .counter("events_published", "Events that the broker accepted from this node"),
            publish_duplicates: registrar
                .counter("publish_duplicates", "Publishes whose message id was a duplicate"),
            publish_failures: registrar
                .counter("publish_failures", "Publishes that the broker did not accept"),
            publish_seconds,
            events_ingested: registrar
                .counter("events_ingested", "Events received from the broker's feed"),
            events_deduplicated: registrar.counter(
                "events_deduplicated",
                "Events dropped because their message id was delivered before",
            ),
            log_repairs: registrar
                .counter("log_repairs", "Reads of the broker's log that repaired a gap"),
            catch_ups: registrar.counter(
                "catch_ups",
                "Reads of the broker's log for a subscription behind the ring",
            ),
            deliveries: registrar.family("deliveries", "Events written to clients, by transport"),
            connections: registrar.family("connections", "Open connections, by transport"),
            connections_closed: registrar
                .family("connections_closed", "Connections that ended, by close code"),
            refused: registrar
                .family("refused", "Refused sockets, clients, requests and frames, by reason"),
            resets: registrar.counter("resets", "Subscriptions that lost their position"),
            subscriptions: registrar.gauge("subscriptions", "Subscriptions of open connections"),
            channels: registrar.gauge("channels", "Channels open on this node"),
            members: registrar.gauge("members", "Presence members of all channels, on all nodes"),
            presence_frames: registrar
                .counter("presence_frames", "Presence frames written to clients"),
            clients_asked_to_migrate: registrar
                .family("clients_asked_to_migrate", "Clients asked to migrate, by new transport"),
            alerts: registrar.counter("alerts", "Alerts raised on this node"),
            webhooks_sent: registrar
                .family("webhooks_sent", "Alerts that a webhook accepted, by webhook"),
            webhooks_failed: registrar.family(
                "webhooks_failed",
                "Alerts that a webhook rejected or did not accept in time",
            ),
            webhook_breakers_open: registrar
                .gauge("webhook_breakers_open", "Webhooks whose circuit breaker is open"),
            broker_up: registrar.gauge("broker_up", "1 while the broker can be reached"),
            legacy: LegacyMetrics::new(&mut registrar),
            registry,
        }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers metrics with the registry.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.0.register(name, help, counter.clone());
        counter
    }

    fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.0.register(name, help, gauge.clone());
        gauge
    }

    fn family<L, M>(&mut self, name: &str, help: &str) -> Family<L, M>
    where
        Family<L, M>: prometheus_client::registry::Metric,
        L: Clone + std::hash::Hash + Eq,
        M: Default,
    {
        let family = Family::<L, M>::default();
        self.0.register(name, help, family.clone());
        family
    }
}
