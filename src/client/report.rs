//! What one call took. Owns the figures; never measures.
//!
//! Invariant: the figures of a step that did not happen for this call (a reused connection has no lookup) are `None`.

use std::time::Duration;

use serde::Serialize;

use super::error::Receipt;

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has not ended.
    #[default]
    Pending,
    /// The whole answer arrived, whatever its status.
    Answered,
    /// It failed with [`Receipt::NotForwarded`].
    NotForwarded,
    /// It failed with [`Receipt::Unknown`].
    Unknown,
    /// It failed with [`Receipt::Refused`].
    Refused,
}

/// How a connection was secured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handshake {
    /// With the server's certificate.
    Full,
    /// With a ticket of an earlier connection.
    Resumed,
    /// With a ticket, and early data that the server took.
    Early,
}

/// What became of a request as early data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EarlyData {
    /// It was not sent as such.
    #[default]
    No,
    /// The server took it.
    Accepted,
    /// The server did not take it, and it was sent again after the handshake.
    Refused,
}

/// What one call took. Times are in milliseconds, with three decimals.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Status of the answer; `None` when its head has not come.
    pub status: Option<u16>,
    /// How it ended.
    pub receipt: Outcome,
    /// With [`Outcome::Refused`]: how long the other end asks to stay away.
    pub wait_ms: Option<f64>,
    /// Whether an existing connection was used.
    pub reused: bool,
    /// How the connection was secured; `None` when it was not.
    pub handshake: Option<Handshake>,
    /// Whether the request went out as TLS early data, and what became of it.
    pub early: EarlyData,
    /// Whether the first bytes of the connection left with the SYN (TCP Fast Open). Whether the server took them there,
    /// or the kernel had to send them again, is not known.
    pub fast_open: bool,
    /// Looking up the host.
    pub dns_ms: Option<f64>,
    /// Connecting, all addresses tried.
    pub connect_ms: Option<f64>,
    /// The TLS handshake.
    pub tls_ms: Option<f64>,
    /// From the start of the call to the first byte of the answer.
    pub first_byte_ms: Option<f64>,
    /// From the start of the call to its end.
    pub total_ms: Option<f64>,
    /// Body bytes sent. Counts what was handed to the connection.
    pub sent_bytes: u64,
    /// Body bytes received.
    pub received_bytes: u64,
    /// The address connected to.
    pub address: Option<String>,
    /// How often the call was begun again on a new connection, because the old one had not taken it.
    pub restarts: u32,
}

impl Report {
    pub(super) fn settle(&mut self, receipt: Receipt) {
        self.receipt = match receipt {
            Receipt::NotForwarded => Outcome::NotForwarded,
            Receipt::Unknown => Outcome::Unknown,
            Receipt::Refused { wait } => {
                self.wait_ms = Some(milliseconds(wait));
                Outcome::Refused
            }
        };
    }
}

/// A duration in milliseconds, rounded to microseconds.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_settles_the_outcome() {
        let mut report = Report::default();
        report.settle(Receipt::Refused { wait: Duration::from_micros(1500) });
        assert_eq!((report.receipt, report.wait_ms), (Outcome::Refused, Some(1.5)));
        report.settle(Receipt::Unknown);
        assert_eq!(report.receipt, Outcome::Unknown);
        report.settle(Receipt::NotForwarded);
        assert_eq!(report.receipt, Outcome::NotForwarded);
    }
}
