//! All trunks of one worker: dialling, heartbeats, and the choice of a trunk for a stream.
//!
//! Owns every [`Trunk`]. Never decides what happens to the streams of a trunk that died; its user does.

use core::net::SocketAddr;
use core::time::Duration;

use super::backoff::Backoff;
use super::trunk::{State, Trunk};
use crate::base::prng::Prng;
use crate::base::time::Time;
use crate::base::wire::{LinkId, LogLine, Security, Target, Wire};
use crate::mmtp::{Connection, Settings};

/// A trunk that has not said anything for this many heartbeat intervals is dead.
const SILENT_BEATS_MAX: u32 = 3;

/// What a pool needs to know.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Addresses of the gateways, in the order of the configuration.
    pub gateways: Vec<SocketAddr>,
    /// Trunks to each gateway.
    pub trunks_per_gateway: usize,
    /// What our HELLO says.
    pub mmtp: Settings,
    /// How often a trunk is pinged, busy or not. One that stays silent for three of these is given up.
    pub heartbeat_interval: Duration,
    /// Shortest delay before a redial.
    pub backoff_min: Duration,
    /// Longest delay before a redial.
    pub backoff_max: Duration,
}

/// The trunks of one worker.
pub struct Pool {
    settings: PoolSettings,
    trunks: Vec<Trunk>,
    prng: Prng,
    /// No trunk is dialled any more.
    closing: bool,
}

impl Pool {
    /// A pool whose trunks are all due to be dialled. Jitter and choices follow from `prng`.
    #[must_use]
    pub fn new(settings: PoolSettings, prng: Prng) -> Pool {
        let backoff = Backoff::new(settings.backoff_min, settings.backoff_max);
        let gateways = 0..settings.gateways.len();
        let trunks = (0..settings.trunks_per_gateway)
            .flat_map(|_| gateways.clone())
            .map(|gateway| Trunk::new(gateway, backoff.clone()))
            .collect();
        Pool { settings, trunks, prng, closing: false }
    }

    /// All trunks.
    #[must_use]
    pub fn trunks(&self) -> &[Trunk] {
        &self.trunks
    }

    /// One trunk.
    pub fn trunk_mut(&mut self, index: usize) -> &mut Trunk {
        &mut self.trunks[index]
    }

    /// The connection of a trunk and its link, while both exist.
    pub fn connection(&mut self, index: usize) -> Option<(&mut Connection, LinkId)> {
        let trunk = &mut self.trunks[index];
        Some((trunk.connection.as_mut()?, trunk.link?))
    }

