//! Scripted clients: honest ones over MMTP and as tunnels, ones that dawdle or leave, and hostile ones.

use std::net::SocketAddr;
use std::time::Duration;

use trunkline::base::prng::Prng;
use trunkline::base::time::Time;
use trunkline::mmtp::{
    Agent, Code, Connection, CreditPolicy, Event, HeaderFlags, HeaderWriter, Known, Receipt, Reset, Settings, Side,
    StreamId,
};
use trunkline::ring::Fd;
use trunkline::tls::ClientSettings;

use crate::doorman::{EARLY_DATA_BYTES, Handshake, Visit};
use crate::net::{Net, Read, note};
use crate::plan::Handshakes;
use crate::secure::{Far, Secure, security};
use crate::truth::{Mode, Outcome, Plan, Service, Truth, body, markers};

/// What every step is given.
pub struct Ctx<'a> {
    pub net: &'a mut Net,
    pub truth: &'a mut Truth,
    /// All is to end now.
    pub leaving: bool,
    /// The POP closes connections for reasons of its own.
    pub pop_drains: bool,
}

/// Connects, and says how the connection opens.
fn visit(ctx: &mut Ctx<'_>, fd: Fd, settings: &ClientSettings, handshake: Handshake, is_tunnel: bool) -> Secure {
    let mut secure = Secure::new(fd, settings);
    secure.early_room = (handshake != Handshake::First).then_some(EARLY_DATA_BYTES);
    ctx.truth.visits.insert(ctx.net.local(fd), Visit::new(handshake, is_tunnel));
    secure
}

/// Notes that the handshake is complete: whatever is left may go. What went before, somebody may have recorded.
fn look_at_handshake(ctx: &mut Ctx<'_>, secure: &mut Secure) {
    let confirmed = ctx.truth.visits.get(&ctx.net.local(secure.fd)).is_none_or(|visit| visit.confirmed);
    if confirmed && secure.early_room.take().is_some() {
        ctx.truth.flights.push(std::mem::take(&mut secure.flight));
    }
}

/// What a client does besides calling.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Reads nothing from its socket between these.
    pub deaf: Option<(Time, Time)>,
    /// Gives no credit back before this.
    pub stingy_until: Option<Time>,
    /// Breaks its connection then: gently or not.
    pub leaves: Option<(Time, bool)>,
    /// Goes silent for good then.
    pub vanishes: Option<Time>,
    /// One byte goes wrong on the wire, after so many.
    pub corrupt_wire: Option<usize>,
    /// Rubbish among the plaintext, after so many bytes.
    pub corrupt_plain: Option<usize>,
    pub handshakes: Handshakes,
}

impl Manners {
    pub fn is_hostile(&self) -> bool {
        self.corrupt_wire.is_some() || self.corrupt_plain.is_some()
    }
}

struct Running {
    id: u32,
    stream: StreamId,
    sent: usize,
    end_sent: bool,
    headers: bool,
    /// Consumed but not said so.
    unconsumed: usize,
}

struct Link {
    secure: Secure,
    connection: Connection,
    running: Vec<Running>,
    going_away: bool,
    broken: Option<String>,
}

pub struct MmtpClient {
    pub name: String,
    prng: Prng,
    address: SocketAddr,
    settings: Settings,
    manners: Manners,
    hostile: bool,
    /// Calls to make, with their times, last first.
    calls: Vec<(Time, u32)>,
    link: Option<Link>,
    connect_at: Time,
    connects_left: u32,
    closing: bool,
    pub done: bool,
    put_bytes: usize,
}

