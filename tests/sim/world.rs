//! One run: who there is, what they will do, and the loop that decides whose turn it is.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use trunkline::backbone::PoolSettings;
use trunkline::base::counters::Counters;
use trunkline::base::prng::Prng;
use trunkline::base::slab::SideTable;
use trunkline::base::time::Time;
use trunkline::base::wire::{Closed, LinkId, Opened, Origin as From, Role, Wire};
use trunkline::gateway::{Gateway, GatewaySettings, Service as Offered, ServiceKind};
use trunkline::mmtp::{Agent, CreditPolicy, Settings, Side};
use trunkline::relay::{Relay, RelaySettings, TunnelSettings};
use trunkline::worker::{Command, ListenerPlan, Shared, Worker, WorkerSettings};

use crate::clients::{Ctx, Manners, MmtpClient, Replayer, Stranger, TunnelClient};
use crate::doorman::Doorman;
use crate::net::{Net, Owner, Weather, note};
use crate::origins::Origin;
use crate::plan::{Handshakes, Scenario, manners, plan};
use crate::ring::FakeRing;
use crate::secure::security;
use crate::truth::{MARKER_BYTES_MAX, Service, Truth, markers};

/// A gateway's role with somebody who writes down which requests it saw.
pub struct Witness {
    gateway: Gateway,
    truth: Rc<RefCell<Truth>>,
    /// The last bytes of each trunk, since a marker may come in pieces.
    tails: SideTable<Vec<u8>>,
}

impl Witness {
    fn look(&mut self, link: LinkId, bytes: &[u8]) {
        let Some(tail) = self.tails.get_mut(link) else { return };
        tail.extend_from_slice(bytes);
        for (id, check) in markers(tail) {
            if let Some(call) = self.truth.borrow_mut().call(id, check) {
                call.at_gateway = true;
            }
        }
        let keep = tail.len().saturating_sub(MARKER_BYTES_MAX);
        tail.drain(..keep);
    }
}

impl<W: Wire> Role<W> for Witness {
    fn opened(&mut self, now: Time, wire: &mut W, link: LinkId, opened: Opened) {
        if matches!(opened.origin, From::Accepted { .. }) {
            self.tails.insert(link, Vec::new());
        }
        self.gateway.opened(now, wire, link, opened);
    }

    fn bytes(&mut self, now: Time, wire: &mut W, link: LinkId, bytes: &[u8]) {
        self.look(link, bytes);
        self.gateway.bytes(now, wire, link, bytes);
    }

    fn ended(&mut self, now: Time, wire: &mut W, link: LinkId) {
        self.gateway.ended(now, wire, link);
    }

    fn room(&mut self, now: Time, wire: &mut W, link: LinkId) {
        self.gateway.room(now, wire, link);
    }

    fn closed(&mut self, now: Time, wire: &mut W, link: LinkId, closed: Closed) {
        self.gateway.closed(now, wire, link, closed);
    }

    fn pass_ended(&mut self, now: Time, wire: &mut W) {
        self.gateway.pass_ended(now, wire);
    }

    fn next_deadline(&self) -> Option<Time> {
        Role::<W>::next_deadline(&self.gateway)
    }

    fn due(&mut self, now: Time, wire: &mut W) {
        self.gateway.due(now, wire);
    }

    fn drain(&mut self, wire: &mut W) {
        self.gateway.drain(wire);
    }

    fn is_drained(&self) -> bool {
        Role::<W>::is_drained(&self.gateway)
    }
}

type PopWorker = Worker<FakeRing, Doorman>;
type GatewayWorker = Worker<FakeRing, Witness>;

struct Process<W> {
    host: usize,
    worker: Option<W>,
    shared: Arc<Shared>,
    /// Asked to drain, and until when it has time.
    drain_until: Option<Time>,
}

const DRAIN_PATIENCE: Duration = Duration::from_secs(3);
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// Nothing may need more rounds than this: a worker that is busy for nothing shows here.
const ROUNDS_MAX: u64 = 400_000;

