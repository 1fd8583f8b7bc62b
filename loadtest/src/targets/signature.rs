//! Signatures that peers ask of publishers.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use sha2::Sha256;

/// HMAC-SHA256.
pub(super) fn hmac(key: &str, text: &str) -> Vec<u8> {
    // HMAC takes keys of any length; one that could not be taken would sign nothing.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return Vec::new() };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// A JSON Web Token with these claims.
pub(super) fn token(key: &str, claims: &str) -> String {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let signed =
        format!("{}.{}", encode(br#"{"alg":"HS256","typ":"JWT"}"#), encode(claims.as_bytes()));
    let signature = encode(&hmac(key, &signed));
    format!("{signed}.{signature}")
}

/// The digest of a body, in hexadecimal.
pub(super) fn md5(text: &str) -> String {
    hex(&Md5::digest(text.as_bytes()))
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors_are_met() {
        assert_eq!(md5("abc"), "900150983cd24fb0d6963f7d28e17f72");
        let signature = hex(&hmac("Jefe", "what do ya want for nothing?"));
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(token("key", "{}").starts_with("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30."));
    }
}
