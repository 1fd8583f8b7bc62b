//! Private PostgreSQL servers, made from the installed binaries: on a unix socket in a directory of
//! their own, gone with the value that stands for them, whatever becomes of the test.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak, mpsc},
    thread,
};

use crossfade::lifecycle::Stage;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::eventually::eventually;

/// A server of one's own.
pub(crate) struct PrivatePostgres {
    home: TempDir,
    durable: bool,
    running: Mutex<Option<Running>>,
    clients: Stage,
}

struct Running {
    postmaster: Child,
    /// The server dies with the thread that started it; this one lives for as long as the value.
    _thread: mpsc::Sender<()>,
}

impl PrivatePostgres {
    /// One that everybody in this process may use, each with databases of their own. It ends with
    /// the last who does.
    pub(crate) async fn shared() -> Arc<Self> {
        static SHARED: tokio::sync::Mutex<Weak<PrivatePostgres>> =
            tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start(false).await);
        *shared = Arc::downgrade(&server);
        server
    }

    /// A fresh one. A durable one waits for the disk at each commit, as in production.
    pub(crate) async fn start(durable: bool) -> Self {
        let home = directory();
        let template = template();
        run(Command::new("cp").arg("-a").arg(template.path().join("data")).arg(home.path()));
        let server = Self { home, durable, running: Mutex::default(), clients: Stage::default() };
        server.restart().await;
        server
    }

    /// Starts it, or starts it again after [`kill`](Self::kill).
    pub(crate) async fn restart(&self) {
        eventually("PostgreSQL answers", async || {
            // It refuses to start while a process of the one before is not quite gone.
            if !self.is_running() {
                self.launch();
            }
            tokio_postgres::connect(&self.url("postgres"), NoTls).await.ok().map(|_| ())
        })
        .await;
    }

    fn is_running(&self) -> bool {
        let mut running = self.running.lock().unwrap();
        running.as_mut().is_some_and(|running| running.postmaster.try_wait().unwrap().is_none())
    }

    fn launch(&self) {
        let mut server = as_postgres(&binary("postgres"));
        server.arg("-D").arg(self.home.path().join("data"));
        let sockets = format!("unix_socket_directories={}", self.home.path().display());
        for setting in [&sockets, "listen_addresses=", "max_connections=400", "shared_buffers=64MB"]
        {
            server.args(["-c", setting]);
        }
        if !self.durable {
            server.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        }
        let log = fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (started, postmaster) = mpsc::channel();
        let (_thread, ends) = mpsc::channel::<()>();
        thread::spawn(move || {
            started.send(server.spawn().unwrap()).unwrap();
            let _ = ends.recv();
        });
        let postmaster = postmaster.recv().unwrap();
        *self.running.lock().unwrap() = Some(Running { postmaster, _thread });
    }

    /// Ends it like a power cut ends it.
    pub(crate) fn kill(&self) {
        let Some(mut running) = self.running.lock().unwrap().take() else { return };
        let postmaster = running.postmaster.id();
        // Halted first: a child it forked meanwhile would survive, and hold on to the shared memory.
        let _ = Command::new("kill").args(["-STOP", &postmaster.to_string()]).status();
        // Its children are no process group of its: each is named.
        let family = children(postmaster).into_iter().chain([postmaster]);
        let pids: Vec<_> = family.map(|pid| pid.to_string()).collect();
        let _ = Command::new("kill").arg("-9").args(pids).stderr(Stdio::null()).status();
        let _ = running.postmaster.wait();
    }

    /// How to connect to one of its databases.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("host={} user=postgres dbname={database}", self.home.path().display())
    }

    /// A new, empty database.
    pub(crate) async fn create_database(&self) -> String {
        let name = format!("t{:016x}", rand::random::<u64>());
        self.sql("postgres", &format!("create database {name}")).await;
        name
    }

    /// A client of its own.
    pub(crate) async fn client(&self, database: &str) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), NoTls).await.unwrap();
        self.clients.spawn_client(async move {
            let _ = connection.await;
        });
        client
    }

    /// Runs statements and returns the rows as text.
    pub(crate) async fn sql(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        rows(&self.client(database).await, sql).await
    }

    /// What the server logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs statements and returns the rows as text.
pub(crate) async fn rows(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql).await.unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let column = |n| row.get(n).unwrap_or("NULL").to_owned();
            Some((0..row.len()).map(column).collect())
        }
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A data directory as initdb leaves it: that takes seconds, copying it does not.
fn template() -> Arc<TempDir> {
    static TEMPLATE: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut template = TEMPLATE.lock().unwrap();
    if let Some(template) = template.upgrade() {
        return template;
    }
    let home = directory();
    let data = home.path().join("data");
    let mut initdb = as_postgres(&binary("initdb"));
    initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
    run(initdb.arg(data));
    let home = Arc::new(home);
    *template = Arc::downgrade(&home);
    home
}

/// A directory that belongs to whom the server runs as.
fn directory() -> TempDir {
    let home = tempfile::Builder::new().prefix("crossfade-pg-").tempdir().unwrap();
    if is_root() {
        run(Command::new("chown").arg("postgres:").arg(home.path()));
    }
    home
}

/// A server refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).current_dir("/");
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// On the PATH, or the newest that the distribution's packages brought.
fn binary(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name));
    let mut versions: Vec<u32> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let packaged = versions.iter().map(|v| format!("/usr/lib/postgresql/{v}/bin/{name}").into());
    let mut all = on_path.chain(packaged);
    all.find(|path| path.exists()).unwrap_or_else(|| panic!("PostgreSQL's {name} is not installed"))
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        // "pid (name) state parent …", and the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        behind.split(' ').nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).collect()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
