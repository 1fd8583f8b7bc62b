//! One client on one socket: the loop and nothing else.
//!
//! The session decides, the connection does. It drives whatever [`Socket`] it is given, in any
//! [`WireFormat`]; it knows nothing of HTTP heads, brokers or other connections. Its one exit
//! gives everything back.

mod active_subscription;
pub mod client;
mod cluster_commands;
mod heartbeat;
mod migration;
mod registry;
mod requests;
mod session_stats;
pub mod socket;
mod token_expiry;

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tracing::debug;

pub(crate) use self::requests::{code_of, page};
use self::{
    active_subscription::ActiveSubscription,
    client::{Client, Pending},
    cluster_commands::CloseReason,
    heartbeat::{Heartbeat, HeartbeatEvent},
    migration::MigrationState,
    socket::Socket,
    token_expiry::{ExpiryEvent, TokenExpiry},
};
pub use self::{cluster_commands::obey, migration::Migrator, registry::Connections};
use crate::{
    auth::{Identity, TokenError},
    lifecycle,
    metrics::{CloseLabel, TransportLabel},
    protocol::{
        Channel, ClientFrame, CloseCode, ErrorCode, MemberId, Position, ServerFrame, SessionId,
        UserId, WireFormat,
        frame::{About, RequestId},
        rfc6455::{self, Decoder, Message},
    },
    session::Session,
};

/// Section `[connection]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionConfig {
    /// A WebSocket client says its first word within this time.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// A ping goes out this often; a WebSocket client that is silent for twice as long is given up.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A client whose socket takes nothing for this long is given up.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// What an EventSource waits before it comes back.
    #[serde(with = "humantime_serde")]
    pub sse_retry: Duration,
    /// When the node stops, clients are told to come back at a moment within this time, each at
    /// another.
    #[serde(with = "humantime_serde")]
    pub drain_spread: Duration,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(25),
            stall_timeout: Duration::from_secs(60),
            sse_retry: Duration::from_secs(2),
            drain_spread: Duration::from_secs(5),
        }
    }
}

/// How long a client may take to notice that it was closed before the socket is dropped.
const PARTING: Duration = Duration::from_secs(1);

/// Nobody is asked to come back sooner than this.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Bytes read from a client in one go.
const READ_BYTES: usize = 4096;

/// The version of the protocol that a welcome states.
const PROTOCOL_VERSION: u32 = 1;

/// What an SSE stream is opened with.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    /// The session the client had before.
    pub session: Option<SessionId>,
    /// The channels, each with the last position the client holds.
    pub channels: Vec<(Channel, Option<Position>)>,
    /// Tell who is there, and who comes and goes.
    pub presence: bool,
    /// It moves by plan: the session's connection so far may go on for a while.
    pub overlap: bool,
    /// What the client says of itself.
    pub about: About,
    /// With the envelope or without.
    pub format: WireFormat,
}

/// A client's place, given back when it is dropped.
pub trait AdmissionPermit: Send + fmt::Debug {
    /// Counts the client as this user's. Whether the user may have one more.
    fn admit_user(&mut self, user: &UserId) -> bool;
}

/// Who comes, as far as it is known when the socket is there.
#[derive(Debug)]
pub struct Accepted {
    /// Who; none when it has to say so in its first frame.
    pub identity: Result<Option<Arc<Identity>>, TokenError>,
    /// Its place.
    pub admission: Box<dyn AdmissionPermit>,
}

/// One client on one socket.
pub struct Connection {
    connections: Arc<Connections>,
    client: Arc<Client>,
    heartbeat: Heartbeat,
    expiry: TokenExpiry,
    /// A WebSocket's bytes are taken apart; an SSE client has nothing to say.
    decoder: Option<Box<Inbound>>,
    /// What is being done for the client.
    work: Option<Work>,
    pace: WriteWait,
}

/// What writing on depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteWait {
    /// News.
    Idle,
    /// Room in the socket.
    Blocked,
    /// Nothing, but others come first.
    More,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("client", &self.client).finish_non_exhaustive()
    }
}

