//! Performs the requests of a session. Together with `subscribe`, the only part of a connection that
//! waits for the node.

use std::sync::Arc;

use super::{
    client::Client,
    client_state::ClientState,
    open_session::ConnectRequest,
    presence_requests,
    registry::Connections,
    replies::{self, refusal},
    subscribe,
};
use crate::{
    auth::{Identity, TokenError, Verb},
    broker::{BrokerError, Publication, Range},
    protocol::{
        Channel, ClientFrame, CloseCode, ErrorCode, Position, ServerFrame, Token,
        frame::{Page, RequestId},
    },
    session::Subscription,
};

/// Events of a history whose request names no limit.
const HISTORY_EVENTS: usize = 100;

/// Performs a request. The reply is queued for the client's stream, or returned to the caller.
pub(super) async fn perform(
    connections: &Connections,
    client: &Arc<Client>,
    request: ClientFrame,
    to_stream: bool,
) -> Option<ServerFrame> {
    let reply = match request {
        ClientFrame::Pong => return None,
        ClientFrame::Report { stats, .. } => {
            let unit = client.state().unit();
            connections.rollouts.meter.record_client_report(&unit, stats.as_str());
            return None;
        }
        ClientFrame::Goodbye => {
            client.state().stats.left = true;
            return None;
        }
        ClientFrame::Connect { id, token, .. } => renew(connections, client, id, token).await,
        ClientFrame::Subscribe { .. } => {
            return subscribe::subscribe(connections, client, request, to_stream).await;
        }
        ClientFrame::Unsubscribe { id, channel } => {
            unsubscribe(client, &channel);
            ServerFrame::Unsubscribed { id, channel, code: None }
        }
        ClientFrame::Presence { id, channel, state } => {
            presence_requests::set_state(connections, client, id, channel, state)
        }
        ClientFrame::Publish { id, channel, draft } => {
            publish(connections, client, id, Publication { channel, draft }).await
        }
        ClientFrame::History { id, channel, since, limit } => {
            let limit = limit.unwrap_or(HISTORY_EVENTS).min(connections.limits.history_events);
            let page = history(client, channel, since, limit).await;
            let ok = !matches!(page, Err(BrokerError::Unavailable { .. }));
            connections.record_request(client, ok);
            match page {
                Ok(page) => ServerFrame::History { id, page },
                Err(err) => refusal(id, &err),
            }
        }
    };
    replies::deliver(client, reply, to_stream)
}

/// Authenticates a client by the token of its first frame, and opens its session.
pub(super) async fn authenticate(
    connections: &Connections,
    client: &Arc<Client>,
    request: ConnectRequest,
    token: Token,
) {
    match connections.auth.authenticate(token.reveal()).await {
        Ok(identity) => {
            if client.state().admit_identity(identity) {
                connections.open_session(client, request);
            } else {
                client.close(CloseCode::TryLater.into());
            }
        }
        Err(err) => reject(connections, client, request.id, err),
    }
}

/// Tells a client why its token is not valid, and closes the connection.
pub(super) fn reject(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    err: TokenError,
) {
    connections.count_refused("invalid_token");
    let code = match err {
        TokenError::Expired => CloseCode::TokenExpired,
        TokenError::KeysUnavailable => CloseCode::TryLater,
        _ => CloseCode::Unauthorised,
    };
    let error = ServerFrame::Error { id, code: err.code(), message: err.to_string() };
    client.send(&mut client.state(), &error);
    client.close(code.into());
}

/// Replaces the session's token.
async fn renew(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    token: Option<Token>,
) -> ServerFrame {
    let token = token.as_ref().map_or("", Token::reveal);
    let identity = match connections.auth.authenticate(token).await {
        Ok(identity) => identity,
        Err(err) => return ServerFrame::Error { id, code: err.code(), message: err.to_string() },
    };
    let mut state = client.state();
    if state.user() != identity.user {
        let message = "a session belongs to one user: open another session for this token";
        let message = message.to_owned();
        return ServerFrame::Error { id, code: ErrorCode::Unauthorised, message };
    }
    state.identity = Some(Arc::clone(&identity));
    revoke(connections, client, &mut state, &identity);
    let session = state.session.id();
    drop(state);
    // The connection's task watches when the token expires.
    client.wake.notify_one();
    connections.welcome(session, id)
}

/// Ends the subscriptions and memberships that the renewed token no longer permits.
fn revoke(
    connections: &Connections,
    client: &Client,
    state: &mut ClientState,
    identity: &Identity,
) {
    let may = |verb, channel: &Channel| connections.auth.allows(identity, verb, channel);
    let mut revoked = Vec::new();
    for Subscription { channel, link, .. } in state.session.subscriptions() {
        if !may(Verb::Subscribe, channel) {
            revoked.push(channel.clone());
        }
        if !may(Verb::Presence, channel) {
            link.presence = None;
            if let Some(membership) = link.membership.take() {
                membership.leave();
            }
        }
    }
    for channel in revoked {
        drop(state.session.unsubscribe(&channel));
        client.node.metrics().subscriptions.dec();
        let code = Some(ErrorCode::Forbidden);
        client.send(state, &ServerFrame::Unsubscribed { id: None, channel, code });
    }
}

fn unsubscribe(client: &Client, channel: &Channel) {
    let closed = client.state().session.unsubscribe(channel);
    if let Some(subscription) = closed {
        client.node.metrics().subscriptions.dec();
        if let Some(membership) = subscription.link.membership {
            membership.leave();
        }
    }
}

async fn publish(
    connections: &Connections,
    client: &Arc<Client>,
    id: Option<RequestId>,
    publication: Publication,
) -> ServerFrame {
    let message_id = publication.draft.id.clone();
    let receipts = client.node.publish(vec![publication]).await;
    let receipt = receipts.into_iter().next();
    let unavailable = matches!(receipt, None | Some(Err(BrokerError::Unavailable { .. })));
    connections.record_request(client, !unavailable);
    match receipt {
        Some(Ok(receipt)) => ServerFrame::Published {
            id,
            message_id,
            position: receipt.position,
            duplicate: receipt.duplicate,
        },
        Some(Err(err)) => refusal(id, &err),
        None => ServerFrame::Error {
            id,
            code: ErrorCode::Unavailable,
            message: "the broker gave no answer: publish it again with the same id".to_owned(),
        },
    }
}

async fn history(
    client: &Client,
    channel: Channel,
    since: Option<Position>,
    limit: usize,
) -> Result<Page, BrokerError> {
    let after = since.map_or(0, |since| since.offset);
    let slice = client.node.read(&channel, Range::After(after), limit).await?;
    Ok(replies::page(channel, since, slice))
}
