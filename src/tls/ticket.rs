//! What a ticket's value says, as rustls encodes it (`ServerSessionValue` of the pinned version).
//!
//! Owns nothing. rustls does not tell whether it will take early data with a ticket; the answer follows from these few
//! fields, and the tests of early data compare it with what rustls then does.

use rustls::pki_types::UnixTime;

/// A ticket's age as the client tells it may differ so much from what the clocks say (as in rustls), milliseconds.
const AGE_SKEW_MS_MAX: u32 = 60_000;
const AGE_OFFSET_BYTES: usize = 4;

/// What early data depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TicketFacts {
    alpn: Option<Box<[u8]>>,
    created_s: u64,
    age_offset_ms: u32,
}

impl TicketFacts {
    /// `None` when this is not a value of rustls's making.
    pub(super) fn read(value: &[u8]) -> Option<TicketFacts> {
        let mut reader = Reader(value);
        if reader.flag()? {
            reader.vector::<1>()?; // server name
        }
        reader.take(2 + 2)?; // version, suite
        reader.vector::<1>()?; // secret
        reader.take(1)?; // extended master secret, of TLS 1.2
        if reader.flag()? {
            reader.vector::<3>()?; // client's chain
        }
        let alpn = if reader.flag()? { Some(reader.vector::<1>()?.into()) } else { None };
        reader.vector::<2>()?; // application's data
        let (created, age_offset) = reader.0.split_first_chunk::<8>()?;
        Some(TicketFacts {
            alpn,
            created_s: u64::from_be_bytes(*created),
            age_offset_ms: u32::from_be_bytes(age_offset.try_into().ok()?),
        })
    }

    /// Whether rustls takes early data from a client that shows this ticket at `now`, its age as told by the client, on a
    /// connection that agreed on `alpn` (RFC 8446 4.2.10).
    pub(super) fn allows_early_data(&self, now: UnixTime, obfuscated_age: u32, alpn: Option<&[u8]>) -> bool {
        let client_age_ms = obfuscated_age.wrapping_sub(self.age_offset_ms);
        #[allow(clippy::cast_possible_truncation)] // as rustls does, and a ticket lives a day
        let server_age_ms = (now.as_secs().saturating_sub(self.created_s) as u32).saturating_mul(1000);
        server_age_ms.abs_diff(client_age_ms) <= AGE_SKEW_MS_MAX && self.alpn.as_deref() == alpn
    }
}

/// Changes a value so that rustls resumes with it and takes no early data: its age is off by 2^31 milliseconds.
pub(super) fn spoil_age(value: &mut [u8]) {
    if let Some(at) = value.len().checked_sub(AGE_OFFSET_BYTES) {
        value[at] ^= 0x80;
    }
}

/// Takes fields from the front; `None` when there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn flag(&mut self) -> Option<bool> {
        self.take(1).map(|byte| byte == [1])
    }

    fn vector<const LENGTH_BYTES: usize>(&mut self) -> Option<&'a [u8]> {
        let length = self.take(LENGTH_BYTES)?;
        self.take(length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }
}
