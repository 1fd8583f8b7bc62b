//! Group commit: publications wait while the previous batch is being committed, and then go in one
//! call. Knows nothing of who listens.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_postgres::types::Type;

use super::{
    failure::{Backoff, Failure},
    grown_channels::GrownChannels,
    health::{HealthTracker, Part},
    session::{Session, Target},
    values::{millis, position},
};
use crate::broker::{BrokerError, Publication, Receipt, Retentions};

/// Publications per call, give or take one caller's piece.
const BATCH_MAX: usize = 1000;

/// Bytes of content per call, give or take one caller's piece.
const BYTES_MAX: usize = 8 << 20;

/// Callers waiting. One more waits to be allowed to wait.
const QUEUE_MAX: usize = 1024;

const APPEND: &str = include_str!("sql/append_call.sql");

type Answer = Vec<Result<Receipt, BrokerError>>;

struct Job {
    batch: Vec<Publication>,
    reply: oneshot::Sender<Answer>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.batch.iter().map(|publication| publication.draft.data.len()).sum()
    }
}

/// How many of these go in one call: one at least.
fn piece(batch: &[Publication]) -> usize {
    let mut bytes = 0;
    let small = batch.iter().take_while(|publication| {
        bytes += publication.draft.data.len();
        bytes <= BYTES_MAX
    });
    small.count().clamp(1, BATCH_MAX)
}

/// Where publications are handed in.
#[derive(Clone, Debug)]
pub(super) struct WriteSender {
    jobs: mpsc::Sender<Job>,
    vitals: Arc<HealthTracker>,
    timeout: Duration,
}

/// Where the writers take them out.
#[derive(Clone)]
pub(super) struct WriteReceiver(Arc<tokio::sync::Mutex<mpsc::Receiver<Job>>>);

/// The queue between them.
pub(super) fn queue(vitals: Arc<HealthTracker>, timeout: Duration) -> (WriteSender, WriteReceiver) {
    let (jobs, taken) = mpsc::channel(QUEUE_MAX);
    (WriteSender { jobs, vitals, timeout }, WriteReceiver(Arc::new(tokio::sync::Mutex::new(taken))))
}

impl WriteSender {
    /// Appends it all, in pieces one after the other if it is much.
    pub(super) async fn append(&self, mut batch: Vec<Publication>) -> Answer {
        let deadline = Instant::now() + self.timeout;
        let mut answers = Vec::with_capacity(batch.len());
        while !batch.is_empty() {
            let later = batch.split_off(piece(&batch));
            let count = batch.len();
            let (reply, answer) = oneshot::channel();
            let asked = async {
                self.jobs.send(Job { batch, reply }).await.ok()?;
                answer.await.ok()
            };
            let answered = match timeout_at(deadline, asked).await {
                Ok(Some(answers)) => answers,
                Ok(None) => self.unavailable(count, &"the gateway is stopping"),
                Err(_) => self.unavailable(count, &Failure::Slow(self.timeout)),
            };
            answers.extend(answered);
            batch = later;
        }
        answers
    }

    fn unavailable(&self, count: usize, reason: &impl ToString) -> Answer {
        vec![Err(self.vitals.unavailable(reason)); count]
    }
}

impl WriteReceiver {
    /// All that waits, up to a batch; none when nobody can hand in any more. Nothing is lost when
    /// this is dropped: jobs are taken only in the moment it returns.
    async fn take(&self) -> Option<Vec<Job>> {
        let mut waiting = self.0.lock().await;
        let mut jobs = vec![waiting.recv().await?];
        let (mut count, mut bytes) = (jobs[0].batch.len(), jobs[0].bytes());
        while count < BATCH_MAX && bytes < BYTES_MAX {
            let Ok(job) = waiting.try_recv() else { break };
            count += job.batch.len();
            bytes += job.bytes();
            jobs.push(job);
        }
        // A caller that is gone will not learn what became of it: better not to begin.
        jobs.retain(|job| !job.reply.is_closed());
        Some(jobs)
    }
}

