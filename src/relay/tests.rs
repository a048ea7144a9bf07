//! A relay between clients and gateways that the tests play, on links that are plain buffers.

use super::*;
use crate::base::counters::Counters;
use crate::base::wire::Target;
use crate::mmtp::{Agent, HeaderWriter, Known, Side};

const NOW: Time = Time::ZERO;

/// What the relay asked of a link.
#[derive(Default)]
struct Line {
    out: Vec<u8>,
    paused: bool,
    aborted: bool,
    closed: bool,
}

#[derive(Default)]
struct Lines {
    links: Slab<Line>,
    dialed: Vec<LinkId>,
    counters: Counters,
}

impl Wire for Lines {
    type Out = Vec<u8>;

    fn out(&mut self, link: LinkId) -> Option<&mut Vec<u8>> {
        self.links.get_mut(link).map(|line| &mut line.out)
    }

    fn finish(&mut self, _: LinkId) {}

    fn close(&mut self, link: LinkId) {
        self.links.get_mut(link).expect("a link that is there").closed = true;
    }

    fn abort(&mut self, link: LinkId) {
        self.links.get_mut(link).expect("a link that is there").aborted = true;
    }

    fn pause(&mut self, link: LinkId) {
        self.links.get_mut(link).expect("a link that is there").paused = true;
    }

    fn resume(&mut self, link: LinkId) {
        self.links.get_mut(link).expect("a link that is there").paused = false;
    }

    fn dial(&mut self, _: Target, _: u64) -> LinkId {
        let link = self.links.insert(Line::default());
        self.dialed.push(link);
        link
    }

    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn log(&mut self, _: LogLine) {}
}

/// One end that a test plays.
struct End {
    link: LinkId,
    connection: Connection,
}

/// What an end was told, in few words.
fn told(relay_side: &mut Lines, end: &mut End) -> Vec<String> {
    let bytes = std::mem::take(&mut relay_side.links.get_mut(end.link).expect("it is there").out);
    let mut input = bytes.as_slice();
    let mut words = Vec::new();
    while let Some(event) = end.connection.receive(NOW, &mut input).expect("the relay keeps the rules") {
        words.push(match event {
            Event::Headers { stream, opened: true, block, .. } => {
                let path = String::from_utf8_lossy(block.get(Known::Path).unwrap_or(b"tunnel")).into_owned();
                let early = if block.number(Known::Early) == Some(1) { " early" } else { "" };
                format!("{stream} {path}{early}")
            }
            Event::Headers { stream, block, .. } => format!("{stream} status {:?}", block.status()),
            Event::Data { stream, bytes, end, .. } => format!("{stream} data {} {end}", bytes.len()),
            Event::Reset { stream, code, receipt, wait_ms, .. } => {
                format!("{stream} reset {} {receipt:?} {wait_ms}", code.name())
            }
            Event::Established | Event::Credit { .. } | Event::Pong | Event::GoAway { .. } => continue,
        });
    }
    words
}

struct Site {
    relay: Relay,
    wire: Lines,
    gateway: Option<End>,
}

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 4711))
}

impl Site {
    fn new(early: TunnelEarly) -> Site {
        let settings = RelaySettings {
            pop_id: "pop-1".to_owned(),
            tunnels: vec![Some(TunnelSettings { service: "web".to_owned(), early })],
            mmtp: Settings::new(Side::Acceptor, Agent::Pop),
            pool: PoolSettings {
                gateways: vec![SocketAddr::from(([127, 0, 0, 1], 7000))],
                trunks_per_gateway: 1,
                mmtp: Settings::shared(Side::Initiator, Agent::Pop),
                heartbeat_interval: Duration::from_secs(2),
                backoff_min: Duration::from_millis(50),
                backoff_max: Duration::from_secs(1),
            },
            wait_for_trunk: Duration::from_secs(2),
            streams_max: 1000,
            goaway_wait: Duration::from_secs(1),
        };
        Site { relay: Relay::new(settings, Prng::new(7)), wire: Lines::default(), gateway: None }
    }

