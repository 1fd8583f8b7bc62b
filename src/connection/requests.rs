//! Doing what a session asks for: the only place of a connection that waits for the node.

use std::{sync::Arc, time::Duration};

use super::{
    ConnectRequest, Connections,
    active_subscription::{ActiveSubscription, PresenceSubscription},
    client::{Client, ClientState},
    sse_retry, welcome,
};
use crate::{
    auth::{Identity, TokenError, Verb},
    broker::{BrokerError, Publication, Range},
    node::{ChannelHandle, LogEntry, Start, Tag},
    presence::subscribers::PresenceSubscriber,
    protocol::{
        Channel, ClientFrame, CloseCode, Data, ErrorCode, Position, PresenceFrame, ServerFrame,
        Token,
        frame::{Page, PageEvent, RequestId, ResetReason},
    },
    session::Subscription,
};

/// Events that a client far behind is given from the broker's log in one go.
const CATCH_UP: usize = 64;

/// Events of a history whose request names no limit.
const HISTORY: usize = 100;

/// Pause before the broker is asked again for a client that can only wait.
const RETRY: Duration = Duration::from_millis(500);

/// Performs a request. The reply goes to the client's stream, or is returned to the caller.
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
            client.state().account.left = true;
            return None;
        }
        ClientFrame::Connect { id, token, .. } => renew(connections, client, id, token).await,
        ClientFrame::Subscribe { .. } => {
            return subscribe(connections, client, request, to_stream).await;
        }
        ClientFrame::Unsubscribe { id, channel } => {
            let closed = client.state().session.close(&channel);
            if let Some(subscription) = closed {
                client.node.metrics().subscriptions.dec();
                if let Some(entered) = subscription.link.entered {
                    entered.quit();
                }
            }
            ServerFrame::Unsubscribed { id, channel, code: None }
        }
        ClientFrame::Presence { id, channel, state } => {
            show(connections, client, id, channel, state)
        }
        ClientFrame::Publish { id, channel, draft } => {
            let message_id = draft.id.clone();
            let receipts = client.node.publish(vec![Publication { channel, draft }]).await;
            let receipt = receipts.into_iter().next();
            let unavailable = matches!(receipt, None | Some(Err(BrokerError::Unavailable { .. })));
            connections.requested(client, !unavailable);
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
                    message: "the broker gave no answer: repeat it with the same id".to_owned(),
                },
            }
        }
        ClientFrame::History { id, channel, since, limit } => {
            let limit = limit.unwrap_or(HISTORY).min(connections.limits.history_events);
            let page = history(client, channel, since, limit).await;
            connections.requested(client, !matches!(page, Err(BrokerError::Unavailable { .. })));
            match page {
                Ok(page) => ServerFrame::History { id, page },
                Err(err) => refusal(id, &err),
            }
        }
    };
    deliver(client, reply, to_stream)
}

/// Takes a new token in the place of the one before.
async fn renew(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    token: Option<Token>,
) -> ServerFrame {
    let shown = token.as_ref().map_or("", Token::reveal);
    let identity = match connections.auth.identify(shown).await {
        Ok(identity) => identity,
        Err(err) => return ServerFrame::Error { id, code: err.code(), message: err.to_string() },
    };
    let mut client_state = client.state();
    if client_state.user() != identity.user {
        let message = "a session stays with its user: open another for this token".to_owned();
        return ServerFrame::Error { id, code: ErrorCode::Unauthorised, message };
    }
    client_state.identity = Some(Arc::clone(&identity));
    take_away(connections, client, &mut client_state, &identity);
    let session = client_state.session.id();
    drop(client_state);
    // Its task watches when the token expires.
    client.wake.notify_one();
    welcome(connections, session, id)
}

/// Ends the subscriptions, and the part in presence, that somebody no longer may have.
fn take_away(
    connections: &Connections,
    client: &Client,
    client_state: &mut ClientState,
    identity: &Identity,
) {
    let may = |verb, channel: &Channel| connections.auth.may(identity, verb, channel);
    let mut lost = Vec::new();
    for Subscription { channel, link, .. } in client_state.session.subscriptions() {
        if !may(Verb::Subscribe, channel) {
            lost.push(channel.clone());
        }
        if !may(Verb::Presence, channel) {
            link.onlooker = None;
            if let Some(entered) = link.entered.take() {
                entered.quit();
            }
        }
    }
    for channel in lost {
        drop(client_state.session.close(&channel));
        client.node.metrics().subscriptions.dec();
        let code = Some(ErrorCode::Forbidden);
        client.send(client_state, &ServerFrame::Unsubscribed { id: None, channel, code });
    }
}

