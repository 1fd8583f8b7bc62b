//! Authentication and authorisation: JWTs, API keys, and the permissions of channels.
//!
//! A token or an API key becomes an [`Identity`]; the identity and the rules of a channel's namespace
//! decide what it may do. This module knows no socket, no request and no session. Every secret is a
//! [`Secret`], which is never written to logs or answers.

mod internal_ticket;
mod keys;
mod pattern;
mod permission;
mod signer;
mod token;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use self::{
    internal_ticket::InternalTicket,
    pattern::Pattern,
    permission::{Access, Permissions, Rules, Verb},
    signer::Signer,
    token::{Claims, Grant, Identity, TOKEN_BYTES, TokenError},
};
use self::{internal_ticket::InternalTickets, keys::KeyRing, token::Verifier};
use crate::{lifecycle::Stage, protocol::Channel};

/// Section `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The name of the environment. In `development` every client and caller may do everything,
    /// unless other settings restrict it.
    pub environment: String,
    /// Whether clients and callers without a token or API key are served. Unset: in `development` only.
    pub anonymous: Option<bool>,
    /// Tolerated difference between clocks when `exp` and `nbf` of a token are checked.
    #[serde(with = "humantime_serde")]
    pub leeway: Duration,
    /// The required `iss` of a token. Unset, every issuer is accepted.
    pub issuer: Option<String>,
    /// The required `aud` of a token, which is this text or a list with it. Unset, a token with an
    /// `aud` is refused.
    pub audience: Option<String>,
    /// Keys that verify tokens.
    pub keys: Vec<KeyConfig>,
    /// The JSON Web Key Set of an identity provider, whose keys verify tokens too.
    pub jwks: Option<JwksConfig>,
    /// API keys of backend services.
    pub api_keys: Vec<ApiKeyConfig>,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            environment: DEVELOPMENT.to_owned(),
            anonymous: None,
            leeway: Duration::from_secs(30),
            issuer: None,
            audience: None,
            keys: Vec::new(),
            jwks: None,
            api_keys: Vec::new(),
        }
    }
}

/// The `auth.environment` in which everything is allowed by default.
pub const DEVELOPMENT: &str = "development";

impl AuthConfig {
    /// Whether `auth.environment` is `development`.
    pub fn is_development(&self) -> bool {
        self.environment == DEVELOPMENT
    }

    /// Whether clients and callers without credentials are served.
    pub fn allows_anonymous(&self) -> bool {
        self.anonymous.unwrap_or_else(|| self.is_development())
    }
}

/// One of `[[auth.keys]]`. The key decides the algorithm: a token whose header names another one is
/// refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// The key verifies only tokens whose header has this `kid`. Unset, it verifies all tokens.
    #[serde(default)]
    pub kid: Option<String>,
    /// `HS256`, `RS256`, `ES256` or `EdDSA`.
    pub algorithm: KeyAlgorithm,
    /// The secret of `HS256`, 32 bytes or more.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The public key of `RS256`, `ES256` and `EdDSA`, in PEM.
    #[serde(default)]
    pub public_key: Option<String>,
    /// A file with the secret or the public key, in place of either.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// The signature algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256: issuer and gateway share the secret.
    HS256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Section `[auth.jwks]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwksConfig {
    /// The URL of the key set: `https`, or `http` on this machine.
    pub url: String,
    /// How often the key set is fetched, 5 s or more.
    #[serde(default = "ten_minutes", with = "humantime_serde")]
    pub refresh: Duration,
    /// How long one fetch may take.
    #[serde(default = "five_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    /// How long the keys of the last successful fetch stay valid while fetches fail.
    #[serde(default = "one_day", with = "humantime_serde")]
    pub keep: Duration,
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn one_day() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// One of `[[auth.api_keys]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// The name of the service, for the rollout journal.
    pub name: String,
    /// The key, 16 bytes or more.
    #[serde(default)]
    pub key: Option<Secret>,
    /// A file with the key, in place of `key`.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The scopes of the key.
    pub scopes: Vec<Scope>,
}

/// What an API key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Publish to any channel.
    Publish,
    /// Read any channel, its history and its presence.
    Read,
    /// Everything, operating rollouts included.
    Admin,
}

impl Scope {
    /// The scope's name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// A secret value. `Debug` and `Serialize` write `(secret)` in its place.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret of the setting `name`: its inline value, or the content of a file without trailing
    /// line breaks.
    ///
    /// # Errors
    /// If neither or both are given, or the file cannot be read.
    pub fn read(name: &str, inline: Option<&Self>, file: Option<&Path>) -> Result<Self, AuthError> {
        keys::secret(name, inline, file)
    }

