//! Counters of one worker: plain numbers that only it writes, published now and then for the admin thread to sum.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a figure behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Name, labels and meaning of one figure.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// OpenMetrics family name, without the `trunkline_` prefix and without `_total`.
    pub name: &'static str,
    /// OpenMetrics labels without braces, possibly empty.
    pub labels: &'static str,
    /// Help text.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
}

macro_rules! counters {
    ($($field:ident: $kind:ident, $name:literal, $labels:literal, $help:literal;)*) => {
        /// The figures of one worker. Written by that worker alone.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $field: u64,)*
        }

        /// What each figure is, in the order in which they are published.
        pub const DESCRIPTIONS: &[Described] = &[
            $(Described { name: $name, labels: $labels, help: $help, kind: Kind::$kind },)*
        ];

        impl Counters {
            /// The figures in the order of [`DESCRIPTIONS`].
            #[must_use]
            pub fn values(&self) -> [u64; DESCRIPTIONS.len()] {
                [$(self.$field,)*]
            }
        }
    };
}

counters! {
    connections_accepted: Counter, "connections_accepted", "", "Connections accepted.";
    connections_refused: Counter, "connections_refused", "", "Connections closed at accept because a limit was reached.";
    connections_handed_over: Counter, "connections_handed_over", "", "Connections handed to a less loaded worker.";
    connections_open: Gauge, "connections_open", "", "Connections open: clients on a POP, trunks on a gateway.";
    accept_errors: Counter, "accept_errors", "", "Failed accepts.";
    handshakes_full: Counter, "handshakes", "kind=\"full\"", "TLS handshakes completed.";
    handshakes_resumed: Counter, "handshakes", "kind=\"resumed\"", "TLS handshakes completed.";
    handshakes_early: Counter, "handshakes", "kind=\"early\"", "TLS handshakes completed.";
    handshakes_waiting: Gauge, "handshakes_waiting", "", "TLS handshakes whose ClientHello has not been answered yet.";
    handshakes_late: Counter, "handshakes_dropped", "reason=\"late\"", "Connections closed before their ClientHello was answered.";
    handshakes_queue_full: Counter, "handshakes_dropped", "reason=\"queue_full\"", "Connections closed before their ClientHello was answered.";
    handshakes_timed_out: Counter, "handshakes_timed_out", "", "TLS handshakes that failed because they took too long.";
    handshakes_failed: Counter, "handshakes_failed", "", "TLS handshakes that failed or timed out.";
    accepts_held_off: Counter, "accepts_held_off", "", "Times that accepting stopped because too many handshakes waited.";
    tickets_stored: Counter, "tickets_stored", "", "Tickets issued and kept in memory.";
    tickets_not_kept: Counter, "tickets_not_kept", "", "Tickets issued that did not fit the store.";
    tickets_evicted: Counter, "tickets_evicted", "", "Unused tickets dropped for newer ones.";
    tickets_taken: Counter, "tickets_taken", "", "Tickets found in memory and spent.";
    tickets_shared: Counter, "tickets_shared", "", "Tickets issued and given to the ticket server.";
    ticket_lookups_hit: Counter, "ticket_lookups", "result=\"hit\"", "Tickets asked for at the ticket server.";
    ticket_lookups_miss: Counter, "ticket_lookups", "result=\"miss\"", "Tickets asked for at the ticket server.";
    ticket_lookups_late: Counter, "ticket_lookups", "result=\"late\"", "Tickets asked for at the ticket server.";
    ticket_lookups_down: Counter, "ticket_lookups", "result=\"down\"", "Tickets asked for at the ticket server.";
    ticket_lookups_bad: Counter, "ticket_lookups", "result=\"bad\"", "Tickets asked for at the ticket server.";
    ticket_server_lost: Counter, "ticket_server_lost", "", "Connections to the ticket server that failed to come up or ended.";
    tickets_unknown: Counter, "tickets_missed", "reason=\"unknown\"", "Tickets shown by clients that were of no use.";
    tickets_used: Counter, "tickets_missed", "reason=\"used\"", "Tickets shown by clients that were of no use.";
    tickets_expired: Counter, "tickets_missed", "reason=\"expired\"", "Tickets shown by clients that were of no use.";
    tickets_other_name: Counter, "tickets_missed", "reason=\"other_name\"", "Tickets shown by clients that were of no use.";
    early_bytes_accepted: Counter, "early_data_bytes", "outcome=\"accepted\"", "Bytes of early data; of refused data, those of its records.";
    early_bytes_refused: Counter, "early_data_bytes", "outcome=\"refused\"", "Bytes of early data; of refused data, those of its records.";
    tls_errors: Counter, "tls_errors", "", "Connections closed for a violation of TLS after the handshake.";
    handshakes_retried: Counter, "handshakes_retried", "", "TLS handshakes that cost a HelloRetryRequest.";
    truncated_ends: Counter, "truncated_ends", "", "TLS connections cut by FIN without close_notify.";
    proxy_headers_refused: Counter, "proxy_headers_refused", "", "Connections closed for a bad PROXY protocol header.";
    links_open: Gauge, "links_open", "", "Sockets in use, of every kind, closing ones included.";
    links_rested: Counter, "links_rested", "", "Times that an idle connection gave back what it did not need.";
    bytes_received: Counter, "bytes_received", "", "Bytes received from sockets.";
    bytes_sent: Counter, "bytes_sent", "", "Bytes accepted by sockets.";
    receives: Counter, "receives", "", "Receive completions that carried bytes.";
    sends: Counter, "sends", "", "Send operations completed.";
    sends_short: Counter, "sends_short", "", "Send operations that took only a part.";
    passes: Counter, "passes", "", "Passes of the worker's loop.";
    calls_enter: Counter, "system_calls", "call=\"io_uring_enter\"", "System calls that workers made on the byte path.";
    calls_other: Counter, "system_calls", "call=\"other\"", "System calls that workers made on the byte path.";
    buffers_lent: Gauge, "buffers_lent", "", "Receive buffers taken from the kernel's ring and not yet given back.";
    buffers_exhausted: Counter, "buffers_exhausted", "", "Receives that ended because the kernel had no buffer: all were filled, or kept from it as few had been needed.";
    stale_completions: Counter, "stale_completions", "", "Completions for a link that was already gone.";
    streams_opened: Counter, "streams_opened", "", "MMTP streams opened on trunks.";
    streams_open: Gauge, "streams_open", "", "Streams in flight.";
    streams_done: Counter, "streams_done", "", "Streams that ended in order in both directions.";
    streams_not_forwarded: Counter, "streams_failed", "receipt=\"not_forwarded\"", "Streams that failed, by receipt.";
    streams_unknown: Counter, "streams_failed", "receipt=\"unknown\"", "Streams that failed, by receipt.";
    streams_refused: Counter, "streams_failed", "receipt=\"refused\"", "Streams that failed, by receipt.";
    streams_cancelled: Counter, "streams_cancelled", "", "Streams reset by the client.";
    streams_waiting: Gauge, "streams_waiting", "", "Streams waiting for a trunk.";
    streams_held: Gauge, "streams_held", "", "Streams of early data waiting for their client's handshake to be complete.";
    streams_early_forwarded: Counter, "streams_early", "action=\"forwarded\"", "Streams that began in early data, by what was done.";
    streams_early_held: Counter, "streams_early", "action=\"held\"", "Streams that began in early data, by what was done.";
    streams_early_refused: Counter, "streams_early", "action=\"refused\"", "Streams that began in early data, by what was done.";
    streams_early_repeated: Counter, "streams_early", "action=\"repeated\"", "Streams that began in early data, by what was done.";
    tunnels_open: Gauge, "tunnels_open", "", "Connections that travel as an opaque tunnel.";
    mmtp_errors: Counter, "mmtp_errors", "", "Connections closed for a violation of MMTP.";
    fields_dropped: Counter, "fields_dropped", "", "Header fields dropped because only a POP may set them.";
    trunks_ready: Gauge, "trunks_ready", "", "Trunks that take streams.";
    trunks_dialed: Counter, "trunks_dialed", "", "Attempts to dial a trunk.";
    trunks_failed: Counter, "trunks_failed", "", "Trunks that failed to come up or died.";
    heartbeats_sent: Counter, "heartbeats_sent", "", "PING frames sent to keep connections warm.";
    upstream_dialed: Counter, "upstream_dialed", "", "Connections dialled to upstreams.";
    upstream_failed: Counter, "upstream_failed", "", "Connections to upstreams that failed to come up or died in use.";
    upstream_reused: Counter, "upstream_reused", "", "Requests sent on a kept-alive upstream connection.";
    upstream_moved: Counter, "upstream_moved", "", "Requests moved from a stale kept-alive connection to a fresh one.";
    upstream_open: Gauge, "upstream_open", "", "Connections to upstreams.";
    upstream_idle: Gauge, "upstream_idle", "", "Kept-alive connections to upstreams that wait for a request.";
    requests: Counter, "requests", "", "HTTP requests sent to upstreams.";
    responses_invalid: Counter, "responses_invalid", "", "Upstream responses that were refused as malformed.";
    trailers_dropped: Counter, "trailers_dropped", "", "Trailer fields of upstream responses that were dropped.";
    log_lines_dropped: Counter, "log_lines_dropped", "", "Log lines dropped because the queue was full.";
}

