//! Fallback for paths that the gateway does not serve itself: requests are forwarded to the upstream,
//! or, for a route of `[[legacy.route]]` whose user belongs to the gateway, served as `GET /events`.
//!
//! The user or browser of a request is identified here; [`Legacy`](crate::legacy::Legacy) decides the
//! backend.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Uri, header},
    response::IntoResponse as _,
};
use tower::ServiceExt as _;
use uuid::Uuid;

use super::{
    AppState,
    accept::Peer,
    admission::{ClientPermit, Refusal},
    detach::DetachableSocket,
    error::{self, ApiError},
    proxy,
};
use crate::{
    auth::{Identity, Scope},
    legacy::{
        Backend, MatchedRoute, ProxiedStreamGuard, Upstream, UpstreamError,
        route::{RouteError, resume_positions, upstream_event_id},
        shadow::{self, Slot},
        upstream::headers::PeerInfo,
    },
    metrics::SideLabel,
    protocol::{Channel, ErrorCode},
};

/// Name of the cookie that identifies a browser without a token.
const COOKIE: &str = "crossfade_client";

/// `Max-Age` of the cookie in seconds: one year.
const COOKIE_MAX_AGE: u32 = 365 * 24 * 3600;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A `Set-Cookie` value for a response that bypasses the HTTP stack.
#[derive(Clone, Debug)]
pub(super) struct IssuedCookie(HeaderValue);

impl IssuedCookie {
    pub(super) fn head_line(&self) -> String {
        format!("set-cookie: {}\r\n", self.0.to_str().unwrap_or_default())
    }
}

/// Marks a `GET /events` that came through a route; the text is the rollout unit of the request.
#[derive(Clone, Debug)]
pub(super) struct LegacyRequest(pub(super) Box<str>);

/// Serves every path that `pages`, the gateway's own routes, do not have.
pub(super) async fn fallback(app: AppState, pages: Router, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    // Only streams move to the gateway; other methods of the same path stay with the upstream.
    let is_stream = matches!(*request.method(), Method::GET | Method::OPTIONS);
    let legacy = app.legacy.clone();
    if let Some(route) = legacy.match_route(&path).filter(|_| is_stream) {
        return Box::pin(serve_route(&app, pages, request, route)).await;
    }
    match legacy.upstream() {
        Some(upstream) => forward(&app, upstream, request).await,
        None => error::not_found(request.uri()).into_response(),
    }
}

/// Forwards a request that matches no route to the upstream.
pub(super) async fn forward(
    app: &AppState,
    upstream: &Upstream,
    request: Request,
) -> Response<Body> {
    Box::pin(proxy_request(app, upstream, request, (None, None))).await
}

