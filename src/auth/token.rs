//! Verifies JWTs and turns their claims into an [`Identity`].
//!
//! The key decides the algorithm, never the token's header.

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

/// The longest token, in bytes.
pub const TOKEN_BYTES: usize = 8 << 10;

/// The most grants and groups of a token, and the most bytes of its `info`.
const GRANTS_MAX: usize = 100;
const GROUPS_MAX: usize = 100;
const INFO_BYTES_MAX: usize = 1024;

/// The authenticated identity of a client or caller. The default is the anonymous one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user, from `sub`.
    pub user: Option<UserId>,
    /// The groups of the user, which rollouts can be limited to.
    pub groups: Vec<String>,
    /// Public information about the user, shown to other members of a channel.
    pub info: Option<Data>,
    /// When the token expires, with `auth.leeway` added.
    pub expires_at: Option<SystemTime>,
    /// What the token grants in channels.
    pub grants: Vec<Grant>,
    /// The scopes of the API key; empty for a client.
    pub scopes: Vec<Scope>,
    /// The name of the API key, for the rollout journal.
    pub name: Option<Arc<str>>,
    /// The gateway itself, by an internal ticket: its sessions count in no measurement of a rollout.
    pub internal: bool,
}

impl Identity {
    /// Whether it is a service with this scope or `admin`.
    pub fn has_scope(&self, scope: Scope) -> bool {
        self.scopes.contains(&Scope::Admin) || self.scopes.contains(&scope)
    }

    /// Whether the token grants `verb` in a channel.
    pub fn grants(&self, verb: Verb, channel: &Channel) -> bool {
        let matches = |grant: &Grant| grant.pattern.matches(channel.as_str());
        self.grants.iter().any(|grant| grant.verbs.contains(&verb) && matches(grant))
    }
}

/// What a token allows in the channels that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The channels.
    pub pattern: Pattern,
    /// The allowed actions.
    pub verbs: Vec<Verb>,
}

/// The claims of a token. Other claims are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// When the token expires, in seconds since 1970.
    pub exp: u64,
    /// From when the token is valid, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// The issuer, compared with `auth.issuer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The audience, a text or a list of texts, compared with `auth.audience`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<serde_json::Value>,
    /// The grants, 100 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Grant>,
    /// Public information about the user, 1 KiB of JSON at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<serde_json::Value>,
    /// The groups of the user, 100 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenError {
    /// It is not a JWT, or too long.
    #[error("the token is not a JWT of at most {TOKEN_BYTES} bytes")]
    Malformed,
    /// The gateway has no key with its `kid`.
    #[error(
        "the gateway has no key for this token (kid in its header): was it issued for this gateway?"
    )]
    UnknownKey,
    /// The signature does not match, or has another algorithm than the key.
    #[error("the token's signature is invalid, or its algorithm (alg) is not the key's")]
    BadSignature,
    /// It has expired (`exp`).
    #[error("the token has expired: get a new one")]
    Expired,
    /// It is not valid yet (`nbf`).
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
    /// Its issuer (`iss`) is not `auth.issuer`.
    #[error("the token's issuer (iss) is not the one this gateway accepts")]
    WrongIssuer,
    /// Its audience (`aud`) is not `auth.audience`.
    #[error("the token's audience (aud) is not this gateway")]
    WrongAudience,
    /// A claim is missing or invalid.
    #[error(
        "the token's claims are invalid: exp is required, sub is text, channels a list of \
             {{\"pattern\",\"verbs\"}}, info at most 1 KiB of JSON"
    )]
    BadClaims,
    /// `auth.jwks` cannot be fetched: the token may be valid.
    #[error("the keys that verify tokens cannot be fetched at the moment: try again")]
    KeysUnavailable,
}

impl TokenError {
    /// The error code for the client.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TokenExpired,
            Self::KeysUnavailable => ErrorCode::Unavailable,
            _ => ErrorCode::Unauthorised,
        }
    }
}

/// The verifier of tokens: keys, and what claims have to be.
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

    /// The identity of a token, if one of the keys with its `kid` verifies it.
    pub(super) async fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if TOKEN_BYTES < token.len() {
            return Err(TokenError::Malformed);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let keys = self.ring.find(header.kid.as_deref()).await?;
        let mut error = TokenError::UnknownKey;
        for key in &keys {
            match self.verify_with(key, &header, token) {
                Ok(claims) => return self.identity(claims),
                Err(TokenError::BadSignature) => error = TokenError::BadSignature,
                Err(other) => return Err(other),
            }
        }
        Err(error)
    }

    fn verify_with(&self, key: &Key, header: &Header, token: &str) -> Result<Claims, TokenError> {
        if header.alg != key.algorithm {
            return Err(TokenError::BadSignature);
        }
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        let decoded: Result<TokenData<Claims>, Error> = decode(token, &key.decoding, &validation);
        decoded.map(|token| token.claims).map_err(|err| token_error(&err))
    }

    fn identity(&self, claims: Claims) -> Result<Identity, TokenError> {
        let user = claims.sub.map(|sub| sub.parse::<UserId>()).transpose();
        let info = claims.info.filter(|info| !info.is_null()).map(|info| info.to_string());
        let exceeds_limits = GRANTS_MAX < claims.channels.len()
            || GROUPS_MAX < claims.groups.len()
            || info.as_ref().is_some_and(|info| INFO_BYTES_MAX < info.len());
        if exceeds_limits {
            return Err(TokenError::BadClaims);
        }
        let expires_after = Duration::from_secs(claims.exp).saturating_add(self.leeway);
        Ok(Identity {
            user: user.map_err(|_| TokenError::BadClaims)?,
            groups: claims.groups,
            info: info.map(|info| Data::lenient(&info)),
            expires_at: SystemTime::UNIX_EPOCH.checked_add(expires_after),
            grants: claims.channels,
            name: None,
            internal: false,
            scopes: Vec::new(),
        })
    }
}

fn token_error(err: &Error) -> TokenError {
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
