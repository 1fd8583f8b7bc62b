//! Who somebody is, and what they may do: tokens, API keys, permissions.
//!
//! A token becomes an [`Identity`]; an identity and a channel's rules decide. Knows no socket, no
//! request and no session. A secret is a [`Secret`], which shows itself to nobody.

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
    /// What kind of place this is. In `development` everybody may do everything unless something
    /// else is said.
    pub environment: String,
    /// Whether clients and callers without a token or key are served. Unset: in development only.
    pub anonymous: Option<bool>,
    /// How far clocks may be apart when a token's times are checked.
    #[serde(with = "humantime_serde")]
    pub leeway: Duration,
    /// A token's `iss` has to be this.
    pub issuer: Option<String>,
    /// A token's `aud` has to be or to name this. Unset, a token that names one is refused.
    pub audience: Option<String>,
    /// Keys that tokens are verified with.
    pub keys: Vec<KeyConfig>,
    /// Keys that an identity provider publishes.
    pub jwks: Option<JwksConfig>,
    /// Keys of backend services.
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

/// The environment in which everybody may do everything.
pub const DEVELOPMENT: &str = "development";

impl AuthConfig {
    /// Whether this is a developer's machine.
    pub fn is_development(&self) -> bool {
        self.environment == DEVELOPMENT
    }

    /// Whether those are served who do not say who they are.
    pub fn allows_anonymous(&self) -> bool {
        self.anonymous.unwrap_or_else(|| self.is_development())
    }
}

/// One of `[[auth.keys]]`. The algorithm is the key's: what a token's head says must agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Only for tokens whose head has this `kid`. Unset: for all.
    #[serde(default)]
    pub kid: Option<String>,
    /// `HS256`, `RS256`, `ES256` or `EdDSA`.
    pub algorithm: KeyAlgorithm,
    /// The secret of `HS256`, at least 32 bytes.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The public key of the others, PEM.
    #[serde(default)]
    pub public_key: Option<String>,
    /// Either of them, in a file.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// How tokens are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// With a secret that both sides have.
    HS256,
    /// RSA.
    RS256,
    /// ECDSA on P-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Section `[auth.jwks]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwksConfig {
    /// Where: https, or http on this machine.
    pub url: String,
    /// They are fetched again this often.
    #[serde(default = "ten_minutes", with = "humantime_serde")]
    pub refresh: Duration,
    /// A fetch is given up after this.
    #[serde(default = "five_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    /// Keys of the last fetch are used for this long while the provider is away.
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
    /// Whose it is, for logs.
    pub name: String,
    /// The key, at least 16 bytes.
    #[serde(default)]
    pub key: Option<Secret>,
    /// The key, in a file.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// What it is for.
    pub scopes: Vec<Scope>,
}

/// What an API key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Publishing to any channel.
    Publish,
    /// Reading channels, histories and presence.
    Read,
    /// Everything.
    Admin,
}

impl Scope {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// Something nobody is to see. It is written out as `(secret)`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// One that stands in the settings at `name`, in place or in a file.
    ///
    /// # Errors
    /// When it is in neither or in both, or the file cannot be read.
    pub fn read(name: &str, inline: Option<&Self>, file: Option<&Path>) -> Result<Self, AuthError> {
        keys::secret(name, inline, file)
    }

    /// What it is, for whoever signs with it.
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

/// Why there can be no authentication as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct AuthError {
    /// Which setting.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// A key of a backend service.
#[derive(Debug)]
struct ApiKey {
    identity: Arc<Identity>,
    digest: [u8; 32],
}

/// Knows who somebody is and what they may do.
#[derive(Debug)]
pub struct Auth {
    verifier: Verifier,
    api_keys: Vec<ApiKey>,
    permissions: Permissions,
    anonymous: Option<Arc<Identity>>,
    passes: InternalTickets,
    is_development: bool,
}

impl Auth {
    /// Reads the keys, and begins to fetch those that are published.
    ///
    /// # Errors
    /// Says which key cannot be used.
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
        let passes = InternalTickets::default();
        Ok(Arc::new(Self { verifier, api_keys, permissions, anonymous, passes, is_development }))
    }

    /// Whose token or API key this is. A wrong key takes as long as a right one.
    ///
    /// # Errors
    /// Says why it does not count.
    pub async fn identify(&self, presented: &str) -> Result<Arc<Identity>, TokenError> {
        let known = self.passes.take(presented).or_else(|| self.service(presented));
        if let Some(known) = known {
            return Ok(known);
        }
        self.verifier.verify(presented).await.map(Arc::new)
    }

    /// Lets this process in as itself, once.
    pub fn pass(&self) -> InternalTicket {
        self.passes.give()
    }

    /// Whether this is a pass that counts. It goes on counting.
    pub fn is_pass(&self, presented: &str) -> bool {
        self.passes.knows(presented)
    }

    /// Who those are that do not say who they are, if they are served.
    pub fn anonymous(&self) -> Option<Arc<Identity>> {
        self.anonymous.clone()
    }

    /// Whether somebody may do this.
    pub fn may(&self, identity: &Identity, verb: Verb, channel: &Channel) -> bool {
        self.permissions.allow(identity, verb, channel)
    }

    /// Whether somebody may do what concerns no channel: a service with this scope, and on a
    /// developer's machine whoever is there.
    pub fn operates(&self, identity: &Identity, scope: Scope) -> bool {
        identity.has(scope) || (self.is_development && self.anonymous.is_some())
    }

    /// Whether this is a developer's machine.
    pub fn is_development(&self) -> bool {
        self.is_development
    }

    fn service(&self, presented: &str) -> Option<Arc<Identity>> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let all = self.api_keys.iter();
        let found = all.fold(None, |found, key| {
            if bool::from(key.digest.ct_eq(&digest)) { Some(&key.identity) } else { found }
        });
        found.cloned()
    }
}

fn api_key((number, config): (usize, &ApiKeyConfig)) -> Result<ApiKey, AuthError> {
    let name = format!("auth.api_keys[{number}]");
    let secret = keys::secret(&name, config.key.as_ref(), config.file.as_deref())?;
    if secret.bytes().len() < 16 {
        let reason = "the key is too short: take at least 16 random bytes".to_owned();
        return Err(AuthError { key: name, reason });
    }
    let (scopes, whose) = (config.scopes.clone(), Some(config.name.as_str().into()));
    let identity = Identity { scopes, name: whose, ..Identity::default() };
    Ok(ApiKey { identity: Arc::new(identity), digest: Sha256::digest(secret.bytes()).into() })
}
