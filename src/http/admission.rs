//! How many may come in: sockets and clients of this node, of one address, of one user, and how fast.
//!
//! It counts and refuses; what a client is told is said in one place, [`Refusal`]. Who somebody is
//! and where they come from it is told.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use lru::LruCache;
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, family::Family};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::{
    connection::AdmissionPermit,
    metrics::RefusedLabel,
    protocol::{CloseCode, ErrorCode, ServerFrame, UserId},
    session::TokenBucket,
    wire::sse,
};

/// Section `[server.limits]`. 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Sockets of this node that are no client: in a handshake, within a request, at rest.
    pub sockets: usize,
    /// Clients of this node: WebSockets and streams.
    pub clients: usize,
    /// Clients of one address; IPv6 counts by /64.
    pub clients_per_ip: usize,
    /// Clients of one user, where it is known who a client is.
    pub clients_per_user: usize,
    /// Clients that one address may open per second, on average.
    pub arrivals_per_second: u32,
    /// Clients that one address may open at once.
    pub arrivals_burst: u32,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            sockets: 16_384,
            clients: 100_000,
            clients_per_ip: 0,
            clients_per_user: 0,
            arrivals_per_second: 0,
            arrivals_burst: 50,
        }
    }
}

/// Addresses whose rate is remembered; the one not seen for longest is forgotten, and starts anew.
const ADDRESSES: usize = 65_536;

/// Stands for the gateway's own sessions: a network that nobody comes from (RFC 6666).
const OWN: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// Counts who is in.
#[derive(Debug)]
pub struct AdmissionControl {
    config: AdmissionConfig,
    sockets: Arc<Semaphore>,
    places: Mutex<Counters>,
    refused: Family<RefusedLabel, Counter>,
}

#[derive(Debug)]
struct Counters {
    clients: usize,
    by_ip: HashMap<Network, usize>,
    by_user: HashMap<Arc<str>, usize>,
    arrivals: LruCache<Network, TokenBucket>,
}

impl AdmissionControl {
    /// A gate nobody came through yet. `refused` counts those who may not.
    pub fn new(config: AdmissionConfig, refused: Family<RefusedLabel, Counter>) -> Self {
        let sockets = match config.sockets {
            0 => Semaphore::MAX_PERMITS,
            sockets => sockets.min(Semaphore::MAX_PERMITS),
        };
        let places = Counters {
            clients: 0,
            by_ip: HashMap::new(),
            by_user: HashMap::new(),
            arrivals: LruCache::unbounded(),
        };
        let sockets = Arc::new(Semaphore::new(sockets));
        Self { config, sockets, places: Mutex::new(places), refused }
    }

    /// A place for a socket that is no client yet.
    pub fn socket(&self) -> Option<SocketPlace> {
        let place = Arc::clone(&self.sockets).try_acquire_owned().ok();
        if place.is_none() {
            self.count(Reason::Sockets);
        }
        place.map(SocketPlace)
    }

    /// Lets a client in, from this address, and of this user where one is known.
    ///
    /// # Errors
    /// Says which limit it is and when to come back.
    pub fn admit(
        self: &Arc<Self>,
        ip: IpAddr,
        user: Option<Arc<str>>,
    ) -> Result<Admission, Refusal> {
        let network = Network::of(ip);
        let entered = self.places.lock().enter(&self.config, network, user.as_ref());
        if let Err(reason) = entered {
            self.count(reason);
            return Err(Refusal::new(reason));
        }
        Ok(Admission { admission: Arc::clone(self), network, user })
    }

    /// Lets one of the gateway's own sessions in: only the node's limit counts.
    ///
    /// # Errors
    /// When the node is full.
    pub(super) fn admit_own(self: &Arc<Self>) -> Result<Admission, Refusal> {
        let own =
            AdmissionConfig { clients_per_ip: 0, arrivals_per_second: 0, ..self.config.clone() };
        let network = Network::of(OWN.into());
        if let Err(reason) = self.places.lock().enter(&own, network, None) {
            self.count(reason);
            return Err(Refusal::new(reason));
        }
        Ok(Admission { admission: Arc::clone(self), network, user: None })
    }

    /// Counts somebody who may not come in.
    pub(super) fn count(&self, reason: Reason) {
        self.refused.get_or_create(&RefusedLabel { reason: reason.as_str() }).inc();
    }
}

