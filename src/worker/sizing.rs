//! How large the records of a connection are: one packet each while it is cold, full ones once it is warm.
//!
//! A receiver can use nothing of a record before its last byte is there. On a cold connection that byte may come a round
//! trip after the first, or more when a packet is lost; on a warm one the loss of efficiency would matter more.
//! Owns that decision. Never reads a clock.

use std::time::Duration;

use crate::base::time::Time;
use crate::tls::{PLAINTEXT_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_TRAILER_BYTES};

/// Smallest packet that a path to a phone is expected to carry whole, in bytes: 1500 of an Ethernet less what a mobile
/// network puts around it (GTP-U over IPv4: 20 + 8 + 8). PPPoE, with 1492, is wider.
const PATH_BYTES: usize = 1500 - 36;

/// Headers of IPv6, and of TCP with timestamps, in bytes. IPv4 takes 20 less.
const PACKET_HEADER_BYTES: usize = 40 + 20 + 12;

/// Plaintext of a record that fits one packet, in bytes: 1370.
pub(super) const RECORD_BYTES_COLD: usize =
    PATH_BYTES - PACKET_HEADER_BYTES - RECORD_HEADER_BYTES - RECORD_TRAILER_BYTES;

/// A connection is warm after so many bytes without a pause: about what a congestion window has grown to by then, so that
/// a full record no longer spans round trips.
const WARM_AFTER_BYTES: u32 = 64 * 1024;

/// After a pause this long a connection is cold again: congestion windows shrink when they are not used.
const COLD_AFTER: Duration = Duration::from_secs(1);

/// The size of the records of one connection.
pub(super) struct Sizing {
    /// Bytes yet to be put before it is warm; zero when it is, and always on connections of few, steady peers.
    cold_bytes: u32,
    /// Whether pauses cool it.
    cools: bool,
    /// When bytes were last put.
    put_at: Time,
}

impl Sizing {
    /// Full records always.
    pub(super) const fn fixed() -> Sizing {
        Sizing { cold_bytes: 0, cools: false, put_at: Time::ZERO }
    }

    /// Records that follow the connection, which is cold.
    pub(super) const fn following() -> Sizing {
        Sizing { cold_bytes: WARM_AFTER_BYTES, cools: true, put_at: Time::ZERO }
    }

    /// Bytes are about to be put at `now`.
    pub(super) fn turn(&mut self, now: Time) {
        if self.cools && now.since(self.put_at) >= COLD_AFTER {
            self.cold_bytes = WARM_AFTER_BYTES;
        }
        self.put_at = now;
    }

    /// Most plaintext of the record that is open now, in bytes.
    pub(super) fn record_bytes_max(&self) -> usize {
        if self.cold_bytes == 0 { PLAINTEXT_BYTES_MAX } else { RECORD_BYTES_COLD }
    }

    /// A record with so much plaintext is complete.
    pub(super) fn sealed(&mut self, bytes: usize) {
        self.cold_bytes = self.cold_bytes.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_cold_record_fits_one_packet() {
        assert_eq!(RECORD_BYTES_COLD, 1370);
        // The narrowest common path, with the longer headers.
        assert_eq!(RECORD_BYTES_COLD + RECORD_HEADER_BYTES + RECORD_TRAILER_BYTES + 40 + 32, 1464);
    }

    #[test]
    fn records_grow_with_use_and_shrink_after_a_pause() {
        let mut sizing = Sizing::following();
        sizing.turn(at(5_000));
        let mut cold_records = 0;
        while sizing.record_bytes_max() == RECORD_BYTES_COLD {
            sizing.sealed(RECORD_BYTES_COLD);
            cold_records += 1;
        }
        assert_eq!(cold_records, 48);
        assert_eq!(sizing.record_bytes_max(), PLAINTEXT_BYTES_MAX);
        sizing.turn(at(5_999));
        sizing.turn(at(6_998));
        assert_eq!(sizing.record_bytes_max(), PLAINTEXT_BYTES_MAX, "no pause was a second long");
        sizing.turn(at(7_998));
        assert_eq!(sizing.record_bytes_max(), RECORD_BYTES_COLD);
    }

    #[test]
    fn a_trunk_has_full_records_from_the_start() {
        let mut sizing = Sizing::fixed();
        sizing.turn(at(100_000));
        assert_eq!(sizing.record_bytes_max(), PLAINTEXT_BYTES_MAX);
    }
}
