//! The keys that tokens are verified with: those in the configuration, and those an identity
//! provider publishes.
//!
//! Published keys are fetched in the background. A token with a name that is not known yet makes
//! them be fetched at once, but not more often than every [`PAUSE`], by whoever comes first. While
//! the provider is away the last keys count for `auth.jwks.keep`.

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

/// Published keys are fetched at most this often, however many unknown names come.
const PAUSE: Duration = Duration::from_secs(5);

/// Bytes of a list of published keys.
const LIST_BYTES: usize = 256 << 10;

/// Bytes of an HS256 secret, by RFC 7518.
const SECRET_BYTES: usize = 32;

/// What a provider publishes.
#[derive(Deserialize)]
struct List {
    keys: Vec<serde_json::Value>,
}

/// A key and what it is for.
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

/// All keys.
#[derive(Debug)]
pub(super) struct KeyRing {
    fixed: Vec<Key>,
    published: Option<Arc<Published>>,
}

impl KeyRing {
    pub(super) fn new(config: &AuthConfig, stage: &Stage) -> Result<Self, AuthError> {
        let fixed = config.keys.iter().enumerate().map(key).collect::<Result<_, _>>()?;
        let published = config.jwks.as_ref().map(Published::new).transpose()?.map(Arc::new);
        if let Some(published) = &published {
            stage.spawn("jwks", keep_fresh(Arc::clone(published), stage.clone()));
        }
        Ok(Self { fixed, published })
    }

    /// The keys that a token with this name in its head may be signed with.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Vec<Key>, TokenError> {
        let fits = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid;
        let mut keys: Vec<Key> = self.fixed.iter().filter(fits).cloned().collect();
        if let Some(published) = &self.published
            && keys.iter().all(|key| key.kid.is_none())
        {
            match published.find(kid).await {
                Ok(found) => keys.extend(found),
                Err(err) if keys.is_empty() => return Err(err),
                Err(_) => {}
            }
        }
        Ok(keys)
    }
}

/// Keys that an identity provider publishes.
#[derive(Debug)]
struct Published {
    config: JwksConfig,
    http: reqwest::Client,
    fetched: Mutex<Fetched>,
    /// Held while they are fetched: whoever waits for it finds them fresh.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Fetched {
    keys: Vec<Key>,
    at: Option<Instant>,
    tried: Option<Instant>,
}

impl Published {
    fn new(config: &JwksConfig) -> Result<Self, AuthError> {
        let wrong = |reason: String| AuthError { key: "auth.jwks.url".to_owned(), reason };
        let url: reqwest::Url = config.url.parse().map_err(|err| wrong(format!("{err}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must not hold a password: addresses are shown".to_owned()));
        }
        let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() != "https" && !(url.scheme() == "http" && here) {
            return Err(wrong("keys have to come over https, or from this machine".to_owned()));
        }
        // Needed once per process; a second installation changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let http = http.map_err(|err| wrong(err.to_string()))?;
        let fetching = tokio::sync::Mutex::default();
        Ok(Self { config: config.clone(), http, fetched: Mutex::default(), fetching })
    }

    async fn find(&self, kid: Option<&str>) -> Result<Vec<Key>, TokenError> {
        if let Some(keys) = self.known(kid) {
            return Ok(keys);
        }
        self.fetch(PAUSE).await;
        if let Some(keys) = self.known(kid) {
            return Ok(keys);
        }
        match self.are_old() {
            true => Err(TokenError::KeysUnavailable),
            false => Ok(Vec::new()),
        }
    }

    fn known(&self, kid: Option<&str>) -> Option<Vec<Key>> {
        if self.are_old() {
            return None;
        }
        let fits = |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        let keys: Vec<_> = self.fetched.lock().keys.iter().filter(fits).cloned().collect();
        (!keys.is_empty()).then_some(keys)
    }

    fn are_old(&self) -> bool {
        self.fetched.lock().at.is_none_or(|at| self.config.keep <= at.elapsed())
    }

