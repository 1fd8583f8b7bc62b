//! Old addresses that the gateway can serve itself: which channels each of them stands for.
//!
//! An address becomes the query of a `GET /events`; everything else about a stream is decided there.
//! What a browser remembers of the old server's stream becomes a place in the logs.

use serde::{Deserialize, Serialize};

use super::{
    Impossible,
    pattern::{Captures, PathPattern, Template},
};
use crate::{
    broker::{BrokerError, Range},
    node::Node,
    protocol::{Channel, MessageId, Position, Positions},
};

/// One of `[[legacy.route]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// `/stream/{room}`.
    pub path: PathPattern,
    /// What it is a stream of: `room:{room}`, `{query:topic}`, `inbox:{user}`.
    pub channels: Vec<Template>,
    /// What its events look like.
    #[serde(default)]
    pub format: Format,
}

/// What the events of an old address look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The payload as its publisher wrote it.
    #[default]
    Raw,
    /// The gateway's envelope around it.
    Envelope,
}

/// Addresses of the gateway itself: no old one can have them.
const OWN: [&str; 6] =
    ["/ws", "/events", "/metrics", "/health/live", "/health/ready", "/api/publish"];

impl RouteConfig {
    pub(super) fn check(&self) -> Result<(), Impossible> {
        let path = self.path.to_string();
        let key = format!("legacy.route {path}");
        let wrong = |reason: String, remedy: &str| Err(Impossible::new(&*key, reason, remedy));
        if OWN.contains(&&*path) {
            let reason = "that address is the gateway's own".to_owned();
            return wrong(reason, "let a proxy in front give the old one another path");
        }
        if self.channels.is_empty() {
            return wrong(
                "it has no channels".to_owned(),
                "name one: channels = [\"room:{room}\"]",
            );
        }
        for hole in self.channels.iter().flat_map(Template::holes) {
            let known = hole == "user"
                || hole.strip_prefix("query:").is_some_and(|name| !name.is_empty())
                || self.path.holes().any(|name| name == hole);
            if !known {
                let reason = format!("nothing says what {{{hole}}} is");
                return wrong(reason, "take a name from the path, {query:NAME} or {user}");
            }
        }
        Ok(())
    }
}

/// An old address that the gateway can serve.
#[derive(Debug)]
pub struct Route(RouteConfig);

impl Route {
    /// As configured.
    pub fn new(config: RouteConfig) -> Self {
        Self(config)
    }

    /// What its holes stand for in a path, if it is one of its.
    pub fn place(&self, path: &str) -> Option<Place<'_>> {
        self.0.path.captures(path).map(|captures| Place { route: &self.0, captures })
    }
}

/// One old address, with what its holes stand for.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    route: &'a RouteConfig,
    captures: Captures,
}

/// Why an old address stands for no channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Something has to be in the query.
    #[error("say which: ?{name}= is missing")]
    Query {
        /// What.
        name: String,
    },
    /// It is somebody's own.
    #[error("this stream is a user's own: say who you are")]
    User,
    /// What came out is no channel.
    #[error("{name:?}: {why}")]
    Channel {
        /// What came out.
        name: String,
        /// Why it is none.
        why: String,
    },
}

impl Place<'_> {
    /// The channels it stands for, for this user.
    ///
    /// # Errors
    /// When the request says too little, or something that cannot be in a channel's name.
    pub fn channels(&self, query: &str, user: Option<&str>) -> Result<Vec<Channel>, RouteError> {
        let mut captures = self.captures.clone();
        if let Some(user) = user {
            captures.insert("user".to_owned(), user.to_owned());
        }
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            captures.entry(format!("query:{name}")).or_insert_with(|| value.into_owned());
        }
        let channel = |template: &Template| {
            let name =
                template.fill(&captures).map_err(|hole| match hole.strip_prefix("query:") {
                    Some(name) => RouteError::Query { name: name.to_owned() },
                    None => RouteError::User,
                })?;
            name.parse().map_err(|why: crate::protocol::channel::ChannelError| {
                RouteError::Channel { why: why.to_string(), name }
            })
        };
        self.route.channels.iter().map(channel).collect()
    }

    /// What is to be asked of `GET /events`: the channels, the format, and the token as it was given.
    pub fn query(&self, channels: &[Channel], query: &str) -> String {
        let mut asked = form_urlencoded::Serializer::new(String::new());
        for channel in channels {
            asked.append_pair("channel", channel.as_str());
        }
        if self.route.format == Format::Raw {
            asked.append_pair("format", "raw");
        }
        let token = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "token");
        if let Some((key, token)) = token {
            asked.append_pair(&key, &token);
        }
        asked.finish()
    }
}

