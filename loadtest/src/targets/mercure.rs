//! A Mercure hub: streams only, publishers post forms with a token.

use std::{process::Stdio, sync::Arc};

use super::{
    served::{Served, served},
    signature::token,
    websocket::{behind, is_streamed, stream},
};
use crate::{
    frames::Wire,
    process::{Folder, Spawned, find_program, free_port},
    publisher::{
        Event, Publisher,
        http::{HttpPublisher, get_status, post},
    },
    target::{Dialogue, Meaning, Seat, Target, Transport},
};

/// A hub that lets anonymous subscribers in and knows our publishers' key.
#[derive(Debug)]
pub struct Mercure {
    pub(super) name: String,
    pub(super) served: Served,
}

const PATH: &str = "/.well-known/mercure";
const KEY: &str = "crossfade-load-measures-mercure-too!";

/// Starts `mercure` from `PATH`, which is Caddy with the hub in it.
pub(super) fn start(cpus: &[usize]) -> anyhow::Result<Served> {
    let program = find_program("mercure")?;
    let (address, folder) = (free_port()?, Folder::new("mercure")?);
    let port = address.port();
    let config = folder.write(
        "Caddyfile",
        &format!(
            "{{\n  auto_https off\n  admin off\n}}\nhttp://127.0.0.1:{port} {{\n  \
             mercure {{\n    publisher_jwt {KEY}\n    subscriber_jwt {KEY}\n    anonymous\n    \
             transport local\n  }}\n  respond /healthz 200\n}}\n"
        ),
    )?;
    let args = ["run".into(), "--config".into(), config.into()];
    let mut spawned = Spawned::start(&program, &args, cpus, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir(folder.path());
    })?;
    spawned.wait_until("mercure", || get_status(address, "/healthz").ok() == Some(200))?;
    Ok(Served::started(address, spawned, Some(folder)))
}

impl Target for Mercure {
    served!();

    fn dialogue(&self, _transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(Subscriber)
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::connect(self.served.address, wording)?))
    }
}

fn wording(events: &[Event]) -> Vec<Vec<u8>> {
    let token = token(KEY, r#"{"mercure":{"publish":["*"]}}"#);
    let bearer = format!("authorization: Bearer {token}\r\n");
    let request = |Event { channel, data, .. }: &Event| {
        // Of what stands in our data a form has only these to escape.
        let data = data.replace('"', "%22");
        let body = format!("topic={channel}&data={data}");
        post(PATH, "application/x-www-form-urlencoded", &bearer, &body)
    };
    events.iter().map(request).collect()
}

struct Subscriber;

impl Dialogue for Subscriber {
    fn wire(&self) -> Wire {
        Wire::EventStream
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        let since = seat.since.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        stream(&format!("{PATH}?topic={}", seat.channel), &since)
    }

    fn greet(&self, head: &[u8], _seat: &Seat<'_>) -> Meaning {
        if is_streamed(head) { Meaning::Subscribed } else { Meaning::Refused }
    }

    fn understand(&self, _message: &[u8], _seat: &Seat<'_>) -> Meaning {
        Meaning::Nothing
    }

    fn position<'a>(&self, message: &'a [u8]) -> Option<&'a str> {
        behind(message, "id: ", b'\n')
    }

    fn resumes(&self) -> bool {
        true
    }
}
