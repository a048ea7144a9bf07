//! Properties of MMTP that hold for all frames, all header blocks and all ways to split them.

use proptest::collection::vec;
use proptest::prelude::*;

use trunkline::base::time::Time;
use trunkline::mmtp::frame::{Frame, FrameHeader, Kind, VARINT_MAX};
use trunkline::mmtp::{
    Agent, Code, Connection, Event, HeaderBlock, HeaderFlags, HeaderWriter, Known, Message, Receipt, Settings, Side,
    decode, encode,
};

/// A frame that owns its bytes.
#[derive(Clone, Debug)]
struct Owned {
    frame: Frame<'static>,
    bytes: Vec<u8>,
}

impl Owned {
    fn frame(&self) -> Frame<'_> {
        match self.frame {
            Frame::Hello(_) => Frame::Hello(&self.bytes),
            Frame::Headers { stream, flags, .. } => Frame::Headers { stream, flags, block: &self.bytes },
            Frame::Data { stream, end, .. } => Frame::Data { stream, end, bytes: &self.bytes },
            Frame::GoAway { last_stream, code, wait_ms, jitter_ms, .. } => {
                Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address: &self.bytes }
            }
            Frame::Other { header, .. } => {
                Frame::Other { header: FrameHeader { length: self.bytes.len(), ..header }, payload: &self.bytes }
            }
            frame @ (Frame::Reset { .. } | Frame::Credit { .. } | Frame::Ping { .. }) => frame,
        }
    }
}

fn stream() -> impl Strategy<Value = u64> {
    prop_oneof![1..70u64, 16_380..16_390u64, (1 << 30) - 2..(1 << 30) + 2u64, VARINT_MAX - 1..=VARINT_MAX]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0..70u32, 16_380..16_390u32, (1u32 << 30) - 2..1 << 30]
}

fn payload(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), most..=most)]
}

