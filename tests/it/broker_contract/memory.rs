//! The embedded broker keeps the promises.

use std::sync::Arc;

use async_trait::async_trait;
use crossfade::broker::{
    Broker, Feed, Retentions,
    memory::{MemoryBroker, MemoryConfig},
};

use super::{Fixture, contract};

struct Memory;

#[async_trait]
impl Fixture for Memory {
    async fn start() -> Self {
        Self
    }

    async fn node(&self, retentions: Arc<Retentions>) -> (Arc<dyn Broker>, Feed) {
        let (broker, feed) = MemoryBroker::open(&MemoryConfig::default(), retentions).unwrap();
        (Arc::new(broker), feed)
    }
}

contract!(Memory);