pub struct World {
    pub net: Rc<RefCell<Net>>,
    pub truth: Rc<RefCell<Truth>>,
    scenario: Scenario,
    prng: Prng,
    pop: Process<PopWorker>,
    gateways: Vec<Process<GatewayWorker>>,
    /// When a dead gateway comes back.
    returns: Vec<Option<Time>>,
    mmtp_clients: Vec<MmtpClient>,
    tunnel_clients: Vec<TunnelClient>,
    strangers: Vec<Stranger>,
    replayers: Vec<Replayer>,
    origins: Vec<Origin>,
    /// Counters of every worker that ended in order.
    pub final_counters: Vec<Counters>,
    leaving: bool,
    /// The run is over but for the drains.
    stopping: bool,
    rounds: u64,
}

fn pop_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 443))
}

fn gateway_address(index: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1 + index as u8], 7443))
}

fn origin_address(index: usize) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 100 + index as u8], 80))
}

fn worker_settings(fd: trunkline::ring::Fd, pop: bool) -> WorkerSettings {
    let tls = if pop { &security().pop } else { &security().gateway };
    WorkerSettings {
        index: 0,
        listeners: vec![ListenerPlan { fd, proxy_protocol: false }],
        tls: tls.clone(),
        accepted_max: 1000,
        handshake_timeout: Duration::from_secs(4),
        handshake_share: 20,
        handshake_patience: Duration::from_secs(3),
        serves_clients: pop,
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(if pop { 30 } else { 60 }),
        linger_timeout: Duration::from_secs(1),
    }
}

impl World {
    pub fn new(scenario: Scenario, logging: bool) -> World {
        let seed = scenario.seed;
        let mut net = Net::new(seed ^ 0x6e65_7400, scenario.weather.clone(), logging);
        let pop_host = net.add_host(scenario.buffers.0, scenario.buffers.1);
        let pop_fd = net.listen(Owner::Host(pop_host), pop_address());
        for index in 0..3 {
            net.listen(Owner::Actor, origin_address(index));
        }
        let truth = Rc::new(RefCell::new(Truth::new(
            scenario.is_clear,
            scenario.trunk_streams_max < 100 && scenario.guests.is_empty(),
        )));
        let mut prng = Prng::new(seed ^ 0x776f_726c);
        let net = Rc::new(RefCell::new(net));
        let relay = Relay::new(relay_settings(&scenario), Prng::new(prng.next_u64()));
        let shared = Arc::new(Shared::new(1));
        let ring = FakeRing::new(net.clone(), pop_host);
        let role = Doorman::new(relay, truth.clone(), scenario.tunnel_early);
        let worker = Worker::new(ring, role, worker_settings(pop_fd, true), shared.clone());
        let origins = (0..3).map(|index| Origin::new(origin_address(index), index > 0, Prng::new(prng.next_u64())));
        let mut world = World {
            origins: origins.collect(),
            pop: Process { host: pop_host, worker: Some(worker), shared, drain_until: None },
            gateways: Vec::new(),
            returns: vec![None; scenario.gateways],
            mmtp_clients: Vec::new(),
            tunnel_clients: Vec::new(),
            strangers: Vec::new(),
            replayers: Vec::new(),
            final_counters: Vec::new(),
            leaving: false,
            stopping: false,
            rounds: 0,
            net,
            truth,
            prng,
            scenario,
        };
        for index in 0..world.scenario.gateways {
            let process = world.start_gateway(index);
            world.gateways.push(process);
        }
        world.invite();
        world
    }

    fn start_gateway(&mut self, index: usize) -> Process<GatewayWorker> {
        let (host, fd) = {
            let mut net = self.net.borrow_mut();
            let host = net.add_host(self.scenario.buffers.0, self.scenario.buffers.1);
            (host, net.listen(Owner::Host(host), gateway_address(index)))
        };
        let gateway = Gateway::new(gateway_settings(&self.scenario));
        let witness = Witness { gateway, truth: self.truth.clone(), tails: SideTable::default() };
        let shared = Arc::new(Shared::new(1));
        let ring = FakeRing::new(self.net.clone(), host);
        let worker = Worker::new(ring, witness, worker_settings(fd, false), shared.clone());
        Process { host, worker: Some(worker), shared, drain_until: None }
    }

