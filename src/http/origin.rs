//! Origin check and CORS: which web pages may use the gateway (`server.allowed_origins`).
//!
//! Only browsers send `Origin`; a request without one is not from a page and passes. The API uses no
//! cookies, so responses need no `Access-Control-Allow-Credentials`.

use std::{fmt, net::IpAddr, str::FromStr};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{AppState, ServerConfig, admission::Reason, error::ApiError};
use crate::{
    auth::{Identity, Scope},
    protocol::ErrorCode,
};

/// An entry of `server.allowed_origins`: `https://example.com`, `https://*.example.com` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OriginRule {
    /// Every origin.
    Any,
    /// One origin.
    Exact(Origin),
    /// All subdomains of this origin's host, at any depth; not the host itself.
    Subdomains(Origin),
}

impl OriginRule {
    fn allows(&self, origin: Option<&Origin>) -> bool {
        match (self, origin) {
            (Self::Any, _) => true,
            (_, None) => false,
            (Self::Exact(allowed), Some(origin)) => allowed == origin,
            (Self::Subdomains(parent), Some(origin)) => {
                let prefix = origin.host.strip_suffix(&parent.host);
                (&parent.scheme, parent.port) == (&origin.scheme, origin.port)
                    && prefix.is_some_and(|prefix| prefix.ends_with('.'))
            }
        }
    }
}

impl FromStr for OriginRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once("://*.") {
            _ if text == "*" => Some(Self::Any),
            Some((scheme, parent)) => {
                Origin::parse(&format!("{scheme}://{parent}")).map(Self::Subdomains)
            }
            None => Origin::parse(text).map(Self::Exact),
        };
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is not an origin: write \"https://example.com\" without a path, \
                 \"https://*.example.com\" or \"*\""
            )
        })
    }
}

impl TryFrom<String> for OriginRule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OriginRule> for String {
    fn from(rule: OriginRule) -> Self {
        match rule {
            OriginRule::Any => "*".to_owned(),
            OriginRule::Exact(origin) => origin.to_string(),
            OriginRule::Subdomains(parent) => parent.to_string().replacen("://", "://*.", 1),
        }
    }
}

