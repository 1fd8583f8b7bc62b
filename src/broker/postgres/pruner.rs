//! Lets go of what retention need not keep: little by little, and never holding a lock for long.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::types::Type;
use tracing::debug;

use super::{
    failure::Failure,
    grown_channels::GrownChannels,
    logs,
    pool::{Params, Pool},
    sequencer::Seat,
};
use crate::{broker::Retentions, protocol::Channel};

/// Rows deleted in one transaction.
const ROWS_MAX: i64 = 2000;

/// Channels looked at in one transaction.
const CHANNELS_MAX: usize = 500;

/// Channels of the walk looked at each time: a million channels take some minutes.
const WALK_MAX: usize = 10_000;

const WALK: &str = "select id, name from crossfade.channel where $1 < id order by id limit $2";
const FORGET_RECEIPTS: &str = include_str!("sql/forget_receipts.sql");

/// Prunes. Every node trims the channels it made grow; who holds the sequencer's seat walks over
/// all of them besides, for their age, and forgets ids.
pub(super) struct Pruner {
    pub(super) pool: Pool,
    pub(super) retentions: Arc<Retentions>,
    pub(super) grown: Arc<Mutex<GrownChannels>>,
    pub(super) seat: Arc<Seat>,
    pub(super) every: Duration,
    /// The id of the channel that the walk came to.
    pub(super) walked_to: i64,
}

impl Pruner {
    /// Prunes every now and then.
    pub(super) async fn run(mut self) {
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(trouble) = self.prune().await {
                debug!(%trouble, "pruning is put off");
            }
        }
    }

    async fn prune(&mut self) -> Result<(), Failure> {
        let grown = self.grown.lock().take();
        for piece in grown.chunks(CHANNELS_MAX) {
            self.trim(piece.to_vec()).await?;
        }
        if !self.seat.is_taken() {
            return Ok(());
        }
        let params: &Params<'_> = &[(&ROWS_MAX, Type::INT8)];
        // The count of what was deleted comes as rows: one each.
        while self.pool.ask(FORGET_RECEIPTS, params).await?.len() as i64 == ROWS_MAX {}
        self.walk().await
    }

    async fn walk(&mut self) -> Result<(), Failure> {
        let most = i64::try_from(CHANNELS_MAX).unwrap_or(i64::MAX);
        for _ in 0..WALK_MAX / CHANNELS_MAX {
            let params: &Params<'_> = &[(&self.walked_to, Type::INT8), (&most, Type::INT8)];
            let rows = self.pool.ask(WALK, params).await?;
            let Some(last) = rows.last() else {
                self.walked_to = 0;
                return Ok(());
            };
            let reached = last.try_get(0)?;
            let names = rows.iter().filter_map(|row| row.try_get::<_, &str>(1).ok()?.parse().ok());
            self.trim(names.collect()).await?;
            self.walked_to = reached;
        }
        Ok(())
    }

    /// Trims until all is done. Another node may be at it: then later.
    async fn trim(&self, mut channels: Vec<Channel>) -> Result<(), Failure> {
        while !channels.is_empty() {
            let left = logs::trim(&self.pool, &channels, &self.retentions, ROWS_MAX).await?;
            if left.len() == channels.len() && left.len() > 1 {
                let mut grown = self.grown.lock();
                left.iter().for_each(|channel| grown.add(channel));
                return Ok(());
            }
            channels = left;
        }
        Ok(())
    }
}