impl MmtpClient {
    pub fn new(
        name: String,
        mut prng: Prng,
        address: SocketAddr,
        mut calls: Vec<(Time, u32)>,
        manners: Manners,
    ) -> Self {
        let mut settings = Settings::new(Side::Initiator, Agent::Terminal);
        settings.stream_credit = [16, 64, 256][prng.below(3) as usize] * 1024;
        settings.connection_credit = [64, 256][prng.below(2) as usize] * 1024;
        if manners.stingy_until.is_some() {
            settings.credit_policy = CreditPolicy::OnConsumption;
        }
        calls.sort_by_key(|(at, id)| std::cmp::Reverse((*at, *id)));
        let connect_at = calls.last().map_or(Time::ZERO, |(at, _)| *at);
        MmtpClient {
            name,
            prng,
            address,
            settings,
            hostile: manners.is_hostile(),
            manners,
            calls,
            link: None,
            connect_at,
            connects_left: 4,
            closing: false,
            done: false,
            put_bytes: 0,
        }
    }

    pub fn wake(&self, now: Time) -> Option<Time> {
        let mut times = vec![self.connect_at];
        times.extend(self.calls.last().map(|(at, _)| *at));
        times.extend(self.manners.deaf.map(|(_, until)| until));
        times.extend(self.manners.stingy_until);
        times.extend(self.manners.leaves.map(|(at, _)| at));
        times.extend(self.manners.vanishes);
        times.into_iter().filter(|at| *at > now).min()
    }

    pub fn step(&mut self, ctx: &mut Ctx<'_>) -> bool {
        if self.done {
            return false;
        }
        if self.manners.vanishes.is_some_and(|at| at <= ctx.net.now) {
            self.vanish(ctx);
            return true;
        }
        if self.link.is_none() {
            return self.dial(ctx);
        }
        let mut moved = self.read(ctx);
        if self.link.is_some() {
            moved |= self.call(ctx);
            moved |= self.write(ctx);
            moved |= self.part(ctx);
        }
        moved
    }

    fn dial(&mut self, ctx: &mut Ctx<'_>) -> bool {
        if self.calls.is_empty() || ctx.leaving || self.connects_left == 0 {
            for (_, id) in std::mem::take(&mut self.calls) {
                ctx.truth.finish(id, Outcome::Unsent);
            }
            self.done = true;
            return true;
        }
        if ctx.net.now < self.connect_at {
            return false;
        }
        self.connects_left -= 1;
        self.connect_at = ctx.net.now + Duration::from_millis(50 + self.prng.below(200));
        let Ok(fd) = ctx.net.connect(self.address) else { return true };
        note!(ctx.net, "{} connects fd {}", self.name, fd.0);
        let handshake = self.manners.handshakes.next(&mut self.prng);
        let mut secure = visit(ctx, fd, &security().mmtp_client, handshake, false);
        secure.corrupt_after = self.manners.corrupt_wire.take();
        let mut connection = Connection::new(&self.settings, ctx.net.now);
        connection.start(&mut secure.out);
        self.link = Some(Link { secure, connection, running: Vec::new(), going_away: false, broken: None });
        true
    }

    fn read(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let now = ctx.net.now;
        if self.manners.deaf.is_some_and(|(from, until)| from <= now && now < until && !ctx.leaving) {
            return false;
        }
        let link = self.link.as_mut().expect("the caller looked");
        let stingy = self.manners.stingy_until.is_some_and(|until| now < until);
        let mut plain = Vec::new();
        let mut moved = link.secure.read(ctx.net, &mut self.prng, &mut |bytes| plain.extend_from_slice(bytes));
        let mut input = plain.as_slice();
        loop {
            match link.connection.receive(now, &mut input) {
                Ok(None) => break,
                Ok(Some(event)) => handle(&mut link.running, &mut link.going_away, event, ctx.truth),
                Err(error) => {
                    link.broken = Some(format!("{error:?}"));
                    break;
                }
            }
        }
        for running in &mut link.running {
            if !stingy && running.unconsumed > 0 {
                link.connection.consumed(now, running.stream, running.unconsumed, &mut link.secure.out);
                running.unconsumed = 0;
                moved = true;
            }
        }
        link.connection.drain(&mut link.secure.out, |_, _, _| {});
        link.running.retain(|running| is_live(running, ctx.truth));
        if link.secure.far == Far::Broken || link.broken.is_some() {
            self.lost(ctx);
            return true;
        }
        moved
    }

