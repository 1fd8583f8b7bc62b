//! A client that goes where the rollout sends it, as the SDK does: it asks for its route, moves when it
//! is asked to with both connections open for a moment, and comes back after every break.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    client::{Sse, Ws},
    gateway::Api,
    pause,
};

/// What a traveller knows, for the test to look at.
pub(crate) struct Diary {
    pub(crate) unit: String,
    /// The data of the events, each once, in the order it came.
    pub(crate) received: Mutex<Vec<i64>>,
    /// What should never happen.
    pub(crate) mistakes: Mutex<Vec<String>>,
    /// When it was asked to move, and to what.
    pub(crate) asked: Mutex<Vec<(Instant, String)>>,
    /// What carries it now; empty between two connections.
    pub(crate) transport: watch::Sender<&'static str>,
    pub(crate) moves: AtomicU64,
    pub(crate) breaks: AtomicU64,
}

/// Where it may go and what it listens to.
pub(crate) struct Journey {
    pub(crate) nodes: Vec<SocketAddr>,
    pub(crate) apis: Vec<Api>,
    pub(crate) channel: String,
    /// It shows itself in this channel.
    pub(crate) lobby: Option<String>,
    /// It cannot open WebSockets.
    pub(crate) only_sse: bool,
}

enum Carrier {
    Ws(Box<Ws>),
    Sse(Sse),
}

/// One connection, and the last offset that came over it.
struct Link {
    carrier: Carrier,
    last: Option<u64>,
}

pub(crate) struct MigratingClient {
    journey: Arc<Journey>,
    diary: Arc<Diary>,
    session: Option<String>,
    position: Option<String>,
}

enum Step {
    Frame(Result<Value, String>),
    Arrived(Option<Link>),
}

impl MigratingClient {
    /// Sets out; the diary is written until the test ends.
    pub(crate) fn start(unit: &str, journey: &Arc<Journey>) -> Arc<Diary> {
        let diary = Arc::new(Diary {
            unit: unit.to_owned(),
            received: Mutex::default(),
            mistakes: Mutex::default(),
            asked: Mutex::default(),
            transport: watch::Sender::new(""),
            moves: AtomicU64::new(0),
            breaks: AtomicU64::new(0),
        });
        let traveller = Self {
            journey: Arc::clone(journey),
            diary: Arc::clone(&diary),
            session: None,
            position: None,
        };
        super::spawn(traveller.travel());
        diary
    }

    async fn travel(mut self) {
        loop {
            let transport = self.route().await;
            if let Some((link, session)) = self.open(transport, false).await {
                let first = self.session.replace(session).is_none();
                if first {
                    self.enter_lobby(&link).await;
                }
                self.diary.transport.send_replace(link.transport());
                self.ride(link).await;
                self.diary.transport.send_replace("");
                self.diary.breaks.fetch_add(1, Ordering::Relaxed);
            }
            pause(some(50..400)).await;
        }
    }

    fn node(&self) -> usize {
        rand::rng().random_range(0..self.journey.nodes.len())
    }

