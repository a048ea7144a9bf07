//! Tickets that a client keeps: carried anywhere as bytes, and used once.
//!
//! Owns what a ticket consists of: the NewSessionTicket message, its pre-shared key (RFC 8446 4.6.1), and to whom and
//! under what it was given. How it comes out of rustls and back in is for [`super::mint`]. Invariant: what is damaged is
//! no ticket, and no key stays in memory longer than its ticket.

use core::fmt;

use rustls::client::Tls13ClientSessionValue;

use super::Suite;
use super::desk::Secret;
use super::digest::{DIGEST_BYTES, sha256};
use super::reader::Reader;

/// First byte of a ticket written down. A digest ends it: a damaged one would cost a handshake that fails.
const FORMAT: u8 = 1;
/// Extension of a NewSessionTicket that allows early data (RFC 8446 4.2.10).
const EXTENSION_EARLY_DATA: u16 = 42;
/// Longest time a ticket may be used, whatever its server says (RFC 8446 4.6.1), in seconds.
const LIFETIME_S_MAX: u32 = 7 * 24 * 60 * 60;

/// A ticket that a client was given: works once, for the same server's name, under the same trust.
pub struct ClientTicket {
    /// The value itself, in the process that was given it.
    pub(super) live: Option<Box<Tls13ClientSessionValue>>,
    pub(super) stored: Stored,
    pub(super) offers_early_data: bool,
}

/// What a ticket consists of.
pub(super) struct Stored {
    pub(super) suite: Suite,
    pub(super) received_s: u64,
    /// Digest of the settings it was given under.
    trust: [u8; 32],
    /// SHA-256 of the certificate that the server showed when it proved itself.
    peer: Option<[u8; 32]>,
    name: Box<str>,
    pub(super) key: Secret,
    /// The NewSessionTicket message without its header.
    pub(super) body: Vec<u8>,
    pub(super) lifetime_s: u32,
    early_bytes_max: u32,
}

impl fmt::Debug for ClientTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTicket")
            .field("name", &self.stored.name)
            .field("received_s", &self.stored.received_s)
            .field("lifetime_s", &self.stored.lifetime_s)
            .field("early_bytes_max", &self.stored.early_bytes_max)
            .finish_non_exhaustive()
    }
}

impl ClientTicket {
    /// The server it is for: the name that the server proved to have.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.stored.name
    }

    /// When it came, in seconds since 1970, by the system's clock.
    #[must_use]
    pub fn received_s(&self) -> u64 {
        self.stored.received_s
    }

    /// Until when it may be used, in seconds since 1970.
    #[must_use]
    pub fn expires_s(&self) -> u64 {
        self.stored.received_s.saturating_add(u64::from(self.stored.lifetime_s.min(LIFETIME_S_MAX)))
    }

    /// Bytes of early data that the server said it takes; zero when it takes none.
    #[must_use]
    pub fn early_bytes_max(&self) -> u32 {
        self.stored.early_bytes_max
    }

    /// Whether early data is offered with it, as far as settings and server allow. True unless set.
    #[must_use]
    pub fn offering_early_data(mut self, offers_early_data: bool) -> ClientTicket {
        self.offers_early_data = offers_early_data;
        self
    }

    /// Everything needed to use it in another process: **secret**, whoever has it is taken for this client, and can
    /// read what is sent early with it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Stored { suite, received_s, trust, peer, name, key, body, .. } = &self.stored;
        let mut bytes = vec![FORMAT, *suite as u8];
        bytes.extend_from_slice(&received_s.to_be_bytes());
        bytes.extend_from_slice(trust);
        bytes.push(u8::from(peer.is_some()));
        bytes.extend_from_slice(&peer.unwrap_or_default());
        for short in [name.as_bytes(), key.as_bytes()] {
            bytes.push(u8::try_from(short.len()).unwrap_or(0)); // names have at most 253 bytes, keys 48
            bytes.extend_from_slice(short);
        }
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(&sha256(&bytes));
        bytes
    }

    /// From [`ClientTicket::to_bytes`]; `None` when it is nothing of the kind.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<ClientTicket> {
        let (bytes, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if sha256(bytes) != digest {
            return None;
        }
        let mut reader = Reader(bytes);
        let [FORMAT, suite] = reader.array()? else { return None };
        let suite = Suite::ALL.into_iter().find(|known| *known as u8 == suite)?;
        let received_s = reader.u64()?;
        let trust = reader.array()?;
        let has_peer = reader.flag()?;
        let peer = Some(reader.array()?).filter(|_| has_peer);
        let name = core::str::from_utf8(reader.vector::<1>()?).ok().filter(|name| !name.is_empty())?;
        let key = Secret::new(reader.vector::<1>()?)?;
        if key.as_bytes().len() != suite.hash_bytes() || received_s > u64::from(u32::MAX) {
            return None;
        }
        let body = reader.0.to_vec();
        let stored = Stored::new(suite, received_s, trust, peer, name, key, body)?;
        Some(ClientTicket { live: None, stored, offers_early_data: true })
    }

    /// Whether a handshake with these settings and this name may use it.
    pub(super) fn fits(&self, trust: &[u8; 32], name: &str) -> bool {
        self.stored.trust == *trust && self.stored.name.eq_ignore_ascii_case(name)
    }

    pub(super) fn offers_early_data(&self) -> bool {
        self.offers_early_data
    }

    /// The certificate that the server showed when it proved itself.
    pub(super) fn peer(&self) -> Option<[u8; 32]> {
        self.stored.peer
    }
}

