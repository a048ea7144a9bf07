//! TLS sessions of ours against rustls's own client and server: both directions, random sizes and splits, key updates,
//! both ways to close, and every way a handshake may fail.

#[path = "tls_support/pair.rs"]
mod pair;
mod tls_support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pair::Pair;
use rustls::client::{TicketRequest, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use tls_support::{Authority, NAME, STORE, Said, Signed, feed, seal};
use trunkline::base::prng::Prng;
use trunkline::base::wire::Protocol;
use trunkline::tls::{
    Alert, CertificateFault, ClientAuth, ClientOptions, ClientSettings, Early, Names, ServerOptions, ServerSettings,
    Session, Suite, TlsError,
};

const SUITES: [(SupportedCipherSuite, Suite); 3] = [
    (cipher_suite::TLS13_AES_128_GCM_SHA256, Suite::Aes128Gcm),
    (cipher_suite::TLS13_AES_256_GCM_SHA384, Suite::Aes256Gcm),
    (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, Suite::Chacha20Poly1305),
];

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.root_der.clone())).unwrap();
    Arc::new(roots)
}

fn provider(suites: &[SupportedCipherSuite]) -> Arc<rustls::crypto::CryptoProvider> {
    let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    Arc::new(rustls::crypto::CryptoProvider { cipher_suites: suites.to_vec(), kx_groups, ..default_provider() })
}

fn rustls_client(authority: &Authority, suites: &[SupportedCipherSuite], shown: Option<Signed>) -> ClientConfig {
    let mut provider = provider(suites);
    Arc::make_mut(&mut provider).kx_groups.remove(0); // without X25519MLKEM768
    rustls_client_with(authority, provider, shown)
}

fn rustls_client_with(
    authority: &Authority,
    provider: Arc<rustls::crypto::CryptoProvider>,
    shown: Option<Signed>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(authority));
    let mut config = match shown {
        Some(shown) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from(shown.certificate_der)],
                PrivateKeyDer::try_from(shown.key_der).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"mmtp/1".to_vec()];
    config
}

fn rustls_server(authority: &Authority, suites: &[SupportedCipherSuite], mutual: bool) -> ServerConfig {
    let provider = provider(suites);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = if mutual {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let shown = authority.sign(NAME);
    let mut config = builder
        .with_single_cert(
            vec![CertificateDer::from(shown.certificate_der)],
            PrivateKeyDer::try_from(shown.key_der).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"mmtp/1".to_vec()];
    config
}

/// A session of ours, a connection of rustls, and the bytes between them.
struct Duel {
    ours: Session,
    theirs: Connection,
    to_ours: Vec<u8>,
    to_theirs: Vec<u8>,
    said: Said,
    their_data: Vec<u8>,
    their_error: Option<Error>,
    their_close: bool,
    /// Times that either side was given something to seal.
    writes: u64,
    prng: Prng,
}

impl Duel {
    fn our_server(settings: &ServerSettings, config: Arc<ClientConfig>, seed: u64) -> Duel {
        let mut client = ClientConnection::new(config, ServerName::try_from(NAME).unwrap()).unwrap();
        client.set_buffer_limit(None);
        Duel::new(Session::server(settings), client.into(), Vec::new(), seed)
    }

    fn our_client(settings: &ClientSettings, config: Arc<ServerConfig>, seed: u64) -> Duel {
        let mut to_theirs = Vec::new();
        let session = Session::client(settings, NAME, None, &mut to_theirs).unwrap();
        let mut server = ServerConnection::new(config).unwrap();
        server.set_buffer_limit(None);
        Duel::new(session, server.into(), to_theirs, seed)
    }

    fn new(ours: Session, theirs: Connection, to_theirs: Vec<u8>, seed: u64) -> Duel {
        Duel {
            ours,
            theirs,
            to_ours: Vec::new(),
            to_theirs,
            said: Said::default(),
            their_data: Vec::new(),
            their_error: None,
            their_close: false,
            writes: 0,
            prng: Prng::new(seed),
        }
    }

    /// Carries bytes, cut at random places, until none are on the way.
    fn run(&mut self) {
        loop {
            while self.theirs.wants_write() {
                self.theirs.write_tls(&mut self.to_ours).unwrap();
            }
            if self.to_theirs.is_empty() && self.to_ours.is_empty() {
                break;
            }
            self.ours_reads();
            self.theirs_reads();
        }
    }

    fn ours_reads(&mut self) {
        // Whole records are what a session takes; the cut shows that a rest is left alone.
        let cut = self.prng.below(self.to_ours.len() as u64 + 1) as usize;
        let mut rest = self.to_ours.split_off(cut);
        self.said.merge(feed(&mut self.ours, &mut self.to_ours, &mut self.to_theirs));
        self.to_ours.append(&mut rest);
        self.said.merge(feed(&mut self.ours, &mut self.to_ours, &mut self.to_theirs));
        if self.said.error.is_some() {
            self.to_ours.clear();
        }
    }

    fn theirs_reads(&mut self) {
        let bytes = core::mem::take(&mut self.to_theirs);
        let mut rest = &bytes[..];
        while !rest.is_empty() && self.their_error.is_none() {
            let cut = 1 + self.prng.below(rest.len().min(5000) as u64) as usize;
            let mut piece = &rest[..cut];
            while !piece.is_empty() && self.theirs.read_tls(&mut piece).unwrap() > 0 {
                match self.theirs.process_new_packets() {
                    Ok(state) => {
                        self.their_close |= state.peer_has_closed();
                        let mut data = vec![0; state.plaintext_bytes_to_read()];
                        self.theirs.reader().read_exact(&mut data).unwrap();
                        self.their_data.extend_from_slice(&data);
                    }
                    Err(error) => self.their_error = Some(error),
                }
            }
            rest = &rest[cut..];
        }
    }

    fn random_bytes(&mut self) -> Vec<u8> {
        let limit = [1, 2, 40, 1500, 16_384][self.prng.below(5) as usize];
        let length = 1 + self.prng.below(limit);
        (0..length).map(|_| self.prng.next_u64() as u8).collect()
    }

    /// A random stretch of both sides sending data of random sizes and updating keys.
    fn talk(&mut self, steps: usize) {
        let (mut from_ours, mut from_theirs) = (Vec::new(), Vec::new());
        for _ in 0..steps {
            let step = self.prng.below(12);
            self.writes += u64::from(matches!(step, 0..=7 | 10));
            match step {
                0..=3 => {
                    let bytes = self.random_bytes();
                    seal(&mut self.ours, &bytes, &mut self.to_theirs).unwrap();
                    from_ours.extend_from_slice(&bytes);
                }
                4..=7 => {
                    let bytes = self.random_bytes();
                    self.theirs.writer().write_all(&bytes).unwrap();
                    from_theirs.extend_from_slice(&bytes);
                }
                8 => self.ours.put_key_update(&mut self.to_theirs).unwrap(),
                9 => self.theirs.refresh_traffic_keys().unwrap(),
                10 => seal(&mut self.ours, &[], &mut self.to_theirs).unwrap(),
                _ => self.run(),
            }
        }
        self.run();
        assert_eq!((self.said.error, &self.their_error), (None, &None));
        assert!(self.their_data.ends_with(&from_ours));
        assert!(self.said.data.ends_with(&from_theirs));
        assert_eq!((self.their_data.len(), self.said.data.len()), (from_ours.len(), from_theirs.len()));
        (self.their_data, self.said.data) = (Vec::new(), Vec::new());
    }

    /// Closes from a random side first; both must see it, and data still flows the other way.
    fn close(&mut self) {
        if self.prng.chance(2) {
            self.ours.put_close_notify(&mut self.to_theirs);
            self.run();
            assert!(self.their_close);
            self.theirs.writer().write_all(b"last words").unwrap();
            self.run();
            assert_eq!(self.said.data, b"last words");
            self.theirs.send_close_notify();
        } else {
            self.theirs.send_close_notify();
            self.run();
            assert!(self.said.closed);
            seal(&mut self.ours, b"last words", &mut self.to_theirs).unwrap();
            self.run();
            assert_eq!(self.their_data, b"last words");
            self.ours.put_close_notify(&mut self.to_theirs);
        }
        self.run();
        assert!(self.said.closed && self.their_close);
        assert_eq!((self.said.error, &self.their_error), (None, &None));
    }
}

#[test]
fn our_client_talks_with_our_server() {
    let authority = Authority::new();
    let client = ClientSettings::new(&authority.client_options()).unwrap();
    let mut pair = Pair::new(&client, &ServerSettings::new(&authority.server_options()).unwrap());
    pair.run();
    for said in [&pair.client_said, &pair.server_said] {
        assert_eq!(said.error, None);
        assert_eq!(said.established.as_ref().unwrap().protocol, Protocol::Mmtp);
    }
    assert_eq!(pair.server_said.established.as_ref().unwrap().server_name.as_deref(), Some(NAME));
    seal(&mut pair.client, b"to the origin", &mut pair.to_server).unwrap();
    seal(&mut pair.server, b"to the client", &mut pair.to_client).unwrap();
    pair.run();
    assert_eq!(pair.server_said.data, b"to the origin");
    assert_eq!(pair.client_said.data, b"to the client");
}

fn fragment(prng: &mut Prng) -> Option<usize> {
    // rustls counts the header: 32 is its least, 16389 its most.
    (!prng.chance(3)).then(|| 32 + prng.below(16_358) as usize)
}

#[test]
fn our_server_talks_with_rustls_clients() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let (suite, expected) = SUITES[prng.below(3) as usize];
        let mut config = rustls_client(&authority, &[suite], None);
        config.max_fragment_size = fragment(&mut prng);
        let mut duel = Duel::our_server(&settings, Arc::new(config), seed);
        duel.run();
        let established = duel.said.established.clone().unwrap();
        assert_eq!((established.suite, established.protocol), (expected, Protocol::Mmtp));
        assert_eq!((established.resumed, established.retried), (false, false));
        assert_eq!(established.peer_certificate_sha256, None);
        duel.talk(60);
        duel.close();
    }
}