/// The last figures a worker published. Readers may see figures of two different moments side by side.
#[derive(Debug)]
pub struct Published {
    cells: [AtomicU64; DESCRIPTIONS.len()],
}

impl Default for Published {
    fn default() -> Self {
        Published { cells: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Published {
    /// Writes the figures down for readers. Only the worker that owns them calls this.
    pub fn publish(&self, counters: &Counters) {
        for (cell, value) in self.cells.iter().zip(counters.values()) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// The figures in the order of [`DESCRIPTIONS`].
    #[must_use]
    pub fn read(&self) -> [u64; DESCRIPTIONS.len()] {
        std::array::from_fn(|index| self.cells[index].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_in_order() {
        let published = Published::default();
        let counters = Counters { connections_accepted: 7, log_lines_dropped: 9, ..Counters::default() };
        published.publish(&counters);
        assert_eq!(published.read(), counters.values());
        assert_eq!(published.read()[0], 7);
        assert_eq!(published.read()[DESCRIPTIONS.len() - 1], 9);
    }

    #[test]
    fn a_family_has_one_kind_and_one_help() {
        for (index, described) in DESCRIPTIONS.iter().enumerate() {
            for other in &DESCRIPTIONS[..index] {
                if other.name == described.name {
                    assert_eq!(other.kind, described.kind);
                    assert_eq!(other.help, described.help);
                    assert_ne!(other.labels, described.labels, "{} stands twice", described.name);
                }
            }
        }
    }
}