    /// Plans every client and its calls.
    fn invite(&mut self) {
        let prng = &mut Prng::new(self.prng.next_u64());
        let start = self.net.borrow().now;
        let at = |prng: &mut Prng, most_ms: u64| start + Duration::from_millis(prng.below(most_ms));
        for index in 0..self.scenario.mmtp_clients {
            let manners = manners(prng, &self.scenario, start);
            let base = if prng.chance(3) { 1500 } else { 100 };
            let calls = (0..1 + prng.below(self.scenario.calls_max))
                .map(|_| {
                    let service = match prng.below(12) {
                        0..=2 => Service::Stream,
                        3 => Service::Nobody,
                        _ => Service::Http,
                    };
                    let plan = plan(prng, &self.scenario, service);
                    (at(prng, base), self.truth.borrow_mut().add(plan, manners.is_hostile()))
                })
                .collect();
            let seed = prng.next_u64();
            let name = format!("client {index}");
            self.mmtp_clients.push(MmtpClient::new(name, Prng::new(seed), pop_address(), calls, manners));
        }
        for index in 0..self.scenario.tunnel_clients {
            let manners = manners(prng, &self.scenario, start);
            let manners = Manners { corrupt_plain: None, vanishes: None, stingy_until: None, ..manners };
            let plan = plan(prng, &self.scenario, Service::Tunnel);
            let request_bytes = plan.request_bytes;
            let id = self.truth.borrow_mut().add(plan, manners.is_hostile());
            let seed = prng.next_u64();
            let name = format!("tunnel {index}");
            let mut client = TunnelClient::new(name, Prng::new(seed), pop_address(), at(prng, 1200), id, manners);
            if !self.truth.borrow().is_clear && prng.chance(8) {
                client.cuts_after = Some(prng.below(request_bytes as u64 + 1) as usize);
            }
            self.tunnel_clients.push(client);
        }
        for (index, guest) in self.scenario.guests.clone().into_iter().enumerate() {
            let from_start = |after: Duration| start + after;
            let manners = Manners {
                leaves: guest.leaves.map(|(at, gently)| (start + at, gently)),
                deaf: guest.deaf.map(|(from, until)| (start + from, start + until)),
                stingy_until: guest.stingy_until.map(from_start),
                handshakes: Handshakes::Always(guest.handshake),
                ..Manners::default()
            };
            let mut truth = self.truth.borrow_mut();
            let is_tunnel = guest.calls[0].1.service == Service::Tunnel;
            let mut calls = guest.calls.into_iter().map(|(at, plan)| (start + at, truth.add(plan, false)));
            let (name, prng) = (format!("guest {index}"), Prng::new(prng.next_u64()));
            if is_tunnel {
                let (at, id) = calls.next().expect("a tunnel makes a call");
                self.tunnel_clients.push(TunnelClient::new(name, prng, pop_address(), at, id, manners));
            } else {
                self.mmtp_clients.push(MmtpClient::new(name, prng, pop_address(), calls.collect(), manners));
            }
        }
        for _ in 0..self.scenario.strangers {
            let seed = prng.next_u64();
            let stranger = Stranger::new(Prng::new(seed), pop_address(), at(prng, 2500));
            self.strangers.push(stranger);
        }
        for _ in 0..self.scenario.replayers {
            let seed = prng.next_u64();
            self.replayers.push(Replayer::new(Prng::new(seed), pop_address(), at(prng, 4500)));
        }
    }

    // ---- turns ----

    /// Everyone has a turn, in an order of the generator's. True when anything moved.
    fn round(&mut self, everyone: bool) -> bool {
        self.rounds += 1;
        assert!(self.rounds < ROUNDS_MAX, "no_livelock: {ROUNDS_MAX} rounds and no end");
        let gateways = self.gateways.len();
        let mut order: Vec<usize> = (0..gateways + 2).collect();
        for index in (1..order.len()).rev() {
            order.swap(index, self.prng.below(index as u64 + 1) as usize);
        }
        let mut moved = false;
        for who in order {
            if !everyone && self.prng.chance(4) {
                continue;
            }
            moved |= match who {
                0 => self.pass_pop(),
                1 => self.step_actors(),
                _ => self.pass_gateway(who - 2),
            };
        }
        moved
    }

    fn pass_pop(&mut self) -> bool {
        let Some(worker) = self.pop.worker.as_mut() else { return false };
        if !self.net.borrow().is_ready(self.pop.host) && !self.prng.chance(16) {
            return false;
        }
        let goes_on = worker.pass().expect("a simulated ring never breaks");
        self.check_memory();
        if !goes_on {
            self.pop_over();
            return true;
        }
        self.told(self.pop.host)
    }

