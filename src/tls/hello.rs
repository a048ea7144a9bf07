//! A look at a ClientHello before the TLS library gets it (RFC 8446 section 4.1.2).
//!
//! Owns nothing: it finds the few things that choose settings, and what must be there and is not. What it cannot parse it
//! leaves to the library, which knows the alert.

use std::borrow::Cow;

use super::desk::TICKET_ID_BYTES;
use super::error::TlsError;
use super::reader::Reader;
use super::record::{ContentType, RECORD_HEADER_BYTES};

const MESSAGE_CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER_BYTES: usize = 4;
/// Longest message taken here, in bytes. It is held before anything is proved; twice the longest record is many times
/// what clients send.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_SUPPORTED_GROUPS: u16 = 10;
const EXTENSION_SIGNATURE_ALGORITHMS: u16 = 13;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_PRE_SHARED_KEY: u16 = 41;
const EXTENSION_EARLY_DATA: u16 = 42;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
const EXTENSION_KEY_SHARE: u16 = 51;
const VERSION_SSL3: [u8; 2] = [3, 0];
const VERSION_TLS13: [u8; 2] = [3, 4];
const SUITE_CHACHA20_POLY1305_SHA256: u16 = 0x1303;
const SUITES_TLS13: core::ops::RangeInclusive<u16> = 0x1301..=0x13ff;

/// What a ClientHello says that matters for choosing settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Hello {
    /// Of the suites of TLS 1.3, ChaCha20 stands first.
    pub(super) chacha_first: bool,
    /// Its legacy_version is that of SSL 3.0.
    is_ssl3: bool,
    /// It offers TLS 1.3.
    pub(super) offers_tls13: bool,
    /// It names application protocols.
    pub(super) offers_alpn: bool,
    /// It sends early data behind.
    pub(super) offers_early_data: bool,
    /// The server it wants to reach.
    pub(super) server_name: Option<Box<str>>,
    /// The first ticket it shows, if that is one of ours by its length. No other may be used with early data, and one
    /// lookup per connection is enough.
    pub(super) ticket: Option<[u8; TICKET_ID_BYTES]>,
    /// How old it says the ticket is, in milliseconds plus an offset known to both (RFC 8446 4.2.11.1).
    pub(super) ticket_age: u32,
    has_groups: bool,
    has_key_share: bool,
    has_signature_algorithms: bool,
    has_pre_shared_key: bool,
}

impl Hello {
    /// Why it cannot be served, as far as its extensions say so.
    pub(super) fn refusal(&self, alpn_required: bool) -> Option<TlsError> {
        if !self.offers_tls13 || self.is_ssl3 {
            return Some(TlsError::ProtocolVersion); // RFC 8446 4.2.1 and D.5
        }
        // RFC 8446 9.2
        if !self.has_pre_shared_key && !self.has_signature_algorithms {
            return Some(TlsError::MissingExtension("signature_algorithms is missing"));
        }
        if !self.has_pre_shared_key && !self.has_groups {
            return Some(TlsError::MissingExtension("supported_groups is missing"));
        }
        if self.has_groups != self.has_key_share {
            return Some(TlsError::MissingExtension("supported_groups and key_share come together"));
        }
        (alpn_required && !self.offers_alpn).then_some(TlsError::NoApplicationProtocol) // RFC 7301 3.2
    }
}

/// What can be said of the records received so far.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Gathered {
    /// The message is not whole yet.
    Incomplete,
    /// It is whole.
    Whole,
    /// It is no ClientHello.
    Unreadable,
    /// It is, or announces, more than is held of one that has proved nothing.
    TooLong,
}

/// Tells when a ClientHello is whole, record by record, without looking at any byte twice.
#[derive(Default)]
pub(super) struct Gatherer {
    header: [u8; MESSAGE_HEADER_BYTES],
    message_bytes: usize,
}

impl Gatherer {
    /// Counts one more whole record.
    pub(super) fn add(&mut self, record: &[u8]) -> Gathered {
        let Some((header, fragment)) = record.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return Gathered::Unreadable;
        };
        // RFC 8446 5.1: handshake records are not empty.
        if header[0] != ContentType::Handshake.code() || fragment.is_empty() {
            return Gathered::Unreadable;
        }
        for (place, byte) in self.header.iter_mut().skip(self.message_bytes).zip(fragment) {
            *place = *byte;
        }
        self.message_bytes += fragment.len();
        let [kind, high, middle, low] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if kind != MESSAGE_CLIENT_HELLO {
            return Gathered::Unreadable;
        }
        let held_bytes_max = MESSAGE_HEADER_BYTES + MESSAGE_BYTES_MAX;
        let announces_much = self.message_bytes >= MESSAGE_HEADER_BYTES && length > MESSAGE_BYTES_MAX;
        if announces_much || self.message_bytes > held_bytes_max {
            return Gathered::TooLong;
        }
        let is_whole =
            self.message_bytes >= MESSAGE_HEADER_BYTES + length && self.message_bytes >= MESSAGE_HEADER_BYTES;
        if is_whole { Gathered::Whole } else { Gathered::Incomplete }
    }
}

