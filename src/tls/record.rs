//! The record layer of TLS 1.3 (RFC 8446 section 5): one direction of one connection, opened and sealed in place.
//!
//! Owns a traffic secret, the cipher made from it and the count of records it has protected; never buffers, never
//! allocates per record. Invariant: a sequence number is used once per key, and a key is not used past its limit.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroizing;

use super::desk::Secret;
use super::error::TlsError;
use super::{Suite, schedule};

/// Bytes of a record's header: content type, legacy version, length (RFC 8446 5.1).
pub const RECORD_HEADER_BYTES: usize = 5;
/// Most plaintext bytes in one record (RFC 8446 5.1).
pub const PLAINTEXT_BYTES_MAX: usize = 1 << 14;
/// Bytes a sealed record adds behind its plaintext: content type and tag.
pub const RECORD_TRAILER_BYTES: usize = 1 + TAG_BYTES;
/// Longest record, header included: 2^14 plaintext bytes and 256 bytes of expansion (RFC 8446 5.2).
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + CIPHERTEXT_BYTES_MAX;
/// Records sealed with one key before a key update is due: half of what AES-GCM may see, so that one that waits for its
/// turn is not too late.
pub const KEY_UPDATE_RECORDS: u64 = RECORDS_PER_KEY_MAX / 2;

/// Records that one key may seal: RFC 8446 5.5 allows AES-GCM 2^24.5 full-size records.
const RECORDS_PER_KEY_MAX: u64 = 1 << 24;
const CIPHERTEXT_BYTES_MAX: usize = PLAINTEXT_BYTES_MAX + 256;
const TAG_BYTES: usize = 16;
const IV_BYTES: usize = 12;
const KEY_BYTES_MAX: usize = 32;

const _: () = assert!(PLAINTEXT_BYTES_MAX + RECORD_TRAILER_BYTES <= CIPHERTEXT_BYTES_MAX);
const _: () = assert!(CIPHERTEXT_BYTES_MAX <= u16::MAX as usize);

/// What a record carries (RFC 8446 5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ContentType {
    ChangeCipherSpec,
    Alert,
    Handshake,
    ApplicationData,
}

impl ContentType {
    pub(super) const fn code(self) -> u8 {
        match self {
            ContentType::ChangeCipherSpec => 20,
            ContentType::Alert => 21,
            ContentType::Handshake => 22,
            ContentType::ApplicationData => 23,
        }
    }

    pub(super) const fn from_code(code: u8) -> Option<ContentType> {
        match code {
            20 => Some(ContentType::ChangeCipherSpec),
            21 => Some(ContentType::Alert),
            22 => Some(ContentType::Handshake),
            23 => Some(ContentType::ApplicationData),
            _ => None,
        }
    }
}

/// Length in bytes of the record that starts with `bytes`, header included; `None` until its header is there.
///
/// # Errors
/// [`TlsError::PlainHttp`] and [`TlsError::NotTls`] when it is no record at all (told from the first byte), and
/// [`TlsError::RecordOverflow`] when it is longer than any record may be.
pub fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, TlsError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if ContentType::from_code(first).is_none() {
        return Err(if is_http(bytes) { TlsError::PlainHttp } else { TlsError::NotTls });
    }
    // RFC 8446 5.1: the version must be ignored; but all versions there ever were begin with 3, and what does not is
    // something else.
    if bytes.get(1).is_some_and(|&major| major != 3) {
        return Err(TlsError::NotTls);
    }
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > CIPHERTEXT_BYTES_MAX {
        return Err(TlsError::RecordOverflow);
    }
    Ok(Some(RECORD_HEADER_BYTES + length))
}

/// Whether what there is so far is the beginning of an HTTP request.
fn is_http(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI "];
    METHODS.iter().any(|method| method.iter().zip(bytes).all(|(expected, byte)| expected == byte))
}

/// Appends a record that is not encrypted.
pub(super) fn put_plain(content: ContentType, payload: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(payload.len()).expect("only alerts of two bytes are sent in the clear");
    let [high, low] = length.to_be_bytes();
    out.extend_from_slice(&[content.code(), 3, 3, high, low]);
    out.extend_from_slice(payload);
}

fn algorithm(suite: Suite) -> &'static Algorithm {
    match suite {
        Suite::Aes128Gcm => &AES_128_GCM,
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::Chacha20Poly1305 => &CHACHA20_POLY1305,
    }
}

/// The protection of one direction under one traffic secret after another.
pub(super) struct Protection {
    /// What is derived from the secret. `None` while the connection rests; boxed, so that one that rests is small.
    cipher: Option<Box<Cipher>>,
    secret: Secret,
    /// Records protected so far with this key, which is the sequence number of the next (RFC 8446 5.3).
    sequence: u64,
    suite: Suite,
}

struct Cipher {
    key: LessSafeKey,
    iv: [u8; IV_BYTES],
}