impl Stored {
    /// `None` when the message is malformed.
    pub(super) fn new(
        suite: Suite,
        received_s: u64,
        trust: [u8; 32],
        peer: Option<[u8; 32]>,
        name: &str,
        key: Secret,
        body: Vec<u8>,
    ) -> Option<Stored> {
        // RFC 8446 4.6.1
        let mut reader = Reader(&body);
        let lifetime_s = reader.u32()?;
        reader.u32()?; // ticket_age_add
        reader.vector::<1>()?; // ticket_nonce
        reader.vector::<2>()?; // ticket
        let mut extensions = Reader(reader.vector::<2>()?);
        let mut early_bytes_max = 0;
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let content = extensions.vector::<2>()?;
            if kind == EXTENSION_EARLY_DATA {
                early_bytes_max = u32::from_be_bytes(content.try_into().ok()?);
            }
        }
        Some(Stored { suite, received_s, trust, peer, name: name.into(), key, body, lifetime_s, early_bytes_max })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use super::super::error::TlsError;
    use super::super::fixture::{Authority, NAME};
    use super::super::{
        ClientOptions, ClientSettings, Early, Established, RECORD_HEADER_BYTES, Received, ServerOptions,
        ServerSettings, Session, TICKET_ID_BYTES, record_bytes,
    };
    use super::*;

    /// A server with its store, and clients of it.
    pub(in crate::tls) struct World {
        pub(in crate::tls) authority: Authority,
        pub(in crate::tls) server: ServerSettings,
        pub(in crate::tls) client: ClientSettings,
        pub(in crate::tls) store: HashMap<[u8; TICKET_ID_BYTES], Vec<u8>>,
    }

    /// What one connection came to.
    pub(in crate::tls) struct Outcome {
        pub(in crate::tls) client: Established,
        server: Established,
        tickets: Vec<ClientTicket>,
        early_data: Vec<u8>,
        late_data: Vec<u8>,
    }

    pub(in crate::tls) fn client_settings(authority: &Authority, chacha_first: bool) -> ClientSettings {
        let options = authority.client_options();
        let kept = ClientOptions { keeps_tickets: true, early_data: true, chacha_first, ..options };
        ClientSettings::new(&kept).unwrap()
    }

    fn records(bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(length) = record_bytes(bytes).unwrap() {
            let rest = bytes.split_off(length);
            whole.push(core::mem::replace(bytes, rest));
        }
        whole
    }

    fn put(session: &mut Session, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        out.extend_from_slice(plaintext);
        session.seal(out, start)
    }

    impl World {
        pub(in crate::tls) fn new() -> World {
            let authority = Authority::new();
            let options = ServerOptions { early_bytes_max: 16_384, ..authority.server_options() };
            let (server, client) = (ServerSettings::new(&options).unwrap(), client_settings(&authority, false));
            World { authority, ..World::with(client, server) }
        }

