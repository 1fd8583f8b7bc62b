//! The rollouts as this node knows them: read from the store again and again, and changed there.
//!
//! The store decides; every node looks often enough that all agree within a second. A node that is
//! cut off from the store keeps what it knew, refuses changes, and still honours a stop: on the spot
//! for its own clients, and in the store as soon as that is there again. Knows no connection.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    assignment::{Assignment, Unit},
    flag::{Change, Component, Flag, Settings},
    schedule::{Effect, Refused, Status},
};
use crate::{
    broker::{
        BrokerError,
        store::{Note, Record, Store, Write, Written},
    },
    lifecycle::{self, Stage},
};

/// Keys of flags in the store.
const FLAGS: &str = "flags/";

/// Tries to win against others who write at the same time.
const TRIES: usize = 16;

/// Notes read at once for one component, whose neighbours' may lie between.
const JOURNAL_PAGE: usize = 256;

/// The rollouts, as this node knows them.
#[derive(Debug)]
pub struct RolloutRegistry {
    store: Arc<dyn Store>,
    environment: String,
    known: watch::Sender<Arc<Flags>>,
    /// Stops that could not be written down yet.
    unsaved: Mutex<BTreeMap<Component, Vec<(Change, Actor)>>>,
    /// One at a time writes them down.
    paying: tokio::sync::Mutex<()>,
}

/// All rollouts at one moment.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    by_component: BTreeMap<Component, Arc<RolloutRecord>>,
    /// The store was read at least once.
    pub read: bool,
    /// Since when the store cannot be reached.
    pub cut_off: Option<Instant>,
}

/// A rollout and where it stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRecord {
    /// The rollout.
    pub flag: Flag,
    /// The version of its record. It rises with each look too, the flag's own does not.
    pub stored: u64,
    /// A stop that holds on this node only, until the store can be written.
    pub unsaved: bool,
}

/// Who changes something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// Who.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

/// A line of the journal, as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What was done.
    pub action: String,
    /// Who did it.
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The percentage before and after.
    pub percentage: [f64; 2],
    /// The status before and after.
    pub status: [serde_json::Value; 2],
    /// What was measured when it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<serde_json::Value>,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The rollout as it is now.
    pub now: Arc<RolloutRecord>,
    /// Whether it was written down. A stop that was not holds on this node until it can be.
    pub kept: bool,
    /// What is to be done now.
    pub acts: Vec<Effect>,
}

