//! Publishing without waiting, so that the thread that reads every subscriber can publish as well.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use memchr::memmem;

/// What is published.
#[derive(Clone, Debug)]
pub struct Event {
    /// Where.
    pub channel: String,
    /// A JSON value.
    pub data: String,
}

/// Something that publishes.
pub trait Publisher {
    /// Publishes events in one call. Only when the last call [is settled](Self::is_settled).
    ///
    /// # Errors
    /// When the server is gone.
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()>;

    /// Whether the last call was answered.
    ///
    /// # Errors
    /// When the server refused it.
    fn is_settled(&mut self) -> anyhow::Result<bool>;
}

/// `POST /api/publish` and `/api/publish/batch` on one connection.
#[derive(Debug)]
pub struct HttpPublisher {
    address: SocketAddr,
    stream: TcpStream,
    out: Vec<u8>,
    answer: Vec<u8>,
    waits: bool,
}

impl HttpPublisher {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = open(address)?;
        Ok(Self { address, stream, out: Vec::new(), answer: Vec::new(), waits: false })
    }

    /// Connects anew if the server closed a connection that nothing was said on for a while, as it
    /// may.
    fn renew(&mut self) -> anyhow::Result<()> {
        if !matches!(self.stream.peek(&mut [0]), Err(err) if err.kind() == io::ErrorKind::WouldBlock)
        {
            self.stream = open(self.address)?;
        }
        Ok(())
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

impl Publisher for HttpPublisher {
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()> {
        self.renew()?;
        let (path, body) = match events {
            [event] => ("/api/publish", json(event)),
            many => {
                let list: Vec<String> = many.iter().map(json).collect();
                ("/api/publish/batch", format!(r#"{{"events":[{}]}}"#, list.join(",")))
            }
        };
        self.out = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes();
        self.waits = true;
        self.flush()?;
        Ok(())
    }

    fn is_settled(&mut self) -> anyhow::Result<bool> {
        if !self.waits {
            return Ok(true);
        }
        if !self.flush()? {
            return Ok(false);
        }
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => bail!("the publisher's connection was closed"),
            Ok(len) => self.answer.extend_from_slice(&buffer[..len]),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(err) => return Err(err).context("the publisher's connection broke"),
        }
        let Some(answer) = whole(&self.answer)? else { return Ok(false) };
        if !(200..300).contains(&answer.status) || memmem::find(answer.body, b"\"error\"").is_some()
        {
            bail!("the server refused an event: {}", String::from_utf8_lossy(answer.body));
        }
        self.answer.clear();
        self.waits = false;
        Ok(true)
    }
}

fn open(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("nobody takes what is published")?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn json(Event { channel, data }: &Event) -> String {
    format!(r#"{{"channel":"{channel}","data":{data}}}"#)
}

#[derive(Debug)]
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
}

/// The answer, once all of it is there.
fn whole(bytes: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("an answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let len = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let (Some(status), Some(len)) = (status, len) else {
        bail!("an answer has no length:\n{head}")
    };
    let body = &bytes[end + 4..];
    Ok((len <= body.len()).then(|| Answer { status, body: &body[..len] }))
}

/// The status of one `GET`.
///
/// # Errors
/// When nobody answers.
pub fn get_status(address: SocketAddr, path: &str) -> anyhow::Result<u16> {
    let timeout = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    std::str::from_utf8(&line[9..])?.parse().context("the answer is not HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        for cut in 0..bytes.len() {
            assert!(whole(&bytes[..cut]).unwrap().is_none());
        }
        let answer = whole(bytes).unwrap().unwrap();
        assert_eq!((answer.status, answer.body), (200, &b"{}"[..]));
    }
}
