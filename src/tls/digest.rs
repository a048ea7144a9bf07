//! SHA-256, by the library that the record layer uses.
//!
//! Owns nothing. Invariant: the same bytes give the same digest on every node.

use aws_lc_rs::digest::{SHA256, digest};

/// Bytes of a digest.
pub(super) const DIGEST_BYTES: usize = 32;

pub(super) fn sha256(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}
