//! What one gateway counts. A registry is a value: two gateways in one process count apart.

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

/// The counters and gauges, each described where it is registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Events accepted by the broker through this node.
    pub published: Counter,
    /// Publications whose id was known already.
    pub duplicates: Counter,
    /// Publications the broker could not take.
    pub publish_failures: Counter,
    /// Seconds from a publish call to the broker's answer.
    pub publish_seconds: Histogram,
    /// Entries that came up from the broker and were appended.
    pub ingested: Counter,
    /// Entries that came up with an id that was delivered shortly before.
    pub repeats: Counter,
    /// Times an entry was missing and read from the broker's log.
    pub holes: Counter,
    /// Times a subscriber's position was served from the broker's log instead of the ring.
    pub catch_ups: Counter,
    /// Events written to clients.
    pub deliveries: Family<TransportLabel, Counter>,
    /// Open connections.
    pub connections: Family<TransportLabel, Gauge>,
    /// Connections that ended, by close code.
    pub closed: Family<CloseLabel, Counter>,
    /// Clients, sockets and pages that were not let in, by reason.
    pub refused: Family<RefusedLabel, Counter>,
    /// Subscribers told that they missed something.
    pub resets: Counter,
    /// Subscriptions of open connections.
    pub subscriptions: Gauge,
    /// Channels this node listens to.
    pub channels: Gauge,
    /// Members of all channels, on all nodes.
    pub members: Gauge,
    /// Frames about presence that went to clients.
    pub presence_frames: Counter,
    /// Clients asked to move, by the transport they were asked to move to.
    pub asked_to_move: Family<TransportLabel, Counter>,
    /// Alerts raised on this node.
    pub alerts: Counter,
    /// Alerts that webhooks have heard of.
    pub webhooks_sent: Family<WebhookLabel, Counter>,
    /// Alerts that webhooks would not take, or could not in time.
    pub webhooks_failed: Family<WebhookLabel, Counter>,
    /// Webhooks that rest because they failed again and again.
    pub webhooks_broken: Gauge,
    /// Whether the broker can be reached.
    pub broker_up: Gauge,
    /// Taking over from the old system.
    pub legacy: LegacyMetrics,
}

/// What is counted of the system that the gateway takes over from.
#[derive(Debug)]
pub struct LegacyMetrics {
    /// Requests to old addresses that the gateway could serve, by the side that did.
    pub sides: Family<SideLabel, Counter>,
    /// Requests passed on, by the status of the answer or why there was none.
    upstream: Family<AnswerLabel, Counter>,
    /// Streams and WebSockets of the old server's that are open.
    pub streams: Gauge,
    /// Whether this node is the one that takes messages in.
    pub holder: Gauge,
    /// Messages heard on the old channels, by what became of them.
    messages: Family<OutcomeLabel, Counter>,
    /// Messages heard that wait to be put into the logs, or for another node to have done so.
    pub backlog: Gauge,
    /// Times listening to the old channels was interrupted.
    pub interruptions: Counter,
    /// Events for the old channels, by what became of them.
    republished: Family<OutcomeLabel, Counter>,
    /// What a comparison of both sides found.
    compared: Family<OutcomeLabel, Counter>,
}

impl LegacyMetrics {
    fn new(in_registry: &mut Registering<'_>) -> Self {
        Self {
            sides: in_registry.family("legacy_requests", "Requests to old addresses, by side"),
            upstream: in_registry
                .family("legacy_upstream", "Requests passed on, by the answer's status or lack"),
            streams: in_registry.gauge("legacy_streams", "Streams of the old server's, open"),
            holder: in_registry.gauge("legacy_holder", "1 while this node takes messages in"),
            messages: in_registry.family("legacy_messages", "Messages taken in, by outcome"),
            backlog: in_registry.gauge("legacy_backlog", "Messages heard and not known in the log"),
            interruptions: in_registry
                .counter("legacy_interruptions", "Times listening to old channels was interrupted"),
            republished: in_registry.family(
                "legacy_republished",
                "Events republished to legacy Redis channels, by outcome",
            ),
            compared: in_registry
                .family("legacy_compared", "Events of both sides compared, by outcome"),
        }
    }

