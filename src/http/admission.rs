//! Admission control: limits on sockets and clients per node, IP address and user, and on the rate of
//! new clients (`[server.limits]`).
//!
//! Owns the counters, the permits that decrement them on drop, and the response to a refused client
//! ([`Refusal`]). Does not determine a client's address or user; the callers pass both.

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
    /// Sockets without a client: in a handshake, in a request or idle.
    pub sockets: usize,
    /// Clients of this node: WebSockets and SSE streams.
    pub clients: usize,
    /// Clients per IP address; IPv6 addresses count per /64 network.
    pub clients_per_ip: usize,
    /// Clients per authenticated user.
    pub clients_per_user: usize,
    /// New clients per second and IP address, on average.
    pub arrivals_per_second: u32,
    /// New clients of an IP address in one burst.
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

/// Most networks whose arrival rate is tracked; beyond, the least recently seen is forgotten.
const MAX_TRACKED_NETWORKS: usize = 65_536;

/// Stands for validation sessions of the gateway itself: the discard prefix (RFC 6666), from which no
/// client connects.
const INTERNAL_NETWORK: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// Counts admitted sockets and clients, and refuses those beyond a limit.
#[derive(Debug)]
pub struct AdmissionControl {
    config: AdmissionConfig,
    sockets: Arc<Semaphore>,
    counters: Mutex<Counters>,
    refused: Family<RefusedLabel, Counter>,
}

#[derive(Debug)]
struct Counters {
    clients: usize,
    by_ip: HashMap<Network, usize>,
    by_user: HashMap<Arc<str>, usize>,
    arrival_rates: LruCache<Network, TokenBucket>,
}

impl AdmissionControl {
    /// With all counters at zero. `refused` is the metric that counts refusals.
    pub fn new(config: AdmissionConfig, refused: Family<RefusedLabel, Counter>) -> Self {
        let sockets = match config.sockets {
            0 => Semaphore::MAX_PERMITS,
            sockets => sockets.min(Semaphore::MAX_PERMITS),
        };
        let counters = Counters {
            clients: 0,
            by_ip: HashMap::new(),
            by_user: HashMap::new(),
            arrival_rates: LruCache::unbounded(),
        };
        let sockets = Arc::new(Semaphore::new(sockets));
        Self { config, sockets, counters: Mutex::new(counters), refused }
    }

    /// Admits an accepted socket; none beyond `sockets`.
    pub fn admit_socket(&self) -> Option<SocketPermit> {
        let permit = Arc::clone(&self.sockets).try_acquire_owned().ok();
        if permit.is_none() {
            self.count_refused(Reason::Sockets);
        }
        permit.map(SocketPermit)
    }

    /// Admits a client from `ip`, and of `user` if it is known already.
    ///
    /// # Errors
    /// Names the limit that is reached and when to retry.
    pub fn admit(
        self: &Arc<Self>,
        ip: IpAddr,
        user: Option<Arc<str>>,
    ) -> Result<ClientPermit, Refusal> {
        let network = Network::of(ip);
        let admitted = self.counters.lock().admit(&self.config, network, user.as_ref());
        if let Err(reason) = admitted {
            self.count_refused(reason);
            return Err(Refusal::new(reason));
        }
        Ok(ClientPermit { admission: Arc::clone(self), network, user })
    }

    /// Admits a validation session of the gateway itself, which only `clients` limits.
    ///
    /// # Errors
    /// When `clients` is reached.
    pub(super) fn admit_internal(self: &Arc<Self>) -> Result<ClientPermit, Refusal> {
        let config =
            AdmissionConfig { clients_per_ip: 0, arrivals_per_second: 0, ..self.config.clone() };
        let network = Network::of(INTERNAL_NETWORK.into());
        if let Err(reason) = self.counters.lock().admit(&config, network, None) {
            self.count_refused(reason);
            return Err(Refusal::new(reason));
        }
        Ok(ClientPermit { admission: Arc::clone(self), network, user: None })
    }

    /// Counts a refusal in `crossfade_refused_total`.
    pub(super) fn count_refused(&self, reason: Reason) {
        self.refused.get_or_create(&RefusedLabel { reason: reason.as_str() }).inc();
    }
}

