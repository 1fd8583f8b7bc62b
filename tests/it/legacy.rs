//! Migration from a legacy system: reverse proxy, Redis ingest, routes served from the logs, shadow
//! comparison.

mod ingest;
mod ingest_failover;
mod routes;
mod shadow;
mod upstream;

use crossfade::{
    config::Config,
    legacy::{Backend, IngestConfig, RouteConfig},
};

use crate::support::{legacy_server::LegacyServer, redis::PrivateRedis};

/// Configures the upstream and a route for its `/stream/{room}`, served by this backend.
fn with_route(config: &mut Config, server: &LegacyServer, backend: Backend) {
    config.legacy.upstream = Some(server.url.parse().unwrap());
    config.legacy.side = backend;
    config.legacy.route = vec![route("/stream/{room}", &["room:{room}"])];
}

fn route(path: &str, channels: &[&str]) -> RouteConfig {
    RouteConfig {
        path: path.parse().unwrap(),
        channels: channels.iter().map(|channel| channel.parse().unwrap()).collect(),
        format: crossfade::legacy::route::Format::Raw,
    }
}

/// Ingest of `room.*` from this Redis; `more` is appended to the section.
fn ingest_config(redis: &PrivateRedis, more: &str) -> IngestConfig {
    let url = &redis.0.url;
    let mapping = "patterns = [\"room.*\"]\nchannel = \"room:{1}\"";
    toml::from_str(&format!("url = \"{url}\"\n{mapping}\n{more}")).unwrap()
}
