//! Keys that verify tokens: `auth.keys` of the configuration, and the JWKS of an identity provider.
//!
//! The JWKS is fetched in the background every `auth.jwks.refresh`. A token with an unknown `kid` causes
//! a fetch at once, but at most one every [`FETCH_INTERVAL_MIN`]. While fetches fail, the keys of the
//! last successful one stay valid for `auth.jwks.keep`. This module verifies no token itself.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm as JwkAlgorithm, PublicKeyUse},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::{AuthConfig, AuthError, JwksConfig, KeyAlgorithm, KeyConfig, Secret, TokenError};
use crate::lifecycle::Stage;

/// The shortest time between two fetches of the JWKS, however many tokens have an unknown `kid`.
const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(5);

/// The largest JWKS, in bytes.
const JWKS_BYTES: usize = 256 << 10;

/// The shortest HS256 secret, in bytes (RFC 7518).
const SECRET_BYTES_MIN: usize = 32;

/// The document at `auth.jwks.url`.
#[derive(Deserialize)]
struct JwksDocument {
    keys: Vec<serde_json::Value>,
}

/// A verification key with its algorithm and, if it has one, its id.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, {:?})", self.kid, self.algorithm)
    }
}

/// All verification keys.
#[derive(Debug)]
pub(super) struct KeyRing {
    configured: Vec<Key>,
    jwks: Option<Arc<JwksCache>>,
}

impl KeyRing {
    pub(super) fn new(config: &AuthConfig, stage: &Stage) -> Result<Self, AuthError> {
        let configured = config.keys.iter().enumerate().map(key).collect::<Result<_, _>>()?;
        let jwks = config.jwks.as_ref().map(JwksCache::new).transpose()?.map(Arc::new);
        if let Some(jwks) = &jwks {
            stage.spawn("jwks", refresh(Arc::clone(jwks), stage.clone()));
        }
        Ok(Self { configured, jwks })
    }

    /// The keys that may verify a token with this `kid`.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Vec<Key>, TokenError> {
        let matches = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid;
        let mut keys: Vec<Key> = self.configured.iter().filter(matches).cloned().collect();
        if let Some(jwks) = &self.jwks
            && keys.iter().all(|key| key.kid.is_none())
        {
            match jwks.find(kid).await {
                Ok(fetched) => keys.extend(fetched),
                Err(err) if keys.is_empty() => return Err(err),
                Err(_) => {}
            }
        }
        Ok(keys)
    }
}

/// The JWKS of an identity provider, as it was fetched last.
#[derive(Debug)]
struct JwksCache {
    config: JwksConfig,
    http: reqwest::Client,
    fetched: Mutex<Fetched>,
    /// Held during a fetch, so that requests that need one at the same time share it.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Fetched {
    keys: Vec<Key>,
    /// When the last fetch succeeded.
    at: Option<Instant>,
    /// When the last fetch was tried.
    tried_at: Option<Instant>,
}

impl JwksCache {
    fn new(config: &JwksConfig) -> Result<Self, AuthError> {
        let invalid = |reason: String| AuthError { key: "auth.jwks.url".to_owned(), reason };
        let url: reqwest::Url = config.url.parse().map_err(|err| invalid(format!("{err}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "a URL with a user or password is not supported: URLs are logged";
            return Err(invalid(reason.to_owned()));
        }
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local) {
            let reason = "the URL has to be https, or http on localhost";
            return Err(invalid(reason.to_owned()));
        }
        // Required once per process; installing it again has no effect.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let http = http.map_err(|err| invalid(err.to_string()))?;
        let fetching = tokio::sync::Mutex::default();
        Ok(Self { config: config.clone(), http, fetched: Mutex::default(), fetching })
    }

    async fn find(&self, kid: Option<&str>) -> Result<Vec<Key>, TokenError> {
        if let Some(keys) = self.cached(kid) {
            return Ok(keys);
        }
        self.fetch(FETCH_INTERVAL_MIN).await;
        if let Some(keys) = self.cached(kid) {
            return Ok(keys);
        }
        match self.is_stale() {
            true => Err(TokenError::KeysUnavailable),
            false => Ok(Vec::new()),
        }
    }

    /// The keys with this `kid`; none if there is none, or if the last fetch is too long ago.
    fn cached(&self, kid: Option<&str>) -> Option<Vec<Key>> {
        if self.is_stale() {
            return None;
        }
        let matches = |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        let keys: Vec<_> = self.fetched.lock().keys.iter().filter(matches).cloned().collect();
        (!keys.is_empty()).then_some(keys)
    }

    fn is_stale(&self) -> bool {
        self.fetched.lock().at.is_none_or(|at| self.config.keep <= at.elapsed())
    }

    /// Fetches the JWKS, unless a fetch was tried within `min_interval`.
    async fn fetch(&self, min_interval: Duration) {
        let _fetching = self.fetching.lock().await;
        let tried_at = self.fetched.lock().tried_at.replace(Instant::now());
        if tried_at.is_some_and(|tried_at| tried_at.elapsed() < min_interval) {
            self.fetched.lock().tried_at = tried_at;
            return;
        }
        let keys = self.download().await;
        // The end of the fetch counts: requests that waited for it must not fetch again.
        self.fetched.lock().tried_at = Some(Instant::now());
        match keys {
            Ok(keys) => {
                debug!(keys = keys.len(), "fetched the keys of auth.jwks");
                let mut fetched = self.fetched.lock();
                fetched.keys = keys;
                fetched.at = Some(Instant::now());
            }
            Err(reason) => warn!(
                %reason,
                "auth.jwks cannot be fetched: the keys fetched before stay valid for auth.jwks.keep"
            ),
        }
    }

    async fn download(&self) -> Result<Vec<Key>, String> {
        let without_url = |err: reqwest::Error| err.without_url().to_string();
        let response = self.http.get(&self.config.url).send().await.map_err(without_url)?;
        let mut response = response.error_for_status().map_err(without_url)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            body.extend_from_slice(&chunk);
            if JWKS_BYTES < body.len() {
                return Err(format!("the document has more than {JWKS_BYTES} bytes"));
            }
        }
        let jwks: JwksDocument = serde_json::from_slice(&body).map_err(|err| err.to_string())?;
        // A key of an unknown kind is skipped: the provider may have it for other services.
        let parsed = jwks.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
        Ok(parsed.filter_map(|jwk: Jwk| key_from_jwk(&jwk)).collect())
    }
}