fn frame() -> impl Strategy<Value = Owned> {
    let with = |frame| move |bytes| Owned { frame, bytes };
    let receipt = prop_oneof![Just(Receipt::NotForwarded), Just(Receipt::Unknown), Just(Receipt::Refused)];
    let other = (7usize..15, 0..16u8, stream(), payload(16_384)).prop_map(|(kind, flags, stream, bytes)| {
        let kind = Kind::ALL[kind];
        let stream = if kind.has_stream() { stream } else { 0 };
        let header = FrameHeader { kind, flags, stream, length: bytes.len() };
        Owned { frame: Frame::Other { header, payload: &[] }, bytes }
    });
    prop_oneof![
        payload(1024).prop_map(with(Frame::Hello(&[]))),
        (stream(), 0..8u8, payload(16_384)).prop_map(|(stream, bits, bytes)| {
            let flags = HeaderFlags::from_bits(bits).expect("three bits");
            Owned { frame: Frame::Headers { stream, flags, block: &[] }, bytes }
        }),
        (stream(), any::<bool>(), payload(16_384))
            .prop_map(|(stream, end, bytes)| Owned { frame: Frame::Data { stream, end, bytes: &[] }, bytes }),
        (stream(), number(), receipt, number()).prop_map(|(stream, code, receipt, wait_ms)| {
            Owned { frame: Frame::Reset { stream, code: Code(code), receipt, wait_ms }, bytes: Vec::new() }
        }),
        (prop_oneof![Just(0), stream()], number()).prop_map(|(stream, bytes)| Owned {
            frame: Frame::Credit { stream, bytes: bytes.max(1) },
            bytes: Vec::new()
        }),
        (any::<bool>(), any::<[u8; 8]>())
            .prop_map(|(pong, nonce)| Owned { frame: Frame::Ping { pong, nonce }, bytes: Vec::new() }),
        (stream(), number(), number(), number(), vec(0x21..0x7fu8, 0..=255)).prop_map(
            |(last_stream, code, wait_ms, jitter_ms, bytes)| Owned {
                frame: Frame::GoAway { last_stream, code: Code(code), wait_ms, jitter_ms, address: &[] },
                bytes
            }
        ),
        other,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn frames_come_back_one_after_the_other(frames in vec(frame(), 1..6)) {
        let mut bytes = Vec::new();
        for owned in &frames {
            encode::put_frame(owned.frame(), &mut bytes);
        }
        let mut rest = &bytes[..];
        for owned in &frames {
            let (frame, length) = decode::frame(rest).expect("well-formed").expect("whole");
            prop_assert_eq!(frame, owned.frame());
            prop_assert_eq!(decode::frame(&rest[..length - 1]), Ok(None));
            rest = &rest[length..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn anything_decodes_without_a_panic(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(Some((frame, length))) = decode::frame(&bytes) {
            let mut again = Vec::new();
            encode::put_frame(frame, &mut again);
            prop_assert_eq!(&again[..], &bytes[..length]);
        }
    }

    /// [M 2.1-1], errors included; and nothing that comes from outside panics.
    #[test]
    fn anything_is_received_alike_in_one_piece_and_in_many(
        bytes in vec(prop_oneof![any::<u8>(), Just(0xff), Just(1), 0x10..0x40u8], 0..200),
        splits in vec(1..9usize, 1..40),
    ) {
        let mut all = vec![0, 2, 1, 0];
        all.extend(bytes);
        let whole = outcome(&all, &[all.len()]);
        prop_assert_eq!(&whole, &outcome(&all, &[1]));
        prop_assert_eq!(&whole, &outcome(&all, &splits));
    }

    #[test]
    fn what_the_writer_takes_the_reader_takes(
        fields in vec((0..60u16, vec(any::<u8>(), 0..12), "[a-z-]{1,8}", any::<bool>()), 0..140),
    ) {
        let mut bytes = Vec::new();
        let mut writer = HeaderWriter::new(&mut bytes);
        writer.known(Known::Service, b"pay").expect("a service");
        let mut taken = 1;
        for (id, value, name, plain) in &fields {
            let plainly = |byte: &u8| if *plain { b'a' + byte % 26 } else { *byte };
            let value: Vec<u8> = value.iter().map(plainly).collect();
            let written = match Known::from_id(*id) {
                Some(known @ (Known::Status | Known::Service)) => writer.known(known, b"").map(|_| ()),
                Some(known) => writer.known(known, &value).map(|_| ()),
                None => writer.http(name.as_bytes(), &value).map(|_| ()),
            };
            taken += usize::from(written.is_ok());
        }
        prop_assert_eq!(writer.len(), bytes.len());
        let block = HeaderBlock::parse(&bytes, Message::Request).expect("the reader takes it");
        prop_assert_eq!(block.fields().count(), taken);
    }

    /// [M 2.1-1]
    #[test]
    fn splits_change_nothing(
        sizes in vec(0..3_000usize, 1..8),
        splits in vec(prop_oneof![1..4usize, 1..2_000usize], 1..400),
    ) {
        let bytes = conversation(&sizes);
        let whole = events(&bytes, &[bytes.len()]);
        prop_assert_eq!(whole, events(&bytes, &splits));
    }
}

/// What an initiator that never listens may send.
fn conversation(sizes: &[usize]) -> Vec<u8> {
    let mut connection = Connection::new(&Settings::new(Side::Initiator, Agent::Terminal), Time::ZERO);
    let mut out = Vec::new();
    connection.start(&mut out);
    let mut block = Vec::new();
    HeaderWriter::new(&mut block).known(Known::Service, b"pay").expect("a service");
    for (index, size) in sizes.iter().enumerate() {
        let stream = connection.open(0, 3).expect("below the limit");
        connection.send_headers(stream, &block, HeaderFlags::NONE, &mut out).expect("first headers");
        connection.send_data(stream, &vec![index as u8; *size], index % 2 == 0, &mut out).expect("open");
        connection.ping(Time::ZERO, &mut out);
        encode::put_frame(
            Frame::Other {
                header: FrameHeader { kind: Kind::Extension, flags: 0, stream: 0, length: 3 },
                payload: b"abc",
            },
            &mut out,
        );
    }
    out
}

/// How many events an acceptor sees of these bytes, DATA apart, and what error ends them.
fn outcome(bytes: &[u8], splits: &[usize]) -> (usize, Option<&'static str>) {
    let mut connection = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), Time::ZERO);
    let (mut rest, mut splits, mut count) = (bytes, splits.iter().cycle(), 0);
    while !rest.is_empty() {
        let (mut piece, behind) = rest.split_at((*splits.next().expect("a cycle")).min(rest.len()));
        rest = behind;
        loop {
            match connection.receive(Time::ZERO, &mut piece) {
                Ok(Some(Event::Data { end, .. })) => count += usize::from(end),
                Ok(Some(_)) => count += 1,
                Ok(None) => break,
                Err(error) => return (count, Some(error.name())),
            }
        }
    }
    (count, None)
}

/// What an acceptor makes of it when it comes in pieces of these sizes, in turn; DATA put together again.
fn events(bytes: &[u8], splits: &[usize]) -> Vec<(String, Vec<u8>)> {
    let mut connection = Connection::new(&Settings::new(Side::Acceptor, Agent::Pop), Time::ZERO);
    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut rest, mut splits) = (bytes, splits.iter().cycle());
    while !rest.is_empty() {
        let (mut piece, behind) = rest.split_at((*splits.next().expect("a cycle")).min(rest.len()));
        rest = behind;
        while let Some(event) = connection.receive(Time::ZERO, &mut piece).expect("well-formed") {
            match event {
                Event::Data { stream, bytes, end, .. } => {
                    let (name, ending) = (format!("data {stream}"), if end { " end" } else { "" });
                    match seen.last_mut() {
                        Some((last, gathered)) if *last == name => {
                            gathered.extend_from_slice(bytes);
                            last.push_str(ending);
                        }
                        _ => seen.push((name + ending, bytes.to_vec())),
                    }
                }
                Event::Headers { block, .. } => seen.push(("headers".to_owned(), block.bytes().to_vec())),
                event => seen.push((format!("{event:?}"), Vec::new())),
            }
        }
    }
    seen
}
