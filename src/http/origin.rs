//! Which pages may speak to the gateway: origins, and the CORS headers that tell a browser so.
//!
//! Only browsers send `Origin`; a request without one is nobody's page and goes through. Cookies
//! are never asked for, so an answer needs no `Access-Control-Allow-Credentials`.

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

/// An origin that may be served: `https://example.com`, `https://*.example.com`, `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OriginRule {
    /// Every origin.
    Any,
    /// This one.
    Exact(Origin),
    /// Those whose host ends with a dot and this one's.
    Below(Origin),
}

impl OriginRule {
    fn allows(&self, origin: Option<&Origin>) -> bool {
        match (self, origin) {
            (Self::Any, _) => true,
            (_, None) => false,
            (Self::Exact(one), Some(origin)) => one == origin,
            (Self::Below(top), Some(origin)) => {
                let below = origin.host.strip_suffix(&top.host);
                (&top.scheme, top.port) == (&origin.scheme, origin.port)
                    && below.is_some_and(|below| below.ends_with('.'))
            }
        }
    }
}

impl FromStr for OriginRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once("://*.") {
            _ if text == "*" => Some(Self::Any),
            Some((scheme, top)) => Origin::parse(&format!("{scheme}://{top}")).map(Self::Below),
            None => Origin::parse(text).map(Self::Exact),
        };
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is no origin: write \"https://example.com\" without a path, \
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
            OriginRule::Below(top) => top.to_string().replacen("://", "://*.", 1),
        }
    }
}

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// None for what is no origin, such as `null`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if scheme.is_empty() || !scheme.chars().all(word) {
            return None;
        }
        let (host, port) = host_and_port(authority, &scheme)?;
        Some(Self { scheme, host, port })
    }

    /// Whether a page of it is served from the address that the request went to.
    fn is_at(&self, authority: &str) -> bool {
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
            Some(port) if self.port != standard_port(&self.scheme) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

fn standard_port(scheme: &str) -> Option<u16> {
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
        None => (authority, standard_port(scheme)),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    let whole = !host.is_empty() && host.chars().all(word);
    whole.then(|| (host.to_ascii_lowercase(), port))
}

/// Whether a page of this origin may speak to the gateway.
fn allowed(server: &ServerConfig, origin: &HeaderValue, authority: Option<&str>) -> bool {
    let origin = origin.to_str().ok().and_then(Origin::parse);
    if server.allowed_origins.iter().any(|rule| rule.allows(origin.as_ref())) {
        return true;
    }
    let Some(origin) = origin else { return false };
    // A development server on another port; who lists origins means those.
    let at_home = server.allowed_origins.is_empty()
        && server.listen.ip().is_loopback()
        && origin.is_loopback();
    at_home || authority.is_some_and(|authority| origin.is_at(authority))
}

/// The origin of a request that may be served.
#[derive(Clone, Debug)]
pub(super) struct Allowed(HeaderValue);

impl Allowed {
    /// For an answer that does not go through the HTTP stack.
    pub(super) fn head_lines(&self) -> String {
        let origin = self.0.to_str().unwrap_or_default();
        format!("access-control-allow-origin: {origin}\r\nvary: origin\r\n")
    }
}

/// Refuses pages that may not speak to the gateway, and tells browsers which may.
pub(super) async fn guard(
    State(app): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if app.is_a_developers() && !names_this_machine(authority(request.uri(), request.headers())) {
        app.admission.count(Reason::Origin);
        let message = "this developer's gateway answers to localhost only: a page elsewhere may have \
                       its name lead here; set auth.environment, or server.allowed_origins";
        return vary(ApiError::new(ErrorCode::OriginForbidden, message).into_response());
    }
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return vary(next.run(request).await);
    };
    if !allowed(&app.server, &origin, authority(request.uri(), request.headers())) {
        app.admission.count(Reason::Origin);
        let message = format!("pages of {origin:?} are not in server.allowed_origins");
        return vary(ApiError::new(ErrorCode::OriginForbidden, message).into_response());
    }
    let preflight = *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        permission()
    } else {
        request.extensions_mut().insert(Allowed(origin.clone()));
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    let readable = HeaderValue::from_static("retry-after");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, readable);
    vary(response)
}

