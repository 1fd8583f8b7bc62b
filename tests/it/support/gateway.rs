//! A gateway for one test: inside this process, or as a process that can be killed.

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use crossfade::{config::Config, gateway::Gateway};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
};

use super::eventually::{eventually, soon};

/// A gateway inside the test's process, on a port of its own.
pub(crate) struct TestGateway {
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<usize>>,
}

impl TestGateway {
    /// With the defaults.
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With some settings changed.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        change(&mut config);
        let gateway = Gateway::bind(config).await.unwrap();
        let addr = gateway.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = async move { gateway.run(async move { drop(stopped.await) }).await };
        let running = Some(super::spawn(run));
        Self { addr, stop: Some(stop), running }
    }

    /// Asks it to stop and waits until it has. Returns how many tasks had to be cut off.
    pub(crate) async fn stop(mut self) -> usize {
        drop(self.stop.take());
        let running = self.running.take().unwrap();
        soon("the gateway stops", running).await.unwrap()
    }

    /// Asks it to stop without waiting.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }
}

/// A gateway process that can be killed.
pub(crate) struct GatewayProcess {
    pub(crate) addr: SocketAddr,
    vars: Vec<(String, String)>,
    child: Child,
}

impl GatewayProcess {
    /// Starts the binary under test with these settings.
    pub(crate) async fn start(vars: &[(&str, &str)]) -> Self {
        let vars: Vec<_> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let (child, addr) = spawn(&vars, any_port).await;
        Self { addr, vars, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Kills it with SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again on the address it had.
    pub(crate) async fn restart(&mut self) {
        (self.child, self.addr) = spawn(&self.vars, self.addr).await;
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.pid().to_string());
        let status = std::process::Command::new("kill").args([signal, pid]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end; whether it was a good one.
    pub(crate) async fn ended(&mut self) -> bool {
        soon("the process ends", self.child.wait()).await.unwrap().success()
    }

    /// Memory of its own, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

async fn spawn(vars: &[(String, String)], listen: SocketAddr) -> (Child, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_crossfade"))
        .envs(vars.iter().map(|(name, value)| (name, value)))
        .env("CROSSFADE_SERVER__LISTEN", listen.to_string())
        .env("NO_COLOR", "1")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let addr = loop {
        let line = soon("the gateway says where it listens", lines.next_line()).await.unwrap();
        let line = line.expect("the gateway ended before it listened");
        if let Some((_, addr)) = line.split_once("listening on http://") {
            let end = addr.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
            break addr[..end.unwrap_or(addr.len())].parse().unwrap();
        }
    };
    // Read on, or the process would block on a full pipe.
    super::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            if std::env::var_os("SHOW_GATEWAY_LOGS").is_some() {
                eprintln!("[gateway {addr}] {line}");
            }
        }
    });
    (child, addr)
}

/// The HTTP side of a gateway.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) base: Arc<str>,
    pub(crate) http: reqwest::Client,
}

impl Api {
    pub(crate) fn of(addr: SocketAddr) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { base: format!("http://{addr}").into(), http: reqwest::Client::new() }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// Posts a body. The status, the answer, and the seconds of a `Retry-After`.
    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> (u16, Value, Option<u64>) {
        self.try_post(path, body).await.unwrap()
    }

    pub(crate) async fn try_post(
        &self,
        path: &str,
        body: impl ToString,
    ) -> Result<(u16, Value, Option<u64>), reqwest::Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.http.post(url).body(body.to_string()).send().await?;
        let status = answer.status().as_u16();
        let retry = answer.headers().get("retry-after");
        let retry = retry.and_then(|retry| retry.to_str().ok()?.parse().ok());
        Ok((status, answer.json().await.unwrap_or(Value::Null), retry))
    }

    /// Publishes data and returns the position.
    pub(crate) async fn publish(&self, channel: &str, data: impl Into<Value>) -> String {
        let event = json!({ "channel": channel, "data": data.into() });
        let (status, answer, _) = self.post("/api/publish", event).await;
        assert_eq!(status, 200, "{answer}");
        answer["position"].as_str().unwrap().to_owned()
    }

    /// The value of a metric; nothing counted is zero.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.text("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        eventually(format!("{name} is {value}"), async || {
            let found = self.metric(name).await;
            (found == value).then_some(())
        })
        .await;
    }
}