    async fn route(&self) -> &'static str {
        let api = &self.journey.apis[self.node()];
        let url = format!("{}/api/route?client={}", api.base, self.diary.unit);
        let answer = api.http.get(url).timeout(Duration::from_secs(2)).send().await;
        let route: Option<Value> = match answer {
            Ok(answer) => answer.json().await.ok(),
            Err(_) => None,
        };
        let wanted = route.is_some_and(|route| route["transport"] == "websocket");
        if wanted && !self.journey.only_sse { "websocket" } else { "sse" }
    }

    /// Opens a transport with the session and the position held. The session it has then.
    async fn open(&self, transport: &str, overlap: bool) -> Option<(Link, String)> {
        let addr = self.journey.nodes[self.node()];
        let opening = async {
            match transport {
                "websocket" if self.journey.only_sse => None,
                "websocket" => self.open_ws(addr, overlap).await,
                _ => self.open_sse(addr, overlap).await,
            }
        };
        let (carrier, session) =
            tokio::time::timeout(Duration::from_secs(5), opening).await.ok()??;
        let last = self.position.as_deref().map(offset);
        Some((Link { carrier, last }, session))
    }

    async fn open_ws(&self, addr: SocketAddr, overlap: bool) -> Option<(Carrier, String)> {
        let mut ws = Ws::try_open(addr).await.ok()?;
        let mut connect = json!({
            "type": "connect", "id": 1, "client": "traveller/1", "unit": self.diary.unit,
            "overlap": overlap,
        });
        if let Some(session) = &self.session {
            connect["session"] = session.as_str().into();
        }
        ws.try_send(connect).await.ok()?;
        let welcome = ws.try_welcome().await?;
        let subscribe = json!({
            "type": "subscribe", "id": 2, "channel": self.journey.channel, "since": self.position,
        });
        ws.try_send(subscribe).await.ok()?;
        // Events come behind the answer.
        let answer = ws.try_next().await.ok()?;
        if let Some(lobby) = &self.journey.lobby {
            let frame = json!({ "type": "subscribe", "id": 3, "channel": lobby });
            ws.try_send(frame).await.ok()?;
        }
        (answer["type"] == "subscribed").then_some((Carrier::Ws(Box::new(ws)), welcome.session))
    }

    async fn open_sse(&self, addr: SocketAddr, overlap: bool) -> Option<(Carrier, String)> {
        let mut query =
            format!("channel={}&client=traveller/1&unit={}", self.journey.channel, self.diary.unit);
        if let Some(session) = &self.session {
            query.push_str(&format!("&session={session}"));
        }
        if let Some(lobby) = &self.journey.lobby {
            query.push_str(&format!("&channel={lobby}"));
        }
        if let Some(position) = &self.position {
            query.push_str(&format!("&since={}~{position}", self.journey.channel));
        }
        if overlap {
            query.push_str("&overlap=1");
        }
        let mut sse = Sse::try_open(addr, &query, None).await.ok()?;
        let open = sse.try_next().await.ok()?;
        let session = open.json()["session"].as_str()?.to_owned();
        Some((Carrier::Sse(sse), session))
    }

    async fn enter_lobby(&self, link: &Link) {
        let (Some(lobby), Some(session)) = (&self.journey.lobby, &self.session) else { return };
        assert_eq!(link.transport(), "sse", "the lobby is entered before the rollout begins");
        let frame = json!({ "type": "presence", "id": 9, "channel": lobby, "state": 1 });
        for api in self.journey.apis.iter().cycle().take(20) {
            let answer = api.try_post(&format!("/events/{session}"), &frame).await;
            if answer.is_ok_and(|(status, answer, _)| status == 200 && answer["type"] == "shown") {
                return;
            }
            pause(Duration::from_millis(100)).await;
        }
        self.mistake("the lobby could not be entered");
    }

    /// Reads until the connection ends, changing over when asked.
    async fn ride(&mut self, mut link: Link) {
        loop {
            let frame = link.next().await;
            let Ok(frame) = frame else { return };
            if frame["type"] == "migrate" {
                let Some(next) = self.change_over(&mut link, &frame).await else { return };
                link = next;
            } else if !self.take(&mut link, &frame) {
                return;
            }
        }
    }

    /// Opens the other transport beside this one. Returns what to ride on; none when both are gone.
    async fn change_over(&mut self, link: &mut Link, migrate: &Value) -> Option<Link> {
        let to = migrate["transport"].as_str().unwrap_or_default().to_owned();
        self.diary.asked.lock().push((Instant::now(), to.clone()));
        let within = migrate["within"].as_u64().unwrap_or(0);
        let moment = some(0..within + 1);
        let mover = Self {
            journey: Arc::clone(&self.journey),
            diary: Arc::clone(&self.diary),
            session: self.session.clone(),
            position: self.position.clone(),
        };
        let target = to.clone();
        let mut opening = Box::pin(async move {
            pause(moment).await;
            mover.open(&target, true).await.map(|(link, _)| link)
        });
        loop {
            let step = tokio::select! {
                frame = link.next() => Step::Frame(frame),
                arrived = &mut opening => Step::Arrived(arrived),
            };
            match step {
                Step::Arrived(Some(next)) => {
                    self.diary.moves.fetch_add(1, Ordering::Relaxed);
                    self.diary.transport.send_replace(next.transport());
                    return Some(next);
                }
                // It stays where it was.
                Step::Arrived(None) => return Some(std::mem::replace(link, Link::none())),
                Step::Frame(Ok(frame)) if frame["type"] == "migrate" => {}
                Step::Frame(Ok(frame)) => {
                    if !self.take(link, &frame) {
                        return None;
                    }
                }
                Step::Frame(Err(_)) => return None,
            }
        }
    }

    /// Whether the connection goes on.
    fn take(&mut self, link: &mut Link, frame: &Value) -> bool {
        match frame["type"].as_str().unwrap_or_default() {
            "event" if frame["channel"] == self.journey.channel.as_str() => {
                let position = frame["position"].as_str().unwrap_or_default();
                let at = offset(position);
                if link.last.is_some_and(|last| at != last + 1) {
                    self.mistake(&format!(
                        "{at} came after {:?} on {}",
                        link.last,
                        link.transport()
                    ));
                }
                link.last = Some(at);
                let held = self.position.as_deref().map(offset);
                if held.is_none_or(|held| held < at) {
                    self.position = Some(position.to_owned());
                    self.diary.received.lock().push(frame["data"].as_i64().unwrap_or(-1));
                }
                true
            }
            "reset" => {
                self.mistake(&format!("a reset: {frame}"));
                true
            }
            "goodbye" => false,
            _ => true,
        }
    }

    fn mistake(&self, what: &str) {
        self.diary.mistakes.lock().push(format!("{}: {what}", self.diary.unit));
    }
}

impl Link {
    fn none() -> Self {
        Self { carrier: Carrier::Sse(Sse::gone()), last: None }
    }

    fn transport(&self) -> &'static str {
        match self.carrier {
            Carrier::Ws(_) => "websocket",
            Carrier::Sse(_) => "sse",
        }
    }

    /// The next frame, as a WebSocket would say it.
    async fn next(&mut self) -> Result<Value, String> {
        match &mut self.carrier {
            Carrier::Ws(ws) => ws.try_next().await,
            Carrier::Sse(sse) => {
                let block = sse.try_next().await.map_err(|err| err.to_string())?;
                let mut frame = block.json();
                let name = block.event.unwrap_or_default();
                frame["type"] = name.strip_prefix("crossfade.").unwrap_or("event").into();
                Ok(frame)
            }
        }
    }
}

fn offset(position: &str) -> u64 {
    position.rsplit('-').next().unwrap_or_default().parse().unwrap_or(0)
}

/// A moment of the client's own, in milliseconds.
fn some(range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(range))
}
