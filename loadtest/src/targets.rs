//! The servers that can be measured.

pub mod centrifugo;
pub mod crossfade;
pub mod limit;
pub mod mercure;
pub mod nchan;
pub mod pusher;
pub mod redis;
mod served;
mod signature;
mod websocket;

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use anyhow::{Context as _, bail};
use clap::Args;

use self::{crossfade::Crossfade, limit::Limit, served::Served};
use crate::{
    process,
    target::{Mix, Target, Transport},
};

/// A server, and how subscribers are connected to it: `crossfade-ws`, `nchan-sse`, `limit`,
/// `crossfade:ws=70,sse=30`.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSpec {
    name: String,
    /// Which server.
    pub kind: Kind,
    /// Over which transports.
    pub mix: Mix,
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The gateway.
    Crossfade,
    /// A program that writes the same bytes to every socket and does nothing else.
    Limit,
    /// The same with a write for each event, where `limit` has one for all that are due together.
    LimitEach,
    /// Redis's own publish and subscribe.
    Redis,
    /// nginx with its module nchan.
    Nchan,
    /// Whatever speaks Pusher's protocol; started, it is sockudo.
    Sockudo,
    /// Centrifugo.
    Centrifugo,
    /// A Mercure hub.
    Mercure,
}

const KINDS: [(&str, Kind, &[Transport]); 8] = {
    use Transport::{EventStream, WebSocket};
    [
        ("crossfade", Kind::Crossfade, &[WebSocket, EventStream]),
        ("limit", Kind::Limit, &[WebSocket]),
        ("limit-each", Kind::LimitEach, &[WebSocket]),
        ("redis", Kind::Redis, &[WebSocket]),
        ("nchan", Kind::Nchan, &[WebSocket, EventStream]),
        ("sockudo", Kind::Sockudo, &[WebSocket]),
        ("centrifugo", Kind::Centrifugo, &[WebSocket, EventStream]),
        ("mercure", Kind::Mercure, &[EventStream]),
    ]
};

impl Kind {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("", |(name, ..)| name)
    }
}

impl FromStr for TargetSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, mix) = match (text.split_once(':'), text.rsplit_once('-')) {
            (Some((name, mix)), _) => (name, Some(Mix::parse(mix)?)),
            (None, Some((name, "ws"))) => (name, Some(Mix::only(Transport::WebSocket))),
            (None, Some((name, "sse"))) => (name, Some(Mix::only(Transport::EventStream))),
            _ => (text, None),
        };
        let Some((_, kind, transports)) = KINDS.iter().find(|(known, ..)| *known == name) else {
            let known = KINDS.map(|(name, ..)| name).join(", ");
            bail!("{name:?} is none of {known}, with -ws, -sse or :ws=70,sse=30 behind it")
        };
        let mix = mix.unwrap_or_else(|| Mix::only(transports[0]));
        if let Some(transport) = mix.transports().find(|one| !transports.contains(one)) {
            bail!("{name} has no {transport:?}");
        }
        Ok(Self { name: text.to_owned(), kind: *kind, mix })
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// How servers are found or started, and which CPUs they and the load have.
#[derive(Args, Clone, Debug)]
pub struct Hosting {
    /// The gateway's program, which is started for each target; "crossfade" beside this one when
    /// left out.
    #[arg(long, value_name = "FILE")]
    server_bin: Option<PathBuf>,
    /// Start peers: programs found on PATH, with settings of our own.
    #[arg(long)]
    start: bool,
    /// A server that runs already, on a loopback address: NAME=HOST:PORT, or HOST:PORT for the
    /// gateway. Needs --pid.
    #[arg(long, value_name = "[NAME=]HOST:PORT", requires = "pid")]
    url: Vec<String>,
    /// Its process: NAME=PID, or PID for the gateway.
    #[arg(long, value_name = "[NAME=]PID", requires = "url")]
    pid: Vec<String>,
    /// Keep servers on CPU 0 and the load on CPU 1.
    #[arg(long)]
    pin: bool,
    /// Keep servers on these CPUs: 0,1.
    #[arg(long, value_delimiter = ',', conflicts_with = "pin")]
    server_cpus: Vec<usize>,
    /// Keep the load on these.
    #[arg(long, value_delimiter = ',', conflicts_with = "pin")]
    load_cpus: Vec<usize>,
    /// A setting of the gateway that is started: CROSSFADE_BROKER__KIND=redis.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
}

impl Hosting {
    /// Prepares this process: its CPUs, and files enough for `connections`.
    ///
    /// # Errors
    /// When the machine does not allow it.
    pub fn prepare(&self, connections: usize) -> anyhow::Result<()> {
        process::stay_on(if self.pin { &[1] } else { &self.load_cpus })?;
        process::allow_open_files(connections as u64 + 256)
    }