impl Counters {
    fn admit(
        &mut self,
        config: &AdmissionConfig,
        network: Network,
        user: Option<&Arc<str>>,
    ) -> Result<(), Reason> {
        if config.arrivals_per_second != 0 && !self.arrival_allowed(config, network) {
            return Err(Reason::ArrivalsPerSecond);
        }
        if reached(config.clients, self.clients) {
            return Err(Reason::Clients);
        }
        if reached(config.clients_per_ip, self.by_ip.get(&network).copied().unwrap_or(0)) {
            return Err(Reason::ClientsPerIp);
        }
        let user_count = user.and_then(|user| self.by_user.get(user)).copied().unwrap_or(0);
        if reached(config.clients_per_user, user_count) {
            return Err(Reason::ClientsPerUser);
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

    fn admit_user(&mut self, config: &AdmissionConfig, user: &Arc<str>) -> Result<(), Reason> {
        if config.clients_per_user == 0 {
            return Ok(());
        }
        let count = self.by_user.entry(Arc::clone(user)).or_default();
        if reached(config.clients_per_user, *count) {
            return Err(Reason::ClientsPerUser);
        }
        *count += 1;
        Ok(())
    }

    fn arrival_allowed(&mut self, config: &AdmissionConfig, network: Network) -> bool {
        let now = Instant::now();
        let bucket = self.arrival_rates.get_or_insert_mut(network, || TokenBucket::full(now));
        let allowed = bucket.take(now, config.arrivals_per_second, config.arrivals_burst);
        if MAX_TRACKED_NETWORKS < self.arrival_rates.len() {
            self.arrival_rates.pop_lru();
        }
        allowed
    }

    fn release(&mut self, network: Network, user: Option<Arc<str>>) {
        self.clients -= 1;
        decrement(&mut self.by_ip, network);
        if let Some(user) = user {
            decrement(&mut self.by_user, user);
        }
    }
}

fn reached(limit: usize, count: usize) -> bool {
    limit != 0 && limit <= count
}

/// Decrements a count and removes it at zero.
fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// What counts as one client address: an IPv4 address, or the /64 network of an IPv6 address.
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

/// An admitted client; decrements the counters on drop.
#[derive(Debug)]
pub struct ClientPermit {
    admission: Arc<AdmissionControl>,
    network: Network,
    user: Option<Arc<str>>,
}

impl AdmissionPermit for ClientPermit {
    fn admit_user(&mut self, user: &UserId) -> bool {
        if self.user.is_some() {
            return true;
        }
        let user: Arc<str> = user.as_str().into();
        let admitted = self.admission.counters.lock().admit_user(&self.admission.config, &user);
        match admitted {
            Ok(()) => self.user = Some(user),
            Err(reason) => self.admission.count_refused(reason),
        }
        admitted.is_ok()
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        self.admission.counters.lock().release(self.network, self.user.take());
    }
}

/// An admitted socket; counts against `sockets` until it is dropped.
#[derive(Debug)]
pub struct SocketPermit(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// Why a socket, client or page is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Sockets,
    Clients,
    ClientsPerIp,
    ClientsPerUser,
    ArrivalsPerSecond,
    Origin,
    KeysUnavailable,
    UpstreamUnavailable,
}

impl Reason {
    /// The label in `crossfade_refused_total`: for a limit, its key in `[server.limits]`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Clients => "clients",
            Self::ClientsPerIp => "clients_per_ip",
            Self::ClientsPerUser => "clients_per_user",
            Self::ArrivalsPerSecond => "arrivals_per_second",
            Self::Origin => "origin",
            Self::KeysUnavailable => "keys_unavailable",
            Self::UpstreamUnavailable => "upstream_unavailable",
        }
    }
}

/// The response to a client that is refused for now: why, and when to retry.
#[derive(Debug)]
pub struct Refusal {
    reason: Reason,
    retry_after: Duration,
}

/// Shortest retry delay of a refused client. The actual delay is random, up to twice as long, so that
/// not all come back at once.
const RETRY_AFTER_MS: u64 = 5000;

impl Refusal {
    fn new(reason: Reason) -> Self {
        let retry_after = rand::rng().random_range(RETRY_AFTER_MS..=2 * RETRY_AFTER_MS);
        Self { reason, retry_after: Duration::from_millis(retry_after) }
    }

    /// Tokens cannot be verified, as the keys of `auth.jwks` were not fetched yet.
    pub(super) fn keys_unavailable() -> Self {
        Self::new(Reason::KeysUnavailable)
    }

    /// The legacy upstream, which would serve the stream, does not respond.
    pub(super) fn upstream_unavailable() -> Self {
        Self::new(Reason::UpstreamUnavailable)
    }