/// Reads the ClientHello that these whole records carry; `None` when it is malformed.
pub(super) fn read(records: &[u8]) -> Option<Hello> {
    parse(&gather(records)?)
}

/// The body of the handshake message that the records carry; borrowed when one record holds all of it.
fn gather(mut records: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    while let Some((header, rest)) = records.split_first_chunk::<RECORD_HEADER_BYTES>() {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (fragment, rest) = rest.split_at_checked(length)?;
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        records = rest;
    }
    let &[_, high, middle, low] = message.first_chunk::<MESSAGE_HEADER_BYTES>()?;
    let end = MESSAGE_HEADER_BYTES + u32::from_be_bytes([0, high, middle, low]) as usize;
    match message {
        Cow::Borrowed(whole) => whole.get(MESSAGE_HEADER_BYTES..end).map(Cow::Borrowed),
        Cow::Owned(whole) => Some(Cow::Owned(whole.get(MESSAGE_HEADER_BYTES..end)?.to_vec())),
    }
}

fn parse(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    let legacy_version = reader.array()?;
    reader.take(32)?; // random
    reader.vector::<1>()?; // legacy_session_id
    let suites = reader.vector::<2>()?;
    reader.vector::<1>()?; // legacy_compression_methods
    let is_ssl3 = legacy_version == VERSION_SSL3;
    let mut hello = Hello { chacha_first: chacha_first(suites), is_ssl3, ..Hello::default() };
    if reader.0.is_empty() {
        return Some(hello); // no extensions: a client from before TLS 1.3
    }
    let mut extensions = Reader(reader.vector::<2>()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector::<2>()?;
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(content),
            EXTENSION_ALPN => hello.offers_alpn = true,
            EXTENSION_EARLY_DATA => hello.offers_early_data = true,
            EXTENSION_SUPPORTED_VERSIONS => {
                let versions = Reader(content).vector::<1>()?;
                hello.offers_tls13 = versions.chunks_exact(2).any(|version| version == VERSION_TLS13);
            }
            EXTENSION_SUPPORTED_GROUPS => hello.has_groups = true,
            EXTENSION_KEY_SHARE => hello.has_key_share = true,
            EXTENSION_SIGNATURE_ALGORITHMS => hello.has_signature_algorithms = true,
            EXTENSION_PRE_SHARED_KEY => {
                hello.has_pre_shared_key = true;
                (hello.ticket, hello.ticket_age) = first_ticket(content)?;
            }
            _ => {}
        }
    }
    Some(hello)
}

/// The first identity of a pre_shared_key extension (RFC 8446 4.2.11) and its age.
fn first_ticket(content: &[u8]) -> Option<(Option<[u8; TICKET_ID_BYTES]>, u32)> {
    let mut identities = Reader(Reader(content).vector::<2>()?);
    let identity = identities.vector::<2>()?;
    Some((identity.try_into().ok(), identities.u32()?))
}

fn chacha_first(suites: &[u8]) -> bool {
    let mut tls13 = suites
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .filter(|suite| SUITES_TLS13.contains(suite));
    tls13.next() == Some(SUITE_CHACHA20_POLY1305_SHA256)
}

