//! Publishing over HTTP/1.1, with requests that a server's protocol words.

use std::{
    collections::VecDeque,
    fmt,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};
use memchr::memmem;

use super::{
    Event, Publisher,
    pipe::{self, Pipe},
};

/// Words the requests that publish some events.
pub type Wording = fn(&[Event]) -> Vec<Vec<u8>>;

/// One kept-alive connection.
pub struct HttpPublisher {
    pipe: Pipe,
    wording: Wording,
    /// Whether the server takes a request before it has answered the last.
    pipelines: bool,
    /// Requests that wait for an answer to those before them.
    waiting: VecDeque<Vec<u8>>,
}

impl fmt::Debug for HttpPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPublisher").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

impl HttpPublisher {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr, wording: Wording) -> anyhow::Result<Self> {
        let (pipe, waiting) = (Pipe::connect(address)?, VecDeque::new());
        Ok(Self { pipe, wording, pipelines: false, waiting })
    }

    /// Connects to a server that takes a request before it has answered the last.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn pipelined(address: SocketAddr, wording: Wording) -> anyhow::Result<Self> {
        Ok(Self { pipelines: true, ..Self::connect(address, wording)? })
    }
}

impl Publisher for HttpPublisher {
    fn publish(&mut self, events: &[Event]) -> anyhow::Result<()> {
        let requests = (self.wording)(events);
        if self.pipelines {
            return self.pipe.ask(requests.concat(), requests.len());
        }
        self.waiting = requests.into();
        match self.waiting.pop_front() {
            Some(first) => self.pipe.ask(first, 1),
            None => Ok(()),
        }
    }

    fn is_settled(&mut self) -> anyhow::Result<bool> {
        while self.pipe.is_answered(check)? {
            match self.waiting.pop_front() {
                Some(next) => self.pipe.ask(next, 1)?,
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// The first answer, which has to be a good one.
fn check(bytes: &[u8]) -> anyhow::Result<Option<pipe::Answer>> {
    let Some(answer) = whole(bytes)? else { return Ok(None) };
    let refused = memmem::find(answer.body, b"\"error\"").is_some();
    if !(200..300).contains(&answer.status) || refused {
        let body = String::from_utf8_lossy(answer.body);
        bail!("the server refused an event with {}: {body}", answer.status);
    }
    Ok(Some(pipe::Answer { len: answer.len, ends: answer.ends }))
}

/// Words a `POST` with a body.
pub fn post(target: &str, content_type: &str, more: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n{more}\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[derive(Debug)]
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
    /// Of head and body together.
    len: usize,
    /// Whether it is the last on its connection.
    ends: bool,
}

/// The answer, once all of it is there.
fn whole(bytes: &[u8]) -> anyhow::Result<Option<Answer<'_>>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = str::from_utf8(&bytes[..end]).context("an answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let field = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then_some(value.trim())
        })
    };
    let Some(status) = status else { bail!("an answer has no status:\n{head}") };
    let body = &bytes[end + 4..];
    let len = match (field("content-length"), field("transfer-encoding")) {
        (Some(len), _) => len.parse().context("an answer's length is no number")?,
        // The chunks are not put together: nothing is looked for in them but a word.
        (None, Some(_)) => match memmem::find(body, b"0\r\n\r\n") {
            Some(end) => end + 5,
            None => return Ok(None),
        },
        (None, None) => 0,
    };
    let ends = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let answer = || Answer { status, body: &body[..len], len: end + 4 + len, ends };
    Ok((len <= body.len()).then(answer))
}

/// Asks once, on a connection of its own, and gives the status and what there is of the body.
///
/// # Errors
/// When nobody answers.
pub fn ask(address: SocketAddr, request: &str) -> anyhow::Result<(u16, String)> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("no whole answer came")?;
    let answer = whole(&bytes)?.context("no whole answer came")?;
    Ok((answer.status, String::from_utf8_lossy(answer.body).into_owned()))
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
    str::from_utf8(&line[9..])?.parse().context("the answer is not HTTP")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let plain = &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"[..];
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        for bytes in [plain, chunked] {
            for cut in 0..bytes.len() {
                assert!(whole(&bytes[..cut]).unwrap().is_none());
            }
            let next = [bytes, b"HTTP/1.1 "].concat();
            let answer = whole(&next).unwrap().unwrap();
            assert_eq!((answer.status, answer.len, answer.ends), (200, bytes.len(), false));
        }
        let last = whole(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
        assert!(last.is_some_and(|answer| answer.ends));
    }
}
