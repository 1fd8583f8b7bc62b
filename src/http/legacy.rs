//! What the gateway does not know itself: passed on to the old server, or, for an old address that
//! stands for channels, served as the `GET /events` that it is another spelling of.
//!
//! Which side somebody is on is asked of [`Legacy`](crate::legacy::Legacy); here it is found out who
//! they are.

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
    admission::{Admission, Refusal},
    detach::DetachableSocket,
    error::{self, ApiError},
    proxy,
};
use crate::{
    auth::{Identity, Scope},
    legacy::{
        Backend, Place, Seat, Upstream, UpstreamError,
        route::{RouteError, name_of, resume},
        shadow::{self, Slot},
        upstream::headers::Sender,
    },
    metrics::SideLabel,
    protocol::{Channel, ErrorCode},
};

/// What a browser without a token is known by.
const COOKIE: &str = "crossfade_client";

/// How long a browser keeps it, in seconds.
const A_YEAR: u32 = 365 * 24 * 3600;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A `Set-Cookie` for an answer that does not go through the HTTP stack.
#[derive(Clone, Debug)]
pub(super) struct Issued(HeaderValue);

impl Issued {
    pub(super) fn head_line(&self) -> String {
        format!("set-cookie: {}\r\n", self.0.to_str().unwrap_or_default())
    }
}

/// The stream was asked for at an old address, by this user or client.
#[derive(Clone, Debug)]
pub(super) struct LegacyRequest(pub(super) Box<str>);

/// Every path that the gateway does not know. `pages` is what it does know.
pub(super) async fn answer(app: AppState, pages: Router, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    // Only a stream changes sides; whatever else the old server does there stays its own.
    let streams = matches!(*request.method(), Method::GET | Method::OPTIONS);
    let legacy = app.legacy.clone();
    if let Some(place) = legacy.place(&path).filter(|_| streams) {
        return Box::pin(placed(&app, pages, request, place)).await;
    }
    match legacy.upstream() {
        Some(upstream) => through(&app, upstream, request).await,
        None => error::not_found(request.uri()).into_response(),
    }
}

/// A request that goes to the old server as it is.
pub(super) async fn through(
    app: &AppState,
    upstream: &Upstream,
    request: Request,
) -> Response<Body> {
    Box::pin(pass(app, upstream, request, (None, None))).await
}

/// An old address that stands for channels.
async fn placed(
    app: &AppState,
    pages: Router,
    mut request: Request,
    place: Place<'_>,
) -> Response<Body> {
    let identity = app.known(request.headers(), request.uri()).await;
    let issued = known_client(request.headers()).is_none().then(Uuid::new_v4);
    let unit = unit(identity.as_deref(), request.headers(), issued);
    let groups = identity.as_ref().map_or(&[][..], |identity| &identity.groups);
    let side = app.legacy.side(&unit, groups);
    let metrics = &app.connections.node.metrics().legacy;
    metrics.sides.get_or_create(&SideLabel { side: side.as_str() }).inc();
    let user = identity.as_ref().and_then(|identity| identity.user.as_ref());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let channels = place.channels(&query, user.map(|user| user.as_str()));
    // Somebody with a token is known by that.
    let issued = issued.filter(|_| user.is_none()).map(|id| cookie(id, app.speaks_tls()));
    let mut response = match (side, app.legacy.upstream()) {
        (Backend::Upstream | Backend::Shadow, Some(upstream)) => {
            if let Ok(channels) = &channels {
                named_as_there(app, &mut request, channels).await;
            }
            let compared = channels.ok().filter(|_| side == Backend::Shadow);
            let slot = compared.and_then(|channels| app.legacy.shadow().slot(channels));
            let stop = app.client_tasks.stopping();
            let seat = app.legacy.passengers().registry(unit, groups.to_vec(), stop);
            pass(app, upstream, request, (slot, Some(seat))).await
        }
        (Backend::Gateway, _) | (_, None) => {
            if let Some(issued) = issued.clone() {
                request.extensions_mut().insert(Issued(issued));
            }
            request.extensions_mut().insert(LegacyRequest(unit.as_str().into()));
            match ours(app, request, &place, channels).await {
                Ok(request) => pages.oneshot(request).await.into_response(),
                Err(error) => error.into_response(),
            }
        }
    };
    if let Some(issued) = issued {
        response.headers_mut().append(header::SET_COOKIE, issued);
    }
    response
}

/// A browser that comes back from the gateway's side says which event it had last as the old server
/// would.
async fn named_as_there(app: &AppState, request: &mut Request, channels: &[Channel]) {
    let last = request.headers().get(LAST_EVENT_ID).and_then(|last| last.to_str().ok());
    let Some(last) = last else { return };
    if let Ok(Some(name)) = name_of(&app.connections.node, channels, last).await
        && let Ok(name) = HeaderValue::from_str(name.as_str())
    {
        request.headers_mut().insert(LAST_EVENT_ID, name);
    }
}

/// The same request as one to `/events`.
async fn ours(
    app: &AppState,
    mut request: Request,
    place: &Place<'_>,
    channels: Result<Vec<Channel>, RouteError>,
) -> Result<Request, ApiError> {
    let channels = channels.map_err(|err| match err {
        RouteError::User => ApiError::new(ErrorCode::Unauthorised, err),
        RouteError::Query { .. } | RouteError::Channel { .. } => {
            ApiError::new(ErrorCode::ChannelInvalid, err)
        }
    })?;
    let query = place.query(&channels, request.uri().query().unwrap_or_default());
    if let Some(last) = request.headers_mut().remove(LAST_EVENT_ID)
        && let Ok(last) = last.to_str()
        && let Some(place) = resume(&app.connections.node, &channels, last).await?
    {
        let place = HeaderValue::from_str(&place.to_string());
        let place = place.map_err(|err| ApiError::new(ErrorCode::PositionInvalid, err))?;
        request.headers_mut().insert(LAST_EVENT_ID, place);
    }
    let mut parts = request.uri().clone().into_parts();
    let path = format!("/events?{query}").parse();
    parts.path_and_query = Some(path.map_err(|err| ApiError::new(ErrorCode::ChannelInvalid, err))?);
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|err| ApiError::new(ErrorCode::Malformed, err))?;
    Ok(request)
}

