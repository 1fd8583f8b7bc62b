//! Pusher's protocol, version 7: WebSocket for subscribers, signed HTTP for publishers. sockudo is
//! the server that is started for it.

use std::{process::Stdio, sync::Arc, time::SystemTime};

use memchr::memmem;

use super::{
    served::{Served, served},
    signature::{hex, hmac, md5},
    websocket::{is_upgraded, upgrade},
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

/// A server with an app `app-id`, `app-key`, `app-secret`.
#[derive(Debug)]
pub struct Pusher {
    pub(super) name: String,
    pub(super) served: Served,
}

const APP: &str = "app-id";
const KEY: &str = "app-key";
const SECRET: &str = "app-secret";

/// Events that the protocol allows in one batch.
const BATCH: usize = 10;

/// Starts `sockudo` from `PATH`: without compression, limits, metrics and webhooks.
pub(super) fn start(cpus: &[usize]) -> anyhow::Result<Served> {
    let program = find_program("sockudo")?;
    let (address, folder) = (free_port()?, Folder::new("sockudo")?);
    let port = address.port();
    let config = folder.write(
        "config.toml",
        &format!(
            "debug = false\nhost = \"127.0.0.1\"\nport = {port}\nmode = \"production\"\n\
             [adapter]\ndriver = \"local\"\n\
             [app_manager]\ndriver = \"memory\"\n[app_manager.array]\n\
             [[app_manager.array.apps]]\nid = \"{APP}\"\nkey = \"{KEY}\"\nsecret = \"{SECRET}\"\n\
             enabled = true\n\
             [app_manager.array.apps.policy.limits]\nmax_connections = 1000000\n\
             max_client_events_per_second = 1000000\n\
             [cache]\ndriver = \"memory\"\n[queue]\ndriver = \"memory\"\n\
             [rate_limiter]\nenabled = false\ndriver = \"memory\"\n[metrics]\nenabled = false\n\
             [delta_compression]\nenabled = false\n[tag_filtering]\nenabled = false\n\
             [websocket]\ncompression = \"disabled\"\n"
        ),
    )?;
    let args = ["--config".into(), config.into()];
    let mut spawned = Spawned::start(&program, &args, cpus, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("RUST_LOG", "error").current_dir(folder.path());
    })?;
    spawned.wait_until("sockudo", || get_status(address, "/up").ok() == Some(200))?;
    Ok(Served::started(address, spawned, Some(folder)))
}

impl Target for Pusher {
    served!();

    fn dialogue(&self, _transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(Subscriber)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.served.address, wording)?))
    }
}

fn wording(events: &[Event]) -> Vec<Vec<u8>> {
    let json = |Event { channel, data, .. }: &Event| {
        format!(r#"{{"name":"e","channel":"{channel}","data":{data}}}"#)
    };
    if let [event] = events {
        return vec![signed("events", &json(event))];
    }
    let batch = |part: &[Event]| {
        let list: Vec<String> = part.iter().map(json).collect();
        signed("batch_events", &format!(r#"{{"batch":[{}]}}"#, list.join(",")))
    };
    events.chunks(BATCH).map(batch).collect()
}

fn signed(call: &str, body: &str) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let path = format!("/apps/{APP}/{call}");
    let query = format!(
        "auth_key={KEY}&auth_timestamp={}&auth_version=1.0&body_md5={}",
        now.as_secs(),
        md5(body)
    );
    let signature = hex(&hmac(SECRET, &format!("POST\n{path}\n{query}")));
    let target = format!("{path}?{query}&auth_signature={signature}");
    post(&target, "application/json", "", body)
}

struct Subscriber;

impl Dialogue for Subscriber {
    fn wire(&self) -> Wire {
        Wire::WebSocket
    }

    fn opening(&self, _seat: &Seat<'_>) -> Vec<u8> {
        upgrade(&format!("/app/{KEY}?protocol=7&client=crossfade-load&version=1.0"), "")
    }

    fn greet(&self, head: &[u8], _seat: &Seat<'_>) -> Meaning {
        if is_upgraded(head) { Meaning::Nothing } else { Meaning::Refused }
    }

    fn understand(&self, message: &[u8], seat: &Seat<'_>) -> Meaning {
        let is = |word: &[u8]| memmem::find(message, word).is_some();
        if is(b"pusher:connection_established") {
            let channel = seat.channel;
            let subscribe =
                format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#);
            Meaning::Answer(frames::text(subscribe.as_bytes()))
        } else if is(b"pusher_internal:subscription_succeeded") {
            Meaning::Subscribed
        } else if is(b"pusher:ping") {
            Meaning::Answer(frames::text(br#"{"event":"pusher:pong","data":{}}"#))
        } else if is(b"pusher:error") || is(b"pusher:subscription_error") {
            Meaning::Refused
        } else {
            Meaning::Nothing
        }
    }
}
