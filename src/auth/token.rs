//! From a token to an identity. What a token says about itself decides nothing: the algorithm is the
//! key's.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{
    Header, TokenData, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
};
use serde::{Deserialize, Serialize};

use super::{
    AuthConfig, Scope, Verb,
    keys::{Key, KeyRing},
    pattern::Pattern,
};
use crate::protocol::{Channel, Data, ErrorCode, UserId};

/// Longest token, in bytes.
pub const TOKEN_BYTES: usize = 8 << 10;

/// Most grants, groups, and bytes of `info`.
const GRANTS: usize = 100;
const GROUPS: usize = 100;
const INFO_BYTES: usize = 1024;

/// Who somebody is. The default is nobody in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Whose token it was.
    pub user: Option<UserId>,
    /// What the user belongs to.
    pub groups: Vec<String>,
    /// What others are shown.
    pub info: Option<Data>,
    /// Until when it counts.
    pub expires_at: Option<SystemTime>,
    /// What the token allows by itself.
    pub grants: Vec<Grant>,
    /// What the API key is for; none for a client.
    pub scopes: Vec<Scope>,
    /// Whose API key it is, for the journal.
    pub name: Option<Arc<str>>,
    /// The gateway itself, which tries what it serves: it counts in no figures of a rollout.
    pub own: bool,
}

impl Identity {
    /// Whether it is a service with this scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&Scope::Admin) || self.scopes.contains(&scope)
    }

    /// Whether the token allows this by itself.
    pub fn grants(&self, verb: Verb, channel: &Channel) -> bool {
        let names = |grant: &Grant| grant.pattern.matches(channel.as_str());
        self.grants.iter().any(|grant| grant.verbs.contains(&verb) && names(grant))
    }
}

/// What a token allows in channels of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which channels.
    pub pattern: Pattern,
    /// What.
    pub verbs: Vec<Verb>,
}

/// What stands in a token. Others are passed over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Until when it counts, in seconds since 1970.
    pub exp: u64,
    /// From when on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// Whom it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<serde_json::Value>,
    /// What it allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Grant>,
    /// What others are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<serde_json::Value>,
    /// What the user belongs to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    /// No JWT.
    #[error("the token is no JWT of at most {TOKEN_BYTES} bytes")]
    Malformed,
    /// No key of that name.
    #[error("no key is known by the name in the token's head (kid): was it made for this gateway?")]
    UnknownKey,
    /// Signed by somebody else, or in another way than the key is for.
    #[error("the token's signature is not that of a known key with its algorithm")]
    BadSignature,
    /// Too late.
    #[error("the token has expired: get a new one")]
    Expired,
    /// Too early.
    #[error("the token does not count yet (nbf)")]
    NotYetValid,
    /// Made by another.
    #[error("the token's issuer (iss) is not the one this gateway trusts")]
    WrongIssuer,
    /// Made for another.
    #[error("the token's audience (aud) is not this gateway")]
    WrongAudience,
    /// Something in it is missing or cannot be.
    #[error(
        "the token's claims are not what they have to be: exp is required, sub is text, \
             channels a list of {{\"pattern\",\"verbs\"}}, info at most 1 KiB of JSON"
    )]
    BadClaims,
    /// Not the client's fault.
    #[error("the keys to verify tokens with cannot be fetched now: try again")]
    KeysUnavailable,
}

impl TokenError {
    /// The code it goes out with.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TokenExpired,
            Self::KeysUnavailable => ErrorCode::Unavailable,
            _ => ErrorCode::Unauthorised,
        }
    }
}

/// Verifies tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    ring: KeyRing,
    leeway: Duration,
    issuer: Option<String>,
    audience: Option<String>,
}

impl Verifier {
    pub(super) fn new(config: &AuthConfig, ring: KeyRing) -> Self {
        let AuthConfig { leeway, issuer, audience, .. } = config.clone();
        Self { ring, leeway, issuer, audience }
    }

    pub(super) async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if TOKEN_BYTES < token.len() {
            return Err(TokenError::Malformed);
        }
        let head = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let keys = self.ring.find(head.kid.as_deref()).await?;
        let mut refused = TokenError::UnknownKey;
        for key in &keys {
            match self.with(key, &head, token) {
                Ok(claims) => return self.identity(claims),
                Err(TokenError::BadSignature) => refused = TokenError::BadSignature,
                Err(other) => return Err(other),
            }
        }
        Err(refused)
    }

    fn with(&self, key: &Key, head: &Header, token: &str) -> Result<Claims, TokenError> {
        if head.alg != key.algorithm {
            return Err(TokenError::BadSignature);
        }
        let mut rules = Validation::new(key.algorithm);
        rules.leeway = self.leeway.as_secs();
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp"]);
        if let Some(issuer) = &self.issuer {
            rules.set_issuer(&[issuer]);
            rules.required_spec_claims.insert("iss".to_owned());
        }
        if let Some(audience) = &self.audience {
            rules.set_audience(&[audience]);
            rules.required_spec_claims.insert("aud".to_owned());
        }
        let decoded: Result<TokenData<Claims>, Error> = decode(token, &key.decoding, &rules);
        decoded.map(|token| token.claims).map_err(|err| why(&err))
    }

    fn identity(&self, claims: Claims) -> Result<Identity, TokenError> {
        let user = claims.sub.map(|sub| sub.parse::<UserId>()).transpose();
        let info = claims.info.filter(|info| !info.is_null()).map(|info| info.to_string());
        let too_much = GRANTS < claims.channels.len()
            || GROUPS < claims.groups.len()
            || info.as_ref().is_some_and(|info| INFO_BYTES < info.len());
        if too_much {
            return Err(TokenError::BadClaims);
        }
        let until = Duration::from_secs(claims.exp).saturating_add(self.leeway);
        Ok(Identity {
            user: user.map_err(|_| TokenError::BadClaims)?,
            groups: claims.groups,
            info: info.map(|info| Data::lenient(&info)),
            expires_at: SystemTime::UNIX_EPOCH.checked_add(until),
            grants: claims.channels,
            name: None,
            own: false,
            scopes: Vec::new(),
        })
    }
}

fn why(err: &Error) -> TokenError {
    match err.kind() {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidIssuer => TokenError::WrongIssuer,
        ErrorKind::InvalidAudience => TokenError::WrongAudience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => TokenError::WrongIssuer,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => TokenError::WrongAudience,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) => TokenError::BadClaims,
        ErrorKind::InvalidSignature
        | ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName => TokenError::BadSignature,
        _ => TokenError::Malformed,
    }
}
