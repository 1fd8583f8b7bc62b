//! What SQL publishes: exactly what was committed, and nobody waits for it.

use super::*;
use crate::support::eventually::soon;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_that_cross_neither_deadlock_nor_delay_a_publish() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    let (one, two) = (fixture.client().await, fixture.client().await);
    one.batch_execute("begin; select crossfade.publish('a', '1')").await.unwrap();
    two.batch_execute("begin; select crossfade.publish('b', '2')").await.unwrap();
    soon("the first goes on", one.batch_execute("select crossfade.publish('b', '1')"))
        .await
        .unwrap();
    soon("the second does", two.batch_execute("select crossfade.publish('a', '2')")).await.unwrap();
    // Both are open still.
    for name in ["a", "b"] {
        let receipt = node.publish(&channel(name), draft("\"api\"")).await;
        assert_eq!(receipt.position.offset, 1);
    }
    one.batch_execute("commit").await.unwrap();
    two.batch_execute("commit").await.unwrap();
    for name in ["a", "b"] {
        let mut contents = node.contents(name, 3).await;
        contents[1..].sort();
        assert_eq!(contents, ["\"api\"", "1", "2"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_committed_late_is_not_skipped() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    let late = fixture.client().await;
    late.batch_execute("begin; select crossfade.publish('news', '\"late\"')").await.unwrap();
    fixture.sql("select crossfade.publish('news', '\"early\"')").await;
    assert_eq!(node.contents("news", 1).await, ["\"early\""]);
    let other = Node::on(&fixture).await;
    assert_eq!(other.contents("news", 1).await, ["\"early\""]);
    late.batch_execute("commit").await.unwrap();
    assert_eq!(other.contents("news", 2).await, ["\"early\"", "\"late\""]);
    assert_eq!(node.contents("news", 2).await, ["\"early\"", "\"late\""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_sent_exactly_if_its_transaction_commits() {
    let fixture = Postgres::start().await;
    let mut node = Node::on(&fixture).await;
    let news = channel("news");
    node.broker.subscribe(&news).await.unwrap();
    let api = draft("\"api\"");
    let receipt = node.publish(&news, api.clone()).await;
    let client = fixture.client().await;
    let publish = |data: &str, id: &str| {
        format!("select crossfade.publish('news', '\"{data}\"', 'created', '{id}');")
    };
    client.batch_execute(&format!("begin; {} rollback", publish("never", "x"))).await.unwrap();
    client.batch_execute(&publish("repeat", api.id.as_str())).await.unwrap();
    let mine = rows(&client, &publish("sql", "mine")).await;
    assert_eq!(mine, [["mine"]]);
    client.batch_execute(&publish("sql again", "mine")).await.unwrap();
    client.batch_execute(&publish("last", "last")).await.unwrap();
    let heard = node.hear(&news, 0, 3).await;
    let texts: Vec<_> = heard.iter().map(|entry| entry.event.data.as_str()).collect();
    assert_eq!(texts, ["\"api\"", "\"sql\"", "\"last\""]);
    assert_eq!(heard[1].event.name.as_ref().unwrap().as_str(), "created");
    // And the other way round: what SQL published first is a repeat for the API.
    let repeat = crossfade::protocol::Draft { id: "mine".parse().unwrap(), ..api };
    let again = node.publish(&news, repeat).await;
    assert_eq!((again.duplicate, again.position.offset), (true, 2));
    assert_eq!(again.position.epoch, receipt.position.epoch);
    assert_eq!(fixture.sql("select count(*) from crossfade.outbox").await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_transactions_events_keep_their_order() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    let sql = "select crossfade.publish('news', to_jsonb(n)) from generate_series(1, 2500) n";
    fixture.sql(sql).await;
    let expected: Vec<_> = (1..=2500).map(|n| n.to_string()).collect();
    assert_eq!(node.contents("news", 2500).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_setting_a_publish_rings_at_its_commit() {
    let fixture = Postgres::start().await;
    // The sequencer would not look by itself for the whole test.
    let hour = Duration::from_secs(3600);
    let config = PostgresConfig {
        notify_on_sql_publish: true,
        poll_min: hour,
        poll_max: hour,
        ..fixture.config()
    };
    let retentions = Arc::new(Retentions::new(RETENTION, Default::default()));
    let (broker, feed) = fixture.node_with(&config, retentions);
    let node = Node { broker, feed };
    // Sequenced or not, the seat is taken before the first look into the outbox.
    eventually("the seat is taken", async || {
        let sql = "select pid from pg_locks where locktype = 'advisory' and objid = 2 and granted \
                   and database = (select oid from pg_database where datname = current_database())";
        (!fixture.sql(sql).await.is_empty()).then_some(())
    })
    .await;
    for n in 1..=3 {
        fixture.sql(&format!("select crossfade.publish('news', '{n}')")).await;
        node.contents("news", n).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seat_passes_on_when_its_holder_is_cut_off() {
    let fixture = Postgres::start().await;
    let one = Node::on(&fixture).await;
    let _two = Node::on(&fixture).await;
    fixture.sql("select crossfade.publish('news', '1')").await;
    one.contents("news", 1).await;
    let holder = "select pid from pg_locks where locktype = 'advisory' and objid = 2 and granted \
                  and database = (select oid from pg_database where datname = current_database())";
    let before = fixture.sql(holder).await;
    assert_eq!(before.len(), 1);
    fixture.sql(&format!("select pg_terminate_backend({})", before[0][0])).await;
    fixture.sql("select crossfade.publish('news', '2')").await;
    assert_eq!(one.contents("news", 2).await, ["1", "2"]);
    assert_ne!(fixture.sql(holder).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_no_log_takes_does_not_block_the_others() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    // Too long an id for an index, put there past the function that checks.
    let poison = "insert into crossfade.outbox (channel, id, data) select 'news', \
                  string_agg(md5(n::text), '' order by n), '0' from generate_series(1, 1000) n";
    let publish = |n| format!("select crossfade.publish('news', '{n}');");
    fixture.sql(&format!("{} {poison}; {}", publish(1), publish(2))).await;
    assert_eq!(node.contents("news", 2).await, ["1", "2"]);
    let left = fixture.sql("select data, refused is not null from crossfade.outbox").await;
    assert_eq!(left, [["0", "t"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_arguments_are_refused_with_a_hint() {
    let fixture = Postgres::start().await;
    let _node = Node::on(&fixture).await;
    let client = fixture.client().await;
    for wrong in [
        "'', '1'",
        "null, '1'",
        "'a b', '1'",
        "'né', '1'",
        "repeat('x', 201), '1'",
        "'news', null",
        "'news', '1', ''",
        "'news', '1', 'open'",
        "'news', '1', 'crossfade.reset'",
        "'news', '1', E'a\\nb'",
        "'news', '1', E'a\\u0085b'",
        "'news', '1', repeat('x', 129)",
        "'news', '1', null, ''",
        "'news', '1', null, 'a b'",
        "'news', '1', null, 'é'",
        "'news', '1', null, repeat('x', 129)",
    ] {
        let refused = client.batch_execute(&format!("select crossfade.publish({wrong})")).await;
        let error = refused.expect_err(wrong);
        assert!(error.as_db_error().unwrap().hint().is_some(), "{wrong}: {error:?}");
    }
    for right in ["'a/b@c#d=e-f_g.h:I9', '[]', 'ein Name: é', 'id!~\"'", "repeat('x', 200), 'null'"]
    {
        client.batch_execute(&format!("select crossfade.publish({right})")).await.expect(right);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_needs_no_more_than_usage_to_publish() {
    let fixture = Postgres::start().await;
    let node = Node::on(&fixture).await;
    let client = fixture.client().await;
    let role = format!("shop_{}", fixture.database);
    let grant = format!("create role {role}; grant usage on schema crossfade to {role}");
    client.batch_execute(&format!("{grant}; set role {role}")).await.unwrap();
    client.batch_execute("select crossfade.publish('news', '1')").await.unwrap();
    for forbidden in ["select * from crossfade.event", "select crossfade.open('news')"] {
        client.batch_execute(forbidden).await.expect_err(forbidden);
    }
    assert_eq!(node.contents("news", 1).await, ["1"]);
}