#[test]
fn our_client_talks_with_rustls_servers() {
    let authority = Authority::new();
    let shown = authority.sign("pop");
    let options = ClientOptions { identity: Some(shown.identity()), ..authority.client_options() };
    for seed in 100..160 {
        let mut prng = Prng::new(seed);
        let settings = ClientSettings::new(&options).unwrap();
        let (suite, expected) = SUITES[prng.below(3) as usize];
        let mut config = rustls_server(&authority, &[suite], prng.chance(2));
        config.max_fragment_size = fragment(&mut prng);
        let mut duel = Duel::our_client(&settings, Arc::new(config), seed);
        duel.run();
        let established = duel.said.established.clone().unwrap();
        assert_eq!((established.suite, established.protocol), (expected, Protocol::Mmtp));
        assert!(established.peer_certificate_sha256.is_some());
        duel.talk(60);
        duel.close();
    }
}

/// As many records as `TRUNKLINE_TLS_RECORDS` says, at least: with a million, the record layer has been told apart from
/// rustls's by none of them.
#[test]
fn a_great_many_records_pass_in_both_directions_and_roles() {
    let wanted = std::env::var("TRUNKLINE_TLS_RECORDS").map_or(5000, |count| count.parse().expect("a number"));
    let authority = Authority::new();
    let server = ServerSettings::new(&authority.server_options()).unwrap();
    let client = ClientSettings::new(&authority.client_options()).unwrap();
    let mut writes = 0;
    for seed in 1000.. {
        let mut prng = Prng::new(seed);
        let suite = SUITES[prng.below(3) as usize].0;
        let fragment = fragment(&mut prng);
        let mut duel = if prng.chance(2) {
            let mut config = rustls_client(&authority, &[suite], None);
            config.max_fragment_size = fragment;
            Duel::our_server(&server, Arc::new(config), seed)
        } else {
            let mut config = rustls_server(&authority, &[suite], false);
            config.max_fragment_size = fragment;
            Duel::our_client(&client, Arc::new(config), seed)
        };
        duel.run();
        duel.talk(200);
        duel.close();
        writes += duel.writes;
        if writes >= wanted {
            break;
        }
    }
}

#[test]
fn the_servers_order_of_suites_yields_to_chacha_first() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let [aes128, aes256, chacha] = SUITES.map(|(suite, _)| suite);
    for (offered, expected) in [
        (vec![aes256, chacha, aes128], Suite::Aes128Gcm),
        (vec![aes256, chacha], Suite::Chacha20Poly1305),
        (vec![chacha, aes128, aes256], Suite::Chacha20Poly1305),
        (vec![aes128, chacha], Suite::Aes128Gcm),
        (vec![aes256], Suite::Aes256Gcm),
    ] {
        let mut duel = Duel::our_server(&settings, Arc::new(rustls_client(&authority, &offered, None)), 1);
        duel.run();
        assert_eq!(duel.said.established.unwrap().suite, expected);
    }
}

#[test]
fn tickets_resume_whichever_suite_order_made_them() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for suites in [&SUITES[..1], &SUITES[1..2], &SUITES[2..]] {
        let config = Arc::new(rustls_client(&authority, &[suites[0].0], None));
        for round in 0..4 {
            let mut duel = Duel::our_server(&settings, config.clone(), round);
            duel.run();
            assert_eq!(duel.said.established.as_ref().unwrap().resumed, round > 0);
            duel.talk(20);
            duel.close();
        }
    }
    let none = ServerOptions { tickets: 0, ..authority.server_options() };
    let settings = ServerSettings::new(&none).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], None));
    for round in 0..2 {
        let mut duel = Duel::our_server(&settings, config.clone(), round);
        duel.run();
        assert!(!duel.said.established.as_ref().unwrap().resumed);
    }
}

#[test]
fn our_client_resumes_with_its_tickets() {
    let authority = Authority::new();
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    let config = Arc::new(rustls_server(&authority, &[SUITES[0].0], false));
    for round in 0..4 {
        let mut duel = Duel::our_client(&settings, config.clone(), round);
        duel.run();
        assert_eq!(duel.said.established.as_ref().unwrap().resumed, round > 0);
        duel.talk(20);
    }
    let server = ServerSettings::new(&authority.server_options()).unwrap();
    for round in 0..4 {
        let mut pair = Pair::new(&settings, &server);
        pair.run();
        assert_eq!(pair.client_said.established.unwrap().resumed, round > 0);
        assert_eq!(pair.server_said.established.unwrap().resumed, round > 0);
    }
}