    /// Brings the trunk up against a gateway that allows so many streams.
    fn trunk_up(&mut self, streams_max: u32) {
        self.relay.due(NOW, &mut self.wire);
        let link = *self.wire.dialed.last().expect("dialled just now");
        let opened = Opened { origin: Origin::Dialed { tag: 0 }, peer: peer(), protocol: Protocol::Mmtp, early: false };
        self.relay.opened(NOW, &mut self.wire, link, opened);
        let settings = Settings { streams_max, ..Settings::shared(Side::Acceptor, Agent::Gateway) };
        let mut gateway = End { link, connection: Connection::new(&settings, NOW) };
        let mut hello = Vec::new();
        gateway.connection.start(&mut hello);
        self.relay.bytes(NOW, &mut self.wire, link, &hello);
        told(&mut self.wire, &mut gateway);
        self.gateway = Some(gateway);
    }

    fn accept(&mut self, protocol: Protocol, early: bool) -> LinkId {
        let link = self.wire.links.insert(Line::default());
        let origin = Origin::Accepted { listener: 0 };
        self.relay.opened(NOW, &mut self.wire, link, Opened { origin, peer: peer(), protocol, early });
        link
    }

    /// A client whose link opens with early data.
    fn early_client(&mut self) -> End {
        let link = self.accept(Protocol::Mmtp, true);
        let settings = Settings::new(Side::Initiator, Agent::Terminal);
        let mut client = End { link, connection: Connection::new(&settings, NOW) };
        let mut hello = Vec::new();
        client.connection.start(&mut hello);
        self.relay.bytes(NOW, &mut self.wire, link, &hello);
        told(&mut self.wire, &mut client);
        client
    }

    fn call(&mut self, client: &mut End, path: &str, flags: HeaderFlags, data: &[u8]) -> StreamId {
        let stream = client.connection.open(0, 3).expect("below the limit");
        let mut block = Vec::new();
        let mut writer = HeaderWriter::new(&mut block);
        writer.known(Known::Service, b"pay").expect("a label");
        writer.known(Known::Path, path.as_bytes()).expect("a path");
        let mut bytes = Vec::new();
        client.connection.send_headers(stream, &block, flags, &mut bytes).expect("just opened");
        if !flags.end() {
            client.connection.send_data(stream, data, true, &mut bytes).expect("just opened");
        }
        self.relay.bytes(NOW, &mut self.wire, client.link, &bytes);
        stream
    }

    fn confirm(&mut self, link: LinkId) {
        self.relay.confirmed(NOW, &mut self.wire, link);
    }

    fn at_gateway(&mut self) -> Vec<String> {
        told(&mut self.wire, self.gateway.as_mut().expect("it is up"))
    }

    fn refuse(&mut self, stream: StreamId, code: Code, receipt: Receipt) {
        let mut bytes = Vec::new();
        let gateway = self.gateway.as_mut().expect("it is up");
        gateway.connection.reset(stream, Reset { code, receipt, wait_ms: 0 }, &mut bytes);
        self.relay.bytes(NOW, &mut self.wire, gateway.link, &bytes);
    }

    fn answer(&mut self, stream: StreamId, status: u64, end: bool) {
        let mut block = Vec::new();
        HeaderWriter::new(&mut block).number(Known::Status, status).expect("a status");
        let mut bytes = Vec::new();
        let gateway = self.gateway.as_mut().expect("it is up");
        let flags = if end { HeaderFlags::END } else { HeaderFlags::NONE };
        gateway.connection.send_headers(stream, &block, flags, &mut bytes).expect("an open stream");
        self.relay.bytes(NOW, &mut self.wire, gateway.link, &bytes);
    }

    /// Nothing is left but the trunk.
    fn is_empty(&self) {
        let counters = &self.wire.counters;
        assert_eq!(self.relay.stream_count(), 0);
        assert_eq!((counters.streams_open, counters.streams_waiting, counters.streams_held), (0, 0, 0));
    }
}

const PLAIN: HeaderFlags = HeaderFlags::END;

fn safe() -> HeaderFlags {
    HeaderFlags::END | HeaderFlags::REPLAY_SAFE
}

fn too_early(site: &mut Site, stream: StreamId) {
    site.refuse(stream, Code::TOO_EARLY, Receipt::Refused);
}