        pub(in crate::tls) fn with(client: ClientSettings, server: ServerSettings) -> World {
            let authority = Authority::new();
            World { authority, server, client, store: HashMap::new() }
        }

        pub(in crate::tls) fn connect(
            &mut self,
            ticket: Option<ClientTicket>,
            early: &[u8],
        ) -> Result<Outcome, TlsError> {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            let mut client = Session::client(&self.client, NAME, ticket, &mut to_server)?;
            for part in early.chunks(client.early_room().max(1)) {
                put(&mut client, part, &mut to_server)?;
            }
            let mut server = Session::server(&self.server);
            let (mut client_said, mut server_said) = (None, None);
            let (mut early_data, mut late_data, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..4 {
                for mut record in records(&mut to_server) {
                    let received = match server.receive(&mut record, &mut to_client)? {
                        Received::Hello => {
                            let id = server.hello().and_then(|hello| hello.ticket);
                            let value = id.and_then(|id| self.store.remove(&id));
                            server.proceed(value.as_deref(), &mut to_client)?
                        }
                        other => other,
                    };
                    match received {
                        Received::Data(bytes) if server_said.is_none() => early_data.extend_from_slice(bytes),
                        Received::Data(bytes) => late_data.extend_from_slice(bytes),
                        Received::Established(established) => server_said = Some(*established),
                        _ => {}
                    }
                    self.store.extend(server.issued().into_iter().map(|ticket| (ticket.id, ticket.value.clone())));
                }
                for mut record in records(&mut to_client) {
                    if let Received::Established(established) = client.receive(&mut record, &mut to_server)? {
                        client_said = Some(*established);
                        put(&mut client, b"late", &mut to_server)?;
                    }
                    tickets.extend(client.client_tickets());
                }
            }
            let (client, server) = (client_said.expect("the client is done"), server_said.expect("so is the server"));
            Ok(Outcome { client, server, tickets, early_data, late_data })
        }

        pub(in crate::tls) fn ticket(&mut self) -> ClientTicket {
            self.connect(None, b"").unwrap().tickets.pop().unwrap()
        }
    }

    /// What a ticket is after its process has ended.
    pub(in crate::tls) fn written(ticket: &ClientTicket) -> ClientTicket {
        ClientTicket::from_bytes(&ticket.to_bytes()).unwrap()
    }

    #[test]
    fn a_ticket_resumes_once_in_this_process_and_in_another() {
        let mut world = World::new();
        let full = world.connect(None, b"").unwrap();
        assert!(!full.client.resumed && full.tickets.len() == 2);
        for ticket in full.tickets {
            let (twice, again) = (written(&ticket), written(&ticket));
            assert_eq!((ticket.server_name(), ticket.early_bytes_max()), (NAME, 16_384));
            assert!(ticket.expires_s() > ticket.received_s() && ticket.received_s() > 1_700_000_000);
            let resumed = world.connect(Some(twice), b"").unwrap();
            assert!(resumed.client.resumed && resumed.server.resumed);
            assert_eq!(resumed.client.peer_certificate_sha256, full.client.peer_certificate_sha256);
            assert_eq!(resumed.late_data, b"late");
            // Its tickets work as well, in either form.
            let next = resumed.tickets.into_iter().next().unwrap();
            assert!(world.connect(Some(next), b"").unwrap().client.resumed);
            // The server knows that it was used.
            assert!(!world.connect(Some(again), b"").unwrap().client.resumed);
            assert!(!world.connect(Some(ticket), b"").unwrap().client.resumed);
        }
    }

    #[test]
    fn early_data_is_taken_or_refused_and_the_client_knows() {
        let mut world = World::new();
        for is_written in [false, true] {
            for takes_early_data in [true, false] {
                let ticket = world.ticket();
                let ticket = if is_written { written(&ticket) } else { ticket };
                let early_bytes_max = if takes_early_data { 16_384 } else { 0 };
                let options = ServerOptions { early_bytes_max, ..world.authority.server_options() };
                let usual = core::mem::replace(&mut world.server, ServerSettings::new(&options).unwrap());
                let outcome = world.connect(Some(ticket), b"early").unwrap();
                let (early, seen) =
                    if takes_early_data { (Early::Accepted, &b"early"[..]) } else { (Early::Refused, &b""[..]) };
                world.server = usual;
                assert_eq!((outcome.client.early, outcome.server.early), (early, early));
                assert_eq!((&outcome.early_data[..], &outcome.late_data[..]), (seen, &b"late"[..]));
                assert!(outcome.client.resumed);
            }
        }
    }