/// Fetches the JWKS every `auth.jwks.refresh`.
async fn refresh(jwks: Arc<JwksCache>, stage: Stage) {
    let mut ticks = interval(jwks.config.refresh.max(FETCH_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stage.stopping().cancelled() => return,
        }
        tokio::select! {
            () = jwks.fetch(Duration::ZERO) => {}
            () = stage.stopping().cancelled() => return,
        }
    }
}

/// The verification key of a JWK; none if it is for encryption or of an unsupported algorithm.
fn key_from_jwk(jwk: &Jwk) -> Option<Key> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
        (AlgorithmParameters::RSA(_), None | Some(JwkAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::EllipticCurve(curve), None | Some(JwkAlgorithm::ES256))
            if curve.curve == EllipticCurve::P256 =>
        {
            Algorithm::ES256
        }
        (AlgorithmParameters::OctetKeyPair(pair), None | Some(JwkAlgorithm::EdDSA))
            if pair.curve == EllipticCurve::Ed25519 =>
        {
            Algorithm::EdDSA
        }
        _ => {
            debug!(kid = ?jwk.common.key_id, "a key of auth.jwks was skipped: its algorithm is not supported");
            return None;
        }
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { kid: jwk.common.key_id.clone(), algorithm, decoding })
}

fn key((index, config): (usize, &KeyConfig)) -> Result<Key, AuthError> {
    let setting = format!("auth.keys[{index}]");
    let invalid = |reason: &str| AuthError { key: setting.clone(), reason: reason.to_owned() };
    let inline = match config.algorithm {
        KeyAlgorithm::HS256 => config.secret.clone(),
        _ => config.public_key.clone().map(Secret::new),
    };
    let text = secret(&setting, inline.as_ref(), config.file.as_deref())?;
    let pem = |decoding: jsonwebtoken::errors::Result<DecodingKey>| {
        decoding.map_err(|_| invalid("not a public key of this algorithm in PEM"))
    };
    let (algorithm, decoding) = match config.algorithm {
        KeyAlgorithm::HS256 if text.bytes().len() < SECRET_BYTES_MIN => {
            return Err(invalid("the secret is too short: use 32 or more random bytes"));
        }
        KeyAlgorithm::HS256 => (Algorithm::HS256, DecodingKey::from_secret(text.bytes())),
        KeyAlgorithm::RS256 => (Algorithm::RS256, pem(DecodingKey::from_rsa_pem(text.bytes()))?),
        KeyAlgorithm::ES256 => (Algorithm::ES256, pem(DecodingKey::from_ec_pem(text.bytes()))?),
        KeyAlgorithm::EdDSA => (Algorithm::EdDSA, pem(DecodingKey::from_ed_pem(text.bytes()))?),
    };
    Ok(Key { kid: config.kid.clone(), algorithm, decoding })
}

/// The secret of the setting `setting`: its inline value, or the content of its file without trailing
/// line breaks.
pub(super) fn secret(
    setting: &str,
    inline: Option<&Secret>,
    file: Option<&Path>,
) -> Result<Secret, AuthError> {
    let invalid = |reason: String| AuthError { key: setting.to_owned(), reason };
    match (inline, file) {
        (Some(secret), None) => Ok(secret.clone()),
        (None, Some(file)) => match std::fs::read_to_string(file) {
            Ok(text) => Ok(Secret::new(text.trim_end_matches(['\r', '\n']))),
            Err(err) => Err(invalid(format!("{}: {err}", file.display()))),
        },
        _ => Err(invalid("set either the key itself or its file, not both".to_owned())),
    }
}
