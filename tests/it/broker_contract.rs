//! One suite, every broker: what `trait Broker` promises, on the real thing.

mod memory;
mod postgres;
mod redis;
mod store;

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use crossfade::{
    broker::{
        Broker, Entry, Feed, Health, Incoming, Publication, Range, Receipt, Retention, Retentions,
    },
    protocol::{Channel, Data, Draft, MessageId, Position},
};
use futures_util::future::join_all;

pub(crate) use self::store::{
    of_many_writers_one_wins_each_version, the_journal_is_read_backwards_in_pages,
    what_is_told_expires,
};
use crate::support::eventually::{eventually, soon};

/// A store of its own for one test. It ends when the fixture is dropped.
#[async_trait]
pub(crate) trait Fixture: Sized + Send + Sync {
    /// Starts the store.
    async fn start() -> Self;

    /// A node's broker on it. For a store that several nodes share, each call is another node.
    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed);
}

/// What one node holds of the store under test.
pub(crate) struct Node {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) feed: Feed,
}

impl Node {
    pub(crate) async fn on(fixture: &impl Fixture) -> Self {
        Self::keeping(fixture, RETENTION).await
    }

    pub(crate) async fn keeping(fixture: &impl Fixture, retention: Retention) -> Self {
        let retentions = Retentions::new(retention, HashMap::new());
        let (broker, feed) = fixture.node(Arc::new(retentions)).await;
        eventually("the broker is up", async || (broker.health() == Health::Up).then_some(()))
            .await;
        Self { broker, feed }
    }

    pub(crate) async fn publish(&self, channel: &Channel, draft: Draft) -> Receipt {
        let batch = vec![Publication { channel: channel.clone(), draft }];
        self.broker.publish(batch).await.remove(0).unwrap()
    }

    pub(crate) async fn offsets(&self, channel: &Channel, range: Range, limit: usize) -> Vec<u64> {
        let slice = self.broker.read(channel, range, limit).await.unwrap();
        slice.events.iter().map(|(offset, _)| *offset).collect()
    }

    /// The next entries of `channel`, `count` of them, filled up from the log where the feed left
    /// some out: what every listener has to do.
    pub(crate) async fn hear(&mut self, channel: &Channel, from: u64, count: u64) -> Vec<Entry> {
        let mut heard: Vec<Entry> = Vec::new();
        let last = from + count;
        while (heard.len() as u64) < count {
            let next = from + heard.len() as u64 + 1;
            let news = soon("news come up the feed", self.feed.recv()).await.unwrap();
            let head = match news {
                Incoming::Entry(entry) if entry.channel != *channel => continue,
                Incoming::Entry(entry) if entry.position.offset == next => {
                    heard.push(entry);
                    continue;
                }
                Incoming::Entry(entry) => entry.position.offset,
                Incoming::Head { channel: other, .. } if other != *channel => continue,
                Incoming::Head { position, .. } => position.offset,
                Incoming::Interrupted => u64::MAX,
            };
            if head < next {
                continue;
            }
            let slice = self.broker.read(channel, Range::After(next - 1), 10_000).await.unwrap();
            for (offset, event) in
                slice.events.into_iter().take_while(|(offset, _)| *offset <= last)
            {
                let position = Position::new(slice.epoch, offset);
                heard.push(Entry { channel: channel.clone(), position, event });
            }
        }
        heard
    }
}

pub(crate) const RETENTION: Retention =
    Retention { events: 100_000, age: Duration::from_secs(3600), dedup: Duration::from_secs(120) };

pub(crate) fn channel(name: &str) -> Channel {
    name.parse().unwrap()
}

pub(crate) fn draft(data: impl ToString) -> Draft {
    Draft { id: MessageId::generate(), name: None, data: Data::json(&data.to_string()).unwrap() }
}

pub(crate) async fn offsets_are_dense_and_positions_told<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let news = channel("news");
    let start = node.broker.subscribe(&news).await.unwrap();
    assert_eq!(start.offset, 0);
    for offset in 1..=5 {
        let receipt = node.publish(&news, draft(offset)).await;
        assert_eq!(receipt.position, Position::new(start.epoch, offset));
        assert!(!receipt.duplicate);
    }
    let heads = node.broker.verify(&[(news, start), (channel("other"), start)]).await.unwrap();
    assert_eq!(heads[0], Position::new(start.epoch, 5));
    assert_ne!(heads[1].epoch, start.epoch);
}

