//! A connection with one owner, which also moves its bytes: no task beside it, and its end is seen
//! at once. And the way to the server, which all connections share.

use std::{collections::VecDeque, fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Config, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    config::{ConnectionUrl, PostgresConfig, label},
    failure::Failure,
    schema, tls,
};

/// Notifications that may come in during one call. More, and the connection is given up: whoever
/// listens is told of the interruption.
const INBOX_MAX: usize = 10_000;

/// The way to the server.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) timeout: Duration,
    /// None through a pooler, where a session's settings would reach strangers.
    pub(super) statement_timeout: Option<Duration>,
}

impl Target {
    /// The way that `url` says.
    pub(super) fn new(
        url: &ConnectionUrl,
        config: &PostgresConfig,
        direct: bool,
    ) -> Result<Self, String> {
        let timeout = config.timeout;
        let mut parsed = url.parse()?;
        parsed.connect_timeout(parsed.get_connect_timeout().map_or(timeout, |t| timeout.min(*t)));
        parsed.tcp_user_timeout(timeout).keepalives_idle(timeout);
        parsed.keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
        if parsed.get_application_name().is_none() {
            parsed.application_name("crossfade");
        }
        let tls = tls::connector(parsed.get_ssl_mode())?;
        Ok(Self { config: parsed, tls, timeout, statement_timeout: direct.then_some(timeout) })
    }

    /// Who, where and which database.
    pub(super) fn label(&self) -> String {
        label(&self.config)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.label()).finish()
    }
}

/// A connection of its own.
pub(super) struct Session {
    client: Arc<Client>,
    messages: stream::Fuse<BoxStream<'static, Result<AsyncMessage, tokio_postgres::Error>>>,
    inbox: VecDeque<Notification>,
    timeout: Duration,
}

impl Session {
    /// Connects, and sees to it that the schema is there.
    pub(super) async fn open(target: &Target) -> Result<Self, Failure> {
        let connecting = target.config.connect(target.tls.clone());
        let (client, mut connection) = timeout(target.timeout, connecting)
            .await
            .map_err(|_| Failure::Slow(target.timeout))??;
        let messages = stream::poll_fn(move |cx| connection.poll_message(cx)).boxed().fuse();
        let mut session = Self {
            client: Arc::new(client),
            messages,
            inbox: VecDeque::new(),
            timeout: target.timeout,
        };
        let client = session.client();
        session.drive(schema::prepare(&client, target.statement_timeout)).await?;
        Ok(session)
    }

    /// What to ask with; the answer comes while [`drive`](Self::drive) runs.
    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// Runs a call to its end, which is the timeout at the latest. After an error the session is of
    /// no use: an answer may still be under way.
    pub(super) async fn drive<T, E: Into<Failure>>(
        &mut self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let (limit, mut call) = (self.timeout, pin!(call));
        let run = async {
            loop {
                tokio::select! {
                    // The answer first: after a farewell both are ready, and the answer counts.
                    biased;
                    answer = &mut call => return answer.map_err(Into::into),
                    message = self.messages.next() => self.take(message)?,
                }
            }
        };
        timeout(limit, run).await.unwrap_or(Err(Failure::Slow(limit)))
    }

    /// The next notification. Can be dropped and called again without losing one.
    pub(super) async fn notification(&mut self) -> Result<Notification, Failure> {
        loop {
            if let Some(notification) = self.inbox.pop_front() {
                return Ok(notification);
            }
            let message = self.messages.next().await;
            self.take(message)?;
        }
    }

    /// Returns when the connection ends.
    pub(super) async fn ended(&mut self) -> Failure {
        loop {
            if let Err(trouble) = self.notification().await {
                return trouble;
            }
        }
    }

    fn take(
        &mut self,
        message: Option<Result<AsyncMessage, tokio_postgres::Error>>,
    ) -> Result<(), Failure> {
        match message {
            Some(Ok(AsyncMessage::Notification(notification))) => {
                if INBOX_MAX <= self.inbox.len() {
                    return Err(Failure::Other("too many notifications at once".to_owned()));
                }
                self.inbox.push_back(notification);
                Ok(())
            }
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(Failure::Closed),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("inbox", &self.inbox.len()).finish_non_exhaustive()
    }
}
