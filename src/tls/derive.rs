//! HKDF for the handshake, over HMAC keys that are set up once.
//!
//! Owns the key of one extraction. The library's own HKDF prepares the HMAC key anew for each of the dozen secrets that are
//! expanded from one; this keeps it prepared. Invariant: the same secrets as [RFC 5869] gives, and what it writes down of them
//! is cleared: keys by the library, the rest here.
//!
//! [RFC 5869]: https://www.rfc-editor.org/rfc/rfc5869

use std::sync::LazyLock;

use aws_lc_rs::hmac::{Algorithm, HMAC_SHA256, HMAC_SHA384, Key};
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroizing;

/// Most bytes of a hash that a TLS 1.3 suite uses.
const HASH_BYTES_MAX: usize = 48;

/// Most blocks that HKDF-Expand gives (RFC 5869 2.3).
const BLOCKS_MAX: usize = 255;

/// The three suites with this derivation. Made once per process: rustls wants them for ever.
pub(super) static SUITES: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| {
    [
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ]
    .map(suite)
});

/// The same suites with this derivation.
pub(super) fn suites(usual: &[SupportedCipherSuite]) -> Vec<SupportedCipherSuite> {
    counterparts(&*SUITES, usual)
}

/// Those of `own` that are the suites of `usual`, in the order of `usual`.
pub(super) fn counterparts(own: &[SupportedCipherSuite], usual: &[SupportedCipherSuite]) -> Vec<SupportedCipherSuite> {
    let counterpart = |suite: &SupportedCipherSuite| own.iter().find(|own| own.suite() == suite.suite()).copied();
    usual.iter().filter_map(counterpart).collect()
}

fn suite(usual: SupportedCipherSuite) -> SupportedCipherSuite {
    let Some(usual) = usual.tls13() else { return usual };
    let derivation: &'static dyn Hkdf = match usual.common.hash_provider.output_len() {
        32 => &Derivation(HMAC_SHA256),
        _ => &Derivation(HMAC_SHA384),
    };
    with_hkdf(usual, derivation)
}

/// The same suite with another HKDF. Leaked: rustls wants suites for ever.
pub(super) fn with_hkdf(usual: &Tls13CipherSuite, hkdf: &'static dyn Hkdf) -> SupportedCipherSuite {
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: usual.common.suite,
            hash_provider: usual.common.hash_provider,
            confidentiality_limit: usual.common.confidentiality_limit,
        },
        hkdf_provider: hkdf,
        aead_alg: usual.aead_alg,
        quic: None,
    })))
}

struct Derivation(Algorithm);

impl Derivation {
    /// HKDF-Extract (RFC 5869 2.2). Without a salt, one of zeros as long as the hash.
    fn extract(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let zeros = [0; HASH_BYTES_MAX];
        let salt = Key::new(self.0, salt.unwrap_or(&zeros[..self.hash_bytes()]));
        let mut extracted = Zeroizing::new([0; HASH_BYTES_MAX]);
        sign(&salt, secret, &mut extracted);
        Box::new(Expander(Key::new(self.0, &extracted[..self.hash_bytes()])))
    }

    fn hash_bytes(&self) -> usize {
        self.0.digest_algorithm().output_len()
    }
}

impl Hkdf for Derivation {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract(salt, &[0; HASH_BYTES_MAX][..self.hash_bytes()])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.extract(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Expander(Key::new(self.0, okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        // Of a message that the peer is sent: no secret.
        Tag::new(aws_lc_rs::hmac::sign(&Key::new(self.0, key.as_ref()), message).as_ref())
    }
}

/// HKDF-Expand (RFC 5869 2.3) of one secret.
struct Expander(Key);

impl Expander {
    /// Fills `output`, which is at most [`BLOCKS_MAX`] blocks long.
    fn expand(&self, info: &[&[u8]], output: &mut [u8]) {
        let hash_bytes = self.hash_len();
        let info_bytes: usize = info.iter().map(|part| part.len()).sum();
        let mut message = Zeroizing::new(Vec::with_capacity(hash_bytes + info_bytes + 1)); // never grows
        let mut last = Zeroizing::new([0; HASH_BYTES_MAX]);
        for (index, block) in output.chunks_mut(hash_bytes).enumerate() {
            message.clear();
            if index > 0 {
                message.extend_from_slice(&last[..hash_bytes]);
            }
            info.iter().for_each(|part| message.extend_from_slice(part));
            message.push(index as u8 + 1); // at most BLOCKS_MAX
            sign(&self.0, &message, &mut last);
            block.copy_from_slice(&last[..block.len()]);
        }
    }
}

impl HkdfExpander for Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        if output.len() > BLOCKS_MAX * self.hash_len() {
            return Err(OutputLengthError);
        }
        self.expand(info, output);
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let mut block = Zeroizing::new([0; HASH_BYTES_MAX]);
        let block = &mut block[..self.hash_len()];
        self.expand(info, block);
        OkmBlock::new(block)
    }

