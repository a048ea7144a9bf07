//! The byte vectors of MMTP: decoding, encoding and whole connections against the files in `tests/vectors/`.
//!
//! The files say at their top how they are read. They were written by another encoder than the one under test.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;

use trunkline::base::time::Time;
use trunkline::mmtp::decode;
use trunkline::mmtp::encode;
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{
    Agent, Code, ConnError, Connection, Event, HeaderBlock, HeaderError, HeaderFlags, HeaderWriter, Message, Name,
    Receipt, Reset, Scope, Settings, Side, StreamError, Violation,
};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Hex, with or without blanks; `xx*n` repeats a byte; `-` is nothing.
fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace().filter(|word| *word != "-") {
        let (digits, count) = match word.split_once('*') {
            Some((digits, count)) => (digits, count.parse().expect("a count behind *")),
            None => (word, 1),
        };
        let piece: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hex digits"))
            .collect();
        bytes.extend(piece.repeat(count));
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    match bytes {
        [] => "-".to_owned(),
        [first, ..] if bytes.len() > 300 && bytes.iter().all(|byte| byte == first) => {
            format!("{first:02x}*{}", bytes.len())
        }
        _ => bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes everything");
            text
        }),
    }
}

fn receipt_number(receipt: Receipt) -> u8 {
    match receipt {
        Receipt::NotForwarded => 0,
        Receipt::Unknown => 1,
        Receipt::Refused => 2,
    }
}

fn describe(frame: &Frame<'_>) -> String {
    match frame {
        Frame::Hello(payload) => format!("HELLO payload={}", hex(payload)),
        Frame::Headers { stream, flags, block } => {
            format!("HEADERS stream={stream} flags={} block={}", flags.bits(), hex(block))
        }
        Frame::Data { stream, end, bytes } => format!("DATA stream={stream} end={end} bytes={}", hex(bytes)),
        Frame::Reset { stream, code, receipt, wait_ms } => {
            format!("RESET stream={stream} code={} receipt={} wait={wait_ms}", code.0, receipt_number(*receipt))
        }
        Frame::Credit { stream, bytes } => format!("CREDIT stream={stream} bytes={bytes}"),
        Frame::Ping { pong, nonce } => format!("PING pong={pong} nonce={}", hex(nonce)),
        Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address } => {
            let address = hex(address);
            format!("GOAWAY last={last_stream} code={} wait={wait_ms} jitter={jitter_ms} address={address}", code.0)
        }
        Frame::Other { header, payload } => {
            let (kind, flags, stream) = (header.kind, header.flags, header.stream);
            format!("OTHER kind={kind:?} flags={flags} stream={stream} payload={}", hex(payload))
        }
    }
}

#[test]
fn frames_decode_and_encode_as_written() {
    let text = read("frames.hex");
    let mut lines = lines(&text);
    let mut count = 0;
    while let Some((number, line)) = lines.next() {
        let bytes = unhex(lines.next().expect("bytes follow").1);
        match line.split_once(' ').expect("a word and more") {
            ("frame", expected) => {
                let (frame, length) = decode::frame(&bytes).unwrap().expect("a whole frame");
                assert_eq!(describe(&frame), expected, "line {number}");
                assert_eq!(length, bytes.len(), "line {number}");
                for cut in (0..bytes.len()).take(300) {
                    assert_eq!(decode::frame(&bytes[..cut]), Ok(None), "line {number}, cut at {cut}");
                }
                let mut again = Vec::new();
                encode::put_frame(frame, &mut again);
                assert_eq!(again, bytes, "line {number}");
            }
            ("violation", expected) => {
                let violation = decode::frame(&bytes).expect_err(line);
                assert_eq!(violation.name(), expected, "line {number}");
                for cut in 0..bytes.len() {
                    assert!(!matches!(decode::frame(&bytes[..cut]), Ok(Some(_))), "line {number}, cut at {cut}");
                }
            }
            (word, _) => panic!("line {number}: {word}?"),
        }
        count += 1;
    }
    assert!(count > 60, "{count} vectors");
}