    /// Whether servers and load are kept apart.
    pub fn is_pinned(&self) -> bool {
        self.pin || !self.server_cpus.is_empty()
    }

    /// Starts or finds a target for so many subscribers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn open(&self, spec: &TargetSpec, subscribers: usize) -> anyhow::Result<Box<dyn Target>> {
        let cpus = if self.pin { &[0][..] } else { &self.server_cpus };
        let name = spec.kind.name();
        let running = match (named(&self.url, name), named(&self.pid, name)) {
            (Some(url), Some(pid)) => {
                Some((loopback(url)?, pid.parse().context("--pid is no number")?))
            }
            (None, None) => None,
            _ => bail!("{name} needs both --url and --pid"),
        };
        let served = match (running, spec.kind) {
            (_, Kind::Limit | Kind::LimitEach) => {
                let each = spec.kind == Kind::LimitEach;
                return Ok(Box::new(Limit::start(subscribers, each, cpus)?));
            }
            (Some((address, pid)), _) => Served::running(address, pid),
            (None, Kind::Crossfade) => Crossfade::start(&self.gateway()?, &self.settings, cpus)?,
            (None, _) if !self.start => bail!(
                "{name} is not given: --start starts the one on PATH, \
                 --url {name}=HOST:PORT --pid {name}=PID measures one that runs"
            ),
            (None, Kind::Redis) => redis::start(cpus)?,
            (None, Kind::Nchan) => nchan::start(cpus)?,
            (None, Kind::Sockudo) => pusher::start(cpus)?,
            (None, Kind::Centrifugo) => centrifugo::start(cpus)?,
            (None, Kind::Mercure) => mercure::start(cpus)?,
        };
        let name = spec.name.clone();
        Ok(match spec.kind {
            Kind::Redis => Box::new(redis::Redis { name, served }),
            Kind::Nchan => Box::new(nchan::Nchan { name, served }),
            Kind::Sockudo => Box::new(pusher::Pusher { name, served }),
            Kind::Centrifugo => Box::new(centrifugo::Centrifugo { name, served }),
            Kind::Mercure => Box::new(mercure::Mercure { name, served }),
            Kind::Crossfade | Kind::Limit | Kind::LimitEach => Box::new(Crossfade { name, served }),
        })
    }

    fn gateway(&self) -> anyhow::Result<PathBuf> {
        let program = match &self.server_bin {
            Some(program) => program.clone(),
            None => process::this_binary()?.with_file_name("crossfade"),
        };
        program
            .canonicalize()
            .with_context(|| format!("{} is not there: build it first", program.display()))
    }
}

/// The value that is given for `name`; one without a name is the gateway's.
fn named<'a>(values: &'a [String], name: &str) -> Option<&'a str> {
    values.iter().find_map(|value| match value.split_once('=') {
        Some((given, value)) => (given == name).then_some(value),
        None => (name == Kind::Crossfade.name()).then_some(value),
    })
}

fn loopback(url: &str) -> anyhow::Result<SocketAddr> {
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let address: SocketAddr =
        bare.parse().with_context(|| format!("{url} is not like http://127.0.0.1:8080"))?;
    if !address.ip().is_loopback() {
        bail!("{url} is not on this machine; the load stays here");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_named_with_its_transport() {
        let spec = |text: &str| text.parse::<TargetSpec>();
        assert_eq!(spec("crossfade").unwrap().mix, Mix::only(Transport::WebSocket));
        assert_eq!(spec("nchan-sse").unwrap().mix, Mix::only(Transport::EventStream));
        assert_eq!(spec("mercure").unwrap().mix, Mix::only(Transport::EventStream));
        let mixed = spec("crossfade:ws=1,sse=1").unwrap();
        assert_eq!((mixed.kind, mixed.mix), (Kind::Crossfade, Mix::parse("ws=1,sse=1").unwrap()));
        assert!(spec("sockudo-sse").is_err() && spec("limit:ws=1,sse=1").is_err());
        assert!(spec("").unwrap_err().to_string().contains("crossfade, limit, limit-each, redis"));
    }

    #[test]
    fn a_value_without_a_name_is_the_gateways() {
        let values = ["127.0.0.1:1".to_owned(), "nchan=127.0.0.1:2".to_owned()];
        assert_eq!(named(&values, "crossfade"), Some("127.0.0.1:1"));
        assert_eq!(named(&values, "nchan"), Some("127.0.0.1:2"));
        assert_eq!(named(&values, "redis"), None);
    }
}
