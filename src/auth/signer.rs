//! Making tokens, for development and tests. A gateway in service only verifies them.

use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

use super::{AuthConfig, AuthError, Claims, KeyAlgorithm, Secret, keys};

/// Signs tokens.
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
    /// With the first secret in the settings.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_settings(config: &AuthConfig) -> Result<Self, AuthError> {
        let mut keys = config.keys.iter().enumerate();
        let Some((number, key)) = keys.find(|(_, key)| key.algorithm == KeyAlgorithm::HS256) else {
            return Err(AuthError {
                key: "auth.keys".to_owned(),
                reason: "there is no HS256 key to sign with: add one, or name a private key with \
                         --key-file and --algorithm"
                    .to_owned(),
            });
        };
        let name = format!("auth.keys[{number}]");
        let secret = keys::secret(&name, key.secret.as_ref(), key.file.as_deref())?;
        Ok(Self::new(Algorithm::HS256, EncodingKey::from_secret(secret.bytes()), key.kid.clone()))
    }

    /// With a key in a file.
    ///
    /// # Errors
    /// When it is not one of the algorithm.
    pub fn from_file(file: &Path, algorithm: &str, kid: Option<String>) -> Result<Self, AuthError> {
        let wrong = |reason: String| AuthError { key: file.display().to_string(), reason };
        let text = keys::secret(&file.display().to_string(), None, Some(file))?;
        let algorithm: Algorithm = algorithm
            .parse()
            .map_err(|_| wrong(format!("{algorithm} is none of HS256, RS256, ES256 and EdDSA")))?;
        let key = Self::key(algorithm, &text).ok_or_else(|| {
            wrong(format!("that is no private key for {algorithm:?}: PEM, PKCS#8"))
        })?;
        Ok(Self::new(algorithm, key, kid))
    }

    /// The token.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign(&self, claims: &Claims) -> Result<String, AuthError> {
        encode(&self.header, claims, &self.key).map_err(|err| AuthError {
            key: "the key".to_owned(),
            reason: format!("it cannot sign: {err}"),
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