impl Counters {
    fn enter(
        &mut self,
        config: &AdmissionConfig,
        network: Network,
        user: Option<&Arc<str>>,
    ) -> Result<(), Reason> {
        if config.arrivals_per_second != 0 && !self.arrives(config, network) {
            return Err(Reason::Rate);
        }
        if full(config.clients, self.clients) {
            return Err(Reason::Node);
        }
        if full(config.clients_per_ip, self.by_ip.get(&network).copied().unwrap_or(0)) {
            return Err(Reason::Ip);
        }
        let of_user = user.and_then(|user| self.by_user.get(user)).copied().unwrap_or(0);
        if full(config.clients_per_user, of_user) {
            return Err(Reason::User);
        }
        self.clients += 1;
        if config.clients_per_ip != 0 {
            *self.by_ip.entry(network).or_default() += 1;
        }
        if let Some(user) = user.filter(|_| config.clients_per_user != 0) {
            *self.by_user.entry(Arc::clone(user)).or_default() += 1;
        }
        Ok(())
    }

    fn enter_user(&mut self, config: &AdmissionConfig, user: &Arc<str>) -> Result<(), Reason> {
        if config.clients_per_user == 0 {
            return Ok(());
        }
        let count = self.by_user.entry(Arc::clone(user)).or_default();
        if full(config.clients_per_user, *count) {
            return Err(Reason::User);
        }
        *count += 1;
        Ok(())
    }

    fn arrives(&mut self, config: &AdmissionConfig, network: Network) -> bool {
        let now = Instant::now();
        let bucket = self.arrivals.get_or_insert_mut(network, || TokenBucket::full(now));
        let arrives = bucket.take(now, config.arrivals_per_second, config.arrivals_burst);
        if ADDRESSES < self.arrivals.len() {
            self.arrivals.pop_lru();
        }
        arrives
    }

    fn leave(&mut self, network: Network, user: Option<Arc<str>>) {
        self.clients -= 1;
        decrease(&mut self.by_ip, network);
        if let Some(user) = user {
            decrease(&mut self.by_user, user);
        }
    }
}

fn full(limit: usize, taken: usize) -> bool {
    limit != 0 && limit <= taken
}

/// Nothing is kept of who has left.
fn decrease<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// An address, as far as it stands for somebody: whoever has an IPv6 address has its whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !0 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// A client's place, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    admission: Arc<AdmissionControl>,
    network: Network,
    user: Option<Arc<str>>,
}

impl AdmissionPermit for Admission {
    fn admit_user(&mut self, user: &UserId) -> bool {
        if self.user.is_some() {
            return true;
        }
        let user: Arc<str> = user.as_str().into();
        let admitted = self.admission.places.lock().enter_user(&self.admission.config, &user);
        match admitted {
            Ok(()) => self.user = Some(user),
            Err(reason) => self.admission.count(reason),
        }
        admitted.is_ok()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.admission.places.lock().leave(self.network, self.user.take());
    }
}

/// A socket's place, given back when dropped or when it has become a client's.
#[derive(Debug)]
pub struct SocketPlace(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// Why somebody may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Sockets,
    Node,
    Ip,
    User,
    Rate,
    Origin,
    Keys,
    Upstream,
}

impl Reason {
    /// As metrics name it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Node => "node",
            Self::Ip => "ip",
            Self::User => "user",
            Self::Rate => "rate",
            Self::Origin => "origin",
            Self::Keys => "keys",
            Self::Upstream => "upstream",
        }
    }
}

/// What a client is told that may come back later.
#[derive(Debug)]
pub struct Refusal {
    reason: Reason,
    after: Duration,
}

/// A refused client comes back after this time, or up to twice as much: not all at once.
const COME_BACK_MS: u64 = 5000;

impl Refusal {
    fn new(reason: Reason) -> Self {
        let after = rand::rng().random_range(COME_BACK_MS..=2 * COME_BACK_MS);
        Self { reason, after: Duration::from_millis(after) }
    }

    /// While nobody's token can be verified.
    pub(super) fn without_keys() -> Self {
        Self::new(Reason::Keys)
    }

    /// While the old server, whose stream it would be, gives no answer.
    pub(super) fn without_upstream() -> Self {
        Self::new(Reason::Upstream)
    }