    fn hash_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}

/// HMAC into memory of the caller, who clears it: the library's `Tag` is copied about and is not.
fn sign(key: &Key, message: &[u8], output: &mut [u8; HASH_BYTES_MAX]) {
    aws_lc_rs::hmac::sign_to_buffer(key, message, output).expect("there is room for the hash of any suite");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: Derivation = Derivation(HMAC_SHA256);
    const SHA384: Derivation = Derivation(HMAC_SHA384);

    fn bytes(hex: &str) -> Vec<u8> {
        let pair = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap();
        hex.as_bytes().chunks(2).map(pair).collect()
    }

    fn counted(range: core::ops::RangeInclusive<u8>) -> Vec<u8> {
        range.collect()
    }

    #[test]
    fn the_vectors_of_rfc_5869() {
        let of_three_blocks = "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e\
            590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87";
        let without_salt = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8";
        for (secret, salt, info, expected) in [
            (
                vec![0x0b; 22],
                Some(counted(0..=0x0c)),
                counted(0xf0..=0xf9),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            ),
            (counted(0..=0x4f), Some(counted(0x60..=0xaf)), counted(0xb0..=0xff), of_three_blocks),
            (vec![0x0b; 22], Some(Vec::new()), Vec::new(), without_salt),
            (vec![0x0b; 22], None, Vec::new(), without_salt),
        ] {
            let expander = SHA256.extract_from_secret(salt.as_deref(), &secret);
            let expected = bytes(expected);
            let mut output = vec![0; expected.len()];
            // However the info is cut.
            for info in [&[&info[..]][..], &[&info[..info.len() / 3], &[], &info[info.len() / 3..]]] {
                expander.expand_slice(info, &mut output).unwrap();
                assert_eq!(output, expected);
                assert_eq!(expander.expand_block(info).as_ref(), &expected[..32]);
            }
        }
    }

    /// RFC 8448 section 3: from the early secret of a handshake without a ticket.
    #[test]
    fn a_secret_of_zeros_is_as_long_as_the_hash() {
        let of_nothing = bytes("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let info = [&[0, 32, 13][..], b"tls13 derived", &[32], &of_nothing];
        let derived = bytes("6f2615a108c702c5678f54fc9dbab69716c076189c48250cebeac3576c3611ba");
        assert_eq!(SHA256.extract_from_zero_ikm(None).expand_block(&info).as_ref(), derived);
        let zeros = [0; 48];
        let of_zeros = SHA384.extract_from_secret(Some(&zeros), &zeros).expand_block(&info);
        assert_eq!(SHA384.extract_from_zero_ikm(None).expand_block(&info).as_ref(), of_zeros.as_ref());
    }

    /// The library's own HKDF says the same of either hash, up to the longest output there is.
    #[test]
    fn every_length_up_to_255_blocks_and_none_beyond() {
        struct Length(usize);
        impl aws_lc_rs::hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        for (derivation, algorithm) in [(SHA256, aws_lc_rs::hkdf::HKDF_SHA256), (SHA384, aws_lc_rs::hkdf::HKDF_SHA384)]
        {
            let (secret, salt, info) = (counted(1..=48), counted(7..=38), [&b"one"[..], b"", b"two"]);
            let hash_bytes = derivation.hash_bytes();
            let expander = derivation.extract_from_secret(Some(&salt), &secret);
            let usual = aws_lc_rs::hkdf::Salt::new(algorithm, &salt).extract(&secret);
            let of_key = derivation.expander_for_okm(&OkmBlock::new(&secret[..hash_bytes]));
            let usual_of_key = aws_lc_rs::hkdf::Prk::new_less_safe(algorithm, &secret[..hash_bytes]);
            for length in [1, hash_bytes, hash_bytes + 1, 3 * hash_bytes - 1, BLOCKS_MAX * hash_bytes] {
                for (expander, usual) in [(&expander, &usual), (&of_key, &usual_of_key)] {
                    let (mut output, mut expected) = (vec![0; length], vec![0; length]);
                    expander.expand_slice(&info, &mut output).unwrap();
                    usual.expand(&info, Length(length)).unwrap().fill(&mut expected).unwrap();
                    assert!(output == expected, "{length} bytes");
                }
            }
            let mut output = vec![7; BLOCKS_MAX * hash_bytes + 1];
            assert!(expander.expand_slice(&info, &mut output).is_err());
            assert!(output.iter().all(|byte| *byte == 7), "nothing of it was written");
        }
    }
}
