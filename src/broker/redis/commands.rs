//! Sending commands to where their channels lie, in one pipeline per master, and judging what went
//! wrong.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    command_connection::{CommandConnection, Line},
    library,
    shard::{Context, Map, Shard},
};
use crate::{broker::BrokerError, protocol::Channel};

/// Over which of a shard's connections.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    /// The one for writing; what must be the newest is read over it too.
    Writing,
    /// The one for reading.
    Reading,
}

/// Commands that end together.
pub(super) struct Commands<'a> {
    site: &'a Context,
    deadline: Instant,
}

/// What became of a command.
enum CommandOutcome {
    Settled(Result<Value, BrokerError>),
    /// The library was missing there, and has been loaded.
    Loaded,
    /// The channel lies elsewhere.
    Moved(BrokerError),
}

/// A shard and the numbers of the commands for it.
type Share = (Arc<Shard>, Vec<usize>);

impl<'a> Commands<'a> {
    /// Commands that take as long as the configuration allows.
    pub(super) fn new(site: &'a Context) -> Self {
        Self { site, deadline: Instant::now() + site.timeout }
    }

    /// Sends a command for each channel, those for one channel in their order. One answer for each.
    /// What went to the wrong place, or before the library was there, was not done: it is sent again.
    pub(super) async fn each(
        &self,
        over: Route,
        channels: &[&Channel],
        command: impl Fn(usize) -> Cmd,
    ) -> Vec<Result<Value, BrokerError>> {
        let nowhere = || Err(unavailable("redis", "no master has the channel's slot"));
        let mut answers: Vec<_> = channels.iter().map(|_| nowhere()).collect();
        let mut left: Vec<usize> = (0..channels.len()).collect();
        for _try in 0..2 {
            let mut again = Vec::new();
            let mut moved = false;
            let shares = shares(&self.site.map(), channels, &left);
            let fates = join_all(shares.iter().map(|share| self.send(over, share, &command))).await;
            for (number, fate) in fates.into_iter().flatten() {
                answers[number] = match fate {
                    CommandOutcome::Settled(answer) => answer,
                    CommandOutcome::Loaded => {
                        again.push(number);
                        Err(unavailable("redis", "the function library was lost"))
                    }
                    CommandOutcome::Moved(error) => {
                        again.push(number);
                        moved = true;
                        Err(error)
                    }
                };
            }
            if again.is_empty() {
                break;
            }
            if moved {
                self.site.remap(self.deadline).await;
            }
            again.sort_unstable();
            left = again;
        }
        answers
    }

    async fn send(
        &self,
        over: Route,
        (shard, numbers): &Share,
        command: &impl Fn(usize) -> Cmd,
    ) -> Vec<(usize, CommandOutcome)> {
        let link = match over {
            Route::Writing => &shard.writing,
            Route::Reading => &shard.reading,
        };
        let all = |why: &dyn std::fmt::Display| {
            let settled =
                |number| (number, CommandOutcome::Settled(Err(unavailable(&shard.place(), why))));
            numbers.iter().map(|number| settled(*number)).collect()
        };
        let mut line = match link.line() {
            Ok(line) => line,
            Err(why) => return all(&why),
        };
        let mut pipeline = Pipeline::with_capacity(numbers.len());
        pipeline.ignore_errors();
        for number in numbers {
            pipeline.add_command(command(*number));
        }
        let sent = pipeline.query_async::<Vec<RedisResult<Value>>>(&mut line.connection);
        let answers = match timeout_at(self.deadline, sent).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => {
                link.doubt();
                return all(&error);
            }
            Err(_) => {
                link.doubt();
                return all(&"no answer in time");
            }
        };
        self.judge(shard, link, &mut line, numbers, answers).await
    }

    async fn judge(
        &self,
        shard: &Shard,
        link: &CommandConnection,
        line: &mut Line,
        numbers: &[usize],
        answers: Vec<RedisResult<Value>>,
    ) -> Vec<(usize, CommandOutcome)> {
        let mut missing = false;
        let mut fates = Vec::with_capacity(numbers.len());
        for (number, answer) in numbers.iter().zip(answers) {
            let fate = match answer.and_then(Value::extract_error) {
                Ok(value) => CommandOutcome::Settled(Ok(value)),
                Err(error) if library::is_missing(&error) => {
                    missing = true;
                    CommandOutcome::Loaded
                }
                Err(error) if error.code() == Some("MOVED") => {
                    CommandOutcome::Moved(failure(&shard.place(), &error))
                }
                Err(error) => {
                    if error.code() == Some("READONLY") {
                        link.doubt();
                    }
                    CommandOutcome::Settled(Err(failure(&shard.place(), &error)))
                }
            };
            fates.push((*number, fate));
        }
        if missing {
            // If this fails the second try does too, and says why.
            let _ = timeout_at(self.deadline, library::load(&mut line.connection)).await;
        }
        fates
    }
}

/// Sorts what is left by shard. What has no shard is left out.
fn shares(map: &Map, channels: &[&Channel], left: &[usize]) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for number in left {
        let Some(owner) = map.owner(channels[*number]) else { continue };
        match shares.iter_mut().find(|(shard, _)| Arc::ptr_eq(shard, owner)) {
            Some((_, numbers)) => numbers.push(*number),
            None => shares.push((Arc::clone(owner), vec![*number])),
        }
    }
    shares
}

/// What the server says about the command itself is final; everything else may pass: it is full,
/// loading, no master, on the move.
pub(super) fn failure(place: &str, error: &RedisError) -> BrokerError {
    let reason = error.to_string();
    let broker = place.to_owned();
    let ours = error.detail().is_some_and(|detail| detail.starts_with("crossfade:"));
    if ours || matches!(error.code(), Some("WRONGTYPE" | "NOPERM" | "CROSSSLOT")) {
        return BrokerError::Refused { broker, reason };
    }
    BrokerError::Unavailable { broker, reason }
}

pub(super) fn unavailable(place: &str, why: impl std::fmt::Display) -> BrokerError {
    BrokerError::Unavailable { broker: place.to_owned(), reason: why.to_string() }
}
