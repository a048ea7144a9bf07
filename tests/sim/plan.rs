//! What a seed means: the weather, who comes, what they do, and what befalls the processes.

use std::time::Duration;

use trunkline::base::prng::Prng;
use trunkline::base::time::Time;
use trunkline::relay::TunnelEarly;

use crate::clients::Manners;
use crate::doorman::Handshake;
use crate::net::Weather;
use crate::truth::{Mode, Plan, Service};

/// Something that befalls a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    GatewayDies { index: usize, back_after: Duration },
    GatewayDrains { index: usize },
    PopDrains,
    Certificates,
}

/// Everything about a run that is decided beforehand.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub weather: Weather,
    /// Nothing but reordering, delays, short sends and a want of buffers happens.
    pub is_clear: bool,
    pub gateways: usize,
    pub trunks_per_gateway: usize,
    /// Receive buffers of each worker, and the bytes of one.
    pub buffers: (usize, usize),
    pub trunk_streams_max: u32,
    pub trunk_stream_credit: u32,
    pub client_stream_credit: u32,
    pub mmtp_clients: u64,
    pub calls_max: u64,
    pub tunnel_clients: u64,
    pub strangers: u64,
    pub hostile: bool,
    pub rude: bool,
    pub bulk: bool,
    /// Some connections open early.
    pub early: bool,
    /// Somebody sends recorded first flights again.
    pub replayers: u64,
    pub tunnel_early: TunnelEarly,
    pub events: Vec<(Duration, Event)>,
    /// Instead of clients that the seed decides.
    pub guests: Vec<Guest>,
}

/// A client whose doings are given.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Leaves then, from the start: gently or not.
    pub leaves: Option<(Duration, bool)>,
    /// Deaf between these, from the start.
    pub deaf: Option<(Duration, Duration)>,
    /// Gives no credit back before this, from the start.
    pub stingy_until: Option<Duration>,
    /// How its connections open.
    pub handshake: Handshake,
    /// Calls and when they are made. A tunnel makes one.
    pub calls: Vec<(Duration, Plan)>,
}

impl Guest {
    pub fn new(calls: Vec<(Duration, Plan)>) -> Guest {
        Guest { leaves: None, deaf: None, stingy_until: None, handshake: Handshake::First, calls }
    }
}

impl Plan {
    /// A call like this one over and over has nothing special about it.
    pub fn new(
        service: Service,
        mode: Mode,
        method: &'static str,
        request_bytes: usize,
        response_bytes: usize,
    ) -> Plan {
        Plan {
            service,
            mode,
            method,
            idempotent: false,
            replay_safe: false,
            request_bytes,
            response_bytes,
            length_known: true,
            priority: 3,
            cancel_after: None,
        }
    }
}

impl Scenario {
    /// Fair weather, one gateway, and the guests that are given.
    pub fn with_guests(seed: u64, guests: Vec<Guest>) -> Scenario {
        let mut prng = Prng::new(seed);
        Scenario {
            seed,
            weather: clear(&mut prng),
            is_clear: true,
            gateways: 1,
            trunks_per_gateway: 1 + prng.below(2) as usize,
            buffers: (16, 4096),
            trunk_streams_max: 1024,
            trunk_stream_credit: 64 * 1024,
            client_stream_credit: 64 * 1024,
            mmtp_clients: 0,
            calls_max: 1,
            tunnel_clients: 0,
            strangers: 0,
            hostile: false,
            rude: false,
            bulk: false,
            early: false,
            replayers: 0,
            tunnel_early: TunnelEarly::Hold,
            events: Vec::new(),
            guests,
        }
    }

    pub fn of_seed(seed: u64) -> Scenario {
        let mut prng = Prng::new(seed);
        let prng = &mut prng;
        let is_clear = prng.chance(3);
        let weather = if is_clear { clear(prng) } else { storm(prng) };
        let millis = |prng: &mut Prng, most: u64| Duration::from_millis(prng.below(most));
        let mut events = Vec::new();
        if !is_clear {
            if prng.chance(4) {
                let back_after = millis(prng, 1500);
                events.push((millis(prng, 3000), Event::GatewayDies { index: prng.below(2) as usize, back_after }));
            }
            if prng.chance(8) {
                events.push((millis(prng, 3000), Event::GatewayDrains { index: prng.below(2) as usize }));
            }
            if prng.chance(8) {
                events.push((millis(prng, 3000), Event::PopDrains));
            }
        }
        if prng.chance(16) {
            events.push((millis(prng, 1000), Event::Certificates));
        }
        Scenario {
            seed,
            weather,
            is_clear,
            gateways: 1 + prng.below(2) as usize,
            trunks_per_gateway: 1 + prng.below(2) as usize,
            buffers: [(2, 512), (4, 2048), (16, 4096), (64, 16 * 1024)][prng.below(4) as usize],
            trunk_streams_max: if prng.chance(8) { 8 } else { 1024 },
            trunk_stream_credit: [16, 64, 256][prng.below(3) as usize] * 1024,
            client_stream_credit: [16, 64][prng.below(2) as usize] * 1024,
            mmtp_clients: prng.below(4),
            calls_max: if !is_clear && prng.chance(8) { 60 } else { 1 + prng.below(12) },
            tunnel_clients: prng.below(3),
            strangers: if prng.chance(4) { 1 + prng.below(2) } else { 0 },
            hostile: prng.chance(4),
            rude: !is_clear && prng.chance(2),
            bulk: prng.chance(12),
            early: prng.chance(2),
            replayers: if prng.chance(4) { 1 + prng.below(3) } else { 0 },
            tunnel_early: [TunnelEarly::Hold, TunnelEarly::Allow][prng.below(2) as usize],
            events,
            guests: Vec::new(),
        }
    }