/// How a WebSocket client begins.
#[derive(Clone, Debug, Default)]
struct ConnectRequest {
    id: Option<RequestId>,
    session: Option<SessionId>,
    overlap: bool,
    about: About,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a WebSocket client sends.
struct Inbound {
    decoder: Decoder,
    greeted: bool,
    waiting: VecDeque<ClientFrame>,
}

impl Connection {
    /// A WebSocket whose handshake is done. `leftover` came right behind it.
    pub fn websocket(
        connections: Arc<Connections>,
        socket: Socket,
        leftover: &[u8],
        arrival: Accepted,
    ) -> (Self, CloseCode) {
        let inbound =
            Inbound { decoder: Decoder::default(), greeted: false, waiting: VecDeque::new() };
        let session = Session::new(SessionId::generate());
        let mut this = Self::new(connections, socket, WireFormat::WebSocket, session);
        this.heartbeat.expect_first_word(this.connections.config.connect_timeout);
        this.decoder = Some(Box::new(inbound));
        this.receive(arrival);
        let code = this.take(leftover).err().unwrap_or(CloseCode::Normal);
        (this, code)
    }

    /// An SSE stream whose head is written.
    pub fn sse(
        connections: Arc<Connections>,
        socket: Socket,
        request: StreamRequest,
        arrival: Accepted,
    ) -> Self {
        let StreamRequest { session, channels, presence, overlap, about, format } = request;
        let id = session.unwrap_or_else(SessionId::generate);
        let mut this = Self::new(connections, socket, format, Session::new(id));
        this.receive(arrival);
        this.client.state().mobility = MigrationState::new(about);
        if this.client.state().parting().is_none() {
            this.connections.enlist(&this.client, session.is_some(), overlap);
        }
        let (client, connections) = (Arc::clone(&this.client), Arc::clone(&this.connections));
        this.work = Some(Box::pin(async move {
            requests::open_stream(&client, &connections, (channels, presence)).await;
        }));
        this
    }

    fn receive(&mut self, Accepted { identity, admission }: Accepted) {
        self.client.state().admission = Some(admission);
        match identity {
            Ok(None) => {}
            Ok(Some(identity)) => {
                if !self.client.state().take_identity(identity) {
                    self.client.part(CloseCode::TryLater.into());
                }
            }
            Err(err) => requests::turn_away(&self.connections, &self.client, None, err),
        }
        self.expiry.watch(&self.client);
    }

    fn new(
        connections: Arc<Connections>,
        socket: Socket,
        format: WireFormat,
        session: Session<ActiveSubscription>,
    ) -> Self {
        let label = transport(format);
        let metrics = connections.node.metrics();
        metrics.connections.get_or_create(&label).inc();
        let delivered = metrics.deliveries.get_or_create(&label).clone();
        let counted = (connections.cluster.next_number(), delivered);
        let client = Client::new(socket, format, Arc::clone(&connections.node), counted, session);
        let heartbeat =
            Heartbeat::new(connections.config.heartbeat, connections.config.stall_timeout);
        Self {
            connections,
            client: Arc::new(client),
            heartbeat,
            expiry: TokenExpiry::default(),
            decoder: None,
            work: None,
            pace: WriteWait::Idle,
        }
    }

    /// Puts bytes in front of everything else: a response's head.
    pub fn write_first(&mut self, head: Bytes) {
        self.client.send_bytes(&mut self.client.state(), head);
    }

    /// Serves the client until either side ends it. Returns why.
    pub async fn run(mut self, mut code: CloseCode) -> CloseCode {
        if code == CloseCode::Normal {
            let stopping = self.connections.stopping.clone();
            code = tokio::select! {
                code = self.serve() => code,
                () = stopping.cancelled() => CloseCode::Draining,
            };
        }
        // Boxed: it is needed once, and its room would be held all the time.
        Box::pin(self.part(code)).await;
        code
    }

