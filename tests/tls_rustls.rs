//! TLS sessions of ours against rustls's own client and server: both directions, random sizes and splits, key updates,
//! both ways to close, and every way a handshake may fail.

#[path = "tls_support/pair.rs"]
mod pair;
mod tls_support;

use std::io::{Read, Write};
use std::sync::Arc;

use pair::Pair;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use tls_support::{Authority, NAME, Said, Signed, feed, seal};
use trunkline::base::prng::Prng;
use trunkline::base::wire::Protocol;
use trunkline::tls::{
    Alert, CertificateFault, ClientAuth, ClientOptions, ClientSettings, ServerOptions, ServerSettings, Session, Suite,
    TlsError,
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
            match self.prng.below(12) {
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
    let mut slow = record(22, &[1, 0, 0xff, 0xff]);
    for _ in 0..200 {
        slow.extend(record(22, &[0]));
    }
    flood(&slow);
    // One that announces more than any may hold is refused before it comes.
    let (error, alert) = answer(&options, &record(22, &[1, 1, 0, 0]));
    assert_eq!((error, alert), (Some(TlsError::Malformed("handshake message too long")), Some(50)));
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
    let told = Some(Error::AlertReceived(AlertDescription::DecodeError)); // all that rustls lets us say here
    assert_eq!(refusal(&mut duel), (Some(TlsError::RecordOverflow), told));
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
