//! A connection that requests are written to and answers come back on, neither of which waits.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, bail};

/// One connection.
#[derive(Debug)]
pub struct Pipe {
    address: SocketAddr,
    stream: TcpStream,
    out: Vec<u8>,
    answers: Vec<u8>,
    /// Answers that are still to come.
    awaited: usize,
    /// The server will close it.
    ends: bool,
}

/// One whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its bytes.
    pub len: usize,
    /// Whether the server closes the connection behind it.
    pub ends: bool,
}

impl Pipe {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let (out, answers) = (Vec::new(), Vec::new());
        Ok(Self { address, stream: open(address)?, out, answers, awaited: 0, ends: false })
    }

    /// Writes requests for which so many answers will come. Only when nothing is awaited.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn ask(&mut self, requests: Vec<u8>, answers: usize) -> anyhow::Result<()> {
        // A server may close a connection when it has answered, or nothing was said for a while.
        let peeked = self.stream.peek(&mut [0]);
        if self.ends || !matches!(peeked, Err(err) if err.kind() == io::ErrorKind::WouldBlock) {
            self.stream = open(self.address)?;
            self.ends = false;
        }
        self.out = requests;
        self.awaited = answers;
        self.flush().map(drop)
    }

    /// Whether all answers have come. `take` is given what has come and tells of the first
    /// whole answer, if there is one.
    ///
    /// # Errors
    /// When the connection broke, or `take` does not like the answer.
    pub fn is_answered(
        &mut self,
        take: impl Fn(&[u8]) -> anyhow::Result<Option<Answer>>,
    ) -> anyhow::Result<bool> {
        if self.awaited == 0 {
            return Ok(true);
        }
        if !self.flush()? {
            return Ok(false);
        }
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the publisher's connection was closed"),
            Ok(len) => self.answers.extend_from_slice(&buffer[..len]),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) => return Err(err).context("the publisher's connection broke"),
        }
        while self.awaited != 0
            && let Some(Answer { len, ends }) = take(&self.answers)?
        {
            self.ends = ends;
            self.answers.drain(..len);
            self.awaited -= 1;
        }
        Ok(self.awaited == 0)
    }

    /// Writes what is left; whether all of it is out.
    fn flush(&mut self) -> anyhow::Result<bool> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(err) => return Err(err).context("the publisher's connection broke"),
            }
        }
        Ok(true)
    }
}

fn open(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("nobody takes what is published")?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}