/// [M 2.5-1], [M 2.5-2], [M 2.5-3]
#[test]
fn by_class_streams_go_at_once_or_wait_for_the_handshake_in_their_order() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    site.call(&mut client, "/pay", HeaderFlags::IDEMPOTENT, b"12");
    site.call(&mut client, "/prices", safe(), b"");
    site.call(&mut client, "/more", PLAIN, b"");
    assert_eq!(site.at_gateway(), ["1 /prices early"]);
    assert_eq!((site.wire.counters.streams_held, site.wire.counters.streams_open), (2, 3));
    site.confirm(client.link);
    assert_eq!(site.at_gateway(), ["3 /pay", "3 data 2 true", "5 /more"]);
    site.call(&mut client, "/late", safe(), b"");
    assert_eq!(site.at_gateway(), ["7 /late"], "nothing is early any more");
    let counters = &site.wire.counters;
    assert_eq!((counters.streams_early_forwarded, counters.streams_early_held, counters.streams_held), (1, 2, 0));
    for stream in [1, 3, 5, 7] {
        site.answer(stream, 200, true);
    }
    assert_eq!(told(&mut site.wire, &mut client).len(), 4);
    site.is_empty();
}

/// [M 2.5-1]
#[test]
fn what_is_held_is_bounded_and_the_rest_is_told() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    for _ in 0..EARLY_STREAMS_MAX {
        site.call(&mut client, "/pay", PLAIN, b"");
    }
    let one_more = site.call(&mut client, "/pay", PLAIN, b"");
    assert_eq!(told(&mut site.wire, &mut client), [format!("{one_more} reset overloaded Refused 500")]);
    site.call(&mut client, "/prices", safe(), b"");
    assert_eq!(site.at_gateway(), ["1 /prices early"], "what is not held is not counted");
    site.relay.client_closed(&mut site.wire, client.link);
    site.is_empty();

    let mut client = site.early_client();
    let large = site.call(&mut client, "/pay", HeaderFlags::NONE, &[0; EARLY_BYTES_MAX]);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{large} reset overloaded Refused 500")]);
    site.is_empty();
    site.call(&mut client, "/pay", HeaderFlags::NONE, &[0; EARLY_BYTES_MAX - 200]);
    assert_eq!(told(&mut site.wire, &mut client), [] as [&str; 0], "what a refused stream had held counts no more");
    assert_eq!(site.wire.counters.streams_early_refused, 2);
}

#[test]
fn a_held_stream_may_be_cancelled_and_its_client_may_go() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    let first = site.call(&mut client, "/a", PLAIN, b"");
    site.call(&mut client, "/b", PLAIN, b"");
    let mut bytes = Vec::new();
    let reset = Reset { code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 0 };
    client.connection.reset(first, reset, &mut bytes);
    site.relay.bytes(NOW, &mut site.wire, client.link, &bytes);
    assert_eq!((site.wire.counters.streams_held, site.wire.counters.streams_cancelled), (1, 1));
    site.confirm(client.link);
    assert_eq!(site.at_gateway(), ["1 /b"]);
    let mut other = site.early_client();
    site.call(&mut other, "/c", PLAIN, b"");
    site.relay.client_closed(&mut site.wire, other.link);
    site.confirm(other.link);
    site.relay.client_closed(&mut site.wire, client.link);
    assert_eq!(site.at_gateway(), ["1 reset cancelled Unknown 0"]);
    site.is_empty();
}

#[test]
fn what_waits_for_a_trunk_past_the_handshake_is_not_early() {
    let mut site = Site::new(TunnelEarly::Allow);
    let mut client = site.early_client();
    let tunnel = site.accept(Protocol::Opaque, true);
    site.relay.bytes(NOW, &mut site.wire, tunnel, b"hello");
    site.call(&mut client, "/prices", HeaderFlags::REPLAY_SAFE, b"q");
    site.call(&mut client, "/pay", PLAIN, b"");
    assert!(!site.wire.links.get(tunnel).expect("it is there").paused, "its Finished is still to be read");
    assert_eq!((site.wire.counters.streams_waiting, site.wire.counters.streams_held), (2, 1));
    site.confirm(client.link);
    site.confirm(tunnel);
    site.trunk_up(100);
    // `trunk_up` reads what came behind the gateway's HELLO: all of it is gone from the relay.
    assert_eq!((site.wire.counters.streams_early_forwarded, site.wire.counters.streams_waiting), (0, 0));
    site.relay.bytes(NOW, &mut site.wire, tunnel, b"more");
    assert_eq!(site.at_gateway(), ["1 data 4 false"]);
}