/// How far back a message is looked for that the old server sent last.
const LOOKED_THROUGH: usize = 1000;

/// Where a stream goes on for a browser that holds `last`: the gateway's own position, or the id of a
/// message that the old server sent, which stands in one of the logs. None for anything else.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn resume(
    node: &Node,
    channels: &[Channel],
    last: &str,
) -> Result<Option<Positions>, BrokerError> {
    match (last.parse::<Positions>(), channels) {
        (Ok(Positions::One(position)), [channel]) => {
            // Others write ids like that too, Redis for one: only the epoch tells.
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
        logs.push((channel, node.read(channel, Range::Until(u64::MAX), LOOKED_THROUGH).await?));
    }
    let events = logs.iter().flat_map(|(_, log)| &log.events);
    let Some(time) = events.clone().find(|(_, event)| event.id == id).map(|(_, e)| e.time) else {
        return Ok(None);
    };
    // The other channels go on from the same moment: the old stream had them in one order.
    let places = logs.into_iter().map(|(channel, log)| {
        let named = log.events.iter().find(|(_, event)| event.id == id);
        let before = || log.events.iter().find(|(_, event)| event.time <= time);
        let offset = named.or_else(before).map_or(log.head, |(offset, _)| *offset);
        (channel.clone(), Position::new(log.epoch, offset))
    });
    let places: Vec<_> = places.collect();
    Ok(Some(match places.as_slice() {
        [(_, position)] => Positions::One(*position),
        _ => Positions::Many(places.into_iter().collect()),
    }))
}

/// What the old server calls the last event of a browser that comes back from the gateway's side with
/// the gateway's own position. None where it has no name there, or where the browser holds the old
/// server's own.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn name_of(
    node: &Node,
    channels: &[Channel],
    last: &str,
) -> Result<Option<MessageId>, BrokerError> {
    let (Ok(Positions::One(position)), [channel]) = (last.parse::<Positions>(), channels) else {
        return Ok(None);
    };
    let before = Range::After(position.offset.saturating_sub(1));
    let slice = node.read(channel, before, 1).await?;
    let found = slice.events.into_iter().find(|(offset, _)| *offset == position.offset);
    let id = found.filter(|_| slice.epoch == position.epoch).map(|(_, event)| event.id);
    Ok(id.filter(|id| !id.is_made()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str, channels: &[&str]) -> Result<Route, Impossible> {
        let channels = channels.iter().map(|channel| channel.parse().unwrap()).collect();
        let config =
            RouteConfig { path: path.parse().unwrap(), channels, format: Format::default() };
        config.check()?;
        Ok(Route::new(config))
    }

    #[test]
    fn an_old_address_becomes_a_query() {
        let channels = ["room:{room}", "topic:{query:t}", "inbox:{user}"];
        let route = route("/stream/{room}", &channels).unwrap();
        let place = route.place("/stream/4%322").unwrap();
        let query = "t=news%2Fde&t=other&token=a.b&channel=x";
        let channels = place.channels(query, Some("anna")).unwrap();
        let names: Vec<_> = channels.iter().map(Channel::as_str).collect();
        assert_eq!(names, ["room:422", "topic:news/de", "inbox:anna"]);
        let asked = place.query(&channels[..1], query);
        assert_eq!(asked, "channel=room%3A422&format=raw&token=a.b");
    }

    #[test]
    fn what_is_missing_is_named() {
        let route = route("/s/{room}", &["a:{query:t}", "b:{user}", "c:{room}"]).unwrap();
        let place = route.place("/s/1").unwrap();
        let of = |query, user| place.channels(query, user).unwrap_err();
        assert_eq!(of("", Some("x")), RouteError::Query { name: "t".to_owned() });
        assert_eq!(of("t=1", None), RouteError::User);
        assert!(matches!(of("t=a b", Some("x")), RouteError::Channel { .. }));
    }

    #[test]
    fn a_route_that_cannot_work_is_refused() {
        assert!(route("/s", &["a:{room}"]).unwrap_err().reason.contains("{room}"));
        assert!(route("/s", &[]).unwrap_err().reason.contains("no channels"));
        assert!(route("/events", &["a"]).unwrap_err().reason.contains("own"));
    }
}