    fn told(&self, host: usize) -> bool {
        let net = self.net.borrow();
        net.hosts[host].told > 0 || net.is_ready(host)
    }

    fn pass_gateway(&mut self, index: usize) -> bool {
        let process = &mut self.gateways[index];
        let Some(worker) = process.worker.as_mut() else { return false };
        let host = process.host;
        if !self.net.borrow().is_ready(host) && !self.prng.chance(16) {
            return false;
        }
        if !worker.pass().expect("a simulated ring never breaks") {
            self.gateway_over(index);
            return true;
        }
        self.told(host)
    }

    fn step_actors(&mut self) -> bool {
        let mut net = self.net.borrow_mut();
        let mut truth = self.truth.borrow_mut();
        let pop_drains = self.pop.drain_until.is_some() || self.pop.worker.is_none();
        let mut ctx = Ctx { net: &mut net, truth: &mut truth, leaving: self.leaving, pop_drains };
        let mut moved = false;
        for client in &mut self.mmtp_clients {
            moved |= client.step(&mut ctx);
        }
        for client in &mut self.tunnel_clients {
            moved |= client.step(&mut ctx);
        }
        for stranger in &mut self.strangers {
            moved |= stranger.step(&mut ctx);
        }
        for replayer in &mut self.replayers {
            moved |= replayer.step(&mut ctx);
        }
        for origin in &mut self.origins {
            moved |= origin.step(&mut ctx);
        }
        moved
    }

    fn wakes(&self) -> Option<Time> {
        let net = self.net.borrow();
        let now = net.now;
        let mmtp = self.mmtp_clients.iter().filter(|client| !client.done).filter_map(|client| client.wake(now));
        let tunnels = self.tunnel_clients.iter().filter(|client| !client.done).filter_map(|client| client.wake(now));
        let strangers = self.strangers.iter().filter(|client| !client.done).filter_map(|client| client.wake(now));
        let origins = self.origins.iter().filter_map(|origin| origin.wake(now));
        let replayers = self.replayers.iter().filter(|client| !client.done).filter_map(|client| client.wake(now));
        let returns = self.returns.iter().copied().flatten().filter(|at| *at > now);
        mmtp.chain(tunnels)
            .chain(strangers)
            .chain(replayers)
            .chain(origins)
            .chain(returns)
            .chain(net.next_event())
            .min()
    }

    /// Moves on: one round, and time when nothing else moves.
    fn go_on(&mut self, until: Time) {
        self.misfortune();
        if self.round(false) || self.round(true) {
            let mut net = self.net.borrow_mut();
            let step = Duration::from_nanos(net.prng.below(20_000));
            net.now = net.now + step;
            return;
        }
        let next = self.wakes().unwrap_or(until).min(until);
        let mut net = self.net.borrow_mut();
        let soon = net.now + Duration::from_nanos(1000);
        net.now = next.max(soon);
    }

    fn misfortune(&mut self) {
        let (reset, jump) = {
            let net = self.net.borrow();
            (net.weather.reset, net.weather.jump)
        };
        if self.prng.chance(reset) {
            self.net.borrow_mut().inject_random_reset();
        }
        if self.prng.chance(jump) {
            let mut net = self.net.borrow_mut();
            let by = Duration::from_millis(net.prng.below(1200));
            note!(net, "fault: time jumps by {by:?}");
            net.now = net.now + by;
        }
        for index in 0..self.gateways.len() {
            if self.returns[index].is_some_and(|at| at <= self.net.borrow().now) {
                self.returns[index] = None;
                self.gateways[index] = self.start_gateway(index);
                note!(self.net.borrow_mut(), "gateway {index} returns");
            }
        }
    }

    /// Goes on until then, or until it is over.
    pub fn run_until(&mut self, until: Time, mut over: impl FnMut(&mut World) -> bool) {
        while self.net.borrow().now < until && !over(self) {
            self.go_on(until);
        }
    }

    // ---- the run ----