impl AppState {
    /// Whether everybody on this machine may do everything.
    fn is_a_developers(&self) -> bool {
        let open = self.connections.auth.allows_scope(&Identity::default(), Scope::Admin);
        open && self.server.listen.ip().is_loopback() && self.server.allowed_origins.is_empty()
    }
}

fn names_this_machine(authority: Option<&str>) -> bool {
    let Some((host, port)) = authority.and_then(|authority| host_and_port(authority, "http"))
    else {
        return false;
    };
    Origin { scheme: "http".to_owned(), host, port }.is_loopback()
}

/// What a page may send.
fn permission() -> Response {
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

/// A cache must not show one page's answer to another.
fn vary(mut response: Response) -> Response {
    response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
    response
}

fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(axum::http::uri::Authority::as_str).or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(rules: &[&str], listen: &str, origin: &str, host: &str) -> bool {
        let server = ServerConfig {
            listen: listen.parse().unwrap(),
            allowed_origins: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..ServerConfig::default()
        };
        allowed(&server, &HeaderValue::from_str(origin).unwrap(), Some(host))
    }

    const PUBLIC: &str = "0.0.0.0:8080";

    #[test]
    fn a_page_of_the_gateways_own_address_is_always_served() {
        assert!(may(&[], PUBLIC, "https://example.com", "example.com"));
        assert!(may(&[], PUBLIC, "https://EXAMPLE.com", "example.com:443"));
        assert!(may(&[], PUBLIC, "http://[::1]:8080", "[::1]:8080"));
        assert!(may(&["https://a.com"], PUBLIC, "http://b.com:8080", "b.com:8080"));
        assert!(!may(&[], PUBLIC, "https://example.com:8443", "example.com"));
        assert!(!may(&[], PUBLIC, "https://evil.com", "example.com"));
        assert!(!may(&[], PUBLIC, "null", "example.com"));
    }

    #[test]
    fn a_listed_origin_is_served_and_one_that_looks_like_it_is_not() {
        let rules = ["https://a.com", "https://*.example.com", "http://c.com:3000", "app://x"];
        let may = |origin| may(&rules, PUBLIC, origin, "gateway");
        for origin in [
            "https://a.com",
            "https://a.com:443",
            "https://b.example.com",
            "https://b.c.example.com",
            "http://c.com:3000",
            "app://x",
        ] {
            assert!(may(origin), "{origin}");
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
            assert!(!may(origin), "{origin}");
        }
    }

    #[test]
    fn a_star_is_for_everybody_even_for_a_page_without_an_origin() {
        assert!(may(&["*"], PUBLIC, "https://evil.com", "gateway"));
        assert!(may(&["*"], PUBLIC, "null", "gateway"));
    }

    #[test]
    fn a_development_server_is_served_where_nobody_else_can_reach_the_gateway() {
        for origin in ["http://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:1"] {
            assert!(may(&[], "127.0.0.1:8080", origin, "localhost:8080"), "{origin}");
            assert!(!may(&[], PUBLIC, origin, "localhost:8080"), "{origin}");
            assert!(!may(&["https://a.com"], "127.0.0.1:8080", origin, "x"), "{origin}");
        }
        assert!(!may(&[], "127.0.0.1:8080", "http://evil.com", "localhost:8080"));
        assert!(!may(&[], "127.0.0.1:8080", "http://localhost.evil.com", "localhost:8080"));
    }

    #[test]
    fn a_rule_that_is_no_origin_is_refused_and_the_others_are_written_back() {
        for rule in ["example.com", "https://a.com/", "https://", "https://a.*.com", "https://a b"]
        {
            assert!(rule.parse::<OriginRule>().is_err(), "{rule}");
        }
        for rule in ["*", "https://a.com", "https://*.a.com:8443", "http://[::1]:3000"] {
            assert_eq!(String::from(rule.parse::<OriginRule>().unwrap()), rule);
        }
    }
}
