//! Composition: picks the broker, wires the parts, orders the stop. The only place that knows all.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    time::{Instant, interval, sleep_until},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

mod rollout_notifier;

use self::rollout_notifier::RolloutNotifier;
use crate::{
    alert::{AlertError, AlertSource, Alerts},
    auth::{Auth, AuthError},
    broker::{
        Broker, BrokerError, BrokerKind, Feed, Health,
        memory::MemoryBroker,
        postgres::PostgresBroker,
        redis::{RedisBroker, RedisConfigError},
    },
    cluster::Cluster,
    config::Config,
    connection::{self, Connections, Migrator},
    http::{
        AdmissionControl, AppState, Shared,
        accept::{self, Timeouts, TlsError},
        router,
    },
    legacy::{
        self, Legacy, LegacyError, Routing,
        rollout_routing::{self, RolloutRouting},
    },
    lifecycle::Lifecycle,
    memory,
    metrics::Metrics,
    node::Node,
    rollout::{self, RolloutConfig, Rollouts, source::SourceError},
    validation::{SelfConnector, Validator},
};

/// A gateway that has its address and is about to serve it.
pub struct Gateway {
    config: Config,
    lifecycle: Lifecycle,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    auth: Arc<Auth>,
    node: Arc<Node>,
    rollouts: Rollouts,
    legacy: Arc<Legacy>,
    alerts: Arc<Alerts>,
    validation: Arc<Validator>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Takes the address and starts what stands behind it.
    ///
    /// # Errors
    /// When the address, a certificate or, if it is required at start, the broker cannot be had.
    pub async fn bind(config: Config) -> Result<Self, GatewayError> {
        let listen = config.server.listen;
        let listener = accept::listen(&config.server)
            .map_err(|source| GatewayError::Listen { listen, source })?;
        let tls = accept::tls(&config.server.tls)?;
        let address = listener.local_addr().unwrap_or(listen);
        let door = SelfConnector::new(
            config.validation.through.unwrap_or(address),
            accept::certificate(&config.server.tls)?,
        )?;
        let lifecycle = Lifecycle::default();
        let auth = Auth::new(&config.auth, config.permissions(), &lifecycle.background)?;
        let broker = broker(&config, &lifecycle)?;
        let metrics = Arc::new(Metrics::new());
        let background = &lifecycle.background;
        let node = Node::start(&config.node, &config.dedup, broker, metrics, background);
        let place = AlertSource {
            environment: config.auth.environment.clone(),
            node: node.name().to_string(),
        };
        // They lean on the store, so they end before it.
        let stage = &lifecycle.cluster;
        let alerts = Alerts::start(node.store(), &config.alerts, place, node.metrics(), stage)?;
        if let Some(within) = config.broker.start_timeout {
            require(&node, within).await?;
        }
        let place = rollout::Place {
            node: node.name().to_string(),
            run: Uuid::new_v4().to_string(),
            environment: config.auth.environment.clone(),
            memory: memory::used_share,
        };
        let (rollouts, news) = Rollouts::start(&node.store(), &place, &config.rollout, background)?;
        let legacy = Arc::new(legacy(&config, &node, &rollouts, &lifecycle)?);
        let stop_listening = lifecycle.listening.stopping().clone();
        let validation = Validator::new(Arc::clone(&auth), Arc::clone(&node), door, stop_listening);
        let herald = RolloutNotifier {
            alerts: Arc::clone(&alerts),
            validation: Arc::clone(&validation),
            registry: Arc::clone(&rollouts.registry),
            stage: lifecycle.cluster.clone(),
        };
        herald.start(news);
        Ok(Self {
            config,
            lifecycle,
            listener,
            tls,
            auth,
            node,
            rollouts,
            legacy,
            alerts,
            validation,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then parts from everybody. Returns how many tasks had to be cut
    /// off.
    pub async fn run(self, stop: impl Future<Output = ()>) -> usize {
        let Self {
            config,
            lifecycle,
            listener,
            tls,
            auth,
            node,
            rollouts,
            legacy,
            alerts,
            validation,
        } = self;
        let stopping = lifecycle.connections.stopping().clone();
        let patience = Timeouts::new(&config.server, config.connection.stall_timeout);
        let (cluster, orders) =
            Cluster::start(Arc::clone(&node), config.cluster, &lifecycle.cluster);
        let RolloutConfig { drain, .. } = config.rollout;
        let has_old = legacy.upstream().is_some();
        let (taking, moved) = (Arc::clone(&legacy), rollouts.clone());
        rollout_routing::migrate_streams(taking, moved, drain.rate, &lifecycle.connections);
        let (connection, limits) = (config.connection, config.limits);
        let connections =
            Connections::new(node, (auth, cluster), rollouts, connection, limits, stopping);
        let connections = Arc::new(connections);
        let obeying =
            connection::obey(Arc::clone(&connections), orders, lifecycle.connections.clone());
        lifecycle.connections.spawn("orders", obeying);
        Migrator::new(Arc::clone(&connections), drain, has_old).start(&lifecycle.connections);
        let draining = CancellationToken::new();
        let client_tasks = lifecycle.connections.clone();
        let refused = connections.node.metrics().refused.clone();
        let admission = Arc::new(AdmissionControl::new(config.server.limits.clone(), refused));
        let server = Arc::new(config.server);
        let app = AppState::from(Shared {
            connections,
            server: Arc::clone(&server),
            admission: Arc::clone(&admission),
            client_tasks,
            alerts,
            validation,
            draining: draining.clone(),
            legacy,
        });
        let stage = lifecycle.listening.clone();
        let accepting = accept::accept(listener, tls, router(app), admission, patience, stage);
        lifecycle.listening.spawn("accept", accepting);
        stop.await;
        draining.cancel();
        part(&lifecycle, server.drain_delay, server.shutdown_timeout).await
    }
}

/// Not ready any more, then parts from everybody. Returns how many tasks had to be cut off.
async fn part(lifecycle: &Lifecycle, delay: Duration, within: Duration) -> usize {
    let from = Instant::now();
    info!(?delay, "stopping: not ready any more");
    sleep_until(from + delay).await;
    info!("no new clients, goodbye to those who are here");
    let abandoned = lifecycle.drain(within).await;
    if abandoned != 0 {
        warn!(abandoned, "not everything ended within server.shutdown_timeout");
    }
    abandoned
}

fn broker(config: &Config, lifecycle: &Lifecycle) -> Result<(Arc<dyn Broker>, Feed), GatewayError> {
    let retentions = Arc::new(config.retentions());
    let stage = &lifecycle.background;
    Ok(match config.broker.kind {
        BrokerKind::Memory => shared(MemoryBroker::open(&config.broker.memory, retentions)?),
        BrokerKind::Redis => shared(RedisBroker::connect(&config.broker.redis, retentions, stage)?),
        BrokerKind::Postgres => {
            shared(PostgresBroker::connect(&config.broker.postgres, retentions, stage)?)
        }
    })
}

/// The system that is taken over from, and which of its users are on which side.
fn legacy(
    config: &Config,
    node: &Arc<Node>,
    rollouts: &Rollouts,
    lifecycle: &Lifecycle,
) -> Result<Legacy, LegacyError> {
    let (rollouts, fallback) = (rollouts.clone(), config.legacy.side);
    let sides: Arc<dyn Routing> = Arc::new(RolloutRouting { rollouts, fallback });
    let redis = config.broker.kind == BrokerKind::Redis;
    let bounds = legacy::GatewaySettings {
        event_bytes: config.limits.event_bytes,
        broker_prefix: redis.then(|| config.broker.redis.prefix.clone()),
    };
    Legacy::start(&config.legacy, sides, (node, bounds), &lifecycle.cluster)
}

fn shared((broker, feed): (impl Broker, Feed)) -> (Arc<dyn Broker>, Feed) {
    (Arc::new(broker), feed)
}

/// Waits until the broker is there.
async fn require(node: &Node, within: Duration) -> Result<(), GatewayError> {
    let deadline = Instant::now() + within;
    let mut tick = interval(Duration::from_millis(50));
    loop {
        tick.tick().await;
        match node.health() {
            Health::Up => return Ok(()),
            Health::Down { reason } if deadline <= Instant::now() => {
                return Err(GatewayError::BrokerAway { within, reason });
            }
            Health::Down { .. } => {}
        }
    }
}

/// Why a gateway does not come up.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be had.
    #[error("server.listen: {listen} cannot be listened on; take another or stop who has it")]
    Listen {
        /// Which.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be spoken.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The gateway cannot come to itself by TLS.
    #[error("TLS cannot be spoken to this node itself: {0}")]
    SelfConnector(#[from] rustls::Error),
    /// A key cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The source of a rollout's percentage cannot be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A webhook cannot be used.
    #[error(transparent)]
    Alert(#[from] AlertError),
    /// The broker's settings are impossible.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The settings for Redis are impossible.
    #[error(transparent)]
    Redis(#[from] RedisConfigError),
    /// The old system cannot be taken over from.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// The broker is not there.
    #[error(
        "the broker was not there within broker.start_timeout = {within:?}: {reason}; \
         start it, mend its url, or unset broker.start_timeout to wait for it"
    )]
    BrokerAway {
        /// How long it was waited for.
        within: Duration,
        /// What it said.
        reason: String,
    },
}