    /// The connection broke.
    fn lost(&mut self, ctx: &mut Ctx<'_>) {
        let link = self.link.take().expect("the caller looked");
        let why = (&link.broken, &link.secure.tls_error, link.secure.far);
        note!(ctx.net, "{} lost fd {}: {why:?}", self.name, link.secure.fd.0);
        let honest = !self.hostile;
        let own = self.manners.leaves.is_some_and(|(at, _)| at <= ctx.net.now) || self.closing;
        // Who does not listen does not complete a handshake in time.
        let unheard = link.running.iter().all(|running| !ctx.truth.calls[running.id as usize].at_gateway);
        let deaf = self.manners.deaf.is_some() && unheard;
        let cut = ctx.truth.visits[&ctx.net.local(link.secure.fd)].cut;
        let provoked = cut || deaf || ctx.net.was_faulted(link.secure.fd) || ctx.pop_drains || own;
        assert!(!honest || provoked, "unprovoked_loss: {} lost its connection: {why:?}", self.name);
        let sound = link.broken.is_none() && link.secure.tls_error.is_none();
        assert!(!honest || sound, "conformance: {} was sent what breaks the rules: {why:?}", self.name);
        abandon(link.running, ctx.truth);
        ctx.net.close(link.secure.fd, false);
        self.connect_at = ctx.net.now + Duration::from_millis(20 + self.prng.below(300));
        if own {
            self.connects_left = 0;
        }
    }

    fn vanish(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(link) = self.link.take() {
            note!(ctx.net, "{} vanishes, fd {}", self.name, link.secure.fd.0);
            abandon(link.running, ctx.truth);
            // The socket stays open, and nobody reads it.
        }
        for (_, id) in std::mem::take(&mut self.calls) {
            ctx.truth.finish(id, Outcome::Unsent);
        }
        self.done = true;
    }

    fn call(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let link = self.link.as_mut().expect("the caller looked");
        let mut moved = false;
        while let Some((at, id)) = self.calls.last().copied() {
            if at > ctx.net.now || link.going_away || link.secure.far != Far::Open {
                break;
            }
            let plan = ctx.truth.calls[id as usize].plan.clone();
            let Ok(stream) = link.connection.open(id, plan.priority) else { break };
            self.calls.pop();
            let (block, flags) = request(id, &plan);
            note!(ctx.net, "{} calls {id} on stream {stream}: {plan:?}", self.name);
            link.connection.send_headers(stream, &block, flags, &mut link.secure.out).expect("just opened");
            ctx.truth.calls[id as usize].sent = true;
            let running = Running { id, stream, sent: 0, end_sent: flags.end(), headers: false, unconsumed: 0 };
            link.running.push(running);
            moved = true;
        }
        for running in &mut link.running {
            let plan = &ctx.truth.calls[running.id as usize].plan;
            let cancel =
                plan.cancel_after.is_some_and(|after| ctx.truth.calls[running.id as usize].client_read >= after);
            if cancel
                && ctx.truth.calls[running.id as usize].outcome.is_none()
                && (running.headers || self.prng.chance(20))
            {
                let reset = Reset { code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 0 };
                link.connection.reset(running.stream, reset, &mut link.secure.out);
                note!(ctx.net, "{} cancels {}", self.name, running.id);
                ctx.truth.finish(running.id, Outcome::Cancelled);
                moved = true;
                continue;
            }
            let left = preface(running.id, plan).len() + plan.request_bytes - running.sent;
            if running.end_sent || link.connection.queued(running.stream) > 32 * 1024 {
                continue;
            }
            let count = left.min(1 + self.prng.below(20_000) as usize);
            let bytes = content(running.id, plan, running.sent, count);
            let end = count == left;
            running.sent += count;
            running.end_sent = end;
            // Only a stream that was reset meanwhile refuses; its event is on its way.
            let _ = link.connection.send_data(running.stream, &bytes, end, &mut link.secure.out);
            moved = true;
        }
        link.running.retain(|running| is_live(running, ctx.truth));
        moved
    }