    /// Fetches them, unless that was tried within `pause`.
    async fn fetch(&self, pause: Duration) {
        let _turn = self.fetching.lock().await;
        let tried = self.fetched.lock().tried.replace(Instant::now());
        if tried.is_some_and(|tried| tried.elapsed() < pause) {
            self.fetched.lock().tried = tried;
            return;
        }
        let list = self.list().await;
        // Who waited meanwhile must not fetch once more.
        self.fetched.lock().tried = Some(Instant::now());
        match list {
            Ok(keys) => {
                debug!(keys = keys.len(), "fetched the published keys");
                let mut fetched = self.fetched.lock();
                fetched.keys = keys;
                fetched.at = Some(Instant::now());
            }
            Err(reason) => warn!(
                %reason,
                "the published keys cannot be fetched: those of the last time count for auth.jwks.keep"
            ),
        }
    }

    async fn list(&self) -> Result<Vec<Key>, String> {
        let without_url = |err: reqwest::Error| err.without_url().to_string();
        let answer = self.http.get(&self.config.url).send().await.map_err(without_url)?;
        let mut answer = answer.error_for_status().map_err(without_url)?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(without_url)? {
            body.extend_from_slice(&piece);
            if LIST_BYTES < body.len() {
                return Err(format!("the list has more than {LIST_BYTES} bytes"));
            }
        }
        let list: List = serde_json::from_slice(&body).map_err(|err| err.to_string())?;
        // One that is not understood is another's.
        let known = list.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
        Ok(known.filter_map(|key: Jwk| published_key(&key)).collect())
    }
}

async fn keep_fresh(published: Arc<Published>, stage: Stage) {
    let mut ticks = interval(published.config.refresh.max(PAUSE));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stage.stopping().cancelled() => return,
        }
        tokio::select! {
            () = published.fetch(Duration::ZERO) => {}
            () = stage.stopping().cancelled() => return,
        }
    }
}

/// A published key, if it is of a kind that we verify with.
fn published_key(jwk: &Jwk) -> Option<Key> {
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
            debug!(kid = ?jwk.common.key_id, "a published key of another kind is passed over");
            return None;
        }
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { kid: jwk.common.key_id.clone(), algorithm, decoding })
}

fn key((number, config): (usize, &KeyConfig)) -> Result<Key, AuthError> {
    let name = format!("auth.keys[{number}]");
    let wrong = |reason: &str| AuthError { key: name.clone(), reason: reason.to_owned() };
    let inline = match config.algorithm {
        KeyAlgorithm::HS256 => config.secret.clone(),
        _ => config.public_key.clone().map(Secret::new),
    };
    let text = secret(&name, inline.as_ref(), config.file.as_deref())?;
    let pem = |decoding: jsonwebtoken::errors::Result<DecodingKey>| {
        decoding.map_err(|_| wrong("that is no public key of this algorithm, in PEM"))
    };
    let (algorithm, decoding) = match config.algorithm {
        KeyAlgorithm::HS256 if text.bytes().len() < SECRET_BYTES => {
            return Err(wrong("the secret is too short: take at least 32 random bytes"));
        }
        KeyAlgorithm::HS256 => (Algorithm::HS256, DecodingKey::from_secret(text.bytes())),
        KeyAlgorithm::RS256 => (Algorithm::RS256, pem(DecodingKey::from_rsa_pem(text.bytes()))?),
        KeyAlgorithm::ES256 => (Algorithm::ES256, pem(DecodingKey::from_ec_pem(text.bytes()))?),
        KeyAlgorithm::EdDSA => (Algorithm::EdDSA, pem(DecodingKey::from_ed_pem(text.bytes()))?),
    };
    Ok(Key { kid: config.kid.clone(), algorithm, decoding })
}

/// What stands in the configuration or in the file it names. A file's last line break is not part of
/// it.
pub(super) fn secret(
    name: &str,
    inline: Option<&Secret>,
    file: Option<&Path>,
) -> Result<Secret, AuthError> {
    let wrong = |reason: String| AuthError { key: name.to_owned(), reason };
    match (inline, file) {
        (Some(secret), None) => Ok(secret.clone()),
        (None, Some(file)) => match std::fs::read_to_string(file) {
            Ok(text) => Ok(Secret::new(text.trim_end_matches(['\r', '\n']))),
            Err(err) => Err(wrong(format!("{}: {err}", file.display()))),
        },
        _ => Err(wrong("say what the key is: in place, or in a file, but not both".to_owned())),
    }
}