#[test]
fn header_blocks_are_checked_and_written_as_they_stand() {
    let text = read("blocks.hex");
    let mut lines = lines(&text);
    let mut count = 0;
    while let Some((number, line)) = lines.next() {
        let bytes = unhex(lines.next().expect("bytes follow").1);
        let (message, rest) = line.split_once(' ').expect("a word and more");
        let message = if message == "request" { Message::Request } else { Message::Answer };
        let parsed = HeaderBlock::parse(&bytes, message);
        match rest.split_once(' ').expect("a word and more") {
            ("ok", expected) => {
                let block = parsed.unwrap_or_else(|error| panic!("line {number}: {error:?}"));
                assert_eq!(describe_block(&block), expected, "line {number}");
                assert_eq!(write_again(&block), bytes, "line {number}");
            }
            ("error", expected) => {
                let error = parsed.map(|_| ()).expect_err(line);
                assert_eq!(format!("{error:?}"), expected, "line {number}");
            }
            (word, _) => panic!("line {number}: {word}?"),
        }
        count += 1;
    }
    assert!(count > 150, "{count} vectors");
}

fn describe_block(block: &HeaderBlock<'_>) -> String {
    let fields: Vec<String> = block
        .fields()
        .map(|field| {
            let value = hex(field.value);
            match field.name {
                Name::Known(known) => format!("{}={value}", known.id()),
                Name::Ignorable(id) => format!("{id}={value}"),
                Name::Spelled(name) => format!("{}={value}", String::from_utf8_lossy(name)),
            }
        })
        .collect();
    fields.join(" ")
}

fn write_again(block: &HeaderBlock<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = HeaderWriter::new(&mut bytes);
    for field in block.fields() {
        match (field.name, field.number()) {
            (Name::Known(known), Some(number)) => writer.number(known, number),
            (Name::Known(known), None) => writer.known(known, field.value),
            (Name::Spelled(name), _) => writer.spelled(name, field.value),
            (Name::Ignorable(_), _) => writer.raw(field.raw),
        }
        .expect("what was checked can be written");
    }
    bytes
}

/// One case of a connection file under way.
struct Script {
    name: String,
    /// Largest piece in which input is handed over.
    piece_bytes: usize,
    connection: Option<Connection>,
    out: Vec<u8>,
    events: VecDeque<Seen>,
    error: Option<ConnError>,
}

enum Seen {
    Data { stream: u64, bytes: Vec<u8>, end: bool },
    Other(String),
}

impl Script {
    fn new(name: &str, piece_bytes: usize) -> Script {
        let (out, events) = (Vec::new(), VecDeque::new());
        Script { name: name.to_owned(), piece_bytes, connection: None, out, events, error: None }
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("`side` comes first")
    }

    fn step(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').expect("a word and more");
        match word {
            "side" => self.begin(rest),
            "peer" => {
                for piece in unhex(rest).chunks(self.piece_bytes) {
                    self.feed(piece);
                }
            }
            "event" => {
                let seen = match self.events.pop_front() {
                    Some(Seen::Other(text)) => text,
                    Some(Seen::Data { stream, bytes, end }) => format!("data {stream} {} end={end}", hex(&bytes)),
                    None => "nothing".to_owned(),
                };
                assert_eq!(seen, rest);
            }
            "sends" => {
                let (expected, sent) = (unhex(rest), std::mem::take(&mut self.out));
                assert!(sent == expected, "sent {}", hex(&sent));
            }
            "error" => {
                self.no_event_is_left();
                let error = self.error.take().expect("an error");
                assert_eq!(format!("{} {}", error.name(), error.code().name()), rest);
                self.error = None;
            }
            "do" => self.act(rest),
            _ => panic!("{word}?"),
        }
    }

    fn begin(&mut self, side: &str) {
        let mut settings = match side {
            "initiator" => Settings::new(Side::Initiator, Agent::Terminal),
            _ => Settings::new(Side::Acceptor, Agent::Pop),
        };
        if settings.side == Side::Acceptor {
            settings.streams_max = 8;
        }
        (settings.stream_credit, settings.connection_credit) = (16_384, 65_536);
        (settings.churn_burst, settings.churn_per_second) = (8, 1);
        let mut connection = Connection::new(&settings, Time::ZERO);
        connection.start(&mut self.out);
        self.out.clear();
        self.connection = Some(connection);
    }

