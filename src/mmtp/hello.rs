//! HELLO and what it is made from (MMTP 4.1): the settings of this end, and what the peer said of itself.
//!
//! Owns the parameter numbers and their defaults; never decides what they do to a connection.

use core::time::Duration;

use super::decode::Reader;
use super::encode;
use super::error::Violation;
use super::frame::{CONNECTION_CREDIT_DEFAULT, CREDIT_MAX, HELLO_BYTES_MAX, STREAM_CREDIT_DEFAULT, STREAMS_DEFAULT};

/// The version of this specification.
pub const VERSION: u64 = 1;

/// Longest attribute value, in bytes (MMTP 4.1). What is longer is not sent.
pub const ATTRIBUTE_BYTES_MAX: usize = 128;

/// Bit of a parameter id that says: whoever does not know it may ignore it (MMTP 4.1).
const PARAMETER_IGNORABLE: u64 = 0x20;

const STREAMS_MAX_ID: u64 = 1;
const STREAM_CREDIT_ID: u64 = 2;
const CONNECTION_CREDIT_ID: u64 = 3;
const HEARTBEAT_LEAST_ID: u64 = 4;
const HEARTBEAT_MOST_ID: u64 = 5;
const CAPABILITIES_ID: u64 = 6;

/// Which end of the transport connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Dialled; opens odd streams.
    Initiator,
    /// Was dialled; opens even streams.
    Acceptor,
}

impl Side {
    /// The end at the other end.
    pub(super) fn other(self) -> Side {
        match self {
            Side::Initiator => Side::Acceptor,
            Side::Acceptor => Side::Initiator,
        }
    }
}

/// What an end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agent {
    /// An app, or anything that makes requests for itself.
    Terminal,
    /// A point of presence.
    Pop,
    /// A gateway.
    Gateway,
}

impl Agent {
    fn byte(self) -> u8 {
        match self {
            Agent::Terminal => 0,
            Agent::Pop => 1,
            Agent::Gateway => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Agent> {
        match byte {
            0 => Some(Agent::Terminal),
            1 => Some(Agent::Pop),
            2 => Some(Agent::Gateway),
            _ => None,
        }
    }
}

/// Something an end says about itself (MMTP 4.1). Visible ASCII and blanks, at most [`ATTRIBUTE_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// Name of the app, or id of the node.
    App,
    /// Version of the app or the node's software.
    AppVersion,
    /// Operating system and its version.
    System,
    /// Kind of network: `wifi`, `4g`, `5g`, `wired`.
    Network,
}

impl Attribute {
    fn id(self) -> u64 {
        match self {
            Attribute::App => 32,
            Attribute::AppVersion => 33,
            Attribute::System => 34,
            Attribute::Network => 35,
        }
    }

    fn from_id(id: u64) -> Option<Attribute> {
        match id {
            32 => Some(Attribute::App),
            33 => Some(Attribute::AppVersion),
            34 => Some(Attribute::System),
            35 => Some(Attribute::Network),
            _ => None,
        }
    }
}

/// When the peer gets back credit for the whole connection (MMTP 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreditPolicy {
    /// As bytes arrive: only the credit of streams holds the peer back. What a connection shared by strangers wants,
    /// since one stalled stream must not stall the rest; memory is bounded by streams times stream credit.
    OnArrival,
    /// As bytes are consumed: memory is bounded by the credit of the connection.
    OnConsumption,
}

/// How one end behaves. Build once, use for many connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Which end.
    pub side: Side,
    /// What this end is.
    pub agent: Agent,
    /// Streams the peer may have open at once. An acceptor allows at least [`STREAMS_DEFAULT`] whatever stands here.
    pub streams_max: u32,
    /// Credit granted to each new stream, in bytes; at least [`STREAM_CREDIT_DEFAULT`] whatever stands here.
    pub stream_credit: u32,
    /// What the window of one stream may grow to when it proves too small for the path, in bytes.
    pub stream_credit_max: u32,
    /// Credit granted to the connection, in bytes; at least [`CONNECTION_CREDIT_DEFAULT`] whatever stands here.
    pub connection_credit: u32,
    /// When the connection's credit is granted again.
    pub credit_policy: CreditPolicy,
    /// Shortest and longest time between heartbeats this end is content with.
    pub heartbeat: (Duration, Duration),
    /// What this end says of itself. Values that are too long or not visible ASCII are left out.
    pub attributes: Vec<(Attribute, Vec<u8>)>,
    /// Streams the peer may open and have fail at once, before they are counted against `churn_per_second`.
    pub churn_burst: u32,
    /// Streams per second the peer may open and have fail.
    pub churn_per_second: u32,
    /// Seed of the stream table's hash: secret from peers, so that they cannot choose ids that collide.
    pub hash_seed: u64,
}

