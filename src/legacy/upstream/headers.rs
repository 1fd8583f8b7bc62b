//! Header rewriting for proxied requests and responses: hop-by-hop headers, `X-Forwarded-*`, `Via`.
//! Pure.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// The peer that a request came from: a client, or a proxy in front of the gateway.
#[derive(Clone, Copy, Debug)]
pub struct PeerInfo<'a> {
    /// IP address of the peer.
    pub ip: IpAddr,
    /// The peer is one of `server.trusted_proxies`, so its forwarding headers are kept.
    pub trusted: bool,
    /// The request came over TLS.
    pub https: bool,
    /// Host that the request was sent to.
    pub host: Option<&'a str>,
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Hop-by-hop headers (RFC 9110, section 7.6.1), in addition to those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The protocol of an upgrade request: the `Upgrade` header, where `Connection` names it.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = items(headers, &header::CONNECTION).any(|i| i.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| named).cloned()
}

/// Rewrites the headers of a client's request for the upstream. `authority` is the host of an HTTP/2
/// request, which has no `Host` header.
pub(super) fn rewrite_request(
    headers: &mut HeaderMap,
    authority: Option<&str>,
    peer: &PeerInfo<'_>,
) {
    let upgrade = upgrade(headers);
    strip_hop_by_hop(headers);
    // The HTTP stack has answered `100-continue` already.
    headers.remove(header::EXPECT);
    join_cookies(headers);
    if let Some(authority) = authority.filter(|_| !headers.contains_key(header::HOST))
        && let Ok(host) = HeaderValue::from_str(authority)
    {
        headers.insert(header::HOST, host);
    }
    set_forwarded(headers, peer);
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Rewrites the headers of the upstream's response for the client.
pub(super) fn rewrite_response(headers: &mut HeaderMap, upgraded: bool) {
    let upgrade = upgrade(headers);
    strip_hop_by_hop(headers);
    if let Some(protocol) = upgrade.filter(|_| upgraded) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Whether `Via` names this node: the request has been forwarded by it before.
pub(super) fn has_via(headers: &HeaderMap, via_name: &str) -> bool {
    items(headers, &header::VIA).any(|item| item.split_whitespace().nth(1) == Some(via_name))
}

/// Appends this node to `Via`.
pub(super) fn append_via(headers: &mut HeaderMap, via_name: &str) {
    if let Ok(via) = HeaderValue::from_str(&format!("1.1 {via_name}")) {
        headers.append(header::VIA, via);
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = items(headers, &header::CONNECTION)
        .filter_map(|item| item.parse::<HeaderName>().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Joins cookies into one header: HTTP/2 may split them, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if 1 < cookies.len()
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// Sets `X-Forwarded-For`, `-Proto` and `-Host`. Forwarding headers of an untrusted peer are discarded.
fn set_forwarded(headers: &mut HeaderMap, peer: &PeerInfo<'_>) {
    let received: Vec<_> = items(headers, &FORWARDED_FOR).map(str::to_owned).collect();
    let mut addresses = if peer.trusted { received } else { Vec::new() };
    addresses.push(peer.ip.to_canonical().to_string());
    if !peer.trusted {
        for name in [FORWARDED_PROTO, FORWARDED_HOST, header::FORWARDED] {
            headers.remove(name);
        }
    }
    if let Ok(addresses) = HeaderValue::from_str(&addresses.join(", ")) {
        headers.insert(FORWARDED_FOR, addresses);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        let scheme = if peer.https { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if let Some(host) = peer.host.filter(|_| !headers.contains_key(FORWARDED_HOST))
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The items of a comma-separated header.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    fn peer(trusted: bool) -> PeerInfo<'static> {
        let ip = "192.0.2.7".parse().unwrap();
        PeerInfo { ip, trusted, https: true, host: Some("example.com") }
    }

    fn rewritten(lines: &[(&'static str, &'static str)], trusted: bool) -> HeaderMap {
        let mut rewritten = HeaderMap::new();
        for (name, value) in &headers(lines) {
            rewritten.append(name, value.clone());
        }
        rewrite_request(&mut rewritten, Some("example.com"), &peer(trusted));
        rewritten
    }

    #[test]
    fn hop_by_hop_headers_are_not_forwarded() {
        let rewritten = rewritten(
            &[
                ("connection", "keep-alive, x-own"),
                ("x-own", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("authorization", "Bearer t"),
                ("last-event-id", "7"),
                ("cookie", "a=1"),
            ],
            false,
        );
        let mut names: Vec<_> = rewritten.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = ["authorization", "cookie", "host", "last-event-id"];
        let added = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, [&kept[..], &added[..]].concat());
    }

    #[test]
    fn forwarding_headers_are_kept_only_from_a_trusted_proxy() {
        let lines = [
            ("x-forwarded-for", "198.51.100.1, 10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=198.51.100.1"),
        ];
        let untrusted = rewritten(&lines, false);
        assert_eq!(untrusted["x-forwarded-for"], "192.0.2.7");
        assert_eq!(untrusted["x-forwarded-proto"], "https");
        assert!(!untrusted.contains_key("forwarded"));
        let trusted = rewritten(&lines, true);
        assert_eq!(trusted["x-forwarded-for"], "198.51.100.1, 10.0.0.1, 192.0.2.7");
        assert_eq!(trusted["x-forwarded-proto"], "http");
        assert_eq!(trusted["x-forwarded-host"], "example.com");
    }

    #[test]
    fn an_upgrade_is_kept_and_cookies_are_joined() {
        let rewritten = rewritten(
            &[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ],
            false,
        );
        assert_eq!(rewritten["connection"], "upgrade");
        assert_eq!(rewritten["upgrade"], "websocket");
        assert_eq!(rewritten.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn a_forwarded_request_is_recognised_by_via() {
        let mut headers = headers(&[("via", "1.1 proxy, 1.0 crossfade-b (x)")]);
        assert!(has_via(&headers, "crossfade-b") && !has_via(&headers, "crossfade-a"));
        append_via(&mut headers, "crossfade-a");
        assert!(has_via(&headers, "crossfade-a"));
    }
}
