//! What a connection writes to and reads from, without waiting: the raw socket where it is ours, a
//! pipe where TLS or HTTP/2 stands in between.
//!
//! Both take bytes on the spot or say that they would block, so the fan-out can write to either from
//! its own loop. Nothing here knows what the bytes mean.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::Shutdown,
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use rustix::{io::Errno, net::SendFlags};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

/// Where a connection's bytes go and come from.
#[derive(Debug)]
pub enum Socket {
    /// The client's own.
    Tcp(TcpStream),
    /// To whoever wraps the bytes further.
    Pipe(Arc<Pipe>),
}

/// Pieces handed to the kernel in one call.
const PIECES: usize = 64;

impl Socket {
    /// Writes as much of the pieces as fits, in one call.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; any other means the client is gone.
    pub fn try_write(&self, pieces: &[Bytes]) -> io::Result<usize> {
        match (self, pieces) {
            (Self::Pipe(pipe), pieces) => pipe.try_write(pieces),
            (Self::Tcp(stream), [only]) => write_at_once(stream, only),
            (Self::Tcp(stream), pieces) => {
                let slices: SmallVec<[IoSlice<'_>; PIECES]> =
                    pieces.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
                stream.try_write_vectored(&slices)
            }
        }
    }

    /// Waits until [`try_write`](Self::try_write) is worth a try.
    pub async fn writable(&self) {
        match self {
            // An error shows at the next write.
            Self::Tcp(stream) => drop(stream.writable().await),
            Self::Pipe(pipe) => pipe.writable().await,
        }
    }

    /// Reads what is there. 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; any other means the client is gone.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(into),
            Self::Pipe(pipe) => pipe.try_read(into),
        }
    }

    /// Waits until [`try_read`](Self::try_read) is worth a try.
    pub async fn readable(&self) {
        match self {
            Self::Tcp(stream) => drop(stream.readable().await),
            Self::Pipe(pipe) => pipe.readable().await,
        }
    }

    /// Says that nothing more will be written. What was written still arrives.
    pub fn end_writing(&self) {
        match self {
            // An error means that the client is gone, which is what we want.
            Self::Tcp(stream) => drop(SockRef::from(stream).shutdown(Shutdown::Write)),
            Self::Pipe(pipe) => pipe.end_writing(),
        }
    }
}

/// Writes without a look at what the runtime knows of the socket, which is a miss of the cache for each
/// of a thousand clients. Only a full socket asks the runtime, so that it sees to being woken.
fn write_at_once(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
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

/// Two short queues between a connection and what wraps its bytes.
#[derive(Debug, Default)]
pub struct Pipe {
    out: Mutex<PipeBuffer>,
    inward: Mutex<PipeBuffer>,
    out_filled: Notify,
    out_emptied: Notify,
    inward_filled: Notify,
    inward_emptied: Notify,
}

#[derive(Debug, Default)]
struct PipeBuffer {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

/// Bytes that wait in a lane before it blocks.
const LANE_BYTES: usize = 64 << 10;

impl PipeBuffer {
    fn push(&mut self, pieces: &[Bytes]) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if LANE_BYTES <= self.bytes {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Whole pieces only, one of which may go over: they are shared, so they cost nothing.
        let mut taken = 0;
        for piece in pieces {
            if LANE_BYTES <= self.bytes {
                break;
            }
            self.bytes += piece.len();
            taken += piece.len();
            self.pieces.push_back(piece.clone());
        }
        Ok(taken)
    }
}

impl Pipe {
    fn try_write(&self, pieces: &[Bytes]) -> io::Result<usize> {
        let taken = self.out.lock().push(pieces)?;
        self.out_filled.notify_one();
        Ok(taken)
    }

    async fn writable(&self) {
        loop {
            let emptied = self.out_emptied.notified();
            let blocked = {
                let out = self.out.lock();
                !out.ended && LANE_BYTES <= out.bytes
            };
            if !blocked {
                return;
            }
            emptied.await;
        }
    }

    fn end_writing(&self) {
        self.out.lock().ended = true;
        self.out_filled.notify_one();
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut lane = self.inward.lock();
        let Some(piece) = lane.pieces.front_mut() else {
            return if lane.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        };
        let len = piece.len().min(into.len());
        piece.copy_to_slice(&mut into[..len]);
        if piece.is_empty() {
            lane.pieces.pop_front();
        }
        lane.bytes -= len;
        self.inward_emptied.notify_one();
        Ok(len)
    }

    async fn readable(&self) {
        loop {
            let filled = self.inward_filled.notified();
            let empty = {
                let lane = self.inward.lock();
                !lane.ended && lane.pieces.is_empty()
            };
            if !empty {
                return;
            }
            filled.await;
        }
    }

    /// What the connection wrote next; none at the end.
    pub async fn next(&self) -> Option<Bytes> {
        loop {
            let filled = self.out_filled.notified();
            let (piece, ended) = {
                let mut out = self.out.lock();
                let piece = out.pieces.pop_front();
                out.bytes -= piece.as_ref().map_or(0, Bytes::len);
                (piece, out.ended)
            };
            if piece.is_some() {
                self.out_emptied.notify_one();
            }
            if piece.is_some() || ended {
                return piece;
            }
            filled.await;
        }
    }

    /// The client is gone: nothing more comes from it and nothing more can be written to it.
    pub fn hang_up(&self) {
        self.out.lock().ended = true;
        self.inward.lock().ended = true;
        self.out_emptied.notify_one();
        self.inward_filled.notify_one();
    }

    /// Carries bytes both ways until either side ends.
    pub async fn carry(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (mut from_client, mut to_client) = tokio::io::split(stream);
        let out = async {
            while let Some(piece) = self.next().await {
                to_client.write_all(&piece).await?;
                to_client.flush().await?;
            }
            to_client.shutdown().await
        };
        let inward = async {
            let mut buffer = vec![0; 4096];
            loop {
                let len = from_client.read(&mut buffer).await?;
                if len == 0 {
                    return io::Result::Ok(());
                }
                self.accept(Bytes::copy_from_slice(&buffer[..len])).await;
            }
        };
        // Either end means that the client is gone or that we are done with it.
        tokio::select! { _ = out => {}, _ = inward => {} }
        self.hang_up();
    }

    async fn accept(&self, piece: Bytes) {
        loop {
            let emptied = self.inward_emptied.notified();
            if self.inward.lock().push(std::slice::from_ref(&piece)).is_ok() {
                break;
            }
            emptied.await;
        }
        self.inward_filled.notify_one();
    }
}
