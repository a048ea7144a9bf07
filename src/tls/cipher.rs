//! The AEAD of a record layer: aws-lc's, or ring's where that is the faster one.
//!
//! aws-lc has AES-GCM for processors with AES-NI and for those with AVX-512. In between are those that do VAES on 256 bits and
//! have no AVX-512 (AMD's Zen 3, Intel's Alder Lake and its successors), on which ring is about twice as fast.
//! Owns a key and that choice. Never buffers; the numbers of records are the caller's.

use aws_lc_rs::aead as library;
use ring_crypto::aead as wide;

use super::Suite;

/// Bytes of the tag behind a ciphertext.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 12;

/// The cipher did not do what it was asked to: for opening, the ciphertext is not authentic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused;

/// A key, ready to be used.
pub(super) enum Aead {
    Library(library::LessSafeKey),
    Wide(wide::LessSafeKey),
}

/// Whose AES-GCM is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Maker {
    Library,
    Wide,
}

impl Maker {
    /// The faster one on this processor. Asking costs a load or two.
    #[cfg(target_arch = "x86_64")]
    fn faster(suite: Suite) -> Maker {
        use std::arch::is_x86_feature_detected as has;
        let is_wide = has!("vaes") && has!("vpclmulqdq") && has!("avx2") && !has!("avx512vl");
        if is_wide && suite != Suite::Chacha20Poly1305 { Maker::Wide } else { Maker::Library }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn faster(_: Suite) -> Maker {
        Maker::Library
    }
}

/// Length of a suite's key in bytes.
pub(super) fn key_bytes(suite: Suite) -> usize {
    match suite {
        Suite::Aes128Gcm => 16,
        Suite::Aes256Gcm | Suite::Chacha20Poly1305 => 32,
    }
}

impl Aead {
    /// A key of the suite's length.
    pub(super) fn new(suite: Suite, key: &[u8]) -> Result<Aead, Refused> {
        Aead::made_by(Maker::faster(suite), suite, key)
    }

    pub(super) fn made_by(maker: Maker, suite: Suite, key: &[u8]) -> Result<Aead, Refused> {
        match maker {
            Maker::Library => {
                let algorithm = match suite {
                    Suite::Aes128Gcm => &library::AES_128_GCM,
                    Suite::Aes256Gcm => &library::AES_256_GCM,
                    Suite::Chacha20Poly1305 => &library::CHACHA20_POLY1305,
                };
                let key = library::UnboundKey::new(algorithm, key).map_err(|_| Refused)?;
                Ok(Aead::Library(library::LessSafeKey::new(key)))
            }
            Maker::Wide => {
                let algorithm = match suite {
                    Suite::Aes128Gcm => &wide::AES_128_GCM,
                    Suite::Aes256Gcm => &wide::AES_256_GCM,
                    Suite::Chacha20Poly1305 => &wide::CHACHA20_POLY1305,
                };
                let key = wide::UnboundKey::new(algorithm, key).map_err(|_| Refused)?;
                Ok(Aead::Wide(wide::LessSafeKey::new(key)))
            }
        }
    }

    /// Opens ciphertext and tag in place; gives the plaintext.
    #[inline]
    pub(super) fn open<'a>(
        &self,
        nonce: [u8; NONCE_BYTES],
        header: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refused> {
        match self {
            Aead::Library(key) => {
                let nonce = library::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, library::Aad::from(header), sealed).map_err(|_| Refused)
            }
            Aead::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, wide::Aad::from(header), sealed).map_err(|_| Refused)
            }
        }
    }

    /// Seals in place; gives the tag.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        header: &[u8],
        plaintext: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        let mut tag = [0; TAG_BYTES];
        match self {
            Aead::Library(key) => {
                let nonce = library::Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_scatter(nonce, library::Aad::from(header), plaintext, &[], &mut tag)
                    .map_err(|_| Refused)?;
            }
            Aead::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                let sealed = key.seal_in_place_separate_tag(nonce, wide::Aad::from(header), plaintext);
                tag.copy_from_slice(sealed.map_err(|_| Refused)?.as_ref());
            }
        }
        Ok(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the processor, both are there: what one seals the other opens, to the byte, and nothing else.
    #[test]
    fn both_makers_are_the_same_cipher() {
        for suite in Suite::ALL {
            let key = &[0x5a; 32][..key_bytes(suite)];
            let makers = [Maker::Library, Maker::Wide];
            let ciphers = makers.map(|maker| Aead::made_by(maker, suite, key).expect("a key of the right length"));
            for bytes in [0, 1, 15, 16, 17, 95, 96, 255, 1370, 16_383, 16_385] {
                let plaintext: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
                let nonce = [bytes as u8; NONCE_BYTES];
                let sealed = [0, 1].map(|maker: usize| {
                    let mut sealed = plaintext.clone();
                    let tag = ciphers[maker].seal(nonce, b"head", &mut sealed).expect("within limits");
                    sealed.extend_from_slice(&tag);
                    sealed
                });
                assert_eq!(sealed[0], sealed[1]);
                for cipher in &ciphers {
                    assert_eq!(cipher.open(nonce, b"head", &mut sealed[0].clone()).as_deref(), Ok(&plaintext[..]));
                    assert!(cipher.open(nonce, b"herd", &mut sealed[0].clone()).is_err());
                    let mut broken = sealed[0].clone();
                    broken[bytes / 2] ^= 1;
                    assert!(cipher.open(nonce, b"head", &mut broken).is_err());
                    assert!(cipher.open(nonce, b"head", &mut [0; 15]).is_err());
                }
            }
            assert!(Aead::made_by(Maker::Wide, suite, &key[1..]).is_err());
            assert!(Aead::made_by(Maker::Library, suite, &key[1..]).is_err());
        }
    }
}