    async fn serve(&mut self) -> CloseCode {
        loop {
            if let Err(code) = self.write_due() {
                return code;
            }
            self.next_request();
            // Nothing here is lost when another arm wins: each only waits, what follows acts.
            let step = tokio::select! {
                () = self.client.wake.notified() => Step::Write,
                () = self.client.socket.writable(), if self.pace == WriteWait::Blocked => Step::Room,
                () = tokio::task::yield_now(), if self.pace == WriteWait::More => Step::Write,
                () = self.client.socket.readable(), if self.listens() => Step::Read,
                () = finished(&mut self.work) => Step::WorkDone,
                beat = self.heartbeat.next() => Step::HeartbeatEvent(beat),
                end = self.expiry.next() => Step::TokenExpiry(end),
            };
            let done = match step {
                Step::Write => {
                    // A stream's token is renewed beside it.
                    self.expiry.watch(&self.client);
                    Ok(())
                }
                Step::Room => {
                    self.client.has_room();
                    Ok(())
                }
                Step::Read => self.read(),
                Step::WorkDone => {
                    self.work = None;
                    self.expiry.watch(&self.client);
                    Ok(())
                }
                Step::HeartbeatEvent(beat) => self.beat(beat),
                Step::TokenExpiry(end) => self.token_ends(end),
            };
            if let Err(code) = done {
                return code;
            }
        }
    }

    /// Whether more from the client can be taken: what it asked before comes first, and it has to
    /// read the answers. Otherwise asking would be a way to fill our memory.
    fn listens(&self) -> bool {
        match &self.decoder {
            Some(inbound) => {
                self.work.is_none() && inbound.waiting.is_empty() && self.client.state().is_clear()
            }
            None => true,
        }
    }