impl Settings {
    /// Settings for `side` that suit a peer that is not trusted.
    #[must_use]
    pub fn new(side: Side, agent: Agent) -> Settings {
        Settings {
            side,
            agent,
            streams_max: match side {
                Side::Initiator => 0,
                Side::Acceptor => 128,
            },
            stream_credit: 64 * 1024,
            stream_credit_max: 1024 * 1024,
            connection_credit: 256 * 1024,
            credit_policy: CreditPolicy::OnConsumption,
            heartbeat: (Duration::from_secs(10), Duration::from_secs(300)),
            attributes: Vec::new(),
            churn_burst: 200,
            churn_per_second: 50,
            hash_seed: 0,
        }
    }

    /// Settings for `side` of a connection that carries the streams of many users between nodes that trust each other:
    /// many streams, large windows, and credit of the connection back on arrival, so that no user's stall is another's.
    #[must_use]
    pub fn shared(side: Side, agent: Agent) -> Settings {
        Settings {
            streams_max: match side {
                Side::Initiator => 0,
                Side::Acceptor => 65_536,
            },
            stream_credit: 256 * 1024,
            stream_credit_max: 4 * 1024 * 1024,
            connection_credit: 64 * 1024 * 1024,
            credit_policy: CreditPolicy::OnArrival,
            churn_burst: 1 << 20,
            churn_per_second: 1 << 17,
            ..Settings::new(side, agent)
        }
    }

    /// Streams the peer may open, after the floor.
    pub(super) fn streams_max_granted(&self) -> u32 {
        match self.side {
            Side::Initiator => self.streams_max,
            Side::Acceptor => self.streams_max.max(STREAMS_DEFAULT),
        }
        .min(CREDIT_MAX)
    }

    /// Credit of a new stream, after floor and ceiling.
    pub(super) fn stream_credit_granted(&self) -> u32 {
        self.stream_credit.clamp(STREAM_CREDIT_DEFAULT, CREDIT_MAX)
    }

    /// Ceiling of a stream's window, after floor and ceiling.
    pub(super) fn stream_credit_max_granted(&self) -> u32 {
        self.stream_credit_max.clamp(self.stream_credit_granted(), CREDIT_MAX)
    }

    /// Credit of the connection, after floor and ceiling.
    pub(super) fn connection_credit_granted(&self) -> u32 {
        self.connection_credit.clamp(CONNECTION_CREDIT_DEFAULT, CREDIT_MAX)
    }

    /// The payload of HELLO.
    pub(super) fn hello(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(64);
        encode::put_varint(VERSION, &mut payload);
        payload.push(self.agent.byte());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(u64::from(CREDIT_MAX));
        for (id, value) in [
            (STREAMS_MAX_ID, u64::from(self.streams_max_granted())),
            (STREAM_CREDIT_ID, u64::from(self.stream_credit_granted())),
            (CONNECTION_CREDIT_ID, u64::from(self.connection_credit_granted())),
            (HEARTBEAT_LEAST_ID, millis(self.heartbeat.0)),
            (HEARTBEAT_MOST_ID, millis(self.heartbeat.1.max(self.heartbeat.0))),
        ] {
            encode::put_varint(id, &mut payload);
            encode::put_varint(encode::varint_len(value) as u64, &mut payload);
            encode::put_varint(value, &mut payload);
        }
        for (index, (attribute, value)) in self.attributes.iter().enumerate() {
            let is_first = self.attributes[..index].iter().all(|(earlier, _)| earlier != attribute);
            if is_first && is_attribute_value(value) {
                encode::put_varint(attribute.id(), &mut payload);
                encode::put_varint(value.len() as u64, &mut payload);
                payload.extend_from_slice(value);
            }
        }
        payload
    }
}

const _: () = assert!(4 * (ATTRIBUTE_BYTES_MAX + 3) + 6 * 10 + 9 <= HELLO_BYTES_MAX, "every HELLO of ours fits");

fn is_attribute_value(value: &[u8]) -> bool {
    value.len() <= ATTRIBUTE_BYTES_MAX && value.iter().all(|byte| (0x20..0x7f).contains(byte))
}

/// What the peer's HELLO said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerHello {
    /// What it is.
    pub agent: Agent,
    /// Streams this end may have open at once.
    pub streams_max: u32,
    /// Credit of each new stream, in bytes.
    pub stream_credit: u32,
    /// Credit of the connection, in bytes.
    pub connection_credit: u32,
    /// Shortest and longest time between heartbeats it is content with, when it said.
    pub heartbeat: Option<(Duration, Duration)>,
    /// Bits of optional parts of the protocol it handles; none is defined to be used in MMTP/1.
    pub capabilities: u64,
    /// What it said of itself.
    pub attributes: Vec<(Attribute, Vec<u8>)>,
}

