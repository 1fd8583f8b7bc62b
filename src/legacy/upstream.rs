//! Reverse proxy to the legacy server (`legacy.upstream`): requests, streams and WebSockets.
//!
//! Bodies are forwarded unbuffered in both directions, so an event reaches the browser without delay,
//! and a connection closed on one side is closed on the other. Routes and backends are not known here.

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
    bodies::{RequestBody, ResponseBody, SendProgress},
    dial::Connector,
    headers::PeerInfo,
};
use super::{LegacyConfig, LegacyError};
use crate::{metrics::Metrics, node::Node};

/// Limit of idle connections in the pool, and for how long each is kept.
const IDLE_CONNECTIONS_MAX: usize = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// URL of the upstream, without a path: `http://host:3000`, `https://host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpstreamUrl {
    https: bool,
    authority: Authority,
}

impl FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = |reason: &str| {
            format!("{reason}: write \"http://host:3000\" or \"https://host\", without a path")
        };
        let uri: Uri = text.parse().map_err(|_| invalid("it is not a URL"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("its scheme is neither http nor https")),
        };
        let authority = uri.authority().cloned().ok_or_else(|| invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it must not contain a user or password"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(invalid("it has a path"));
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

/// Proxy client for the upstream.
#[derive(Debug)]
pub struct Upstream {
    url: UpstreamUrl,
    host: Option<String>,
    timeout: Duration,
    client: Client<Connector, RequestBody>,
    request_slots: Arc<Semaphore>,
    /// This node's name in the `Via` header, to detect loops.
    via_name: String,
    metrics: Arc<Metrics>,
}

/// A response of the upstream.
#[derive(Debug)]
pub struct UpstreamResponse {
    /// The response; its body is forwarded as it arrives.
    pub response: Response<Body>,
    /// Whether it is a `text/event-stream`.
    pub is_stream: bool,
    /// The upgraded connection of a `101 Switching Protocols`.
    pub tunnel: Option<Tunnel>,
}

impl Upstream {
    /// Creates the client; connections are opened by the first request.
    ///
    /// # Errors
    /// When the URL is `https` and the system has no root certificates.
    pub fn new(url: &UpstreamUrl, config: &LegacyConfig, node: &Node) -> Result<Self, LegacyError> {
        let connector = Connector::new(url.https, config.connect_timeout)?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(Self {
            url: url.clone(),
            host: config.host.clone(),
            timeout: config.timeout,
            client,
            request_slots: Arc::new(Semaphore::new(config.requests.min(Semaphore::MAX_PERMITS))),
            via_name: format!("crossfade-{}", node.name().replace(|c: char| !is_token(c), "-")),
            metrics: Arc::clone(node.metrics()),
        })
    }

    /// Forwards a request. An event stream that comes back ends when `stop` is cancelled, so that its
    /// client reconnects elsewhere.
    ///
    /// # Errors
    /// When the upstream does not respond, `legacy.requests` is reached, or the request loops.
    pub async fn forward(
        &self,
        request: Request<Body>,
        peer: &PeerInfo<'_>,
        stop: &CancellationToken,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let result = self.send(request, peer, stop).await;
        let outcome = match &result {
            Ok(upstream) => upstream.response.status().as_str().to_owned(),
            Err(error) => error.as_str().to_owned(),
        };
        self.metrics.legacy.upstream(&outcome);
        result
    }

    async fn send(
        &self,
        mut request: Request<Body>,
        peer: &PeerInfo<'_>,
        stop: &CancellationToken,
    ) -> Result<UpstreamResponse, UpstreamError> {
        if headers::has_via(request.headers(), &self.via_name) {
            return Err(UpstreamError::Loop { url: self.url.to_string() });
        }
        let slot = Arc::clone(&self.request_slots).try_acquire_owned();
        let slot = slot.map_err(|_| UpstreamError::Full)?;
        let client_upgrade =
            headers::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
        let (request, progress) = self.upstream_request(request, peer)?;
        let response = self.response_head(self.client.request(request), &progress).await?;
        let (mut parts, body) = response.into_parts();
        let tunnel = match client_upgrade {
            Some(client) if parts.status == StatusCode::SWITCHING_PROTOCOLS => {
                let upstream = parts.extensions.remove::<OnUpgrade>();
                upstream.map(|upstream| Tunnel::new(client, upstream))
            }
            _ => None,
        };
        let is_stream = is_event_stream(&parts.headers);
        headers::rewrite_response(&mut parts.headers, tunnel.is_some());
        parts.version = Version::HTTP_11;
        let Some(mut tunnel) = tunnel else {
            let stop = is_stream.then(|| stop.clone());
            let body = Body::new(ResponseBody::new(body, stop, slot));
            return Ok(UpstreamResponse {
                response: Response::from_parts(parts, body),
                is_stream,
                tunnel: None,
            });
        };
        tunnel.hold_slot(slot);
        let response = Response::from_parts(parts, Body::empty());
        Ok(UpstreamResponse { response, is_stream: false, tunnel: Some(tunnel) })
    }

    /// The request with the URI and headers for the upstream.
    fn upstream_request(
        &self,
        request: Request<Body>,
        peer: &PeerInfo<'_>,
    ) -> Result<(Request<RequestBody>, SendProgress), UpstreamError> {
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned());
        headers::rewrite_request(&mut parts.headers, authority.as_deref(), peer);
        headers::append_via(&mut parts.headers, &self.via_name);
        if let Some(host) = self.host.as_ref().and_then(|host| host.parse().ok()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(if self.url.https { "https" } else { "http" })
            .authority(self.url.authority.clone())
            .path_and_query(path.unwrap_or_else(|| "/".parse().expect("/ is a valid path")));
        parts.uri = uri.build().map_err(|err| UpstreamError::Broken { reason: err.to_string() })?;
        parts.version = Version::HTTP_11;
        // The extensions describe the client's connection.
        parts.extensions.clear();
        let (body, progress) = RequestBody::new(body);
        Ok((Request::from_parts(parts, body), progress))
    }

    /// Waits for the response head, for up to `timeout` after the last part of the request was sent.
    async fn response_head(
        &self,
        response: impl Future<Output = Result<Response<hyper::body::Incoming>, ClientError>>,
        progress: &SendProgress,
    ) -> Result<Response<hyper::body::Incoming>, UpstreamError> {
        tokio::pin!(response);
        loop {
            let deadline = progress.last_sent() + self.timeout;
            match timeout_at(deadline, &mut response).await {
                Ok(result) => return result.map_err(|err| UpstreamError::of(&self.url, &err)),
                Err(_) if deadline < progress.last_sent() + self.timeout => {}
                Err(_) => return Err(UpstreamError::ResponseTimeout { within: self.timeout }),
            }
        }
    }
}

type ClientError = hyper_util::client::legacy::Error;

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._".contains(c)
}

