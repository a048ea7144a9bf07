//! All trunks of one worker: dialling, heartbeats, and the choice of a trunk for a stream.
//!
//! Owns every [`Trunk`]. Never decides what happens to the streams of a trunk that died; its user does.

use core::net::SocketAddr;
use core::time::Duration;

use super::trunk::{State, Trunk};
use crate::base::backoff::Backoff;
use crate::base::prng::Prng;
use crate::base::time::Time;
use crate::base::wire::{LinkId, LogLine, Security, Target, Wire};
use crate::mmtp::{Connection, Settings};

/// A trunk that has not said anything for this many heartbeat intervals is dead.
const SILENT_BEATS_MAX: u32 = 3;

/// Streams that are kept together on a trunk before the next one to the same gateway is used as well.
const STREAMS_PER_STEP: usize = 64;

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

    /// The trunk for the next stream; `except` is not chosen. First a gateway, the less loaded of two random ones by
    /// streams in flight ("the power of two random choices", Mitzenmacher 2001). Then the trunk to it with the least
    /// outstanding work, counted in steps of `STREAMS_PER_STEP`, and of equals the first: streams on one trunk share
    /// its records and sends, so a few are better kept together, while many spread evenly.
    pub fn pick(&mut self, except: Option<usize>) -> Option<usize> {
        let gateways = 0..self.settings.gateways.len();
        let count = gateways.clone().filter(|gateway| self.best_to(*gateway, except).is_some()).count() as u64;
        let (first, second) = (self.prng.below(count), self.prng.below(count));
        let nth =
            |nth: u64| gateways.clone().filter(|gateway| self.best_to(*gateway, except).is_some()).nth(nth as usize);
        let (first, second) = (nth(first)?, nth(second)?);
        let gateway = if self.outstanding_to(second) < self.outstanding_to(first) { second } else { first };
        self.best_to(gateway, except)
    }

    /// The trunk to a gateway that its next stream should take.
    fn best_to(&self, gateway: usize, except: Option<usize>) -> Option<usize> {
        let usable = |index: &usize| {
            let trunk = &self.trunks[*index];
            trunk.gateway == gateway && trunk.state == State::Ready && Some(*index) != except
        };
        let steps = |index: &usize| self.trunks[*index].outstanding() / STREAMS_PER_STEP;
        (0..self.trunks.len()).filter(usable).min_by_key(steps)
    }

    /// Streams in flight to a gateway.
    fn outstanding_to(&self, gateway: usize) -> usize {
        self.trunks.iter().filter(|trunk| trunk.gateway == gateway).map(Trunk::outstanding).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::counters::Counters;
    use crate::base::slab::Slab;
    use crate::mmtp::{Agent, Connection, Event, HeaderWriter, Known, Side};

    /// A wire whose links are plain buffers.
    #[derive(Default)]
    struct Buffers {
        links: Slab<Vec<u8>>,
        counters: Counters,
    }

    impl Wire for Buffers {
        type Out = Vec<u8>;

        fn out(&mut self, link: LinkId) -> Option<&mut Vec<u8>> {
            self.links.get_mut(link)
        }

        fn finish(&mut self, _: LinkId) {}
        fn close(&mut self, _: LinkId) {}
        fn abort(&mut self, _: LinkId) {}
        fn pause(&mut self, _: LinkId) {}
        fn resume(&mut self, _: LinkId) {}

        fn dial(&mut self, _: Target, _: u64) -> LinkId {
            self.links.insert(Vec::new())
        }

        fn counters(&mut self) -> &mut Counters {
            &mut self.counters
        }

        fn log(&mut self, _: LogLine) {}
    }

    fn pool(gateways: u16, trunks_per_gateway: usize) -> Pool {
        let settings = PoolSettings {
            gateways: (0..gateways).map(|port| SocketAddr::from(([127, 0, 0, 1], 7000 + port))).collect(),
            trunks_per_gateway,
            mmtp: Settings::shared(Side::Initiator, Agent::Pop),
            heartbeat_interval: Duration::from_secs(2),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
        };
        Pool::new(settings, Prng::new(7))
    }

    /// Brings every trunk up against an acceptor that says HELLO and nothing else.
    fn bring_up(pool: &mut Pool, wire: &mut Buffers) {
        pool.due(Time::ZERO, wire);
        for index in 0..pool.trunks().len() {
            let link = pool.trunks()[index].link.expect("dialled just now");
            pool.opened(Time::ZERO, wire, index, link);
            let mut gateway = Connection::new(&Settings::shared(Side::Acceptor, Agent::Gateway), Time::ZERO);
            let mut hello = Vec::new();
            gateway.start(&mut hello);
            let (connection, _) = pool.connection(index).expect("opened");
            let event = connection.receive(Time::ZERO, &mut hello.as_slice()).expect("a proper HELLO");
            assert!(matches!(event, Some(Event::Established)));
            pool.greeted(Time::ZERO, wire, index);
        }
    }

    fn open(pool: &mut Pool) -> usize {
        let trunk = pool.pick(None).expect("trunks are up");
        let (connection, _) = pool.connection(trunk).expect("it is up");
        let stream = connection.open(0, 3).expect("below the limit");
        let mut block = Vec::new();
        HeaderWriter::new(&mut block).known(Known::Service, b"web").expect("a label");
        connection.send_headers(stream, &block, crate::mmtp::HeaderFlags::NONE, &mut Vec::new()).expect("just opened");
        trunk
    }

    #[test]
    fn few_streams_share_a_trunk_and_many_spread_evenly() {
        let (mut pool, mut wire) = (pool(1, 2), Buffers::default());
        assert_eq!(pool.pick(None), None);
        bring_up(&mut pool, &mut wire);
        assert_eq!((pool.ready(), wire.counters.trunks_ready), (2, 2));
        let first: Vec<usize> = (0..STREAMS_PER_STEP).map(|_| open(&mut pool)).collect();
        assert_eq!(first, vec![0; STREAMS_PER_STEP]);
        for _ in 0..STREAMS_PER_STEP * 5 {
            open(&mut pool);
        }
        assert_eq!(pool.trunks()[0].outstanding(), STREAMS_PER_STEP * 3);
        assert_eq!(pool.trunks()[1].outstanding(), STREAMS_PER_STEP * 3);
        assert_eq!(pool.pick(Some(0)), Some(1));
    }

    #[test]
    fn gateways_share_the_streams() {
        let (mut pool, mut wire) = (pool(3, 2), Buffers::default());
        bring_up(&mut pool, &mut wire);
        for _ in 0..300 {
            open(&mut pool);
        }
        for gateway in 0..3 {
            let streams = pool.outstanding_to(gateway);
            assert!((60..=140).contains(&streams), "gateway {gateway} has {streams} of 300");
        }
    }

    #[test]
    fn a_lost_trunk_is_dialled_again_after_its_delay() {
        let (mut pool, mut wire) = (pool(1, 1), Buffers::default());
        bring_up(&mut pool, &mut wire);
        let link = pool.trunks()[0].link.expect("up");
        let now = Time::from_nanos(1_000_000_000);
        assert!(pool.closed(now, &mut wire, 0, link, 0).is_some());
        assert!(pool.closed(now, &mut wire, 0, link, 0).is_none(), "told twice");
        assert_eq!((pool.ready(), pool.pick(None), wire.counters.trunks_ready), (0, None, 0));
        let at = pool.next_deadline().expect("to be dialled again");
        assert!(at > now && at <= now + Duration::from_millis(50));
        pool.due(now, &mut wire);
        assert!(pool.trunks()[0].link.is_none(), "not before its time");
        pool.due(at, &mut wire);
        assert_eq!((pool.trunks()[0].state, wire.counters.trunks_dialed), (State::Dialing, 2));
    }

    #[test]
    fn a_silent_trunk_is_given_up() {
        let (mut pool, mut wire) = (pool(1, 1), Buffers::default());
        bring_up(&mut pool, &mut wire);
        let mut beats = 0;
        for seconds in 1..=10 {
            let before = wire.counters.heartbeats_sent;
            pool.due(Time::from_nanos(seconds * 2_000_000_000), &mut wire);
            beats += wire.counters.heartbeats_sent - before;
        }
        assert_eq!(beats, u64::from(SILENT_BEATS_MAX) - 1, "after three silent intervals it is aborted, not pinged");
    }
}