/// Serves a request that matches a route, from the backend of its user.
async fn serve_route(
    app: &AppState,
    pages: Router,
    mut request: Request,
    route: MatchedRoute<'_>,
) -> Response<Body> {
    let identity = app.try_identify(request.headers(), request.uri()).await;
    let new_id = client_id(request.headers()).is_none().then(Uuid::new_v4);
    let unit = unit(identity.as_deref(), request.headers(), new_id);
    let groups = identity.as_ref().map_or(&[][..], |identity| &identity.groups);
    let backend = app.legacy.backend(&unit, groups);
    let metrics = &app.connections.node.metrics().legacy;
    metrics.requests.get_or_create(&SideLabel { side: backend.as_str() }).inc();
    let user = identity.as_ref().and_then(|identity| identity.user.as_ref());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let channels = route.channels(&query, user.map(|user| user.as_str()));
    // A user is identified by the token and needs no cookie.
    let cookie = new_id.filter(|_| user.is_none()).map(|id| set_cookie(id, app.speaks_tls()));
    let mut response = match (backend, app.legacy.upstream()) {
        (Backend::Upstream | Backend::Shadow, Some(upstream)) => {
            if let Ok(channels) = &channels {
                translate_last_event_id(app, &mut request, channels).await;
            }
            let compared = channels.ok().filter(|_| backend == Backend::Shadow);
            let slot = compared.and_then(|channels| app.legacy.shadow().slot(channels));
            let stop = app.client_tasks.stopping();
            let guard = app.legacy.proxied_streams().register(unit, groups.to_vec(), stop);
            proxy_request(app, upstream, request, (slot, Some(guard))).await
        }
        (Backend::Gateway, _) | (_, None) => {
            if let Some(cookie) = cookie.clone() {
                request.extensions_mut().insert(IssuedCookie(cookie));
            }
            request.extensions_mut().insert(LegacyRequest(unit.as_str().into()));
            match events_request(app, request, &route, channels).await {
                Ok(request) => pages.oneshot(request).await.into_response(),
                Err(error) => error.into_response(),
            }
        }
    };
    if let Some(cookie) = cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// Replaces a `Last-Event-ID` that is a position of the gateway by the id that the upstream knows, for
/// a browser that moved back to the upstream.
async fn translate_last_event_id(app: &AppState, request: &mut Request, channels: &[Channel]) {
    let last = request.headers().get(LAST_EVENT_ID).and_then(|last| last.to_str().ok());
    let Some(last) = last else { return };
    if let Ok(Some(id)) = upstream_event_id(&app.connections.node, channels, last).await
        && let Ok(id) = HeaderValue::from_str(id.as_str())
    {
        request.headers_mut().insert(LAST_EVENT_ID, id);
    }
}

/// Rewrites a request to a route into `GET /events`.
async fn events_request(
    app: &AppState,
    mut request: Request,
    route: &MatchedRoute<'_>,
    channels: Result<Vec<Channel>, RouteError>,
) -> Result<Request, ApiError> {
    let channels = channels.map_err(|err| match err {
        RouteError::MissingUser => ApiError::new(ErrorCode::Unauthorised, err),
        RouteError::MissingQuery { .. } | RouteError::InvalidChannel { .. } => {
            ApiError::new(ErrorCode::ChannelInvalid, err)
        }
    })?;
    let query = route.events_query(&channels, request.uri().query().unwrap_or_default());
    if let Some(last) = request.headers_mut().remove(LAST_EVENT_ID)
        && let Ok(last) = last.to_str()
        && let Some(positions) = resume_positions(&app.connections.node, &channels, last).await?
    {
        let positions = HeaderValue::from_str(&positions.to_string());
        let positions = positions.map_err(|err| ApiError::new(ErrorCode::PositionInvalid, err))?;
        request.headers_mut().insert(LAST_EVENT_ID, positions);
    }
    let mut parts = request.uri().clone().into_parts();
    let path = format!("/events?{query}").parse();
    parts.path_and_query = Some(path.map_err(|err| ApiError::new(ErrorCode::ChannelInvalid, err))?);
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    Ok(request)
}

/// Sends a request to the upstream. An event stream or tunnel that comes back counts as a client.
async fn proxy_request(
    app: &AppState,
    upstream: &Upstream,
    mut request: Request,
    (slot, guard): (Option<Slot>, Option<ProxiedStreamGuard>),
) -> Response<Body> {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host =
        host.or_else(|| Some(request.headers().get(header::HOST)?.to_str().ok()?.to_owned()));
    let trusted = proxy::trusts(peer, &app.server.trusted_proxies);
    let peer_info = PeerInfo { ip: peer, trusted, https: app.speaks_tls(), host: host.as_deref() };
    let client_ip = proxy::client_ip(peer, request.headers(), &app.server.trusted_proxies);
    let socket = request.extensions().get::<DetachableSocket>().cloned();
    let is_event_source = is_event_source(request.headers());
    if slot.is_some() {
        // The comparison cannot read a compressed stream.
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let stop = guard.as_ref().map(ProxiedStreamGuard::cancellation);
    let stop = stop.unwrap_or(app.client_tasks.stopping()).clone();
    let proxied = match upstream.forward(request, &peer_info, &stop).await {
        Ok(proxied) => proxied,
        Err(err) => return upstream_error(&err, is_event_source),
    };
    if !proxied.is_stream && proxied.tunnel.is_none() {
        return proxied.response;
    }
    // Streams and tunnels are long-lived, so the limits for clients apply to them.
    let admission = match app.admission.admit(client_ip, None) {
        Ok(admission) => admission,
        Err(refusal) if proxied.is_stream => return refusal.into_stream(),
        Err(refusal) => return refusal.into_response(),
    };
    if let Some(socket) = &socket {
        socket.release_socket_permit();
    }
    let connection = ProxiedConnection::new(app, admission, guard);
    if let Some(tunnel) = proxied.tunnel {
        app.client_tasks.spawn_client(Box::pin(async move {
            tunnel.run(&stop).await;
            drop(connection);
        }));
        return proxied.response;
    }
    proxied.response.map(|body| match slot {
        Some(slot) => Body::new(shadow::TeeBody::new(body, slot, connection)),
        None => Body::new(shadow::GuardedBody::new(body, connection)),
    })
}

/// The resources of an open proxied stream or tunnel, released on drop.
#[derive(Debug)]
struct ProxiedConnection {
    streams: prometheus_client::metrics::gauge::Gauge,
    _admission: ClientPermit,
    _guard: Option<ProxiedStreamGuard>,
}

impl ProxiedConnection {
    fn new(app: &AppState, admission: ClientPermit, guard: Option<ProxiedStreamGuard>) -> Self {
        let streams = app.connections.node.metrics().legacy.streams.clone();
        streams.inc();
        Self { streams, _admission: admission, _guard: guard }
    }
}

impl Drop for ProxiedConnection {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

/// The response for a failed upstream request. An `EventSource` never reconnects after a status other
/// than 200, so it gets a stream that ends and makes it retry.
fn upstream_error(err: &UpstreamError, is_event_source: bool) -> Response<Body> {
    if is_event_source && !matches!(err, UpstreamError::Loop { .. }) {
        return Refusal::upstream_unavailable().into_stream();
    }
    let code = match err {
        UpstreamError::ConnectTimeout { .. } | UpstreamError::ResponseTimeout { .. } => {
            ErrorCode::GatewayTimeout
        }
        UpstreamError::Full => ErrorCode::NodeFull,
        UpstreamError::Unreachable { .. }
        | UpstreamError::Broken { .. }
        | UpstreamError::Loop { .. } => ErrorCode::BadGateway,
    };
    ApiError::new(code, err).into_response()
}

fn is_event_source(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The rollout unit of a request: the user; else the id in the browser's cookie, or the new id that it
/// is being given.
fn unit(identity: Option<&Identity>, headers: &HeaderMap, new_id: Option<Uuid>) -> String {
    let user = identity.and_then(|identity| identity.user.as_ref());
    let browser = || client_id(headers).or(new_id).unwrap_or_default().to_string();
    user.map_or_else(browser, |user| user.as_str().to_owned())
}

/// The id in the `crossfade_client` cookie, if it is a UUID.
fn client_id(headers: &HeaderMap) -> Option<Uuid> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).and_then(|(_, id)| id.trim().parse().ok())
}

fn set_cookie(id: Uuid, secure: bool) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let cookie =
        format!("{COOKIE}={id}; Path=/; Max-Age={COOKIE_MAX_AGE}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&cookie).expect("a UUID has only characters that are valid in a header")
}

impl AppState {
    fn speaks_tls(&self) -> bool {
        self.server.tls.certificate.is_some()
    }
}

/// `GET /api/migration/shadow`: the shadow comparison on this node. Needs the scope `admin`.
pub(super) async fn shadow_report(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Json<shadow::Report>, ApiError> {
    app.require_scope(&*app.authenticate(&headers).await?, Scope::Admin)?;
    Ok(Json(app.legacy.shadow().report()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cookies(lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_static(line));
        }
        headers
    }

    #[test]
    fn the_unit_is_the_user_else_the_cookie_else_the_new_id() {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        let cookies = with_cookies(&["a=1; crossfade_client=6f9619ff-8b86-4d01-b42d-00cf4fc964ff"]);
        let anna = Identity { user: Some("anna".parse().unwrap()), ..Identity::default() };
        assert_eq!(unit(Some(&anna), &cookies, None), "anna");
        assert_eq!(unit(Some(&Identity::default()), &cookies, None), id);
        let new_id = Uuid::new_v4();
        assert_eq!(unit(None, &HeaderMap::new(), Some(new_id)), new_id.to_string());
        assert_eq!(client_id(&with_cookies(&["crossfade_client=<script>"])), None);
    }

    #[test]
    fn the_cookie_is_hidden_from_scripts_and_other_sites() {
        let cookie = set_cookie(Uuid::nil(), true);
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    }
}