    pub fn run(&mut self) {
        let start = self.net.borrow().now;
        let calm_at = start + Duration::from_secs(5);
        let mut events = self.scenario.events.clone();
        events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        while let Some((at, event)) = events.pop() {
            self.run_until(start + at, |_| false);
            self.happen(event);
        }
        self.run_until(calm_at, |world| world.truth.borrow().unfinished().is_empty());
        self.calm();
        // The longest anything may take: a response timeout, a dead trunk's silence, a redial and a wait for it.
        let patience = self.net.borrow().now + Duration::from_secs(40);
        self.run_until(patience, |world| world.truth.borrow().unfinished().is_empty());
        let left = self.truth.borrow().unfinished();
        let first = left.first().map(|id| format!("{:?}", self.truth.borrow().calls[*id as usize]));
        assert!(left.is_empty(), "no_deadlock: calls {left:?} never ended; the first: {first:?}");
        self.leaving = true;
        // An idle timeout (of somebody who vanished) behind another (of the tunnel that kept his connection moving).
        let patience = self.net.borrow().now + Duration::from_secs(75);
        self.run_until(patience, |world| world.is_quiet());
        self.check_rest();
        self.stop();
    }

    fn calm(&mut self) {
        note!(self.net.borrow_mut(), "calm");
        let mut weather = Weather::calm();
        let mut net = self.net.borrow_mut();
        weather.hold = net.weather.hold;
        weather.sliver = net.weather.sliver;
        weather.multishot_end = net.weather.multishot_end;
        net.weather = weather;
    }

    fn happen(&mut self, event: crate::plan::Event) {
        match event {
            crate::plan::Event::GatewayDies { index, back_after } => {
                let index = index % self.gateways.len();
                if self.gateways[index].worker.take().is_some() {
                    self.truth.borrow_mut().gateway_died = true;
                    self.net.borrow_mut().kill_host(self.gateways[index].host);
                    self.returns[index] = Some(self.net.borrow().now + back_after);
                }
            }
            crate::plan::Event::GatewayDrains { index } => {
                let index = index % self.gateways.len();
                self.drain_gateway(index);
                self.truth.borrow_mut().drained = true;
            }
            crate::plan::Event::PopDrains => {
                self.truth.borrow_mut().drained = true;
                self.drain_pop();
            }
            crate::plan::Event::Certificates => {
                let _ = self.pop.shared.send(0, Command::Certificates(security().pop.clone()));
                self.net.borrow_mut().hosts[self.pop.host].woken = true;
            }
        }
    }

    fn drain_pop(&mut self) {
        if self.pop.worker.is_none() || self.pop.drain_until.is_some() {
            return;
        }
        let mut net = self.net.borrow_mut();
        note!(net, "POP is asked to drain");
        assert!(self.pop.shared.send(0, Command::Drain(DRAIN_PATIENCE)).is_ok(), "a queue of one command");
        net.hosts[self.pop.host].woken = true;
        self.pop.drain_until = Some(net.now + DRAIN_PATIENCE);
    }

    fn drain_gateway(&mut self, index: usize) {
        let process = &mut self.gateways[index];
        if process.worker.is_none() || process.drain_until.is_some() {
            return;
        }
        let mut net = self.net.borrow_mut();
        note!(net, "gateway {index} is asked to drain");
        assert!(process.shared.send(0, Command::Drain(DRAIN_PATIENCE)).is_ok(), "a queue of one command");
        net.hosts[process.host].woken = true;
        process.drain_until = Some(net.now + DRAIN_PATIENCE);
    }

    // ---- ends ----

    /// The POP's worker returned.
    fn pop_over(&mut self) {
        let worker = self.pop.worker.take().expect("it just passed");
        assert_eq!(worker.role().relay.stream_count(), 0, "nothing_left: streams of a POP that is over");
        self.check_over(self.pop.host, worker.counters(), "POP");
        self.final_counters.push(worker.counters().clone());
    }

    fn gateway_over(&mut self, index: usize) {
        let process = &mut self.gateways[index];
        let worker = process.worker.take().expect("it just passed");
        assert_eq!(worker.role().gateway.exchange_count(), 0, "nothing_left: exchanges of a gateway that is over");
        let host = process.host;
        let counters = worker.counters().clone();
        self.check_over(host, &counters, "gateway");
        self.final_counters.push(counters);
        if !self.stopping {
            let back = self.net.borrow().now + Duration::from_millis(300);
            self.returns[index] = Some(back);
        }
    }