    fn feed(&mut self, mut piece: &[u8]) {
        let connection = self.connection.as_mut().expect("`side` comes first");
        loop {
            match connection.receive(Time::ZERO, &mut piece) {
                Ok(Some(Event::Data { stream, bytes, end, .. })) => match self.events.back_mut() {
                    Some(Seen::Data { stream: same, bytes: whole, end: ended }) if *same == stream && !*ended => {
                        whole.extend_from_slice(bytes);
                        *ended = end;
                    }
                    _ => self.events.push_back(Seen::Data { stream, bytes: bytes.to_vec(), end }),
                },
                Ok(Some(event)) => self.events.push_back(Seen::Other(describe_event(&event))),
                Ok(None) => {
                    assert!(piece.is_empty(), "all input is used up");
                    return;
                }
                Err(error) => {
                    self.error = Some(error);
                    return;
                }
            }
        }
    }

    fn act(&mut self, line: &str) {
        let mut out = std::mem::take(&mut self.out);
        let connection = self.connection();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let small = |at: usize| u32::try_from(number(at)).expect("a small number");
        match words[0] {
            "open" => {
                connection.open(0, 3).expect("a stream");
            }
            "refused_open" => assert!(connection.open(0, 3).is_err()),
            "headers" | "answer" => {
                let flags = HeaderFlags::from_bits(number(2) as u8).expect("flags");
                connection.send_headers(number(1), &unhex(words[3]), flags, &mut out).expect("headers");
            }
            "data" => {
                let end = words.get(3) == Some(&"end");
                connection.send_data(number(1), &unhex(words[2]), end, &mut out).expect("data");
            }
            "gone" => assert_eq!(connection.send_data(number(1), b"", true, &mut out), Err(StreamError::Gone)),
            "reset" => {
                let receipt = [Receipt::NotForwarded, Receipt::Unknown, Receipt::Refused][number(3) as usize];
                let reset = Reset { code: Code(small(2)), receipt, wait_ms: small(4) };
                connection.reset(number(1), reset, &mut out);
            }
            "consumed" => connection.consumed(Time::ZERO, number(1), number(2) as usize, &mut out),
            "drain" => connection.drain(&mut out, |_, _, _| ()),
            "ping" => connection.ping(Time::ZERO, &mut out),
            "goaway" => connection.goaway(Code(small(1)), 0, 0, &mut out),
            "goaway_error" => {
                let error = connection.receive(Time::ZERO, &mut &b""[..]).map(|_| ()).expect_err("the error stays");
                connection.goaway(error.code(), 0, 0, &mut out);
            }
            "streams" => assert_eq!(connection.open_streams() as u64, number(1)),
            word => panic!("do {word}?"),
        }
        self.out = out;
    }

    fn no_event_is_left(&self) {
        let left = self.events.iter().map(|seen| match seen {
            Seen::Data { stream, .. } => format!("data {stream}"),
            Seen::Other(text) => text.clone(),
        });
        assert_eq!(left.collect::<Vec<String>>(), [] as [String; 0], "events that the case does not name");
    }

    fn end(&self) {
        self.no_event_is_left();
        assert_eq!(self.error, None, "an error that the case does not name");
    }
}

fn describe_event(event: &Event<'_>) -> String {
    let code_word = |code: Code| match code.name() {
        "unknown" => code.0.to_string(),
        name => name.to_owned(),
    };
    match *event {
        Event::Established => "established".to_owned(),
        Event::Headers { stream, opened, block, flags, .. } => {
            let opened = if opened { " opened" } else { "" };
            format!("headers {stream}{opened} flags={} block={}", flags.bits(), hex(block.bytes()))
        }
        Event::Data { .. } => unreachable!("data is gathered"),
        Event::Reset { stream, code, receipt, wait_ms, .. } => {
            format!("reset {stream} {} {} {wait_ms}", code_word(code), receipt_number(receipt))
        }
        Event::Credit { stream, .. } => format!("credit {stream}"),
        Event::Pong => "pong".to_owned(),
        Event::GoAway { last_stream, code, wait_ms, jitter_ms, address } => {
            format!("goaway {last_stream} {} {wait_ms} {jitter_ms} {}", code_word(code), hex(address))
        }
    }
}