/// One that commits. Two of them: while one waits for the disk the other gathers.
pub(super) struct Writer {
    pub(super) which: usize,
    pub(super) target: Target,
    pub(super) outlet: WriteReceiver,
    pub(super) vitals: Arc<HealthTracker>,
    pub(super) retentions: Arc<Retentions>,
    pub(super) grown: Arc<Mutex<GrownChannels>>,
    pub(super) backoff: Backoff,
}

impl Writer {
    /// Commits until nobody can hand in any more.
    pub(super) async fn run(self) {
        let part = Part::Writer(self.which);
        let mut backoff = self.backoff.clone();
        loop {
            let trouble = match Session::open(&self.target).await {
                Ok(session) => {
                    backoff.reset();
                    self.vitals.up(part);
                    let Some(trouble) = self.serve(session).await else { return };
                    trouble
                }
                Err(trouble) => trouble,
            };
            self.vitals.down(part, &trouble);
            // Nobody waits for a server that is away.
            let refusing = async {
                while let Some(jobs) = self.outlet.take().await {
                    self.answer_all(jobs, &trouble);
                }
            };
            tokio::select! {
                () = refusing => return,
                () = backoff.pause() => {}
            }
        }
    }

    /// Until there is trouble, or nobody who can hand in any more.
    async fn serve(&self, mut session: Session) -> Option<Failure> {
        loop {
            let jobs = tokio::select! {
                jobs = self.outlet.take() => jobs?,
                trouble = session.ended() => return Some(trouble),
            };
            if let Err(trouble) = self.commit(&mut session, jobs).await {
                return Some(trouble);
            }
        }
    }

    async fn commit(&self, session: &mut Session, jobs: Vec<Job>) -> Result<(), Failure> {
        if jobs.is_empty() {
            return Ok(());
        }
        match self.append(session, &jobs).await {
            Ok(receipts) => {
                let mut receipts = receipts.into_iter();
                for Job { batch, reply } in jobs {
                    // A caller may have gone meanwhile: the log has it all the same.
                    let _ = reply.send(receipts.by_ref().take(batch.len()).map(Ok).collect());
                }
                Ok(())
            }
            Err(trouble) => {
                self.answer_all(jobs, &trouble);
                Err(trouble)
            }
        }
    }

    async fn append(&self, session: &mut Session, jobs: &[Job]) -> Result<Vec<Receipt>, Failure> {
        let all: Vec<_> = jobs.iter().flat_map(|job| &job.batch).collect();
        let channels: Vec<_> = all.iter().map(|p| p.channel.as_str()).collect();
        let ids: Vec<_> = all.iter().map(|p| p.draft.id.as_str()).collect();
        let names: Vec<_> = all.iter().map(|p| p.draft.name.as_ref().map(|n| n.as_str())).collect();
        let contents: Vec<_> = all.iter().map(|p| p.draft.data.as_str()).collect();
        let retentions: Vec<_> = all.iter().map(|p| self.retentions.of(&p.channel)).collect();
        let windows: Vec<_> = retentions.iter().map(|r| millis(r.dedup)).collect();
        let client = session.client();
        let rows = session
            .drive(client.query_typed(
                APPEND,
                &[
                    (&channels, Type::TEXT_ARRAY),
                    (&ids, Type::TEXT_ARRAY),
                    (&names, Type::TEXT_ARRAY),
                    (&contents, Type::TEXT_ARRAY),
                    (&windows, Type::INT8_ARRAY),
                ],
            ))
            .await?;
        if rows.len() != all.len() {
            return Err(Failure::Other("crossfade.append gave too few answers".to_owned()));
        }
        let mut receipts = Vec::with_capacity(rows.len());
        for row in &rows {
            let position = position(row.try_get(0)?, row.try_get(1)?);
            receipts.push(Receipt { position, duplicate: row.try_get(2)? });
        }
        let mut grown = self.grown.lock();
        for ((publication, receipt), retention) in all.iter().zip(&receipts).zip(&retentions) {
            if retention.events < receipt.position.offset && !receipt.duplicate {
                grown.add(&publication.channel);
            }
        }
        Ok(receipts)
    }

    fn answer_all(&self, jobs: Vec<Job>, trouble: &Failure) {
        let error = self.vitals.unavailable(trouble);
        for Job { batch, reply } in jobs {
            let _ = reply.send(vec![Err(error.clone()); batch.len()]);
        }
    }
}