/// A client of rustls that sends early data when it can.
fn eager_client(authority: &Authority, suites: &[SupportedCipherSuite]) -> ClientConfig {
    let mut config = rustls_client(authority, suites, None);
    config.enable_early_data = true;
    config
}

/// Lets one client use the tickets of another: to rustls, they check certificates in the same way.
fn share_tickets(authority: &Authority, one: &mut ClientConfig, other: &mut ClientConfig) {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(authority), provider(&[SUITES[0].0]));
    let verifier = verifier.build().unwrap();
    one.dangerous().set_certificate_verifier(verifier.clone());
    other.dangerous().set_certificate_verifier(verifier);
    other.client_auth_cert_resolver = one.client_auth_cert_resolver.clone();
    other.resumption = one.resumption.clone();
}

impl Duel {
    /// A client that has a ticket, of this server, and offers `early`.
    fn returning(settings: &ServerSettings, config: &Arc<ClientConfig>, early: &[u8]) -> Duel {
        let mut first = Duel::our_server(settings, config.clone(), 1);
        first.run();
        assert_eq!(first.said.established.as_ref().unwrap().early, Early::NotOffered);
        Duel::early(settings, config, early)
    }

    fn early(settings: &ServerSettings, config: &Arc<ClientConfig>, early: &[u8]) -> Duel {
        let mut duel = Duel::our_server(settings, config.clone(), 2);
        duel.their_client().early_data().expect("it has a ticket").write_all(early).unwrap();
        duel
    }

    fn their_client(&mut self) -> &mut ClientConnection {
        let Connection::Client(client) = &mut self.theirs else { panic!("it is a client") };
        client
    }

    /// Hands the client's first flight to the server.
    fn first_flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.theirs.wants_write() {
            self.theirs.write_tls(&mut flight).unwrap();
        }
        self.to_ours.extend_from_slice(&flight);
        self.ours_reads();
        flight
    }

    /// What the server says of the handshake: resumed, early data, what came of it.
    fn outcome(&mut self) -> (bool, Early, &[u8]) {
        self.run();
        assert_eq!((self.said.error, &self.their_error), (None, &None));
        let established = self.said.established.clone().unwrap();
        assert_eq!(self.their_client().is_early_data_accepted(), established.early == Early::Accepted);
        assert_eq!(self.said.early.is_some(), established.early == Early::Accepted);
        (established.resumed, established.early, &self.said.data)
    }

    /// As after any other handshake.
    fn goes_on(mut self) {
        self.said.data.clear();
        self.their_data.clear();
        self.talk(20);
        self.close();
    }
}

#[test]
fn early_data_is_taken_and_answered_before_the_handshake_ends() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for (suite, name) in SUITES {
        let config = Arc::new(eager_client(&authority, &[suite]));
        let mut duel = Duel::returning(&settings, &config, b"early question");
        duel.first_flight();
        let opened = duel.said.early.clone().unwrap();
        assert_eq!((opened.early, opened.suite, opened.protocol), (Early::Accepted, name, Protocol::Mmtp));
        assert_eq!((opened.resumed, opened.server_name.as_deref()), (true, Some(NAME)));
        assert_eq!((duel.said.established.take(), &duel.said.data[..]), (None, &b"early question"[..]));
        assert!(!duel.ours.is_established());
        for answer in [&b"half "[..], b"", b"an answer"] {
            seal(&mut duel.ours, answer, &mut duel.to_theirs).unwrap();
        }
        assert!(seal(&mut duel.ours, &[0; 16_385], &mut Vec::new()).is_err());
        assert_eq!(duel.outcome(), (true, Early::Accepted, &b"early question"[..]));
        assert_eq!(duel.their_data, b"half an answer");
        duel.goes_on();
    }
}

#[test]
fn early_data_in_many_records_arrives_in_order() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let mut config = eager_client(&authority, &[SUITES[0].0]);
    config.max_fragment_size = Some(100);
    let early: Vec<u8> = (0..16_384u32).map(|count| count as u8).collect();
    let mut duel = Duel::returning(&settings, &Arc::new(config), &early);
    assert_eq!(duel.outcome(), (true, Early::Accepted, &early[..]));
    duel.goes_on();
}

#[test]
fn answers_go_out_while_the_clients_last_message_is_on_its_way() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let mut config = eager_client(&authority, &[SUITES[0].0]);
    config.max_fragment_size = Some(32); // Finished takes two records
    let mut duel = Duel::returning(&settings, &Arc::new(config), b"question");
    duel.first_flight();
    duel.theirs_reads();
    let mut flight = Vec::new();
    while duel.theirs.wants_write() {
        duel.theirs.write_tls(&mut flight).unwrap();
    }
    let mut answers = Vec::new();
    let mut rest = &flight[..];
    while !rest.is_empty() {
        assert!(!duel.ours.is_established());
        seal(&mut duel.ours, b"answer", &mut duel.to_theirs).unwrap();
        answers.extend_from_slice(b"answer");
        let (record, behind) = rest.split_at(5 + usize::from(u16::from_be_bytes([rest[3], rest[4]])));
        duel.to_ours.extend_from_slice(record);
        duel.ours_reads();
        rest = behind;
    }
    assert!(answers.len() > 2 * b"answer".len());
    assert_eq!(duel.outcome(), (true, Early::Accepted, &b"question"[..]));
    assert_eq!(duel.their_data, answers);
    duel.goes_on();
}

#[test]
fn the_end_may_be_said_in_answer_to_early_data() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
    let mut duel = Duel::returning(&settings, &config, b"question");
    duel.first_flight();
    seal(&mut duel.ours, b"answer", &mut duel.to_theirs).unwrap();
    duel.ours.put_close_notify(&mut duel.to_theirs);
    let put = duel.to_theirs.len();
    duel.ours.put_close_notify(&mut duel.to_theirs);
    assert_eq!(duel.to_theirs.len(), put, "once is enough");
    assert!(matches!(seal(&mut duel.ours, b"more", &mut Vec::new()), Err(TlsError::Misuse(_))));
    let tickets = STORE.with_borrow(Vec::len);
    assert_eq!(duel.outcome(), (true, Early::Accepted, &b"question"[..]));
    assert!(duel.their_close && duel.their_data == b"answer");
    assert!(matches!(seal(&mut duel.ours, b"more", &mut Vec::new()), Err(TlsError::Misuse(_))));
    assert_eq!(STORE.with_borrow(Vec::len), tickets, "nothing follows the end");
    duel.theirs.writer().write_all(b"last words").unwrap();
    duel.run();
    assert_eq!(duel.said.data, b"questionlast words");
}

#[test]
fn early_data_that_is_not_welcome_is_skipped_and_the_next_may_be() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let mut config = eager_client(&authority, &[SUITES[0].0]);
    config.max_fragment_size = Some(100); // as many bytes of trailers as a client may cause
    let config = Arc::new(config);
    let mut duel = Duel::returning(&settings, &config, b"welcome");
    assert_eq!(duel.outcome(), (true, Early::Accepted, &b"welcome"[..]));
    STORE.with_borrow_mut(Vec::clear);
    let mut duel = Duel::early(&settings, &config, &[7; 16_384]);
    assert_eq!(duel.outcome(), (false, Early::Refused, &b""[..]));
    duel.goes_on();
    let mut duel = Duel::early(&settings, &config, b"and again");
    assert_eq!(duel.outcome(), (true, Early::Accepted, &b"and again"[..]));
    // A listener that takes none any more.
    let none = ServerOptions { early_bytes_max: 0, ..authority.server_options() };
    let mut duel = Duel::early(&ServerSettings::new(&none).unwrap(), &config, &[7; 16_384]);
    assert_eq!(duel.outcome(), (true, Early::Refused, &b""[..]));
    duel.goes_on();
}

