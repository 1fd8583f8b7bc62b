//! Centrifugo, version 6: the JSON protocol over WebSocket, and its stream in one direction.

use std::{process::Stdio, sync::Arc};

use memchr::memmem;

use super::{
    served::{Served, served},
    signature::token,
    websocket::{is_streamed, is_upgraded, stream, upgrade},
};
use crate::{
    frames::{self, Wire},
    process::{Folder, Spawned, find_program, free_port},
    publisher::{
        Event, Publisher,
        http::{HttpPublisher, get_status, post},
    },
    target::{Dialogue, Meaning, Seat, Target, Transport},
};

/// A Centrifugo.
#[derive(Debug)]
pub struct Centrifugo {
    pub(super) name: String,
    pub(super) served: Served,
}

const SECRET: &str = "crossfade-load";

/// Starts `centrifugo` from `PATH`, open to everybody on this machine.
pub(super) fn start(cpus: &[usize]) -> anyhow::Result<Served> {
    let program = find_program("centrifugo")?;
    let (address, folder) = (free_port()?, Folder::new("centrifugo")?);
    let port = address.port();
    let config = folder.write(
        "config.json",
        &format!(
            r#"{{"http_server":{{"address":"127.0.0.1","port":{port}}},"log":{{"level":"error"}},
            "client":{{"insecure":true,"token":{{"hmac_secret_key":"{SECRET}"}}}},
            "http_api":{{"insecure":true}},"uni_sse":{{"enabled":true}},"health":{{"enabled":true}},
            "channel":{{"without_namespace":{{"allow_subscribe_for_client":true,
            "allow_subscribe_for_anonymous":true}}}}}}"#
        ),
    )?;
    let args = ["--config".into(), config.into()];
    let mut spawned = Spawned::start(&program, &args, cpus, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    })?;
    spawned.wait_until("centrifugo", || get_status(address, "/health").ok() == Some(200))?;
    Ok(Served::started(address, spawned, Some(folder)))
}

impl Target for Centrifugo {
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

fn wording(events: &[Event]) -> Vec<Vec<u8>> {
    let json =
        |Event { channel, data, .. }: &Event| format!(r#"{{"channel":"{channel}","data":{data}}}"#);
    let (target, body) = match events {
        [event] => ("/api/publish", json(event)),
        many => {
            let command = |event| format!(r#"{{"publish":{}}}"#, json(event));
            let list: Vec<String> = many.iter().map(command).collect();
            ("/api/batch", format!(r#"{{"commands":[{}]}}"#, list.join(",")))
        }
    };
    vec![post(target, "application/json", "", &body)]
}

struct WebSocket;

impl Dialogue for WebSocket {
    fn wire(&self) -> Wire {
        Wire::WebSocket
    }

    fn opening(&self, _seat: &Seat<'_>) -> Vec<u8> {
        upgrade("/connection/websocket", "")
    }

    fn greet(&self, head: &[u8], seat: &Seat<'_>) -> Meaning {
        if !is_upgraded(head) {
            return Meaning::Refused;
        }
        let channel = seat.channel;
        let subscribe = format!(r#"{{"id":2,"subscribe":{{"channel":"{channel}"}}}}"#);
        let commands =
            [frames::text(br#"{"id":1,"connect":{}}"#), frames::text(subscribe.as_bytes())];
        Meaning::Answer(commands.concat())
    }

    fn understand(&self, message: &[u8], _seat: &Seat<'_>) -> Meaning {
        let is = |word: &[u8]| memmem::find(message, word).is_some();
        if message == b"{}" {
            Meaning::Answer(frames::text(b"{}"))
        } else if is(br#""error":{"#) || is(br#""disconnect":{"#) {
            Meaning::Refused
        } else if is(br#""id":2,"subscribe":"#) {
            Meaning::Subscribed
        } else {
            Meaning::Nothing
        }
    }
}

struct EventStream;

impl Dialogue for EventStream {
    fn wire(&self) -> Wire {
        Wire::EventStream
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        // A stream in one direction subscribes to what its token names.
        let claims = format!(r#"{{"sub":"load","channels":["{}"]}}"#, seat.channel);
        let token = token(SECRET, &claims);
        let connect = format!("%7B%22token%22%3A%22{token}%22%7D");
        stream(&format!("/connection/uni_sse?cf_connect={connect}"), "")
    }

    fn greet(&self, head: &[u8], _seat: &Seat<'_>) -> Meaning {
        if is_streamed(head) { Meaning::Nothing } else { Meaning::Refused }
    }

    fn understand(&self, message: &[u8], _seat: &Seat<'_>) -> Meaning {
        let is = |word: &[u8]| memmem::find(message, word).is_some();
        if is(br#""connect":{"#) {
            Meaning::Subscribed
        } else if is(br#""disconnect":{"#) {
            Meaning::Refused
        } else {
            Meaning::Nothing
        }
    }
}