    #[test]
    fn early_data_that_a_full_handshake_skips_is_known_as_refused() {
        let mut world = World::new();
        let ticket = world.ticket();
        world.store.clear();
        let outcome = world.connect(Some(ticket), b"early").unwrap();
        assert_eq!((outcome.client.resumed, outcome.client.early), (false, Early::Refused));
        assert_eq!((&outcome.early_data[..], &outcome.late_data[..]), (&b""[..], &b"late"[..]));
    }

    #[test]
    fn early_data_fills_its_room_and_no_more_whether_taken_or_skipped() {
        for is_known in [true, false] {
            let mut world = World::new();
            let ticket = world.ticket();
            if !is_known {
                world.store.clear();
            }
            let mut out = Vec::new();
            let mut client = Session::client(&world.client, NAME, Some(written(&ticket)), &mut out).unwrap();
            let room = client.early_room();
            assert!((16_000..=16_384).contains(&room), "{room}");
            put(&mut client, &vec![1; room], &mut out).unwrap();
            assert_eq!(client.early_room(), 0);
            assert!(matches!(put(&mut client, b"x", &mut out.clone()), Err(TlsError::Misuse(_))));
            let outcome = world.connect(Some(ticket), &vec![1; room]).unwrap();
            assert_eq!(outcome.early_data.len(), if is_known { room } else { 0 });
        }
    }

    #[test]
    fn without_a_ticket_that_allows_it_there_is_no_early_data() {
        let mut world = World::new();
        let ticket = world.ticket().offering_early_data(false);
        let mut out = Vec::new();
        let mut client = Session::client(&world.client, NAME, None, &mut out).unwrap();
        assert_eq!(client.early_room(), 0);
        assert!(matches!(put(&mut client, b"x", &mut out), Err(TlsError::Misuse(_))));
        let outcome = world.connect(Some(ticket), b"").unwrap();
        assert_eq!((outcome.client.resumed, outcome.client.early), (true, Early::NotOffered));
    }

    #[test]
    fn a_ticket_is_offered_to_nobody_but_its_server_under_its_trust() {
        let mut world = World::new();
        let hello = |settings: &ClientSettings, name: &str, ticket: Option<ClientTicket>| {
            let mut out = Vec::new();
            Session::client(settings, name, ticket, &mut out).unwrap();
            out.len()
        };
        let plain = hello(&world.client, NAME, None);
        let ticket = world.ticket();
        let twin = || Some(written(&ticket));
        assert!(hello(&world.client, NAME, twin()) > plain);
        assert!(hello(&client_settings(&world.authority, false), NAME, twin()) > plain, "the same trust, made again");
        assert_eq!(hello(&world.client, "localhosu", twin()), plain);
        assert_eq!(hello(&client_settings(&Authority::new(), false), NAME, twin()), plain);
        let keepless = ClientSettings::new(&world.authority.client_options()).unwrap();
        assert_eq!(hello(&keepless, NAME, twin()), hello(&keepless, NAME, None));
    }

    #[test]
    fn what_is_damaged_is_no_ticket() {
        let ticket = World::new().ticket();
        let bytes = ticket.to_bytes();
        assert_eq!(written(&ticket).to_bytes(), bytes);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert!(ClientTicket::from_bytes(&damaged).is_none(), "byte {index}");
            assert!(ClientTicket::from_bytes(&bytes[..index]).is_none(), "cut at {index}");
        }
        assert!(!format!("{ticket:?}").contains("key"));
    }

    #[test]
    fn a_ticket_past_its_time_is_not_offered() {
        let mut world = World::new();
        let mut ticket = written(&world.ticket());
        ticket.stored.received_s -= u64::from(ticket.stored.lifetime_s) + 1;
        assert!(!world.connect(Some(written(&ticket)), b"").unwrap().client.resumed);
    }
}
