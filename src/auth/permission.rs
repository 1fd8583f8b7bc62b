//! What somebody may do in a channel. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Identity, Scope};
use crate::protocol::Channel;

/// What somebody does in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Having its events delivered.
    Subscribe,
    /// Adding an event.
    Publish,
    /// Seeing who is there, and being seen.
    Presence,
    /// Reading its log.
    History,
}

impl Verb {
    /// For a sentence: somebody may not … a channel.
    pub const fn as_words(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe to",
            Self::Publish => "publish to",
            Self::Presence => "see or show presence in",
            Self::History => "read the history of",
        }
    }
}

/// Who may do something in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Everybody who is served at all.
    Anyone,
    /// Whoever has a token with a user.
    Authenticated,
    /// Whoever's token names the channel.
    Token,
    /// Nobody but backend services.
    Nobody,
}

/// Who may do what in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who may have events delivered.
    pub subscribe: Access,
    /// Who may publish.
    pub publish: Access,
    /// Who may see and be seen.
    pub presence: Access,
    /// Who may read the log.
    pub history: Access,
}

impl Rules {
    /// What holds where nothing is said.
    pub fn standard(development: bool) -> Self {
        if development {
            let anyone = Access::Anyone;
            return Self { subscribe: anyone, publish: anyone, presence: anyone, history: anyone };
        }
        let known = Access::Authenticated;
        Self { subscribe: known, publish: Access::Token, presence: known, history: known }
    }

    fn of(self, verb: Verb) -> Access {
        match verb {
            Verb::Subscribe => self.subscribe,
            Verb::Publish => self.publish,
            Verb::Presence => self.presence,
            Verb::History => self.history,
        }
    }
}

/// The rules of all namespaces.
#[derive(Clone, Debug)]
pub struct Permissions {
    default: Rules,
    by_namespace: HashMap<String, Rules>,
}

impl Permissions {
    /// Those of `by_namespace`, and `default` for every other.
    pub fn new(default: Rules, by_namespace: HashMap<String, Rules>) -> Self {
        Self { default, by_namespace }
    }

    /// Whether somebody may do this. A name that ends in `#USER` is that user's own, and services'.
    pub fn allow(&self, identity: &Identity, verb: Verb, channel: &Channel) -> bool {
        if identity.has(if verb == Verb::Publish { Scope::Publish } else { Scope::Read }) {
            return true;
        }
        // With a second # it would be unclear whose it is: then it is nobody's.
        let owner = channel.as_str().split_once('#').map(|(_, owner)| owner);
        let owner = owner.map(|owner| if owner.contains('#') { "" } else { owner });
        let owns = owner.is_some() && owner == identity.user.as_ref().map(|user| user.as_str());
        if owner.is_some() && !owns {
            return false;
        }
        let rules = self.by_namespace.get(channel.namespace()).unwrap_or(&self.default);
        match rules.of(verb) {
            Access::Nobody => false,
            _ if owns && verb != Verb::Publish => true,
            Access::Anyone => true,
            Access::Authenticated => identity.user.is_some() || identity.grants(verb, channel),
            Access::Token => identity.grants(verb, channel),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Grant;

    fn identity(user: Option<&str>, granted: Option<&str>) -> Identity {
        let verbs = vec![Verb::Subscribe, Verb::Publish];
        let grant =
            |pattern: &str| Grant { pattern: pattern.parse().unwrap(), verbs: verbs.clone() };
        Identity {
            user: user.map(|user| user.parse().unwrap()),
            grants: granted.map(grant).into_iter().collect(),
            ..Identity::default()
        }
    }

    #[test]
    fn who_may_do_what() {
        use Access::{Anyone, Authenticated, Nobody, Token};
        let anonymous = identity(None, None);
        let known = identity(Some("42"), None);
        let granted = identity(None, Some("room:*"));
        for (access, anonymous_may, known_may, granted_may) in [
            (Anyone, true, true, true),
            (Authenticated, false, true, true),
            (Token, false, false, true),
            (Nobody, false, false, false),
        ] {
            let rules =
                Rules { subscribe: access, publish: access, presence: Nobody, history: access };
            let permissions =
                Permissions::new(Rules::standard(false), [("room".to_owned(), rules)].into());
            let room = "room:1".parse().unwrap();
            let may = |who, verb| permissions.allow(who, verb, &room);
            assert_eq!(may(&anonymous, Verb::Subscribe), anonymous_may, "{access:?}");
            assert_eq!(may(&known, Verb::Subscribe), known_may, "{access:?}");
            assert_eq!(may(&granted, Verb::Publish), granted_may, "{access:?}");
            // The grant names two verbs; the others follow the rule.
            let by_rule = access == Anyone;
            assert_eq!(may(&granted, Verb::History), by_rule, "{access:?}");
            assert!(!may(&granted, Verb::Presence), "{access:?}");
        }
    }

    #[test]
    fn a_users_own_channel_is_nobody_elses() {
        let permissions = Permissions::new(Rules::standard(true), HashMap::new());
        let inbox = "inbox:#42".parse().unwrap();
        assert!(permissions.allow(&identity(Some("42"), None), Verb::Subscribe, &inbox));
        for other in
            [identity(None, None), identity(Some("4"), None), identity(Some("7"), Some("*"))]
        {
            for verb in [Verb::Subscribe, Verb::Publish, Verb::Presence, Verb::History] {
                assert!(!permissions.allow(&other, verb, &inbox));
            }
        }
        let unclear = "inbox:#a#42".parse().unwrap();
        for user in ["42", "a#42", "a"] {
            assert!(!permissions.allow(&identity(Some(user), None), Verb::Subscribe, &unclear));
        }
        let strict = Permissions::new(Rules::standard(false), HashMap::new());
        assert!(strict.allow(&identity(Some("42"), None), Verb::History, &inbox));
        assert!(!strict.allow(&identity(Some("42"), None), Verb::Publish, &inbox));
        assert!(strict.allow(&identity(Some("42"), Some("inbox:*")), Verb::Publish, &inbox));
    }
}
