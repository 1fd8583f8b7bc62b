//! The headers of what is passed on: what is only between two neighbours stays between them, and the
//! old server is told for whom it is asked. Pure.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Who sent a request, as the gateway saw it.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// The peer's address.
    pub ip: IpAddr,
    /// What the peer says about those it asks for can be believed.
    pub trusted: bool,
    /// It came over TLS.
    pub https: bool,
    /// Which host it asked for.
    pub host: Option<&'a str>,
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Those that concern one connection (RFC 9110, 7.6.1), besides those that `Connection` names.
const HOPS: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the connection is to become, where both headers say so.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = items(headers, &header::CONNECTION).any(|i| i.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Makes a client's request one to the old server. `asked` is the host of an HTTP/2 request.
pub(super) fn tidy_request(headers: &mut HeaderMap, asked: Option<&str>, sender: &Sender<'_>) {
    let upgrade = upgrade(headers);
    strip_hops(headers);
    // The stack has answered it already.
    headers.remove(header::EXPECT);
    join_cookies(headers);
    if let Some(asked) = asked.filter(|_| !headers.contains_key(header::HOST))
        && let Ok(host) = HeaderValue::from_str(asked)
    {
        headers.insert(header::HOST, host);
    }
    tell_for_whom(headers, sender);
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Makes the old server's answer one to the client.
pub(super) fn tidy_answer(headers: &mut HeaderMap, upgraded: bool) {
    let upgrade = upgrade(headers);
    strip_hops(headers);
    if let Some(protocol) = upgrade.filter(|_| upgraded) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Whether this node passed a request on before.
pub(super) fn signed(headers: &HeaderMap, signature: &str) -> bool {
    items(headers, &header::VIA).any(|item| item.split_whitespace().nth(1) == Some(signature))
}

/// Says that this node passed it on.
pub(super) fn sign(headers: &mut HeaderMap, signature: &str) {
    if let Ok(via) = HeaderValue::from_str(&format!("1.1 {signature}")) {
        headers.append(header::VIA, via);
    }
}

fn strip_hops(headers: &mut HeaderMap) {
    let named: Vec<_> = items(headers, &header::CONNECTION)
        .filter_map(|item| item.parse::<HeaderName>().ok())
        .collect();
    for name in named.iter().chain(&HOPS) {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies into several headers, HTTP/1.1 may not.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if 1 < crumbs.len()
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, whole);
    }
}

/// What a peer that is no trusted proxy says of others is not handed on.
fn tell_for_whom(headers: &mut HeaderMap, sender: &Sender<'_>) {
    let before: Vec<_> = items(headers, &FORWARDED_FOR).map(str::to_owned).collect();
    let mut hops = if sender.trusted { before } else { Vec::new() };
    hops.push(sender.ip.to_canonical().to_string());
    if !sender.trusted {
        for name in [FORWARDED_PROTO, FORWARDED_HOST, header::FORWARDED] {
            headers.remove(name);
        }
    }
    let mut tell = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    tell(FORWARDED_FOR, &hops.join(", "));
    let said = |headers: &HeaderMap, name: &HeaderName| headers.contains_key(name);
    if !said(headers, &FORWARDED_PROTO) {
        let scheme = if sender.https { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if let Some(host) = sender.host.filter(|_| !said(headers, &FORWARDED_HOST))
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The items of a comma-separated list.
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

    fn sender(trusted: bool) -> Sender<'static> {
        let ip = "192.0.2.7".parse().unwrap();
        Sender { ip, trusted, https: true, host: Some("example.com") }
    }

    fn tidied(lines: &[(&'static str, &'static str)], trusted: bool) -> HeaderMap {
        let mut tidied = HeaderMap::new();
        for (name, value) in &headers(lines) {
            tidied.append(name, value.clone());
        }
        tidy_request(&mut tidied, Some("example.com"), &sender(trusted));
        tidied
    }

    #[test]
    fn what_is_between_neighbours_is_not_handed_on() {
        let tidied = tidied(
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
        let mut names: Vec<_> = tidied.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let kept = ["authorization", "cookie", "host", "last-event-id"];
        let told = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(names, [&kept[..], &told[..]].concat());
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let lines = [
            ("x-forwarded-for", "198.51.100.1, 10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("forwarded", "for=198.51.100.1"),
        ];
        let strange = tidied(&lines, false);
        assert_eq!(strange["x-forwarded-for"], "192.0.2.7");
        assert_eq!(strange["x-forwarded-proto"], "https");
        assert!(!strange.contains_key("forwarded"));
        let trusted = tidied(&lines, true);
        assert_eq!(trusted["x-forwarded-for"], "198.51.100.1, 10.0.0.1, 192.0.2.7");
        assert_eq!(trusted["x-forwarded-proto"], "http");
        assert_eq!(trusted["x-forwarded-host"], "example.com");
    }

    #[test]
    fn a_websocket_stays_one_and_cookies_become_one_line() {
        let tidied = tidied(
            &[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
            ],
            false,
        );
        assert_eq!(tidied["connection"], "upgrade");
        assert_eq!(tidied["upgrade"], "websocket");
        assert_eq!(tidied.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn a_loop_is_recognised() {
        let mut headers = headers(&[("via", "1.1 proxy, 1.0 crossfade-b (x)")]);
        assert!(signed(&headers, "crossfade-b") && !signed(&headers, "crossfade-a"));
        sign(&mut headers, "crossfade-a");
        assert!(signed(&headers, "crossfade-a"));
    }
}