#[test]
fn a_ticket_whose_age_is_wrong_resumes_without_early_data() {
    const CREATED_FROM_END: usize = 8 + 4;
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for (older_s, is_taken) in [(0, true), (57, true), (63, false), (86_000, false)] {
        let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
        Duel::our_server(&settings, config.clone(), 1).run();
        STORE.with_borrow_mut(|store| {
            for ticket in store {
                let at = ticket.value.len() - CREATED_FROM_END;
                let created: [u8; 8] = ticket.value[at..at + 8].try_into().unwrap();
                let created = u64::from_be_bytes(created) - older_s;
                ticket.value[at..at + 8].copy_from_slice(&created.to_be_bytes());
            }
        });
        let mut duel = Duel::early(&settings, &config, b"early");
        let expected = if is_taken { (Early::Accepted, &b"early"[..]) } else { (Early::Refused, &b""[..]) };
        assert_eq!(duel.outcome(), (true, expected.0, expected.1), "{older_s} s");
        duel.goes_on();
    }
}

#[test]
fn values_that_are_no_tickets_do_no_harm() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
    for length in [0, 1, 3, 11, 12, 40, 80, 1024, 9000] {
        Duel::our_server(&settings, config.clone(), 1).run();
        STORE.with_borrow_mut(|store| store.iter_mut().for_each(|ticket| ticket.value = vec![1; length]));
        let mut duel = Duel::early(&settings, &config, b"early");
        assert_eq!(duel.outcome(), (false, Early::Refused, &b""[..]), "{length} bytes");
        duel.goes_on();
        STORE.with_borrow_mut(Vec::clear);
    }
}

#[test]
fn more_early_data_than_allowed_ends_the_connection() {
    let authority = Authority::new();
    let shared = authority.server_options();
    let with = |early_bytes_max| ServerOptions { early_bytes_max, ..shared.clone() };
    let settings = |early_bytes_max| ServerSettings::new(&with(early_bytes_max)).unwrap();
    // Tickets of the first, shown to the second: what is taken, then what is skipped.
    for (given, taken, sent, welcome) in [(16_384, 100, 101, true), (40_000, 16_384, 16_385, false)] {
        for excess in [false, true] {
            let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
            Duel::our_server(&settings(given), config.clone(), 1).run();
            if !welcome {
                STORE.with_borrow_mut(Vec::clear);
            }
            let early = vec![7; sent - usize::from(!excess)];
            let mut duel = Duel::early(&settings(taken), &config, &early);
            duel.run();
            let told = duel.said.error.map(|error| (error.alert(), error.fault()));
            assert_eq!(told, excess.then_some((Some(Alert::UnexpectedMessage), trunkline::tls::Fault::Peer)));
            let alert = Error::AlertReceived(AlertDescription::UnexpectedMessage);
            assert_eq!(duel.their_error, excess.then_some(alert));
            assert_eq!(duel.said.data.len(), if welcome && !excess { early.len() } else { 0 });
            assert_eq!(duel.said.established.is_some(), !excess);
        }
    }
}

#[test]
fn early_data_in_too_many_records_ends_the_connection() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let mut config = eager_client(&authority, &[SUITES[0].0]);
    config.max_fragment_size = Some(32); // 27 bytes each
    let config = Arc::new(config);
    for welcome in [true, false] {
        // What ends early data that is taken counts too: EndOfEarlyData, and Finished in two pieces.
        for (records, is_flood) in [(512 - 3 * usize::from(welcome), false), (513, true)] {
            let mut duel = Duel::our_server(&settings, config.clone(), 1);
            duel.run();
            if !welcome {
                STORE.with_borrow_mut(Vec::clear);
            }
            let mut duel = Duel::early(&settings, &config, &vec![7; records * 27]);
            duel.run();
            let flood = TlsError::Flood("too many records of early data");
            assert_eq!(duel.said.error, is_flood.then_some(flood), "{records} records");
            assert_eq!(duel.said.established.is_some(), !is_flood);
            let alert = Error::AlertReceived(AlertDescription::UnexpectedMessage);
            assert_eq!(duel.their_error, is_flood.then_some(alert));
        }
    }
}

#[test]
fn early_data_before_a_retry_is_skipped_and_the_ticket_still_serves() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for stored in [true, false] {
        // The same tickets, and a first share for a group that the server does not take.
        let mut groups = provider(&[SUITES[0].0]);
        Arc::make_mut(&mut groups).kx_groups.remove(1);
        let mut other = rustls_client_with(&authority, groups, None);
        other.enable_early_data = true;
        let mut config = eager_client(&authority, &[SUITES[0].0]);
        share_tickets(&authority, &mut config, &mut other);
        Duel::our_server(&settings, Arc::new(config), 1).run();
        if !stored {
            STORE.with_borrow_mut(Vec::clear);
        }
        let mut duel = Duel::early(&settings, &Arc::new(other), &[7; 16_384]);
        assert_eq!(duel.outcome(), (stored, Early::Refused, &b""[..]));
        assert!(duel.said.established.as_ref().unwrap().retried);
        duel.goes_on();
    }
}

#[test]
fn early_data_needs_the_protocol_and_the_suite_of_its_ticket() {
    let authority = Authority::new();
    let options = ServerOptions { tunnels: true, ..authority.server_options() };
    let settings = ServerSettings::new(&options).unwrap();
    let [aes128, _, chacha] = SUITES.map(|(suite, _)| suite);
    let mut config = eager_client(&authority, &[aes128, chacha]);
    let mut chacha_first = eager_client(&authority, &[chacha, aes128]);
    share_tickets(&authority, &mut config, &mut chacha_first);
    Duel::our_server(&settings, Arc::new(config.clone()), 1).run();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut duel = Duel::early(&settings, &Arc::new(config), b"GET /");
    assert_eq!(duel.outcome(), (true, Early::Refused, &b""[..]));
    duel.goes_on();
    let mut duel = Duel::early(&settings, &Arc::new(chacha_first), b"GET /");
    assert_eq!(duel.outcome(), (false, Early::Refused, &b""[..]));
    duel.goes_on();
}

#[test]
fn a_first_flight_that_comes_twice_is_taken_once() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
    let mut duel = Duel::returning(&settings, &config, b"pay once");
    let flight = duel.first_flight();
    assert_eq!(duel.said.data, b"pay once");
    for _ in 0..2 {
        let mut replayed = Session::server(&settings);
        let said = feed(&mut replayed, &mut flight.clone(), &mut Vec::new());
        assert!(said.early.is_none() && said.data.is_empty() && said.error.is_none(), "{said:?}");
        assert!(matches!(seal(&mut replayed, b"answer", &mut Vec::new()), Err(TlsError::Misuse(_))));
    }
    assert_eq!(duel.outcome(), (true, Early::Accepted, &b"pay once"[..]));
    duel.goes_on();
}

