//! HKDF for the handshake, over HMAC keys that are set up once.
//!
//! Owns the key of one extraction. The library's own HKDF prepares the HMAC key anew for each of the dozen secrets that are
//! expanded from one; this keeps it prepared. Invariant: the same secrets as [RFC 5869] gives.
//!
//! [RFC 5869]: https://www.rfc-editor.org/rfc/rfc5869

use std::sync::LazyLock;

use aws_lc_rs::hmac::{Algorithm, Context, HMAC_SHA256, HMAC_SHA384, Key};
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

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
    let prepared = |suite: &SupportedCipherSuite| SUITES.iter().find(|own| own.suite() == suite.suite()).copied();
    usual.iter().filter_map(prepared).collect()
}

fn suite(usual: SupportedCipherSuite) -> SupportedCipherSuite {
    let Some(usual) = usual.tls13() else { return usual };
    let derivation: &'static dyn Hkdf = match usual.common.hash_provider.output_len() {
        32 => &Derivation(HMAC_SHA256),
        _ => &Derivation(HMAC_SHA384),
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: usual.common.suite,
            hash_provider: usual.common.hash_provider,
            confidentiality_limit: usual.common.confidentiality_limit,
        },
        hkdf_provider: derivation,
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
        Box::new(Expander(Key::new(self.0, aws_lc_rs::hmac::sign(&salt, secret).as_ref())))
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
        Tag::new(aws_lc_rs::hmac::sign(&Key::new(self.0, key.as_ref()), message).as_ref())
    }
}

/// HKDF-Expand (RFC 5869 2.3) of one secret.
struct Expander(Key);

impl HkdfExpander for Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let hash_bytes = self.hash_len();
        if output.len() > BLOCKS_MAX * hash_bytes {
            return Err(OutputLengthError);
        }
        let mut last: Option<aws_lc_rs::hmac::Tag> = None;
        for (index, block) in output.chunks_mut(hash_bytes).enumerate() {
            let mut context = Context::with_key(&self.0);
            if let Some(last) = &last {
                context.update(last.as_ref());
            }
            info.iter().for_each(|part| context.update(part));
            context.update(&[index as u8 + 1]); // at most BLOCKS_MAX
            let tag = context.sign();
            block.copy_from_slice(&tag.as_ref()[..block.len()]);
            last = Some(tag);
        }
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let mut context = Context::with_key(&self.0);
        info.iter().for_each(|part| context.update(part));
        context.update(&[1]);
        OkmBlock::new(context.sign().as_ref())
    }

    fn hash_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}
