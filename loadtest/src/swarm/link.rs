//! One connection of one subscriber.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

use crate::{
    frames::{FrameReader, Wire},
    target::Transport,
};

/// A socket, and how far its conversation got.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pub(super) transport: Transport,
    pub(super) stage: Stage,
    pub(super) reader: FrameReader,
    /// Whether it began without a position: what was published before is not owed to it.
    pub(super) fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Greeting,
    Ready,
    /// Subscribed, and reads no more.
    Mute,
}

/// Connections from one source address: the ports of one are 28,232 by default.
const PER_SOURCE: usize = 20_000;

impl Link {
    /// Begins to connect, for the subscriber of this number.
    pub(super) fn open(
        address: SocketAddr,
        number: usize,
        transport: Transport,
        wire: Wire,
        fresh: bool,
    ) -> anyhow::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .context("no socket is left")?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // Ends with a reset: no port waits for a minute after it.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        if let source @ 1.. = number / PER_SOURCE {
            let source = Ipv4Addr::new(127, 0, 1, u8::try_from(source)?);
            bind(&socket, &SocketAddrV4::new(source, 0))?;
        }
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(err) => return Err(err).context("a subscriber cannot connect"),
        }
        let stage = Stage::Connecting;
        Ok(Self { stream: socket.into(), transport, stage, reader: FrameReader::new(wire), fresh })
    }

    /// Says a few bytes. There is always room for them: what a subscriber says is answered before
    /// it says more.
    pub(super) fn say(&mut self, words: &[u8]) -> anyhow::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        match self.stream.write(words) {
            Ok(written) if written == words.len() => {
                // Whoever answers is taken for a conversation: its acknowledgements are put off until
                // the server's next write, which then pays for them, and not all servers get answers.
                Ok(sockopt::set_tcp_quickack(&self.stream, true)?)
            }
            Ok(_) => bail!("a socket took half of what a subscriber said"),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                bail!("the server reads nothing of what a subscriber says")
            }
            // It shows at the next read.
            Err(_) => Ok(()),
        }
    }
}