    /// The response for an SSE client. An EventSource never reconnects after a status other than 200,
    /// so it gets a stream with one goodbye frame that says when to reconnect.
    pub(super) fn into_stream(self) -> Response {
        let retry_after_ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX);
        let goodbye = ServerFrame::goodbye(CloseCode::TryLater, retry_after_ms);
        let body = sse::ENVELOPE.codec.frame(&goodbye);
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache, no-transform"),
        ];
        (headers, body).into_response()
    }

    fn error(&self) -> ApiError {
        let (code, message) = match self.reason {
            Reason::ClientsPerIp => (
                ErrorCode::LimitExceeded,
                "too many clients from this address: server.limits.clients_per_ip",
            ),
            Reason::ClientsPerUser => (
                ErrorCode::LimitExceeded,
                "too many clients of this user: server.limits.clients_per_user",
            ),
            Reason::ArrivalsPerSecond => (
                ErrorCode::LimitExceeded,
                "new clients from this address too fast: server.limits.arrivals_per_second",
            ),
            Reason::KeysUnavailable => {
                (ErrorCode::Unavailable, "tokens cannot be verified: no keys from auth.jwks yet")
            }
            Reason::UpstreamUnavailable => {
                (ErrorCode::BadGateway, "the legacy upstream does not respond")
            }
            Reason::Clients | Reason::Sockets | Reason::Origin => {
                (ErrorCode::NodeFull, "this node has reached server.limits.clients")
            }
        };
        ApiError::new(code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error().into_response();
        let retry_after = HeaderValue::from(self.retry_after.as_secs() + 1);
        response.headers_mut().insert(header::RETRY_AFTER, retry_after);
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
    fn a_dropped_permit_decrements_the_counters() {
        let admission = admission(AdmissionConfig { clients: 2, clients_per_ip: 1, ..zero() });
        let first = admission.admit(ip("1.1.1.1"), None).unwrap();
        assert_eq!(refused(&admission, "1.1.1.1", None), Some(Reason::ClientsPerIp));
        let _second = admission.admit(ip("2.2.2.2"), None).unwrap();
        assert_eq!(refused(&admission, "3.3.3.3", None), Some(Reason::Clients));
        drop(first);
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(admission.counters.lock().by_ip.len(), 1, "counts at zero are removed");
        assert_eq!(admission.counters.lock().clients, 1);
    }

    #[test]
    fn clients_per_user_counts_all_addresses() {
        let admission = admission(AdmissionConfig { clients_per_user: 1, ..zero() });
        let ada = admission.admit(ip("1.1.1.1"), Some("ada".into())).unwrap();
        assert_eq!(refused(&admission, "2.2.2.2", Some("ada")), Some(Reason::ClientsPerUser));
        assert_eq!(refused(&admission, "2.2.2.2", Some("bob")), None);
        assert_eq!(refused(&admission, "2.2.2.2", None), None);
        drop(ada);
        assert_eq!(refused(&admission, "2.2.2.2", Some("ada")), None);
        assert!(admission.counters.lock().by_user.is_empty());
    }

    #[test]
    fn an_ipv6_address_counts_as_its_network() {
        let admission = admission(AdmissionConfig { clients_per_ip: 1, ..zero() });
        let _v6 = admission.admit(ip("2001:db8:1:2::1"), None).unwrap();
        let _v4 = admission.admit(ip("1.1.1.1"), None).unwrap();
        assert_eq!(refused(&admission, "2001:db8:1:2:ffff::9", None), Some(Reason::ClientsPerIp));
        assert_eq!(refused(&admission, "2001:db8:1:3::1", None), None);
        assert_eq!(refused(&admission, "::ffff:1.1.1.1", None), Some(Reason::ClientsPerIp));
    }

    #[test]
    fn arrivals_per_second_limits_one_address() {
        let admission =
            admission(AdmissionConfig { arrivals_per_second: 1, arrivals_burst: 2, ..zero() });
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(refused(&admission, "1.1.1.1", None), None);
        assert_eq!(refused(&admission, "1.1.1.1", None), Some(Reason::ArrivalsPerSecond));
        assert_eq!(refused(&admission, "2.2.2.2", None), None);
    }

    #[test]
    fn a_limited_number_of_networks_is_tracked() {
        let admission =
            admission(AdmissionConfig { arrivals_per_second: 1, arrivals_burst: 2, ..zero() });
        for n in 0..u32::try_from(MAX_TRACKED_NETWORKS).unwrap() + 100 {
            assert!(admission.admit(IpAddr::V4(n.into()), None).is_ok());
        }
        assert_eq!(admission.counters.lock().arrival_rates.len(), MAX_TRACKED_NETWORKS);
    }

    #[test]
    fn sockets_are_counted_separately_from_clients() {
        let admission = admission(AdmissionConfig { sockets: 1, ..zero() });
        let permit = admission.admit_socket().unwrap();
        assert!(admission.admit_socket().is_none());
        drop(permit);
        assert!(admission.admit_socket().is_some());
    }
}
