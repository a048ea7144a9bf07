//! What really happened, told by those who cannot be wrong about it, and the invariants that follow.
//!
//! A violated invariant is a panic whose message begins with its name; `docs/TESTING.md` lists the names.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use trunkline::mmtp::{Code, Receipt};

use crate::doorman::Visit;

/// How a request travels, and what its origin does with it. All of it is in the bytes of the request, so that origins
/// need no memory of plans.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// HTTP: a body with its length.
    Length,
    /// HTTP: a body in chunks.
    Chunks,
    /// HTTP: a body that ends with the connection.
    UntilClose,
    /// HTTP: the answer comes before the request's body was read.
    Early,
    /// HTTP: the answer comes slowly.
    Slow,
    /// HTTP: not an answer at all.
    Nonsense,
    /// HTTP: a body with its length that breaks off.
    CutLength,
    /// HTTP: chunks that break off.
    CutChunks,
    /// HTTP: no answer.
    Silence,
    /// HTTP: 204.
    NoContent,
    /// HTTP: 103 before the answer.
    Interim,
    /// HTTP: the kept-alive connection is closed soon after.
    Stale,
    /// HTTP: reset within the body.
    Reset,
    /// HTTP: an answer and the end of the connection, with the request unread.
    Rude,
    /// HTTP: 425 to what came early, else a body with its length.
    TooEarly,
    /// HTTP: 425, whatever came.
    Always425,
    /// Tunnel: every byte comes back, and the end behind them.
    Echo,
    /// Tunnel: bytes come once the client's direction has ended.
    AfterEnd,
    /// Tunnel: bytes and the end come at once; the client's are read on.
    EarlyEnd,
    /// Tunnel: some bytes, then a reset.
    Break,
}

impl Mode {
    pub const HTTP: [Mode; 16] = [
        Mode::Length,
        Mode::Chunks,
        Mode::UntilClose,
        Mode::Early,
        Mode::Slow,
        Mode::Nonsense,
        Mode::CutLength,
        Mode::CutChunks,
        Mode::Silence,
        Mode::NoContent,
        Mode::Interim,
        Mode::Stale,
        Mode::Reset,
        Mode::Rude,
        Mode::TooEarly,
        Mode::Always425,
    ];
    pub const TUNNEL: [Mode; 4] = [Mode::Echo, Mode::AfterEnd, Mode::EarlyEnd, Mode::Break];

    pub fn number(self) -> u8 {
        let all = Mode::HTTP.iter().chain(&Mode::TUNNEL);
        all.clone().position(|mode| *mode == self).expect("every mode is listed") as u8
    }

    pub fn is_http(self) -> bool {
        Mode::HTTP.contains(&self)
    }

    pub fn from_number(number: u8) -> Option<Mode> {
        Mode::HTTP.iter().chain(&Mode::TUNNEL).nth(usize::from(number)).copied()
    }