/// A web origin: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// None for invalid text and for the opaque origin `null`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let valid = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if scheme.is_empty() || !scheme.chars().all(valid) {
            return None;
        }
        let (host, port) = host_and_port(authority, &scheme)?;
        Some(Self { scheme, host, port })
    }

    /// Whether it is the origin of the gateway itself, as addressed by the request.
    fn is_same_as(&self, authority: &str) -> bool {
        host_and_port(authority, &self.scheme)
            .is_some_and(|(host, port)| (host, port) == (self.host.clone(), self.port))
    }

    fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        match self.port {
            Some(port) if self.port != default_port(&self.scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// The port of an origin without one.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn host_and_port(authority: &str, scheme: &str) -> Option<(String, Option<u16>)> {
    let end = authority.find(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[end..].split_once(':') {
        Some((rest, port)) => {
            (&authority[..end + rest.len()], Some(port.parse::<u16>().ok().filter(|p| *p != 0)?))
        }
        None => (authority, default_port(scheme)),
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    let is_host = !host.is_empty() && host.chars().all(valid);
    is_host.then(|| (host.to_ascii_lowercase(), port))
}

/// Whether pages of this origin may use the gateway at `authority`.
fn is_allowed(server: &ServerConfig, origin: &HeaderValue, authority: Option<&str>) -> bool {
    let origin = origin.to_str().ok().and_then(Origin::parse);
    if server.allowed_origins.iter().any(|rule| rule.allows(origin.as_ref())) {
        return true;
    }
    let Some(origin) = origin else { return false };
    // A development server on another port of this machine.
    let local_development = server.allowed_origins.is_empty()
        && server.listen.ip().is_loopback()
        && origin.is_loopback();
    local_development || authority.is_some_and(|authority| origin.is_same_as(authority))
}

/// Request extension: the origin of the page, which passed the check.
#[derive(Clone, Debug)]
pub(super) struct AllowedOrigin(HeaderValue);

impl AllowedOrigin {
    /// The CORS headers of a response that bypasses the HTTP stack.
    pub(super) fn head_lines(&self) -> String {
        let origin = self.0.to_str().unwrap_or_default();
        format!("access-control-allow-origin: {origin}\r\nvary: origin\r\n")
    }
}

/// Middleware: refuses pages of other origins, answers preflight requests and adds CORS headers.
pub(super) async fn check_origin(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if app.is_local_development() && !is_loopback_host(authority(request.uri(), request.headers()))
    {
        app.admission.count_refused(Reason::Origin);
        // A page elsewhere could resolve its own host name to this machine (DNS rebinding).
        let message = "in development the gateway serves requests to localhost only: \
                       set auth.environment or server.allowed_origins";
        return vary(ApiError::new(ErrorCode::OriginForbidden, message).into_response());
    }
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return vary(next.run(request).await);
    };
    if !is_allowed(&app.server, &origin, authority(request.uri(), request.headers())) {
        app.admission.count_refused(Reason::Origin);
        let message = format!("the origin {origin:?} is not in server.allowed_origins");
        return vary(ApiError::new(ErrorCode::OriginForbidden, message).into_response());
    }
    let preflight = *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        preflight_response()
    } else {
        request.extensions_mut().insert(AllowedOrigin(origin.clone()));
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let exposed = HeaderValue::from_static("retry-after");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    vary(response)
}

impl AppState {
    /// Whether the gateway allows anonymous administration and listens on this machine only.
    fn is_local_development(&self) -> bool {
        let anonymous_admin = self.connections.auth.operates(&Identity::default(), Scope::Admin);
        anonymous_admin
            && self.server.listen.ip().is_loopback()
            && self.server.allowed_origins.is_empty()
    }
}

fn is_loopback_host(authority: Option<&str>) -> bool {
    let Some((host, port)) = authority.and_then(|authority| host_and_port(authority, "http"))
    else {
        return false;
    };
    Origin { scheme: "http".to_owned(), host, port }.is_loopback()
}

/// The methods and headers that a page may send.
fn preflight_response() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, cache-control, content-type, last-event-id",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "7200"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Adds `Vary: Origin`, as a cache must not serve the response for one origin to another.
fn vary(mut response: Response) -> Response {
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    response
}

/// The host and port that the request was sent to.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(axum::http::uri::Authority::as_str).or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(rules: &[&str], listen: &str, origin: &str, host: &str) -> bool {
        let server = ServerConfig {
            listen: listen.parse().unwrap(),
            allowed_origins: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..ServerConfig::default()
        };
        is_allowed(&server, &HeaderValue::from_str(origin).unwrap(), Some(host))
    }

    const PUBLIC: &str = "0.0.0.0:8080";

    #[test]
    fn the_gateways_own_origin_is_always_allowed() {
        assert!(allows(&[], PUBLIC, "https://example.com", "example.com"));
        assert!(allows(&[], PUBLIC, "https://EXAMPLE.com", "example.com:443"));
        assert!(allows(&[], PUBLIC, "http://[::1]:8080", "[::1]:8080"));
        assert!(allows(&["https://a.com"], PUBLIC, "http://b.com:8080", "b.com:8080"));
        assert!(!allows(&[], PUBLIC, "https://example.com:8443", "example.com"));
        assert!(!allows(&[], PUBLIC, "https://evil.com", "example.com"));
        assert!(!allows(&[], PUBLIC, "null", "example.com"));
    }

    #[test]
    fn a_listed_origin_is_allowed_and_a_lookalike_is_not() {
        let rules = ["https://a.com", "https://*.example.com", "http://c.com:3000", "app://x"];
        let allows = |origin| allows(&rules, PUBLIC, origin, "gateway");
        for origin in [
            "https://a.com",
            "https://a.com:443",
            "https://b.example.com",
            "https://b.c.example.com",
            "http://c.com:3000",
            "app://x",
        ] {
            assert!(allows(origin), "{origin}");
        }
        for origin in [
            "http://a.com",
            "https://a.com:444",
            "https://a.com.evil.com",
            "https://evila.com",
            "https://example.com",
            "https://evilexample.com",
            "https://b.example.com.evil.com",
            "https://evil.com/.example.com",
            "https://evil.com?.example.com",
            "https://evil.com@b.example.com",
            "http://b.example.com",
            "http://c.com",
            "null",
            "",
        ] {
            assert!(!allows(origin), "{origin}");
        }
    }

    #[test]
    fn a_star_allows_every_origin_and_null() {
        assert!(allows(&["*"], PUBLIC, "https://evil.com", "gateway"));
        assert!(allows(&["*"], PUBLIC, "null", "gateway"));
    }

    #[test]
    fn localhost_is_allowed_while_the_gateway_listens_on_loopback_without_a_list() {
        for origin in ["http://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:1"] {
            assert!(allows(&[], "127.0.0.1:8080", origin, "localhost:8080"), "{origin}");
            assert!(!allows(&[], PUBLIC, origin, "localhost:8080"), "{origin}");
            assert!(!allows(&["https://a.com"], "127.0.0.1:8080", origin, "x"), "{origin}");
        }
        assert!(!allows(&[], "127.0.0.1:8080", "http://evil.com", "localhost:8080"));
        assert!(!allows(&[], "127.0.0.1:8080", "http://localhost.evil.com", "localhost:8080"));
    }

    #[test]
    fn an_invalid_rule_is_rejected_and_a_valid_one_round_trips() {
        for rule in ["example.com", "https://a.com/", "https://", "https://a.*.com", "https://a b"]
        {
            assert!(rule.parse::<OriginRule>().is_err(), "{rule}");
        }
        for rule in ["*", "https://a.com", "https://*.a.com:8443", "http://[::1]:3000"] {
            assert_eq!(String::from(rule.parse::<OriginRule>().unwrap()), rule);
        }
    }
}
