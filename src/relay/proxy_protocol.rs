//! PROXY protocol version 2 (haproxy, doc/proxy-protocol.txt, section 2.2): who the peer of a balancer in front is.
//!
//! Owns the reading of one header at the start of a connection; never buffers: the caller keeps the bytes until the
//! header is whole, and [`HEADER_BYTES_MAX`] bounds how many that can be.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of one header, with everything optional in it. IP addresses need 52; the rest is room for what balancers add
/// (names, TLS details, a client certificate) without giving a stranger much of our memory.
pub const HEADER_BYTES_MAX: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const SIGNATURE_V1: &[u8] = b"PROXY ";
/// Signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;
const INET_BYTES: usize = 12;
const INET6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;

/// How a header breaks the protocol. The connection must be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyError {
    /// The text header of version 1: the balancer must be told to send version 2.
    VersionOne,
    /// No header at all.
    Signature,
    /// A version other than 2.
    Version(u8),
    /// A command other than LOCAL and PROXY.
    Command(u8),
    /// A combination of address family and transport that the protocol does not define.
    Family(u8),
    /// A header longer than [`HEADER_BYTES_MAX`]: the bytes it would have.
    TooLong(usize),
    /// A header too short for the addresses of its family: the bytes behind its length field.
    AddressesCut(usize),
    /// An optional field (TLV) that reaches beyond the header.
    FieldCut,
}

impl ProxyError {
    /// A few fixed words for a log line.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            ProxyError::VersionOne => "PROXY header of version 1; version 2 is expected",
            ProxyError::Signature => "no PROXY header",
            ProxyError::Version(_) => "unknown PROXY version",
            ProxyError::Command(_) => "unknown PROXY command",
            ProxyError::Family(_) => "unknown PROXY address family",
            ProxyError::TooLong(_) => "PROXY header too long",
            ProxyError::AddressesCut(_) => "PROXY header too short for its addresses",
            ProxyError::FieldCut => "PROXY field reaches beyond the header",
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())?;
        match self {
            ProxyError::Version(value) | ProxyError::Command(value) | ProxyError::Family(value) => {
                write!(f, " ({value:#04x})")
            }
            ProxyError::TooLong(bytes) | ProxyError::AddressesCut(bytes) => write!(f, " ({bytes} bytes)"),
            ProxyError::VersionOne | ProxyError::Signature | ProxyError::FieldCut => Ok(()),
        }
    }
}

impl std::error::Error for ProxyError {}

/// Reads the header at the front of all `bytes` that came so far. None: more is needed, and nothing is wrong so far.
/// Otherwise the bytes the header takes, and the source it names; no source for LOCAL and for what is not TCP over
/// IPv4 or IPv6, where the socket's own peer counts.
///
/// # Errors
/// The header breaks the protocol, as soon as that can be told.
pub fn read(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    if !agrees(bytes, SIGNATURE) {
        let is_v1 = agrees(bytes, SIGNATURE_V1);
        return match is_v1 {
            true if bytes.len() < SIGNATURE_V1.len() => Ok(None),
            true => Err(ProxyError::VersionOne),
            false => Err(ProxyError::Signature),
        };
    }
    let command = match bytes.get(12).copied() {
        None => return Ok(None),
        Some(byte) if byte >> 4 != 2 => return Err(ProxyError::Version(byte >> 4)),
        Some(byte) => Command::read(byte & 0x0F)?,
    };
    let Some(&[family, high, low]) = bytes.get(13..FIXED_BYTES) else { return Ok(None) };
    let length_bytes = usize::from(u16::from_be_bytes([high, low]));
    let header_bytes = FIXED_BYTES + length_bytes;
    if header_bytes > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong(header_bytes));
    }
    // LOCAL: "discard the protocol block including the family".
    let address_bytes = match command {
        Command::Local => 0,
        Command::Proxy => address_bytes(family)?,
    };
    if length_bytes < address_bytes {
        return Err(ProxyError::AddressesCut(length_bytes));
    }
    let Some(block) = bytes.get(FIXED_BYTES..header_bytes) else { return Ok(None) };
    let source = match command {
        Command::Local => None,
        Command::Proxy => {
            let (addresses, fields) = block.split_at(address_bytes);
            check_fields(family, fields)?;
            source(family, addresses)
        }
    };
    Ok(Some((header_bytes, source)))
}

