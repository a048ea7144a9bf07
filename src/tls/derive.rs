//! Hashing for the handshake: the transcript, and HKDF over HMAC keys that are set up once.
//!
//! Owns the key of one extraction. rustls's provider prepares the HMAC key anew for each of the dozen secrets that are
//! expanded from one; this keeps it prepared. Invariant: the same secrets as [RFC 5869] gives. What is written down of them here is
//! cleared, and so are the states of `hmac` and `sha2` when they are dropped; what those two leave on the stack while they
//! compute is not, and lasts until the next calls write over it.
//!
//! The hashes are not AWS-LC's, which does the rest of the cryptography: a handshake takes some forty of a hundred bytes each,
//! and AWS-LC spends three quarters of their time on setting up, copying and clearing its contexts.
//!
//! [RFC 5869]: https://www.rfc-editor.org/rfc/rfc5869

use std::marker::PhantomData;
use std::sync::LazyLock;

use hmac::digest::{Digest, FixedOutput, block_api::EagerHash};
use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};
use sha2::{Sha256, Sha384};
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
    let (transcript, derivation): (&'static dyn Hash, &'static dyn Hkdf) = match usual.common.hash_provider.algorithm()
    {
        HashAlgorithm::SHA256 => (&Transcripts(HashAlgorithm::SHA256, PhantomData::<Sha256>), &SHA256),
        _ => (&Transcripts(HashAlgorithm::SHA384, PhantomData::<Sha384>), &SHA384),
    };
    with_hashing(usual, transcript, derivation)
}

/// The same suite with another HKDF, and another hash for the transcript. Leaked: rustls wants suites for ever.
pub(super) fn with_hashing(
    usual: &Tls13CipherSuite,
    transcript: &'static dyn Hash,
    hkdf: &'static dyn Hkdf,
) -> SupportedCipherSuite {
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: usual.common.suite,
            hash_provider: transcript,
            confidentiality_limit: usual.common.confidentiality_limit,
        },
        hkdf_provider: hkdf,
        aead_alg: usual.aead_alg,
        quic: None,
    })))
}

/// A hash that HMAC can prepare keys for.
trait Hashing: EagerHash<Core: Send + Sync> + Digest + Clone + Send + Sync + 'static {}

impl<D: EagerHash<Core: Send + Sync> + Digest + Clone + Send + Sync + 'static> Hashing for D {}

/// Hashes of what a handshake has said so far.
struct Transcripts<D>(HashAlgorithm, PhantomData<D>);

struct Transcript<D>(D);

impl<D: Hashing> Hash for Transcripts<D> {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Transcript(D::new()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        Output::new(&D::digest(data))
    }

    fn output_len(&self) -> usize {
        <D as Digest>::output_size()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0
    }
}

impl<D: Hashing> Context for Transcript<D> {
    fn fork_finish(&self) -> Output {
        Output::new(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Transcript(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        Output::new(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }
}

struct Derivation<D>(PhantomData<D>);

static SHA256: Derivation<Sha256> = Derivation(PhantomData);
static SHA384: Derivation<Sha384> = Derivation(PhantomData);

impl<D: Hashing> Derivation<D> {
    const ZEROS: [u8; HASH_BYTES_MAX] = [0; HASH_BYTES_MAX];

    /// HKDF-Extract (RFC 5869 2.2). Without a salt, one of zeros as long as the hash.
    fn extract(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let mut extracted = Zeroizing::new([0; HASH_BYTES_MAX]);
        let extracted = &mut extracted[..<D as Digest>::output_size()];
        sign(keyed::<D>(salt.unwrap_or(&Self::ZEROS[..extracted.len()])), secret, extracted);
        Box::new(Expander(keyed::<D>(extracted)))
    }
}

impl<D: Hashing> Hkdf for Derivation<D> {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract(salt, &Self::ZEROS[..<D as Digest>::output_size()])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.extract(salt, secret)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Expander(keyed::<D>(okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        // Of a message that the peer is sent: no secret.
        let mut tag = [0; HASH_BYTES_MAX];
        let tag = &mut tag[..<D as Digest>::output_size()];
        sign(keyed::<D>(key.as_ref()), message, tag);
        Tag::new(tag)
    }
}

/// HKDF-Expand (RFC 5869 2.3) of one secret.
struct Expander<D: Hashing>(Hmac<D>);

impl<D: Hashing> Expander<D> {
    /// Fills `output`, which is at most [`BLOCKS_MAX`] blocks long.
    fn expand(&self, info: &[&[u8]], output: &mut [u8]) {
        let mut last = Zeroizing::new([0; HASH_BYTES_MAX]);
        let last = &mut last[..self.hash_len()];
        for (index, block) in output.chunks_mut(last.len()).enumerate() {
            let mut mac = self.0.clone();
            if index > 0 {
                mac.update(last);
            }
            info.iter().for_each(|part| mac.update(part));
            sign(mac, &[index as u8 + 1], last); // at most BLOCKS_MAX
            block.copy_from_slice(&last[..block.len()]);
        }
    }
}

impl<D: Hashing> HkdfExpander for Expander<D> {
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
        <D as Digest>::output_size()
    }
}

fn keyed<D: Hashing>(key: &[u8]) -> Hmac<D> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Ends `mac` with `message` into memory of the caller, as long as the hash, who clears it.
fn sign<D: Hashing>(mut mac: Hmac<D>, message: &[u8], output: &mut [u8]) {
    mac.update(message);
    mac.finalize_into(output.try_into().expect("as long as the hash"));
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let derivations: [(&dyn Hkdf, usize, _); 2] =
            [(&SHA256, 32, aws_lc_rs::hkdf::HKDF_SHA256), (&SHA384, 48, aws_lc_rs::hkdf::HKDF_SHA384)];
        for (derivation, hash_bytes, algorithm) in derivations {
            let (secret, salt, info) = (counted(1..=48), counted(7..=38), [&b"one"[..], b"", b"two"]);
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