/// [M 2.5-5]
#[test]
fn what_was_too_early_is_sent_again_once_after_the_handshake() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    let stream = site.call(&mut client, "/prices", HeaderFlags::REPLAY_SAFE, b"question");
    site.call(&mut client, "/pay", PLAIN, b"");
    assert_eq!(site.at_gateway(), ["1 /prices early", "1 data 8 true"]);
    too_early(&mut site, 1);
    assert_eq!(site.at_gateway(), [] as [&str; 0]);
    assert_eq!(site.wire.counters.streams_held, 2);
    site.confirm(client.link);
    assert_eq!(site.at_gateway(), ["3 /pay", "5 /prices", "5 data 8 true"]);
    assert_eq!(told(&mut site.wire, &mut client), [] as [&str; 0]);
    too_early(&mut site, 5);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{stream} reset too_early Refused 0")]);
    too_early(&mut site, 3);
    assert_eq!(told(&mut site.wire, &mut client), ["3 reset too_early Refused 0"], "it was never early");
    assert_eq!(site.wire.counters.streams_early_repeated, 1);
    site.is_empty();
}

/// [M 2.5-5]
#[test]
fn after_the_handshake_it_is_sent_again_at_once_if_all_of_it_is_kept() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    site.call(&mut client, "/small", safe(), b"");
    let large = site.call(&mut client, "/large", HeaderFlags::REPLAY_SAFE, &[0; 17_000]);
    let answered = site.call(&mut client, "/answered", safe(), b"");
    let unsure = site.call(&mut client, "/unsure", safe(), b"");
    site.confirm(client.link);
    site.at_gateway();
    too_early(&mut site, 1);
    assert_eq!(site.at_gateway(), ["9 /small"]);
    too_early(&mut site, 3);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{large} reset too_early Refused 0")]);
    site.answer(5, 200, false);
    too_early(&mut site, 5);
    let words = [format!("{answered} status Some(200)"), format!("{answered} reset too_early Refused 0")];
    assert_eq!(told(&mut site.wire, &mut client), words);
    site.refuse(7, Code::TOO_EARLY, Receipt::Unknown);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{unsure} reset too_early Unknown 0")]);
    let Some(Party::Client(side)) = site.relay.parties.get(client.link) else { panic!("it is there") };
    assert!(side.early.is_none(), "nothing more is early, kept or held");
}

/// What was forwarded once and refused reached a gateway, also when its second way is cut short.
#[test]
fn what_is_repeated_is_never_called_not_forwarded() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    let stream = site.call(&mut client, "/prices", safe(), b"");
    site.at_gateway();
    too_early(&mut site, 1);
    site.confirm(client.link);
    site.at_gateway();
    site.refuse(3, Code::DRAINING, Receipt::NotForwarded);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{stream} reset draining Refused 0")]);
    site.is_empty();
}

#[test]
fn a_client_that_rests_gives_memory_back_and_one_with_a_stream_at_a_time_never_had_it() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    site.confirm(client.link);
    let spacious = |site: &Site, link| {
        let Some(Party::Client(side)) = site.relay.parties.get(link) else { panic!("it is there") };
        side.connection.is_spacious()
    };
    for number in 0..3 {
        site.call(&mut client, "/a", PLAIN, b"");
        site.at_gateway();
        site.answer(1 + 2 * number, 200, true);
        told(&mut site.wire, &mut client);
    }
    site.relay.pass_ended(NOW, &mut site.wire);
    assert!(!spacious(&site, client.link) && site.relay.resting.is_empty());
    for _ in 0..9 {
        site.call(&mut client, "/b", PLAIN, b"");
    }
    site.at_gateway();
    (0..9).for_each(|number| site.answer(7 + 2 * number, 200, true));
    told(&mut site.wire, &mut client);
    site.relay.pass_ended(NOW, &mut site.wire);
    assert!(spacious(&site, client.link));
    let at = NOW + REST_DELAY;
    assert_eq!(Role::<Lines>::next_deadline(&site.relay), Some(at));
    site.relay.due(at, &mut site.wire);
    assert!(!spacious(&site, client.link), "it woke nobody up for nothing");
    site.call(&mut client, "/c", PLAIN, b"");
    assert_eq!(site.at_gateway().last().map(String::as_str), Some("25 /c"));
}

