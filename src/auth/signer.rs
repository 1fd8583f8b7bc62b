//! Signing tokens, for `crossfade token`, development and tests. A running gateway only verifies them.

use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

use super::{AuthConfig, AuthError, Claims, KeyAlgorithm, Secret, keys};

/// A signer of tokens, with one key.
pub struct Signer {
    header: Header,
    key: EncodingKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Signer {
    /// A signer with the first HS256 secret of `auth.keys`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn from_config(config: &AuthConfig) -> Result<Self, AuthError> {
        let mut keys = config.keys.iter().enumerate();
        let Some((index, key)) = keys.find(|(_, key)| key.algorithm == KeyAlgorithm::HS256) else {
            return Err(AuthError {
                key: "auth.keys".to_owned(),
                reason: "there is no HS256 key to sign with: add one, or pass a private key with \
                         --key-file and --algorithm"
                    .to_owned(),
            });
        };
        let setting = format!("auth.keys[{index}]");
        let secret = keys::secret(&setting, key.secret.as_ref(), key.file.as_deref())?;
        Ok(Self::new(Algorithm::HS256, EncodingKey::from_secret(secret.bytes()), key.kid.clone()))
    }

    /// A signer with the private key in a file: PEM, or the secret itself for HS256.
    ///
    /// # Errors
    /// If the file cannot be read, or the key is not one of the algorithm.
    pub fn from_file(file: &Path, algorithm: &str, kid: Option<String>) -> Result<Self, AuthError> {
        let invalid = |reason: String| AuthError { key: file.display().to_string(), reason };
        let text = keys::secret(&file.display().to_string(), None, Some(file))?;
        let algorithm: Algorithm = algorithm.parse().map_err(|_| {
            invalid(format!("{algorithm} is not one of HS256, RS256, ES256, EdDSA"))
        })?;
        let key = Self::key(algorithm, &text).ok_or_else(|| {
            invalid(format!("not a private key for {algorithm:?} in PEM, PKCS#8"))
        })?;
        Ok(Self::new(algorithm, key, kid))
    }

    /// Signs a token with these claims.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn sign(&self, claims: &Claims) -> Result<String, AuthError> {
        encode(&self.header, claims, &self.key).map_err(|err| AuthError {
            key: "the signing key".to_owned(),
            reason: format!("it cannot sign the token: {err}"),
        })
    }

    fn new(algorithm: Algorithm, key: EncodingKey, kid: Option<String>) -> Self {
        Self { header: Header { kid, ..Header::new(algorithm) }, key }
    }

    fn key(algorithm: Algorithm, text: &Secret) -> Option<EncodingKey> {
        match algorithm {
            Algorithm::HS256 => Some(EncodingKey::from_secret(text.bytes())),
            Algorithm::RS256 => EncodingKey::from_rsa_pem(text.bytes()).ok(),
            Algorithm::ES256 => EncodingKey::from_ec_pem(text.bytes()).ok(),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(text.bytes()).ok(),
            _ => None,
        }
    }
}
