//! A client's presence in its channels: receiving it, joining it, leaving it.

use std::sync::Arc;

use super::{
    active_subscription::PresenceSubscription, client::Client, client_state::ClientState,
    registry::Connections,
};
use crate::{
    auth::Verb,
    node::Tag,
    presence::subscribers::PresenceSubscriber,
    protocol::{Channel, Data, ErrorCode, PresenceFrame, ServerFrame, frame::RequestId},
    session::Subscription,
};

/// Subscribes the client to the channel's presence. Returns the current members.
pub(super) fn subscribe(
    connections: &Connections,
    client: &Arc<Client>,
    state: &mut ClientState,
    tag: Tag,
) -> Option<Box<PresenceFrame>> {
    let receiver: Arc<dyn PresenceSubscriber> = Arc::<Client>::clone(client);
    let subscription = state.session.by_tag(tag)?;
    let (subscriber, view) =
        connections.cluster.subscribe_presence(&subscription.channel, receiver, tag);
    let number = view.number;
    let presence = PresenceSubscription { subscriber, number, stale: false };
    subscription.link.presence = Some(Box::new(presence));
    Some(Box::new(view.into()))
}

/// Makes the session a member of the channel's presence: with this state, or as it was a member
/// before. How it was is certain only once its claim has been read back: until then nothing is done.
pub(super) fn join(
    connections: &Connections,
    state: &mut ClientState,
    tag: Tag,
    member_state: Option<Data>,
) {
    if member_state.is_none() && state.claim_pending {
        return;
    }
    let (member, details) = (state.member(), state.member_details(member_state));
    let identity = state.identity.clone().unwrap_or_default();
    if let Some(subscription) = state.session.by_tag(tag)
        && connections.auth.allows(&identity, Verb::Presence, &subscription.channel)
    {
        let membership = connections.cluster.join(&subscription.channel, member, details);
        subscription.link.membership = membership.map(Box::new);
    }
}

/// The session's claim has been read back: it becomes a member again wherever it was one before.
pub(super) fn rejoin(connections: &Connections, client: &Client) {
    let mut state = client.state();
    state.claim_pending = false;
    let (member, details) = (state.member(), state.member_details(None));
    let identity = state.identity.clone().unwrap_or_default();
    for Subscription { channel, link, .. } in state.session.subscriptions() {
        if link.membership.is_none() && connections.auth.allows(&identity, Verb::Presence, channel)
        {
            link.membership =
                connections.cluster.join(channel, member, details.clone()).map(Box::new);
            if link.left_presence
                && let Some(membership) = link.membership.take()
            {
                membership.leave();
            }
        }
    }
}

/// Performs a presence request: joins, changes the state, or leaves.
pub(super) fn set_state(
    connections: &Connections,
    client: &Client,
    id: Option<RequestId>,
    channel: Channel,
    member_state: Option<Data>,
) -> ServerFrame {
    let mut state = client.state();
    let (member, details) = (state.member(), state.member_details(member_state.clone()));
    if let Some(subscription) = state.session.by_channel(&channel) {
        subscription.link.left_presence = member_state.is_none();
        let membership = &mut subscription.link.membership;
        match (membership.take(), member_state) {
            (Some(joined), Some(member_state)) => {
                *membership = if joined.update(member_state) {
                    Some(joined)
                } else {
                    connections.cluster.join(&channel, member, details).map(Box::new)
                };
            }
            (Some(joined), None) => joined.leave(),
            (None, Some(_)) => {
                *membership = connections.cluster.join(&channel, member, details).map(Box::new);
            }
            (None, None) => {}
        }
        let session = membership.is_some().then_some(member);
        return ServerFrame::Shown { id, channel, session };
    }
    // It was subscribed when the request was checked; a request beside it ended that.
    let message = format!("this session is not subscribed to {channel}");
    ServerFrame::Error { id, code: ErrorCode::NotSubscribed, message }
}
