//! Subscriptions: attaching a client to channels, and catching up from the broker's log.

use std::{sync::Arc, time::Duration};

use super::{
    active_subscription::ActiveSubscription, client::Client, client_state::ClientState,
    presence_requests, registry::Connections, replies,
};
use crate::{
    auth::Verb,
    broker::Range,
    node::{ChannelHandle, LogEntry, Start, Tag},
    protocol::{ClientFrame, ErrorCode, Position, ServerFrame, frame::ResetReason},
    wire::StreamRequest,
};

/// Events read from the broker's log at a time, for a client that is far behind.
const CATCH_UP_EVENTS: usize = 64;

/// Pause before the broker is asked again for a client that can only wait.
const RETRY: Duration = Duration::from_millis(500);

/// Performs a subscribe request. The reply is queued, or returned where it does not go to the stream.
pub(super) async fn subscribe(
    connections: &Connections,
    client: &Arc<Client>,
    request: ClientFrame,
    to_stream: bool,
) -> Option<ServerFrame> {
    let ClientFrame::Subscribe { id, ref channel, since, presence, state: ref member_state } =
        request
    else {
        return None;
    };
    let (handle, start): (ChannelHandle, Start) = match client.node.attach(channel, since).await {
        Ok(attached) => attached,
        Err(err) => return replies::deliver(client, replies::refusal(id, &err), to_stream),
    };
    if presence || client.state().resumed {
        connections.cluster.synced().await;
    }
    let mut state = client.state();
    // While the node was asked, another request may have done the same, or the client may have gone.
    if let Err(refusal) = check_again(connections, &mut state, &request) {
        drop(state);
        return replies::deliver(client, refusal, to_stream);
    }
    let channel = channel.clone();
    if let Some(since) = since {
        connections.record_resume(&mut state, (since, start.head), start.lost);
    }
    let (position, recovered) = (start.head, start.recovered);
    let tag =
        state.session.subscribe(channel.clone(), start.cursor, ActiveSubscription::new(handle));
    client.node.metrics().subscriptions.inc();
    let presence = presence
        .then(|| presence_requests::subscribe(connections, client, &mut state, tag))
        .flatten();
    presence_requests::join(connections, &mut state, tag, member_state.clone());
    let reply = ServerFrame::Subscribed { id, channel, position, recovered, presence };
    let reply = if to_stream {
        client.send(&mut state, &reply);
        None
    } else {
        Some(reply)
    };
    begin(client, &mut state, tag, start);
    drop(state);
    client.wake.notify_one();
    reply
}

/// Attaches a stream to the channels that its request named, however long the broker is away: an
/// EventSource that was refused would never reconnect.
pub(super) async fn open_stream(
    client: &Arc<Client>,
    connections: &Connections,
    StreamRequest { channels, unknown_position, presence, .. }: StreamRequest,
) {
    let mut attached = Vec::with_capacity(channels.len());
    for (channel, since) in channels {
        let (handle, start) = loop {
            match client.node.attach(&channel, since).await {
                Ok(attached) => break attached,
                Err(_) => pause().await,
            }
        };
        let lost = unknown_position.then_some(ResetReason::Epoch).or(start.lost);
        attached.push((channel, handle, Start { lost, ..start }, since));
    }
    if presence || client.state().resumed {
        connections.cluster.synced().await;
    }
    let mut state = client.state();
    if state.is_closed() {
        return;
    }
    // The token may have been renewed with fewer permissions while the broker was asked.
    let identity = state.identity.clone().unwrap_or_default();
    attached.retain(|(channel, ..)| connections.auth.allows(&identity, Verb::Subscribe, channel));
    if let Some(preamble) = state.replies.preamble(connections.config.sse_retry) {
        client.send_bytes(&mut state, preamble);
    }
    let mut subscribed = Vec::with_capacity(attached.len());
    for (channel, handle, start, since) in attached {
        if let Some(since) = since {
            connections.record_resume(&mut state, (since, start.head), start.lost);
        }
        let link = ActiveSubscription::new(handle);
        subscribed.push((state.session.subscribe(channel, start.cursor, link), start));
        client.node.metrics().subscriptions.inc();
    }
    let welcome = connections.welcome(state.session.id(), None);
    client.send(&mut state, &welcome);
    for (tag, start) in subscribed {
        let members = presence
            .then(|| presence_requests::subscribe(connections, client, &mut state, tag))
            .flatten();
        presence_requests::join(connections, &mut state, tag, None);
        let channel = state.session.by_tag(tag).map(|subscription| subscription.channel.clone());
        if let Some((channel, frame)) = channel.zip(members) {
            client.send(&mut state, &ServerFrame::Presence { channel, frame });
        }
        begin(client, &mut state, tag, start);
    }
    drop(state);
    client.wake.notify_one();
}

