//! nginx with its module nchan: a channel is an address to `POST` to and one to `GET`.

use std::{path::Path, process::Stdio, sync::Arc};

use anyhow::Context as _;

use super::{
    served::{Served, served},
    websocket::{behind, is_streamed, is_upgraded, stream, upgrade},
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

/// An nginx.
#[derive(Debug)]
pub struct Nchan {
    pub(super) name: String,
    pub(super) served: Served,
}

/// Where packages put the module; an nginx that has it built in needs none.
const MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
    "/usr/local/lib/nginx/ngx_nchan_module.so",
];

/// Starts `nginx` from `PATH` as one process, so that none is left behind when it is killed, with a
/// configuration of its own.
pub(super) fn start(cpus: &[usize]) -> anyhow::Result<Served> {
    let program = find_program("nginx")?;
    let (address, folder) = (free_port()?, Folder::new("nchan")?);
    let module = MODULES.into_iter().find(|path| Path::new(path).is_file());
    let module = module.map(|path| format!("load_module {path};")).unwrap_or_default();
    let at = folder.path().display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {at}/{kind};\n"))
        .concat();
    // As root nginx would become somebody who may not write to the folder.
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    let config = folder.write(
        "nginx.conf",
        &format!(
            "{module}\n{user}\ndaemon off;\nmaster_process off;\nworker_processes 1;\npid {at}/pid;\n\
             error_log stderr crit;\n\
             events {{ worker_connections 100000; }}\n\
             http {{\n  access_log off;\n{temporary}  keepalive_requests 1000000000;\n  \
             keepalive_timeout 3600s;\n  nchan_shared_memory_size 512M;\n  server {{\n    \
             listen {address} backlog=4096;\n    \
             location = /up {{ return 204; }}\n    \
             location ~ ^/pub/(.+)$ {{ nchan_publisher; nchan_channel_id $1; \
             nchan_message_buffer_length 1000; nchan_message_timeout 1h; }}\n    \
             location ~ ^/sub/(.+)$ {{ nchan_subscriber websocket eventsource; \
             nchan_channel_id $1; nchan_subscriber_first_message newest; \
             nchan_subscriber_timeout 0; }}\n  }}\n}}\n"
        ),
    )?;
    let args = ["-p".into(), folder.path().into(), "-c".into(), config.into()];
    let mut spawned = Spawned::start(&program, &args, cpus, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    })?;
    spawned
        .wait_until("nginx", || get_status(address, "/up").ok() == Some(204))
        .context("is nginx's module nchan installed?")?;
    Ok(Served::started(address, spawned, Some(folder)))
}

impl Target for Nchan {
    served!();

    fn dialogue(&self, transport: Transport) -> Arc<dyn Dialogue> {
        Arc::new(Subscriber(transport))
    }

    fn publisher(&mut self) -> anyhow::Result<Box<dyn Publisher>> {
        Ok(Box::new(HttpPublisher::pipelined(self.served.address, wording)?))
    }
}

fn wording(events: &[Event]) -> Vec<Vec<u8>> {
    let request = |Event { channel, data, .. }: &Event| {
        post(&format!("/pub/{channel}"), "application/json", "", data)
    };
    events.iter().map(request).collect()
}

struct Subscriber(Transport);

impl Dialogue for Subscriber {
    fn wire(&self) -> Wire {
        match self.0 {
            Transport::WebSocket => Wire::WebSocket,
            Transport::EventStream => Wire::EventStream,
        }
    }

    fn opening(&self, seat: &Seat<'_>) -> Vec<u8> {
        let target = format!("/sub/{}", seat.channel);
        match self.0 {
            Transport::WebSocket => upgrade(&target, ""),
            Transport::EventStream => {
                let since = seat.since.map(|id| format!("last-event-id: {id}\r\n"));
                stream(&target, &since.unwrap_or_default())
            }
        }
    }

    fn greet(&self, head: &[u8], _seat: &Seat<'_>) -> Meaning {
        // nchan says nothing more when a subscriber has its place.
        if is_upgraded(head) || is_streamed(head) { Meaning::Subscribed } else { Meaning::Refused }
    }

    fn understand(&self, _message: &[u8], _seat: &Seat<'_>) -> Meaning {
        Meaning::Nothing
    }

    fn position<'a>(&self, message: &'a [u8]) -> Option<&'a str> {
        message.starts_with(b"id: ").then(|| behind(message, "id: ", b'\n')).flatten()
    }

    fn resumes(&self) -> bool {
        self.0 == Transport::EventStream
    }
}