    /// The secret itself, for signing and verifying.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// An invalid key or secret in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct AuthError {
    /// The setting, or the file.
    pub key: String,
    /// What is wrong with it, and what is valid.
    pub reason: String,
}

/// The API key of a backend service, as its digest.
#[derive(Debug)]
struct ApiKey {
    identity: Arc<Identity>,
    digest: [u8; 32],
}

/// Authenticates clients and callers, and decides what they may do.
#[derive(Debug)]
pub struct Auth {
    verifier: Verifier,
    api_keys: Vec<ApiKey>,
    permissions: Permissions,
    anonymous: Option<Arc<Identity>>,
    internal_tickets: InternalTickets,
    is_development: bool,
}

impl Auth {
    /// Loads the keys of the configuration, and starts the task that fetches `auth.jwks`.
    ///
    /// # Errors
    /// If a key or secret is invalid; the error names the setting.
    pub fn new(
        config: &AuthConfig,
        permissions: Permissions,
        stage: &Stage,
    ) -> Result<Arc<Self>, AuthError> {
        let ring = KeyRing::new(config, stage)?;
        let api_keys = config.api_keys.iter().enumerate().map(api_key).collect::<Result<_, _>>()?;
        let anonymous = config.allows_anonymous().then(|| Arc::new(Identity::default()));
        let verifier = Verifier::new(config, ring);
        let is_development = config.is_development();
        let internal_tickets = InternalTickets::default();
        Ok(Arc::new(Self {
            verifier,
            api_keys,
            permissions,
            anonymous,
            internal_tickets,
            is_development,
        }))
    }

    /// The identity of a credential: an internal ticket, which is used up by this, an API key, or a
    /// JWT. API keys are compared in constant time.
    ///
    /// # Errors
    /// If the credential is none of them, or the JWT is not valid.
    pub async fn authenticate(&self, credential: &str) -> Result<Arc<Identity>, TokenError> {
        let ticket = self.internal_tickets.redeem(credential);
        if let Some(identity) = ticket.or_else(|| self.service(credential)) {
            return Ok(identity);
        }
        self.verifier.verify(credential).await.map(Arc::new)
    }

    /// A ticket with which this process can connect to itself, once.
    pub fn issue_ticket(&self) -> InternalTicket {
        self.internal_tickets.issue()
    }

    /// Whether a credential is an internal ticket that has not been used. This does not use it up.
    pub fn is_valid_ticket(&self, credential: &str) -> bool {
        self.internal_tickets.contains(credential)
    }

    /// The identity of clients and callers without credentials, if they are served.
    pub fn anonymous(&self) -> Option<Arc<Identity>> {
        self.anonymous.clone()
    }

    /// Whether an identity may do `verb` in a channel.
    pub fn allows(&self, identity: &Identity, verb: Verb, channel: &Channel) -> bool {
        self.permissions.allows(identity, verb, channel)
    }

    /// Whether an identity may do what requires a scope and concerns no channel: a service with the
    /// scope, and in `development` every caller if anonymous callers are served.
    pub fn allows_scope(&self, identity: &Identity, scope: Scope) -> bool {
        identity.has_scope(scope) || (self.is_development && self.anonymous.is_some())
    }

    /// Whether `auth.environment` is `development`.
    pub fn is_development(&self) -> bool {
        self.is_development
    }

    fn service(&self, credential: &str) -> Option<Arc<Identity>> {
        let digest: [u8; 32] = Sha256::digest(credential.as_bytes()).into();
        // All keys are compared, so that the time does not tell which one matched.
        let identity = self.api_keys.iter().fold(None, |identity, key| {
            if bool::from(key.digest.ct_eq(&digest)) { Some(&key.identity) } else { identity }
        });
        identity.cloned()
    }
}

fn api_key((index, config): (usize, &ApiKeyConfig)) -> Result<ApiKey, AuthError> {
    let setting = format!("auth.api_keys[{index}]");
    let secret = keys::secret(&setting, config.key.as_ref(), config.file.as_deref())?;
    if secret.bytes().len() < 16 {
        let reason = "the key is too short: use 16 or more random bytes".to_owned();
        return Err(AuthError { key: setting, reason });
    }
    let (scopes, name) = (config.scopes.clone(), Some(config.name.as_str().into()));
    let identity = Identity { scopes, name, ..Identity::default() };
    Ok(ApiKey { identity: Arc::new(identity), digest: Sha256::digest(secret.bytes()).into() })
}