/// Reads what a client far behind gets next from the broker's log, and writes what the socket accepts
/// of it. The rest is read again: a slow client costs a cursor, not memory.
pub(super) async fn catch_up(client: Arc<Client>, tag: Tag) {
    let read = |client: &Client| {
        let mut state = client.state();
        state.session.by_tag(tag).map(|s| (s.channel.clone(), s.cursor))
    };
    let Some((channel, cursor)) = read(&client) else { return };
    client.node.metrics().catch_ups.inc();
    let range = Range::After(cursor.offset);
    let Ok(slice) = client.node.read(&channel, range, CATCH_UP_EVENTS).await else {
        pause().await;
        client.wake.notify_one();
        return;
    };
    let mut state = client.state();
    let Some(subscription) = state.session.by_tag(tag) else { return };
    if subscription.cursor != cursor || subscription.channel != channel {
        return;
    }
    if slice.epoch != cursor.epoch {
        // The node's log learns of the new epoch below and wakes its readers; until then there is
        // nothing to do. If it knows already, it may have woken them before.
        let known = subscription.link.log().head();
        subscription.behind = known.is_none_or(|known| known.epoch != cursor.epoch);
        drop(state);
        client.node.observe_head(&channel, Position::new(slice.epoch, slice.head));
        return;
    }
    let next = slice.events.first().map_or(u64::MAX, |(offset, _)| *offset);
    if next != cursor.offset + 1 {
        let head = subscription.link.log().head().unwrap_or(cursor);
        return client.reset(&mut state, tag, head, ResetReason::Expired);
    }
    let entries: Vec<_> = slice
        .events
        .into_iter()
        .map(|(offset, event)| {
            let position = Position::new(slice.epoch, offset);
            let repeat = client.node.was_delivered_before(&channel, position, &event);
            Arc::new(LogEntry::new(channel.clone(), position, event, repeat))
        })
        .collect();
    client.write_caught_up(&mut state, tag, &entries);
}

fn check_again(
    connections: &Connections,
    state: &mut ClientState,
    request: &ClientFrame,
) -> Result<(), ServerFrame> {
    if state.is_closed() {
        let message = "the session's connection has ended".to_owned();
        return Err(request.refused(ErrorCode::SessionUnknown, message));
    }
    connections.check(state, request)
}

/// Tells what was lost, and attaches the client as a reader. From here on nothing is missed: the
/// client starts out behind, so its task reads what was appended in between.
fn begin(client: &Arc<Client>, state: &mut ClientState, tag: Tag, start: Start) {
    if let Some(reason) = start.lost {
        client.reset(state, tag, start.cursor, reason);
    }
    let reader = Arc::clone(client);
    if let Some(subscription) = state.session.by_tag(tag) {
        subscription.link.channel.attach(reader, tag);
    }
}

async fn pause() {
    #[expect(clippy::disallowed_methods, reason = "a pause before the broker is asked again")]
    tokio::time::sleep(RETRY).await;
}