/// The host name of a server_name extension (RFC 6066 section 3), unless it is not one.
fn server_name(content: &[u8]) -> Option<Box<str>> {
    let mut names = Reader(Reader(content).vector::<2>()?);
    let [0] = names.take(1)? else { return None };
    let name = core::str::from_utf8(names.vector::<2>()?).ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(allowed)).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::fixture::{Authority, NAME};
    use crate::tls::{ClientSettings, Session};

    fn client_hello() -> Vec<u8> {
        let mut record = Vec::new();
        let settings = ClientSettings::new(&Authority::new().client_options()).unwrap();
        Session::client(&settings, NAME, None, &mut record).unwrap();
        record
    }

    /// The same bytes in records of `fragment_bytes` each.
    fn split(record: &[u8], fragment_bytes: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for fragment in record[RECORD_HEADER_BYTES..].chunks(fragment_bytes) {
            let [high, low] = u16::try_from(fragment.len()).unwrap().to_be_bytes();
            records.extend_from_slice(&[22, 3, 1, high, low]);
            records.extend_from_slice(fragment);
        }
        records
    }

    #[test]
    fn a_hello_is_read_whole_or_in_records() {
        let record = client_hello();
        let hello = read(&record).expect("it is whole");
        assert_eq!(hello.server_name.as_deref(), Some(NAME));
        assert!(hello.offers_alpn && hello.offers_tls13 && !hello.chacha_first);
        for fragment_bytes in [1, 2, 3, 5, 100] {
            let records = split(&record, fragment_bytes);
            assert_eq!(read(&records), Some(hello.clone()));
            let mut gatherer = Gatherer::default();
            let mut at = 0;
            while at < records.len() {
                let end =
                    at + RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([records[at + 3], records[at + 4]]));
                let expected = if end == records.len() { Gathered::Whole } else { Gathered::Incomplete };
                assert_eq!(gatherer.add(&records[at..end]), expected);
                at = end;
            }
        }
    }

    #[test]
    fn what_is_cut_or_lies_about_lengths_is_unreadable() {
        let record = client_hello();
        for at in MESSAGE_HEADER_BYTES..record.len() - RECORD_HEADER_BYTES {
            let mut cut = record[..RECORD_HEADER_BYTES + at].to_vec();
            let [high, low] = u16::try_from(at).unwrap().to_be_bytes();
            (cut[3], cut[4]) = (high, low);
            assert_eq!(Gatherer::default().add(&cut), Gathered::Incomplete, "the record ends early");
            let [high, low] = u16::try_from(at - MESSAGE_HEADER_BYTES).unwrap().to_be_bytes();
            (cut[7], cut[8]) = (high, low);
            assert_eq!(Gatherer::default().add(&cut), Gathered::Whole);
            assert!(read(&cut).is_none_or(|hello| !hello.offers_tls13), "the message ends early at {at}");
        }
        for record in [&[23, 3, 3, 0, 1, 0][..], &[22, 3, 3, 0, 0], &[22, 3, 3, 0, 1, 2]] {
            assert_eq!(Gatherer::default().add(record), Gathered::Unreadable);
        }
        for (length, expected) in [([0, 0x80, 0], Gathered::Incomplete), ([0, 0x80, 1], Gathered::TooLong)] {
            let record = [&[22, 3, 3, 0, 4, 1][..], &length].concat();
            assert_eq!(Gatherer::default().add(&record), expected);
        }
    }

    #[test]
    fn an_extension_that_must_be_there_is_missed() {
        let record = client_hello();
        let whole = read(&record).expect("it is whole");
        assert_eq!(whole.refusal(true), None);
        let missing = |change: fn(&mut Hello)| {
            let mut hello = whole.clone();
            change(&mut hello);
            hello.refusal(true)
        };
        assert_eq!(missing(|hello| hello.offers_tls13 = false), Some(TlsError::ProtocolVersion));
        assert_eq!(missing(|hello| hello.is_ssl3 = true), Some(TlsError::ProtocolVersion));
        assert_eq!(missing(|hello| hello.offers_alpn = false), Some(TlsError::NoApplicationProtocol));
        for change in [
            (|hello| hello.has_groups = false) as fn(&mut Hello),
            |hello| hello.has_key_share = false,
            |hello| hello.has_signature_algorithms = false,
            |hello| (hello.has_groups, hello.has_key_share) = (false, false),
        ] {
            assert!(matches!(missing(change), Some(TlsError::MissingExtension(_))));
        }
        assert_eq!(missing(|hello| (hello.has_signature_algorithms, hello.has_pre_shared_key) = (false, true)), None);
    }

    #[test]
    fn chacha_counts_when_it_is_the_first_of_tls_13() {
        assert!(chacha_first(&[0x0a, 0x0a, 0xc0, 0x2b, 0x13, 0x03, 0x13, 0x01]), "GREASE and TLS 1.2 aside");
        assert!(!chacha_first(&[0x13, 0x01, 0x13, 0x03]));
        assert!(!chacha_first(&[]));
    }

    #[test]
    fn only_host_names_are_server_names() {
        let name = |host: &[u8]| {
            let length = u8::try_from(host.len()).unwrap();
            let mut content = vec![0, length + 3, 0, 0, length];
            content.extend_from_slice(host);
            server_name(&content)
        };
        assert_eq!(name(b"a.example").as_deref(), Some("a.example"));
        for host in [&b""[..], b"a\0b", b"a b", b"\xff", &[b'a'; 250][..]] {
            assert_eq!(name(host).is_some(), host.len() == 250, "{host:?}");
        }
    }
}
