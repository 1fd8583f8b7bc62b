//! Client IP addresses behind reverse proxies: `X-Forwarded-For` and `Forwarded` of peers in
//! `server.trusted_proxies`.
//!
//! Any client can send these headers, so only the part that trusted proxies appended counts: it is
//! read from the right, up to the first address that is not a trusted proxy.

use std::{fmt, net::IpAddr, str::FromStr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An entry of `server.trusted_proxies`: a network or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedProxy(IpNet);

impl FromStr for TrustedProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| {
            format!("{text:?} is not a network or address: write \"10.0.0.0/8\" or \"10.1.2.3\"")
        })
    }
}

impl TryFrom<String> for TrustedProxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TrustedProxy> for String {
    fn from(proxy: TrustedProxy) -> Self {
        proxy.to_string()
    }
}

impl fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address. When a header cannot be parsed, or the two headers contradict each other, it is
/// the peer's.
pub(super) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[TrustedProxy]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_proxy = |ip: &IpAddr| trusted.iter().any(|proxy| proxy.0.contains(ip));
    if !is_proxy(&peer) {
        return peer;
    }
    let listed = hops(headers, &X_FORWARDED_FOR, ',', |item| address(item.trim()));
    let forwarded = hops(headers, &header::FORWARDED, ',', forwarded_for);
    let client = |hops: Option<Hops>| hops.map(|hops| client_hop(&hops, is_proxy).unwrap_or(peer));
    // A proxy appends to one header and forwards the client's own other header: then they differ.
    match (client(listed), client(forwarded)) {
        (Some(ip), None) | (None, Some(ip)) => ip,
        (Some(ip), Some(other)) if ip == other => ip,
        (Some(_), Some(_)) | (None, None) => peer,
    }
}

/// Whether a peer is a trusted proxy.
pub(super) fn trusts(peer: IpAddr, trusted: &[TrustedProxy]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|proxy| proxy.0.contains(&peer))
}

/// The addresses in a header, in its order; none for one that cannot be parsed.
type Hops = Vec<Option<IpAddr>>;

fn hops(
    headers: &HeaderMap,
    name: &HeaderName,
    separator: char,
    parse: impl Fn(&str) -> Option<IpAddr>,
) -> Option<Hops> {
    if !headers.contains_key(name) {
        return None;
    }
    let line = |value: &HeaderValue| match value.to_str() {
        Ok(text) => split(text, separator).into_iter().map(&parse).collect(),
        Err(_) => vec![None],
    };
    Some(headers.get_all(name).iter().flat_map(line).collect())
}

/// The first address from the right that is not a trusted proxy; the leftmost if all are.
fn client_hop(hops: &Hops, is_proxy: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let mut last = None;
    for hop in hops.iter().rev() {
        last = Some((*hop)?);
        if !last.as_ref().is_some_and(&is_proxy) {
            break;
        }
    }
    last
}

/// One element of `Forwarded` (RFC 7239): `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut ip = None;
    for pair in split(element, ';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("for") {
            // A repeated parameter is invalid.
            if ip.is_some() {
                return None;
            }
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            ip = Some(address(quoted.unwrap_or(value))?);
        }
    }
    ip
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let ip = if let Some(inner) = text.strip_prefix('[') {
        let (ip, rest) = inner.split_once(']')?;
        if !rest.is_empty() {
            rest.strip_prefix(':')?.parse::<u16>().ok()?;
        }
        IpAddr::V6(ip.parse().ok()?)
    } else if let Ok(ip) = text.parse() {
        ip
    } else {
        let (ip, port) = text.split_once(':')?;
        port.parse::<u16>().ok()?;
        IpAddr::V4(ip.parse().ok()?)
    };
    Some(ip.to_canonical())
}

/// Splits at separators outside of quoted strings.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                pieces.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn resolve(peer: &str, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"].map(|net| net.parse().unwrap());
        client_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn headers_count_only_from_a_trusted_peer() {
        assert_eq!(resolve("203.0.113.9", &[("x-forwarded-for", "1.2.3.4")]), "203.0.113.9");
        assert_eq!(resolve(PEER, &[("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
        assert_eq!(resolve("::ffff:10.0.0.1", &[("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
        assert_eq!(resolve(PEER, &[]), PEER);
    }

    #[test]
    fn addresses_left_of_the_first_untrusted_one_do_not_count() {
        let list = "6.6.6.6, garbage, 1.2.3.4, 192.0.2.7, 10.9.9.9";
        assert_eq!(resolve(PEER, &[("x-forwarded-for", list)]), "1.2.3.4");
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(resolve(PEER, &lines), "1.2.3.4");
        // A client can claim trusted addresses; the first untrusted one is still the client.
        assert_eq!(resolve(PEER, &[("x-forwarded-for", "10.5.5.5, 1.2.3.4")]), "1.2.3.4");
        assert_eq!(resolve(PEER, &[("x-forwarded-for", "10.5.5.5, 10.6.6.6")]), "10.5.5.5");
        // The proxy appends to one header and forwards the other.
        let lines = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(resolve(PEER, &lines), PEER);
        let lines = [("forwarded", "for=1.2.3.4;proto=https"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(resolve(PEER, &lines), "1.2.3.4");
        assert_eq!(resolve(PEER, &[("forwarded", "for=\"6.6.6.6, for=1.2.3.4")]), PEER);
    }

    #[test]
    fn every_notation_of_an_address_is_parsed() {
        for (list, expected) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(resolve(PEER, &[("x-forwarded-for", list)]), expected, "{list}");
        }
        for (list, expected) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("by=10.0.0.1;for=1.2.3.4;proto=http", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4;host=\"a,b;c\", for=10.1.1.1", "1.2.3.4"),
        ] {
            assert_eq!(resolve(PEER, &[("forwarded", list)]), expected, "{list}");
        }
    }

    #[test]
    fn an_invalid_header_yields_the_peer() {
        for list in ["", ",", "unknown", "1.2.3.4,", "1.2.3.4:x", "[::1", "[1.2.3.4]", "1.2.3"] {
            assert_eq!(resolve(PEER, &[("x-forwarded-for", list)]), PEER, "{list}");
        }
        for list in ["for=unknown", "for=_hidden", "1.2.3.4", "for=1.2.3.4;for=6.6.6.6", "for="] {
            assert_eq!(resolve(PEER, &[("forwarded", list)]), PEER, "{list}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(bytes: Vec<u8>, text in "[\"\\\\;,=\\[\\]:for0-9. ]{0,40}") {
            for value in [HeaderValue::from_bytes(&bytes), HeaderValue::from_str(&text)] {
                let Ok(value) = value else { continue };
                let trusted = [PEER.parse().unwrap()];
                for name in [X_FORWARDED_FOR, header::FORWARDED] {
                    let headers = HeaderMap::from_iter([(name, value.clone())]);
                    client_ip(PEER.parse().unwrap(), &headers, &trusted);
                }
            }
        }

        #[test]
        fn a_client_cannot_override_what_the_proxy_appends(sent in "[!-~ ]{0,60}") {
            let list = format!("{sent}, 1.2.3.4");
            // An unclosed quote hides the proxy's entry; then the peer's address is used.
            let ip = resolve(PEER, &[("x-forwarded-for", list.trim())]);
            prop_assert!(ip == "1.2.3.4" || ip == PEER, "{ip}");
        }
    }
}