/// Finds out who a client is that says so in its first frame, and welcomes it.
pub(super) async fn authenticate(
    connections: &Connections,
    client: &Arc<Client>,
    greeting: ConnectRequest,
    token: Token,
) {
    match connections.auth.identify(token.reveal()).await {
        Ok(identity) => {
            if client.state().take_identity(identity) {
                connections.welcome(client, greeting);
            } else {
                client.part(CloseCode::TryLater.into());
            }
        }
        Err(err) => turn_away(connections, client, greeting.id, err),
    }
}

/// Says why a client's token does not count, and ends the connection.
pub(super) fn turn_away(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    err: TokenError,
) {
    connections.count_refused("token");
    let code = match err {
        TokenError::Expired => CloseCode::TokenExpired,
        TokenError::KeysUnavailable => CloseCode::TryLater,
        _ => CloseCode::Unauthorised,
    };
    let error = ServerFrame::Error { id, code: err.code(), message: err.to_string() };
    client.send(&mut client.state(), &error);
    client.part(code.into());
}

/// Opens the channels an SSE client asked for, however long the broker is away: an EventSource that
/// was refused would never come back.
pub(super) async fn open_stream(
    client: &Arc<Client>,
    connections: &Connections,
    (channels, presence): (Vec<(Channel, Option<Position>)>, bool),
) {
    let mut opened = Vec::with_capacity(channels.len());
    for (channel, since) in channels {
        let (handle, start) = loop {
            match client.node.attach(&channel, since).await {
                Ok(attached) => break attached,
                Err(_) => wait().await,
            }
        };
        opened.push((channel, handle, start, since));
    }
    if presence || client.state().returning {
        connections.cluster.synced().await;
    }
    let mut client_state = client.state();
    if client_state.is_closed() {
        return;
    }
    // The token may have been renewed with less while the broker was asked.
    let identity = client_state.identity.clone().unwrap_or_default();
    opened.retain(|(channel, ..)| connections.auth.may(&identity, Verb::Subscribe, channel));
    client.send_bytes(&mut client_state, sse_retry(connections.config.sse_retry));
    let mut tags = Vec::with_capacity(opened.len());
    for (channel, handle, start, since) in opened {
        if let Some(since) = since {
            connections.resumed(&mut client_state, (since, start.head), start.lost);
        }
        tags.push((
            client_state.session.open(channel, start.cursor, ActiveSubscription::new(handle)),
            start,
        ));
        client.node.metrics().subscriptions.inc();
    }
    let session = client_state.session.id();
    client.send(&mut client_state, &welcome(connections, session, None));
    for (tag, start) in tags {
        let news = presence.then(|| look_on(connections, client, &mut client_state, tag)).flatten();
        come_in(connections, &mut client_state, tag, None);
        if let Some((channel, news)) =
            client_state.session.get_mut(tag).map(|s| s.channel.clone()).zip(news)
        {
            client.send(&mut client_state, &ServerFrame::Presence { channel, news });
        }
        begin(client, &mut client_state, tag, start);
    }
    drop(client_state);
    client.wake.notify_one();
}