pub(crate) async fn what_was_published_is_read_back_whole<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let news = channel("orders:42/a.b@c#d=e-f_g");
    let big = format!("\"{}\"", "é".repeat(20_000));
    let sent: Vec<_> = ["{\"a\":[1,2.50,null,\"\\u0000\"]}", "\"\"", "null", &big, "1e400"]
        .iter()
        .enumerate()
        .map(|(n, data)| Draft {
            id: format!("id-{n}\"'{{}}~,").parse().unwrap(),
            name: (n % 2 == 0).then(|| "name with ' \" and é".parse().unwrap()),
            data: Data::json(data).unwrap(),
        })
        .collect();
    for draft in &sent {
        node.publish(&news, draft.clone()).await;
    }
    let slice = node.broker.read(&news, Range::After(0), 100).await.unwrap();
    assert_eq!(slice.head, sent.len() as u64);
    let read = slice.events.iter().map(|(_, event)| Draft {
        id: event.id.clone(),
        name: event.name.clone(),
        data: event.data.clone(),
    });
    assert_eq!(read.collect::<Vec<_>>(), sent);
    assert!(slice.events.iter().all(|(_, event)| 1_700_000_000_000 < event.time));
}

pub(crate) async fn a_log_is_read_from_any_place_in_both_directions<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let news = channel("news");
    for n in 1..=10 {
        node.publish(&news, draft(n)).await;
    }
    assert_eq!(node.offsets(&news, Range::After(0), 3).await, [1, 2, 3]);
    assert_eq!(node.offsets(&news, Range::After(7), 100).await, [8, 9, 10]);
    assert!(node.offsets(&news, Range::After(10), 100).await.is_empty());
    assert!(node.offsets(&news, Range::After(u64::MAX), 100).await.is_empty());
    assert_eq!(node.offsets(&news, Range::Until(u64::MAX), 3).await, [10, 9, 8]);
    assert_eq!(node.offsets(&news, Range::Until(2), 100).await, [2, 1]);
    assert!(node.offsets(&channel("never"), Range::After(0), 100).await.is_empty());
}

pub(crate) async fn a_repeated_id_is_answered_like_the_first<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let news = channel("news");
    let first = draft(1);
    let receipt = node.publish(&news, first.clone()).await;
    node.publish(&news, draft(2)).await;
    let again = node.publish(&news, first.clone()).await;
    assert_eq!(again, Receipt { position: receipt.position, duplicate: true });
    // The id counts within its channel, and within one batch too.
    assert!(!node.publish(&channel("other"), first).await.duplicate);
    let twice = draft(3);
    let batch = [twice.clone(), twice].map(|draft| Publication { channel: news.clone(), draft });
    let receipts = node.broker.publish(batch.to_vec()).await;
    let duplicates: Vec<_> = receipts.iter().map(|r| r.as_ref().unwrap().duplicate).collect();
    assert_eq!(duplicates, [false, true]);
    assert_eq!(node.offsets(&news, Range::After(0), 100).await, [1, 2, 3]);
}

pub(crate) async fn a_batch_keeps_its_order_over_many_channels<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let channels: Vec<_> = (0..7).map(|n| channel(&format!("room:{n}"))).collect();
    let batch: Vec<_> = (0..700)
        .map(|n| Publication { channel: channels[n * 31 % 7].clone(), draft: draft(n) })
        .collect();
    let receipts = node.broker.publish(batch.clone()).await;
    assert_eq!(receipts.len(), batch.len());
    for room in &channels {
        let mine = |(p, r): (&Publication, &Result<Receipt, _>)| {
            (p.channel == *room).then(|| {
                let receipt: &Receipt = r.as_ref().unwrap();
                (receipt.position.offset, p.draft.data.clone())
            })
        };
        let sent: Vec<_> = batch.iter().zip(&receipts).filter_map(mine).collect();
        let slice = node.broker.read(room, Range::After(0), 1000).await.unwrap();
        let read: Vec<_> = slice.events.into_iter().map(|(o, event)| (o, event.data)).collect();
        assert_eq!(read, sent);
        assert_eq!(read.len(), 100);
    }
}

pub(crate) async fn publishers_at_the_same_time_leave_no_hole<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::on(&fixture).await;
    let channels = [channel("a"), channel("b"), channel("c")];
    let publishers = (0..20).map(|publisher: usize| {
        let (broker, channels) = (Arc::clone(&node.broker), channels.clone());
        async move {
            for n in 0..15 {
                let batch = (0..3).map(|k| Publication {
                    channel: channels[(publisher + k) % 3].clone(),
                    draft: draft(n),
                });
                for receipt in broker.publish(batch.collect()).await {
                    receipt.unwrap();
                }
            }
        }
    });
    join_all(publishers).await;
    for name in &channels {
        let offsets = node.offsets(name, Range::After(0), 1000).await;
        assert_eq!(offsets, (1..=300).collect::<Vec<_>>());
    }
}

