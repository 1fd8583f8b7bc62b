//! The four things a node does all the time: it listens, speaks, tells clients, and keeps the roster
//! clean.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{Cluster, ClusterMessage, JoiningNode, LOG, Order, Payload, SYNC, State, message};
use crate::{
    broker::{Publication, Range},
    lifecycle::{self, Stage},
    node::follower::{Follower, Step},
    presence::{NodeId, Parted, PresenceUpdate, Snapshot},
    protocol::{Channel, Data, Draft, MessageId, Position},
};

/// Bytes of what is said in one event.
const SPEECH_BYTES: usize = 64 << 10;

/// Pause before the broker is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Events read at a time to find out who is alive.
const LOOK_BACK: usize = 500;

/// How often it is looked for members whose grace is over and for silent nodes.
const KEEPING: Duration = Duration::from_millis(200);

/// A word that had no effect, because it was lost or came from a node cut off, is said again.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a new node waits for the first among the others before another one helps.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);

/// How often channels that are too large to be listed are counted to those who look on.
const COUNTS: Duration = Duration::from_secs(1);

/// Clients told in a row before others get their turn.
const TELL: usize = 128;

/// How long a node that stops may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Follows the log and applies what it says.
pub(super) async fn listen(cluster: Arc<Cluster>, orders: mpsc::Sender<Order>, stage: Stage) {
    let following = async {
        let mut follower = join(&cluster).await;
        loop {
            match follower.next().await {
                Step::Event(at, event) => {
                    for order in cluster.hear(at, &event) {
                        // The receiver ends with the connections, before this.
                        let _ = orders.send(order).await;
                    }
                }
                Step::Lost(_) => {
                    info!("the nodes' own log was lost: this node tells anew what it holds");
                    cluster.lost();
                    let _ = orders.send(Order::ClaimAgain).await;
                }
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = stage.stopping().cancelled() => {}
    }
}

/// Takes a place behind the log's head, and asks those who are alive what they hold.
async fn join(cluster: &Cluster) -> Follower {
    let log = own_log();
    let mut again = interval(RETRY);
    loop {
        again.tick().await;
        let Ok(follower) = Follower::at_head(&cluster.node, &log).await else { continue };
        let Some(alive) = alive(cluster, &log, follower.cursor()).await else { continue };
        let mut state = cluster.state.lock();
        let now = std::time::Instant::now();
        state.joined = Some(now);
        for (node, _) in alive.iter().filter(|(node, _)| *node != cluster.me) {
            state.heard.insert(*node, now);
        }
        let others = state.heard.keys().filter(|node| **node != cluster.me).count();
        debug!(others, me = %cluster.me, "listening to the other nodes");
        if others == 0 {
            cluster.begin(&mut state, Snapshot::default());
            // By the broker's clock there is nobody. Clocks may be wrong.
            cluster.say(&mut state, &Payload::Presence(PresenceUpdate::Call));
        } else {
            state.joining = Some(JoiningNode::default());
            cluster.say(&mut state, &Payload::Presence(PresenceUpdate::Hello));
        }
        return follower;
    }
}

fn own_log() -> Channel {
    Channel::stored(LOG).expect("the name is one")
}

/// Who spoke lately and did not say goodbye, with where that stands.
async fn alive(
    cluster: &Cluster,
    log: &Channel,
    head: Position,
) -> Option<Vec<(NodeId, Position)>> {
    let patience = u64::try_from(cluster.config.node_timeout.as_millis()).unwrap_or(u64::MAX);
    let oldest = lifecycle::unix_ms().saturating_sub(patience);
    let mut nodes: Vec<(NodeId, Position, bool)> = Vec::new();
    let mut until = head.offset;
    while until != 0 {
        let slice = cluster.node.read(log, Range::Until(until), LOOK_BACK).await.ok()?;
        let Some((last, _)) = slice.events.last() else { break };
        until = last - 1;
        for (offset, event) in &slice.events {
            if event.time < oldest {
                until = 0;
                break;
            }
            let Ok(speech) = serde_json::from_str::<ClusterMessage>(event.data.as_str()) else {
                continue;
            };
            if nodes.iter().all(|(node, ..)| *node != speech.from) {
                let gone = speech.say.contains(&Payload::Presence(PresenceUpdate::Bye));
                nodes.push((speech.from, Position::new(slice.epoch, *offset), gone));
            }
        }
    }
    Some(nodes.into_iter().filter(|(.., gone)| !gone).map(|(node, at, _)| (node, at)).collect())
}

/// Says what there is to say, and something in any case every so often.
pub(super) async fn speak(cluster: Arc<Cluster>, stage: Stage) {
    let mut beat = interval(cluster.config.beat());
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cluster.unsaid.notified() => {}
            _ = beat.tick() => {}
            () = stage.stopping().cancelled() => break,
        }
        let speaking = speak_out(&cluster);
        tokio::select! {
            () = speaking => beat.reset(),
            () = stage.stopping().cancelled() => break,
        }
    }
    cluster.say(&mut cluster.state.lock(), &Payload::Presence(PresenceUpdate::Bye));
    if timeout(LAST_WORDS, speak_out(&cluster)).await.is_err() {
        debug!("the other nodes will find out by themselves that this one has gone");
    }
}

/// Says everything, however long the broker is away.
async fn speak_out(cluster: &Cluster) {
    loop {
        let speech = next_speech(cluster);
        let done = cluster.state.lock().unsaid.is_empty();
        // The same id each time: said twice, it is heard once.
        let draft = Draft { id: MessageId::generate(), name: None, data: speech };
        let mut again = interval(RETRY);
        loop {
            again.tick().await;
            let publication = Publication { channel: own_log(), draft: draft.clone() };
            if cluster.node.note(publication).await {
                break;
            }
        }
        if done {
            return;
        }
    }
}

