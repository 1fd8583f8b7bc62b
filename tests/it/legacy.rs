//! Taking over from an old system: its server behind the gateway, its publishers taken in, its
//! addresses served, both compared.

mod hand_over;
mod routes;
mod shadow;
mod take_in;
mod upstream;

use crossfade::{
    config::Config,
    legacy::{Backend, RouteConfig, TakeInConfig},
};

use crate::support::{legacy_server::OldServer, redis::PrivateRedis};

/// `/stream/{room}` of the old server, on this side.
fn placed(config: &mut Config, old: &OldServer, side: Backend) {
    config.legacy.upstream = Some(old.url.parse().unwrap());
    config.legacy.side = side;
    config.legacy.route = vec![route("/stream/{room}", &["room:{room}"])];
}

fn route(path: &str, channels: &[&str]) -> RouteConfig {
    RouteConfig {
        path: path.parse().unwrap(),
        channels: channels.iter().map(|channel| channel.parse().unwrap()).collect(),
        format: crossfade::legacy::route::Format::Raw,
    }
}

/// Takes in `room.*` of this Redis; `more` is the rest of the section.
fn taking(redis: &PrivateRedis, more: &str) -> TakeInConfig {
    let url = &redis.0.url;
    let mapping = "patterns = [\"room.*\"]\nchannel = \"room:{1}\"";
    toml::from_str(&format!("url = \"{url}\"\n{mapping}\n{more}")).unwrap()
}
