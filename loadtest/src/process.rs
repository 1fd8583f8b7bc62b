//! Starting servers, keeping them on a CPU of their own, and leaving none behind.
//!
//! A server is started through this binary's hidden `guard`, which asks the kernel to kill it with
//! its parent and then becomes it: neither needs code that runs between fork and exec.

use std::{
    ffi::{OsStr, OsString},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

/// How long a server may take to come up.
const START: Duration = Duration::from_secs(15);

/// Where a program is looked for besides `PATH`: servers often lie where only root looks.
const MORE_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A child process that ends with this value.
#[derive(Debug)]
pub struct Spawned(Child);

impl Spawned {
    /// Starts a program, on these CPUs if there are any. `prepare` sets what else it needs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Path,
        args: &[OsString],
        cpus: &[usize],
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(this_binary()?);
        command.args(["guard", "--parent", &std::process::id().to_string()]);
        for cpu in cpus {
            command.args(["--cpu", &cpu.to_string()]);
        }
        command.arg("--").arg(program).args(args);
        prepare(&mut command);
        let child = command.spawn().with_context(|| format!("{} cannot start", program.display()));
        Ok(Self(child?))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The process itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits until `is_up` says so.
    ///
    /// # Errors
    /// When the program ends, or takes too long.
    pub fn wait_until(&mut self, name: &str, is_up: impl Fn() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while !is_up() {
            self.expect_alive()?;
            if deadline < Instant::now() {
                bail!("{name} does not answer {START:?} after its start");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// With how it ended.
    pub fn expect_alive(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the server ended by itself: {status}"),
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // An error means that it ended before, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary whose hidden commands children are started with.
///
/// # Errors
/// When the kernel does not say.
pub fn this_binary() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("this binary cannot be found")
}

/// Ends this process when `parent` does.
///
/// # Errors
/// When the parent has ended already.
pub fn die_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the line above, and then no signal comes.
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|pid| pid.get() != parent) {
        bail!("the parent has ended");
    }
    Ok(())
}

/// Keeps this process on some CPUs, if any are named.
///
/// # Errors
/// When there are no such CPUs.
pub fn stay_on(cpus: &[usize]) -> anyhow::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).with_context(|| format!("CPU {cpus:?} cannot be had"))
}

/// A program's path, if it is installed.
///
/// # Errors
/// When it is not found.
pub fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not on PATH: install it, or leave this target out"))
}

/// A free port. Another process may take it before the server does; then the server says so and
/// ends.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A folder for a server's files, gone with this value.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let unique =
            format!("crossfade-load-{name}-{}-{}", std::process::id(), crate::clock::now());
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind lies in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Replaces this process by another program.
///
/// # Errors
/// When the program cannot be run; otherwise it does not return.
pub fn become_program(program: &[OsString]) -> anyhow::Result<ExitCode> {
    let (name, args) = program.split_first().context("no program is named")?;
    let err = Command::new(name).args(args).exec();
    Err(err).with_context(|| format!("{} cannot be run", Path::new(OsStr::new(name)).display()))
}

/// Lets this process, and the servers it starts, have `needed` files open at once.
///
/// # Errors
/// When the hard limit is below that and may not be raised.
pub fn allow_open_files(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = Some(hard.max(needed));
    if setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted }).is_ok() {
        return Ok(());
    }
    bail!("{needed} open files are needed and {hard} allowed: raise `ulimit -Hn`, or run as root");
}