/// Why a rollout was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// There is none of this name.
    #[error("there is no rollout of {0}: create it with PUT /api/migration/feature-flags/{0}")]
    Unknown(Component),
    /// Somebody else changed it meanwhile.
    #[error("{component} has version {found}, not {expected}: look at it again, then decide")]
    Version {
        /// Which.
        component: Component,
        /// What the caller saw.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// It cannot become that.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store cannot be reached.
    #[error(transparent)]
    Store(#[from] BrokerError),
}

impl RolloutRecord {
    /// Versions begin anew when a store lost everything: then the time counts. Not the record's own
    /// version, which rises with each look.
    fn is_newer_than(&self, other: &Self) -> bool {
        other.flag.version < self.flag.version && other.flag.changed_at < self.flag.changed_at
    }
}

impl RolloutRecord {
    /// Whether it may be shown in place of another. A stop that is not written down yet is replaced by
    /// nothing that is softer.
    fn may_replace(&self, shown: &Self) -> bool {
        if shown.unsaved {
            return shown.flag.course.stop <= self.flag.course.stop;
        }
        !shown.is_newer_than(self)
    }
}

impl Flags {
    /// A rollout.
    pub fn get(&self, component: &str) -> Option<&Arc<RolloutRecord>> {
        self.by_component.iter().find(|(name, _)| name.as_str() == component).map(|(_, flag)| flag)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<RolloutRecord>> {
        self.by_component.values()
    }
}

impl RolloutRegistry {
    /// Begins to read the store, every `poll`.
    pub fn start(
        store: Arc<dyn Store>,
        environment: &str,
        poll: Duration,
        stage: &Stage,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            store,
            environment: environment.to_owned(),
            known: watch::Sender::default(),
            unsaved: Mutex::default(),
            paying: tokio::sync::Mutex::default(),
        });
        let (registry, stopping) = (Arc::clone(&this), stage.stopping().clone());
        stage.spawn("rollouts", async move {
            let reading = async {
                let mut tick = tokio::time::interval(poll);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    tick.tick().await;
                    registry.look().await;
                }
            };
            let _ = stopping.run_until_cancelled(reading).await;
        });
        this
    }

    /// The rollouts at this moment.
    pub fn now(&self) -> Arc<Flags> {
        Arc::clone(&self.known.borrow())
    }

    /// Tells whenever something changes.
    pub fn changes(&self) -> watch::Receiver<Arc<Flags>> {
        self.known.subscribe()
    }

    /// What the rollouts are kept in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The environment that conditions name.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// Where somebody belongs; none where there is no such rollout.
    pub fn assignment(
        &self,
        component: &str,
        unit: &Unit,
    ) -> Option<(Arc<RolloutRecord>, Assignment)> {
        let standing = Arc::clone(self.now().get(component)?);
        let assignment = standing.flag.assignment(unit, &self.environment);
        Some((standing, assignment))
    }

    /// Changes a rollout, if it still has the version that the caller saw.
    ///
    /// # Errors
    /// Says who was quicker, why it cannot be, or that the store is away. A stop does not fail for
    /// want of the store.
    pub async fn change(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
    ) -> Result<Changed, ChangeError> {
        self.change_noting(component, change, expected, by, None).await
    }

    /// The same, with what was measured for the journal.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub async fn change_noting(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
        figures: Option<serde_json::Value>,
    ) -> Result<Changed, ChangeError> {
        if change.is_stop() && self.now().by_component.contains_key(component) {
            return self.stop(component, change, expected, by).await;
        }
        // What was stopped here comes first.
        self.pay(component).await?;
        let (now, acts) = self.save(component, change, expected, by, figures).await?;
        self.show(&now);
        Ok(Changed { now, kept: true, acts })
    }

    /// Stops on the spot, then writes it down. Who asked need not wait for that: what is owed to the
    /// store is paid by the next look at it.
    async fn stop(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
    ) -> Result<Changed, ChangeError> {
        let flags = self.now();
        let Some(known) = flags.by_component.get(component) else {
            return Err(ChangeError::Unknown(component.clone()));
        };
        let found = known.flag.version;
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let component = component.clone();
            return Err(ChangeError::Version { component, expected, found });
        }
        let now = lifecycle::unix_ms();
        let (mut flag, acts) = known.flag.after(change, &by.reason, now)?;
        // As it will be saved: clients that connected before the stop are told apart by its time.
        flag.mark_changed(now, &by.name);
        let now = Arc::new(RolloutRecord { flag, stored: known.stored, unsaved: true });
        self.unsaved
            .lock()
            .entry(component.clone())
            .or_default()
            .push((change.clone(), by.clone()));
        self.show(&now);
        match self.pay(component).await {
            Ok(()) => {
                let flags = self.now();
                let now = flags.by_component.get(component).cloned().unwrap_or(now);
                Ok(Changed { now, kept: true, acts })
            }
            Err(ChangeError::Store(err)) => {
                warn!(%component, %err, reason = by.reason, "stopped on this node only, for now");
                Ok(Changed { now, kept: false, acts })
            }
            Err(err) => Err(err),
        }
    }

    /// Writes down the stops of a rollout that hold on this node only.
    async fn pay(&self, component: &Component) -> Result<(), ChangeError> {
        if !self.unsaved.lock().contains_key(component) {
            return Ok(());
        }
        let _turn = self.paying.lock().await;
        loop {
            let first = self.unsaved.lock().get(component).and_then(|owed| owed.first().cloned());
            let Some((change, by)) = first else { return Ok(()) };
            let saved = self.save(component, &change, None, &by, None).await;
            let saved = match saved {
                // The store has lost it: what it gets back is stopped.
                Err(ChangeError::Unknown(_)) => self.give_back_stopped(component).await,
                saved => saved.map(|(now, _)| now),
            };
            match saved {
                Ok(now) => {
                    self.paid(component);
                    self.show(&now);
                }
                Err(ChangeError::Store(err)) => return Err(err.into()),
                Err(err) => {
                    // Another one stopped it in a way that leaves nothing to do.
                    info!(%component, %err, "a stop was overtaken");
                    self.paid(component);
                }
            }
        }
    }

    /// The first of what is owed is written down.
    fn paid(&self, component: &Component) {
        let mut unsaved = self.unsaved.lock();
        if let Some(owed) = unsaved.get_mut(component) {
            owed.remove(0);
            if owed.is_empty() {
                unsaved.remove(component);
            }
        }
    }

    async fn give_back_stopped(
        &self,
        component: &Component,
    ) -> Result<Arc<RolloutRecord>, ChangeError> {
        let flags = self.now();
        let Some(known) = flags.by_component.get(component) else {
            return Err(ChangeError::Unknown(component.clone()));
        };
        match self.give_back(known, 0).await? {
            Written::Done(stored) => {
                Ok(Arc::new(RolloutRecord { flag: known.flag.clone(), stored, unsaved: false }))
            }
            Written::Conflict(_) => Err(BrokerError::Unavailable {
                broker: "rollout".to_owned(),
                reason: "another node was quicker: it is tried again".to_owned(),
            }
            .into()),
        }
    }

    /// The journal, the newest line first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn journal(
        &self,
        component: Option<&Component>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<(Note, Option<Entry>)>, BrokerError> {
        let prefix = component.map_or_else(|| FLAGS.to_owned(), key);
        let (mut before, mut lines) = (before, Vec::new());
        // Another component's name may begin like this one's.
        let page = component.map_or(limit, |_| limit.max(JOURNAL_PAGE));
        loop {
            let notes = self.store.journal(&prefix, before, page).await?;
            let (read, last) = (notes.len(), notes.last().map(|note| note.number));
            let ours = |note: &Note| component.is_none_or(|component| note.key == key(component));
            lines.extend(notes.into_iter().filter(ours).map(|note| {
                let entry = serde_json::from_str(&note.text).ok();
                (note, entry)
            }));
            match last {
                // A short page is the journal's last.
                Some(last) if read == page && lines.len() < limit => before = last,
                _ => break,
            }
        }
        lines.truncate(limit);
        Ok(lines)
    }

    async fn save(
        &self,
        component: &Component,
        change: &Change,
        expected: Option<u64>,
        by: &Actor,
        figures: Option<serde_json::Value>,
    ) -> Result<(Arc<RolloutRecord>, Vec<Effect>), ChangeError> {
        let key = key(component);
        let mut found = self.store.get(&key).await?;
        for _ in 0..TRIES {
            let (stored, read) = standing(component, found.as_ref(), change)?;
            let before = self.not_forgotten(stored, read);
            let differs = |expected: &u64| *expected != before.version;
            if let Some(expected) = expected.filter(differs) {
                let (component, found) = (component.clone(), before.version);
                return Err(ChangeError::Version { component, expected, found });
            }
            let now = lifecycle::unix_ms();
            let (mut after, acts) = before.after(change, &by.reason, now)?;
            if after == before && matches!(change, Change::Look(_)) {
                return Ok((Arc::new(RolloutRecord { flag: after, stored, unsaved: false }), acts));
            }
            // A look at which nothing happened but time is nobody's news.
            let news = !acts.is_empty() || !matches!(change, Change::Look(_));
            if news {
                after.mark_changed(now, &by.name);
            }
            let note = news.then(|| entry(change, by, (&before, &after, &acts), figures.clone()));
            let value = serde_json::to_string(&after).map_err(|err| Refused(err.to_string()))?;
            match self.store.put(&key, Write { expected: stored, value, note }).await? {
                Written::Done(stored) => {
                    if news {
                        info!(
                            %component, version = after.version, action = change.name(),
                            by = by.name, reason = after.course.reason,
                            percentage = %after.effective(), "rollout changed"
                        );
                    }
                    return Ok((
                        Arc::new(RolloutRecord { flag: after, stored, unsaved: false }),
                        acts,
                    ));
                }
                Written::Conflict(now) => found = now,
            }
        }
        let reason = format!("{component} is being changed by too many at once: try again");
        Err(ChangeError::Store(BrokerError::Unavailable { broker: "rollout".to_owned(), reason }))
    }

    /// What was read, unless the store has gone back behind what this node knows: a failover that lost
    /// its last writes must not bring back what was stopped.
    fn not_forgotten(&self, stored: u64, read: Flag) -> Flag {
        let flags = self.now();
        let read = RolloutRecord { flag: read, stored, unsaved: false };
        match flags.by_component.get(&read.flag.component) {
            Some(known) if known.is_newer_than(&read) && !known.unsaved => known.flag.clone(),
            _ => read.flag,
        }
    }

    fn show(&self, standing: &Arc<RolloutRecord>) {
        self.known.send_modify(|known| {
            let mut flags = Flags::clone(known);
            let shown = flags.by_component.get(&standing.flag.component);
            if shown.is_none_or(|shown| standing.may_replace(shown)) {
                let component = standing.flag.component.clone();
                flags.by_component.insert(component, Arc::clone(standing));
                *known = Arc::new(flags);
            }
        });
    }

    /// Reads the store, and writes down what it owes it.
    async fn look(&self) {
        let owed: Vec<Component> = self.unsaved.lock().keys().cloned().collect();
        for component in owed {
            let _ = self.pay(&component).await;
        }
        let before = self.now();
        match self.store.list(FLAGS).await {
            Ok(records) => self.take(&before, records).await,
            Err(err) => {
                self.known.send_if_modified(|known| {
                    let first = known.cut_off.is_none();
                    if first {
                        warn!(%err, "cut off from the rollouts' store: no increase from here");
                        let cut_off = Some(Instant::now());
                        *known = Arc::new(Flags { cut_off, ..Flags::clone(known) });
                    }
                    first
                });
            }
        }
    }

    async fn take(&self, before: &Flags, records: Vec<(String, Record)>) {
        let mut flags = Flags { by_component: BTreeMap::new(), read: true, cut_off: None };
        for (key, record) in records {
            match serde_json::from_str::<Flag>(&record.value) {
                Ok(flag) => {
                    let component = flag.component.clone();
                    let standing = RolloutRecord { flag, stored: record.version, unsaved: false };
                    flags.by_component.insert(component, Arc::new(standing));
                }
                Err(err) => warn!(key, %err, "a rollout in the store cannot be read"),
            }
        }
        for (component, known) in &before.by_component {
            let read = flags.by_component.get(component);
            if read.is_none_or(|read| known.is_newer_than(read)) && !known.unsaved {
                let _ = self.give_back(known, read.map_or(0, |read| read.stored)).await;
            }
        }
        self.known.send_if_modified(|known| {
            for (component, shown) in &known.by_component {
                let read = flags.by_component.get(component);
                // A stop that another one overtook is owed no longer.
                let owed = shown.unsaved && self.unsaved.lock().contains_key(component);
                if owed || read.is_none_or(|read| shown.is_newer_than(read)) {
                    flags.by_component.insert(component.clone(), Arc::clone(shown));
                }
            }
            let same = known.read && known.cut_off.is_none();
            let news = !same || known.by_component != flags.by_component;
            if news {
                *known = Arc::new(flags);
            }
            news
        });
    }

    /// The store has lost what this node still knows: a stop in it must not be forgotten.
    async fn give_back(
        &self,
        known: &RolloutRecord,
        expected: u64,
    ) -> Result<Written, BrokerError> {
        let component = &known.flag.component;
        warn!(%component, "the store has lost a rollout: it is given back as it was known here");
        let refused = |err: serde_json::Error| BrokerError::Refused {
            broker: "rollout".to_owned(),
            reason: err.to_string(),
        };
        let value = serde_json::to_string(&known.flag).map_err(refused)?;
        let by = Actor { name: "gateway".to_owned(), reason: "the store had lost it".to_owned() };
        let change = Change::Set(Box::default());
        let note = Some(entry(&change, &by, (&known.flag, &known.flag, &[]), None));
        self.store.put(&key(component), Write { expected, value, note }).await
    }

    /// Looks at the store now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn refresh(&self) -> Result<(), BrokerError> {
        self.look().await;
        match self.now().cut_off {
            None => Ok(()),
            Some(_) => Err(BrokerError::Unavailable {
                broker: "rollout".to_owned(),
                reason: "the store of the rollouts cannot be read".to_owned(),
            }),
        }
    }
}