/// Reads what a client far behind is to get next from the broker's log, and writes what the socket
/// takes of it. The rest is read again: a slow client costs a cursor, not memory.
pub(super) async fn catch_up(client: Arc<Client>, tag: Tag) {
    let Some((channel, cursor)) =
        client.state().session.get_mut(tag).map(|s| (s.channel.clone(), s.cursor))
    else {
        return;
    };
    client.node.metrics().catch_ups.inc();
    let range = Range::After(cursor.offset);
    let Ok(slice) = client.node.read(&channel, range, CATCH_UP).await else {
        wait().await;
        client.wake.notify_one();
        return;
    };
    let mut client_state = client.state();
    let Some(subscription) = client_state.session.get_mut(tag) else { return };
    if subscription.cursor != cursor || subscription.channel != channel {
        return;
    }
    if slice.epoch != cursor.epoch {
        // The node's own log hears of it, starts anew and nudges its readers; until then there is
        // nothing to do. If it has begun anew already, the wake may have come before.
        let known = subscription.link.log().head();
        subscription.behind = known.is_none_or(|known| known.epoch != cursor.epoch);
        drop(client_state);
        client.node.observe_head(&channel, Position::new(slice.epoch, slice.head));
        return;
    }
    let next = slice.events.first().map_or(u64::MAX, |(offset, _)| *offset);
    if next != cursor.offset + 1 {
        let head = subscription.link.log().head().unwrap_or(cursor);
        return client.reset(&mut client_state, tag, head, ResetReason::Expired);
    }
    let entries: Vec<_> = slice
        .events
        .into_iter()
        .map(|(offset, event)| {
            let position = Position::new(slice.epoch, offset);
            let repeat = client.node.was_shown_before(&channel, position, &event);
            Arc::new(LogEntry::new(channel.clone(), position, event, repeat))
        })
        .collect();
    client.write_read(&mut client_state, tag, &entries);
}

async fn subscribe(
    connections: &Connections,
    client: &Arc<Client>,
    request: ClientFrame,
    to_stream: bool,
) -> Option<ServerFrame> {
    let ClientFrame::Subscribe { id, ref channel, since, presence, ref state } = request else {
        return None;
    };
    let (handle, start): (ChannelHandle, Start) = match client.node.attach(channel, since).await {
        Ok(attached) => attached,
        Err(err) => return deliver(client, refusal(id, &err), to_stream),
    };
    if presence || client.state().returning {
        connections.cluster.synced().await;
    }
    let mut client_state = client.state();
    // While others were asked, a second request may have done the same, or the client have gone.
    if let Err(refusal) = still_welcome(&mut client_state, &request, connections) {
        drop(client_state);
        return deliver(client, refusal, to_stream);
    }
    let channel = channel.clone();
    if let Some(since) = since {
        connections.resumed(&mut client_state, (since, start.head), start.lost);
    }
    let (position, recovered) = (start.head, start.recovered);
    let tag =
        client_state.session.open(channel.clone(), start.cursor, ActiveSubscription::new(handle));
    client.node.metrics().subscriptions.inc();
    let presence = presence.then(|| look_on(connections, client, &mut client_state, tag)).flatten();
    come_in(connections, &mut client_state, tag, state.clone());
    let reply = ServerFrame::Subscribed { id, channel, position, recovered, presence };
    let reply = if to_stream {
        client.send(&mut client_state, &reply);
        None
    } else {
        Some(reply)
    };
    begin(client, &mut client_state, tag, start);
    drop(client_state);
    client.wake.notify_one();
    reply
}

/// Has the client told who is in the channel from now on. Returns who is there now.
fn look_on(
    connections: &Connections,
    client: &Arc<Client>,
    client_state: &mut ClientState,
    tag: Tag,
) -> Option<Box<PresenceFrame>> {
    let watcher: Arc<dyn PresenceSubscriber> = Arc::<Client>::clone(client);
    let subscription = client_state.session.get_mut(tag)?;
    let (watching, view) = connections.cluster.watch(&subscription.channel, watcher, tag);
    let number = view.number;
    let onlooker = PresenceSubscription { watching, number, stale: false };
    subscription.link.onlooker = Some(Box::new(onlooker));
    Some(Box::new(view.into()))
}

/// Shows the session in the channel: with this state, or as it was shown there before. How that was
/// is known for certain once the nodes have been told that the session has come here.
fn come_in(
    connections: &Connections,
    client_state: &mut ClientState,
    tag: Tag,
    state: Option<Data>,
) {
    if state.is_none() && client_state.claiming {
        return;
    }
    let (member, look) = (client_state.member(), client_state.look(state));
    let identity = client_state.identity.clone().unwrap_or_default();
    if let Some(subscription) = client_state.session.get_mut(tag)
        && connections.auth.may(&identity, Verb::Presence, &subscription.channel)
    {
        let entered = connections.cluster.enter(&subscription.channel, member, look);
        subscription.link.entered = entered.map(Box::new);
    }
}

