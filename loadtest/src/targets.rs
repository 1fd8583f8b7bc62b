//! The servers that can be measured.

pub mod crossfade;
pub mod limit;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use self::{
    crossfade::{Crossfade, Transport},
    limit::Limit,
};
use crate::{process, target::Target};

/// A server by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetKind {
    /// The gateway, over WebSocket.
    CrossfadeWs,
    /// The gateway, over SSE.
    CrossfadeSse,
    /// A program that writes the same bytes to every socket and does nothing else.
    Limit,
}

/// How servers are found or started.
#[derive(Args, Clone, Debug)]
pub struct Hosting {
    /// The gateway's program, which is started for each target; "crossfade" beside this one when
    /// left out.
    #[arg(long, value_name = "FILE")]
    server_bin: Option<PathBuf>,
    /// A gateway that runs already, on a loopback address. Needs --pid.
    #[arg(long, value_name = "HOST:PORT", requires = "pid", conflicts_with = "server_bin")]
    url: Option<String>,
    /// Its process.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// Keep servers on CPU 0 and the load on CPU 1.
    #[arg(long)]
    pub pin: bool,
}

impl Hosting {
    /// Prepares this process: its CPU, and files enough for `connections`.
    ///
    /// # Errors
    /// When the machine does not allow it.
    pub fn prepare(&self, connections: usize) -> anyhow::Result<()> {
        process::stay_on(self.pin.then_some(process::LOAD_CPU))?;
        process::allow_open_files(connections as u64 + 256)
    }

    /// Starts a target for so many subscribers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn open(&self, kind: TargetKind, subscribers: usize) -> anyhow::Result<Box<dyn Target>> {
        let transport = match kind {
            TargetKind::Limit => return Ok(Box::new(Limit::start(subscribers, self.pin)?)),
            TargetKind::CrossfadeWs => Transport::WebSocket,
            TargetKind::CrossfadeSse => Transport::EventStream,
        };
        if let (Some(url), Some(pid)) = (&self.url, self.pid) {
            return Ok(Box::new(Crossfade::running(loopback(url)?, pid, transport)));
        }
        let program = match &self.server_bin {
            Some(program) => program.clone(),
            None => process::this_binary()?.with_file_name("crossfade"),
        };
        Ok(Box::new(Crossfade::start(&program, transport, self.pin, START)?))
    }
}

/// How long a server may take to come up.
const START: Duration = Duration::from_secs(15);

fn loopback(url: &str) -> anyhow::Result<SocketAddr> {
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let address: SocketAddr =
        bare.parse().with_context(|| format!("{url} is not like http://127.0.0.1:8080"))?;
    if !address.ip().is_loopback() {
        bail!("{url} is not on this machine; the load stays here");
    }
    Ok(address)
}