    /// What a worker that drained leaves behind: nothing.
    fn check_over(&self, host: usize, counters: &Counters, who: &str) {
        let net = self.net.borrow();
        assert_eq!(net.ops_out(host), 0, "nothing_left: operations of a {who} that is over");
        assert_eq!(net.open_descriptors(host), 0, "nothing_left: descriptors of a {who} that is over");
        assert_eq!(
            net.buffers_free(host),
            net.hosts[host].buffers_total,
            "nothing_left: buffers of a {who} that is over"
        );
        check_gauges(counters, who);
        assert_eq!(counters.links_open, 0, "nothing_left: links of a {who} that is over");
        assert_eq!(counters.stale_completions, 0, "no_stale_completion: a {who}");
    }

    fn trunks(&self) -> usize {
        self.scenario.gateways * self.scenario.trunks_per_gateway
    }

    /// Whether everyone has left and every trunk is up.
    fn is_quiet(&mut self) -> bool {
        let gone = self.mmtp_clients.iter().all(|client| client.done)
            && self.tunnel_clients.iter().all(|client| client.done)
            && self.strangers.iter().all(|stranger| stranger.done)
            && self.replayers.iter().all(|replayer| replayer.done);
        let trunks: u64 = self
            .gateways
            .iter()
            .filter_map(|process| process.worker.as_ref())
            .map(|worker| worker.counters().connections_open)
            .sum();
        let wanted = if self.pop.worker.is_some() { self.trunks() as u64 } else { 0 };
        let gateways = trunks == wanted
            && self.gateways.iter().all(|process| {
                process.worker.as_ref().is_some_and(|worker| {
                    let counters = worker.counters();
                    counters.links_open == counters.connections_open + counters.upstream_idle
                        && worker.role().gateway.exchange_count() == 0
                })
            });
        let Some(pop) = self.pop.worker.as_ref() else { return gone && gateways };
        let counters = pop.counters();
        gone && counters.connections_open == 0
            && counters.links_open == self.trunks() as u64
            && pop.role().relay.pool().ready() == self.trunks()
            && pop.role().relay.stream_count() == 0
            && gateways
    }

    /// Everyone has left: only trunks and kept-alive connections may be there.
    fn check_rest(&mut self) {
        let mut trunks_total = 0;
        for process in &self.gateways {
            let worker = process.worker.as_ref().expect("recovery: a gateway is up at the end");
            let counters = worker.counters();
            let held = counters.connections_open + counters.upstream_idle;
            trunks_total += counters.connections_open;
            assert_eq!(worker.role().gateway.exchange_count(), 0, "nothing_left: exchanges of a gateway");
            assert_eq!(counters.streams_open, 0, "nothing_left: streams_open of a gateway");
            assert_eq!(counters.links_open, held, "nothing_left: links_open of a gateway: {counters:?}");
            assert_eq!(counters.upstream_open, counters.upstream_idle, "nothing_left: upstreams of a gateway");
            let free = self.net.borrow().buffers_free(process.host);
            assert_eq!(free, self.net.borrow().hosts[process.host].buffers_total, "nothing_left: buffers of a gateway");
        }
        let Some(pop) = self.pop.worker.as_ref() else {
            assert_eq!(trunks_total, 0, "nothing_left: a gateway holds trunks of a POP that is gone");
            return;
        };
        let counters = pop.counters();
        check_gauges(counters, "POP");
        assert_eq!(pop.role().relay.stream_count(), 0, "nothing_left: streams of the POP");
        assert_eq!(pop.role().relay.pool().ready(), self.trunks(), "recovery: every trunk is up at the end");
        assert_eq!(counters.trunks_ready, self.trunks() as u64, "recovery: trunks_ready counts the trunks");
        assert_eq!(counters.links_open, self.trunks() as u64, "nothing_left: links_open of the POP");
        assert_eq!(trunks_total, self.trunks() as u64, "nothing_left: a gateway holds trunks that the POP has not");
        let free = self.net.borrow().buffers_free(self.pop.host);
        assert_eq!(free, self.net.borrow().hosts[self.pop.host].buffers_total, "nothing_left: buffers of the POP");
    }

