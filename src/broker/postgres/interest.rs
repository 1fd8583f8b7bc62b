//! Which channels this node wants to hear of, and which bells it really hears. Pure bookkeeping
//! between those who subscribe and the [`listener`](super::listener): no connection here.

use std::collections::{HashMap, hash_map::Entry};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::protocol::Channel;

/// A channel's bell: `crossfade_0` to `crossfade_15`.
pub(super) type Shard = u8;

const SHARDS: usize = 16;

/// How news come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    /// Not connected, or it is not known yet whether the connection carries notifications.
    Unknown,
    /// By LISTEN.
    Clear,
    /// Not by LISTEN: heads are asked for.
    Deaf,
}

/// What is wanted, and what is heard.
#[derive(Debug)]
pub(super) struct Interest {
    state: Mutex<State>,
    /// Tells the listener that other shards are wanted.
    wanted: Notify,
    /// Tells those who wait that the state has changed.
    settled: watch::Sender<Hearing>,
}

#[derive(Debug)]
struct State {
    heard: HashMap<Channel, Option<Shard>>,
    channels_of: [usize; SHARDS],
    /// A bit per shard that is listened to.
    confirmed: u16,
    /// Counts the times that a bit was taken away.
    losses: u64,
}

/// What was heard at the moment a channel was added.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    pub(super) new: bool,
    confirmed: u16,
    losses: u64,
}

/// What the listener has to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) unlisten: Vec<Shard>,
    pub(super) listen: Vec<Shard>,
}

impl Interest {
    /// Nothing is wanted.
    pub(super) fn new() -> Self {
        let state =
            State { heard: HashMap::new(), channels_of: [0; SHARDS], confirmed: 0, losses: 0 };
        let settled = watch::Sender::new(Hearing::Unknown);
        Self { state: Mutex::new(state), wanted: Notify::new(), settled }
    }

    /// From now on news of this channel come up.
    pub(super) fn add(&self, channel: &Channel) -> Before {
        let mut state = self.state.lock();
        let (confirmed, losses) = (state.confirmed, state.losses);
        let new = match state.heard.entry(channel.clone()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(None);
                true
            }
        };
        Before { new, confirmed, losses }
    }

    /// Its shard is known. Whether that has been listened to ever since `before`.
    pub(super) fn assign(&self, channel: &Channel, shard: Shard, before: Before) -> bool {
        let mut state = self.state.lock();
        let Some(place) = state.heard.get_mut(channel) else { return false };
        if place.is_none() {
            *place = Some(shard);
            state.channels_of[usize::from(shard)] += 1;
        }
        let all_along = before.confirmed & bit(shard) != 0 && before.losses == state.losses;
        if !all_along {
            self.wanted.notify_one();
        }
        all_along
    }

    /// No more news of this channel.
    pub(super) fn remove(&self, channel: &Channel) {
        let mut state = self.state.lock();
        if let Some(Some(shard)) = state.heard.remove(channel) {
            let left = &mut state.channels_of[usize::from(shard)];
            *left -= 1;
            if *left == 0 {
                self.wanted.notify_one();
            }
        }
    }

    /// Returns when the shard is listened to.
    pub(super) async fn confirmed(&self, shard: Shard) {
        let mut settled = self.settled.subscribe();
        let heard = |_: &Hearing| self.state.lock().confirmed & bit(shard) != 0;
        // The sender lives as long as `self`.
        let _ = settled.wait_for(heard).await;
    }

    /// How news come in at the moment.
    pub(super) fn hearing(&self) -> Hearing {
        *self.settled.borrow()
    }

    /// How news come in, once that is known.
    pub(super) async fn known(&self) -> Hearing {
        let mut settled = self.settled.subscribe();
        let known = settled.wait_for(|hearing| *hearing != Hearing::Unknown).await;
        known.map_or(Hearing::Unknown, |hearing| *hearing)
    }

    pub(super) fn wants(&self, channel: &Channel) -> bool {
        self.state.lock().heard.contains_key(channel)
    }

    pub(super) fn channels(&self) -> Vec<Channel> {
        self.state.lock().heard.keys().cloned().collect()
    }

    /// For the listener: returns when the wanted shards may have changed.
    pub(super) async fn changed(&self) {
        self.wanted.notified().await;
    }

    /// For the listener: what to do next. A shard to be left counts as unheard from here on, so that
    /// a subscriber who comes meanwhile waits for it to be listened to again.
    pub(super) fn plan(&self) -> Plan {
        let mut state = self.state.lock();
        let wanted = (0u8..).zip(&state.channels_of).filter(|(_, channels)| **channels != 0);
        let wanted = wanted.fold(0, |mask, (shard, _)| mask | bit(shard));
        let (leave, join) = (state.confirmed & !wanted, wanted & !state.confirmed);
        if leave != 0 {
            state.confirmed &= wanted;
            state.losses += 1;
        }
        Plan { unlisten: shards(leave), listen: shards(join) }
    }

    /// For the listener: these shards are listened to.
    pub(super) fn confirm(&self, listened: &[Shard]) {
        self.state.lock().confirmed |= listened.iter().fold(0, |mask, shard| mask | bit(*shard));
        self.settled.send_modify(|hearing| *hearing = Hearing::Clear);
    }

    /// For the listener: heads are being asked for, of all channels.
    pub(super) fn deaf(&self) {
        self.state.lock().confirmed = u16::MAX;
        self.settled.send_modify(|hearing| *hearing = Hearing::Deaf);
    }

    /// For the listener: nothing is heard any more.
    pub(super) fn lost(&self) {
        let mut state = self.state.lock();
        state.confirmed = 0;
        state.losses += 1;
        drop(state);
        self.settled.send_modify(|hearing| *hearing = Hearing::Unknown);
    }
}

fn bit(shard: Shard) -> u16 {
    1 << (shard & 15)
}

fn shards(mask: u16) -> Vec<Shard> {
    (0..16).filter(|shard| mask & bit(*shard) != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_in_a_shard_that_was_heard_all_along_needs_no_second_look() {
        let (ears, one, two) = (Interest::new(), "one".parse().unwrap(), "two".parse().unwrap());
        let before = ears.add(&one);
        assert!(!ears.assign(&one, 3, before));
        assert_eq!(ears.plan(), Plan { unlisten: vec![], listen: vec![3] });
        // Added before the shard was confirmed: its head may have been read too early.
        let early = ears.add(&two);
        ears.confirm(&[3]);
        assert!(!ears.assign(&two, 3, early));
        let again = ears.add(&two);
        assert!(ears.assign(&two, 3, again));
    }

    #[test]
    fn a_shard_is_left_with_its_last_channel_and_counts_as_unheard_at_once() {
        let (ears, one) = (Interest::new(), "one".parse().unwrap());
        let before = ears.add(&one);
        ears.assign(&one, 3, before);
        ears.plan();
        ears.confirm(&[3]);
        ears.remove(&one);
        let back = ears.add(&one);
        assert_eq!(ears.plan(), Plan { unlisten: vec![3], listen: vec![] });
        assert!(!ears.assign(&one, 3, back));
        assert_eq!(ears.plan(), Plan { unlisten: vec![], listen: vec![3] });
    }
}
