//! What `trait Store` promises.

use std::time::Duration;

use crossfade::broker::store::{Record, Write, Written};
use futures_util::future::join_all;

use super::{Fixture, Node};
use crate::support::eventually::eventually;

fn write(expected: u64, value: impl ToString, note: Option<&str>) -> Write {
    Write { expected, value: value.to_string(), note: note.map(str::to_owned) }
}

pub(crate) async fn of_many_writers_one_wins_each_version<F: Fixture>() {
    let fixture = F::start().await;
    let store = Node::on(&fixture).await.broker.store();
    assert_eq!(store.get("flags/a").await.unwrap(), None);
    let stale = store.put("flags/a", write(3, "x", None)).await.unwrap();
    assert_eq!(stale, Written::Conflict(None));
    for version in 0..20 {
        let tries = (0..8).map(|who| store.put("flags/a", write(version, who, Some("note"))));
        let done: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<usize> = done
            .iter()
            .enumerate()
            .filter(|(_, done)| **done == Written::Done(version + 1))
            .map(|(who, _)| who)
            .collect();
        assert_eq!(winners.len(), 1, "{done:?}");
        let now = Record { version: version + 1, value: winners[0].to_string() };
        assert_eq!(store.get("flags/a").await.unwrap().as_ref(), Some(&now));
        let lost = done.into_iter().filter(|done| *done != Written::Done(version + 1));
        for lost in lost {
            assert_eq!(lost, Written::Conflict(Some(now.clone())));
        }
    }
    let notes = store.journal("flags/", u64::MAX, 100).await.unwrap();
    assert_eq!(notes.len(), 20, "a note for each write, none for a refused one");
}

pub(crate) async fn the_journal_is_read_backwards_in_pages<F: Fixture>() {
    let fixture = F::start().await;
    let store = Node::on(&fixture).await.broker.store();
    for n in 0..10 {
        store.put("flags/a", write(n, n, Some(&format!("a {n}\nline")))).await.unwrap();
        store.put("flags/b", write(n, n, Some("other"))).await.unwrap();
        store.put("lease", write(n, n, None)).await.unwrap();
    }
    let (mut before, mut read) = (u64::MAX, Vec::new());
    loop {
        let page = store.journal("flags/a", before, 3).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 3);
        before = last.number;
        read.extend(page);
    }
    let texts: Vec<_> = read.iter().map(|note| (note.version, note.text.clone())).collect();
    let expected: Vec<_> = (0..10).rev().map(|n| (n + 1, format!("a {n}\nline"))).collect();
    assert_eq!(texts, expected);
    assert!(read.iter().all(|note| 1_600_000_000_000 < note.time));
    let keys: Vec<_> =
        store.list("flags/").await.unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["flags/a", "flags/b"]);
}

pub(crate) async fn what_is_told_expires<F: Fixture>() {
    let fixture = F::start().await;
    let store = Node::on(&fixture).await.broker.store();
    let long = Duration::from_secs(60);
    store.tell("nodes/a", "old", long).await.unwrap();
    store.tell("nodes/a", "{\"a\": 1}\nb", long).await.unwrap();
    store.tell("nodes/b", "short", Duration::from_millis(50)).await.unwrap();
    store.tell("other", "x", long).await.unwrap();
    let kept = vec![("nodes/a".to_owned(), "{\"a\": 1}\nb".to_owned())];
    eventually("the short word is forgotten", async || {
        (store.told("nodes/").await.unwrap() == kept).then_some(())
    })
    .await;
}
