//! Which server to connect to: the one told, or the master the sentinels name at the moment.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::time::timeout;

/// Where a connection is to lead.
#[derive(Clone, Debug)]
pub(super) enum Server {
    /// To this server.
    Fixed(ConnectionInfo),
    /// To the master as the sentinels know it.
    Master {
        /// Any of them will do.
        sentinels: Vec<ConnectionInfo>,
        /// What they call it.
        name: String,
        /// Its user, password, database and TLS.
        like: ConnectionInfo,
    },
}

impl Server {
    /// What a person calls it before it is found.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Fixed(info) => place(info),
            Self::Master { name, .. } => format!("master {name}"),
        }
    }

    /// The server's address now, or why it cannot be told.
    pub(super) async fn find(&self, within: Duration) -> Result<ConnectionInfo, String> {
        let (sentinels, name, like) = match self {
            Self::Fixed(info) => return Ok(info.clone()),
            Self::Master { sentinels, name, like } => (sentinels, name, like),
        };
        // One silent sentinel must not use up the time of the others.
        let each = within / u32::try_from(sentinels.len().max(1)).unwrap_or(u32::MAX);
        let mut reasons = Vec::new();
        for sentinel in sentinels {
            match timeout(each, ask(sentinel, name, each)).await {
                Ok(Ok(Some((host, port)))) => return Ok(moved(like, host, port)),
                Ok(Ok(None)) => reasons.push(format!("{} knows no {name}", place(sentinel))),
                Ok(Err(error)) => reasons.push(format!("{}: {error}", place(sentinel))),
                Err(_) => reasons.push(format!("{} did not answer", place(sentinel))),
            }
        }
        Err(format!("no sentinel tells the master: {}", reasons.join("; ")))
    }
}

async fn ask(
    sentinel: &ConnectionInfo,
    name: &str,
    within: Duration,
) -> RedisResult<Option<(String, u16)>> {
    let mut connection = connect(sentinel, within).await?;
    let mut question = redis::cmd("SENTINEL");
    question.arg("get-master-addr-by-name").arg(name).query_async(&mut connection).await
}

/// A connection for commands.
pub(super) async fn connect(
    info: &ConnectionInfo,
    within: Duration,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(within))
        .set_response_timeout(Some(within));
    Client::open(info.clone())?.get_multiplexed_async_connection_with_config(&config).await
}

/// The server's place for a person: never its password.
pub(super) fn place(info: &ConnectionInfo) -> String {
    info.addr().to_string()
}

/// The same user, password and TLS at another place.
pub(super) fn moved(like: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    like.clone().set_addr(addr)
}
