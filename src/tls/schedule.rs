//! The part of TLS 1.3's key schedule that follows a handshake (RFC 8446 sections 7.1 to 7.3).
//!
//! Owns nothing: secrets in, keys and secrets out. Invariant: no secret is copied to where it is not cleared.

use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

use super::Suite;
use super::desk::Secret;
use super::error::TlsError;

const LABEL_PREFIX: &[u8] = b"tls13 ";

/// A length, as the HKDF of the library wants it.
#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 7.1).
pub(super) fn expand_label(suite: Suite, secret: &Secret, label: &[u8], out: &mut [u8]) -> Result<(), TlsError> {
    let failed = |_| TlsError::Internal("key derivation failed");
    let algorithm = match suite {
        Suite::Aes128Gcm | Suite::Chacha20Poly1305 => HKDF_SHA256,
        Suite::Aes256Gcm => HKDF_SHA384,
    };
    let [high, low] = u16::try_from(out.len()).map_err(|_| TlsError::Internal("key too long"))?.to_be_bytes();
    let label_bytes =
        u8::try_from(LABEL_PREFIX.len() + label.len()).map_err(|_| TlsError::Internal("label too long"))?;
    let info = [&[high, low, label_bytes][..], LABEL_PREFIX, label, &[0]];
    let prk = Prk::new_less_safe(algorithm, secret.as_bytes());
    prk.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).map_err(failed)
}