    fn write(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let link = self.link.as_mut().expect("the caller looked");
        look_at_handshake(ctx, &mut link.secure);
        link.connection.drain(&mut link.secure.out, |_, _, _| {});
        if let Some(after) = self.manners.corrupt_plain
            && self.put_bytes + link.secure.out.plain.len() > after
        {
            let at = after.saturating_sub(self.put_bytes).min(link.secure.out.plain.len());
            rubbish(&mut self.prng, &mut link.secure.out.plain, at);
            self.manners.corrupt_plain = Some(usize::MAX);
        }
        let before = link.secure.out.plain.len();
        let moved = link.secure.write(ctx.net, &mut self.prng);
        self.put_bytes += before - link.secure.out.plain.len();
        moved
    }

    /// Ends the connection when there is nothing more to do, or when it is time to leave.
    fn part(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let link = self.link.as_mut().expect("the caller looked");
        let fd = link.secure.fd;
        if let Some((at, gently)) = self.manners.leaves
            && at <= ctx.net.now
            && !self.closing
        {
            self.closing = true;
            note!(ctx.net, "{} leaves, gently: {gently}", self.name);
            abandon(std::mem::take(&mut link.running), ctx.truth);
            self.calls.drain(..).for_each(|(_, id)| ctx.truth.finish(id, Outcome::Unsent));
            if gently {
                link.secure.say_goodbye();
            } else {
                let reset = self.prng.chance(2);
                ctx.net.close(fd, reset);
                self.link = None;
                self.done = true;
            }
            return true;
        }
        if ctx.leaving && self.hostile {
            abandon(std::mem::take(&mut link.running), ctx.truth);
        }
        let idle = link.running.is_empty() && (self.calls.is_empty() || link.going_away || ctx.leaving);
        if idle && !self.closing && (ctx.leaving || self.calls.is_empty() || link.going_away) {
            link.secure.say_goodbye();
            self.closing = true;
            return true;
        }
        if link.secure.far == Far::Ended && !self.closing {
            // The POP said goodbye first: only a POP that drains does that, or one that was offended.
            assert!(ctx.pop_drains || self.hostile || link.going_away, "unprovoked_loss: {} was sent away", self.name);
            let left = link.running.iter().find(|running| ctx.truth.calls[running.id as usize].outcome.is_none());
            let left = left.map(|running| running.id).filter(|_| !self.hostile && !ctx.pop_drains);
            assert_eq!(left, None, "one_outcome: {} was left without an answer", self.name);
            abandon(std::mem::take(&mut link.running), ctx.truth);
            link.secure.say_goodbye();
            self.closing = true;
            return true;
        }
        if self.closing && link.secure.is_flushed() && link.secure.far != Far::Open {
            ctx.net.close(fd, false);
            self.link = None;
            self.closing = false;
            self.connects_left = 0;
            return true;
        }
        false
    }
}

/// Whether something is still to come, or to be sent.
fn is_live(running: &Running, truth: &Truth) -> bool {
    match truth.calls[running.id as usize].outcome {
        None => true,
        Some(Outcome::Done) => !running.end_sent,
        Some(_) => false,
    }
}

fn abandon(running: Vec<Running>, truth: &mut Truth) {
    for running in running {
        if truth.calls[running.id as usize].outcome.is_none() {
            truth.finish(running.id, Outcome::Lost);
        }
    }
}

