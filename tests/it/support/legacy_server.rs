//! Legacy system for tests: an SSE server in Node.js (`tests/legacy/server.mjs`) that forwards Redis
//! Pub/Sub. It is killed when the test ends.

use std::process::Stdio;

use redis::cmd;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{eventually::soon, redis::PrivateRedis};

/// A running legacy server.
pub(crate) struct LegacyServer {
    pub(crate) url: String,
    child: Child,
}

impl LegacyServer {
    /// Starts a server that subscribes to this Redis.
    pub(crate) async fn start(redis: &PrivateRedis) -> Self {
        Self::with(&["--redis", socket(redis)], "http").await
    }

    /// Starts a server with TLS and without Redis.
    pub(crate) async fn with_tls(certificate: &str, key: &str) -> Self {
        Self::with(&["--tls", certificate, key], "https").await
    }

    async fn with(arguments: &[&str], scheme: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/legacy/server.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node must be on PATH: apt-get install nodejs");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the legacy server listens", lines.next_line()).await.unwrap().unwrap();
        let port = line.strip_prefix("listening ").unwrap();
        let host = if scheme == "https" { "localhost" } else { "127.0.0.1" };
        Self { url: format!("{scheme}://{host}:{port}"), child }
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

fn socket(redis: &PrivateRedis) -> &str {
    redis.0.url.split_once("://").unwrap().1
}

/// PUBLISHes a message and returns how many subscribers received it.
pub(crate) async fn publish(redis: &PrivateRedis, channel: &str, payload: &str) -> usize {
    redis.0.run(cmd("PUBLISH").arg(channel).arg(payload)).await.unwrap()
}
