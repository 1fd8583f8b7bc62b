//! Membership of this node's sessions in channels' presence, and subscriptions to it.

use std::sync::Arc;

use super::{
    message::Payload,
    shared::{Cluster, LocalMember, State},
};
use crate::{
    lifecycle,
    presence::{
        PresenceUpdate,
        subscribers::{PresenceSubscriber, View},
    },
    protocol::{Channel, Data, Member, MemberId, UserId},
};

/// How a session appears in presence.
#[derive(Clone, Debug, Default)]
pub struct MemberDetails {
    /// The session's user.
    pub user: Option<UserId>,
    /// The `info` claim of the user's token.
    pub info: Option<Data>,
    /// The session's state; none to keep the one it had.
    pub state: Option<Data>,
}

/// A session's membership in a channel. Dropping it releases the member, which may reconnect within
/// `cluster.presence_grace`.
#[derive(Debug)]
pub struct PresenceHandle {
    cluster: Arc<Cluster>,
    channel: Channel,
    session: MemberId,
    generation: u64,
}

/// A subscription to a channel's presence, until it is dropped.
#[derive(Debug)]
pub struct SubscriberHandle {
    cluster: Arc<Cluster>,
    channel: Channel,
    slot: usize,
}

impl Cluster {
    /// Makes a session a member of a channel until the returned handle is dropped and the grace is over.
    /// A session that is a member already keeps its state, unless it brings another. None when it was
    /// not a member and brings none.
    pub fn join(
        self: &Arc<Self>,
        channel: &Channel,
        session: MemberId,
        look: MemberDetails,
    ) -> Option<PresenceHandle> {
        let mut state = self.state.lock();
        let local = state.local.get(&(channel.clone(), session)).map(|local| &local.member);
        let before = local.or_else(|| state.roster.member(channel, session)).cloned();
        if look.state.is_none() && before.is_none() {
            return None;
        }
        let MemberDetails { user, info, state: member_state } = look;
        let member = Arc::new(Member {
            session,
            user,
            info,
            state: member_state.or_else(|| before.as_ref().and_then(|before| before.state.clone())),
            since: before.map_or_else(lifecycle::unix_ms, |before| before.since),
        });
        let generation = self.next_number();
        let new = || LocalMember { member: Arc::clone(&member), connections: 0, generation };
        let local = state.local.entry((channel.clone(), session)).or_insert_with(new);
        local.member = Arc::clone(&member);
        local.connections += 1;
        let generation = local.generation;
        let update = PresenceUpdate::Hold(channel.clone(), member);
        self.send(&mut state, &Payload::Presence(update));
        let cluster = Arc::clone(self);
        Some(PresenceHandle { cluster, channel: channel.clone(), session, generation })
    }

    /// Subscribes to a channel's presence. Returns what it is now; diffs follow.
    pub fn subscribe_presence(
        self: &Arc<Self>,
        channel: &Channel,
        subscriber: Arc<dyn PresenceSubscriber>,
        tag: u32,
    ) -> (SubscriberHandle, View) {
        let mut state = self.state.lock();
        let State { roster, subscribers, .. } = &mut *state;
        let (slot, view) = subscribers.subscribe(roster, channel, subscriber, tag);
        drop(state);
        (SubscriberHandle { cluster: Arc::clone(self), channel: channel.clone(), slot }, view)
    }
}

impl PresenceHandle {
    /// Changes the member's state. Returns whether it is still a member: another connection of the
    /// session may have left.
    pub fn update(&self, member_state: Data) -> bool {
        let mut state = self.cluster.state.lock();
        let Some(local) = self.local(&mut state) else { return false };
        Arc::make_mut(&mut local.member).state = Some(member_state);
        let update = PresenceUpdate::Hold(self.channel.clone(), Arc::clone(&local.member));
        self.cluster.send(&mut state, &Payload::Presence(update));
        true
    }

    /// Leaves at once, for all connections of the session.
    pub fn leave(self) {
        let mut state = self.cluster.state.lock();
        if self.local(&mut state).is_some() {
            state.local.remove(&(self.channel.clone(), self.session));
            let update = PresenceUpdate::Leave(self.channel.clone(), self.session);
            self.cluster.send(&mut state, &Payload::Presence(update));
        }
    }

    fn local<'a>(&self, state: &'a mut State) -> Option<&'a mut LocalMember> {
        let local = state.local.get_mut(&(self.channel.clone(), self.session))?;
        (local.generation == self.generation).then_some(local)
    }
}

impl Drop for PresenceHandle {
    fn drop(&mut self) {
        let mut state = self.cluster.state.lock();
        let Some(local) = self.local(&mut state) else { return };
        local.connections -= 1;
        if local.connections == 0 {
            state.local.remove(&(self.channel.clone(), self.session));
            let update = PresenceUpdate::Release(self.channel.clone(), self.session);
            self.cluster.send(&mut state, &Payload::Presence(update));
        }
    }
}

impl SubscriberHandle {
    /// The channel's presence as its subscribers know it now.
    pub fn view(&self) -> Option<View> {
        let state = self.cluster.state.lock();
        state.subscribers.view(&state.roster, &self.channel)
    }
}

impl Drop for SubscriberHandle {
    fn drop(&mut self) {
        let removed = self.cluster.state.lock().subscribers.unsubscribe(&self.channel, self.slot);
        // Outside the lock: it may be the last reference to the subscriber.
        drop(removed);
    }
}