    /// Most bytes of one stream that may wait for a trunk.
    pub fn stream_queue_max(&self) -> usize {
        // A tunnel is paused above 64 KiB; what was read by then comes on top. A stream of a client is bounded by the
        // window it was granted, which may grow.
        (64 + 256) * 1024
    }
}

fn clear(prng: &mut Prng) -> Weather {
    Weather {
        hold: [0, 3, 2][prng.below(3) as usize],
        short_send: [0, 30, 4][prng.below(3) as usize],
        multishot_end: [0, 20][prng.below(2) as usize],
        connect_failure: 0,
        accept_failure: 0,
        sliver: [0, 8, 2][prng.below(3) as usize],
        latency_max: Duration::from_micros([0, 100, 5000, 60_000][prng.below(4) as usize]),
        reset: 0,
        jump: 0,
    }
}

fn storm(prng: &mut Prng) -> Weather {
    Weather {
        connect_failure: [0, 10, 3][prng.below(3) as usize],
        accept_failure: [0, 10][prng.below(2) as usize],
        reset: [0, 400, 100][prng.below(3) as usize],
        jump: [0, 300][prng.below(2) as usize],
        ..clear(prng)
    }
}

/// What a client's ClientHello needs at most.
const CLIENT_HELLO_BYTES: usize = 300;

fn handshakes(prng: &mut Prng, scenario: &Scenario) -> Handshakes {
    if !scenario.early || prng.chance(3) {
        return Handshakes::Always(Handshake::First);
    }
    Handshakes::Any { may_fail: !scenario.is_clear }
}

/// How a client's connections open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshakes {
    Always(Handshake),
    Any { may_fail: bool },
}

impl Default for Handshakes {
    fn default() -> Handshakes {
        Handshakes::Always(Handshake::First)
    }
}

impl Handshakes {
    pub fn next(self, prng: &mut Prng) -> Handshake {
        match self {
            Handshakes::Always(handshake) => handshake,
            Handshakes::Any { may_fail } if may_fail && prng.chance(5) => {
                Handshake::Never(Duration::from_millis(prng.below(4000)))
            }
            Handshakes::Any { .. } => {
                let most = [1, 50, 1000][prng.below(3) as usize];
                Handshake::After(Duration::from_millis(prng.below(most)))
            }
        }
    }
}

pub fn manners(prng: &mut Prng, scenario: &Scenario, start: Time) -> Manners {
    let mut manners = Manners { handshakes: handshakes(prng, scenario), ..Manners::default() };
    let at = |prng: &mut Prng| start + Duration::from_millis(prng.below(2500));
    if prng.chance(8) {
        let from = at(prng);
        manners.deaf = Some((from, from + Duration::from_millis(prng.below(4000))));
    }
    if prng.chance(8) {
        manners.stingy_until = Some(at(prng) + Duration::from_millis(prng.below(2000)));
    }
    if scenario.hostile && prng.chance(2) {
        let most = [200, 2000, 20_000][prng.below(3) as usize];
        let after = prng.below(most) as usize;
        if prng.chance(2) {
            // Not in the ClientHello: rustls shuffles its extensions, so what a byte there means is no matter of the seed.
            manners.corrupt_wire = Some(CLIENT_HELLO_BYTES + after);
        } else {
            manners.corrupt_plain = Some(after);
        }
    }
    if scenario.rude && prng.chance(3) {
        manners.leaves = Some((at(prng), prng.chance(2)));
    } else if scenario.rude && prng.chance(6) {
        manners.vanishes = Some(at(prng));
    }
    manners
}

fn size(prng: &mut Prng, bulk: bool) -> usize {
    let most = match prng.below(if bulk { 9 } else { 8 }) {
        0 => 1,
        1..=3 => 300,
        4..=5 => 5000,
        6..=7 => 40_000,
        _ => 400_000,
    };
    prng.below(most) as usize
}

pub fn plan(prng: &mut Prng, scenario: &Scenario, service: Service) -> Plan {
    let is_http = matches!(service, Service::Http | Service::Nobody);
    let ordinary = prng.chance(2);
    let mode = match (is_http, ordinary) {
        (true, true) => [Mode::Length, Mode::Chunks][prng.below(2) as usize],
        (true, false) => Mode::HTTP[prng.below(Mode::HTTP.len() as u64) as usize],
        (false, true) => Mode::Echo,
        (false, false) => Mode::TUNNEL[prng.below(Mode::TUNNEL.len() as u64) as usize],
    };
    let method = if is_http { ["GET", "POST", "POST", "PUT", "HEAD"][prng.below(5) as usize] } else { "CONNECT" };
    let has_body = !is_http || method == "POST" || method == "PUT";
    let request_bytes = if has_body { size(prng, scenario.bulk) } else { 0 };
    let response_bytes = size(prng, scenario.bulk);
    let mut plan = Plan {
        service,
        mode,
        method,
        idempotent: is_http && prng.chance(4),
        replay_safe: false,
        request_bytes,
        response_bytes,
        length_known: prng.chance(2),
        priority: prng.below(8) as u8,
        cancel_after: prng.chance(12).then(|| prng.below(response_bytes as u64 + 1) as usize),
    };
    plan.replay_safe = plan.is_repeatable() && prng.chance(2);
    plan
}