#[test]
fn a_ticket_changed_in_one_bit_opens_nothing() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for is_binder in [false, true] {
        let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
        let mut duel = Duel::returning(&settings, &config, b"early");
        let mut flight = Vec::new();
        duel.theirs.write_tls(&mut flight).unwrap();
        let hello_end = 5 + usize::from(u16::from_be_bytes([flight[3], flight[4]]));
        let binder_bytes = 2 + 1 + 32;
        // Backwards from the end: binders, age, identity.
        flight[hello_end - if is_binder { 1 } else { binder_bytes + 4 + 1 }] ^= 1;
        let tickets = STORE.with_borrow(Vec::len);
        let mut out = Vec::new();
        let said = feed(&mut duel.ours, &mut flight, &mut out);
        assert!(said.early.is_none() && said.data.is_empty());
        if is_binder {
            assert_eq!(said.error, Some(TlsError::BadFinished));
            assert_eq!(out, [21, 3, 3, 0, 2, 2, Alert::DecryptError.code()]);
            assert_eq!(STORE.with_borrow(Vec::len), tickets - 1, "it is spent");
        } else {
            assert_eq!(said.error, None, "a full handshake, which the client will not like");
            assert_eq!(STORE.with_borrow(Vec::len), tickets);
            duel.to_theirs = out;
            duel.run();
            assert!(duel.their_error.is_some() && duel.said.established.is_none());
        }
    }
}

/// A ClientHello in records of at most `record_bytes`, with one more extension of this kind behind the others.
fn hello_with(authority: &Authority, kind: u16, content: &[u8], record_bytes: usize) -> Vec<u8> {
    let config = Arc::new(rustls_client(authority, &[SUITES[0].0], None));
    let mut client = ClientConnection::new(config, ServerName::try_from(NAME).unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut body = hello.split_off(9);
    let suites_at = 2 + 32 + 1 + usize::from(body[34]);
    let compression_at = suites_at + 2 + usize::from(u16::from_be_bytes([body[suites_at], body[suites_at + 1]]));
    let extensions_at = compression_at + 1 + usize::from(body[compression_at]);
    body.extend_from_slice(&kind.to_be_bytes());
    body.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
    body.extend_from_slice(content);
    let extensions_bytes = u16::try_from(body.len() - extensions_at - 2).unwrap();
    body[extensions_at..extensions_at + 2].copy_from_slice(&extensions_bytes.to_be_bytes());
    let [_, high, middle, low] = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1, high, middle, low], &body[..]].concat();
    message.chunks(record_bytes).flat_map(|fragment| record(22, fragment)).collect()
}

#[test]
fn a_hello_may_be_large_and_show_hundreds_of_tickets_but_not_a_thousand() {
    const PADDING: u16 = 21;
    const PRE_SHARED_KEY: u16 = 41;
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let is_served = |mut hello: Vec<u8>| {
        let mut session = Session::server(&settings);
        let mut out = Vec::new();
        let said = feed(&mut session, &mut hello, &mut out);
        assert_eq!(said.error, None);
        out.starts_with(&[22, 3, 3]) && out[5] == 2
    };
    let small = hello_with(&authority, PADDING, &[], 1 << 14).len();
    let whole = hello_with(&authority, PADDING, &vec![0; (1 << 14) + 5 - small], 1 << 14);
    assert_eq!(whole.len(), (1 << 14) + 5, "one full record");
    assert!(is_served(whole));
    assert!(is_served(hello_with(&authority, PADDING, &[0; 16_000], 200)));
    let showing = |tickets: usize| {
        let identities = [&[0, 8][..], &[7; 8], &[0; 4]].concat().repeat(tickets);
        let binders = [&[32][..], &[9; 32]].concat().repeat(tickets);
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let offer = [&length(&identities)[..], &identities, &length(&binders), &binders].concat();
        hello_with(&authority, PRE_SHARED_KEY, &offer, 1 << 14)
    };
    assert!(is_served(showing(650)));
    // More than 32 KiB, refused at the first record, which announces it.
    let mut session = Session::server(&settings);
    let mut out = Vec::new();
    let said = feed(&mut session, &mut showing(1000)[..5 + (1 << 14)].to_vec(), &mut out);
    assert!(matches!(said.error, Some(TlsError::Malformed(_))), "{:?}", said.error);
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 50]);
}

#[test]
fn two_tickets_after_a_full_handshake_and_one_after_a_resumption() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], None));
    for round in 0..4 {
        let mut duel = Duel::our_server(&settings, config.clone(), round);
        duel.run();
        assert_eq!(STORE.with_borrow(Vec::len), 2, "a resumption spends one and gives one");
        assert!(duel.ours.issued().is_empty(), "they are given once");
    }
    let mut asking = rustls_client(&authority, &[SUITES[0].0], None);
    asking.send_ticket_request = Some(TicketRequest { new_session_count: 200, resumption_count: 3 });
    let asking = Arc::new(asking);
    for expected in [4, 3] {
        let mut duel = Duel::our_server(&settings, asking.clone(), 1);
        duel.run();
        assert_eq!(duel.their_client().tls13_tickets_received(), expected, "RFC 9149");
    }
}

#[test]
fn what_is_shown_follows_from_the_name() {
    let authority = Authority::new();
    let shown = ["localhost", "*.svc.example", "a.svc.example"].map(|name| authority.sign(name));
    let names = [&[][..], &["*.svc.example"], &["a.svc.example"]].map(|names: &[&str]| Names::new(names).unwrap());
    let identities = names.into_iter().zip(shown.iter().map(Signed::identity)).collect();
    let settings = ServerSettings::new(&ServerOptions { identities, ..authority.server_options() }).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], None));
    for (name, expected) in
        [("localhost", 0), ("b.svc.example", 1), ("A.svc.example", 2), ("other.test", 0), ("127.0.0.1", 0)]
    {
        let client = ClientConnection::new(config.clone(), ServerName::try_from(name).unwrap()).unwrap();
        let mut duel = Duel::new(Session::server(&settings), client.into(), Vec::new(), 7);
        duel.run();
        let is_known = !["other.test", "127.0.0.1"].contains(&name);
        assert_eq!(duel.their_error.is_none(), is_known, "{name}: {:?}", duel.their_error);
        if is_known {
            assert_eq!(duel.theirs.peer_certificates().unwrap()[0].as_ref(), shown[expected].certificate_der);
        }
    }
}

/// Counts what it expands.
#[derive(Debug)]
struct CountingDecompressor(&'static dyn rustls::compress::CertDecompressor, &'static AtomicUsize);

impl rustls::compress::CertDecompressor for CountingDecompressor {
    fn decompress(&self, input: &[u8], output: &mut [u8]) -> Result<(), rustls::compress::DecompressionFailed> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.decompress(input, output)
    }

    fn algorithm(&self) -> rustls::CertificateCompressionAlgorithm {
        self.0.algorithm()
    }
}