    /// The old server answered with this status, or did not for this reason.
    pub fn upstream(&self, answer: &str) {
        self.upstream.get_or_create(&AnswerLabel { answer: answer.to_owned() }).inc();
    }

    /// So many messages of the old channels ended like this.
    pub fn messages(&self, outcome: &'static str, number: u64) {
        self.messages.get_or_create(&OutcomeLabel { outcome }).inc_by(number);
    }

    /// So many events for the old channels ended like this.
    pub fn republished(&self, outcome: &'static str, number: u64) {
        self.republished.get_or_create(&OutcomeLabel { outcome }).inc_by(number);
    }

    /// A comparison found this.
    pub fn compared(&self, outcome: &'static str) {
        self.compared.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// Who served a request to an old address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SideLabel {
    /// `upstream`, `shadow` or `gateway`.
    pub side: &'static str,
}

/// How the old server answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabel {
    /// A status, or `unreachable`, `timeout`, `broken`, `loop`, `full`.
    pub answer: String,
}

/// What became of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// In a word.
    pub outcome: &'static str,
}

/// What carries a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TransportLabel {
    /// `websocket` or `sse`.
    pub transport: &'static str,
}

/// Which webhook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookLabel {
    /// Its name.
    pub webhook: String,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CloseLabel {
    /// The close code.
    pub code: u16,
}

/// Why somebody was not let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabel {
    /// `sockets`, `node`, `ip`, `user`, `rate`, `origin`, `keys`, `upstream`: who did not come in. `nobody`, `token`,
    /// `forbidden`, `frames`, `publishes`: who was refused something.
    pub reason: &'static str,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("crossfade");
        let publish_seconds = Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
        registry.register_with_unit(
            "publish",
            "Time from a publish call to the broker's answer",
            Unit::Seconds,
            publish_seconds.clone(),
        );
        let mut in_registry = Registering(&mut registry);
        Self {
            published: in_registry.counter("events_published", "Events accepted by the broker"),
            duplicates: in_registry.counter("publish_duplicates", "Publications with a known id"),
            publish_failures: in_registry
                .counter("publish_failures", "Publications the broker could not take"),
            publish_seconds,
            ingested: in_registry.counter("events_ingested", "Entries that came from the broker"),
            repeats: in_registry.counter("events_repeated", "Entries with an id just delivered"),
            holes: in_registry.counter("holes_repaired", "Entries missing and read from the log"),
            catch_ups: in_registry.counter("catch_ups", "Reads of the log for one subscriber"),
            deliveries: in_registry.family("deliveries", "Events written to clients"),
            connections: in_registry.family("connections", "Open connections"),
            closed: in_registry.family("connections_closed", "Connections ended, by close code"),
            refused: in_registry
                .family("refused", "Clients, sockets and pages not let in, by reason"),
            resets: in_registry.counter("resets", "Subscribers told that they missed something"),
            subscriptions: in_registry.gauge("subscriptions", "Subscriptions of open connections"),
            channels: in_registry.gauge("channels", "Channels this node listens to"),
            members: in_registry.gauge("members", "Members of all channels, on all nodes"),
            presence_frames: in_registry
                .counter("presence_frames", "Frames about presence that went to clients"),
            asked_to_move: in_registry
                .family("clients_asked_to_move", "Clients asked to move, by transport"),
            alerts: in_registry.counter("alerts", "Alerts raised on this node"),
            webhooks_sent: in_registry.family("webhooks_sent", "Alerts that webhooks took"),
            webhooks_failed: in_registry
                .family("webhooks_failed", "Alerts that webhooks did not take"),
            webhooks_broken: in_registry
                .gauge("webhooks_broken", "Webhooks that rest after failing again and again"),
            broker_up: in_registry.gauge("broker_up", "1 while the broker can be reached"),
            legacy: LegacyMetrics::new(&mut in_registry),
            registry,
        }
    }

    /// All of them in the Prometheus text format.
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

struct Registering<'a>(&'a mut Registry);

impl Registering<'_> {
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
