//! InternalTickets: how this process comes in as itself, to try what it serves.
//!
//! A pass is a random text that counts once, in this process only, and only as long as whoever asked
//! for it holds it. It is never written down.

use std::{collections::HashSet, fmt, sync::Arc};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Identity, Scope};

/// What no token and no API key begins with.
const PREFIX: &str = "crossfade-pass-";

/// Digests of the passes that count.
type Valid = Arc<Mutex<HashSet<[u8; 32]>>>;

/// All passes of this process.
#[derive(Clone, Default)]
pub(super) struct InternalTickets(Valid);

impl fmt::Debug for InternalTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InternalTickets({})", self.0.lock().len())
    }
}

impl InternalTickets {
    pub(super) fn give(&self) -> InternalTicket {
        // 244 random bits.
        let text = format!("{PREFIX}{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let digest = digest(&text);
        self.0.lock().insert(digest);
        InternalTicket { text, digest, valid: Arc::clone(&self.0) }
    }

    /// Whether it is one that counts.
    pub(super) fn knows(&self, presented: &str) -> bool {
        presented.starts_with(PREFIX) && self.0.lock().contains(&digest(presented))
    }

    /// Takes a pass, which counts no more.
    pub(super) fn take(&self, presented: &str) -> Option<Arc<Identity>> {
        if !presented.starts_with(PREFIX) || !self.0.lock().remove(&digest(presented)) {
            return None;
        }
        let (scopes, name) = (vec![Scope::Read], Some("the gateway itself".into()));
        Some(Arc::new(Identity { scopes, name, own: true, ..Identity::default() }))
    }
}

/// Lets its holder in once.
pub struct InternalTicket {
    text: String,
    digest: [u8; 32],
    valid: Valid,
}

impl InternalTicket {
    /// What is to be shown.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for InternalTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(pass)")
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
    fn a_pass_counts_once_and_only_while_it_is_held() {
        let passes = InternalTickets::default();
        let pass = passes.give();
        assert!(passes.knows(pass.reveal()));
        assert!(passes.take(pass.reveal()).is_some_and(|identity| identity.own));
        assert!(passes.take(pass.reveal()).is_none() && !passes.knows(pass.reveal()));
        let text = passes.give().reveal().to_owned();
        assert!(passes.take(&text).is_none());
        assert!(passes.take("crossfade-pass-").is_none() && passes.take("").is_none());
        assert!(InternalTickets::default().take(passes.give().reveal()).is_none());
    }
}