fn next_speech(cluster: &Cluster) -> Data {
    let mut state = cluster.state.lock();
    let mut sayings = Vec::new();
    let mut bytes = 0;
    while bytes < SPEECH_BYTES
        && let Some((saying, counted)) = state.unsaid.pop_front()
    {
        bytes += saying.len();
        if counted {
            state.unsaid_bytes = state.unsaid_bytes.saturating_sub(saying.len());
        }
        sayings.push(saying);
    }
    Data::lenient(&message::write(cluster.me, sayings))
}

/// Tells those who look on what has changed, gathered for a moment.
pub(super) async fn tell(cluster: Arc<Cluster>, stage: Stage) {
    let mut counted = Instant::now();
    loop {
        tokio::select! {
            () = cluster.news.notified() => {}
            () = stage.stopping().cancelled() => return,
        }
        while cluster.state.lock().audience.has_news() {
            tokio::select! {
                () = sleep_until(Instant::now() + cluster.config.presence_batch) => {}
                () = stage.stopping().cancelled() => return,
            }
            let counts = COUNTS <= counted.elapsed();
            if counts {
                counted = Instant::now();
            }
            tell_once(&cluster, counts).await;
        }
    }
}

async fn tell_once(cluster: &Cluster, counts: bool) {
    let deliveries = {
        let mut guard = cluster.state.lock();
        let state = &mut *guard;
        state.audience.news(&state.roster, counts)
    };
    for delivery in deliveries {
        for some in delivery.to.chunks(TELL) {
            for (watcher, tag) in some {
                watcher.tell(*tag, &delivery.news);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Ends what nobody holds any more. Of all nodes that could, one does.
pub(super) async fn keep(cluster: Arc<Cluster>, stage: Stage) {
    let mut ticks = interval(KEEPING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => cluster.keep(),
            () = stage.stopping().cancelled() => return,
        }
    }
}

impl Cluster {
    /// A part of the log is gone: all say anew what they hold.
    fn lost(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = std::time::Instant::now();
        state.heard.values_mut().for_each(|heard| *heard = now);
        if let Some(joining) = &mut state.joining {
            joining.since.clear();
        }
        self.announce(state);
        self.say(state, &Payload::Presence(PresenceUpdate::Call));
    }

    fn keep(&self) {
        let now = std::time::Instant::now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.joining.is_some() && state.joined.is_some_and(|joined| SYNC <= now - joined) {
            warn!("no node has shown this one who is where: it begins with what each holds");
            self.begin(state, Snapshot::default());
            self.say(state, &Payload::Presence(PresenceUpdate::Call));
        }
        self.show_newcomers(state);
        let is_judge = self.is_judge(state, now);
        let in_touch = self.in_touch(state, now);
        let mut words = Vec::new();
        for (parted, tries) in due(state, now) {
            if in_touch && (is_judge || 0 < tries) {
                words.push(PresenceUpdate::Expire(
                    parted.channel.clone(),
                    parted.session,
                    parted.at,
                ));
            }
            state.parted.push_back((now + AGAIN, parted, tries + u32::from(in_touch)));
        }
        if in_touch {
            let patience = self.config.node_timeout + if is_judge { Duration::ZERO } else { AGAIN };
            words.extend(silent(state, now, patience));
        }
        for word in words {
            self.say(state, &Payload::Presence(word));
        }
    }

    /// Who does not hear itself hears nobody, and judges nobody.
    fn in_touch(&self, state: &State, now: std::time::Instant) -> bool {
        let recently = self.config.node_timeout / 2;
        state.heard.get(&self.me).is_some_and(|heard| now - *heard < recently)
    }

    /// The first of those who are heard judges. Who does not hear itself hears nobody.
    pub(super) fn is_judge(&self, state: &State, now: std::time::Instant) -> bool {
        let within = |heard: &std::time::Instant, time| now - *heard < time;
        let timeout = self.config.node_timeout;
        let in_touch = self.in_touch(state, now);
        let alive = state
            .heard
            .iter()
            .filter(|(node, heard)| within(heard, timeout) && !state.newcomers.contains_key(*node));
        in_touch && state.joining.is_none() && alive.map(|(node, _)| *node).min() == Some(self.me)
    }
}

/// Says of whom nothing was heard for so long that they are dead.
fn silent(state: &mut State, now: std::time::Instant, patience: Duration) -> Vec<PresenceUpdate> {
    let State { roster, heard, accused, .. } = state;
    // Only the roster's nodes can be buried; the others are just not there.
    heard.retain(|node, heard| roster.heard(*node).is_some() || now - *heard < patience);
    let mut words = Vec::new();
    for (node, at) in roster.nodes() {
        let silent = patience <= now - *heard.entry(node).or_insert(now);
        if silent && accused.get(&node).is_none_or(|accused| AGAIN <= now - *accused) {
            info!(%node, "nothing was heard of a node for cluster.node_timeout: it is dead");
            accused.insert(node, now);
            words.push(PresenceUpdate::Dead(node, at));
        }
    }
    words
}

/// Those whose grace is over and who did not come back.
fn due(state: &mut State, now: std::time::Instant) -> Vec<(Parted, u32)> {
    let mut due = Vec::new();
    while let Some((until, ..)) = state.parted.front()
        && *until <= now
        && let Some((_, parted, tries)) = state.parted.pop_front()
    {
        if state.roster.parted(&parted.channel, parted.session) == Some(parted.at) {
            due.push((parted, tries));
        }
    }
    due
}
