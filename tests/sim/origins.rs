//! Scripted origins: an HTTP/1.1 server and a server of raw TCP, which do what the request itself asks for.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use trunkline::base::prng::Prng;
use trunkline::base::time::Time;
use trunkline::ring::{Errno, Fd};

use crate::clients::{Ctx, PREFACE_BYTES};
use crate::net::{Read, note};
use crate::truth::{Mode, body};

/// What happens to a connection once its answer has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Keep,
    Finish,
    Close,
    Reset,
    Linger(Time),
    Hang,
}

/// A request being answered.
struct Exchange {
    id: u32,
    check: u16,
    mode: Mode,
    /// It is said to have come in early data.
    early: bool,
    head: bool,
    chunked: bool,
    request_bytes: usize,
    response_bytes: usize,
    received: usize,
    request_over: bool,
    answered: bool,
}

struct Conn {
    fd: Fd,
    input: Vec<u8>,
    output: VecDeque<u8>,
    exchange: Option<Exchange>,
    then: Option<Then>,
    slow_until: Time,
    ended: bool,
    finished: bool,
    closed: bool,
}

/// One origin: both kinds share everything but what they read.
pub struct Origin {
    address: SocketAddr,
    is_http: bool,
    prng: Prng,
    conns: Vec<Conn>,
}

impl Origin {
    pub fn new(address: SocketAddr, is_http: bool, prng: Prng) -> Origin {
        Origin { address, is_http, prng, conns: Vec::new() }
    }

    pub fn wake(&self, now: Time) -> Option<Time> {
        let linger = |conn: &Conn| match conn.then {
            Some(Then::Linger(until)) => until.max(conn.slow_until),
            _ => conn.slow_until,
        };
        self.conns.iter().map(linger).filter(|at| *at > now).min()
    }

    pub fn step(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let mut moved = false;
        while let Some(fd) = ctx.net.accept(self.address) {
            note!(ctx.net, "origin {} accepts fd {}", self.address, fd.0);
            self.conns.push(Conn {
                fd,
                input: Vec::new(),
                output: VecDeque::new(),
                exchange: None,
                then: None,
                slow_until: Time::ZERO,
                ended: false,
                finished: false,
                closed: false,
            });
            moved = true;
        }
        for index in 0..self.conns.len() {
            let conn = &mut self.conns[index];
            moved |= conn.read(ctx, &mut self.prng);
            if !conn.closed {
                if self.is_http {
                    conn.serve_http(ctx, &mut self.prng)
                } else {
                    conn.serve_raw(ctx)
                }
                moved |= conn.write(ctx, &mut self.prng);
            }
        }
        self.conns.retain(|conn| !conn.closed);
        moved
    }
}

impl Conn {
    fn close(&mut self, ctx: &mut Ctx<'_>, reset: bool) {
        if !std::mem::replace(&mut self.closed, true) {
            ctx.net.close(self.fd, reset);
        }
    }

    fn read(&mut self, ctx: &mut Ctx<'_>, prng: &mut Prng) -> bool {
        if self.ended || self.closed || self.input.len() > 64 * 1024 {
            return false;
        }
        let rude = self.exchange.as_ref().is_some_and(|exchange| exchange.mode == Mode::Rude);
        let behind = self.output.len() > 64 * 1024;
        if rude || behind {
            return false;
        }
        let most = if prng.chance(4) { 1 + prng.below(500) as usize } else { 16 * 1024 };
        match ctx.net.read(self.fd, most) {
            Read::Nothing => return false,
            Read::Bytes(bytes) => self.input.extend_from_slice(&bytes),
            Read::End => self.ended = true,
            Read::Reset => self.close(ctx, false),
        }
        true
    }