#[derive(Clone, Copy)]
enum Command {
    Local,
    Proxy,
}

impl Command {
    fn read(value: u8) -> Result<Command, ProxyError> {
        match value {
            0 => Ok(Command::Local),
            1 => Ok(Command::Proxy),
            other => Err(ProxyError::Command(other)),
        }
    }
}

/// Whether `bytes` begins with `expected`, or is the beginning of it.
fn agrees(bytes: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(expected).all(|(a, b)| a == b)
}

/// How many bytes the two addresses of a family take.
fn address_bytes(family: u8) -> Result<usize, ProxyError> {
    match family {
        0x00 => Ok(0),
        0x11 | 0x12 => Ok(INET_BYTES),
        0x21 | 0x22 => Ok(INET6_BYTES),
        0x31 | 0x32 => Ok(UNIX_BYTES),
        other => Err(ProxyError::Family(other)),
    }
}

/// The source address: TCP over IPv4 or IPv6. For what else is defined, "the receiver falls back to UNSPEC mode".
fn source(family: u8, addresses: &[u8]) -> Option<SocketAddr> {
    match family {
        0x11 => {
            let ip: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            let port: [u8; 2] = addresses.get(8..10)?.try_into().ok()?;
            Some((Ipv4Addr::from(ip), u16::from_be_bytes(port)).into())
        }
        0x21 => {
            let ip: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            let port: [u8; 2] = addresses.get(32..34)?.try_into().ok()?;
            Some((Ipv6Addr::from(ip), u16::from_be_bytes(port)).into())
        }
        _ => None,
    }
}