#[test]
fn certificates_are_compressed_for_clients_that_ask() {
    static EXPANDED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    static COUNTING: [CountingDecompressor; 2] = [
        CountingDecompressor(rustls::compress::BROTLI_DECOMPRESSOR, &EXPANDED[0]),
        CountingDecompressor(rustls::compress::ZLIB_DECOMPRESSOR, &EXPANDED[1]),
    ];
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    for (taken, expected) in [(&[][..], [0, 0]), (&[0], [1, 0]), (&[1], [1, 1]), (&[1, 0], [2, 1])] {
        let mut config = rustls_client(&authority, &[SUITES[0].0], None);
        config.cert_decompressors = taken.iter().map(|&index: &usize| &COUNTING[index] as _).collect();
        let mut duel = Duel::our_server(&settings, Arc::new(config), 1);
        duel.run();
        assert!(duel.said.established.is_some());
        assert_eq!(EXPANDED.each_ref().map(|count| count.load(Ordering::Relaxed)), expected);
    }
}

/// Counts what it shortens.
#[derive(Debug)]
struct CountingCompressor(AtomicUsize);

impl rustls::compress::CertCompressor for CountingCompressor {
    fn compress(
        &self,
        input: Vec<u8>,
        level: rustls::compress::CompressionLevel,
    ) -> Result<Vec<u8>, rustls::compress::CompressionFailed> {
        self.0.fetch_add(1, Ordering::Relaxed);
        rustls::compress::BROTLI_COMPRESSOR.compress(input, level)
    }

    fn algorithm(&self) -> rustls::CertificateCompressionAlgorithm {
        rustls::CertificateCompressionAlgorithm::Brotli
    }
}

#[test]
fn a_client_that_keeps_tickets_asks_for_compressed_certificates() {
    static COUNTING: CountingCompressor = CountingCompressor(AtomicUsize::new(0));
    let authority = Authority::new();
    let mut config = rustls_server(&authority, &[SUITES[0].0], false);
    config.cert_compressors = vec![&COUNTING];
    config.cert_compression_cache = rustls::compress::CompressionCache::Disabled.into();
    let config = Arc::new(config);
    for (keeps_tickets, expected) in [(false, 0), (true, 1)] {
        let options = ClientOptions { keeps_tickets, ..authority.client_options() };
        let mut duel = Duel::our_client(&ClientSettings::new(&options).unwrap(), config.clone(), 1);
        duel.run();
        assert!(duel.said.established.is_some());
        assert_eq!(COUNTING.0.load(Ordering::Relaxed), expected);
    }
}

#[test]
fn a_certificate_that_is_optional_is_told_when_it_is_shown() {
    let authority = Authority::new();
    let server = ServerOptions { client_auth: ClientAuth::Optional(authority.roots()), ..authority.server_options() };
    let settings = ServerSettings::new(&server).unwrap();
    for shown in [None, Some(authority.sign("phone"))] {
        let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], shown.clone()));
        for resumed in [false, true] {
            let mut duel = Duel::our_server(&settings, config.clone(), 1);
            duel.run();
            let established = duel.said.established.clone().unwrap();
            assert_eq!(
                (established.peer_certificate_sha256.is_some(), established.resumed),
                (shown.is_some(), resumed)
            );
            duel.talk(10);
        }
    }
    let config = rustls_client(&authority, &[SUITES[0].0], Some(Authority::new().sign("phone")));
    let mut duel = Duel::our_server(&settings, Arc::new(config), 1);
    duel.run();
    assert_eq!(duel.said.error, Some(TlsError::Certificate(CertificateFault::UnknownIssuer)));
}

#[test]
fn a_ticket_too_long_for_a_store_is_not_given() {
    let authority = Authority::new();
    let server = ServerOptions { client_auth: ClientAuth::Required(authority.roots()), ..authority.server_options() };
    let settings = ServerSettings::new(&server).unwrap();
    let long = authority.sign_with("pop", |params| {
        params.subject_alt_names.extend((0..60).map(|count| {
            rcgen::SanType::DnsName(format!("a-name-of-some-length-{count}.example").try_into().unwrap())
        }));
    });
    assert!(long.certificate_der.len() > trunkline::tls::TICKET_VALUE_BYTES_MAX);
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], Some(long)));
    for _ in 0..2 {
        let mut duel = Duel::our_server(&settings, config.clone(), 1);
        duel.run();
        assert!(!duel.said.established.as_ref().unwrap().resumed);
        assert!(STORE.with_borrow(Vec::is_empty));
        duel.talk(10);
    }
}

#[test]
fn post_quantum_is_a_switch_and_retries_are_told() {
    let authority = Authority::new();
    let hybrid_first = Arc::new(rustls_client_with(&authority, provider(&[SUITES[0].0]), None));
    for (post_quantum, retried) in [(true, false), (false, true)] {
        let options = ServerOptions { post_quantum, ..authority.server_options() };
        // rustls sends shares for both groups of X25519MLKEM768; a provider without X25519 sends one.
        let mut config = ClientConfig::clone(&hybrid_first);
        let mut only = provider(&[SUITES[0].0]);
        Arc::make_mut(&mut only).kx_groups.remove(1);
        if retried {
            config = rustls_client_with(&authority, only, None);
        }
        let mut duel = Duel::our_server(&ServerSettings::new(&options).unwrap(), Arc::new(config), 3);
        duel.run();
        assert_eq!(duel.said.established.as_ref().unwrap().retried, retried);
        duel.talk(20);
    }
    let options = ClientOptions { post_quantum: true, ..authority.client_options() };
    let config = Arc::new(rustls_server(&authority, &[SUITES[0].0], false));
    let mut duel = Duel::our_client(&ClientSettings::new(&options).unwrap(), config, 4);
    duel.run();
    duel.talk(20);
}

#[test]
fn mutual_tls_tells_who_the_peer_is() {
    let authority = Authority::new();
    let shown = authority.sign("pop-1");
    let server = ServerOptions { client_auth: ClientAuth::Required(authority.roots()), ..authority.server_options() };
    let settings = ServerSettings::new(&server).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], Some(shown.clone())));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &shown.certificate_der);
    for round in 0..2 {
        let mut duel = Duel::our_server(&settings, config.clone(), round);
        duel.run();
        let established = duel.said.established.as_ref().unwrap();
        assert_eq!(established.peer_certificate_sha256.unwrap(), digest.as_ref());
        assert_eq!(established.resumed, round > 0);
        duel.talk(20);
        duel.close();
    }
}

fn refusal(duel: &mut Duel) -> (Option<TlsError>, Option<Error>) {
    duel.run();
    assert!(!duel.ours.is_established());
    (duel.said.error, duel.their_error.clone())
}