    fn write(&mut self, ctx: &mut Ctx<'_>, prng: &mut Prng) -> bool {
        if self.closed {
            return false;
        }
        let now = ctx.net.now;
        let mut moved = false;
        if !self.output.is_empty() && self.slow_until <= now {
            let slow = self.exchange.as_ref().is_some_and(|exchange| exchange.mode == Mode::Slow);
            let most = if slow { (self.output.len() / 6).max(1) } else { self.output.len() };
            let bytes: Vec<u8> = self.output.iter().take(most.min(64 * 1024)).copied().collect();
            match ctx.net.write(self.fd, &bytes) {
                Ok(count) => {
                    self.output.drain(..count);
                    moved = count > 0;
                    if let Some(exchange) = &self.exchange
                        && let Some(call) = ctx.truth.call(exchange.id, exchange.check)
                    {
                        call.origin_sent += count;
                    }
                }
                Err(Errno(_)) => {
                    self.close(ctx, false);
                    return true;
                }
            }
            if slow {
                self.slow_until = now + Duration::from_millis(10 + prng.below(80));
            }
        }
        if self.output.is_empty() {
            moved |= self.go_on(ctx);
        }
        moved
    }

    /// The answer has gone.
    fn go_on(&mut self, ctx: &mut Ctx<'_>) -> bool {
        match self.then {
            Some(Then::Keep) => {
                if self.exchange.as_ref().is_some_and(|exchange| !exchange.request_over) {
                    if self.ended {
                        self.close(ctx, false);
                    }
                    return self.ended;
                }
                self.exchange = None;
                self.then = None;
                true
            }
            Some(Then::Finish) => {
                if !std::mem::replace(&mut self.finished, true) {
                    ctx.net.finish(self.fd);
                    return true;
                }
                if self.ended {
                    self.close(ctx, false);
                }
                self.ended
            }
            Some(Then::Close) => {
                self.close(ctx, false);
                true
            }
            Some(Then::Reset) => {
                self.close(ctx, true);
                true
            }
            Some(Then::Linger(until)) if until <= ctx.net.now => {
                ctx.truth.stale_closes += 1;
                note!(ctx.net, "origin closes idle fd {}", self.fd.0);
                self.close(ctx, false);
                true
            }
            Some(Then::Linger(_)) => {
                let over = self.exchange.as_ref().is_some_and(|exchange| exchange.request_over);
                if over {
                    self.exchange = None;
                }
                over
            }
            // A bare FIN ends an HTTP connection, whatever was going on.
            Some(Then::Hang) | None if self.ended && self.exchange.as_ref().is_none_or(|one| one.mode.is_http()) => {
                self.close(ctx, false);
                true
            }
            Some(Then::Hang) | None => false,
        }
    }

    // ---- HTTP ----

    fn serve_http(&mut self, ctx: &mut Ctx<'_>, prng: &mut Prng) {
        if self.exchange.is_none() {
            let Some(end) = self.input.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            let head: Vec<u8> = self.input.drain(..end + 4).collect();
            self.take_head(ctx, prng, &head[..end]);
        }
        self.take_body(ctx);
        let Some(exchange) = self.exchange.as_mut() else { return };
        let ready = exchange.request_over || matches!(exchange.mode, Mode::Early | Mode::Rude);
        if ready && !exchange.answered {
            exchange.answered = true;
            self.answer(ctx, prng);
        }
    }

