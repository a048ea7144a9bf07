//! What a ticket's value says, as rustls encodes it (`ServerSessionValue` of the pinned version).
//!
//! Owns nothing. rustls does not tell whether it will take early data with a ticket; the answer follows from these few
//! fields, and the tests of early data compare it with what rustls then does.

use rustls::pki_types::UnixTime;

use super::reader::Reader;

/// A ticket's age as the client tells it may differ so much from what the clocks say (as in rustls), milliseconds.
const AGE_SKEW_MS_MAX: u32 = 60_000;

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
        let (created_s, age_offset_ms) = (reader.u64()?, reader.u32()?);
        reader.0.is_empty().then_some(TicketFacts { alpn, created_s, age_offset_ms })
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
