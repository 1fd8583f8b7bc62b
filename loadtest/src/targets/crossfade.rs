//! The gateway itself, as any client meets it: `GET /ws`, `GET /events`, `POST /api/publish`.

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc};

use anyhow::{Context as _, bail};
use memchr::memmem;

use super::{
    served::{Served, served},
    websocket::{behind, is_streamed, is_upgraded, stream, upgrade},
};
use crate::{
    frames::{self, Wire},
    process::{Spawned, free_port},
    publisher::{
        Event, Publisher,
        http::{HttpPublisher, ask, get_status, post},
    },
    target::{Dialogue, Meaning, Seat, Target, Transport},
};

/// A gateway.
#[derive(Debug)]
pub struct Crossfade {
    pub(super) name: String,
    pub(super) served: Served,
}

/// What a gateway that is started is told beside its defaults: logs say nothing of each client.
const SETTINGS: [(&str, &str); 1] = [("CROSSFADE_TELEMETRY__LOG", "error")];

impl Crossfade {
    /// Starts a gateway with a memory broker, unless `settings` say otherwise, on a free port.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn start(
        program: &Path,
        settings: &[String],
        cpus: &[usize],
    ) -> anyhow::Result<Served> {
        let address = free_port()?;
        let pairs: Option<Vec<_>> = settings.iter().map(|pair| pair.split_once('=')).collect();
        let pairs = pairs.context("--set is not like CROSSFADE_BROKER__KIND=redis")?;
        let mut spawned = Spawned::start(program, &["serve".into()], cpus, |command| {
            command.env("CROSSFADE_SERVER__LISTEN", address.to_string());
            command.envs(SETTINGS).envs(pairs).stdin(Stdio::null()).stdout(Stdio::null());
            // Where no config.toml lies.
            command.current_dir("/");
        })?;
        spawned
            .wait_until("the gateway", || get_status(address, "/health/ready").ok() == Some(200))?;
        Ok(Served::started(address, spawned, None))
    }
}

impl Target for Crossfade {
    served!();

    fn dialogue(&self, transport: Transport) -> Arc<dyn Dialogue> {
        match transport {
            Transport::WebSocket => Arc::new(WebSocket),
            Transport::EventStream => Arc::new(EventStream),
        }
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.served.address, wording)?))
    }
}

