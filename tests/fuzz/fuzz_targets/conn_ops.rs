//! One connection between a user who does anything and a peer who sends anything: no panic, nothing but well-formed
//! frames goes out, none of them on a stream that was never opened, and never more than the credit that came in.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use trunkline::base::time::Time;
use trunkline::base::wire::Sink;
use trunkline::mmtp::frame::{CONNECTION_CREDIT_DEFAULT, Frame};
use trunkline::mmtp::{
    Agent, Code, Connection, CreditPolicy, Event, HeaderFlags, HeaderWriter, Known, PeerHello, Receipt, Reset,
    Settings, Side, decode, encode,
};

/// A sink that is full now and then.
struct Out {
    bytes: Vec<u8>,
    room: usize,
}

impl Sink for Out {
    fn room(&self) -> usize {
        self.room
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.room = self.room.saturating_sub(bytes.len());
    }

    fn position(&self) -> u64 {
        self.bytes.len() as u64
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let first = input.byte();
    let side = if first & 1 == 0 { Side::Initiator } else { Side::Acceptor };
    let mut settings = Settings::new(side, Agent::Pop);
    settings.credit_policy = if first & 2 == 0 { CreditPolicy::OnArrival } else { CreditPolicy::OnConsumption };
    (settings.stream_credit, settings.connection_credit, settings.streams_max) = (0, 0, 9);
    let mut connection = Connection::new(&settings, Time::ZERO);
    let mut out = Out { bytes: Vec::new(), room: usize::MAX };
    let mut received = Vec::new();
    connection.start(&mut out);
    if first & 4 != 0 {
        let hello = [0, 11, 1, 1, 1, 1, 20, 2, 4, 0x80, 1, 0, 0]; // 20 streams, 64 KiB each
        feed(&mut connection, Time::ZERO, &hello, &mut received);
    }
    let mut now = Time::ZERO;
    while !input.0.is_empty() {
        now = now + Duration::from_millis(7);
        act(&mut connection, now, &mut input, &mut out, &mut received);
        assert!(connection.has_queued() || connection.queued_bytes() == 0);
        let queued: usize = connection.streams().map(|(stream, _)| connection.queued(stream)).sum();
        assert_eq!(queued, connection.queued_bytes());
        assert!(connection.open_streams() <= 9 + 20 + 255 * 255);
    }
    check(&out.bytes, &received);
});

fn feed(connection: &mut Connection, now: Time, mut bytes: &[u8], received: &mut Vec<u8>) {
    received.extend_from_slice(bytes);
    while let Ok(Some(event)) = connection.receive(now, &mut bytes) {
        if let Event::Headers { block, opened, .. } = event {
            assert_eq!(opened, block.status().is_none());
        }
    }
}

fn act(connection: &mut Connection, now: Time, input: &mut Input<'_>, out: &mut Out, received: &mut Vec<u8>) {
    let op = input.byte();
    let stream = u64::from(op >> 4);
    match op & 15 {
        0 => {
            let count = usize::from(input.byte());
            feed(connection, now, input.bytes(count), received);
        }
        1 => {
            let count = input.short() % 20_000;
            let mut frame = Vec::new();
            encode::put_frame(
                Frame::Data { stream: stream.max(1), end: false, bytes: &vec![7; count.min(16_384)] },
                &mut frame,
            );
            feed(connection, now, &frame, received);
        }
        2 => {
            let mut frame = Vec::new();
            let bytes = (input.short() as u32).max(1);
            encode::put_frame(Frame::Credit { stream, bytes }, &mut frame);
            feed(connection, now, &frame, received);
        }
        3 => {
            let mut block = Vec::new();
            let mut writer = HeaderWriter::new(&mut block);
            writer.known(Known::Service, b"a").expect("a service");
            writer.number(Known::Priority, u64::from(input.byte() & 7)).expect("a priority");
            let mut frame = Vec::new();
            encode::put_frame(
                Frame::Headers { stream: stream.max(1), flags: HeaderFlags::NONE, block: &block },
                &mut frame,
            );
            feed(connection, now, &frame, received);
        }
        4 => drop(connection.open(u32::from(op), input.byte())),
        5 | 6 => {
            let mut block = Vec::new();
            let mut writer = HeaderWriter::new(&mut block);
            if connection.is_own(stream) {
                writer.known(Known::Service, b"a").expect("a service");
            } else {
                writer.number(Known::Status, 100 + u64::from(input.byte())).expect("a status");
            }
            let flags = HeaderFlags::from_bits(input.byte() & 7).expect("three flags");
            let _ = connection.send_headers(stream, &block, flags, out);
        }
        7 | 8 => {
            let bytes = vec![op; input.short() % 40_000];
            let _ = connection.send_data(stream, &bytes, input.byte() & 1 == 1, out);
        }
        9 => connection.reset(stream, Reset { code: Code::CANCELLED, receipt: Receipt::Unknown, wait_ms: 1 }, out),
        10 => connection.consumed(now, stream, input.short(), out),
        11 => connection.drain(out, |_, _, bytes| assert!(bytes > 0)),
        12 => connection.ping(now, out),
        13 => connection.goaway(Code::DRAINING, 1, 2, out),
        14 => out.room = input.short() * 8,
        _ => connection.trim(),
    }
}

/// What went out, against what came in.
fn check(mut sent: &[u8], mut received: &[u8]) {
    let mut credit = BTreeMap::new();
    let (mut of_connection, mut each) = (u64::from(CONNECTION_CREDIT_DEFAULT), 16_384);
    while let Ok(Some((frame, length))) = decode::frame(received) {
        received = &received[length..];
        match frame {
            Frame::Credit { stream: 0, bytes } => of_connection += u64::from(bytes),
            Frame::Credit { stream, bytes } => *credit.entry(stream).or_insert(0) += u64::from(bytes),
            Frame::Hello(payload) => {
                if let Ok(hello) = PeerHello::parse(payload, Side::Acceptor) {
                    each = each.max(u64::from(hello.stream_credit));
                    of_connection = of_connection.max(u64::from(hello.connection_credit));
                }
            }
            _ => {}
        }
    }
    let (mut used, mut used_by) = (0, BTreeMap::new());
    while let Some((frame, length)) = decode::frame(sent).expect("what goes out is well-formed") {
        sent = &sent[length..];
        match frame {
            Frame::Data { stream, bytes, .. } => {
                used += bytes.len() as u64;
                let used = used_by.entry(stream).or_insert(0);
                *used += bytes.len() as u64;
                assert!(*used <= each + credit.get(&stream).copied().unwrap_or(0));
            }
            Frame::Headers { stream, .. } => assert_ne!(stream, 0),
            _ => {}
        }
    }
    assert!(sent.is_empty(), "what goes out is whole frames");
    assert!(used <= of_connection);
}
