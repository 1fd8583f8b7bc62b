//! A server with one address, started here or found running.

use std::net::SocketAddr;

use crate::{
    measure::Process,
    process::{Folder, Spawned},
};

/// Where it is, and what ends with it.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) address: SocketAddr,
    pid: u32,
    // Before the folder, whose files it uses.
    spawned: Option<Spawned>,
    _folder: Option<Folder>,
}

impl Served {
    pub(super) fn running(address: SocketAddr, pid: u32) -> Self {
        Self { address, pid, spawned: None, _folder: None }
    }

    pub(super) fn started(address: SocketAddr, spawned: Spawned, folder: Option<Folder>) -> Self {
        Self { address, pid: spawned.pid(), spawned: Some(spawned), _folder: folder }
    }

    pub(super) fn process(&self) -> Process {
        Process(self.pid)
    }

    pub(super) fn expect_alive(&mut self) -> anyhow::Result<()> {
        self.spawned.as_mut().map_or(Ok(()), Spawned::expect_alive)
    }
}

/// The part of [`Target`](crate::target::Target) that is the same for all of these.
macro_rules! served {
    () => {
        fn name(&self) -> &str {
            &self.name
        }

        fn process(&self) -> crate::measure::Process {
            self.served.process()
        }

        fn address(&self) -> std::net::SocketAddr {
            self.served.address
        }

        fn expect_alive(&mut self) -> anyhow::Result<()> {
            self.served.expect_alive()
        }
    };
}
pub(super) use served;
