//! Fields taken from the front of bytes, as TLS writes them (RFC 8446 section 3).
//!
//! Owns nothing. Invariant: nothing is taken from beyond the end; what is too short gives `None`.

/// What has not been taken yet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte that is 1, or something else.
    pub(super) fn flag(&mut self) -> Option<bool> {
        self.array().map(|byte| byte == [1])
    }

    /// What stands behind its length.
    pub(super) fn vector<const LENGTH_BYTES: usize>(&mut self) -> Option<&'a [u8]> {
        let length = self.array::<LENGTH_BYTES>()?;
        self.take(length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_in_order_and_never_from_beyond_the_end() {
        let mut reader = Reader(&[1, 0, 2, 7, 8, 0, 0, 1, 9, 0]);
        assert_eq!(
            (reader.flag(), reader.vector::<2>(), reader.vector::<3>()),
            (Some(true), Some(&[7, 8][..]), Some(&[9][..]))
        );
        assert_eq!((reader.u16(), reader.u32(), reader.u64(), reader.take(2)), (None, None, None, None));
        assert_eq!((reader.flag(), reader.flag(), reader.0.len()), (Some(false), None, 0));
        assert_eq!(Reader(&[2, 7]).vector::<1>(), None);
    }
}