#[test]
fn credit_is_given_once_for_what_is_sent_twice() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    let window = 64 * 1024;
    let stream = client.connection.open(0, 3).expect("below the limit");
    let (mut block, mut bytes) = (Vec::new(), Vec::new());
    HeaderWriter::new(&mut block).known(Known::Service, b"pay").expect("a label");
    client.connection.send_headers(stream, &block, HeaderFlags::REPLAY_SAFE, &mut bytes).expect("just opened");
    client.connection.send_data(stream, &[0; 10_000], false, &mut bytes).expect("just opened");
    site.relay.bytes(NOW, &mut site.wire, client.link, &bytes);
    too_early(&mut site, 1);
    site.confirm(client.link);
    // Half a window used makes a grant: of all that went, and of nothing twice.
    bytes.clear();
    client.connection.send_data(stream, &vec![0; window - 10_000], false, &mut bytes).expect("in the window");
    site.relay.bytes(NOW, &mut site.wire, client.link, &bytes);
    told(&mut site.wire, &mut client);
    bytes.clear();
    assert_eq!(client.connection.queued(stream), 0);
    let sent = client.connection.send_data(stream, &vec![0; 3 * window], false, &mut bytes).expect("open");
    assert!(sent <= window, "{sent} bytes of credit for a window of {window}");
    site.relay.bytes(NOW, &mut site.wire, client.link, &bytes);
    assert!(site.relay.parties.get(client.link).is_some(), "no rule was broken");
}

/// [M 2.5-6]
#[test]
fn a_tunnel_waits_for_the_handshake_unless_it_is_allowed() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let link = site.accept(Protocol::Opaque, true);
    site.relay.bytes(NOW, &mut site.wire, link, &[7; 16_384]);
    assert_eq!(site.at_gateway(), [] as [&str; 0]);
    assert!(!site.wire.links.get(link).expect("it is there").paused, "its Finished is still to be read");
    site.confirm(link);
    assert_eq!(site.at_gateway(), ["1 tunnel", "1 data 16384 false"]);
    let greedy = site.accept(Protocol::Opaque, true);
    site.relay.bytes(NOW, &mut site.wire, greedy, &[7; EARLY_BYTES_MAX]);
    assert!(site.wire.links.get(greedy).expect("it is there").aborted);

    let mut site = Site::new(TunnelEarly::Allow);
    site.trunk_up(100);
    let link = site.accept(Protocol::Opaque, true);
    site.relay.bytes(NOW, &mut site.wire, link, b"hello");
    assert_eq!(site.at_gateway(), ["1 tunnel early", "1 data 5 false"]);
    too_early(&mut site, 1);
    assert!(site.wire.links.get(link).expect("it is there").aborted, "a tunnel is not sent again");
    site.is_empty();
}

#[test]
fn a_pop_that_drains_lets_held_streams_go_their_way() {
    let mut site = Site::new(TunnelEarly::Hold);
    site.trunk_up(100);
    let mut client = site.early_client();
    site.call(&mut client, "/pay", PLAIN, b"");
    site.relay.drain(&mut site.wire);
    site.relay.pass_ended(NOW, &mut site.wire);
    assert!(!site.wire.links.get(client.link).expect("it is there").closed);
    site.confirm(client.link);
    assert_eq!(site.at_gateway(), ["1 /pay"]);
    site.answer(1, 200, true);
    site.relay.pass_ended(NOW, &mut site.wire);
    assert!(site.wire.links.get(client.link).expect("it is there").closed);
    site.is_empty();
}

#[test]
fn want_of_room_on_trunks_is_not_want_of_trunks() {
    let mut site = Site::new(TunnelEarly::Hold);
    let mut client = site.early_client();
    site.confirm(client.link);
    let late = NOW + Duration::from_secs(3);
    let lost = site.call(&mut client, "/a", PLAIN, b"");
    site.relay.expire_waiting(late, &mut site.wire);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{lost} reset no_route NotForwarded 0")]);
    site.trunk_up(8);
    let streams: Vec<StreamId> = (0..9).map(|_| site.call(&mut client, "/b", PLAIN, b"")).collect();
    site.relay.expire_waiting(late, &mut site.wire);
    assert_eq!(told(&mut site.wire, &mut client), [format!("{} reset overloaded Refused 500", streams[8])]);
}