impl PeerHello {
    /// Reads the payload of HELLO. `from` is the side that sent it (MMTP 4.1, 2.3).
    pub fn parse(payload: &[u8], from: Side) -> Result<PeerHello, Violation> {
        let malformed = |violation| match violation {
            Violation::PayloadMalformed => Violation::HelloMalformed,
            other => other,
        };
        let mut reader = Reader::new(payload);
        if reader.varint().map_err(malformed)? != VERSION {
            return Err(Violation::VersionUnsupported);
        }
        let agent = Agent::from_byte(reader.byte().map_err(malformed)?).ok_or(Violation::HelloMalformed)?;
        let mut hello = PeerHello {
            agent,
            streams_max: match from {
                Side::Initiator => 0,
                Side::Acceptor => STREAMS_DEFAULT,
            },
            stream_credit: STREAM_CREDIT_DEFAULT,
            connection_credit: CONNECTION_CREDIT_DEFAULT,
            heartbeat: None,
            capabilities: 0,
            attributes: Vec::new(),
        };
        let floors = (hello.streams_max, hello.stream_credit, hello.connection_credit);
        let (mut seen, mut heartbeat_least, mut heartbeat_most) = (0u64, None, None);
        while !reader.is_empty() {
            let id = reader.varint().map_err(malformed)?;
            let length = reader.varint().map_err(malformed)?;
            let value = reader.bytes(length).map_err(malformed)?;
            if id < 64 {
                if seen & 1 << id != 0 {
                    return Err(Violation::HelloMalformed);
                }
                seen |= 1 << id;
            }
            match id {
                STREAMS_MAX_ID => hello.streams_max = number(value)?,
                STREAM_CREDIT_ID => hello.stream_credit = number(value)?,
                CONNECTION_CREDIT_ID => hello.connection_credit = number(value)?,
                HEARTBEAT_LEAST_ID => heartbeat_least = Some(number(value)?),
                HEARTBEAT_MOST_ID => heartbeat_most = Some(number(value)?),
                CAPABILITIES_ID => hello.capabilities = wide_number(value)?,
                id => match Attribute::from_id(id) {
                    Some(attribute) if is_attribute_value(value) => hello.attributes.push((attribute, value.to_vec())),
                    Some(_) => return Err(Violation::HelloMalformed),
                    None if id & PARAMETER_IGNORABLE != 0 => {}
                    None => return Err(Violation::HelloMalformed),
                },
            }
        }
        if hello.streams_max < floors.0 || hello.stream_credit < floors.1 || hello.connection_credit < floors.2 {
            return Err(Violation::HelloLimitTooLow);
        }
        hello.heartbeat = heartbeat_of(heartbeat_least, heartbeat_most)?;
        Ok(hello)
    }
}

fn heartbeat_of(least: Option<u32>, most: Option<u32>) -> Result<Option<(Duration, Duration)>, Violation> {
    let millis = |millis: u32| Duration::from_millis(u64::from(millis));
    match (least, most) {
        (None, None) => Ok(None),
        (Some(least), Some(most)) if least <= most => Ok(Some((millis(least), millis(most)))),
        (Some(_) | None, Some(_) | None) => Err(Violation::HelloMalformed),
    }
}

/// A number below 2^30 that fills its value.
fn number(value: &[u8]) -> Result<u32, Violation> {
    let number = wide_number(value)?;
    if number > u64::from(CREDIT_MAX) { Err(Violation::HelloMalformed) } else { Ok(number as u32) }
}

fn wide_number(value: &[u8]) -> Result<u64, Violation> {
    let mut reader = Reader::new(value);
    let number = reader.varint().map_err(|_| Violation::HelloMalformed)?;
    reader.end().map_err(|_| Violation::HelloMalformed)?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_settings_say_is_what_the_peer_hears() {
        let mut settings = Settings::new(Side::Acceptor, Agent::Pop);
        settings.attributes = vec![
            (Attribute::App, b"pop-1".to_vec()),
            (Attribute::System, vec![b'x'; ATTRIBUTE_BYTES_MAX + 1]),
            (Attribute::App, b"again".to_vec()),
        ];
        let hello = PeerHello::parse(&settings.hello(), Side::Acceptor).unwrap();
        assert_eq!(hello.agent, Agent::Pop);
        assert_eq!(hello.streams_max, settings.streams_max);
        assert_eq!(hello.stream_credit, settings.stream_credit);
        assert_eq!(hello.connection_credit, settings.connection_credit);
        assert_eq!(hello.heartbeat, Some(settings.heartbeat));
        assert_eq!(hello.attributes, [(Attribute::App, b"pop-1".to_vec())]);
    }
}
