//! PostgreSQL keeps the promises, on private servers.

mod bell;
mod outage;
mod outbox;
mod schema;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use crossfade::{
    broker::{
        Broker, Feed, Publication, Range, Retentions,
        postgres::{PostgresBroker, PostgresConfig},
    },
    lifecycle::Stage,
    protocol::Position,
};
use tokio_postgres::Client;

use super::{Fixture, Node, RETENTION, channel, contract, draft};
use crate::support::{
    eventually::eventually,
    postgres::{PrivatePostgres, rows},
};

/// A database for one test.
struct Postgres {
    server: Arc<PrivatePostgres>,
    database: String,
    nodes: Stage,
}

#[async_trait]
impl Fixture for Postgres {
    async fn start() -> Self {
        Self::on(PrivatePostgres::shared().await).await
    }

    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
        self.node_with(&self.config(), retentions)
    }
}

impl Postgres {
    async fn on(server: Arc<PrivatePostgres>) -> Self {
        let database = server.create_database().await;
        Self { server, database, nodes: Stage::default() }
    }

    /// A server for tests that do harm.
    async fn alone(durable: bool) -> Self {
        Self::on(Arc::new(PrivatePostgres::start(durable).await)).await
    }

    fn config(&self) -> PostgresConfig {
        PostgresConfig {
            url: self.server.url(&self.database).parse().unwrap(),
            timeout: Duration::from_secs(20),
            prune_interval: Duration::from_millis(100),
            reconnect_max: Duration::from_millis(500),
            ..PostgresConfig::default()
        }
    }

    fn node_with(
        &self,
        config: &PostgresConfig,
        retentions: Arc<Retentions>,
    ) -> (Arc<dyn Broker>, Feed) {
        let (broker, feed) = PostgresBroker::connect(config, retentions, &self.nodes).unwrap();
        (Arc::new(broker), feed)
    }

    async fn client(&self) -> Client {
        self.server.client(&self.database).await
    }

    async fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.server.sql(&self.database, sql).await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.nodes.stopping().cancel();
    }
}

contract!(Postgres);
contract!(Postgres: two_nodes_share_logs_ids_and_news);

impl Node {
    /// The contents of a log, once there are `count` of them.
    async fn contents(&self, name: &str, count: usize) -> Vec<String> {
        let channel = channel(name);
        eventually(format!("{count} events are in {name}"), async || {
            let slice = self.broker.read(&channel, Range::After(0), 10_000).await.ok()?;
            let offsets = slice.events.iter().map(|(offset, _)| *offset);
            assert!(offsets.eq(1..=slice.head), "a hole in {slice:?}");
            let texts = slice.events.iter().map(|(_, event)| event.data.as_str().to_owned());
            (count <= slice.events.len()).then(|| texts.collect())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_end_goes_on_under_a_new_epoch() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    let news = channel("news");
    let first = node.publish(&news, draft(1)).await;
    node.publish(&news, draft(2)).await;
    let known = Position { offset: 5, ..first.position };
    let told = node.broker.verify(&[(news.clone(), known), (news.clone(), known)]).await.unwrap();
    assert_ne!(told[0].epoch, known.epoch);
    assert_eq!((told[0].offset, told[1]), (2, told[0]));
    // Told once: whoever asks about the old epoch learns of the same new one.
    assert_eq!(node.broker.verify(&[(news.clone(), known)]).await.unwrap(), told[..1]);
    let next = node.publish(&news, draft(3)).await;
    assert_eq!(next.position, Position { offset: 3, ..told[0] });
    assert_eq!(node.contents("news", 3).await, ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_and_ids_are_deleted() {
    let fixture = Postgres::start().await;
    let second = Duration::from_secs(1);
    let retention = crossfade::broker::Retention { age: second, dedup: second, ..RETENTION };
    let node = Node::keeping(&fixture, retention).await;
    let news = channel("news");
    for n in 1..=5 {
        node.publish(&news, draft(n)).await;
    }
    eventually("nothing is left of them", async || {
        let sql = "select (select count(*) from crossfade.event), count(*) from crossfade.receipt";
        (fixture.sql(sql).await == [["0", "0"]]).then_some(())
    })
    .await;
    assert_eq!(node.publish(&news, draft(6)).await.position.offset, 6);
}

/// `cargo test --release --test it -- --ignored --nocapture publishes_per_second`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn publishes_per_second() {
    let fixture = Postgres::alone(true).await;
    let node = Node::on(&fixture).await;
    let publishers = (0..64).map(|publisher: usize| {
        let broker = Arc::clone(&node.broker);
        async move {
            for n in 0..500 {
                let room = channel(&format!("room:{}", (publisher * 7919 + n * 104_729) % 10_000));
                let batch = vec![Publication { channel: room, draft: draft("\"0123456789\"") }];
                broker.publish(batch).await.remove(0).unwrap();
            }
        }
    });
    let began = std::time::Instant::now();
    futures_util::future::join_all(publishers).await;
    let rate = 32_000.0 / began.elapsed().as_secs_f64();
    eprintln!(
        "{rate:.0} publishes/s, 64 publishers, 10,000 channels, fsync and synchronous_commit on"
    );
}
