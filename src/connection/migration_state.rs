//! What is known of a client for migrating it to another transport.

use std::time::{Duration, Instant};

use crate::protocol::frame::About;

/// What is known of a client for migrating it. Takes no heap for clients that say nothing of
/// themselves.
#[derive(Debug, Default)]
pub(super) struct MigrationState(Option<Box<Known>>);

#[derive(Debug)]
struct Known {
    unit: Option<Box<str>>,
    /// The client understands `migrate` frames.
    supports_migrate: bool,
    /// It connected to an address of the legacy system, and returns there when the takeover is
    /// rolled back.
    legacy_address: bool,
    /// The version of the rollout by which it was asked last, and when.
    asked: Option<(u64, Instant)>,
}

impl MigrationState {
    /// What follows from what a client says of itself.
    pub(super) fn new(about: About) -> Self {
        let About { client, unit, legacy_address } = about;
        if client.is_none() && unit.is_none() {
            return Self(None);
        }
        let supports_migrate = client.is_some();
        Self(Some(Box::new(Known { unit, supports_migrate, legacy_address, asked: None })))
    }

    /// The client's own durable id.
    pub(super) fn unit(&self) -> Option<&str> {
        self.0.as_ref().and_then(|known| known.unit.as_deref())
    }

    /// Whether the client may be asked to migrate: it understands that, and was not asked by this
    /// version of the rollout within `ask_again`.
    pub(super) fn may_be_asked(&self, version: u64, ask_again: Duration) -> bool {
        self.0.as_ref().is_some_and(|known| {
            let recently =
                known.asked.is_some_and(|(by, at)| by == version && at.elapsed() < ask_again);
            known.supports_migrate && !recently
        })
    }

    /// Whether the client connected to an address of the legacy system.
    pub(super) fn legacy_address(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.legacy_address)
    }

    /// Whether the client understands `migrate` frames.
    pub(super) fn supports_migrate(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.supports_migrate)
    }

    /// The client has been asked by this version of the rollout.
    pub(super) fn asked(&mut self, version: u64) {
        if let Some(known) = &mut self.0 {
            known.asked = Some((version, Instant::now()));
        }
    }
}
