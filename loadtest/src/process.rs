//! Starting servers, keeping them on a CPU of their own, and leaving none behind.
//!
//! A server is started through this binary's hidden `guard`, which asks the kernel to kill it with
//! its parent and then becomes it: neither needs code that runs between fork and exec.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode},
};

use anyhow::{Context as _, bail};
use rustix::{
    process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

/// The CPUs of the server and of the load, with `--pin`.
pub const SERVER_CPU: usize = 0;
/// See [`SERVER_CPU`].
pub const LOAD_CPU: usize = 1;

/// A child process that ends with this value.
#[derive(Debug)]
pub struct Spawned(Child);

impl Spawned {
    /// Starts a program, on the server's CPU if `pin`. `prepare` sets what else it needs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Path,
        args: &[OsString],
        pin: bool,
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(this_binary()?);
        command.args(["guard", "--parent", &std::process::id().to_string()]);
        if pin {
            command.args(["--cpu", &SERVER_CPU.to_string()]);
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
pub fn this_binary() -> anyhow::Result<std::path::PathBuf> {
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

/// Keeps this process on a CPU, if one is named.
///
/// # Errors
/// When there is no such CPU.
pub fn stay_on(cpu: Option<usize>) -> anyhow::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("CPU {cpu} cannot be had"))
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