#[test]
fn a_client_without_a_good_certificate_is_refused_with_the_right_alert() {
    let authority = Authority::new();
    let server = ServerOptions { client_auth: ClientAuth::Required(authority.roots()), ..authority.server_options() };
    let settings = ServerSettings::new(&server).unwrap();
    let stranger = Authority::new().sign("pop");
    let expired = authority.sign_with("pop", |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    for (shown, fault, alert) in [
        (None, CertificateFault::Missing, AlertDescription::CertificateRequired),
        (Some(stranger), CertificateFault::UnknownIssuer, AlertDescription::UnknownCA),
        (Some(expired), CertificateFault::Expired, AlertDescription::CertificateExpired),
    ] {
        let config = rustls_client(&authority, &[SUITES[0].0], shown);
        let mut duel = Duel::our_server(&settings, Arc::new(config), 5);
        let (ours, theirs) = refusal(&mut duel);
        assert_eq!(ours, Some(TlsError::Certificate(fault)));
        assert_eq!(theirs, Some(Error::AlertReceived(alert)));
        assert_eq!(ours.unwrap().alert().unwrap().code(), u8::from(alert));
    }
}

#[test]
fn a_server_with_a_wrong_certificate_is_refused_with_the_right_alert() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let elsewhere = authority.sign("elsewhere");
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    let unknown = rustls_server(&stranger, &[SUITES[0].0], false);
    let mut wrong = rustls_server(&authority, &[SUITES[0].0], false);
    let key = PrivateKeyDer::try_from(elsewhere.key_der).unwrap();
    let chain = vec![CertificateDer::from(elsewhere.certificate_der)];
    let certified = rustls::sign::CertifiedKey::from_der(chain, key, &default_provider()).unwrap();
    wrong.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    for (config, fault, alert) in [
        (unknown, CertificateFault::UnknownIssuer, AlertDescription::UnknownCA),
        (wrong, CertificateFault::WrongName, AlertDescription::BadCertificate),
    ] {
        let mut duel = Duel::our_client(&settings, Arc::new(config), 6);
        let (ours, theirs) = refusal(&mut duel);
        assert_eq!(ours, Some(TlsError::Certificate(fault)));
        assert_eq!(theirs, Some(Error::AlertReceived(alert)));
        assert_eq!(ours.unwrap().alert().unwrap().code(), u8::from(alert));
    }
}

#[test]
fn application_protocols_decide_what_a_connection_is() {
    let authority = Authority::new();
    let refused = (Some(TlsError::NoApplicationProtocol), None);
    for (tunnels, offered, expected) in [
        (true, &[&b"mmtp/1"[..]][..], (None, Some(Protocol::Mmtp))),
        (true, &[b"http/1.1", b"mmtp/1"], (None, Some(Protocol::Mmtp))),
        (true, &[b"h2", b"http/1.1"], (None, Some(Protocol::Opaque))),
        (true, &[], (None, Some(Protocol::Opaque))),
        (true, &[b"h2"], refused),
        (false, &[b"mmtp/1"], (None, Some(Protocol::Mmtp))),
        (false, &[b"http/1.1"], refused),
        (false, &[], refused),
    ] {
        let settings = ServerSettings::new(&ServerOptions { tunnels, ..authority.server_options() }).unwrap();
        let mut config = rustls_client(&authority, &[SUITES[0].0], None);
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let mut duel = Duel::our_server(&settings, Arc::new(config), 7);
        duel.run();
        let protocol = duel.said.established.as_ref().map(|established| established.protocol);
        assert_eq!((duel.said.error, protocol), expected, "tunnels {tunnels}, offered {offered:?}");
        let told = duel.said.error.is_some().then_some(Error::AlertReceived(AlertDescription::NoApplicationProtocol));
        assert_eq!(duel.their_error, told);
    }
}

#[test]
fn our_client_insists_on_its_application_protocol() {
    let authority = Authority::new();
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    let mut silent = rustls_server(&authority, &[SUITES[0].0], false);
    silent.alpn_protocols.clear();
    let mut duel = Duel::our_client(&settings, Arc::new(silent), 8);
    let told = Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol));
    assert_eq!(refusal(&mut duel), (Some(TlsError::NoApplicationProtocol), told));
    let mut other = rustls_server(&authority, &[SUITES[0].0], false);
    other.alpn_protocols = vec![b"h2".to_vec()];
    let mut duel = Duel::our_client(&settings, Arc::new(other), 9);
    let (ours, theirs) = refusal(&mut duel);
    assert_eq!((ours, theirs), (Some(TlsError::PeerAlert(120)), Some(Error::NoApplicationProtocol)));
}

#[test]
fn nothing_in_common_is_a_handshake_failure() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let mut groups = provider(&[SUITES[0].0]);
    Arc::make_mut(&mut groups).kx_groups = vec![kx_group::X25519MLKEM768];
    let mut duel = Duel::our_server(&settings, Arc::new(rustls_client_with(&authority, groups, None)), 10);
    let (ours, theirs) = refusal(&mut duel);
    assert_eq!(ours, Some(TlsError::Incompatible("no key exchange group in common")));
    assert_eq!(theirs, Some(Error::AlertReceived(AlertDescription::HandshakeFailure)));
}

/// What a server of ours answers to bytes in the clear: its error and the alert it sends.
fn answer(options: &ServerOptions, bytes: &[u8]) -> (Option<TlsError>, Option<u8>) {
    let mut session = Session::server(&ServerSettings::new(options).unwrap());
    let mut out = Vec::new();
    let said = feed(&mut session, &mut bytes.to_vec(), &mut out);
    let alert = match out[..] {
        [21, 3, _, 0, 2, 2, code] => Some(code),
        [] => None,
        _ => panic!("an alert is all it sends: {out:?}"),
    };
    (said.error, alert)
}

/// A record that holds `payload`.
fn record(content: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[content, 3, 1, high, low], payload].concat()
}

#[test]
fn a_first_flight_that_is_none_is_refused_with_the_right_alert() {
    let authority = Authority::new();
    let options = authority.server_options();
    let code = |alert: Alert| Some(alert.code());
    let unexpected = |bytes: &[u8]| {
        let (error, alert) = answer(&options, bytes);
        assert_eq!(alert, code(Alert::UnexpectedMessage), "{bytes:?}: {error:?}");
        assert_eq!(error.unwrap().alert(), Some(Alert::UnexpectedMessage));
    };
    assert_eq!(answer(&options, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), (Some(TlsError::PlainHttp), None));
    assert_eq!(answer(&options, b"SSH-2.0-x\r\n"), (Some(TlsError::NotTls), None));
    let overflow = (Some(TlsError::RecordOverflow), code(Alert::RecordOverflow));
    assert_eq!(answer(&options, &[22, 3, 1, 0x41, 1]), overflow);
    assert_eq!(answer(&options, &record(22, &[0; 16_385])), overflow);
    unexpected(&record(23, b"data before the handshake"));
    unexpected(&record(22, &[20, 0, 0, 1, 0])); // a Finished
    unexpected(&record(20, &[2]));
    let (error, alert) = answer(&options, &record(22, &[]));
    assert_eq!((error.unwrap().alert().map(Alert::code), alert), (alert, alert), "{error:?}");
    assert!(alert.is_some());
    let (error, alert) = answer(&options, &record(22, &[1, 0, 0, 3, 3, 3, 0]));
    assert_eq!((error.unwrap().alert(), alert), (Some(Alert::DecodeError), code(Alert::DecodeError)));
    assert_eq!(answer(&options, &record(21, &[2, 40])), (Some(TlsError::PeerAlert(40)), None));
    assert_eq!(answer(&options, &record(21, &[1, 0])), (Some(TlsError::ClosedInHandshake), None));
}

#[test]
fn a_client_hello_without_tls_13_gets_protocol_version() {
    let authority = Authority::new();
    // TLS 1.2: a random, no session, one suite, null compression; no supported_versions.
    let mut hello = vec![3, 3];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let with_extensions = [&hello[..], &[0, 8, 0, 10, 0, 4, 0, 2, 0, 29]].concat();
    for body in [hello, with_extensions] {
        let message = [&[1, 0, 0, u8::try_from(body.len()).unwrap()], &body[..]].concat();
        for tunnels in [false, true] {
            let options = ServerOptions { tunnels, ..authority.server_options() };
            let (error, alert) = answer(&options, &record(22, &message));
            assert_eq!((error, alert), (Some(TlsError::ProtocolVersion), Some(Alert::ProtocolVersion.code())));
        }
    }
}