    /// For a stream: an EventSource gives up for good on any status but 200, so it gets a stream
    /// that says when to come back and ends.
    pub(super) fn into_stream(self) -> Response {
        let after = u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX);
        let goodbye = ServerFrame::goodbye(CloseCode::TryLater, after);
        let body = sse::ENVELOPE.codec.frame(&goodbye);
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache, no-transform"),
        ];
        (headers, body).into_response()
    }

    fn error(&self) -> ApiError {
        let (code, message) = match self.reason {
            Reason::Ip => (ErrorCode::LimitExceeded, "your address has too many clients here"),
            Reason::User => (ErrorCode::LimitExceeded, "you have too many clients here"),
            Reason::Rate => (ErrorCode::LimitExceeded, "your address opens clients too fast"),
            Reason::Keys => (ErrorCode::Unavailable, "tokens cannot be verified now"),
            Reason::Upstream => (ErrorCode::BadGateway, "the old server gives no answer"),
            Reason::Node | Reason::Sockets | Reason::Origin => {
                (ErrorCode::NodeFull, "this node has as many clients as it may")
            }
        };
        ApiError::new(code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error().into_response();
        let after = HeaderValue::from(self.after.as_secs() + 1);
        response.headers_mut().insert(header::RETRY_AFTER, after);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(config: AdmissionConfig) -> Arc<AdmissionControl> {
        Arc::new(AdmissionControl::new(config, Family::default()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn refused(
        admission: &Arc<AdmissionControl>,
        from: &str,
        user: Option<&str>,
    ) -> Option<Reason> {
        admission.admit(ip(from), user.map(Arc::from)).err().map(|refusal| refusal.reason)
    }

    fn zero() -> AdmissionConfig {
        AdmissionConfig { sockets: 0, clients: 0, arrivals_burst: 0, ..AdmissionConfig::default() }
    }

    #[test]
    fn a_place_is_given_back_when_its_client_leaves() {
        let admission = admission(AdmissionConfig { clients: 2, clients_per_ip: 1, ..zero() });
        let one = admission.admit(ip("1.1.1.1"), None).unwrap();
        assert_eq!(refused(&admission, "1.1.1.1", None), Some(Reason::Ip));
        let _two = admission.admit(ip("2.2.2.2"), None).unwrap();
        assert_eq!(refused(&admission, "3.3.3.3", None), Some(Reason::Node));
        drop(one);
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(admission.places.lock().by_ip.len(), 1, "who has left is not remembered");
        assert_eq!(admission.places.lock().clients, 1);
    }

    #[test]
    fn a_user_is_counted_over_all_addresses() {
        let admission = admission(AdmissionConfig { clients_per_user: 1, ..zero() });
        let ada = admission.admit(ip("1.1.1.1"), Some("ada".into())).unwrap();
        assert_eq!(refused(&admission, "2.2.2.2", Some("ada")), Some(Reason::User));
        assert_eq!(refused(&admission, "2.2.2.2", Some("bob")), None);
        assert_eq!(refused(&admission, "2.2.2.2", None), None);
        drop(ada);
        assert_eq!(refused(&admission, "2.2.2.2", Some("ada")), None);
        assert!(admission.places.lock().by_user.is_empty());
    }

    #[test]
    fn an_address_stands_for_its_network() {
        let admission = admission(AdmissionConfig { clients_per_ip: 1, ..zero() });
        let _v6 = admission.admit(ip("2001:db8:1:2::1"), None).unwrap();
        let _v4 = admission.admit(ip("1.1.1.1"), None).unwrap();
        assert_eq!(refused(&admission, "2001:db8:1:2:ffff::9", None), Some(Reason::Ip));
        assert_eq!(refused(&admission, "2001:db8:1:3::1", None), None);
        assert_eq!(refused(&admission, "::ffff:1.1.1.1", None), Some(Reason::Ip));
    }

    #[test]
    fn who_comes_too_fast_is_refused_and_others_are_not() {
        let admission =
            admission(AdmissionConfig { arrivals_per_second: 1, arrivals_burst: 2, ..zero() });
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(refused(&admission, "1.1.1.1", None), Some(Reason::Rate));
        assert_eq!(refused(&admission, "2.2.2.2", None), None);
    }

    #[test]
    fn rates_are_remembered_of_so_many_addresses_only() {
        let admission =
            admission(AdmissionConfig { arrivals_per_second: 1, arrivals_burst: 2, ..zero() });
        for n in 0..u32::try_from(ADDRESSES).unwrap() + 100 {
            assert!(admission.admit(IpAddr::V4(n.into()), None).is_ok());
        }
        assert_eq!(admission.places.lock().arrivals.len(), ADDRESSES);
    }

    #[test]
    fn sockets_are_counted_apart() {
        let admission = admission(AdmissionConfig { sockets: 1, ..zero() });
        let place = admission.socket().unwrap();
        assert!(admission.socket().is_none());
        drop(place);
        assert!(admission.socket().is_some());
    }
}
