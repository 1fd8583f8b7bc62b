//! The schema comes by itself, once.

use crossfade::broker::{Health, postgres::ConnectionUrl};
use futures_util::future::join_all;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_nodes_that_start_together_install_it_once() {
    let fixture = Postgres::alone(false).await;
    let nodes = join_all((0..10).map(|_| Node::on(&fixture))).await;
    for (n, node) in (1..).zip(&nodes) {
        assert_eq!(node.publish(&channel("news"), draft(n)).await.position.offset, n);
    }
    let installed = fixture.sql("select version from crossfade.schema_version").await;
    assert_eq!(installed, [["1"], ["2"]]);
    assert!(!fixture.server.log().contains("ERROR"), "{}", fixture.server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_create_it_is_told_what_to_run() {
    let fixture = Postgres::start().await;
    let role = format!("gateway_{}", fixture.database);
    fixture.sql(&format!("create role {role} login")).await;
    let url =
        fixture.server.url(&fixture.database).replace("user=postgres", &format!("user={role}"));
    let url: ConnectionUrl = url.parse().unwrap();
    let config = PostgresConfig { url, ..fixture.config() };
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let (broker, _feed) = fixture.node_with(&config, retentions);
    let remedy = format!("GRANT CREATE ON DATABASE {} TO {role}", fixture.database);
    eventually("the remedy is told", async || match broker.health() {
        Health::Down { reason } => reason.contains(&remedy).then_some(()),
        Health::Up => None,
    })
    .await;
    fixture.sql(&format!("create schema crossfade authorization {role}")).await;
    eventually("it is up", async || (broker.health() == Health::Up).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_can_never_work_is_refused_at_once() {
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let stage = Stage::default();
    for url in ["", "nonsense", "postgres://db/app?sslrootcert=x", "user=me"] {
        let config = PostgresConfig { url: url.parse().unwrap(), ..PostgresConfig::default() };
        PostgresBroker::connect(&config, Arc::clone(&retentions), &stage).expect_err(url);
    }
}