    /// Drains everyone: with nothing left to wait for, that is quick.
    fn stop(&mut self) {
        self.stopping = true;
        self.drain_pop();
        let until = self.net.borrow().now + DRAIN_PATIENCE;
        self.run_until(until, |world| world.pop.worker.is_none());
        assert!(self.pop.worker.is_none(), "drain_in_time: the POP did not end with nothing left to do");
        for index in 0..self.gateways.len() {
            self.drain_gateway(index);
        }
        let until = self.net.borrow().now + DRAIN_PATIENCE;
        self.run_until(until, |world| world.gateways.iter().all(|process| process.worker.is_none()));
        let over = self.gateways.iter().all(|process| process.worker.is_none());
        assert!(over, "drain_in_time: a gateway did not end with nothing left to do");
    }

    /// What may wait inside the POP is bounded, whoever does not read.
    fn check_memory(&mut self) {
        let now = self.net.borrow().now;
        let patience = |until: Option<Time>| until.is_none_or(|until| now < until + STOP_GRACE);
        assert!(patience(self.pop.drain_until), "drain_in_time: the POP is still there");
        let gateways = self.gateways.iter().filter(|process| process.worker.is_some());
        for process in gateways {
            assert!(patience(process.drain_until), "drain_in_time: a gateway is still there");
        }
        let Some(worker) = self.pop.worker.as_ref() else { return };
        for trunk in worker.role().relay.pool().trunks() {
            let Some(connection) = trunk.connection.as_ref() else { continue };
            let most = connection.open_streams() * self.scenario.stream_queue_max();
            let queued = connection.queued_bytes();
            assert!(
                queued <= most,
                "memory_bounded: {queued} bytes wait for a trunk of {} streams",
                connection.open_streams()
            );
        }
    }
}

fn check_gauges(counters: &Counters, who: &str) {
    let gauges = [
        ("connections_open", counters.connections_open),
        ("streams_open", counters.streams_open),
        ("streams_waiting", counters.streams_waiting),
        ("streams_held", counters.streams_held),
        ("tunnels_open", counters.tunnels_open),
    ];
    for (name, value) in gauges {
        assert_eq!(value, 0, "nothing_left: {name} of a {who}");
    }
}

fn relay_settings(scenario: &Scenario) -> RelaySettings {
    let mut trunk = Settings::new(Side::Initiator, Agent::Pop);
    trunk.stream_credit = scenario.trunk_stream_credit;
    trunk.stream_credit_max = 256 * 1024;
    trunk.connection_credit = 1024 * 1024;
    trunk.credit_policy = CreditPolicy::OnArrival;
    trunk.churn_burst = 1 << 20;
    let mut clients = Settings::new(Side::Acceptor, Agent::Pop);
    clients.stream_credit = scenario.client_stream_credit;
    clients.stream_credit_max = 256 * 1024;
    RelaySettings {
        pop_id: "pop-1".to_owned(),
        tunnels: vec![Some(TunnelSettings { service: "web".to_owned(), early: scenario.tunnel_early })],
        mmtp: clients,
        pool: PoolSettings {
            gateways: (0..scenario.gateways).map(gateway_address).collect(),
            trunks_per_gateway: scenario.trunks_per_gateway,
            mmtp: trunk,
            heartbeat_interval: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
        },
        wait_for_trunk: Duration::from_secs(2),
        streams_max: 10_000,
        goaway_wait: Duration::from_secs(1),
    }
}

fn gateway_settings(scenario: &Scenario) -> GatewaySettings {
    let mut trunk = Settings::new(Side::Acceptor, Agent::Gateway);
    trunk.streams_max = scenario.trunk_streams_max;
    trunk.stream_credit = scenario.trunk_stream_credit;
    trunk.stream_credit_max = 256 * 1024;
    trunk.connection_credit = 1024 * 1024;
    trunk.credit_policy = CreditPolicy::OnArrival;
    trunk.churn_burst = 1 << 20;
    let service = |name: &str, kind, upstreams| Offered {
        name: name.to_owned(),
        kind,
        upstreams,
        authority: format!("{name}.example"),
        response_timeout: Duration::from_secs(4),
        idle_timeout: Duration::from_secs(20),
        keepalive_max: 4,
        keepalive_timeout: Duration::from_secs(2),
        connections_max: 1000,
    };
    GatewaySettings {
        services: vec![
            service("web", ServiceKind::Tunnel, vec![origin_address(0)]),
            service("pay", ServiceKind::Http, vec![origin_address(1), origin_address(2)]),
        ],
        mmtp: trunk,
        streams_max: 10_000,
        goaway_wait: Duration::from_millis(200),
    }
}