fn key(component: &Component) -> String {
    format!("{FLAGS}{component}")
}

/// What stands in the store, or what a change begins with.
fn standing(
    component: &Component,
    found: Option<&Record>,
    change: &Change,
) -> Result<(u64, Flag), ChangeError> {
    let Some(record) = found else {
        let settings = match change {
            Change::Set(settings) => Settings::clone(settings),
            Change::Start { .. } => Settings::default(),
            _ => return Err(ChangeError::Unknown(component.clone())),
        };
        return Ok((0, Flag::new(component.clone(), &settings)?));
    };
    let flag = serde_json::from_str(&record.value).map_err(|err| {
        Refused(format!("{component} in the store cannot be read by this version: {err}"))
    })?;
    Ok((record.version, flag))
}

fn entry(
    change: &Change,
    by: &Actor,
    (before, after, acts): (&Flag, &Flag, &[Effect]),
    figures: Option<serde_json::Value>,
) -> String {
    let status = |flag: &Flag| serde_json::to_value(flag.course.status).unwrap_or_default();
    let told = acts.iter().filter_map(|act| match act {
        Effect::Tell { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let entry = Entry {
        action: action(change, before, after).to_owned(),
        by: by.name.clone(),
        // Who looks says nothing; what came of it does.
        reason: if by.reason.is_empty() { told.join("; ") } else { by.reason.clone() },
        percentage: [before.effective().percent(), after.effective().percent()],
        status: [status(before), status(after)],
        figures,
    };
    serde_json::to_string(&entry).unwrap_or_default()
}

/// What a look came to has a name of its own.
fn action(change: &Change, before: &Flag, after: &Flag) -> &'static str {
    let Change::Look(_) = change else { return change.name() };
    match (before.course.percentage, after.course.percentage) {
        (from, to) if from < to => "advance",
        (from, to) if to < from => "rollback",
        _ if after.course.status == Status::Completed => "complete",
        _ => "hold",
    }
}

#[cfg(test)]
mod tests;
