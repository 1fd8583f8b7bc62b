//! Permissions: which identity may subscribe, publish, see presence or read history in a channel. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Identity, Scope};
use crate::protocol::Channel;

/// An action in a channel, as rules and the grants of tokens name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Receive its events.
    Subscribe,
    /// Append an event.
    Publish,
    /// See its members and become one.
    Presence,
    /// Read its log.
    History,
}

impl Verb {
    /// The action in a sentence: "you may not … orders:42".
    pub const fn as_words(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe to",
            Self::Publish => "publish to",
            Self::Presence => "see or show presence in",
            Self::History => "read the history of",
        }
    }
}

/// Which identities a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Every client, anonymous ones too if they are served.
    Anyone,
    /// Clients whose token names a user (`sub`) or grants the action in the channel.
    Authenticated,
    /// Clients whose token grants the action in the channel.
    Token,
    /// No client, only backend services by their API key.
    Nobody,
}

/// The rules of a namespace: which identities may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For receiving events.
    pub subscribe: Access,
    /// For publishing.
    pub publish: Access,
    /// For seeing members and becoming one.
    pub presence: Access,
    /// For reading the log.
    pub history: Access,
}

impl Rules {
    /// The rules of namespaces without their own: in development every client may do everything.
    pub fn defaults(development: bool) -> Self {
        if development {
            let anyone = Access::Anyone;
            return Self { subscribe: anyone, publish: anyone, presence: anyone, history: anyone };
        }
        let authenticated = Access::Authenticated;
        Self {
            subscribe: authenticated,
            publish: Access::Token,
            presence: authenticated,
            history: authenticated,
        }
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
    /// The rules of `by_namespace`, and `default` for every other namespace.
    pub fn new(default: Rules, by_namespace: HashMap<String, Rules>) -> Self {
        Self { default, by_namespace }
    }

    /// Whether an identity may do `verb` in a channel. A channel whose name ends in `#USER` belongs to
    /// that user: other clients have no access, whatever the rules and their grants say, and the user
    /// needs no grant except to publish. Services need the scope only.
    pub fn allows(&self, identity: &Identity, verb: Verb, channel: &Channel) -> bool {
        if identity.has_scope(if verb == Verb::Publish { Scope::Publish } else { Scope::Read }) {
            return true;
        }
        // A second # would make the owner ambiguous: such a channel has none, and no client has access.
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
    fn each_access_level_allows_its_identities() {
        use Access::{Anyone, Authenticated, Nobody, Token};
        let anonymous = identity(None, None);
        let authenticated = identity(Some("42"), None);
        let granted = identity(None, Some("room:*"));
        for (access, anonymous_allowed, authenticated_allowed, granted_allowed) in [
            (Anyone, true, true, true),
            (Authenticated, false, true, true),
            (Token, false, false, true),
            (Nobody, false, false, false),
        ] {
            let rules =
                Rules { subscribe: access, publish: access, presence: Nobody, history: access };
            let permissions =
                Permissions::new(Rules::defaults(false), [("room".to_owned(), rules)].into());
            let room = "room:1".parse().unwrap();
            let allows = |identity, verb| permissions.allows(identity, verb, &room);
            assert_eq!(allows(&anonymous, Verb::Subscribe), anonymous_allowed, "{access:?}");
            assert_eq!(
                allows(&authenticated, Verb::Subscribe),
                authenticated_allowed,
                "{access:?}"
            );
            assert_eq!(allows(&granted, Verb::Publish), granted_allowed, "{access:?}");
            // The grant has two verbs; the others follow the rule.
            let allowed_by_rule = access == Anyone;
            assert_eq!(allows(&granted, Verb::History), allowed_by_rule, "{access:?}");
            assert!(!allows(&granted, Verb::Presence), "{access:?}");
        }
    }

    #[test]
    fn a_users_own_channel_is_closed_to_other_users() {
        let permissions = Permissions::new(Rules::defaults(true), HashMap::new());
        let inbox = "inbox:#42".parse().unwrap();
        assert!(permissions.allows(&identity(Some("42"), None), Verb::Subscribe, &inbox));
        for other in
            [identity(None, None), identity(Some("4"), None), identity(Some("7"), Some("*"))]
        {
            for verb in [Verb::Subscribe, Verb::Publish, Verb::Presence, Verb::History] {
                assert!(!permissions.allows(&other, verb, &inbox));
            }
        }
        let ambiguous = "inbox:#a#42".parse().unwrap();
        for user in ["42", "a#42", "a"] {
            assert!(!permissions.allows(&identity(Some(user), None), Verb::Subscribe, &ambiguous));
        }
        let strict = Permissions::new(Rules::defaults(false), HashMap::new());
        assert!(strict.allows(&identity(Some("42"), None), Verb::History, &inbox));
        assert!(!strict.allows(&identity(Some("42"), None), Verb::Publish, &inbox));
        assert!(strict.allows(&identity(Some("42"), Some("inbox:*")), Verb::Publish, &inbox));
    }
}