fn is_event_stream(headers: &header::HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = value.and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Why there is no response of the upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The connection was refused or failed.
    #[error("legacy.upstream {url} is unreachable: {reason}")]
    Unreachable {
        /// The upstream.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// Connecting took longer than `legacy.connect_timeout`.
    #[error("legacy.upstream {url} did not connect within legacy.connect_timeout")]
    ConnectTimeout {
        /// The upstream.
        url: String,
    },
    /// The response head took longer than `legacy.timeout`.
    #[error("legacy.upstream did not respond within legacy.timeout = {within:?}")]
    ResponseTimeout {
        /// `legacy.timeout`.
        within: Duration,
    },
    /// The connection broke, or the response is not valid HTTP.
    #[error("legacy.upstream sent no valid HTTP response: {reason}")]
    Broken {
        /// The innermost cause.
        reason: String,
    },
    /// The request has been forwarded by this node before.
    #[error("legacy.upstream {url} leads back to this gateway: set the legacy server's URL")]
    Loop {
        /// The upstream.
        url: String,
    },
    /// As many requests as `legacy.requests` are in progress.
    #[error("legacy.requests concurrent upstream requests reached: try again later")]
    Full,
}

impl UpstreamError {
    fn of(url: &UpstreamUrl, err: &ClientError) -> Self {
        let first: Option<&(dyn std::error::Error + 'static)> = err.source();
        let causes = std::iter::successors(first, |&err| err.source());
        let is_timeout = |err: &(dyn std::error::Error + 'static)| {
            err.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::TimedOut)
        };
        let reason = causes.clone().last().map_or_else(|| err.to_string(), ToString::to_string);
        match err.is_connect() {
            true if causes.clone().any(is_timeout) => Self::ConnectTimeout { url: url.to_string() },
            true => Self::Unreachable { url: url.to_string(), reason },
            false => Self::Broken { reason },
        }
    }

    /// The value of the label `answer` in `legacy_upstream`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::ConnectTimeout { .. } | Self::ResponseTimeout { .. } => "timeout",
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
    fn an_upstream_url_has_a_scheme_and_a_host_only() {
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
