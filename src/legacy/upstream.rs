//! Passing a request on to the old server, and its answer back, as they come.
//!
//! Nothing is gathered in either direction, so an event of a stream is with the browser at once. What
//! is dropped on one side is dropped on the other. It knows nothing of routes and sides.

mod bodies;
mod dial;
pub mod headers;

use std::{error::Error as _, fmt, io, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode, Uri, Version, header, uri::Authority},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::timeout_at};
use tokio_util::sync::CancellationToken;

pub use self::bodies::Tunnel;
use self::{
    bodies::{Passing, Sending, Watch},
    dial::Dial,
    headers::Sender,
};
use super::{LegacyConfig, LegacyError};
use crate::{metrics::Metrics, node::Node};

/// Connections to the old server that may rest, and for how long.
const RESTING: usize = 256;
const REST: Duration = Duration::from_secs(60);

/// Where the old server is: `http://host:3000`, `https://host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamUrl {
    https: bool,
    authority: Authority,
}

impl FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("{why}: write \"http://host:3000\" or \"https://host\", without a path")
        };
        let uri: Uri = text.parse().map_err(|_| wrong("it is no address"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("it begins with neither http:// nor https://")),
        };
        let authority = uri.authority().cloned().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user or password cannot be in it"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(wrong("it has a path"));
        }
        Ok(Self { https, authority })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http{}://{}", if self.https { "s" } else { "" }, self.authority)
    }
}

impl TryFrom<String> for UpstreamUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<UpstreamUrl> for String {
    fn from(url: UpstreamUrl) -> Self {
        url.to_string()
    }
}

/// The old server.
#[derive(Debug)]
pub struct Upstream {
    url: UpstreamUrl,
    host: Option<String>,
    timeout: Duration,
    client: Client<Dial, Sending>,
    places: Arc<Semaphore>,
    /// How this node signs what it passed on.
    signature: String,
    metrics: Arc<Metrics>,
}

/// What the old server answered.
#[derive(Debug)]
pub struct Answer {
    /// Its answer; the body comes as it comes.
    pub response: Response<Body>,
    /// It is a stream of events, which lasts.
    pub stream: bool,
    /// The connection is another protocol's from here on.
    pub tunnel: Option<Tunnel>,
}

impl Upstream {
    /// Connects when it is asked something.
    ///
    /// # Errors
    /// When there is nothing to check its certificate with.
    pub fn new(url: &UpstreamUrl, config: &LegacyConfig, node: &Node) -> Result<Self, LegacyError> {
        let dial = Dial::new(url.https, config.connect_timeout)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(REST)
            .pool_max_idle_per_host(RESTING)
            .build(dial);
        Ok(Self {
            url: url.clone(),
            host: config.host.clone(),
            timeout: config.timeout,
            client,
            places: Arc::new(Semaphore::new(config.requests.min(Semaphore::MAX_PERMITS))),
            signature: format!("crossfade-{}", node.name().replace(|c: char| !word(c), "-")),
            metrics: Arc::clone(node.metrics()),
        })
    }

    /// Passes a request on. A stream that comes back ends when `stop` is cancelled, so that its
    /// client comes back to another node.
    ///
    /// # Errors
    /// When there is no answer, or none may be asked for.
    pub async fn pass(
        &self,
        request: Request<Body>,
        sender: &Sender<'_>,
        stop: &CancellationToken,
    ) -> Result<Answer, UpstreamError> {
        let answered = self.ask(request, sender, stop).await;
        let outcome = match &answered {
            Ok(answer) => answer.response.status().as_str().to_owned(),
            Err(error) => error.as_str().to_owned(),
        };
        self.metrics.legacy.upstream(&outcome);
        answered
    }

    async fn ask(
        &self,
        mut request: Request<Body>,
        sender: &Sender<'_>,
        stop: &CancellationToken,
    ) -> Result<Answer, UpstreamError> {
        if headers::signed(request.headers(), &self.signature) {
            return Err(UpstreamError::Loop { url: self.url.to_string() });
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| UpstreamError::Full)?;
        let ours = headers::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
        let (request, watch) = self.addressed(request, sender)?;
        let response = self.in_time(self.client.request(request), &watch).await?;
        let (mut parts, body) = response.into_parts();
        let tunnel = match ours {
            Some(ours) if parts.status == StatusCode::SWITCHING_PROTOCOLS => {
                let theirs = parts.extensions.remove::<OnUpgrade>();
                theirs.map(|theirs| Tunnel::new(ours, theirs))
            }
            _ => None,
        };
        let stream = is_stream(&parts.headers);
        headers::tidy_answer(&mut parts.headers, tunnel.is_some());
        parts.version = Version::HTTP_11;
        let Some(mut tunnel) = tunnel else {
            let ends = stream.then(|| stop.clone());
            let body = Body::new(Passing::new(body, ends, place));
            return Ok(Answer {
                response: Response::from_parts(parts, body),
                stream,
                tunnel: None,
            });
        };
        tunnel.hold(place);
        let response = Response::from_parts(parts, Body::empty());
        Ok(Answer { response, stream: false, tunnel: Some(tunnel) })
    }

