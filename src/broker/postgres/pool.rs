//! The connections that answer questions: reads, heads, and what the background asks.

use std::{num::NonZeroUsize, time::Duration};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, PoolError, RecyclingMethod, Runtime,
};
use tokio::time::timeout;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{failure::Failure, schema, session::Target};

/// A question's parameters.
pub(super) type Params<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// Some connections, opened as they are needed.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pool: deadpool_postgres::Pool,
    timeout: Duration,
}

impl Pool {
    /// One of `size` connections at most.
    pub(super) fn new(target: &Target, size: NonZeroUsize) -> Result<Self, String> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(target.config.clone(), target.tls.clone(), recycling);
        let limit = target.statement_timeout;
        let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move {
                let prepared = schema::prepare(client, limit).await;
                prepared.map_err(|trouble| HookError::message(trouble.to_string()))
            })
        });
        let pool = deadpool_postgres::Pool::builder(manager)
            .max_size(size.get())
            .runtime(Runtime::Tokio1)
            .post_create(prepare)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { pool, timeout: target.timeout })
    }

    /// Asks, and returns all rows. Within the timeout, waiting for a free connection included.
    /// The statement is not prepared under a name: that works through poolers too, in one round
    /// trip.
    pub(super) async fn ask(&self, sql: &str, params: &Params<'_>) -> Result<Vec<Row>, Failure> {
        let mut held: Option<Object> = None;
        let asking = async {
            let client = held.insert(self.pool.get().await.map_err(told)?);
            Ok(client.query_typed(sql, params).await?)
        };
        let answer = timeout(self.timeout, asking).await;
        if answer.is_err() {
            // The next question on that connection would wait for the answer to this one.
            let _ = held.take().map(Object::take);
        }
        answer.unwrap_or(Err(Failure::Slow(self.timeout)))
    }

    /// Closes all connections; questions from then on fail.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

fn told(error: PoolError) -> Failure {
    match error {
        PoolError::Backend(error) => Failure::Server(error),
        PoolError::PostCreateHook(HookError::Message(text)) => Failure::Other(text.into_owned()),
        PoolError::Closed => Failure::Other("the gateway is stopping".to_owned()),
        error => Failure::Other(error.to_string()),
    }
}