/// The nodes have been told that the session has come here: it is shown where it was shown before.
pub(super) fn settle(connections: &Connections, client: &Client) {
    let mut client_state = client.state();
    client_state.claiming = false;
    let (member, look) = (client_state.member(), client_state.look(None));
    let identity = client_state.identity.clone().unwrap_or_default();
    for Subscription { channel, link, .. } in client_state.session.subscriptions() {
        if link.entered.is_none() && connections.auth.may(&identity, Verb::Presence, channel) {
            link.entered = connections.cluster.enter(channel, member, look.clone()).map(Box::new);
            if link.hidden
                && let Some(entered) = link.entered.take()
            {
                entered.quit();
            }
        }
    }
}

/// Shows a subscribed session in its channel, or takes it away.
fn show(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    channel: Channel,
    state: Option<Data>,
) -> ServerFrame {
    let mut client_state = client.state();
    let (member, look) = (client_state.member(), client_state.look(state.clone()));
    if let Some(subscription) = client_state.session.get(&channel) {
        subscription.link.hidden = state.is_none();
        let entered = &mut subscription.link.entered;
        match (entered.take(), state) {
            (Some(shown), Some(state)) => {
                *entered = if shown.update(state) {
                    Some(shown)
                } else {
                    connections.cluster.enter(&channel, member, look).map(Box::new)
                };
            }
            (Some(shown), None) => shown.quit(),
            (None, Some(_)) => {
                *entered = connections.cluster.enter(&channel, member, look).map(Box::new);
            }
            (None, None) => {}
        }
        let session = entered.is_some().then_some(member);
        return ServerFrame::Shown { id, channel, session };
    }
    // It was subscribed when the request was checked; a request beside it took that away.
    let message = format!("this session is not subscribed to {channel}");
    ServerFrame::Error { id, code: ErrorCode::NotSubscribed, message }
}

fn still_welcome(
    client_state: &mut ClientState,
    request: &ClientFrame,
    connections: &Connections,
) -> Result<(), ServerFrame> {
    if client_state.is_closed() {
        let message = "the session's connection has ended".to_owned();
        return Err(request.refused(ErrorCode::SessionUnknown, message));
    }
    connections.check(client_state, request)
}

/// Tells what was lost, and takes a seat: from here on nothing is missed, since what came in between
/// is read by the task, which starts out behind.
fn begin(client: &Arc<Client>, client_state: &mut ClientState, tag: Tag, start: Start) {
    if let Some(reason) = start.lost {
        client.reset(client_state, tag, start.cursor, reason);
    }
    let reader = Arc::clone(client);
    if let Some(subscription) = client_state.session.get_mut(tag) {
        subscription.link.handle.attach(reader, tag);
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
    Ok(page(channel, since, slice))
}

/// Shows a forward slice as a page.
pub(crate) fn page(channel: Channel, since: Option<Position>, slice: crate::broker::Slice) -> Page {
    let after = since.map_or(0, |since| since.offset);
    let first = slice.events.first().map(|(offset, _)| *offset);
    let last = slice.events.last().map_or(after, |(offset, _)| *offset);
    let same_log = since.is_none_or(|since| since.epoch == slice.epoch);
    let from_the_start = first.is_none_or(|first| first == after + 1);
    let complete = same_log && from_the_start && last == slice.head;
    let show =
        |(offset, event): &(u64, _)| PageEvent::new(Position::new(slice.epoch, *offset), event);
    let events = slice.events.iter().map(show).collect();
    Page { channel, events, position: Position::new(slice.epoch, slice.head), complete }
}

fn deliver(client: &Client, reply: ServerFrame, to_stream: bool) -> Option<ServerFrame> {
    if !to_stream {
        return Some(reply);
    }
    client.send(&mut client.state(), &reply);
    None
}

fn refusal(id: Option<RequestId>, err: &BrokerError) -> ServerFrame {
    ServerFrame::Error { id, code: code_of(err), message: err.to_string() }
}

/// The code a broker's failure goes out with.
pub(crate) fn code_of(err: &BrokerError) -> ErrorCode {
    match err {
        BrokerError::Unavailable { .. } => ErrorCode::Unavailable,
        BrokerError::Refused { .. } => ErrorCode::Refused,
    }
}

async fn wait() {
    #[expect(clippy::disallowed_methods, reason = "the broker is away; the client waits with us")]
    tokio::time::sleep(RETRY).await;
}
