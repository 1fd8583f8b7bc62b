//! The task of one connection: the loop that reads, performs, writes and closes.

use std::{collections::VecDeque, fmt, future::Future, io, pin::Pin, sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    active_subscription::ActiveSubscription,
    admission::Accepted,
    client::Client,
    delivery::WriteOutcome,
    heartbeat::{Heartbeat, HeartbeatEvent},
    migration_state::MigrationState,
    open_session::ConnectRequest,
    registry::Connections,
    requests,
    socket::Socket,
    subscribe,
    token_expiry::{ExpiryEvent, TokenExpiry},
};
use crate::{
    lifecycle,
    metrics::TransportLabel,
    protocol::{ClientFrame, CloseCode, ErrorCode, ServerFrame, SessionId},
    session::Session,
    wire::{Conversation, Inbound, Input, Opening, Replies, WireFormat},
};

/// Bytes read from a client at a time.
pub(super) const READ_BYTES: usize = 4096;

/// One client on one socket.
pub struct Connection {
    pub(super) connections: Arc<Connections>,
    pub(super) client: Arc<Client>,
    heartbeat: Heartbeat,
    expiry: TokenExpiry,
    /// What the client sends; none for a stream, whose client sends nothing.
    receiver: Option<Box<Receiver>>,
    /// The request that is being performed.
    work: Option<Work>,
    write_wait: WriteWait,
}

/// What the next write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteWait {
    /// New events or replies.
    Wake,
    /// Room in the socket.
    Room,
    /// Nothing, but other tasks run first.
    Turn,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a client sends.
struct Receiver {
    inbound: Box<dyn Inbound>,
    /// Whether the first request was received.
    began: bool,
    /// Requests that wait for the one before.
    waiting: VecDeque<ClientFrame>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection whose handshake is done. `received` are bytes that came right behind it.
    pub fn open(
        connections: Arc<Connections>,
        (socket, received): (Socket, &[u8]),
        conversation: Conversation,
        opening: Opening,
        accepted: Accepted,
    ) -> Self {
        let Conversation { format, inbound, replies } = conversation;
        let session = match &opening {
            Opening::Connect => None,
            Opening::Stream(request) => request.session,
        };
        let session = Session::new(session.unwrap_or_else(SessionId::generate));
        let mut this = Self::new(connections, socket, (format, replies), session);
        this.receiver = inbound
            .map(|inbound| Box::new(Receiver { inbound, began: false, waiting: VecDeque::new() }));
        match opening {
            Opening::Connect => {
                let timeout = this.connections.config.connect_timeout;
                this.heartbeat.expect_first_frame(timeout);
                this.admit(accepted);
            }
            Opening::Stream(request) => {
                this.admit(accepted);
                this.client.state().migration = MigrationState::new(request.about.clone());
                if this.client.state().close_reason().is_none() {
                    let resumed = request.session.is_some();
                    this.connections.register(&this.client, resumed, request.overlap);
                }
                let (client, connections) =
                    (Arc::clone(&this.client), Arc::clone(&this.connections));
                this.work = Some(Box::pin(async move {
                    subscribe::open_stream(&client, &connections, request).await;
                }));
            }
        }
        if let Err(code) = this.receive(received) {
            this.client.close(code.into());
        }
        this
    }

    fn new(
        connections: Arc<Connections>,
        socket: Socket,
        (format, replies): (WireFormat, Box<dyn Replies>),
        session: Session<ActiveSubscription>,
    ) -> Self {
        let label = transport_label(format);
        let metrics = connections.node.metrics();
        metrics.connections.get_or_create(&label).inc();
        let delivered = metrics.deliveries.get_or_create(&label).clone();
        let counted = (connections.cluster.next_number(), delivered);
        let node = Arc::clone(&connections.node);
        let client = Arc::new(Client::new(socket, (format, replies), node, counted, session));
        let heartbeat =
            Heartbeat::new(connections.config.heartbeat, connections.config.stall_timeout);
        Self {
            connections,
            client,
            heartbeat,
            expiry: TokenExpiry::default(),
            receiver: None,
            work: None,
            write_wait: WriteWait::Wake,
        }
    }

    fn admit(&mut self, Accepted { identity, permit }: Accepted) {
        self.client.state().permit = Some(permit);
        match identity {
            Ok(None) => {}
            Ok(Some(identity)) => {
                if !self.client.state().admit_identity(identity) {
                    self.client.close(CloseCode::TryLater.into());
                }
            }
            Err(err) => requests::reject(&self.connections, &self.client, None, err),
        }
        self.expiry.watch(&self.client);
    }

    /// Writes bytes before everything else: the head of a response.
    pub fn write_first(&mut self, head: Bytes) {
        self.client.send_bytes(&mut self.client.state(), head);
    }