/// Names the case and the line when a step panics.
struct Place<'a> {
    file: &'a str,
    line: usize,
    case: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {} line {}, case: {}", self.file, self.line, self.case);
        }
    }
}

fn run_file(file: &str, cases_expected: usize) -> BTreeSet<&'static str> {
    let text = read(file);
    let mut violations = BTreeSet::new();
    for piece_bytes in [usize::MAX, 1, 2, 3, 7, 1400] {
        let mut place = Place { file, line: 0, case: String::new() };
        let mut script: Option<Script> = None;
        let mut cases = 0;
        for (number, line) in lines(&text) {
            place.line = number;
            if let Some(name) = line.strip_prefix("case ") {
                if let Some(script) = script.take() {
                    script.end();
                }
                script = Some(Script::new(name, piece_bytes));
                cases += 1;
            }
            let script = script.as_mut().expect("`case` comes first");
            place.case = format!("{} (pieces of {piece_bytes})", script.name);
            if !line.starts_with("case ") {
                script.step(line);
                violations.extend(script.connection().last_violation().map(|violation| violation.name()));
            }
        }
        script.expect("a case").end();
        assert_eq!(cases, cases_expected, "cases in {file}");
    }
    violations
}

#[test]
fn connections_open_as_written() {
    run_file("connection_opening.hex", 25);
}

#[test]
fn connections_treat_frames_as_written() {
    run_file("connection_frames.hex", 22);
}

#[test]
fn connections_treat_streams_as_written() {
    run_file("connection_streams.hex", 37);
}

#[test]
fn connections_treat_credit_as_written() {
    run_file("connection_credit.hex", 11);
}

/// Every way to break a rule has a case that reaches it.
#[test]
fn every_violation_is_reached_on_a_connection() {
    const ALL: [Violation; 28] = [
        Violation::IntegerNotShortest,
        Violation::FrameUnknown,
        Violation::FrameReserved,
        Violation::FlagsUnknown,
        Violation::FrameTooLarge,
        Violation::PayloadMalformed,
        Violation::HelloMissing,
        Violation::HelloTwice,
        Violation::VersionUnsupported,
        Violation::HelloMalformed,
        Violation::HelloLimitTooLow,
        Violation::StreamZero,
        Violation::StreamNotOpened,
        Violation::StreamLimitExceeded,
        Violation::ConnectionCreditExceeded,
        Violation::ConnectionCreditOverflow,
        Violation::CreditZero,
        Violation::ReceiptUnknown,
        Violation::GoAwayRaised,
        Violation::StreamCreditExceeded,
        Violation::StreamCreditOverflow,
        Violation::DataBeforeHeaders,
        Violation::HeadersTwice,
        Violation::AfterEnd,
        Violation::InterimTooMany,
        Violation::InterimEnds,
        Violation::FlagsMisplaced,
        Violation::Block(HeaderError::Truncated),
    ];
    let mut reached = run_file("connection_opening.hex", 25);
    reached.append(&mut run_file("connection_frames.hex", 22));
    reached.append(&mut run_file("connection_streams.hex", 37));
    reached.append(&mut run_file("connection_credit.hex", 11));
    let all: BTreeSet<&str> = ALL.iter().map(|violation| violation.name()).collect();
    assert_eq!(all.len(), ALL.len(), "names are distinct");
    assert_eq!(reached, all);
    for violation in ALL {
        let is_of_stream = violation.scope() == Scope::Stream;
        // The variants are in order of reach; a variant that is missing from the list above has no number here.
        assert_eq!(is_of_stream, index_of(violation) >= index_of(Violation::StreamCreditExceeded));
    }
    fn index_of(violation: Violation) -> usize {
        ALL.iter().position(|listed| listed.name() == violation.name()).expect("listed above")
    }
}
