//! Maps the upstream's stream addresses to channels, and translates `Last-Event-ID` between the
//! upstream and the gateway.
//!
//! A request to such an address becomes the query of a `GET /events`; permissions, limits and delivery
//! are decided there. An id that the upstream gave to a browser becomes a position in the logs.

use serde::{Deserialize, Serialize};

use super::{
    InvalidSetting,
    pattern::{Captures, PathPattern, Template},
};
use crate::{
    broker::{BrokerError, Range},
    node::Node,
    protocol::{Channel, MessageId, Position, Positions},
};

/// One entry of `[[legacy.route]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The address: `/stream/{room}`.
    pub path: PathPattern,
    /// The channels that it streams: `room:{room}`, `{query:topic}`, `inbox:{user}`.
    pub channels: Vec<Template>,
    /// Format of the events when the gateway serves the stream.
    #[serde(default)]
    pub format: Format,
}

/// Event format of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The payload as the publisher sent it.
    #[default]
    Raw,
    /// The payload in the gateway's envelope.
    Envelope,
}

/// Paths of the gateway itself, which no route can have.
const RESERVED_PATHS: [&str; 6] =
    ["/ws", "/events", "/metrics", "/health/live", "/health/ready", "/api/publish"];

impl RouteConfig {
    pub(super) fn check(&self) -> Result<(), InvalidSetting> {
        let path = self.path.to_string();
        let key = format!("legacy.route {path}");
        let invalid =
            |reason: String, remedy: &str| Err(InvalidSetting::new(&*key, reason, remedy));
        if RESERVED_PATHS.contains(&&*path) {
            let reason = "the path is the gateway's own".to_owned();
            return invalid(reason, "rewrite the upstream's path in a proxy in front");
        }
        if self.channels.is_empty() {
            let reason = "it has no channels".to_owned();
            return invalid(reason, "add one: channels = [\"room:{room}\"]");
        }
        for placeholder in self.channels.iter().flat_map(Template::placeholders) {
            let known = placeholder == "user"
                || placeholder.strip_prefix("query:").is_some_and(|name| !name.is_empty())
                || self.path.placeholders().any(|name| name == placeholder);
            if !known {
                let reason = format!("{{{placeholder}}} is not defined");
                return invalid(reason, "use a placeholder of path, {query:NAME} or {user}");
            }
        }
        Ok(())
    }
}

/// An upstream address that the gateway can serve from the logs.
#[derive(Debug)]
pub struct Route(RouteConfig);

impl Route {
    /// A route from its configuration.
    pub fn new(config: RouteConfig) -> Self {
        Self(config)
    }

    /// The route with the captures of a path, if the path matches.
    pub fn match_path(&self, path: &str) -> Option<MatchedRoute<'_>> {
        self.0.path.captures(path).map(|captures| MatchedRoute { route: &self.0, captures })
    }
}

/// A route and the captures of a request's path.
#[derive(Clone, Debug)]
pub struct MatchedRoute<'a> {
    route: &'a RouteConfig,
    captures: Captures,
}

/// Why a request to a route has no valid channels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A query parameter is missing.
    #[error("query parameter missing: ?{name}=")]
    MissingQuery {
        /// Name of the parameter.
        name: String,
    },
    /// The route has a `{user}` and the request has no user.
    #[error("this stream belongs to a user: send a token")]
    MissingUser,
    /// The name is not a valid channel.
    #[error("{name:?}: {reason}")]
    InvalidChannel {
        /// The name.
        name: String,
        /// Why it is invalid.
        reason: String,
    },
}

impl MatchedRoute<'_> {
    /// The channels of the request, given its query and user.
    ///
    /// # Errors
    /// When a query parameter or the user is missing, or a channel name is invalid.
    pub fn channels(&self, query: &str, user: Option<&str>) -> Result<Vec<Channel>, RouteError> {
        let mut captures = self.captures.clone();
        if let Some(user) = user {
            captures.insert("user".to_owned(), user.to_owned());
        }
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            captures.entry(format!("query:{name}")).or_insert_with(|| value.into_owned());
        }
        let channel = |template: &Template| {
            let name = template.fill(&captures).map_err(|missing| {
                match missing.strip_prefix("query:") {
                    Some(name) => RouteError::MissingQuery { name: name.to_owned() },
                    None => RouteError::MissingUser,
                }
            })?;
            name.parse().map_err(|error: crate::protocol::channel::ChannelError| {
                RouteError::InvalidChannel { reason: error.to_string(), name }
            })
        };
        self.route.channels.iter().map(channel).collect()
    }

    /// The query for `GET /events`: the channels, the format, and the token of the original query.
    pub fn events_query(&self, channels: &[Channel], query: &str) -> String {
        let mut events_query = form_urlencoded::Serializer::new(String::new());
        for channel in channels {
            events_query.append_pair("channel", channel.as_str());
        }
        if self.route.format == Format::Raw {
            events_query.append_pair("format", "raw");
        }
        let token = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "token");
        if let Some((key, token)) = token {
            events_query.append_pair(&key, &token);
        }
        events_query.finish()
    }
}