impl Cipher {
    /// RFC 8446 7.3.
    fn new(suite: Suite, secret: &Secret) -> Result<Box<Cipher>, TlsError> {
        let (mut key, mut iv) = (Zeroizing::new([0; KEY_BYTES_MAX]), [0; IV_BYTES]);
        let key = &mut key[..algorithm(suite).key_len()];
        schedule::expand_label(suite, secret, b"key", key)?;
        schedule::expand_label(suite, secret, b"iv", &mut iv)?;
        Cipher::from_keys(suite, key, iv)
    }

    fn from_keys(suite: Suite, key: &[u8], iv: [u8; IV_BYTES]) -> Result<Box<Cipher>, TlsError> {
        let unbound = UnboundKey::new(algorithm(suite), key);
        let key = LessSafeKey::new(unbound.map_err(|_| TlsError::Internal("cipher refused its key"))?);
        Ok(Box::new(Cipher { key, iv }))
    }

    /// The nonce of a record: the IV with the sequence number folded in (RFC 8446 5.3).
    fn nonce(&self, sequence: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[IV_BYTES - 8..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Protection {
    /// Begins with the secret that a handshake led to, with which `sequence` records have been protected already.
    pub(super) fn new(suite: Suite, secret: Secret, sequence: u64) -> Protection {
        Protection { cipher: None, secret, sequence, suite }
    }

    /// The same, with what rustls has derived from the secret already.
    pub(super) fn derived(
        suite: Suite,
        secret: Secret,
        (sequence, derived): (u64, ConnectionTrafficSecrets),
    ) -> Result<Protection, TlsError> {
        let unknown = TlsError::Internal("keys of another cipher suite");
        let (found, key, iv) = match derived {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::Chacha20Poly1305, key, iv),
            _ => return Err(unknown),
        };
        if found != suite {
            return Err(unknown);
        }
        let iv = iv.as_ref().try_into().map_err(|_| unknown)?;
        let cipher = Some(Cipher::from_keys(suite, key.as_ref(), iv)?);
        Ok(Protection { cipher, secret, sequence, suite })
    }

    /// Goes on with the next secret (RFC 8446 7.2). The old one is gone.
    pub(super) fn update(&mut self) -> Result<(), TlsError> {
        self.secret = schedule::next_secret(self.suite, &self.secret)?;
        (self.cipher, self.sequence) = (None, 0);
        Ok(())
    }

    /// Lets go of what the secret can give again.
    pub(super) fn rest(&mut self) {
        self.cipher = None;
    }

    /// The cipher, made anew after a rest.
    #[inline]
    fn cipher(&mut self) -> Result<&Cipher, TlsError> {
        if self.cipher.is_none() {
            self.cipher = Some(Cipher::new(self.suite, &self.secret)?);
        }
        self.cipher.as_deref().ok_or(TlsError::Internal("no cipher"))
    }

    /// Records protected so far with this key.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Opens one whole record in place. Gives its content type and its plaintext, padding removed.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(ContentType, &'a [u8]), TlsError> {
        let Some((header, body)) = record.split_first_chunk_mut::<RECORD_HEADER_BYTES>() else {
            return Err(TlsError::Misuse("not a whole record"));
        };
        if header[0] != ContentType::ApplicationData.code() {
            // RFC 8446 5: nothing travels in the clear once the handshake is done.
            return Err(TlsError::Unexpected("record in the clear after the handshake"));
        }
        if body.len() > CIPHERTEXT_BYTES_MAX {
            return Err(TlsError::RecordOverflow);
        }
        let sequence = self.sequence;
        let cipher = self.cipher()?;
        let opened = cipher.key.open_in_place(cipher.nonce(sequence), Aad::from(*header), body);
        let opened = opened.map_err(|_| TlsError::BadRecordMac)?;
        // A peer that sends 2^64 records under one key is not one this process lives to meet.
        self.sequence = self.sequence.checked_add(1).ok_or(TlsError::KeyExhausted)?;
        // RFC 8446 5.4: the last byte that is not zero is the content type.
        let Some(content_at) = opened.iter().rposition(|&byte| byte != 0) else {
            return Err(TlsError::Unexpected("record without a content type"));
        };
        if content_at > PLAINTEXT_BYTES_MAX || opened.len() > PLAINTEXT_BYTES_MAX + 1 {
            return Err(TlsError::RecordOverflow);
        }
        let content = ContentType::from_code(opened[content_at]);
        let content = content.ok_or(TlsError::Unexpected("record of an unknown content type"))?;
        Ok((content, &opened[..content_at]))
    }

    /// Seals what stands behind a header's place at `out[start..]`, in place, and completes header and trailer.
    pub(super) fn seal(&mut self, content: ContentType, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
        let plaintext_at = start.saturating_add(RECORD_HEADER_BYTES);
        let Some(plaintext_bytes) = out.len().checked_sub(plaintext_at) else {
            return Err(TlsError::Misuse("no place for a record header"));
        };
        if plaintext_bytes > PLAINTEXT_BYTES_MAX {
            return Err(TlsError::Misuse("more plaintext than a record may hold"));
        }
        if self.sequence >= RECORDS_PER_KEY_MAX {
            return Err(TlsError::KeyExhausted);
        }
        let sealed_bytes = u16::try_from(plaintext_bytes + RECORD_TRAILER_BYTES)
            .expect("a record that holds at most 2^14 bytes is shorter than 2^16");
        let [high, low] = sealed_bytes.to_be_bytes();
        // RFC 8446 5.2: on the outside every protected record is application data of TLS 1.2.
        let header = [ContentType::ApplicationData.code(), 3, 3, high, low];
        let sequence = self.sequence;
        let cipher = self.cipher()?;
        out[start..plaintext_at].copy_from_slice(&header);
        out.push(content.code());
        let mut tag = [0; TAG_BYTES];
        cipher
            .key
            .seal_in_place_scatter(cipher.nonce(sequence), Aad::from(header), &mut out[plaintext_at..], &[], &mut tag)
            .map_err(|_| TlsError::Internal("cipher refused to seal"))?;
        out.extend_from_slice(&tag);
        self.sequence += 1;
        Ok(())
    }

    /// Appends a record that holds `payload`. On an error nothing is appended.
    pub(super) fn put(&mut self, content: ContentType, payload: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        out.extend_from_slice(payload);
        self.seal(content, out, start).inspect_err(|_| out.truncate(start))
    }
}

#[cfg(test)]
impl Protection {
    /// A record with this inner plaintext, content type and padding included, well-formed or not.
    pub(super) fn seal_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + TAG_BYTES).unwrap().to_be_bytes();
        let mut record = vec![23, 3, 3, high, low];
        let aad = Aad::from([23, 3, 3, high, low]);
        record.extend_from_slice(inner);
        let mut tag = [0; TAG_BYTES];
        let sequence = self.sequence;
        let cipher = self.cipher().unwrap();
        let nonce = cipher.nonce(sequence);
        cipher.key.seal_in_place_scatter(nonce, aad, &mut record[RECORD_HEADER_BYTES..], &[], &mut tag).unwrap();
        record.extend_from_slice(&tag);
        self.sequence += 1;
        record
    }

    /// As if `count` records had been protected.
    pub(super) fn skip(&mut self, count: u64) {
        self.sequence += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Pair, hostile};
    use super::*;

    #[test]
    fn lengths_are_read_and_what_is_no_record_is_told_apart() {
        assert_eq!(record_bytes(b""), Ok(None));
        assert_eq!(record_bytes(&[22, 3, 1, 0]), Ok(None));
        assert_eq!(record_bytes(&[22, 3, 1, 2, 1, 0xff]), Ok(Some(5 + 513)));
        assert_eq!(record_bytes(&[23, 3, 3, 0x41, 0]), Ok(Some(RECORD_BYTES_MAX)));
        assert_eq!(record_bytes(&[23, 3, 3, 0x41, 1]), Err(TlsError::RecordOverflow));
        assert_eq!(record_bytes(b"GET / HTTP/1.1\r\n"), Err(TlsError::PlainHttp));
        assert_eq!(record_bytes(b"P"), Err(TlsError::PlainHttp));
        assert_eq!(record_bytes(b"SSH-2.0-"), Err(TlsError::NotTls));
        assert_eq!(record_bytes(&[0x80, 0x2e, 1]), Err(TlsError::NotTls), "SSL 2");
        assert_eq!(record_bytes(&[22, 2]), Err(TlsError::NotTls));
        assert_eq!(record_bytes(&[24, 3, 3, 0, 1]), Err(TlsError::NotTls));
    }

    #[test]
    fn sealing_refuses_what_is_no_record_and_leaves_it_unchanged() {
        let mut pair = Pair::established();
        for (bytes, start) in [(vec![1; 4], 0), (vec![1; 9], 5), (vec![1; 9], usize::MAX), (vec![1; 16_390], 0)] {
            let mut out = bytes.clone();
            assert!(matches!(pair.client.seal(&mut out, start), Err(TlsError::Misuse(_))), "{start}");
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn a_key_is_not_used_past_its_limit() {
        let mut pair = Pair::established();
        assert!(!pair.client.key_update_due());
        let used = hostile(&mut pair.client).sequence();
        hostile(&mut pair.client).skip(RECORDS_PER_KEY_MAX - 1 - used);
        assert!(pair.client.key_update_due());
        let mut out = vec![0; RECORD_HEADER_BYTES];
        pair.client.seal(&mut out, 0).unwrap();
        let mut out = vec![0; RECORD_HEADER_BYTES];
        assert_eq!(pair.client.seal(&mut out, 0), Err(TlsError::KeyExhausted));
        assert_eq!(out, [0; RECORD_HEADER_BYTES]);
    }
}
