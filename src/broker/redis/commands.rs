//! Sends commands to the shards that own their channels, in one pipeline per shard, and decides which
//! are sent again.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    command_connection::{CommandConnection, Line},
    error::{failure, unavailable},
    library,
    shard::Shard,
    shards::Shards,
};
use crate::{broker::BrokerError, protocol::Channel};

/// Which of a shard's connections is used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    /// The one for writes, and for reads that must be current.
    Writing,
    /// The one for reads.
    Reading,
}

/// Commands with a common deadline.
pub(super) struct Commands<'a> {
    shards: &'a Shards,
    deadline: Instant,
}

/// What came of a command.
enum CommandOutcome {
    Done(Result<Value, BrokerError>),
    /// The function library was missing there, and has been loaded.
    LibraryLoaded,
    /// Another shard owns the channel.
    Moved(BrokerError),
}

/// A shard and the numbers of the commands for it.
type Share = (Arc<Shard>, Vec<usize>);

impl<'a> Commands<'a> {
    /// Commands that may take `broker.redis.timeout`.
    pub(super) fn new(shards: &'a Shards) -> Self {
        Self { shards, deadline: Instant::now() + shards.context.timeout }
    }

    /// Sends a command for each channel, those of one channel in order. Returns one answer for each. A
    /// command that went to the wrong shard, or before the function library was loaded, was not
    /// performed: it is sent again.
    pub(super) async fn each(
        &self,
        route: Route,
        channels: &[&Channel],
        command: impl Fn(usize) -> Cmd,
    ) -> Vec<Result<Value, BrokerError>> {
        let no_owner = || Err(unavailable("redis", "no master has the channel's slot"));
        let mut answers: Vec<_> = channels.iter().map(|_| no_owner()).collect();
        let mut left: Vec<usize> = (0..channels.len()).collect();
        for _try in 0..2 {
            let mut again = Vec::new();
            let mut moved = false;
            let shares = shares(self.shards, channels, &left);
            let outcomes =
                join_all(shares.iter().map(|share| self.send(route, share, &command))).await;
            for (number, outcome) in outcomes.into_iter().flatten() {
                answers[number] = match outcome {
                    CommandOutcome::Done(answer) => answer,
                    CommandOutcome::LibraryLoaded => {
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
                self.shards.context.refresh_slots(self.deadline).await;
            }
            again.sort_unstable();
            left = again;
        }
        answers
    }

    async fn send(
        &self,
        route: Route,
        (shard, numbers): &Share,
        command: &impl Fn(usize) -> Cmd,
    ) -> Vec<(usize, CommandOutcome)> {
        let connection = match route {
            Route::Writing => &shard.writing,
            Route::Reading => &shard.reading,
        };
        let all = |why: &dyn std::fmt::Display| {
            let settled =
                |number| (number, CommandOutcome::Done(Err(unavailable(&shard.place(), why))));
            numbers.iter().map(|number| settled(*number)).collect()
        };
        let mut line = match connection.line() {
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
                connection.doubt();
                return all(&error);
            }
            Err(_) => {
                connection.doubt();
                return all(&"no answer in time");
            }
        };
        self.outcomes(shard, connection, &mut line, numbers, answers).await
    }

    async fn outcomes(
        &self,
        shard: &Shard,
        connection: &CommandConnection,
        line: &mut Line,
        numbers: &[usize],
        answers: Vec<RedisResult<Value>>,
    ) -> Vec<(usize, CommandOutcome)> {
        let mut missing = false;
        let mut outcomes = Vec::with_capacity(numbers.len());
        for (number, answer) in numbers.iter().zip(answers) {
            let outcome = match answer.and_then(Value::extract_error) {
                Ok(value) => CommandOutcome::Done(Ok(value)),
                Err(error) if library::is_missing(&error) => {
                    missing = true;
                    CommandOutcome::LibraryLoaded
                }
                Err(error) if error.code() == Some("MOVED") => {
                    CommandOutcome::Moved(failure(&shard.place(), &error))
                }
                Err(error) => {
                    if error.code() == Some("READONLY") {
                        connection.doubt();
                    }
                    CommandOutcome::Done(Err(failure(&shard.place(), &error)))
                }
            };
            outcomes.push((*number, outcome));
        }
        if missing {
            // If this fails the second try does too, and says why.
            let _ = timeout_at(self.deadline, library::load(&mut line.connection)).await;
        }
        outcomes
    }
}

/// Sorts commands by shard. Those whose channel has no owner are left out.
fn shares(shards: &Shards, channels: &[&Channel], left: &[usize]) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for number in left {
        let Some(owner) = shards.owner(channels[*number]) else { continue };
        match shares.iter_mut().find(|(shard, _)| Arc::ptr_eq(shard, &owner)) {
            Some((_, numbers)) => numbers.push(*number),
            None => shares.push((owner, vec![*number])),
        }
    }
    shares
}
