//! The part of TLS 1.3's key schedule that follows a handshake (RFC 8446 sections 7.1 to 7.3).
//!
//! Owns nothing: secrets in, keys and secrets out. Invariant: no secret is copied to where it is not cleared.

use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::Zeroizing;

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

/// The secret after a key update (RFC 8446 7.2).
pub(super) fn next_secret(suite: Suite, secret: &Secret) -> Result<Secret, TlsError> {
    let mut next = Zeroizing::new([0; 48]);
    let length = secret.as_bytes().len();
    expand_label(suite, secret, b"traffic upd", &mut next[..length])?;
    Secret::new(&next[..length]).ok_or(TlsError::Internal("secret too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// RFC 8448 section 3: the application traffic keys of a simple handshake.
    #[test]
    fn keys_follow_from_secrets_as_published() {
        for (secret, key, iv) in [
            (
                "a1 1a f9 f0 55 31 f8 56 ad 47 11 6b 45 a9 50 32 82 04 b4 f4 4b fb 6b 3a 4b 4f 1f 3f cb 63 16 43",
                "9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56",
                "cf 78 2b 88 dd 83 54 9a ad f1 e9 84",
            ),
            (
                "9e 40 64 6c e7 9a 7f 9d c0 5a f8 88 9b ce 65 52 87 5a fa 0b 06 df 00 87 f7 92 eb b7 c1 75 04 a5",
                "17 42 2d da 59 6e d5 d9 ac d8 90 e3 c6 3f 50 51",
                "5b 78 92 3d ee 08 57 90 33 e5 23 d9",
            ),
        ] {
            let secret = Secret::new(&bytes(secret)).unwrap();
            let (mut found_key, mut found_iv) = ([0; 16], [0; 12]);
            expand_label(Suite::Aes128Gcm, &secret, b"key", &mut found_key).unwrap();
            expand_label(Suite::Aes128Gcm, &secret, b"iv", &mut found_iv).unwrap();
            assert_eq!((&found_key[..], &found_iv[..]), (&bytes(key)[..], &bytes(iv)[..]));
        }
    }

    /// The tests against rustls and openssl say that the next secret is the right one; this says that it is another.
    #[test]
    fn the_next_secret_has_the_length_of_its_hash() {
        for (suite, length) in [(Suite::Aes128Gcm, 32), (Suite::Aes256Gcm, 48), (Suite::Chacha20Poly1305, 32)] {
            let secret = Secret::new(&[7; 48][..length]).unwrap();
            let next = next_secret(suite, &secret).unwrap();
            assert!(next.as_bytes().len() == length && next.as_bytes() != secret.as_bytes());
        }
        assert!(Secret::new(&[0; 49]).is_none());
    }
}