fn handle(running: &mut [Running], going_away: &mut bool, event: Event<'_>, truth: &mut Truth) {
    let find = |running: &mut [Running], stream: StreamId| running.iter().position(|entry| entry.stream == stream);
    match event {
        Event::Headers { stream, block, flags, .. } => {
            let Some(index) = find(running, stream) else { return };
            let entry = &mut running[index];
            let plan = &truth.calls[entry.id as usize].plan;
            if block.is_interim() {
                return;
            }
            let expected = match plan.mode {
                Mode::NoContent => 204,
                Mode::Always425 => 425,
                _ => 200,
            };
            let hostile = truth.calls[entry.id as usize].hostile;
            assert!(
                hostile || block.status() == Some(expected),
                "bytes_exact: status {:?} of {}",
                block.status(),
                entry.id
            );
            entry.headers = true;
            if flags.end() {
                truth.client_read_end(entry.id);
            }
        }
        Event::Data { stream, bytes, end, .. } => {
            let Some(index) = find(running, stream) else { return };
            let entry = &mut running[index];
            if truth.calls[entry.id as usize].outcome.is_some() {
                return;
            }
            if truth.calls[entry.id as usize].hostile {
                if end {
                    truth.finish(entry.id, Outcome::Lost);
                }
                return;
            }
            entry.unconsumed += bytes.len();
            truth.client_read_body(entry.id, bytes);
            if end {
                truth.client_read_end(entry.id);
            }
        }
        Event::Reset { stream, code, receipt, .. } => {
            let Some(index) = find(running, stream) else { return };
            let id = running[index].id;
            running[index].end_sent = true;
            if truth.calls[id as usize].outcome.is_none() {
                truth.finish(id, Outcome::Failed { code, receipt });
            }
        }
        Event::GoAway { .. } => *going_away = true,
        Event::Established | Event::Credit { .. } | Event::Pong => {}
    }
}

/// The header block of a call.
fn request(id: u32, plan: &Plan) -> (Vec<u8>, HeaderFlags) {
    let mut block = Vec::new();
    let mut writer = HeaderWriter::new(&mut block);
    let marker = Truth::marker(id);
    let path =
        format!("/c/{id}/{}/{}/{}/{}", Truth::check(id), plan.mode.number(), plan.response_bytes, plan.request_bytes);
    let service: &[u8] = match plan.service {
        Service::Http => b"pay",
        Service::Stream | Service::Tunnel => b"web",
        Service::Nobody => b"nobody",
    };
    writer.known(Known::RequestId, marker.as_bytes()).expect("visible");
    writer.known(Known::Service, service).expect("a label");
    writer.known(Known::Method, plan.method.as_bytes()).expect("a token");
    writer.known(Known::Path, path.as_bytes()).expect("a path");
    writer.number(Known::Priority, u64::from(plan.priority)).expect("a priority");
    writer.known(Known::ClientAddress, b"10.9.8.7:1").expect("visible; the POP drops it");
    writer.spelled(b"x-app", b"sim").expect("a token");
    let http = plan.service == Service::Http;
    if http && plan.length_known && plan.request_bytes > 0 {
        writer.number(Known::ContentLength, plan.request_bytes as u64).expect("a length");
    }
    let mut flags = HeaderFlags::NONE;
    if http && plan.request_bytes == 0 {
        flags = flags | HeaderFlags::END;
    }
    if plan.idempotent {
        flags = flags | HeaderFlags::IDEMPOTENT;
    }
    if plan.replay_safe {
        flags = flags | HeaderFlags::REPLAY_SAFE;
    }
    (block, flags)
}

/// What a stream of a tunnel begins with.
pub const PREFACE_BYTES: usize = 16;

fn preface(id: u32, plan: &Plan) -> Vec<u8> {
    if plan.service == Service::Http {
        return Vec::new();
    }
    let mut bytes = vec![b'T', plan.mode.number()];
    bytes.extend_from_slice(&id.to_le_bytes());
    bytes.extend_from_slice(&Truth::check(id).to_le_bytes());
    bytes.extend_from_slice(&(plan.response_bytes as u32).to_le_bytes());
    bytes.extend_from_slice(&(plan.request_bytes as u32).to_le_bytes());
    bytes
}