#[test]
fn a_handshake_that_does_not_end_is_a_flood() {
    let authority = Authority::new();
    let options = authority.server_options();
    let flood = |records: &[u8]| {
        let (error, alert) = answer(&options, records);
        assert_eq!((error, alert), (Some(TlsError::Flood("handshake too long")), Some(10)));
    };
    let mut slow = record(22, &[1, 0, 0x7f, 0xff]);
    for _ in 0..200 {
        slow.extend(record(22, &[0]));
    }
    flood(&slow);
    // One that announces more than any may hold is refused before it comes.
    for length in [[1, 0, 0], [0, 0xff, 0xff]] {
        let (error, alert) = answer(&options, &record(22, &[&[1][..], &length].concat()));
        assert!(matches!(error, Some(TlsError::Malformed(_))), "{error:?}");
        assert_eq!(alert, Some(50));
    }
}

#[test]
fn faults_under_handshake_keys_get_their_alert() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], None));
    let many = record(20, &[1]).repeat(200);
    for (hostile, alert) in [
        (record(23, &[0; 40]), AlertDescription::BadRecordMac),
        (record(20, &[2]), AlertDescription::UnexpectedMessage),
        (record(20, &[1, 1]), AlertDescription::UnexpectedMessage),
        (many, AlertDescription::UnexpectedMessage),
        (record(22, &[11, 0, 0, 0]), AlertDescription::BadRecordMac), // not protected, so it does not decrypt
    ] {
        let mut duel = Duel::our_server(&settings, config.clone(), 11);
        duel.theirs.write_tls(&mut duel.to_ours).unwrap();
        duel.ours_reads(); // answers with its whole flight
        duel.to_ours = hostile;
        let (ours, theirs) = refusal(&mut duel);
        assert_eq!(theirs, Some(Error::AlertReceived(alert)), "{ours:?}");
        assert_eq!(ours.unwrap().alert().unwrap().code(), u8::from(alert));
    }
    let mut duel = Duel::our_server(&settings, config, 11);
    duel.theirs.write_tls(&mut duel.to_ours).unwrap();
    duel.ours_reads();
    duel.to_ours = vec![23, 3, 3, 0x45, 0];
    let told = Some(Error::AlertReceived(AlertDescription::RecordOverflow));
    assert_eq!(refusal(&mut duel), (Some(TlsError::RecordOverflow), told));
}

#[test]
fn an_alert_follows_half_rtt_data_and_nothing_follows_the_end() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let noise = record(23, &[7; 40]);
    for (hostile, alert) in
        [(&[23, 3, 3, 0x45, 0][..], AlertDescription::RecordOverflow), (&noise, AlertDescription::BadRecordMac)]
    {
        for closes in [false, true] {
            let config = Arc::new(eager_client(&authority, &[SUITES[0].0]));
            let mut duel = Duel::returning(&settings, &config, b"question");
            duel.first_flight();
            assert!(duel.said.early.is_some());
            for part in [&b"an"[..], b"swer"] {
                seal(&mut duel.ours, part, &mut duel.to_theirs).unwrap();
            }
            if closes {
                duel.ours.put_close_notify(&mut duel.to_theirs);
            }
            let put = duel.to_theirs.len();
            duel.said.merge(feed(&mut duel.ours, &mut hostile.to_vec(), &mut duel.to_theirs));
            assert_eq!(duel.said.error.unwrap().alert().unwrap().code(), u8::from(alert));
            assert_eq!(duel.to_theirs.len() > put, !closes);
            duel.theirs_reads();
            assert_eq!(duel.their_data, b"answer");
            let told = (!closes).then_some(Error::AlertReceived(alert));
            assert_eq!((&duel.their_error, duel.their_close), (&told, closes));
        }
    }
}

#[test]
fn a_server_is_told_of_faults_under_handshake_keys() {
    let authority = Authority::new();
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    let config = Arc::new(rustls_server(&authority, &[SUITES[0].0], false));
    for (hostile, alert) in [
        (vec![23, 3, 3, 0x45, 0], AlertDescription::RecordOverflow),
        (record(20, &[1]).repeat(3), AlertDescription::UnexpectedMessage),
    ] {
        let mut duel = Duel::our_client(&settings, config.clone(), 3);
        duel.theirs_reads();
        let mut hello = Vec::new();
        duel.theirs.write_tls(&mut hello).unwrap();
        let end = 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        duel.to_ours = [&hello[..end], &hostile[..]].concat();
        let (ours, theirs) = refusal(&mut duel);
        assert_eq!(theirs, Some(Error::AlertReceived(alert)), "{ours:?}");
        assert_eq!(ours.unwrap().alert().unwrap().code(), u8::from(alert));
    }
}

#[test]
fn a_hello_of_ssl_3_gets_protocol_version() {
    let authority = Authority::new();
    let mut hello = hello_with(&authority, 0xfafa, &[], 1 << 14);
    let version_at = 5 + 4; // behind both headers
    assert_eq!(hello[version_at..version_at + 2], [3, 3]);
    hello[version_at + 1] = 0;
    let refused = (Some(TlsError::ProtocolVersion), Some(Alert::ProtocolVersion.code())); // RFC 8446 D.5
    assert_eq!(answer(&authority.server_options(), &hello), refused);
}

#[test]
fn compatibility_change_cipher_spec_is_ignored() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let config = Arc::new(rustls_client(&authority, &[SUITES[0].0], None));
    let mut duel = Duel::our_server(&settings, config, 12);
    duel.theirs.write_tls(&mut duel.to_ours).unwrap();
    duel.ours_reads();
    duel.to_ours = record(20, &[1]); // RFC 8446 5: rustls's own follows
    duel.run();
    assert!(duel.said.established.is_some());
    duel.talk(20);
    duel.to_ours = record(20, &[1]); // and after Finished it is one too many
    let (ours, theirs) = refusal(&mut duel);
    assert_eq!(ours, Some(TlsError::Unexpected("record in the clear after the handshake")));
    assert_eq!(theirs, Some(Error::AlertReceived(AlertDescription::UnexpectedMessage)));
}

#[test]
fn a_session_says_no_before_its_handshake_is_complete() {
    let authority = Authority::new();
    let mut session = Session::server(&ServerSettings::new(&authority.server_options()).unwrap());
    let mut out = vec![0; 9];
    assert!(!session.is_established() && !session.key_update_due());
    assert!(matches!(session.seal(&mut out, 0), Err(TlsError::Misuse(_))));
    assert!(matches!(session.put_key_update(&mut out), Err(TlsError::Misuse(_))));
    session.put_close_notify(&mut out);
    assert_eq!(out, [0; 9]);
    assert!(matches!(session.receive(&mut [22, 3, 1, 0, 9, 1], &mut out), Err(TlsError::Misuse(_))));
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    for name in ["", "a b", "-x.", "x/y"] {
        assert_eq!(Session::client(&settings, name, None, &mut out).unwrap_err(), TlsError::BadServerName);
    }
}