/// InternalTickets a request on to the old server.
async fn pass(
    app: &AppState,
    upstream: &Upstream,
    mut request: Request,
    (slot, seat): (Option<Slot>, Option<Seat>),
) -> Response<Body> {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host =
        host.or_else(|| Some(request.headers().get(header::HOST)?.to_str().ok()?.to_owned()));
    let trusted = proxy::trusts(peer, &app.server.trusted_proxies);
    let sender = Sender { ip: peer, trusted, https: app.speaks_tls(), host: host.as_deref() };
    let client = proxy::client_ip(peer, request.headers(), &app.server.trusted_proxies);
    let lend = request.extensions().get::<DetachableSocket>().cloned();
    let source = is_event_source(request.headers());
    if slot.is_some() {
        // What is compared has to be readable.
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let stop = seat.as_ref().map_or(app.client_tasks.stopping(), Seat::leave).clone();
    let answer = match upstream.pass(request, &sender, &stop).await {
        Ok(answer) => answer,
        Err(err) => return unanswered(&err, source),
    };
    if !answer.stream && answer.tunnel.is_none() {
        return answer.response;
    }
    // What lasts is a client, as it is on the gateway's side.
    let admission = match app.admission.admit(client, None) {
        Ok(admission) => admission,
        Err(refusal) if answer.stream => return refusal.into_stream(),
        Err(refusal) => return refusal.into_response(),
    };
    if let Some(lend) = &lend {
        lend.carries_a_client();
    }
    let staying = ProxiedStream::new(app, admission, seat);
    if let Some(tunnel) = answer.tunnel {
        app.client_tasks.spawn_client(Box::pin(async move {
            tunnel.carry(&stop).await;
            drop(staying);
        }));
        return answer.response;
    }
    answer.response.map(|body| match slot {
        Some(slot) => Body::new(shadow::TeeBody::new(body, slot, staying)),
        None => Body::new(shadow::Held::new(body, staying)),
    })
}

/// One who stays with the old server.
#[derive(Debug)]
struct ProxiedStream {
    streams: prometheus_client::metrics::gauge::Gauge,
    _admission: Admission,
    _seat: Option<Seat>,
}

impl ProxiedStream {
    fn new(app: &AppState, admission: Admission, seat: Option<Seat>) -> Self {
        let streams = app.connections.node.metrics().legacy.streams.clone();
        streams.inc();
        Self { streams, _admission: admission, _seat: seat }
    }
}

impl Drop for ProxiedStream {
    fn drop(&mut self) {
        self.streams.dec();
    }
}

/// An EventSource gives up for good on a status that is not 200. It has waited for the old server so
/// far while that was away, and goes on to.
fn unanswered(err: &UpstreamError, source: bool) -> Response<Body> {
    if source && !matches!(err, UpstreamError::Loop { .. }) {
        return Refusal::without_upstream().into_stream();
    }
    let code = match err {
        UpstreamError::Slow { .. } | UpstreamError::Silent { .. } => ErrorCode::GatewayTimeout,
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

/// The user; else the browser's durable id, the one it has or the one it is about to be given.
fn unit(identity: Option<&Identity>, headers: &HeaderMap, issued: Option<Uuid>) -> String {
    let user = identity.and_then(|identity| identity.user.as_ref());
    let known = || known_client(headers).or(issued).unwrap_or_default().to_string();
    user.map_or_else(known, |user| user.as_str().to_owned())
}

/// The id in the cookie, if it is one of those that are given out here.
fn known_client(headers: &HeaderMap) -> Option<Uuid> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).and_then(|(_, id)| id.trim().parse().ok())
}

fn cookie(id: Uuid, secure: bool) -> HeaderValue {
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={id}; Path=/; Max-Age={A_YEAR}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&cookie).expect("an id has no character that a header may not have")
}

impl AppState {
    fn speaks_tls(&self) -> bool {
        self.server.tls.certificate.is_some()
    }
}

/// `GET /api/migration/shadow`: what comparing both sides has found on this node.
pub(super) async fn report(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<Json<shadow::Report>, ApiError> {
    app.allow_scope(&*app.caller(&headers).await?, Scope::Admin)?;
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
    fn a_client_is_known_by_a_user_before_a_cookie_before_nothing() {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        let cookies = with_cookies(&["a=1; crossfade_client=6f9619ff-8b86-4d01-b42d-00cf4fc964ff"]);
        let anna = Identity { user: Some("anna".parse().unwrap()), ..Identity::default() };
        assert_eq!(unit(Some(&anna), &cookies, None), "anna");
        assert_eq!(unit(Some(&Identity::default()), &cookies, None), id);
        let new = Uuid::new_v4();
        assert_eq!(unit(None, &HeaderMap::new(), Some(new)), new.to_string());
        assert_eq!(known_client(&with_cookies(&["crossfade_client=<script>"])), None);
    }

    #[test]
    fn scripts_and_other_sites_do_not_get_at_the_cookie() {
        let cookie = cookie(Uuid::nil(), true);
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    }
}