    fn write_due(&mut self) -> Result<(), CloseCode> {
        self.pace = WriteWait::Idle;
        match self.client.write_due() {
            Pending::Nothing => {}
            Pending::Blocked => self.pace = WriteWait::Blocked,
            Pending::More => self.pace = WriteWait::More,
            Pending::CatchUp(_) if self.work.is_some() => {}
            Pending::CatchUp(tag) => {
                self.work = Some(Box::pin(requests::catch_up(Arc::clone(&self.client), tag)));
            }
            Pending::Gone => return Err(CloseCode::Normal),
            Pending::CloseReason(code) => return Err(code),
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), CloseCode> {
        let mut buffer = [0; READ_BYTES];
        match self.client.socket.try_read(&mut buffer) {
            Ok(0) => Err(CloseCode::Normal),
            Ok(len) => {
                self.heartbeat.heard();
                self.take(&buffer[..len])
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(CloseCode::Normal),
        }
    }

    /// Takes bytes from the client apart. What an SSE client sends beside its request is dropped.
    fn take(&mut self, bytes: &[u8]) -> Result<(), CloseCode> {
        let Some(mut inbound) = self.decoder.take() else { return Ok(()) };
        let mut messages = Vec::new();
        let fed = inbound.decoder.feed(bytes, self.connections.limits.frame_bytes, &mut messages);
        let heard = messages.into_iter().try_for_each(|message| self.hear(&mut inbound, message));
        self.decoder = Some(inbound);
        heard.and(fed)
    }

    fn hear(&mut self, inbound: &mut Inbound, message: Message) -> Result<(), CloseCode> {
        let limits = &self.connections.limits;
        let (rate, burst) = (limits.frames_per_second, limits.frames_burst);
        if !self.client.state().allowance.take(Instant::now(), rate, burst) {
            return Err(CloseCode::RateLimited);
        }
        match message {
            Message::Text(text) => self.hear_text(inbound, &text),
            Message::Ping(payload) => {
                self.client.send_bytes(&mut self.client.state(), rfc6455::pong(&payload));
                Ok(())
            }
            Message::Pong => Ok(()),
            Message::Close => {
                self.client.state().account.left = true;
                Err(CloseCode::Normal)
            }
        }
    }

    fn hear_text(&mut self, inbound: &mut Inbound, text: &str) -> Result<(), CloseCode> {
        let frame = match ClientFrame::parse(text) {
            Ok(frame) => frame,
            Err(err) => {
                let fatal = err.fatal;
                self.client.send(&mut self.client.state(), &err.into());
                return if fatal { Err(CloseCode::BadFrame) } else { Ok(()) };
            }
        };
        if !std::mem::replace(&mut inbound.greeted, true) {
            self.heartbeat.begin();
            if self.greet(&frame)? {
                return Ok(());
            }
        }
        inbound.waiting.push_back(frame);
        Ok(())
    }

    /// Welcomes the client once it is known who it is; whether its first frame asked for nothing else.
    fn greet(&mut self, first: &ClientFrame) -> Result<bool, CloseCode> {
        let (token, asked) = match first {
            ClientFrame::Connect { id, token, session, overlap, about } => {
                let about = about.clone();
                let greeting =
                    ConnectRequest { id: *id, session: *session, overlap: *overlap, about };
                (token.clone(), Some(greeting))
            }
            _ => (None, None),
        };
        if let (Some(token), Some(greeting)) = (token, asked.clone()) {
            let (client, connections) = (Arc::clone(&self.client), Arc::clone(&self.connections));
            self.work = Some(Box::pin(async move {
                requests::authenticate(&connections, &client, greeting, token).await;
            }));
            return Ok(true);
        }
        if self.client.state().identity.is_none() {
            let message = "say who you are first: {\"type\":\"connect\",\"token\":…}".to_owned();
            let refusal = first.refused(ErrorCode::Unauthorised, message);
            self.client.send(&mut self.client.state(), &refusal);
            return Err(CloseCode::Unauthorised);
        }
        let only_greets = asked.is_some();
        self.connections.welcome(&self.client, asked.unwrap_or_default());
        Ok(only_greets)
    }

    /// Begins with what the client asked for next, once it has read the answer before.
    fn next_request(&mut self) {
        let Some(inbound) = &mut self.decoder else { return };
        while self.work.is_none() && !inbound.waiting.is_empty() {
            let mut client_state = self.client.state();
            let Some(frame) =
                client_state.is_clear().then(|| inbound.waiting.pop_front()).flatten()
            else {
                return;
            };
            if let Err(refusal) = self.connections.check(&mut client_state, &frame) {
                self.client.send(&mut client_state, &refusal);
                drop(client_state);
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

    /// Warns before the token expires, and parts when it has, unless there is a new one.
    fn token_ends(&mut self, end: ExpiryEvent) -> Result<(), CloseCode> {
        if self.expiry.watch(&self.client) {
            return Ok(());
        }
        match end {
            ExpiryEvent::Near(within) => {
                let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
                self.client.send(&mut self.client.state(), &ServerFrame::Expiring { within });
                Ok(())
            }
            ExpiryEvent::Reached => Err(CloseCode::TokenExpired),
        }
    }

    fn beat(&mut self, beat: HeartbeatEvent) -> Result<(), CloseCode> {
        match beat {
            HeartbeatEvent::NoFirstWord => return Err(CloseCode::Unauthorised),
            HeartbeatEvent::Silent if self.decoder.is_some() => return Err(CloseCode::Silent),
            HeartbeatEvent::Silent | HeartbeatEvent::Ping => {}
        }
        let mut client_state = self.client.state();
        let stalled = client_state.stalled_for();
        if stalled.is_some_and(|stalled| self.connections.config.stall_timeout <= stalled) {
            return Err(CloseCode::TooSlow);
        }
        if stalled.is_none() {
            self.client.send(&mut client_state, &ServerFrame::Ping { time: lifecycle::unix_ms() });
        }
        Ok(())
    }

    /// Says goodbye, gives everything back, and lets the client read what was written.
    async fn part(&mut self, code: CloseCode) {
        // What is at hand goes out first: it need not be read again elsewhere.
        let _ = self.client.write_due();
        self.connections.departed(&self.client, code);
        self.give_back();
        if code != CloseCode::Normal {
            let goodbye = self.goodbye(code);
            self.client.send(&mut self.client.state(), &goodbye);
        }
        if self.decoder.is_some() {
            self.client.send_bytes(&mut self.client.state(), rfc6455::close(code));
        }
        let _ = tokio::time::timeout(PARTING, leave(&self.client)).await;
        let metrics = self.connections.node.metrics();
        metrics.closed.get_or_create(&CloseLabel { code: code.number() }).inc();
        debug!(code = code.number(), reason = code.as_str(), "connection closed");
    }

    /// What a client is told before the connection ends.
    fn goodbye(&self, code: CloseCode) -> ServerFrame {
        let ordered = self.client.state().parting().filter(|parting| parting.code == code).cloned();
        let CloseReason { reconnect, reason, .. } = ordered.unwrap_or_else(|| code.into());
        let reconnect = reconnect.unwrap_or_else(|| code.reconnect());
        ServerFrame::Goodbye {
            code: code.number(),
            reason: reason.unwrap_or_else(|| code.as_str().into()),
            reconnect,
            after: if reconnect { self.pause_after(code) } else { 0 },
        }
    }

    /// The milliseconds a client is asked to wait before it comes back.
    fn pause_after(&self, code: CloseCode) -> u64 {
        let config = &self.connections.config;
        let most = match code {
            CloseCode::Draining => config.drain_spread,
            _ => config.sse_retry,
        };
        rand::rng().random_range(LEAST_PAUSE..=most.max(LEAST_PAUSE)).as_millis() as u64
    }

    fn give_back(&mut self) {
        self.work = None;
        let (session, subscriptions) = {
            let mut client_state = self.client.state();
            (client_state.session.id(), client_state.close())
        };
        let count = i64::try_from(subscriptions.len()).unwrap_or(i64::MAX);
        self.connections.node.metrics().subscriptions.dec_by(count);
        drop(subscriptions);
        self.connections.strike(session, &self.client);
    }
}

impl Drop for Connection {
    /// Also where a task was cut off: a subscription's seat holds on to the client.
    fn drop(&mut self) {
        self.give_back();
        let label = transport(self.client.format);
        self.connections.node.metrics().connections.get_or_create(&label).dec();
    }
}

/// Writes what is left, and waits until the client has read it.
async fn leave(client: &Client) {
    while let Pending::Blocked | Pending::More = client.write_due() {
        client.socket.writable().await;
        client.has_room();
    }
    client.socket.end_writing();
    // Dropping a socket with unread bytes resets it, and the goodbye with it.
    while pass_over_unread(&client.socket) {
        client.socket.readable().await;
    }
}

/// Drops what the client sent after we were done with it; whether it may send more.
fn pass_over_unread(socket: &Socket) -> bool {
    // In a function of its own: a buffer in a future is a buffer in every connection.
    let mut buffer = [0; READ_BYTES];
    match socket.try_read(&mut buffer) {
        Ok(0) => false,
        Ok(_) => true,
        Err(err) => err.kind() == io::ErrorKind::WouldBlock,
    }
}

enum Step {
    Write,
    Room,
    Read,
    WorkDone,
    HeartbeatEvent(HeartbeatEvent),
    TokenExpiry(ExpiryEvent),
}

async fn finished(work: &mut Option<Work>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn transport(format: WireFormat) -> TransportLabel {
    TransportLabel { transport: if format.is_sse() { "sse" } else { "websocket" } }
}

fn welcome(connections: &Connections, session: SessionId, id: Option<u64>) -> ServerFrame {
    ServerFrame::Welcome {
        id,
        session,
        member: MemberId::of(session),
        node: Arc::clone(connections.node.name()),
        heartbeat: u64::try_from(connections.config.heartbeat.as_millis()).unwrap_or(u64::MAX),
        time: lifecycle::unix_ms(),
        version: PROTOCOL_VERSION,
    }
}

/// The `retry:` line an SSE stream begins with.
fn sse_retry(retry: Duration) -> Bytes {
    format!("retry: {}\n", retry.as_millis()).into()
}