    /// Whether the origin, left alone, gives a whole answer.
    pub fn is_answered(self) -> bool {
        !matches!(
            self,
            Mode::Nonsense | Mode::CutLength | Mode::CutChunks | Mode::Silence | Mode::Reset | Mode::Rude | Mode::Break
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// `pay`, over MMTP.
    Http,
    /// `web`, over MMTP.
    Stream,
    /// `web`, as an opaque connection.
    Tunnel,
    /// A service that nobody has.
    Nobody,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub service: Service,
    pub mode: Mode,
    pub method: &'static str,
    pub idempotent: bool,
    /// May be forwarded from early data.
    pub replay_safe: bool,
    pub request_bytes: usize,
    pub response_bytes: usize,
    /// The request says how long its body is.
    pub length_known: bool,
    pub priority: u8,
    /// Given up after so many bytes of the answer.
    pub cancel_after: Option<usize>,
}

impl Plan {
    /// Bytes the client should get.
    pub fn expected_bytes(&self) -> usize {
        match (self.mode, self.method) {
            (_, "HEAD") | (Mode::NoContent, _) => 0,
            (Mode::Echo, _) => self.request_bytes,
            _ => self.response_bytes,
        }
    }

    /// Whether executing it twice would do harm.
    pub fn is_repeatable(&self) -> bool {
        self.idempotent || matches!(self.method, "GET" | "HEAD" | "PUT" | "DELETE")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Failed {
        code: Code,
        receipt: Receipt,
    },
    /// The client's own connection broke.
    Lost,
    Cancelled,
    /// Never sent.
    Unsent,
}

#[derive(Debug)]
pub struct Call {
    pub plan: Plan,
    pub hostile: bool,
    /// Somebody sends its first flight again.
    pub replayed: bool,
    /// It went to a trunk as early.
    pub went_early: bool,
    pub sent: bool,
    /// The gateway's role saw its HEADERS.
    pub at_gateway: bool,
    /// Heads that an origin read.
    pub at_origin: u32,
    /// Bytes of the answer's body that origins wrote, what their sockets took of the answer, and what the client read.
    pub origin_wrote: usize,
    pub origin_sent: usize,
    pub client_read: usize,
    pub outcome: Option<Outcome>,
}

/// One run's truth.
pub struct Truth {
    pub calls: Vec<Call>,
    /// Nothing but reordering, delays, short sends and a want of buffers happens.
    pub is_clear: bool,
    /// Trunks take so few streams that slow ones may keep others out for too long.
    pub is_narrow: bool,
    pub gateway_died: bool,
    pub drained: bool,
    /// Kept-alive connections that origins closed by themselves.
    pub stale_closes: u32,
    /// Connections whose handshake is not simply complete first, by the client's address.
    pub visits: BTreeMap<SocketAddr, Visit>,
    /// Early data that somebody recorded.
    pub flights: Vec<Vec<u8>>,
}

/// The numbers and checks in the markers among `bytes`.
pub fn markers(bytes: &[u8]) -> Vec<(u32, u16)> {
    let marker = |at: usize| {
        let end = memchr::memchr(b';', &bytes[at..]).filter(|end| *end < MARKER_BYTES_MAX)?;
        let (id, check) = std::str::from_utf8(&bytes[at + 2..at + end]).ok()?.split_once('-')?;
        Some((id.parse().ok()?, u16::from_str_radix(check, 16).ok()?))
    };
    memchr::memmem::find_iter(bytes, b"q=").filter_map(marker).collect()
}

pub const MARKER_BYTES_MAX: usize = 24;

/// A byte of a body. `to_origin` bodies and answers differ.
pub fn byte_at(id: u32, to_origin: bool, at: usize) -> u8 {
    let at = at as u32;
    let salt = if to_origin { 101 } else { 0 };
    (id.wrapping_mul(31) + at.wrapping_mul(7) + (at >> 8).wrapping_mul(13) + (at >> 16).wrapping_mul(29) + salt) as u8
}

pub fn body(id: u32, to_origin: bool, from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| byte_at(id, to_origin, at)).collect()
}

impl Truth {
    pub fn new(is_clear: bool, is_narrow: bool) -> Truth {
        Truth {
            calls: Vec::new(),
            is_clear,
            is_narrow,
            gateway_died: false,
            drained: false,
            stale_closes: 0,
            visits: BTreeMap::new(),
            flights: Vec::new(),
        }
    }

    pub fn add(&mut self, plan: Plan, hostile: bool) -> u32 {
        self.calls.push(Call {
            plan,
            hostile,
            replayed: false,
            went_early: false,
            sent: false,
            at_gateway: false,
            at_origin: 0,
            origin_wrote: 0,
            origin_sent: 0,
            client_read: 0,
            outcome: None,
        });
        self.calls.len() as u32 - 1
    }

    /// A number that a mangled id does not have by chance.
    pub fn check(id: u32) -> u16 {
        (id.wrapping_mul(0x9e37_79b9) >> 16) as u16 ^ 0x5a5a
    }

    pub fn call(&mut self, id: u32, check: u16) -> Option<&mut Call> {
        if check != Truth::check(id) {
            return None;
        }
        self.calls.get_mut(id as usize)
    }

    pub fn marker(id: u32) -> String {
        format!("q={id}-{:04x};", Truth::check(id))
    }

    // ---- what origins saw ----

    pub fn origin_read_head(&mut self, id: u32, check: u16, method: &str, early: bool, refused: bool) {
        let Some(call) = self.call(id, check) else { return };
        assert!(!early || call.went_early, "early_exact: request {id} was early at its origin and never went so");
        if early && refused {
            return; // 425: nothing was done
        }
        call.at_origin += 1;
        assert!(call.sent, "bytes_exact: request {id} reached an origin and was never sent");
        assert!(call.hostile || call.plan.method == method, "bytes_exact: method of {id} became {method}");
        let repeated = call.at_origin > 1 && !call.plan.is_repeatable();
        assert!(!repeated, "executed_once: request {id} ({method}) reached origins {} times", call.at_origin);
    }

    pub fn origin_read_body(&mut self, id: u32, check: u16, from: usize, bytes: &[u8]) {
        let Some(call) = self.call(id, check).filter(|call| !call.hostile) else { return };
        assert!(
            from + bytes.len() <= call.plan.request_bytes,
            "bytes_exact: request {id} grew on its way to the origin"
        );
        for (offset, byte) in bytes.iter().enumerate() {
            let at = from + offset;
            assert_eq!(*byte, byte_at(id, true, at), "bytes_exact: request {id}, byte {at} at the origin");
        }
    }

    pub fn origin_read_end(&mut self, id: u32, check: u16, length: usize) {
        let Some(call) = self.call(id, check).filter(|call| !call.hostile) else { return };
        let whole = call.plan.request_bytes;
        assert_eq!(length, whole, "no_truncated_end: the origin took a part of request {id} for the whole");
    }

    // ---- what clients saw ----

    pub fn client_read_body(&mut self, id: u32, bytes: &[u8]) {
        let call = &mut self.calls[id as usize];
        for (offset, byte) in bytes.iter().enumerate() {
            let at = call.client_read + offset;
            let expected = byte_at(id, call.plan.mode == Mode::Echo, at);
            assert_eq!(*byte, expected, "bytes_exact: answer {id}, byte {at} at the client");
        }
        call.client_read += bytes.len();
        let most = call.plan.expected_bytes();
        assert!(call.client_read <= most, "bytes_exact: answer {id} grew on its way to the client");
        let (wrote, read) = (call.origin_wrote, call.client_read);
        assert!(
            read <= wrote,
            "bytes_exact: the client read {read} bytes of answer {id}, of which {wrote} were written"
        );
    }

    pub fn client_read_end(&mut self, id: u32) {
        let call = &mut self.calls[id as usize];
        let (read, whole) = (call.client_read, call.plan.expected_bytes());
        let mode = call.plan.mode;
        let bodiless = call.plan.method == "HEAD" || (call.plan.response_bytes == 0 && mode != Mode::CutChunks);
        let cut = matches!(mode, Mode::CutLength | Mode::CutChunks | Mode::Reset);
        let answered = mode.is_answered() || mode == Mode::Rude || (cut && bodiless);
        assert!(answered, "no_truncated_end: a broken answer ({:?}, {id}) ended in order", call.plan.mode);
        assert_eq!(read, whole, "no_truncated_end: the client took a part of answer {id} for the whole");
        self.finish(id, Outcome::Done);
    }

    pub fn finish(&mut self, id: u32, outcome: Outcome) {
        let is_clear = self.is_clear && !self.gateway_died && !self.drained;
        let (stale, is_narrow) = (self.stale_closes > 0, self.is_narrow);
        let call = &mut self.calls[id as usize];
        assert_eq!(call.outcome, None, "one_outcome: call {id} ended twice");
        call.outcome = Some(outcome);
        if call.hostile || call.replayed {
            return;
        }
        let Call { plan, at_gateway, at_origin, .. } = call;
        match outcome {
            Outcome::Failed { code, receipt: Receipt::NotForwarded } => {
                assert_eq!(
                    *at_origin,
                    0,
                    "receipt_true: {id} was not forwarded, and an origin read it ({})",
                    code.name()
                );
                // A gateway that leaves says which streams it did not take: their bytes came, and were not looked at.
                let refused = code == Code::DRAINING;
                assert!(
                    refused || !*at_gateway,
                    "receipt_true: {id} was not forwarded, and a gateway saw it ({})",
                    code.name()
                );
            }
            Outcome::Failed { code, receipt: Receipt::Refused } => {
                assert_eq!(*at_origin, 0, "receipt_true: {id} was refused, and an origin read it ({})", code.name());
            }
            _ => {}
        }
        if !is_clear {
            return;
        }
        let moved_on = matches!(outcome, Outcome::Done | Outcome::Cancelled | Outcome::Unsent);
        let refused = plan.service == Service::Nobody;
        // A request on a connection that its origin closed is moved when that is safe, and its bytes are still held.
        let movable = plan.is_repeatable() && plan.request_bytes < 60_000;
        let crowded = is_narrow && matches!(outcome, Outcome::Failed { code: Code::OVERLOADED, .. });
        // It is sent again only if all of it could be kept.
        let early = plan.replay_safe && matches!(outcome, Outcome::Failed { code: Code::TOO_EARLY, .. });
        let excused = refused || crowded || early || !plan.mode.is_answered() || (stale && !movable);
        assert!(moved_on || excused, "clear_weather: call {id} {plan:?} ended with {outcome:?}");
        if let Outcome::Failed { code, .. } = outcome
            && refused
            && !crowded
        {
            assert_eq!(code, Code::SERVICE_UNKNOWN, "clear_weather: call {id} names no service");
        }
    }

    pub fn unfinished(&self) -> Vec<u32> {
        let waits = |call: &Call| call.outcome.is_none() && !call.hostile;
        (0..self.calls.len() as u32).filter(|id| waits(&self.calls[*id as usize])).collect()
    }
}
