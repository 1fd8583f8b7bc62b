//! The promise under fire on Redis, with its append-only file.

use super::{Store, each_node_is_killed_once, the_broker_is_killed_three_times};
use crate::support::redis::PrivateRedis;

impl Store for PrivateRedis {
    fn vars(&self) -> Vec<(String, String)> {
        vec![
            ("CROSSFADE_BROKER__KIND".to_owned(), "redis".to_owned()),
            ("CROSSFADE_BROKER__REDIS__URL".to_owned(), self.0.url.clone()),
        ]
    }

    async fn kill_and_restart(&mut self) {
        self.0.kill();
        self.0.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_killed() {
    the_broker_is_killed_three_times(PrivateRedis::durable().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_killed() {
    each_node_is_killed_once(PrivateRedis::durable().await).await;
}
