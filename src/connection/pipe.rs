//! A pipe between a connection and what encrypts or frames its bytes: TLS, or HTTP/2.

use std::{collections::VecDeque, io};

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
};

/// Two bounded queues between a connection and what encrypts or frames its bytes.
#[derive(Debug, Default)]
pub struct Pipe {
    outgoing: Mutex<PipeBuffer>,
    incoming: Mutex<PipeBuffer>,
    outgoing_filled: Notify,
    outgoing_emptied: Notify,
    incoming_filled: Notify,
    incoming_emptied: Notify,
}

#[derive(Debug, Default)]
struct PipeBuffer {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

/// Bytes that wait in one direction before it blocks.
const BUFFER_BYTES: usize = 64 << 10;

impl PipeBuffer {
    fn push(&mut self, pieces: &[Bytes]) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if BUFFER_BYTES <= self.bytes {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Whole pieces only, one of which may go over: they are shared, so they cost nothing.
        let mut taken = 0;
        for piece in pieces {
            if BUFFER_BYTES <= self.bytes {
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
    pub(super) fn try_write(&self, pieces: &[Bytes]) -> io::Result<usize> {
        let taken = self.outgoing.lock().push(pieces)?;
        self.outgoing_filled.notify_one();
        Ok(taken)
    }

    pub(super) async fn writable(&self) {
        loop {
            let emptied = self.outgoing_emptied.notified();
            let blocked = {
                let outgoing = self.outgoing.lock();
                !outgoing.ended && BUFFER_BYTES <= outgoing.bytes
            };
            if !blocked {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn end_writing(&self) {
        self.outgoing.lock().ended = true;
        self.outgoing_filled.notify_one();
    }

    pub(super) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = self.incoming.lock();
        let Some(piece) = buffer.pieces.front_mut() else {
            return if buffer.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        };
        let len = piece.len().min(into.len());
        piece.copy_to_slice(&mut into[..len]);
        if piece.is_empty() {
            buffer.pieces.pop_front();
        }
        buffer.bytes -= len;
        self.incoming_emptied.notify_one();
        Ok(len)
    }

    pub(super) async fn readable(&self) {
        loop {
            let filled = self.incoming_filled.notified();
            let empty = {
                let buffer = self.incoming.lock();
                !buffer.ended && buffer.pieces.is_empty()
            };
            if !empty {
                return;
            }
            filled.await;
        }
    }

    /// The next piece that the connection wrote; none at the end.
    pub async fn next(&self) -> Option<Bytes> {
        loop {
            let filled = self.outgoing_filled.notified();
            let (piece, ended) = {
                let mut outgoing = self.outgoing.lock();
                let piece = outgoing.pieces.pop_front();
                outgoing.bytes -= piece.as_ref().map_or(0, Bytes::len);
                (piece, outgoing.ended)
            };
            if piece.is_some() {
                self.outgoing_emptied.notify_one();
            }
            if piece.is_some() || ended {
                return piece;
            }
            filled.await;
        }
    }

    /// The client is gone: nothing can be read or written any more.
    pub fn hang_up(&self) {
        self.outgoing.lock().ended = true;
        self.incoming.lock().ended = true;
        self.outgoing_emptied.notify_one();
        self.incoming_filled.notify_one();
    }

    /// Copies bytes in both directions until either side ends.
    pub async fn carry(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (mut from_client, mut to_client) = tokio::io::split(stream);
        let outgoing = async {
            while let Some(piece) = self.next().await {
                to_client.write_all(&piece).await?;
                to_client.flush().await?;
            }
            to_client.shutdown().await
        };
        let incoming = async {
            let mut buffer = vec![0; 4096];
            loop {
                let len = from_client.read(&mut buffer).await?;
                if len == 0 {
                    return io::Result::Ok(());
                }
                self.accept(Bytes::copy_from_slice(&buffer[..len])).await;
            }
        };
        // Either end means that the client is gone or the connection has closed.
        tokio::select! { _ = outgoing => {}, _ = incoming => {} }
        self.hang_up();
    }

    async fn accept(&self, piece: Bytes) {
        loop {
            let emptied = self.incoming_emptied.notified();
            if self.incoming.lock().push(std::slice::from_ref(&piece)).is_ok() {
                break;
            }
            emptied.await;
        }
        self.incoming_filled.notify_one();
    }
}
