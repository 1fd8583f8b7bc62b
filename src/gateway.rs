//! Composition root: builds all parts from a [`Config`], runs them, and stops them in order.
//!
//! The only module that knows every other. It contains no behaviour of its own: which broker is used,
//! what is passed to whom, and in which stage each task runs.

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
        AdmissionControl, AppParts, AppState,
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

/// A gateway that is bound to its address and not serving yet.
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
    /// Binds the listen address and starts all parts but the HTTP server.
    ///
    /// # Errors
    /// When the address is in use, a setting or certificate is invalid, or the broker cannot be reached
    /// within `broker.start_timeout`.
    pub async fn bind(config: Config) -> Result<Self, GatewayError> {
        let listen = config.server.listen;
        let listener = accept::bind(&config.server)
            .map_err(|source| GatewayError::Listen { listen, source })?;
        let tls = accept::tls_acceptor(&config.server.tls)?;
        let address = listener.local_addr().unwrap_or(listen);
        let self_connector = SelfConnector::new(
            config.validation.through.unwrap_or(address),
            accept::server_certificate(&config.server.tls)?,
        )?;
        let lifecycle = Lifecycle::default();
        let auth = Auth::new(&config.auth, config.permissions(), &lifecycle.background)?;
        let broker = open_broker(&config, &lifecycle)?;
        let metrics = Arc::new(Metrics::new());
        let background = &lifecycle.background;
        let node = Node::start(&config.node, &config.dedup, broker, metrics, background);
        let source = AlertSource {
            environment: config.auth.environment.clone(),
            node: node.name().to_string(),
        };
        // Alerts use the broker's store, so they are in a stage that stops before it.
        let stage = &lifecycle.cluster;
        let alerts = Alerts::start(node.store(), &config.alerts, source, node.metrics(), stage)?;
        if let Some(timeout) = config.broker.start_timeout {
            wait_for_broker(&node, timeout).await?;
        }
        let place = rollout::Place {
            node: node.name().to_string(),
            run: Uuid::new_v4().to_string(),
            environment: config.auth.environment.clone(),
            memory: memory::used_fraction,
        };
        let (rollouts, messages) =
            Rollouts::start(&node.store(), &place, &config.rollout, background)?;
        let legacy = Arc::new(start_legacy(&config, &node, &rollouts, &lifecycle)?);
        let listening_stopped = lifecycle.listening.stopping().clone();
        let validation =
            Validator::new(Arc::clone(&auth), Arc::clone(&node), self_connector, listening_stopped);
        let notifier = RolloutNotifier {
            alerts: Arc::clone(&alerts),
            validation: Arc::clone(&validation),
            registry: Arc::clone(&rollouts.registry),
            stage: lifecycle.cluster.clone(),
        };
        notifier.start(messages);
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

    /// The bound address; with port 0 in `server.listen`, the port that was picked.
    ///
    /// # Errors
    /// When the operating system cannot tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves, then drains and shuts down. Returns how many tasks did not end
    /// within `server.shutdown_timeout`.
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
        let stopping = lifecycle.client_tasks.stopping().clone();
        let timeouts = Timeouts::new(&config.server, config.connection.stall_timeout);
        let (cluster, commands) =
            Cluster::start(Arc::clone(&node), config.cluster, &lifecycle.cluster);
        let RolloutConfig { drain, .. } = config.rollout;
        let has_upstream = legacy.upstream().is_some();
        let (connection, limits) = (config.connection, config.limits);
        let connections =
            Connections::new(node, (auth, cluster), rollouts, connection, limits, stopping);
        let connections = Arc::new(connections);
        let client_tasks = lifecycle.client_tasks.clone();
        let flags = connections.rollouts.clone();
        rollout_routing::migrate_streams(Arc::clone(&legacy), flags, drain.rate, &client_tasks);
        let applying = connection::obey(Arc::clone(&connections), commands, client_tasks.clone());
        client_tasks.spawn("cluster_commands", applying);
        Migrator::new(Arc::clone(&connections), drain, has_upstream).start(&client_tasks);
        let draining = CancellationToken::new();
        let refused = connections.node.metrics().refused.clone();
        let admission = Arc::new(AdmissionControl::new(config.server.limits.clone(), refused));
        let server = Arc::new(config.server);
        let app = AppState::from(AppParts {
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
        let accepting = accept::accept(listener, tls, router(app), admission, timeouts, stage);
        lifecycle.listening.spawn("accept", accepting);
        stop.await;
        draining.cancel();
        shut_down(&lifecycle, server.drain_delay, server.shutdown_timeout).await
    }
}

/// Reports not ready for `drain_delay`, then drains all stages. Returns how many tasks did not end.
async fn shut_down(lifecycle: &Lifecycle, drain_delay: Duration, timeout: Duration) -> usize {
    info!(?drain_delay, "shutdown: /health/ready answers 503, clients are still accepted");
    sleep_until(Instant::now() + drain_delay).await;
    info!("shutdown: closing all clients, no new ones are accepted");
    let unfinished = lifecycle.drain(timeout).await;
    if unfinished != 0 {
        warn!(unfinished, ?timeout, "shutdown: tasks did not end within server.shutdown_timeout");
    }
    unfinished
}

fn open_broker(
    config: &Config,
    lifecycle: &Lifecycle,
) -> Result<(Arc<dyn Broker>, Feed), GatewayError> {
    let retentions = Arc::new(config.retentions());
    let stage = &lifecycle.background;
    Ok(match config.broker.kind {
        BrokerKind::Memory => into_dyn(MemoryBroker::open(&config.broker.memory, retentions)?),
        BrokerKind::Redis => {
            into_dyn(RedisBroker::connect(&config.broker.redis, retentions, stage)?)
        }
        BrokerKind::Postgres => {
            into_dyn(PostgresBroker::connect(&config.broker.postgres, retentions, stage)?)
        }
    })
}

/// Starts the migration from an existing system; a rollout, else `legacy.side`, routes its users.
fn start_legacy(
    config: &Config,
    node: &Arc<Node>,
    rollouts: &Rollouts,
    lifecycle: &Lifecycle,
) -> Result<Legacy, LegacyError> {
    let (rollouts, fallback) = (rollouts.clone(), config.legacy.side);
    let routing: Arc<dyn Routing> = Arc::new(RolloutRouting { rollouts, fallback });
    let redis = config.broker.kind == BrokerKind::Redis;
    let settings = legacy::GatewaySettings {
        event_bytes: config.limits.event_bytes,
        broker_prefix: redis.then(|| config.broker.redis.prefix.clone()),
    };
    Legacy::start(&config.legacy, routing, (node, settings), &lifecycle.cluster)
}

fn into_dyn((broker, feed): (impl Broker, Feed)) -> (Arc<dyn Broker>, Feed) {
    (Arc::new(broker), feed)
}

/// Waits until the broker can be reached, for at most `timeout`.
async fn wait_for_broker(node: &Node, timeout: Duration) -> Result<(), GatewayError> {
    let deadline = Instant::now() + timeout;
    let mut tick = interval(Duration::from_millis(50));
    loop {
        tick.tick().await;
        match node.health() {
            Health::Up => return Ok(()),
            Health::Down { reason } if deadline <= Instant::now() => {
                return Err(GatewayError::BrokerUnreachable { timeout, reason });
            }
            Health::Down { .. } => {}
        }
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listen address cannot be bound.
    #[error(
        "server.listen: cannot bind {listen}; choose another address or stop the process that uses it"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A setting or file of `[server.tls]` is invalid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Validation cannot connect to this node by TLS.
    #[error("server.tls: validation cannot connect to this node by TLS: {0}")]
    SelfConnector(#[from] rustls::Error),
    /// A setting or key of `[auth]` is invalid.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A setting of `[rollout.source]` is invalid.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A setting of `[alerts]` is invalid.
    #[error(transparent)]
    Alert(#[from] AlertError),
    /// A setting of `[broker]` is invalid.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A setting of `[broker.redis]` is invalid.
    #[error(transparent)]
    Redis(#[from] RedisConfigError),
    /// A setting of `[legacy]` is invalid.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// The broker cannot be reached.
    #[error(
        "the broker was not reached within broker.start_timeout = {timeout:?}: {reason}; \
         start it, correct its url, or unset broker.start_timeout to wait for it"
    )]
    BrokerUnreachable {
        /// `broker.start_timeout`.
        timeout: Duration,
        /// The last error of the broker's connection.
        reason: String,
    },
}
