//! Doing what a session asks for: the only place of a connection that waits for the node.

use std::{sync::Arc, time::Duration};

use super::{
    Floor, Greeting,
    client::{Client, Desk},
    link::{Link, Onlooker},
    sse_retry, welcome,
};
use crate::{
    auth::{Identity, TokenError, Verb},
    broker::{BrokerError, Publication, Range},
    node::{Hold, LogEntry, Start, Tag},
    presence::audience::Watcher,
    protocol::{
        Channel, ClientFrame, CloseCode, Data, ErrorCode, Position, PresenceNews, ServerFrame,
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
    floor: &Floor,
    client: &Arc<Client>,
    request: ClientFrame,
    to_stream: bool,
) -> Option<ServerFrame> {
    let reply = match request {
        ClientFrame::Pong => return None,
        ClientFrame::Report { stats, .. } => {
            let unit = client.desk().unit();
            floor.rollouts.meter.report(&unit, stats.as_str());
            return None;
        }
        ClientFrame::Goodbye => {
            client.desk().account.left = true;
            return None;
        }
        ClientFrame::Connect { id, token, .. } => renew(floor, client, id, token).await,
        ClientFrame::Subscribe { .. } => return subscribe(floor, client, request, to_stream).await,
        ClientFrame::Unsubscribe { id, channel } => {
            let closed = client.desk().session.close(&channel);
            if let Some(subscription) = closed {
                client.node.metrics().subscriptions.dec();
                if let Some(entered) = subscription.link.entered {
                    entered.quit();
                }
            }
            ServerFrame::Unsubscribed { id, channel, code: None }
        }
        ClientFrame::Presence { id, channel, state } => show(floor, client, id, channel, state),
        ClientFrame::Publish { id, channel, draft } => {
            let message_id = draft.id.clone();
            let receipts = client.node.publish(vec![Publication { channel, draft }]).await;
            let receipt = receipts.into_iter().next();
            let unavailable = matches!(receipt, None | Some(Err(BrokerError::Unavailable { .. })));
            floor.requested(client, !unavailable);
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
            let limit = limit.unwrap_or(HISTORY).min(floor.limits.history_events);
            let page = history(client, channel, since, limit).await;
            floor.requested(client, !matches!(page, Err(BrokerError::Unavailable { .. })));
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
    floor: &Floor,
    client: &Client,
    id: Option<RequestId>,
    token: Option<Token>,
) -> ServerFrame {
    let shown = token.as_ref().map_or("", Token::reveal);
    let identity = match floor.auth.identify(shown).await {
        Ok(identity) => identity,
        Err(err) => return ServerFrame::Error { id, code: err.code(), message: err.to_string() },
    };
    let mut desk = client.desk();
    if desk.user() != identity.user {
        let message = "a session stays with its user: open another for this token".to_owned();
        return ServerFrame::Error { id, code: ErrorCode::Unauthorised, message };
    }
    desk.identity = Some(Arc::clone(&identity));
    take_away(floor, client, &mut desk, &identity);
    let session = desk.session.id();
    drop(desk);
    // Its task watches when the token expires.
    client.wake.notify_one();
    welcome(floor, session, id)
}

/// Ends the subscriptions, and the part in presence, that somebody no longer may have.
fn take_away(floor: &Floor, client: &Client, desk: &mut Desk, identity: &Identity) {
    let may = |verb, channel: &Channel| floor.auth.may(identity, verb, channel);
    let mut lost = Vec::new();
    for Subscription { channel, link, .. } in desk.session.subscriptions() {
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
        drop(desk.session.close(&channel));
        client.node.metrics().subscriptions.dec();
        let code = Some(ErrorCode::Forbidden);
        client.send(desk, &ServerFrame::Unsubscribed { id: None, channel, code });
    }
}

/// Finds out who a client is that says so in its first frame, and welcomes it.
pub(super) async fn authenticate(
    floor: &Floor,
    client: &Arc<Client>,
    greeting: Greeting,
    token: Token,
) {
    match floor.auth.identify(token.reveal()).await {
        Ok(identity) => {
            if client.desk().take_identity(identity) {
                floor.welcome(client, greeting);
            } else {
                client.part(CloseCode::TryLater.into());
            }
        }
        Err(err) => turn_away(floor, client, greeting.id, err),
    }
}

/// Says why a client's token does not count, and ends the connection.
pub(super) fn turn_away(floor: &Floor, client: &Client, id: Option<RequestId>, err: TokenError) {
    floor.count_refused("token");
    let code = match err {
        TokenError::Expired => CloseCode::TokenExpired,
        TokenError::KeysUnavailable => CloseCode::TryLater,
        _ => CloseCode::Unauthorised,
    };
    let error = ServerFrame::Error { id, code: err.code(), message: err.to_string() };
    client.send(&mut client.desk(), &error);
    client.part(code.into());
}

/// Opens the channels an SSE client asked for, however long the broker is away: an EventSource that
/// was refused would never come back.
pub(super) async fn open_stream(
    client: &Arc<Client>,
    floor: &Floor,
    (channels, presence): (Vec<(Channel, Option<Position>)>, bool),
) {
    let mut opened = Vec::with_capacity(channels.len());
    for (channel, since) in channels {
        let (hold, start) = loop {
            match client.node.attach(&channel, since).await {
                Ok(attached) => break attached,
                Err(_) => wait().await,
            }
        };
        opened.push((channel, hold, start, since));
    }
    if presence || client.desk().returning {
        floor.cluster.synced().await;
    }
    let mut desk = client.desk();
    if desk.is_closed() {
        return;
    }
    // The token may have been renewed with less while the broker was asked.
    let identity = desk.identity.clone().unwrap_or_default();
    opened.retain(|(channel, ..)| floor.auth.may(&identity, Verb::Subscribe, channel));
    client.send_bytes(&mut desk, sse_retry(floor.config.sse_retry));
    let mut tags = Vec::with_capacity(opened.len());
    for (channel, hold, start, since) in opened {
        if let Some(since) = since {
            floor.resumed(&mut desk, (since, start.head), start.lost);
        }
        tags.push((desk.session.open(channel, start.cursor, Link::new(hold)), start));
        client.node.metrics().subscriptions.inc();
    }
    let session = desk.session.id();
    client.send(&mut desk, &welcome(floor, session, None));
    for (tag, start) in tags {
        let news = presence.then(|| look_on(floor, client, &mut desk, tag)).flatten();
        come_in(floor, &mut desk, tag, None);
        if let Some((channel, news)) =
            desk.session.get_mut(tag).map(|s| s.channel.clone()).zip(news)
        {
            client.send(&mut desk, &ServerFrame::Presence { channel, news });
        }
        begin(client, &mut desk, tag, start);
    }
    drop(desk);
    client.wake.notify_one();
}

/// Reads what a client far behind is to get next from the broker's log, and writes what the socket
/// takes of it. The rest is read again: a slow client costs a cursor, not memory.
pub(super) async fn catch_up(client: Arc<Client>, tag: Tag) {
    let Some((channel, cursor)) =
        client.desk().session.get_mut(tag).map(|s| (s.channel.clone(), s.cursor))
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
    let mut desk = client.desk();
    let Some(subscription) = desk.session.get_mut(tag) else { return };
    if subscription.cursor != cursor || subscription.channel != channel {
        return;
    }
    if slice.epoch != cursor.epoch {
        // The node's own log hears of it, starts anew and nudges its readers; until then there is
        // nothing to do. If it has begun anew already, the nudge may have come before.
        let known = subscription.link.log().head();
        subscription.behind = known.is_none_or(|known| known.epoch != cursor.epoch);
        drop(desk);
        client.node.heard_of(&channel, Position::new(slice.epoch, slice.head));
        return;
    }
    let next = slice.events.first().map_or(u64::MAX, |(offset, _)| *offset);
    if next != cursor.offset + 1 {
        let head = subscription.link.log().head().unwrap_or(cursor);
        return client.reset(&mut desk, tag, head, ResetReason::Expired);
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
    client.write_read(&mut desk, tag, &entries);
}

async fn subscribe(
    floor: &Floor,
    client: &Arc<Client>,
    request: ClientFrame,
    to_stream: bool,
) -> Option<ServerFrame> {
    let ClientFrame::Subscribe { id, ref channel, since, presence, ref state } = request else {
        return None;
    };
    let (hold, start): (Hold, Start) = match client.node.attach(channel, since).await {
        Ok(attached) => attached,
        Err(err) => return deliver(client, refusal(id, &err), to_stream),
    };
    if presence || client.desk().returning {
        floor.cluster.synced().await;
    }
    let mut desk = client.desk();
    // While others were asked, a second request may have done the same, or the client have gone.
    if let Err(refusal) = still_welcome(&mut desk, &request, floor) {
        drop(desk);
        return deliver(client, refusal, to_stream);
    }
    let channel = channel.clone();
    if let Some(since) = since {
        floor.resumed(&mut desk, (since, start.head), start.lost);
    }
    let (position, recovered) = (start.head, start.recovered);
    let tag = desk.session.open(channel.clone(), start.cursor, Link::new(hold));
    client.node.metrics().subscriptions.inc();
    let presence = presence.then(|| look_on(floor, client, &mut desk, tag)).flatten();
    come_in(floor, &mut desk, tag, state.clone());
    let reply = ServerFrame::Subscribed { id, channel, position, recovered, presence };
    let reply = if to_stream {
        client.send(&mut desk, &reply);
        None
    } else {
        Some(reply)
    };
    begin(client, &mut desk, tag, start);
    drop(desk);
    client.wake.notify_one();
    reply
}

/// Has the client told who is in the channel from now on. Returns who is there now.
fn look_on(
    floor: &Floor,
    client: &Arc<Client>,
    desk: &mut Desk,
    tag: Tag,
) -> Option<Box<PresenceNews>> {
    let watcher: Arc<dyn Watcher> = Arc::<Client>::clone(client);
    let subscription = desk.session.get_mut(tag)?;
    let (watching, view) = floor.cluster.watch(&subscription.channel, watcher, tag);
    let number = view.number;
    let onlooker = Onlooker { watching, number, stale: false };
    subscription.link.onlooker = Some(Box::new(onlooker));
    Some(Box::new(view.into()))
}

/// Shows the session in the channel: with this state, or as it was shown there before. How that was
/// is known for certain once the nodes have been told that the session has come here.
fn come_in(floor: &Floor, desk: &mut Desk, tag: Tag, state: Option<Data>) {
    if state.is_none() && desk.claiming {
        return;
    }
    let (member, look) = (desk.member(), desk.look(state));
    let identity = desk.identity.clone().unwrap_or_default();
    if let Some(subscription) = desk.session.get_mut(tag)
        && floor.auth.may(&identity, Verb::Presence, &subscription.channel)
    {
        let entered = floor.cluster.enter(&subscription.channel, member, look);
        subscription.link.entered = entered.map(Box::new);
    }
}

/// The nodes have been told that the session has come here: it is shown where it was shown before.
pub(super) fn settle(floor: &Floor, client: &Client) {
    let mut desk = client.desk();
    desk.claiming = false;
    let (member, look) = (desk.member(), desk.look(None));
    let identity = desk.identity.clone().unwrap_or_default();
    for Subscription { channel, link, .. } in desk.session.subscriptions() {
        if link.entered.is_none() && floor.auth.may(&identity, Verb::Presence, channel) {
            link.entered = floor.cluster.enter(channel, member, look.clone()).map(Box::new);
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
    floor: &Floor,
    client: &Client,
    id: Option<RequestId>,
    channel: Channel,
    state: Option<Data>,
) -> ServerFrame {
    let mut desk = client.desk();
    let (member, look) = (desk.member(), desk.look(state.clone()));
    if let Some(subscription) = desk.session.get(&channel) {
        subscription.link.hidden = state.is_none();
        let entered = &mut subscription.link.entered;
        match (entered.take(), state) {
            (Some(shown), Some(state)) => {
                *entered = if shown.update(state) {
                    Some(shown)
                } else {
                    floor.cluster.enter(&channel, member, look).map(Box::new)
                };
            }
            (Some(shown), None) => shown.quit(),
            (None, Some(_)) => {
                *entered = floor.cluster.enter(&channel, member, look).map(Box::new);
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

fn still_welcome(desk: &mut Desk, request: &ClientFrame, floor: &Floor) -> Result<(), ServerFrame> {
    if desk.is_closed() {
        let message = "the session's connection has ended".to_owned();
        return Err(request.refused(ErrorCode::SessionUnknown, message));
    }
    floor.check(desk, request)
}

/// Tells what was lost, and takes a seat: from here on nothing is missed, since what came in between
/// is read by the task, which starts out behind.
fn begin(client: &Arc<Client>, desk: &mut Desk, tag: Tag, start: Start) {
    if let Some(reason) = start.lost {
        client.reset(desk, tag, start.cursor, reason);
    }
    let reader = Arc::clone(client);
    if let Some(subscription) = desk.session.get_mut(tag) {
        subscription.link.hold.sit(reader, tag);
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
    client.send(&mut client.desk(), &reply);
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