    /// Serves the client until either side closes. Returns why.
    pub async fn run(mut self) -> CloseCode {
        let stopping = self.connections.stopping.clone();
        let code = tokio::select! {
            code = self.serve() => code,
            () = stopping.cancelled() => CloseCode::Draining,
        };
        // Boxed: it is needed once, and an idle connection would hold its memory all the time.
        Box::pin(self.close(code)).await;
        code
    }

    async fn serve(&mut self) -> CloseCode {
        loop {
            if let Err(code) = self.write_pending() {
                return code;
            }
            self.next_request();
            // Nothing is lost when another arm wins: each only waits, what follows acts.
            let step = tokio::select! {
                () = self.client.wake.notified() => Step::Write,
                () = self.client.socket.writable(), if self.write_wait == WriteWait::Room => Step::Room,
                () = tokio::task::yield_now(), if self.write_wait == WriteWait::Turn => Step::Write,
                () = self.client.socket.readable(), if self.reads() => Step::Read,
                () = finished(&mut self.work) => Step::WorkDone,
                event = self.heartbeat.next() => Step::Heartbeat(event),
                event = self.expiry.next() => Step::TokenExpiry(event),
            };
            let done = match step {
                Step::Write => {
                    // A stream's token is renewed by a POST beside it.
                    self.expiry.watch(&self.client);
                    Ok(())
                }
                Step::Room => {
                    self.client.socket_writable();
                    Ok(())
                }
                Step::Read => self.read(),
                Step::WorkDone => {
                    self.work = None;
                    self.expiry.watch(&self.client);
                    Ok(())
                }
                Step::Heartbeat(event) => self.on_heartbeat(event),
                Step::TokenExpiry(event) => self.on_token_expiry(event),
            };
            if let Err(code) = done {
                return code;
            }
        }
    }

    /// Whether more can be read from the client. Its earlier requests are performed first, and it has
    /// to read their replies: otherwise requests would be a way to fill the gateway's memory.
    fn reads(&self) -> bool {
        match &self.receiver {
            Some(receiver) => {
                let idle = self.work.is_none() && receiver.waiting.is_empty();
                idle && self.client.state().is_flushed()
            }
            None => true,
        }
    }

