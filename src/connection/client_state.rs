//! The mutable state of a client, shared by the fan-out and the connection's task behind a mutex.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    active_subscription::ActiveSubscription, admission::AdmissionPermit, close_reason::CloseReason,
    migration_state::MigrationState, session_stats::SessionStats,
};
use crate::{
    auth::Identity,
    cluster::MemberDetails,
    protocol::{Data, MemberId, UserId},
    rollout::assignment::Unit,
    session::{Session, Subscription, TokenBucket},
    wire::Replies,
};

/// The mutable state of a client. Fields that a delivery touches come first: they lie side by side in
/// memory.
#[repr(C)]
pub(super) struct ClientState {
    pub(super) write: WriteState,
    /// Bytes that the socket did not accept yet: replies, and the rest of at most one event.
    pub(super) unsent: VecDeque<Bytes>,
    pub(super) session: Session<ActiveSubscription>,
    /// The encoder of replies.
    pub(super) replies: Box<dyn Replies>,
    /// The client's identity; none until it is authenticated.
    pub(super) identity: Option<Arc<Identity>>,
    /// The admission permit, given back when the connection ends.
    pub(super) permit: Option<Box<dyn AdmissionPermit>>,
    /// How many frames the client may send.
    pub(super) frame_bucket: TokenBucket,
    /// How many events it may publish.
    pub(super) publish_bucket: TokenBucket,
    /// The session had a connection before, and may be a member of some channel's presence.
    pub(super) resumed: bool,
    /// The session's claim has been published and not been read back yet.
    pub(super) claim_pending: bool,
    /// The client opened this connection to migrate to its transport.
    pub(super) migrated: bool,
    /// The session continues on another connection; this one may end by itself.
    pub(super) superseded: bool,
    /// What is known for migrating it to another transport.
    pub(super) migration: MigrationState,
    /// What is remembered for the rollout's measurements.
    pub(super) stats: SessionStats,
    /// Why the connection is to be closed.
    close_reason: Option<CloseReason>,
    /// Some presence subscription missed a diff.
    pub(super) presence_stale: bool,
    /// The connection has ended: nothing may be opened any more.
    closed: bool,
}

/// What the last write to the socket said.
#[derive(Debug, Default)]
pub(super) struct WriteState {
    /// The socket accepts nothing until it is writable again.
    pub(super) full: bool,
    /// Since when it accepts nothing, however often it was tried.
    pub(super) blocked_since: Option<Instant>,
}

impl ClientState {
    /// The state of a client that has not authenticated and subscribes to nothing.
    pub(super) fn new(session: Session<ActiveSubscription>, replies: Box<dyn Replies>) -> Self {
        let bucket = TokenBucket::full(Instant::now());
        Self {
            write: WriteState::default(),
            unsent: VecDeque::new(),
            session,
            replies,
            identity: None,
            permit: None,
            frame_bucket: bucket,
            publish_bucket: bucket,
            resumed: false,
            claim_pending: false,
            migrated: false,
            superseded: false,
            migration: MigrationState::default(),
            stats: SessionStats::default(),
            close_reason: None,
            presence_stale: false,
            closed: false,
        }
    }

    /// How long the socket has accepted nothing.
    pub(super) fn stalled_for(&self) -> Option<Duration> {
        self.write.blocked_since.map(|since| since.elapsed())
    }

    /// Whether every reply has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Ends all subscriptions and gives the admission permit back. Nothing can be opened after this:
    /// a request that finishes later finds the state closed.
    pub(super) fn close(&mut self) -> Vec<Subscription<ActiveSubscription>> {
        self.closed = true;
        self.permit = None;
        self.session.unsubscribe_all()
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Asks the connection's task to close. The first reason counts.
    pub(super) fn request_close(&mut self, reason: CloseReason) {
        self.close_reason.get_or_insert(reason);
    }

    /// Why the connection is to be closed, if somebody asked for it.
    pub(super) fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    /// The session's user.
    pub(super) fn user(&self) -> Option<UserId> {
        self.identity.as_ref().and_then(|identity| identity.user.clone())
    }

    /// Sets the client's identity, unless its user has too many clients already. Returns whether it
    /// was admitted.
    pub(super) fn admit_identity(&mut self, identity: Arc<Identity>) -> bool {
        let permit = self.permit.as_mut();
        let admitted = match (&identity.user, permit) {
            (Some(user), Some(permit)) => permit.admit_user(user),
            _ => true,
        };
        if admitted {
            self.identity = Some(identity);
        }
        admitted
    }

    /// The session's public id.
    pub(super) fn member(&self) -> MemberId {
        MemberId::of(self.session.id())
    }

    /// How the session appears in presence, with this state.
    pub(super) fn member_details(&self, state: Option<Data>) -> MemberDetails {
        let info = self.identity.as_ref().and_then(|identity| identity.info.clone());
        MemberDetails { user: self.user(), info, state }
    }

    /// The unit that rollouts decide for: the user, the client's own durable id, or the session.
    pub(super) fn unit(&self) -> Unit {
        let identity = self.identity.as_deref();
        let user = identity.and_then(|identity| identity.user.as_ref()).map(ToString::to_string);
        let id = user.or_else(|| self.migration.unit().map(str::to_owned));
        let id = id.unwrap_or_else(|| self.member().to_string());
        let groups = identity.map(|identity| identity.groups.clone()).unwrap_or_default();
        Unit { id, groups }
    }

    /// Whether it is a synthetic session of the gateway's own validation.
    pub(super) fn is_synthetic(&self) -> bool {
        self.identity.as_ref().is_some_and(|identity| identity.internal)
    }
}