pub(crate) async fn a_listener_hears_what_comes_after_it_subscribed<F: Fixture>() {
    let fixture = F::start().await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.publish(&news, draft("\"before\"")).await;
    let start = node.broker.subscribe(&news).await.unwrap();
    assert_eq!(start.offset, 1);
    let big = format!("\"{}\"", "x".repeat(30_000));
    for data in ["1", &big, "3"] {
        node.publish(&news, draft(data)).await;
    }
    let heard = node.hear(&news, 1, 3).await;
    let texts: Vec<_> = heard.iter().map(|entry| entry.event.data.as_str()).collect();
    assert_eq!(texts, ["1", &big, "3"]);
    assert_eq!(heard[2].position, Position::new(start.epoch, 4));
}

pub(crate) async fn an_unsubscribed_channel_falls_silent<F: Fixture>() {
    let fixture = F::start().await;
    let mut node = Node::on(&fixture).await;
    let (left, kept) = (channel("left"), channel("kept"));
    node.broker.subscribe(&left).await.unwrap();
    node.broker.subscribe(&kept).await.unwrap();
    node.broker.subscribe(&left).await.unwrap();
    node.broker.unsubscribe(&left).await;
    node.publish(&left, draft(1)).await;
    node.publish(&kept, draft(2)).await;
    loop {
        let news = soon("news of the kept channel come", node.feed.recv()).await.unwrap();
        let (Incoming::Entry(Entry { channel, .. }) | Incoming::Head { channel, .. }) = news else {
            continue;
        };
        assert_eq!(channel, kept);
        break;
    }
    let again = node.broker.subscribe(&left).await.unwrap();
    assert_eq!(again.offset, 1);
}

pub(crate) async fn retention_lets_go_of_the_oldest<F: Fixture>() {
    let fixture = F::start().await;
    let node = Node::keeping(&fixture, Retention { events: 50, ..RETENTION }).await;
    let news = channel("news");
    for chunk in 0..20 {
        let batch =
            (0..50).map(|n| Publication { channel: news.clone(), draft: draft(chunk * 50 + n) });
        node.broker.publish(batch.collect()).await;
    }
    // It may keep somewhat more than it has to, never a piece with a hole, and it says so.
    let kept = eventually("most of the old events are gone", async || {
        let offsets = node.offsets(&news, Range::After(0), 2000).await;
        (offsets.len() < 500).then_some(offsets)
    })
    .await;
    assert!(50 <= kept.len(), "kept {}", kept.len());
    let first = 1000 - kept.len() as u64 + 1;
    assert_eq!(kept, (first..=1000).collect::<Vec<_>>());
}

pub(crate) async fn ids_are_forgotten_when_their_window_is_over<F: Fixture>() {
    let fixture = F::start().await;
    let dedup = Duration::from_secs(1);
    let node = Node::keeping(&fixture, Retention { dedup, ..RETENTION }).await;
    let news = channel("news");
    let same = draft(1);
    assert!(!node.publish(&news, same.clone()).await.duplicate);
    assert!(node.publish(&news, same.clone()).await.duplicate);
    eventually("the id is new again", async || {
        let receipt = node.publish(&news, same.clone()).await;
        (!receipt.duplicate).then_some(())
    })
    .await;
}

pub(crate) async fn two_nodes_share_logs_ids_and_news<F: Fixture>() {
    let fixture = F::start().await;
    let one = Node::on(&fixture).await;
    let mut two = Node::on(&fixture).await;
    let news = channel("news");
    let start = two.broker.subscribe(&news).await.unwrap();
    let same = draft(1);
    let first = one.publish(&news, same.clone()).await;
    assert_eq!(first.position, Position::new(start.epoch, 1));
    let again = two.publish(&news, same).await;
    assert_eq!(again, Receipt { position: first.position, duplicate: true });
    for n in 2..=100 {
        let node = if n % 2 == 0 { &one } else { &two };
        assert_eq!(node.publish(&news, draft(n)).await.position.offset, n);
    }
    let heard = two.hear(&news, 0, 100).await;
    let offsets: Vec<_> = heard.iter().map(|entry| entry.position.offset).collect();
    assert_eq!(offsets, (1..=100).collect::<Vec<_>>());
}

/// Makes a test of each promise for one fixture.
macro_rules! contract {
    ($fixture:ty: $($promise:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            $crate::broker_contract::$promise::<$fixture>().await;
        }
    )*};
    ($fixture:ty) => {
        $crate::broker_contract::contract!($fixture:
            offsets_are_dense_and_positions_told,
            what_was_published_is_read_back_whole,
            a_log_is_read_from_any_place_in_both_directions,
            a_repeated_id_is_answered_like_the_first,
            a_batch_keeps_its_order_over_many_channels,
            publishers_at_the_same_time_leave_no_hole,
            a_listener_hears_what_comes_after_it_subscribed,
            an_unsubscribed_channel_falls_silent,
            retention_lets_go_of_the_oldest,
            ids_are_forgotten_when_their_window_is_over,
            of_many_writers_one_wins_each_version,
            the_journal_is_read_backwards_in_pages,
            what_is_told_expires,
        );
    };
}
pub(crate) use contract;
