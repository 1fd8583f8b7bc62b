use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::{
    broker::{
        Broker as _, Retention, Retentions,
        memory::{MemoryBroker, MemoryConfig},
    },
    rollout::{
        flag::TRANSPORT,
        guardrail::Demand,
        schedule::{Look, Status, Stop},
    },
};

/// A store that can be away, and can come back empty.
#[derive(Debug)]
struct Shaky {
    inner: Mutex<Arc<dyn Store>>,
    away: AtomicBool,
}

fn fresh() -> Arc<dyn Store> {
    let kept = Retention { events: 1, age: Duration::ZERO, dedup: Duration::from_secs(1) };
    let retentions = Retentions::new(kept, std::collections::HashMap::new());
    MemoryBroker::open(&MemoryConfig::default(), retentions.into()).unwrap().0.store()
}

impl Shaky {
    fn now(&self) -> Result<Arc<dyn Store>, BrokerError> {
        if self.away.load(Ordering::Relaxed) {
            let (broker, reason) = ("the store".to_owned(), "it is away".to_owned());
            return Err(BrokerError::Unavailable { broker, reason });
        }
        Ok(Arc::clone(&self.inner.lock()))
    }

    fn is_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for Shaky {
    async fn get(&self, key: &str) -> Result<Option<Record>, BrokerError> {
        self.now()?.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Record)>, BrokerError> {
        self.now()?.list(prefix).await
    }

    async fn put(&self, key: &str, write: Write) -> Result<Written, BrokerError> {
        self.now()?.put(key, write).await
    }

    async fn journal(&self, key: &str, at: u64, most: usize) -> Result<Vec<Note>, BrokerError> {
        self.now()?.journal(key, at, most).await
    }

    async fn tell(&self, key: &str, value: &str, keep: Duration) -> Result<(), BrokerError> {
        self.now()?.tell(key, value, keep).await
    }

    async fn told(&self, prefix: &str) -> Result<Vec<(String, String)>, BrokerError> {
        self.now()?.told(prefix).await
    }
}

/// A board that looks when the test says so, with a rollout at 50 %.
async fn begun() -> (Arc<Shaky>, RolloutRegistry, Component) {
    let store = Arc::new(Shaky { inner: Mutex::new(fresh()), away: AtomicBool::new(false) });
    let registry = RolloutRegistry {
        store: Arc::<Shaky>::clone(&store),
        environment: "test".to_owned(),
        known: watch::Sender::default(),
        unsaved: Mutex::default(),
        saving: tokio::sync::Mutex::default(),
    };
    let component: Component = TRANSPORT.parse().unwrap();
    let start = Change::Start {
        percentage: "50".parse().ok(),
        keep_salt: false,
        force: false,
        waits_for: Vec::new(),
    };
    registry.change(&component, &start, None, &Actor::default()).await.unwrap();
    (store, registry, component)
}

fn look() -> Change {
    Change::Look(Box::new(Look { of: (1, 2), demand: Demand::Nothing, ..Look::default() }))
}

impl RolloutRegistry {
    async fn kept(&self, component: &Component) -> Flag {
        let record = self.store.get(&key(component)).await.unwrap().unwrap();
        serde_json::from_str(&record.value).unwrap()
    }
}

#[tokio::test]
async fn a_stop_that_is_owed_comes_before_whatever_else_is_written() {
    let (store, registry, component) = begun().await;
    store.is_away(true);
    let stop = Change::EmergencyStop(Stop::DrainBack);
    let stopped = registry.change(&component, &stop, None, &Actor::default()).await.unwrap();
    assert!(!stopped.saved);
    let shown = registry.now();
    assert!(shown.get(TRANSPORT).unwrap().flag.has_ended());
    store.is_away(false);
    let _ = registry.change(&component, &look(), None, &Actor::default()).await;
    assert_eq!(registry.kept(&component).await.course.status, Status::Failed);
    registry.read_store().await;
    assert_eq!(registry.now().get(TRANSPORT).unwrap().flag.course.status, Status::Failed);
}

#[tokio::test]
async fn a_journal_is_that_of_one_component_whatever_others_are_called() {
    let (_store, registry, component) = begun().await;
    let other: Component = format!("{TRANSPORT}-2").parse().unwrap();
    let sides = Settings { from: "a".parse().ok(), to: "b".parse().ok(), ..Settings::default() };
    for _ in 0..5 {
        let change = Change::Set(Box::new(sides.clone()));
        registry.change(&other, &change, None, &Actor::default()).await.unwrap();
    }
    let lines = registry.journal(Some(&component), u64::MAX, 2).await.unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(registry.journal(None, u64::MAX, 4).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_softer_stop_takes_nothing_from_one_that_is_owed() {
    let (store, registry, component) = begun().await;
    store.is_away(true);
    let by = Actor::default();
    registry.change(&component, &Change::EmergencyStop(Stop::Hard), None, &by).await.unwrap();
    registry.change(&component, &Change::Stop(Stop::Freeze), None, &by).await.unwrap_err();
    registry.change(&component, &Change::Stop(Stop::DrainBack), None, &by).await.unwrap();
    store.is_away(false);
    registry.read_store().await;
    let kept = registry.kept(&component).await;
    assert_eq!((kept.course.status, kept.course.stop), (Status::Failed, Some(Stop::Hard)));
    assert!(!kept.enabled && !registry.now().get(TRANSPORT).unwrap().unsaved);
}

#[tokio::test]
async fn a_store_that_comes_back_empty_is_given_the_stop() {
    let (store, registry, component) = begun().await;
    store.is_away(true);
    let by = Actor::default();
    registry.change(&component, &Change::Stop(Stop::DrainBack), None, &by).await.unwrap();
    *store.inner.lock() = fresh();
    store.is_away(false);
    registry.read_store().await;
    assert_eq!(registry.kept(&component).await.course.status, Status::RolledBack);
    assert_eq!(registry.now().get(TRANSPORT).unwrap().flag.course.status, Status::RolledBack);
}

#[tokio::test]
async fn a_store_that_went_back_is_not_believed() {
    let (store, registry, component) = begun().await;
    let before = store.get(&key(&component)).await.unwrap().unwrap();
    let by = Actor::default();
    registry.change(&component, &Change::Stop(Stop::DrainBack), None, &by).await.unwrap();
    // A failover to a replica that had not heard of the stop.
    let replica = fresh();
    let write = Write { expected: 0, value: before.value, note: None };
    replica.put(&key(&component), write).await.unwrap();
    *store.inner.lock() = replica;
    let _ = registry.change(&component, &look(), None, &by).await;
    registry.read_store().await;
    assert_eq!(registry.kept(&component).await.course.status, Status::RolledBack);
}

#[tokio::test]
async fn a_stop_has_its_own_version_and_time_before_it_is_saved() {
    let (store, registry, component) = begun().await;
    let before = registry.now().get(TRANSPORT).unwrap().flag.clone();
    let by = Actor { name: "operator".to_owned(), ..Actor::default() };
    store.is_away(true);
    let stop = Change::EmergencyStop(Stop::Hard);
    let unsaved = registry.change(&component, &stop, None, &by).await.unwrap().now;
    assert!(unsaved.unsaved);
    assert_eq!(unsaved.flag.version, before.version + 1);
    assert!(before.changed_at < unsaved.flag.changed_at);
    assert_eq!(unsaved.flag.changed_by, "operator");
    store.is_away(false);
    registry.read_store().await;
    let saved = Arc::clone(registry.now().get(TRANSPORT).unwrap());
    assert!(!saved.unsaved);
    assert_eq!(saved.flag.version, unsaved.flag.version);
}