/// Walks the optional fields: type, length (2 bytes), value. What they say is of no use here, but one that lies about
/// its length means that the sender and we see different headers. UNSPEC has no layout to hold it to.
fn check_fields(family: u8, mut fields: &[u8]) -> Result<(), ProxyError> {
    if family == 0x00 {
        return Ok(());
    }
    while !fields.is_empty() {
        let &[_, high, low, ref rest @ ..] = fields else { return Err(ProxyError::FieldCut) };
        fields = rest.get(usize::from(u16::from_be_bytes([high, low]))..).ok_or(ProxyError::FieldCut)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).expect("test blocks are short");
        [&SIGNATURE[..], &[version_command, family], &length.to_be_bytes(), block].concat()
    }

    const INET: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xC0, 0x01, 0x01, 0xBB];

    fn inet6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let destination: Ipv6Addr = "2001:db8::2".parse().expect("an address");
        [&source.octets()[..], &destination.octets(), &[0xFF, 0xFF, 0x01, 0xBB]].concat()
    }

    #[test]
    fn sources() {
        let cases = [
            (header(0x21, 0x11, &INET), Some("192.0.2.1:49153")),
            (header(0x21, 0x21, &inet6()), Some("[2001:db8::1]:65535")),
            // With fields: ALPN "h2", and an empty NOOP.
            (header(0x21, 0x11, &[&INET[..], &[1, 0, 2, b'h', b'2', 4, 0, 0]].concat()), Some("192.0.2.1:49153")),
            // UDP and UNIX fall back to the socket's own peer.
            (header(0x21, 0x12, &INET), None),
            (header(0x21, 0x22, &inet6()), None),
            (header(0x21, 0x31, &[0; UNIX_BYTES]), None),
            (header(0x21, 0x32, &[0; UNIX_BYTES]), None),
            (header(0x21, 0x00, &[]), None),
            (header(0x21, 0x00, &[7; 5]), None),
            // LOCAL: whatever is in the block.
            (header(0x20, 0x00, &[]), None),
            (header(0x20, 0x11, &[]), None),
            (header(0x20, 0x11, &INET), None),
            (header(0x20, 0xFF, &[1, 2, 3]), None),
        ];
        for (bytes, expected) in cases {
            let source = expected.map(|text| text.parse::<SocketAddr>().expect("an address"));
            let followed = [&bytes[..], b"\x16\x03\x01"].concat();
            assert_eq!(read(&followed), Ok(Some((bytes.len(), source))), "{}", bytes.escape_ascii());
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Ok(None), "{} of {}", end, bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn violations_are_named_as_soon_as_they_show() {
        let cut_inet = header(0x21, 0x11, &INET[..11]);
        let too_long = [&SIGNATURE[..], &[0x21, 0x11, 0x0F, 0xF1]].concat();
        let longest = [&SIGNATURE[..], &[0x21, 0x11, 0x0F, 0xF0]].concat();
        let cases: &[(&[u8], ProxyError)] = &[
            (b"PROXY ", ProxyError::VersionOne),
            (b"G", ProxyError::Signature),
            (b"\x16", ProxyError::Signature),
            (b"PROXI", ProxyError::Signature),
            (b"\r\n\r\n\0\r\nQUIT\r", ProxyError::Signature),
            (b"\r\n\r\n\0\r\nQUIT\n\x11", ProxyError::Version(1)),
            (b"\r\n\r\n\0\r\nQUIT\n\x31", ProxyError::Version(3)),
            (b"\r\n\r\n\0\r\nQUIT\n\x22", ProxyError::Command(2)),
            (&header(0x21, 0x10, &INET)[..16], ProxyError::Family(0x10)),
            (&header(0x21, 0x13, &INET)[..16], ProxyError::Family(0x13)),
            (&header(0x21, 0x41, &INET)[..16], ProxyError::Family(0x41)),
            (&cut_inet[..16], ProxyError::AddressesCut(11)),
            (&header(0x21, 0x21, &INET)[..16], ProxyError::AddressesCut(12)),
            (&header(0x21, 0x31, &INET)[..16], ProxyError::AddressesCut(12)),
            (&too_long, ProxyError::TooLong(HEADER_BYTES_MAX + 1)),
            (&header(0x21, 0x11, &[&INET[..], &[4]].concat()), ProxyError::FieldCut),
            (&header(0x21, 0x11, &[&INET[..], &[4, 0]].concat()), ProxyError::FieldCut),
            (&header(0x21, 0x11, &[&INET[..], &[4, 0, 2, 0]].concat()), ProxyError::FieldCut),
            (&header(0x21, 0x11, &[&INET[..], &[4, 0xFF, 0xFF, 0]].concat()), ProxyError::FieldCut),
        ];
        for &(bytes, error) in cases {
            assert_eq!(read(bytes), Err(error), "{}", bytes.escape_ascii());
            assert_eq!(read(&bytes[..bytes.len() - 1]), Ok(None), "{} is not wrong before", bytes.escape_ascii());
        }
        assert_eq!(read(&longest), Ok(None), "a header of the most bytes is waited for");
    }

    #[test]
    fn errors_say_what_was_found() {
        assert_eq!(ProxyError::Family(0x41).to_string(), "unknown PROXY address family (0x41)");
        assert_eq!(ProxyError::TooLong(5000).to_string(), "PROXY header too long (5000 bytes)");
        assert_eq!(ProxyError::VersionOne.to_string(), "PROXY header of version 1; version 2 is expected");
    }

    proptest! {
        /// More bytes never change an answer once it was given.
        #[test]
        fn answers_stand(
            command in prop_oneof![4 => 0x20..=0x21_u8, 1 => any::<u8>()],
            family in prop_oneof![
                4 => prop::sample::select(&[0x00_u8, 0x11, 0x12, 0x21, 0x22, 0x31][..]),
                1 => any::<u8>(),
            ],
            length in prop_oneof![4 => 0..300_u16, 1 => any::<u16>()],
            block in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..400),
        ) {
            let bytes = [&SIGNATURE[..], &[command, family], &length.to_be_bytes(), &block].concat();
            let whole = read(&bytes);
            for end in 0..bytes.len() {
                let so_far = read(&bytes[..end]);
                prop_assert!(so_far == Ok(None) || so_far == whole, "{:?} became {:?}", so_far, whole);
            }
            if let Ok(Some((header_bytes, _))) = whole {
                prop_assert!(header_bytes <= bytes.len() && header_bytes <= HEADER_BYTES_MAX);
            }
        }
    }
}
