//! Questions about logs, and what the rows that answer them mean.

use tokio_postgres::{Row, types::Type};

use super::{
    failure::Failure,
    interest::Shard,
    pool::{Params, Pool},
    values::{millis, position},
};
use crate::{
    broker::{Range, Retentions, Slice},
    protocol::{Channel, Data, Event, Position},
};

const OPEN: &str = "select epoch, head, shard from crossfade.open($1)";
const HEADS: &str = "select name, epoch, head from crossfade.channel where name = any ($1)";
const VERIFY: &str = "select epoch, head from crossfade.verify($1, $2, $3)";
const TRIM: &str = "select crossfade.trim($1, $2, $3, $4)";
const READ_AFTER: &str = include_str!("sql/read_after.sql");
const READ_UNTIL: &str = include_str!("sql/read_until.sql");

/// The head of a channel and its shard; the log is created if there is none.
pub(super) async fn open(pool: &Pool, channel: &Channel) -> Result<(Position, Shard), Failure> {
    let rows = pool.ask(OPEN, &[(&channel.as_str(), Type::TEXT)]).await?;
    let row = rows.first().ok_or_else(|| Failure::Other("no such channel".to_owned()))?;
    let shard: i16 = row.try_get(2)?;
    Ok((position(row.try_get(0)?, row.try_get(1)?), shard.to_le_bytes()[0]))
}

/// The heads of those of `channels` that have a log.
pub(super) async fn heads(
    pool: &Pool,
    channels: &[Channel],
) -> Result<Vec<(Channel, Position)>, Failure> {
    let names: Vec<_> = channels.iter().map(Channel::as_str).collect();
    let rows = pool.ask(HEADS, &[(&names, Type::TEXT_ARRAY)]).await?;
    rows.iter()
        .map(|row| {
            let name: &str = row.try_get(0)?;
            Ok((channel_of(name)?, position(row.try_get(1)?, row.try_get(2)?)))
        })
        .collect()
}

/// The head of each of `known`, in the same order. One that has lost entries gets a new epoch.
pub(super) async fn verify(
    pool: &Pool,
    known: &[(Channel, Position)],
) -> Result<Vec<Position>, Failure> {
    let names: Vec<_> = known.iter().map(|(channel, _)| channel.as_str()).collect();
    let epochs: Vec<_> = known.iter().map(|(_, p)| p.epoch.number().cast_signed()).collect();
    let offsets: Vec<_> = known.iter().map(|(_, p)| bigint(p.offset)).collect();
    let rows = pool
        .ask(
            VERIFY,
            &[
                (&names, Type::TEXT_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&offsets, Type::INT8_ARRAY),
            ],
        )
        .await?;
    rows.iter().map(|row| Ok(position(row.try_get(0)?, row.try_get(1)?))).collect()
}

/// A piece of a log; none if there is no such log.
pub(super) async fn read(
    pool: &Pool,
    channel: &Channel,
    range: Range,
    limit: usize,
) -> Result<Option<Slice>, Failure> {
    let (sql, offset) = match range {
        Range::After(offset) => (READ_AFTER, offset),
        Range::Until(offset) => (READ_UNTIL, offset),
    };
    let (offset, limit) = (bigint(offset), i64::try_from(limit).unwrap_or(i64::MAX));
    let name = channel.as_str();
    let params: &Params<'_> = &[(&name, Type::TEXT), (&offset, Type::INT8), (&limit, Type::INT8)];
    let rows = pool.ask(sql, params).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let Position { epoch, offset: head } = position(first.try_get(0)?, first.try_get(1)?);
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        events.extend(event(row)?);
    }
    Ok(Some(Slice { epoch, head, events }))
}

/// Lets go of what retention need not keep, `most` events at most. Returns the channels that it did
/// not come to the end of.
pub(super) async fn trim(
    pool: &Pool,
    channels: &[Channel],
    retentions: &Retentions,
    most: i64,
) -> Result<Vec<Channel>, Failure> {
    let names: Vec<_> = channels.iter().map(Channel::as_str).collect();
    let keeps: Vec<_> = channels.iter().map(|c| bigint(retentions.of(c).events)).collect();
    let ages: Vec<_> = channels.iter().map(|c| millis(retentions.of(c).age)).collect();
    let rows = pool
        .ask(
            TRIM,
            &[
                (&names, Type::TEXT_ARRAY),
                (&keeps, Type::INT8_ARRAY),
                (&ages, Type::INT8_ARRAY),
                (&most, Type::INT8),
            ],
        )
        .await?;
    rows.iter().map(|row| channel_of(row.try_get(0)?)).collect()
}

fn event(row: &Row) -> Result<Option<(u64, Event)>, Failure> {
    let Some(offset) = row.try_get::<_, Option<i64>>(2)? else { return Ok(None) };
    let name: Option<&str> = row.try_get(4)?;
    let event = Event {
        id: parsed(row.try_get(3)?)?,
        name: name.map(parsed).transpose()?,
        data: Data::lenient(row.try_get(5)?),
        time: row.try_get::<_, i64>(6)?.cast_unsigned(),
    };
    Ok(Some((offset.cast_unsigned(), event)))
}

fn channel_of(name: &str) -> Result<Channel, Failure> {
    Channel::stored(name)
        .map_err(|error| Failure::Other(format!("a row no gateway wrote: {error}")))
}

/// Everything in the tables came through a check; what does not parse was put there by hand.
fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| Failure::Other(format!("a row no gateway wrote: {error}")))
}

fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
