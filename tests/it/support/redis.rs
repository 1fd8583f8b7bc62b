//! Redis servers of a test's own: alone, behind a sentinel, as a Cluster. They end with the test.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::{Client, Cmd, FromRedisValue, RedisResult, aio::MultiplexedConnection, cmd};
use tempfile::TempDir;

use super::eventually::eventually;

/// One server process in a directory of its own.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) port: u16,
    directory: TempDir,
    arguments: Vec<String>,
    process: Child,
}

impl Server {
    async fn start(url: String, port: u16, directory: TempDir, arguments: Vec<String>) -> Self {
        let process = spawn(directory.path(), &arguments);
        let server = Self { url, port, directory, arguments, process };
        server.answers().await;
        server
    }

    async fn on_port(arguments: &[&str]) -> Self {
        let port = free_port();
        let mut all = own(&["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        all.extend(own(arguments));
        Self::start(format!("redis://127.0.0.1:{port}"), port, directory(), all).await
    }

    /// Ends it at once, like a crash.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again with what it has on disk.
    pub(crate) async fn restart(&mut self) {
        self.process = spawn(self.directory.path(), &self.arguments);
        self.answers().await;
    }

    /// Stops it in its tracks without closing anything, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        Client::open(&*self.url)?.get_multiplexed_async_connection().await
    }

    /// Does one command as a backend service would.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.connection().await?).await
    }

    async fn answers(&self) {
        eventually(format!("redis at {} answers", self.url), async || {
            self.run::<String>(&cmd("PING")).await.ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(directory: &Path, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(arguments)
        .current_dir(directory)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server must be on PATH: apt-get install redis-server")
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("crossfade-redis-").tempdir().unwrap()
}

fn own(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// A port nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// One server on a Unix socket.
pub(crate) struct PrivateRedis(pub(crate) Server);

impl PrivateRedis {
    /// It forgets everything when it ends.
    pub(crate) async fn start() -> Self {
        Self::with(&["--appendonly", "no"]).await
    }

    /// It keeps on disk what it acknowledged.
    pub(crate) async fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// It asks for this password.
    pub(crate) async fn with_password(password: &str) -> Self {
        let mut redis = Self::start().await;
        let set = cmd("CONFIG").arg("SET").arg("requirepass").arg(password).clone();
        redis.0.run::<()>(&set).await.unwrap();
        redis.0.url = format!("{}?pass={password}", redis.0.url);
        redis
    }

    async fn with(arguments: &[&str]) -> Self {
        let directory = directory();
        let socket = directory.path().join("socket").display().to_string();
        let mut all = own(&["--port", "0", "--save", "", "--unixsocket", &socket]);
        all.extend(own(arguments));
        Self(Server::start(format!("redis+unix://{socket}"), 0, directory, all).await)
    }
}

/// A master with a replica, and a sentinel that watches them.
pub(crate) struct PrivateSentinel {
    pub(crate) master: Server,
    pub(crate) replica: Server,
    pub(crate) sentinel: Server,
}

impl PrivateSentinel {
    pub(crate) async fn start() -> Self {
        let master = Server::on_port(&["--save", "", "--repl-diskless-sync-delay", "0"]).await;
        let of = format!("127.0.0.1 {}", master.port);
        let replica = Server::on_port(&["--save", "", "--replicaof", &of]).await;
        eventually("the replica is in step", async || {
            let info: String = replica.run(cmd("INFO").arg("replication")).await.ok()?;
            info.contains("master_link_status:up").then_some(())
        })
        .await;
        let (directory, port) = (directory(), free_port());
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster {of} 1\n\
             sentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 3000\n"
        );
        let file = directory.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let arguments = own(&[&file.display().to_string(), "--sentinel"]);
        let url = format!("redis://127.0.0.1:{port}");
        let sentinel = Server::start(url, port, directory, arguments).await;
        eventually("the sentinel knows the replica", async || {
            let info: String = sentinel.run(cmd("INFO").arg("sentinel")).await.ok()?;
            info.contains("slaves=1").then_some(())
        })
        .await;
        Self { master, replica, sentinel }
    }
}

/// Three masters, each with as many replicas as asked for.
pub(crate) struct PrivateCluster {
    pub(crate) masters: Vec<Server>,
    pub(crate) replicas: Vec<Server>,
}

impl PrivateCluster {
    pub(crate) async fn start() -> Self {
        Self::with(0).await
    }

    pub(crate) async fn with_replicas() -> Self {
        Self::with(1).await
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.masters.iter().chain(&self.replicas).map(|server| server.url.clone()).collect()
    }

    async fn with(replicas: usize) -> Self {
        let mut servers = Vec::new();
        for _ in 0..3 * (1 + replicas) {
            servers.push(cluster_server().await);
        }
        for (n, server) in servers.iter().enumerate() {
            if n < 3 {
                let (first, last) = (n * 16_384 / 3, (n + 1) * 16_384 / 3 - 1);
                let slots = cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).clone();
                server.run::<()>(&slots).await.unwrap();
            }
            let bus: Vec<String> =
                server.run(cmd("CONFIG").arg("GET").arg("cluster-port")).await.unwrap();
            let place = ("127.0.0.1", server.port, &bus[1]);
            let meet = cmd("CLUSTER").arg("MEET").arg(place.0).arg(place.1).arg(place.2).clone();
            servers[0].run::<()>(&meet).await.unwrap();
        }
        let replicas = servers.split_off(3);
        for (n, replica) in replicas.iter().enumerate() {
            let id: String = servers[n % 3].run(cmd("CLUSTER").arg("MYID")).await.unwrap();
            eventually("the replica follows its master", async || {
                let follow = cmd("CLUSTER").arg("REPLICATE").arg(&id).clone();
                replica.run::<()>(&follow).await.ok()
            })
            .await;
        }
        let cluster = Self { masters: servers, replicas };
        cluster.settle().await;
        cluster
    }

    /// Waits until every node sees the same whole.
    async fn settle(&self) {
        for server in self.masters.iter().chain(&self.replicas) {
            eventually("the cluster is whole", async || {
                let info: String = server.run(cmd("CLUSTER").arg("INFO")).await.ok()?;
                let slots: redis::Value = server.run(cmd("CLUSTER").arg("SLOTS")).await.ok()?;
                let whole = info.contains("cluster_state:ok");
                let seen = places(&slots) == 3 + self.replicas.len();
                (whole && seen).then_some(())
            })
            .await;
        }
        for replica in &self.replicas {
            eventually("the replica is in step", async || {
                let info: String = replica.run(cmd("INFO").arg("replication")).await.ok()?;
                info.contains("master_link_status:up").then_some(())
            })
            .await;
        }
    }
}

/// How many nodes CLUSTER SLOTS names.
fn places(slots: &redis::Value) -> usize {
    let redis::Value::Array(ranges) = slots else { return 0 };
    let nodes = |range: &redis::Value| match range {
        redis::Value::Array(range) => range.len() - 2,
        _ => 0,
    };
    ranges.iter().map(nodes).sum()
}

async fn cluster_server() -> Server {
    let bus = free_port().to_string();
    let arguments =
        ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
    let quick =
        ["--save", "", "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"];
    Server::on_port(&[&arguments[..], &quick[..]].concat()).await
}

/// Short enough to notice, long enough for a loaded machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