/// How many of the latest events per channel are searched for a message id of the upstream.
const RESUME_SEARCH_EVENTS: usize = 1000;

/// The positions from which the gateway resumes a stream whose `Last-Event-ID` is `last`: either the
/// gateway's own positions, or the id of a message that the upstream sent and one of the logs has. None
/// for anything else.
///
/// # Errors
/// When the broker cannot be read.
pub async fn resume_positions(
    node: &Node,
    channels: &[Channel],
    last: &str,
) -> Result<Option<Positions>, BrokerError> {
    match (last.parse::<Positions>(), channels) {
        (Ok(Positions::One(position)), [channel]) => {
            // Other ids look like positions too, Redis stream ids for one: the epoch decides.
            let newest = node.read(channel, Range::Until(u64::MAX), 1).await?;
            if newest.epoch == position.epoch {
                return Ok(Some(Positions::One(position)));
            }
        }
        (Ok(list @ Positions::Many(_)), _) => return Ok(Some(list)),
        (Ok(Positions::One(_)), _) | (Err(_), _) => {}
    }
    let Ok(id) = last.parse::<MessageId>() else { return Ok(None) };
    let mut logs = Vec::new();
    for channel in channels {
        logs.push((
            channel,
            node.read(channel, Range::Until(u64::MAX), RESUME_SEARCH_EVENTS).await?,
        ));
    }
    let events = logs.iter().flat_map(|(_, log)| &log.events);
    let Some(time) = events.clone().find(|(_, event)| event.id == id).map(|(_, e)| e.time) else {
        return Ok(None);
    };
    // The other channels resume at the time of that event: the upstream had all in one order.
    let positions = logs.into_iter().map(|(channel, log)| {
        let exact = log.events.iter().find(|(_, event)| event.id == id);
        let before = || log.events.iter().find(|(_, event)| event.time <= time);
        let offset = exact.or_else(before).map_or(log.head, |(offset, _)| *offset);
        (channel.clone(), Position::new(log.epoch, offset))
    });
    let positions: Vec<_> = positions.collect();
    Ok(Some(match positions.as_slice() {
        [(_, position)] => Positions::One(*position),
        _ => Positions::Many(positions.into_iter().collect()),
    }))
}

/// The message id under which the upstream knows a browser's last event, where `last` is a position of
/// the gateway. None where the event has no id of its publisher, or `last` is not a position.
///
/// # Errors
/// When the broker cannot be read.
pub async fn upstream_event_id(
    node: &Node,
    channels: &[Channel],
    last: &str,
) -> Result<Option<MessageId>, BrokerError> {
    let (Ok(Positions::One(position)), [channel]) = (last.parse::<Positions>(), channels) else {
        return Ok(None);
    };
    let before = Range::After(position.offset.saturating_sub(1));
    let slice = node.read(channel, before, 1).await?;
    let entry = slice.events.into_iter().find(|(offset, _)| *offset == position.offset);
    let id = entry.filter(|_| slice.epoch == position.epoch).map(|(_, event)| event.id);
    Ok(id.filter(|id| !id.is_made()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str, channels: &[&str]) -> Result<Route, InvalidSetting> {
        let channels = channels.iter().map(|channel| channel.parse().unwrap()).collect();
        let config =
            RouteConfig { path: path.parse().unwrap(), channels, format: Format::default() };
        config.check()?;
        Ok(Route::new(config))
    }

    #[test]
    fn a_path_and_query_become_an_events_query() {
        let channels = ["room:{room}", "topic:{query:t}", "inbox:{user}"];
        let route = route("/stream/{room}", &channels).unwrap();
        let matched = route.match_path("/stream/4%322").unwrap();
        let query = "t=news%2Fde&t=other&token=a.b&channel=x";
        let channels = matched.channels(query, Some("anna")).unwrap();
        let names: Vec<_> = channels.iter().map(Channel::as_str).collect();
        assert_eq!(names, ["room:422", "topic:news/de", "inbox:anna"]);
        let events_query = matched.events_query(&channels[..1], query);
        assert_eq!(events_query, "channel=room%3A422&format=raw&token=a.b");
    }

    #[test]
    fn missing_parts_of_a_request_are_named() {
        let route = route("/s/{room}", &["a:{query:t}", "b:{user}", "c:{room}"]).unwrap();
        let matched = route.match_path("/s/1").unwrap();
        let error = |query, user| matched.channels(query, user).unwrap_err();
        assert_eq!(error("", Some("x")), RouteError::MissingQuery { name: "t".to_owned() });
        assert_eq!(error("t=1", None), RouteError::MissingUser);
        assert!(matches!(error("t=a b", Some("x")), RouteError::InvalidChannel { .. }));
    }

    #[test]
    fn invalid_routes_are_rejected() {
        assert!(route("/s", &["a:{room}"]).unwrap_err().reason.contains("{room}"));
        assert!(route("/s", &[]).unwrap_err().reason.contains("no channels"));
        assert!(route("/events", &["a"]).unwrap_err().reason.contains("gateway's own"));
    }
}
