//! Internal tickets: single-use credentials with which this process connects to itself, for validation.
//!
//! A ticket is a random text that is valid once, in this process only, and until the
//! [`InternalTicket`] is dropped. Only its digest is kept, and it is never stored or logged.

use std::{collections::HashSet, fmt, sync::Arc};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Identity, Scope};

/// The prefix of every ticket, which keeps other credentials from being looked up.
const PREFIX: &str = "crossfade-ticket-";

/// Digests of the tickets that are valid.
type Valid = Arc<Mutex<HashSet<[u8; 32]>>>;

/// The valid tickets of this process.
#[derive(Clone, Default)]
pub(super) struct InternalTickets(Valid);

impl fmt::Debug for InternalTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InternalTickets({})", self.0.lock().len())
    }
}

impl InternalTickets {
    /// A new ticket.
    pub(super) fn issue(&self) -> InternalTicket {
        // 244 random bits.
        let text = format!("{PREFIX}{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let digest = digest(&text);
        self.0.lock().insert(digest);
        InternalTicket { text, digest, valid: Arc::clone(&self.0) }
    }

    /// Whether a credential is a valid ticket.
    pub(super) fn contains(&self, credential: &str) -> bool {
        credential.starts_with(PREFIX) && self.0.lock().contains(&digest(credential))
    }

    /// Uses up a ticket. Returns the identity of this process, or none if the ticket is not valid.
    pub(super) fn redeem(&self, credential: &str) -> Option<Arc<Identity>> {
        if !credential.starts_with(PREFIX) || !self.0.lock().remove(&digest(credential)) {
            return None;
        }
        let (scopes, name) = (vec![Scope::Read], Some("the gateway itself".into()));
        Some(Arc::new(Identity { scopes, name, internal: true, ..Identity::default() }))
    }
}

/// A ticket, valid until it is used or dropped.
pub struct InternalTicket {
    text: String,
    digest: [u8; 32],
    valid: Valid,
}

impl InternalTicket {
    /// The ticket's text, to send as a bearer token.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for InternalTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(ticket)")
    }
}

impl Drop for InternalTicket {
    fn drop(&mut self) {
        self.valid.lock().remove(&self.digest);
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_valid_once_and_until_it_is_dropped() {
        let tickets = InternalTickets::default();
        let ticket = tickets.issue();
        assert!(tickets.contains(ticket.reveal()));
        assert!(tickets.redeem(ticket.reveal()).is_some_and(|identity| identity.internal));
        assert!(tickets.redeem(ticket.reveal()).is_none() && !tickets.contains(ticket.reveal()));
        let dropped = tickets.issue().reveal().to_owned();
        assert!(tickets.redeem(&dropped).is_none());
        assert!(tickets.redeem(PREFIX).is_none() && tickets.redeem("").is_none());
        assert!(InternalTickets::default().redeem(tickets.issue().reveal()).is_none());
    }
}
