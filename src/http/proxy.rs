//! Whose request it is: the peer's, or that of the client a trusted proxy forwards for.
//!
//! Headers are written by anybody; only what a trusted proxy put there counts, read from the right,
//! where the last proxy writes.

use std::{fmt, net::IpAddr, str::FromStr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Proxies whose word about a client counts: a network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustedProxy(IpNet);

impl FromStr for TrustedProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| {
            format!("{text:?} is no network or address: write \"10.0.0.0/8\" or \"10.1.2.3\"")
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

/// The client's address. A header that cannot be read, or two that contradict each other, say
/// nothing: the request is then the peer's.
pub(super) fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[TrustedProxy]) -> IpAddr {
    let peer = peer.to_canonical();
    let trusts = |ip: &IpAddr| trusted.iter().any(|proxy| proxy.0.contains(ip));
    if !trusts(&peer) {
        return peer;
    }
    let listed = hops(headers, &X_FORWARDED_FOR, ',', |item| address(item.trim()));
    let forwarded = hops(headers, &header::FORWARDED, ',', forwarded_for);
    let client = |hops: Option<Hops>| hops.map(|hops| farthest(&hops, trusts).unwrap_or(peer));
    // A proxy appends to the one and hands a client's own other one on: then they differ.
    match (client(listed), client(forwarded)) {
        (Some(one), None) | (None, Some(one)) => one,
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) | (None, None) => peer,
    }
}

/// Whether a peer's word about those it asks for counts.
pub(super) fn trusts(peer: IpAddr, trusted: &[TrustedProxy]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|proxy| proxy.0.contains(&peer))
}

/// Who forwarded, in the order of the header; none for what cannot be read.
type Hops = Vec<Option<IpAddr>>;

fn hops(
    headers: &HeaderMap,
    name: &HeaderName,
    separator: char,
    read: impl Fn(&str) -> Option<IpAddr>,
) -> Option<Hops> {
    if !headers.contains_key(name) {
        return None;
    }
    let line = |value: &HeaderValue| match value.to_str() {
        Ok(text) => split(text, separator).into_iter().map(&read).collect(),
        Err(_) => vec![None],
    };
    Some(headers.get_all(name).iter().flat_map(line).collect())
}

/// The first one from the right that is no trusted proxy; the leftmost where all are.
fn farthest(hops: &Hops, trusts: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let mut last = None;
    for hop in hops.iter().rev() {
        last = Some((*hop)?);
        if !last.as_ref().is_some_and(&trusts) {
            break;
        }
    }
    last
}

/// One element of `Forwarded` (RFC 7239): `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in split(element, ';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("for") {
            // Said twice is said not at all.
            if found.is_some() {
                return None;
            }
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            found = Some(address(quoted.unwrap_or(value))?);
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
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

/// Splits outside of quotes.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut pieces, mut begin) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                pieces.push(&text[begin..at]);
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    pieces.push(&text[begin..]);
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    fn seen(peer: &str, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"].map(|net| net.parse().unwrap());
        client_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        assert_eq!(seen("203.0.113.9", &[("x-forwarded-for", "1.2.3.4")]), "203.0.113.9");
        assert_eq!(seen(PEER, &[("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
        assert_eq!(seen("::ffff:10.0.0.1", &[("x-forwarded-for", "1.2.3.4")]), "1.2.3.4");
        assert_eq!(seen(PEER, &[]), PEER);
    }

    #[test]
    fn what_a_client_wrote_in_front_does_not_count() {
        let list = "6.6.6.6, garbage, 1.2.3.4, 192.0.2.7, 10.9.9.9";
        assert_eq!(seen(PEER, &[("x-forwarded-for", list)]), "1.2.3.4");
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(seen(PEER, &lines), "1.2.3.4");
        // Trusted addresses are claimed easily; the one in front of them is still the client.
        assert_eq!(seen(PEER, &[("x-forwarded-for", "10.5.5.5, 1.2.3.4")]), "1.2.3.4");
        assert_eq!(seen(PEER, &[("x-forwarded-for", "10.5.5.5, 10.6.6.6")]), "10.5.5.5");
        // Through a proxy that knows the other header only.
        let lines = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(seen(PEER, &lines), PEER);
        let lines = [("forwarded", "for=1.2.3.4;proto=https"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(seen(PEER, &lines), "1.2.3.4");
        assert_eq!(seen(PEER, &[("forwarded", "for=\"6.6.6.6, for=1.2.3.4")]), PEER);
    }

    #[test]
    fn addresses_are_read_in_every_way_they_are_written() {
        for (list, ip) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("fd00::1", "fd00::1"),
        ] {
            assert_eq!(seen(PEER, &[("x-forwarded-for", list)]), ip, "{list}");
        }
        for (list, ip) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("by=10.0.0.1;for=1.2.3.4;proto=http", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4;host=\"a,b;c\", for=10.1.1.1", "1.2.3.4"),
        ] {
            assert_eq!(seen(PEER, &[("forwarded", list)]), ip, "{list}");
        }
    }

    #[test]
    fn garbage_is_the_peers() {
        for list in ["", ",", "unknown", "1.2.3.4,", "1.2.3.4:x", "[::1", "[1.2.3.4]", "1.2.3"] {
            assert_eq!(seen(PEER, &[("x-forwarded-for", list)]), PEER, "{list}");
        }
        for list in ["for=unknown", "for=_hidden", "1.2.3.4", "for=1.2.3.4;for=6.6.6.6", "for="] {
            assert_eq!(seen(PEER, &[("forwarded", list)]), PEER, "{list}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(bytes: Vec<u8>, text in "[\"\\\\;,=\\[\\]:for0-9. ]{0,40}") {
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
        fn whatever_a_client_sends_the_proxys_word_counts(sent in "[!-~ ]{0,60}") {
            let list = format!("{sent}, 1.2.3.4");
            // A quote that is never closed hides it, and then the request is the proxy's.
            let found = seen(PEER, &[("x-forwarded-for", list.trim())]);
            prop_assert!(found == "1.2.3.4" || found == PEER, "{found}");
        }
    }
}