    fn take_head(&mut self, ctx: &mut Ctx<'_>, prng: &mut Prng, head: &[u8]) {
        let text = &*String::from_utf8_lossy(head);
        let mut lines = text.split("\r\n");
        let mut line = lines.next().expect("split gives one").split(' ');
        let (method, path) = (line.next().unwrap_or(""), line.next().unwrap_or(""));
        assert_eq!(line.next(), Some("HTTP/1.1"), "upstream_conformance: {text}");
        let field = |wanted: &str| {
            let named = |line: &&str| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(wanted));
            let found: Vec<&str> = text.split("\r\n").skip(1).filter(named).collect();
            assert!(found.len() < 2, "upstream_conformance: {wanted} twice: {text}");
            found.first().map(|line| line.split_once(':').expect("found by it").1.trim())
        };
        assert!(field("host").is_some(), "upstream_conformance: no host: {text}");
        assert!(field("x-forwarded-for").is_some_and(|value| value == "192.0.2.1"), "upstream_conformance: {text}");
        let chunked = field("transfer-encoding").is_some();
        let length: Option<usize> = field("content-length").map(|value| value.parse().expect("upstream_conformance"));
        assert!(!(chunked && length.is_some()), "upstream_conformance: two lengths: {text}");
        let parts: Vec<u32> = path.split('/').skip(2).filter_map(|part| part.parse().ok()).collect();
        let known = match parts.as_slice() {
            [id, check, mode, response, _] => {
                Mode::from_number(*mode as u8).map(|mode| (*id, *check as u16, mode, *response as usize))
            }
            _ => None,
        };
        note!(ctx.net, "origin reads {method} {path} on fd {}", self.fd.0);
        let (id, check, mode, response_bytes) = known.unwrap_or((u32::MAX, 0, Mode::Length, 3));
        let early = field("early-data").is_some_and(|value| value == "1");
        assert_eq!(early, field("early-data").is_some(), "upstream_conformance: {text}");
        ctx.truth.origin_read_head(id, check, method, early, matches!(mode, Mode::TooEarly | Mode::Always425));
        self.exchange = Some(Exchange {
            id,
            check,
            mode,
            early,
            head: method == "HEAD",
            chunked,
            request_bytes: length.unwrap_or(0),
            response_bytes: response_bytes.min(1 << 23),
            received: 0,
            request_over: false,
            answered: false,
        });
        self.slow_until =
            if mode == Mode::Slow { ctx.net.now + Duration::from_millis(prng.below(300)) } else { Time::ZERO };
    }

    fn take_body(&mut self, ctx: &mut Ctx<'_>) {
        let Some(exchange) = self.exchange.as_mut() else { return };
        while !exchange.request_over {
            if !exchange.chunked {
                let count = (exchange.request_bytes - exchange.received).min(self.input.len());
                let bytes: Vec<u8> = self.input.drain(..count).collect();
                ctx.truth.origin_read_body(exchange.id, exchange.check, exchange.received, &bytes);
                exchange.received += count;
                if exchange.received == exchange.request_bytes {
                    exchange.request_over = true;
                    ctx.truth.origin_read_end(exchange.id, exchange.check, exchange.received);
                }
                return;
            }
            let Some(line) = self.input.windows(2).position(|two| two == b"\r\n") else { return };
            let text = std::str::from_utf8(&self.input[..line]).expect("upstream_conformance: a chunk size");
            let size = usize::from_str_radix(text, 16).expect("upstream_conformance: a chunk size");
            if self.input.len() < line + 2 + size + 2 {
                return;
            }
            let bytes: Vec<u8> = self.input[line + 2..line + 2 + size].to_vec();
            assert_eq!(&self.input[line + 2 + size..][..2], b"\r\n", "upstream_conformance: the end of a chunk");
            self.input.drain(..line + 2 + size + 2);
            if size == 0 {
                exchange.request_over = true;
                ctx.truth.origin_read_end(exchange.id, exchange.check, exchange.received);
            } else {
                ctx.truth.origin_read_body(exchange.id, exchange.check, exchange.received, &bytes);
                exchange.received += size;
            }
        }
    }

    fn answer(&mut self, ctx: &mut Ctx<'_>, prng: &mut Prng) {
        let exchange = self.exchange.as_ref().expect("the caller looked");
        let (id, whole, mode) = (exchange.id, exchange.response_bytes, exchange.mode);
        let count = match mode {
            Mode::CutLength | Mode::CutChunks | Mode::Reset => whole / 2,
            Mode::NoContent | Mode::Nonsense | Mode::Silence => 0,
            _ => whole,
        };
        // Framed, such an answer is whole, and the connection looks as if it were kept.
        let looks_kept = exchange.head || whole == 0 || mode == Mode::Rude;
        let closes = matches!(mode, Mode::UntilClose | Mode::CutLength | Mode::CutChunks | Mode::Reset | Mode::Rude);
        ctx.truth.stale_closes += u32::from(looks_kept && closes);
        let content = if exchange.head { Vec::new() } else { body(id, false, 0, count) };
        if let Some(call) = ctx.truth.call(id, exchange.check) {
            call.origin_wrote = call.origin_wrote.max(content.len());
        }
        let status = match mode {
            Mode::TooEarly if exchange.early => "425 Too Early",
            Mode::Always425 => "425 Too Early",
            _ => "200 OK",
        };
        let length = format!("HTTP/1.1 {status}\r\nContent-Length: {whole}\r\nX-Id: {id}\r\n\r\n").into_bytes();
        let chunked = matches!(mode, Mode::Chunks | Mode::CutChunks);
        let head = match mode {
            Mode::Chunks | Mode::CutChunks => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            Mode::UntilClose => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            Mode::Nonsense => b"220 mail.example ESMTP\r\n".to_vec(),
            Mode::Silence => Vec::new(),
            Mode::NoContent => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            Mode::Interim => [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".as_slice(), &length].concat(),
            _ => length,
        };
        self.output.extend(head);
        if chunked && !exchange.head {
            let mut rest = content.as_slice();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(rest.len().min(1 + prng.below(5000) as usize));
                self.output.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                self.output.extend(piece);
                self.output.extend(b"\r\n");
                rest = later;
            }
            if mode == Mode::Chunks {
                let trailers: &[u8] = if id % 5 == 0 { b"0\r\nX-Sum: 1\r\n\r\n" } else { b"0\r\n\r\n" };
                self.output.extend(trailers);
            }
        } else {
            self.output.extend(content);
        }
        self.then = Some(match mode {
            Mode::UntilClose | Mode::CutLength | Mode::CutChunks => Then::Finish,
            Mode::Silence => Then::Hang,
            Mode::Reset => Then::Reset,
            Mode::Rude | Mode::Nonsense => Then::Close,
            Mode::Stale => Then::Linger(ctx.net.now + Duration::from_millis(prng.below(400))),
            _ => Then::Keep,
        });
    }

    // ---- raw TCP ----

    fn serve_raw(&mut self, ctx: &mut Ctx<'_>) {
        if self.exchange.is_none() {
            if self.input.len() < PREFACE_BYTES {
                if self.ended {
                    self.close(ctx, false);
                }
                return;
            }
            self.take_preface(ctx);
        }
        let Some(exchange) = self.exchange.as_mut() else { return };
        if !self.input.is_empty() {
            ctx.truth.origin_read_body(exchange.id, exchange.check, exchange.received, &self.input);
            exchange.received += self.input.len();
            if exchange.mode == Mode::Echo {
                self.output.extend(&self.input);
                if let Some(call) = ctx.truth.call(exchange.id, exchange.check) {
                    call.origin_wrote += self.input.len();
                }
            }
            self.input.clear();
        }
        if self.ended && !exchange.request_over {
            exchange.request_over = true;
            ctx.truth.origin_read_end(exchange.id, exchange.check, exchange.received);
        }
        let ready = exchange.request_over || matches!(exchange.mode, Mode::EarlyEnd | Mode::Break);
        if !ready || exchange.answered {
            return;
        }
        exchange.answered = true;
        if exchange.mode != Mode::Echo {
            self.output.extend(body(exchange.id, false, 0, exchange.response_bytes));
            if let Some(call) = ctx.truth.call(exchange.id, exchange.check) {
                call.origin_wrote = exchange.response_bytes;
            }
        }
        self.then = Some(if exchange.mode == Mode::Break { Then::Reset } else { Then::Finish });
    }

    fn take_preface(&mut self, ctx: &mut Ctx<'_>) {
        let preface: Vec<u8> = self.input.drain(..PREFACE_BYTES).collect();
        let number = |at: usize| u32::from_le_bytes(preface[at..at + 4].try_into().expect("four bytes"));
        let (id, check) = (number(2), u16::from_le_bytes([preface[6], preface[7]]));
        let mode = Mode::from_number(preface[1]).filter(|mode| Mode::TUNNEL.contains(mode));
        let (Some(mode), b'T') = (mode, preface[0]) else { return self.close(ctx, false) };
        note!(ctx.net, "origin reads the preface of {id} on fd {}", self.fd.0);
        ctx.truth.origin_read_head(id, check, "CONNECT", false, false);
        self.exchange = Some(Exchange {
            id,
            check,
            mode,
            early: false,
            head: false,
            chunked: false,
            request_bytes: number(12) as usize,
            response_bytes: (number(8) as usize).min(1 << 23),
            received: 0,
            request_over: false,
            answered: false,
        });
    }
}