/// Bytes of what the client sends, the preface of a tunnel included.
fn content(id: u32, plan: &Plan, from: usize, count: usize) -> Vec<u8> {
    let preface = preface(id, plan);
    let mut bytes: Vec<u8> = preface.iter().copied().skip(from).take(count).collect();
    let rest = count - bytes.len();
    bytes.extend(body(id, true, (from + bytes.len()) - preface.len().min(from + bytes.len()), rest));
    bytes
}

/// Puts what nobody should send at `at`.
fn rubbish(prng: &mut Prng, plain: &mut Vec<u8>, at: usize) {
    match prng.below(4) {
        0 => {
            let noise: Vec<u8> = (0..1 + prng.below(300)).map(|_| prng.next_u64() as u8).collect();
            plain.splice(at..at, noise);
        }
        1 => plain.truncate(at),
        2 => {
            for byte in &mut plain[at..] {
                if prng.chance(8) {
                    *byte ^= 1 << prng.below(8);
                }
            }
        }
        _ => {
            let again: Vec<u8> = plain[..at.min(200)].to_vec();
            plain.splice(at..at, again);
        }
    }
}

/// A client that speaks no MMTP: its connection is one stream.
pub struct TunnelClient {
    pub name: String,
    prng: Prng,
    address: SocketAddr,
    manners: Manners,
    start_at: Time,
    id: u32,
    secure: Option<Secure>,
    sent: usize,
    /// Cuts its connection with a bare FIN after so many bytes.
    pub cuts_after: Option<usize>,
    pub done: bool,
}

impl TunnelClient {
    pub fn new(name: String, prng: Prng, address: SocketAddr, start_at: Time, id: u32, manners: Manners) -> Self {
        TunnelClient {
            name,
            prng,
            address,
            manners,
            start_at,
            id,
            secure: None,
            sent: 0,
            cuts_after: None,
            done: false,
        }
    }

    pub fn wake(&self, now: Time) -> Option<Time> {
        let mut times = vec![self.start_at];
        times.extend(self.manners.deaf.map(|(_, until)| until));
        times.extend(self.manners.leaves.map(|(at, _)| at));
        times.into_iter().filter(|at| *at > now).min()
    }

    fn end(&mut self, ctx: &mut Ctx<'_>, outcome: Outcome) {
        if ctx.truth.calls[self.id as usize].outcome.is_none() {
            ctx.truth.finish(self.id, outcome);
        }
    }

    pub fn step(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let now = ctx.net.now;
        if self.done || (now < self.start_at && !ctx.leaving) {
            return false;
        }
        if self.secure.is_none() {
            let fd = if ctx.leaving { None } else { ctx.net.connect(self.address).ok() };
            let Some(fd) = fd else {
                self.end(ctx, Outcome::Unsent);
                self.done = true;
                return true;
            };
            note!(ctx.net, "{} connects fd {} for {}", self.name, fd.0, self.id);
            let handshake = self.manners.handshakes.next(&mut self.prng);
            let mut secure = visit(ctx, fd, &security().tunnel_client, handshake, true);
            secure.corrupt_after = self.manners.corrupt_wire;
            self.secure = Some(secure);
            ctx.truth.calls[self.id as usize].sent = true;
        }
        let moved = self.read(ctx);
        if self.done { true } else { moved | self.write(ctx) | self.part(ctx) }
    }

