//! The promise under fire on PostgreSQL.

use super::{Store, each_node_is_killed_once, the_broker_is_killed_three_times};
use crate::support::postgres::PrivatePostgres;

pub(crate) struct Postgres {
    server: PrivatePostgres,
    database: String,
}

impl Postgres {
    pub(crate) async fn start(durable: bool) -> Self {
        let server = PrivatePostgres::start(durable).await;
        let database = server.create_database().await;
        Self { server, database }
    }
}

impl Store for Postgres {
    fn vars(&self) -> Vec<(String, String)> {
        let url = self.server.url(&self.database);
        vec![
            ("CROSSFADE_BROKER__KIND".to_owned(), "postgres".to_owned()),
            ("CROSSFADE_BROKER__POSTGRES__URL".to_owned(), url),
        ]
    }

    async fn kill_and_restart(&mut self) {
        self.server.kill();
        self.server.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_killed() {
    the_broker_is_killed_three_times(Postgres::start(true).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_killed() {
    each_node_is_killed_once(Postgres::start(true).await).await;
}
