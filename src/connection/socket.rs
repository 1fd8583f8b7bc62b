//! What a connection reads from and writes to without waiting: the client's own socket, or a pipe
//! where TLS or HTTP/2 is in between.
//!
//! Both accept bytes on the spot or say that they would block, so the fan-out can write to either
//! from its own loop. Neither knows what the bytes mean.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{io::Errno, net::SendFlags};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::net::TcpStream;

pub use super::pipe::Pipe;

/// What a connection reads from and writes to.
#[derive(Debug)]
pub enum Socket {
    /// The client's own socket.
    Tcp(TcpStream),
    /// A pipe to what encrypts or frames the bytes further.
    Pipe(Arc<Pipe>),
}

/// Pieces handed to the kernel in one call, at most.
const PIECES: usize = 64;

impl Socket {
    /// Writes as much of the pieces as fits, in one call.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; any other means the client is gone.
    pub fn try_write(&self, pieces: &[Bytes]) -> io::Result<usize> {
        match (self, pieces) {
            (Self::Pipe(pipe), pieces) => pipe.try_write(pieces),
            (Self::Tcp(stream), [only]) => send_now(stream, only),
            (Self::Tcp(stream), pieces) => {
                let slices: SmallVec<[IoSlice<'_>; PIECES]> =
                    pieces.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
                stream.try_write_vectored(&slices)
            }
        }
    }

    /// Waits until [`try_write`](Self::try_write) may succeed.
    pub async fn writable(&self) {
        match self {
            // An error shows at the next write.
            Self::Tcp(stream) => drop(stream.writable().await),
            Self::Pipe(pipe) => pipe.writable().await,
        }
    }

    /// Reads what has arrived. 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has arrived; any other means the client is gone.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(into),
            Self::Pipe(pipe) => pipe.try_read(into),
        }
    }

    /// Waits until [`try_read`](Self::try_read) may succeed.
    pub async fn readable(&self) {
        match self {
            Self::Tcp(stream) => drop(stream.readable().await),
            Self::Pipe(pipe) => pipe.readable().await,
        }
    }

    /// Shuts the writing side down. What was written still arrives.
    pub fn end_writing(&self) {
        match self {
            // An error means that the client is gone already.
            Self::Tcp(stream) => drop(SockRef::from(stream).shutdown(Shutdown::Write)),
            Self::Pipe(pipe) => pipe.end_writing(),
        }
    }
}

/// Sends without consulting the runtime's bookkeeping of the socket, which costs a cache miss for each
/// of a thousand clients. Only a full socket consults it, so that the runtime wakes the task later.
fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match rustix::net::send(stream, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN) => stream.try_write(bytes),
        sent => Ok(sent?),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Pipe(pipe) = self {
            pipe.end_writing();
        }
    }
}