    fn read(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let now = ctx.net.now;
        if self.manners.deaf.is_some_and(|(from, until)| from <= now && now < until && !ctx.leaving) {
            return false;
        }
        let secure = self.secure.as_mut().expect("the caller made it");
        let mut plain = Vec::new();
        let moved = secure.read(ctx.net, &mut self.prng, &mut |bytes| plain.extend_from_slice(bytes));
        let hostile = ctx.truth.calls[self.id as usize].hostile;
        if !hostile && ctx.truth.calls[self.id as usize].outcome.is_none() {
            ctx.truth.client_read_body(self.id, &plain);
        }
        let (far, fd) = (secure.far, secure.fd);
        if far == Far::Broken {
            let error = secure.tls_error.take();
            note!(ctx.net, "{} lost fd {}: {error:?}", self.name, fd.0);
            assert!(hostile || error.is_none(), "conformance: {} was sent what breaks TLS: {error:?}", self.name);
            let plan = &ctx.truth.calls[self.id as usize].plan;
            let clear = ctx.truth.is_clear && !ctx.truth.gateway_died && !ctx.truth.drained && plan.mode != Mode::Break;
            let cut = ctx.truth.visits[&ctx.net.local(fd)].cut;
            let own = cut || hostile || self.manners.leaves.is_some() || self.cuts_after.is_some();
            assert!(!clear || own, "clear_weather: {} lost its tunnel ({:?})", self.name, plan);
            self.end(ctx, Outcome::Lost);
            ctx.net.close(fd, false);
            self.done = true;
        } else if far == Far::Ended && ctx.truth.calls[self.id as usize].outcome.is_none() {
            if hostile {
                self.end(ctx, Outcome::Lost);
            } else {
                // An end that the POP vouches for: the answer is whole.
                ctx.truth.client_read_end(self.id);
            }
        }
        moved
    }

    fn write(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let plan = ctx.truth.calls[self.id as usize].plan.clone();
        let secure = self.secure.as_mut().expect("the caller made it");
        look_at_handshake(ctx, secure);
        let whole = PREFACE_BYTES + plan.request_bytes;
        if secure.out.plain.len() < 16 * 1024 && self.sent < whole && secure.is_established() {
            let count = (whole - self.sent).min(1 + self.prng.below(12_000) as usize);
            secure.out.plain.extend(content(self.id, &plan, self.sent, count));
            self.sent += count;
        }
        if self.sent == whole {
            secure.say_goodbye();
        }
        secure.write(ctx.net, &mut self.prng)
    }

    fn part(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let now = ctx.net.now;
        let secure = self.secure.as_mut().expect("the caller made it");
        let fd = secure.fd;
        let cut = self.cuts_after.is_some_and(|after| self.sent > after);
        let left = self.manners.leaves.is_some_and(|(at, _)| at <= now);
        if left || cut {
            let reset = !cut && self.prng.chance(2);
            note!(ctx.net, "{} leaves fd {} (reset {reset})", self.name, fd.0);
            self.end(ctx, Outcome::Lost);
            ctx.net.close(fd, reset);
            self.done = true;
            return true;
        }
        let over = ctx.truth.calls[self.id as usize].outcome.is_some();
        if over && (secure.is_flushed() || ctx.leaving) {
            ctx.net.close(fd, false);
            self.done = true;
            return true;
        }
        false
    }
}

/// Somebody who sends what he recorded of others, byte for byte, and can complete no handshake.
pub struct Replayer {
    prng: Prng,
    address: SocketAddr,
    start_at: Time,
    secure: Option<Secure>,
    pub done: bool,
}

impl Replayer {
    pub fn new(prng: Prng, address: SocketAddr, start_at: Time) -> Replayer {
        Replayer { prng, address, start_at, secure: None, done: false }
    }

    pub fn wake(&self, now: Time) -> Option<Time> {
        Some(self.start_at).filter(|at| *at > now)
    }

    pub fn step(&mut self, ctx: &mut Ctx<'_>) -> bool {
        if self.done || ctx.net.now < self.start_at {
            return false;
        }
        let Some(secure) = self.secure.as_mut() else {
            self.begin(ctx);
            return true;
        };
        let mut moved = secure.read(ctx.net, &mut self.prng, &mut |_| {});
        moved |= secure.write(ctx.net, &mut self.prng);
        if secure.far != Far::Open || ctx.leaving {
            ctx.net.close(secure.fd, false);
            self.done = true;
            return true;
        }
        moved
    }