pub(crate) fn wording(events: &[Event]) -> Vec<Vec<u8>> {
    let json =
        |Event { channel, data, .. }: &Event| format!(r#"{{"channel":"{channel}","data":{data}}}"#);
    let (target, body) = match events {
        [event] => ("/api/publish", json(event)),
        many => {
            let list: Vec<String> = many.iter().map(json).collect();
            ("/api/publish/batch", format!(r#"{{"events":[{}]}}"#, list.join(",")))
        }
    };
    vec![post(target, "application/json", "", &body)]
}

/// Sets what share of users is to be on the new transport.
///
/// # Errors
/// When the gateway does not take it.
pub fn set_percentage(address: SocketAddr, component: &str, percent: f64) -> anyhow::Result<()> {
    let path = "/api/migration/feature-flags";
    let get = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let (status, flags) = ask(address, &get)?;
    if status != 200 {
        bail!("GET {path} answers {status}: this gateway has no rollout");
    }
    let version = version_of(&flags, component);
    let mut body = format!(r#"{{"enabled":true,"rolloutPercentage":{percent}"#);
    if let Some(version) = version {
        body += &format!(r#","version":{version}"#);
    }
    body += "}";
    let put = format!(
        "PUT {path}/{component} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, answer) = ask(address, &put)?;
    if !(200..300).contains(&status) {
        bail!("PUT {path}/{component} answers {status}: {answer}");
    }
    Ok(())
}

/// The version that a change of the flag has to name, wherever the answer holds it.
fn version_of(flags: &str, component: &str) -> Option<u64> {
    fn search(value: &serde_json::Value, component: &str) -> Option<u64> {
        match value {
            serde_json::Value::Object(fields) => {
                if fields.get("component").and_then(|name| name.as_str()) == Some(component) {
                    return fields.get("version")?.as_u64();
                }
                if let Some(flag) = fields.get(component) {
                    return flag.get("version")?.as_u64();
                }
                fields.values().find_map(|inner| search(inner, component))
            }
            serde_json::Value::Array(list) => list.iter().find_map(|one| search(one, component)),
            _ => None,
        }
    }
    search(&serde_json::from_str(flags).ok()?, component)
}

/// Subscribes with a frame.
#[derive(Debug)]
pub struct WebSocket;

impl Dialogue for WebSocket {
    fn wire(&self) -> Wire {
        Wire::WebSocket
    }

    fn opening(&self, _seat: &Seat<'_>) -> Vec<u8> {
        upgrade("/ws", "")
    }

    fn greet(&self, head: &[u8], seat: &Seat<'_>) -> Meaning {
        if !is_upgraded(head) {
            return Meaning::Refused;
        }
        let session = seat
            .session
            .map(|id| format!(r#","session":"{id}","overlap":true"#))
            .unwrap_or_default();
        let named = seat
            .unit
            .map(|unit| format!(r#","client":"crossfade-load","unit":"load-{unit}""#))
            .unwrap_or_default();
        let connect = (seat.session.is_some() || seat.unit.is_some())
            .then(|| frames::text(format!(r#"{{"type":"connect"{session}{named}}}"#).as_bytes()));
        let since = seat.since.map(|since| format!(r#","since":"{since}""#)).unwrap_or_default();
        let channel = seat.channel;
        let subscribe = format!(r#"{{"type":"subscribe","channel":"{channel}"{since}}}"#);
        let frames = [connect.unwrap_or_default(), frames::text(subscribe.as_bytes())];
        Meaning::Answer(frames.concat())
    }

    fn understand(&self, message: &[u8], _seat: &Seat<'_>) -> Meaning {
        let Some(kind) = behind_first(message, br#""type":""#) else { return Meaning::Nothing };
        match kind {
            b"subscribed" => Meaning::Subscribed,
            b"ping" => Meaning::Answer(frames::text(br#"{"type":"pong"}"#)),
            b"error" | b"goodbye" => Meaning::Refused,
            b"welcome" => session(message),
            b"migrate" => transport_of(message),
            _ => Meaning::Nothing,
        }
    }

    fn position<'a>(&self, message: &'a [u8]) -> Option<&'a str> {
        behind(message, r#""position":""#, b'"')
    }

    fn resumes(&self) -> bool {
        true
    }
}

/// Subscribes by its address.
#[derive(Debug)]
struct EventStream;

impl Dialogue for EventStream {
    fn wire(&self) -> Wire {
        Wire::EventStream
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        let session = seat.session.map(|id| format!("&session={id}&overlap=1")).unwrap_or_default();
        let since = seat.since.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let named = seat
            .unit
            .map(|unit| format!("&client=crossfade-load&unit=load-{unit}"))
            .unwrap_or_default();
        stream(&format!("/events?channel={}{session}{named}", seat.channel), &since)
    }

    fn greet(&self, head: &[u8], _seat: &Seat<'_>) -> Meaning {
        if is_streamed(head) { Meaning::Nothing } else { Meaning::Refused }
    }

    fn understand(&self, message: &[u8], _seat: &Seat<'_>) -> Meaning {
        let is = |kind| memmem::find(message, kind).is_some();
        if is(b"event: open\n") {
            behind(message, r#""session":""#, b'"')
                .map_or(Meaning::Subscribed, |id| Meaning::SubscribedAs(id.to_owned()))
        } else if is(b"event: crossfade.goodbye\n") {
            Meaning::Refused
        } else if is(b"event: crossfade.migrate\n") {
            transport_of(message)
        } else {
            Meaning::Nothing
        }
    }

    fn position<'a>(&self, message: &'a [u8]) -> Option<&'a str> {
        message.starts_with(b"id: ").then(|| behind(message, "id: ", b'\n')).flatten()
    }

    fn resumes(&self) -> bool {
        true
    }
}

fn behind_first<'a>(message: &'a [u8], before: &[u8]) -> Option<&'a [u8]> {
    let rest = &message[memmem::find(message, before)? + before.len()..];
    rest.split(|byte| *byte == b'"').next()
}

fn session(message: &[u8]) -> Meaning {
    behind(message, r#""session":""#, b'"')
        .map_or(Meaning::Nothing, |id| Meaning::Session(id.to_owned()))
}

fn transport_of(message: &[u8]) -> Meaning {
    match behind_first(message, br#""transport":""#) {
        Some(b"sse") => Meaning::Move(Transport::EventStream),
        Some(_) => Meaning::Move(Transport::WebSocket),
        None => Meaning::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAT: Seat<'_> = Seat { channel: "a", room: 0, since: None, session: None, unit: None };

    #[test]
    fn a_position_is_found_where_each_transport_has_it() {
        let event = br#"{"type":"event","channel":"a","data":"x","position":"k3-18","time":1}"#;
        assert_eq!(WebSocket.position(event), Some("k3-18"));
        assert_eq!(EventStream.position(b"id: k3-18\ndata: {\"id\":\"x\"}"), Some("k3-18"));
        assert_eq!(EventStream.position(b": ping"), None);
    }

    #[test]
    fn words_mean_the_same_on_both_transports() {
        let frame = br#"{"type":"migrate","transport":"sse","within":5000}"#;
        assert_eq!(WebSocket.understand(frame, &SEAT), Meaning::Move(Transport::EventStream));
        let record = b"event: crossfade.migrate\ndata: {\"transport\":\"websocket\"}";
        assert_eq!(EventStream.understand(record, &SEAT), Meaning::Move(Transport::WebSocket));
        let welcome = br#"{"type":"welcome","session":"s-1","node":"n"}"#;
        assert_eq!(WebSocket.understand(welcome, &SEAT), Meaning::Session("s-1".to_owned()));
    }

    #[test]
    fn a_flags_version_is_found_in_either_shape() {
        let list = r#"{"flags":[{"component":"a","version":3},{"component":"b","version":4}]}"#;
        assert_eq!(version_of(list, "b"), Some(4));
        assert_eq!(version_of(r#"{"b":{"version":7}}"#, "b"), Some(7));
        assert_eq!(version_of("[]", "b"), None);
    }
}