    /// Trunks that take streams.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.trunks.iter().filter(|trunk| trunk.state == State::Ready).count()
    }

    /// The better of two random trunks that take streams, by streams in flight ("the power of two random choices",
    /// Mitzenmacher 2001). `except` is not chosen.
    pub fn pick(&mut self, except: Option<usize>) -> Option<usize> {
        let usable = |index: &usize| self.trunks[*index].state == State::Ready && Some(*index) != except;
        let count = (0..self.trunks.len()).filter(usable).count() as u64;
        let first = self.prng.below(count);
        let second = self.prng.below(count);
        let nth = |nth: u64| (0..self.trunks.len()).filter(usable).nth(nth as usize);
        let (first, second) = (nth(first)?, nth(second)?);
        let better = self.trunks[second].outstanding() < self.trunks[first].outstanding();
        Some(if better { second } else { first })
    }

    /// The link of a trunk is up: our HELLO goes out.
    pub fn opened<W: Wire>(&mut self, now: Time, wire: &mut W, index: usize, link: LinkId) {
        let trunk = &mut self.trunks[index];
        assert_eq!((trunk.state, trunk.link), (State::Dialing, Some(link)), "a trunk has one link at a time");
        let mut connection = Box::new(Connection::new(&self.settings.mmtp, now));
        if let Some(out) = wire.out(link) {
            connection.start(out);
        }
        trunk.connection = Some(connection);
        trunk.state = State::Greeting;
        trunk.heard_at = now;
        trunk.beat_at = now + self.settings.heartbeat_interval;
    }

    /// The gateway's HELLO came: the trunk takes streams.
    pub fn greeted<W: Wire>(&mut self, now: Time, wire: &mut W, index: usize) {
        let trunk = &mut self.trunks[index];
        if trunk.state == State::Greeting {
            trunk.state = State::Ready;
            trunk.backoff.succeeded();
            if let (Some(connection), Some(out)) =
                (trunk.connection.as_mut(), trunk.link.and_then(|link| wire.out(link)))
            {
                connection.measure(now, out);
            }
            wire.counters().trunks_ready += 1;
            log(wire, "trunk ready", trunk.link, self.settings.gateways[trunk.gateway], 0, "");
        }
    }

    /// Bytes came.
    pub fn heard(&mut self, now: Time, index: usize) {
        self.trunks[index].heard_at = now;
    }

    /// The gateway takes no more streams here.
    pub fn draining<W: Wire>(&mut self, wire: &mut W, index: usize) {
        let trunk = &mut self.trunks[index];
        if trunk.state == State::Ready {
            wire.counters().trunks_ready -= 1;
        }
        if matches!(trunk.state, State::Ready | State::Greeting) {
            trunk.state = State::Draining;
        }
    }

    /// The link of a trunk is gone; returns the connection it carried, if it got that far. It will be dialled again.
    pub fn closed<W: Wire>(
        &mut self,
        now: Time,
        wire: &mut W,
        index: usize,
        link: LinkId,
        code: i64,
    ) -> Option<Box<Connection>> {
        let trunk = &mut self.trunks[index];
        if trunk.link != Some(link) {
            return None;
        }
        if trunk.state == State::Ready {
            wire.counters().trunks_ready -= 1;
        }
        // A trunk that ended as agreed is dialled anew after the shortest delay.
        let delay = self.settings.backoff_min;
        let delay = if trunk.state == State::Draining { delay } else { trunk.backoff.failed(&mut self.prng) };
        if !self.closing {
            wire.counters().trunks_failed += 1;
            log(wire, "trunk lost", Some(link), self.settings.gateways[trunk.gateway], code, "errno");
        }
        trunk.state = State::Down { retry_at: now + delay };
        trunk.link = None;
        trunk.connection.take()
    }

    /// Dials what is due, sends heartbeats, gives silent trunks up.
    pub fn due<W: Wire>(&mut self, now: Time, wire: &mut W) {
        for index in 0..self.trunks.len() {
            match self.trunks[index].state {
                State::Down { retry_at } if retry_at <= now && !self.closing => self.dial(wire, index),
                State::Greeting | State::Ready | State::Draining if self.trunks[index].beat_at <= now => {
                    self.beat(now, wire, index);
                }
                State::Down { .. } | State::Dialing | State::Greeting | State::Ready | State::Draining => {}
            }
        }
    }

    fn dial<W: Wire>(&mut self, wire: &mut W, index: usize) {
        let trunk = &mut self.trunks[index];
        let address = self.settings.gateways[trunk.gateway];
        let target = Target { address, security: Security::Trunk { gateway: trunk.gateway } };
        trunk.link = Some(wire.dial(target, index as u64));
        trunk.state = State::Dialing;
        wire.counters().trunks_dialed += 1;
    }

    fn beat<W: Wire>(&mut self, now: Time, wire: &mut W, index: usize) {
        let interval = self.settings.heartbeat_interval;
        let trunk = &mut self.trunks[index];
        trunk.beat_at = now + interval;
        let (Some(connection), Some(link)) = (trunk.connection.as_mut(), trunk.link) else { return };
        let silence = now.since(trunk.heard_at);
        if silence >= interval * SILENT_BEATS_MAX {
            log(wire, "trunk silent", Some(link), self.settings.gateways[trunk.gateway], 0, "");
            wire.abort(link);
        } else if let Some(out) = wire.out(link) {
            // Also on a busy trunk: the answer measures the round trip.
            connection.ping(now, out);
            wire.counters().heartbeats_sent += 1;
        }
    }

    /// When [`Pool::due`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let deadline = |trunk: &Trunk| match trunk.state {
            State::Down { .. } if self.closing => None,
            State::Down { retry_at } => Some(retry_at),
            State::Dialing => None,
            State::Greeting | State::Ready | State::Draining => Some(trunk.beat_at),
        };
        self.trunks.iter().filter_map(deadline).min()
    }

    /// Dials no more, and closes every link.
    pub fn close<W: Wire>(&mut self, wire: &mut W) {
        self.closing = true;
        for link in self.trunks.iter().filter_map(|trunk| trunk.link) {
            wire.close(link);
        }
    }
}

fn log<W: Wire>(
    wire: &mut W,
    what: &'static str,
    link: Option<LinkId>,
    peer: SocketAddr,
    code: i64,
    detail: &'static str,
) {
    wire.log(LogLine { what, link, peer: Some(peer), code, detail });
}