    fn begin(&mut self, ctx: &mut Ctx<'_>) {
        let flights = ctx.truth.flights.len() as u64;
        let flight = (flights > 0).then(|| ctx.truth.flights[self.prng.below(flights) as usize].clone());
        let (Some(flight), false) = (flight, ctx.leaving) else {
            self.done = true;
            return;
        };
        let Ok(fd) = ctx.net.connect(self.address) else {
            self.done = true;
            return;
        };
        note!(ctx.net, "a replayer connects fd {} with {} bytes", fd.0, flight.len());
        for (id, check) in markers(&flight) {
            if let Some(call) = ctx.truth.call(id, check) {
                call.replayed = true;
            }
        }
        let handshake = Handshake::Never(Duration::from_millis(self.prng.below(4000)));
        let mut secure = visit(ctx, fd, &security().mmtp_client, handshake, false);
        secure.out.plain = flight;
        self.secure = Some(secure);
    }
}

/// Somebody who does not even speak TLS, or not to its end.
pub struct Stranger {
    prng: Prng,
    address: SocketAddr,
    start_at: Time,
    /// What it says, and how it goes on.
    says: Vec<u8>,
    pause: Duration,
    next_at: Time,
    fd: Option<Fd>,
    hangs: bool,
    pub done: bool,
}

impl Stranger {
    pub fn new(mut prng: Prng, address: SocketAddr, start_at: Time) -> Stranger {
        let noise =
            |prng: &mut Prng, most: u64| (0..prng.below(most)).map(|_| prng.next_u64() as u8).collect::<Vec<u8>>();
        let says = match prng.below(6) {
            0 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            1 => noise(&mut prng, 2000),
            2 => Vec::new(),
            3 => [vec![22, 3, 1, 2, 0], noise(&mut prng, 600)].concat(),
            4 => vec![22, 3, 1, 0xff, 0xff, 1, 2, 3],
            _ => {
                // A ClientHello that breaks off, or comes slowly.
                let mut hello = Secure::new(Fd(0), &security().mmtp_client).take_sealed();
                hello.truncate(prng.below(hello.len() as u64 + 1) as usize);
                hello
            }
        };
        let pause = Duration::from_millis([0, 0, 5, 400][prng.below(4) as usize]);
        let hangs = prng.chance(3);
        Stranger { prng, address, start_at, says, pause, next_at: start_at, fd: None, hangs, done: false }
    }

    pub fn wake(&self, now: Time) -> Option<Time> {
        [self.start_at, self.next_at].into_iter().filter(|at| *at > now).min()
    }

    pub fn step(&mut self, ctx: &mut Ctx<'_>) -> bool {
        if self.done || ctx.net.now < self.next_at {
            return false;
        }
        let Some(fd) = self.fd else {
            self.fd = ctx.net.connect(self.address).ok();
            self.done = self.fd.is_none();
            return true;
        };
        match ctx.net.read(fd, 1000) {
            Read::Bytes(_) => return true,
            Read::End | Read::Reset => return self.leave(ctx, fd),
            Read::Nothing => {}
        }
        if self.says.is_empty() {
            return if self.hangs && !ctx.leaving { false } else { self.leave(ctx, fd) };
        }
        let count = if self.pause.is_zero() { self.says.len() } else { 1 + self.prng.below(90) as usize };
        match ctx.net.write(fd, &self.says[..count.min(self.says.len())]) {
            Ok(count) => {
                self.says.drain(..count);
            }
            Err(_) => return self.leave(ctx, fd),
        }
        self.next_at = ctx.net.now + self.pause;
        true
    }

    fn leave(&mut self, ctx: &mut Ctx<'_>, fd: Fd) -> bool {
        let reset = self.prng.chance(2);
        ctx.net.close(fd, reset);
        self.done = true;
        true
    }
}