    fn write_pending(&mut self) -> Result<(), CloseCode> {
        self.write_wait = WriteWait::Wake;
        match self.client.write_pending() {
            WriteOutcome::Done => {}
            WriteOutcome::Blocked => self.write_wait = WriteWait::Room,
            WriteOutcome::More => self.write_wait = WriteWait::Turn,
            WriteOutcome::CatchUp(_) if self.work.is_some() => {}
            WriteOutcome::CatchUp(tag) => {
                self.work = Some(Box::pin(subscribe::catch_up(Arc::clone(&self.client), tag)));
            }
            WriteOutcome::Gone => return Err(CloseCode::Normal),
            WriteOutcome::Close(code) => return Err(code),
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), CloseCode> {
        let mut buffer = [0; READ_BYTES];
        match self.client.socket.try_read(&mut buffer) {
            Ok(0) => Err(CloseCode::Normal),
            Ok(len) => {
                self.heartbeat.received();
                self.receive(&buffer[..len])
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(CloseCode::Normal),
        }
    }

    /// Decodes received bytes. What the client of a stream sends after its request is dropped.
    fn receive(&mut self, bytes: &[u8]) -> Result<(), CloseCode> {
        let Some(mut receiver) = self.receiver.take() else { return Ok(()) };
        let mut inputs = Vec::new();
        let fed = receiver.inbound.feed(bytes, self.connections.limits.frame_bytes, &mut inputs);
        let accepted = inputs.into_iter().try_for_each(|input| self.accept(&mut receiver, input));
        self.receiver = Some(receiver);
        accepted.and(fed)
    }

    fn accept(&mut self, receiver: &mut Receiver, input: Input) -> Result<(), CloseCode> {
        let limits = &self.connections.limits;
        let (rate, burst) = (limits.frames_per_second, limits.frames_burst);
        if !self.client.state().frame_bucket.take(Instant::now(), rate, burst) {
            return Err(CloseCode::RateLimited);
        }
        match input {
            Input::Request(frame) => self.accept_request(receiver, frame),
            Input::Invalid(err) => {
                let fatal = err.fatal;
                self.client.send(&mut self.client.state(), &err.into());
                if fatal { Err(CloseCode::BadFrame) } else { Ok(()) }
            }
            Input::Ping(pong) => {
                self.client.send_bytes(&mut self.client.state(), pong);
                Ok(())
            }
            Input::Pong => Ok(()),
            Input::Close => {
                self.client.state().stats.left = true;
                Err(CloseCode::Normal)
            }
        }
    }

    fn accept_request(
        &mut self,
        receiver: &mut Receiver,
        frame: ClientFrame,
    ) -> Result<(), CloseCode> {
        if !std::mem::replace(&mut receiver.began, true) {
            self.heartbeat.begin();
            if self.open_session(&frame)? {
                return Ok(());
            }
        }
        receiver.waiting.push_back(frame);
        Ok(())
    }

    /// Opens the session by the client's first request. Returns whether that asked for nothing else.
    fn open_session(&mut self, first: &ClientFrame) -> Result<bool, CloseCode> {
        let (token, request) = match first {
            ClientFrame::Connect { id, token, session, overlap, about } => {
                let about = about.clone();
                let request =
                    ConnectRequest { id: *id, session: *session, overlap: *overlap, about };
                (token.clone(), Some(request))
            }
            _ => (None, None),
        };
        if let (Some(token), Some(request)) = (token, request.clone()) {
            let (client, connections) = (Arc::clone(&self.client), Arc::clone(&self.connections));
            self.work = Some(Box::pin(async move {
                requests::authenticate(&connections, &client, request, token).await;
            }));
            return Ok(true);
        }
        if self.client.state().identity.is_none() {
            let message = "authenticate first: {\"type\":\"connect\",\"token\":…}".to_owned();
            let refusal = first.refused(ErrorCode::Unauthorised, message);
            self.client.send(&mut self.client.state(), &refusal);
            return Err(CloseCode::Unauthorised);
        }
        let only_connects = request.is_some();
        self.connections.open_session(&self.client, request.unwrap_or_default());
        Ok(only_connects)
    }

    /// Begins with the client's next request, once it has read the reply to the one before.
    fn next_request(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        while self.work.is_none() && !receiver.waiting.is_empty() {
            let mut state = self.client.state();
            let Some(frame) = state.is_flushed().then(|| receiver.waiting.pop_front()).flatten()
            else {
                return;
            };
            if let Err(refusal) = self.connections.check(&mut state, &frame) {
                self.client.send(&mut state, &refusal);
                drop(state);
                // Nothing else may come to write it out.
                self.client.wake.notify_one();
                return;
            }
            let (connections, client) = (Arc::clone(&self.connections), Arc::clone(&self.client));
            self.work = Some(Box::pin(async move {
                requests::perform(&connections, &client, frame, true).await;
            }));
        }
    }

    /// Warns before the token expires, and closes when it has, unless it was renewed.
    fn on_token_expiry(&mut self, event: ExpiryEvent) -> Result<(), CloseCode> {
        if self.expiry.watch(&self.client) {
            return Ok(());
        }
        match event {
            ExpiryEvent::Near(within) => {
                let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.client.send(&mut self.client.state(), &ServerFrame::Expiring { within });
                Ok(())
            }
            ExpiryEvent::Expired => Err(CloseCode::TokenExpired),
        }
    }

    fn on_heartbeat(&mut self, event: HeartbeatEvent) -> Result<(), CloseCode> {
        match event {
            HeartbeatEvent::ConnectTimeout => return Err(CloseCode::Unauthorised),
            HeartbeatEvent::Silent if self.receiver.is_some() => return Err(CloseCode::Silent),
            HeartbeatEvent::Silent | HeartbeatEvent::Ping => {}
        }
        let mut state = self.client.state();
        let stalled = state.stalled_for();
        if stalled.is_some_and(|stalled| self.connections.config.stall_timeout <= stalled) {
            return Err(CloseCode::TooSlow);
        }
        if stalled.is_none() {
            self.client.send(&mut state, &ServerFrame::Ping { time: lifecycle::unix_ms() });
        }
        Ok(())
    }

    /// Ends the client's subscriptions and removes it from the registry.
    pub(super) fn release(&mut self) {
        self.work = None;
        let (session, subscriptions) = {
            let mut state = self.client.state();
            (state.session.id(), state.close())
        };
        let count = i64::try_from(subscriptions.len()).unwrap_or(i64::MAX);
        self.connections.node.metrics().subscriptions.dec_by(count);
        drop(subscriptions);
        self.connections.remove(session, &self.client);
    }
}

impl Drop for Connection {
    /// Also where the task was cut off: an attached subscription holds on to the client.
    fn drop(&mut self) {
        self.release();
        let label = transport_label(self.client.format);
        self.connections.node.metrics().connections.get_or_create(&label).dec();
    }
}

enum Step {
    Write,
    Room,
    Read,
    WorkDone,
    Heartbeat(HeartbeatEvent),
    TokenExpiry(ExpiryEvent),
}

async fn finished(work: &mut Option<Work>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn transport_label(format: WireFormat) -> TransportLabel {
    TransportLabel { transport: format.transport.as_str() }
}