    /// The request as the old server is to see it.
    fn addressed(
        &self,
        request: Request<Body>,
        sender: &Sender<'_>,
    ) -> Result<(Request<Sending>, Watch), UpstreamError> {
        let (mut parts, body) = request.into_parts();
        let asked = parts.uri.authority().map(|authority| authority.as_str().to_owned());
        headers::tidy_request(&mut parts.headers, asked.as_deref(), sender);
        headers::sign(&mut parts.headers, &self.signature);
        if let Some(host) = self.host.as_ref().and_then(|host| host.parse().ok()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(if self.url.https { "https" } else { "http" })
            .authority(self.url.authority.clone())
            .path_and_query(path.unwrap_or_else(|| "/".parse().expect("a slash is a path")));
        parts.uri = uri.build().map_err(|err| UpstreamError::Broken { reason: err.to_string() })?;
        parts.version = Version::HTTP_11;
        // What the stack put there is about the other connection.
        parts.extensions.clear();
        let (body, watch) = Sending::new(body);
        Ok((Request::from_parts(parts, body), watch))
    }

    /// The answer's head, `timeout` after the last of the request went out at the latest.
    async fn in_time(
        &self,
        answer: impl Future<Output = Result<Response<hyper::body::Incoming>, Failed>>,
        watch: &Watch,
    ) -> Result<Response<hyper::body::Incoming>, UpstreamError> {
        tokio::pin!(answer);
        loop {
            let deadline = watch.last() + self.timeout;
            match timeout_at(deadline, &mut answer).await {
                Ok(answered) => return answered.map_err(|err| UpstreamError::of(&self.url, &err)),
                Err(_) if deadline < watch.last() + self.timeout => {}
                Err(_) => return Err(UpstreamError::Silent { within: self.timeout }),
            }
        }
    }
}

type Failed = hyper_util::client::legacy::Error;

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._".contains(c)
}

fn is_stream(headers: &header::HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Why the old server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It takes no connection.
    #[error("legacy.upstream {url} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// No connection in time.
    #[error("legacy.upstream {url} took no connection within legacy.connect_timeout")]
    Slow {
        /// Where.
        url: String,
    },
    /// A connection, but no answer in time.
    #[error("legacy.upstream did not answer within legacy.timeout = {within:?}")]
    Silent {
        /// How long it was waited for.
        within: Duration,
    },
    /// It broke off, or its answer is none.
    #[error("legacy.upstream did not answer as a web server would: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// It leads back here.
    #[error("legacy.upstream {url} leads back to this gateway: name the old server")]
    Loop {
        /// Where.
        url: String,
    },
    /// As many as may be are with it.
    #[error("as many requests as legacy.requests allows are with the old server")]
    Full,
}

impl UpstreamError {
    fn of(url: &UpstreamUrl, err: &Failed) -> Self {
        let first: Option<&(dyn std::error::Error + 'static)> = err.source();
        let causes = std::iter::successors(first, |&err| err.source());
        let late = |err: &(dyn std::error::Error + 'static)| {
            err.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::TimedOut)
        };
        let reason = causes.clone().last().map_or_else(|| err.to_string(), ToString::to_string);
        match err.is_connect() {
            true if causes.clone().any(late) => Self::Slow { url: url.to_string() },
            true => Self::Unreachable { url: url.to_string(), reason },
            false => Self::Broken { reason },
        }
    }

    /// As metrics call it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Slow { .. } | Self::Silent { .. } => "timeout",
            Self::Broken { .. } => "broken",
            Self::Loop { .. } => "loop",
            Self::Full => "full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host_and_nothing_else() {
        for url in ["http://127.0.0.1:3000", "https://old.example.com", "http://[::1]:80"] {
            assert_eq!(url.parse::<UpstreamUrl>().unwrap().to_string(), url);
        }
        assert_eq!("http://a/".parse::<UpstreamUrl>().unwrap().to_string(), "http://a");
        for url in ["a:1", "ftp://a", "http://a/b", "http://u:p@a", "http://", "http://a?b", "a b"]
        {
            let error = url.parse::<UpstreamUrl>().unwrap_err();
            assert!(error.contains("http://host:3000") && !error.contains("u:p"), "{error}");
        }
    }
}
