//! Hostile records after a handshake, to a server and to a client.
//!
//! The peer is rustls, whose keys are taken after the handshake, so that the input may say what is inside a record that
//! does decrypt. Input: one byte for the side, then for each record a byte of how to damage it, two bytes of length, and
//! the inner plaintext with content type and padding.
#![no_main]

use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Connection, ConnectionTrafficSecrets, RootCertStore, ServerConfig};
use trunkline::tls::{
    ClientOptions, ClientSettings, Identity, PLAINTEXT_BYTES_MAX, Received, Roots, ServerOptions, ServerSettings,
    Session, record_bytes,
};

struct Settings {
    our_server: ServerSettings,
    our_client: ClientSettings,
    their_client: Arc<ClientConfig>,
    their_server: Arc<ServerConfig>,
}

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("the system gives randomness");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).and_then(|params| params.self_signed(&key));
    let certificate = certificate.expect("the parameters are good").der().to_vec();
    let identity = Identity::from_der(vec![certificate.clone()], key.serialize_der()).expect("they belong together");
    let roots = Roots::from_der(vec![certificate.clone()]).expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = &[&rustls::version::TLS13];
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from(certificate.clone())).expect("it is a certificate");
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(versions).expect("the provider knows TLS 1.3");
    let mut their_client = builder.with_root_certificates(store).with_no_client_auth();
    their_client.alpn_protocols.push(b"mmtp/1".to_vec());
    their_client.enable_secret_extraction = true;
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).expect("the provider knows TLS 1.3").with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is PKCS#8");
    let mut their_server =
        builder.with_single_cert(vec![CertificateDer::from(certificate)], key).expect("they belong together");
    their_server.alpn_protocols.push(b"mmtp/1".to_vec());
    their_server.enable_secret_extraction = true;
    Settings {
        our_server: ServerSettings::new(&ServerOptions::new(identity)).expect("the options are good"),
        our_client: ClientSettings::new(&ClientOptions::new(roots)).expect("the options are good"),
        their_client: Arc::new(their_client),
        their_server: Arc::new(their_server),
    }
});

/// The sending side that rustls had.
struct Sender {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Sender {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Sender {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => panic!("TLS 1.3 has three suites in use"),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).expect("the key fits its cipher");
        Sender { key: LessSafeKey::new(key), iv: iv.as_ref().try_into().expect("an IV is 12 bytes"), sequence }
    }

    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).expect("the input gave two bytes of length").to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let mut body = inner.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).expect("it is short enough");
        [&header[..], &body].concat()
    }
}

fn feed(session: &mut Session, input: &mut Vec<u8>, out: &mut Vec<u8>) {
    while let Some(length) = record_bytes(input).expect("rustls sends records") {
        let mut rest = input.split_off(length);
        core::mem::swap(&mut rest, input);
        if let Received::Hello = session.receive(&mut rest, out).expect("the handshake is in order") {
            session.proceed(None, out).expect("the ClientHello is in order");
        }
    }
}

/// A session of ours after its handshake, and the keys of its peer.
fn established(is_server: bool) -> (Session, Sender) {
    let settings = &*SETTINGS;
    let mut to_theirs = Vec::new();
    let (mut ours, mut theirs): (Session, Connection) = if is_server {
        let name = ServerName::try_from("localhost").expect("it is a name");
        let client = rustls::ClientConnection::new(settings.their_client.clone(), name).expect("the config is good");
        (Session::server(&settings.our_server), client.into())
    } else {
        let server = rustls::ServerConnection::new(settings.their_server.clone()).expect("the config is good");
        let session = Session::client(&settings.our_client, "localhost", None, &mut to_theirs);
        (session.expect("the name is good"), server.into())
    };
    while theirs.is_handshaking() || !ours.is_established() || theirs.wants_write() || !to_theirs.is_empty() {
        let mut bytes = &to_theirs[..];
        while !bytes.is_empty() {
            theirs.read_tls(&mut bytes).expect("memory does not fail");
            theirs.process_new_packets().expect("the handshake is in order");
        }
        to_theirs.clear();
        let mut to_ours = Vec::new();
        while theirs.wants_write() {
            theirs.write_tls(&mut to_ours).expect("memory does not fail");
        }
        feed(&mut ours, &mut to_ours, &mut to_theirs);
    }
    let secrets = theirs.dangerous_extract_secrets().expect("extraction is enabled");
    (ours, Sender::new(secrets.tx))
}

fuzz_target!(|input: &[u8]| {
    let Some((&side, mut rest)) = input.split_first() else { return };
    let (mut session, mut sender) = established(side % 2 == 0);
    let mut out = Vec::new();
    while let Some((&[damage, high, low], behind)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(behind.len()).min(PLAINTEXT_BYTES_MAX + 300);
        let (inner, behind) = behind.split_at(length);
        rest = behind;
        let mut record = sender.seal(inner);
        if damage & 0x80 != 0 {
            let at = usize::from(damage & 0x7f) % record.len();
            record[at] ^= 1;
        }
        match record_bytes(&record) {
            Ok(Some(length)) if length == record.len() => {}
            Ok(_) => return,
            Err(error) => return session.fail(error, &mut out),
        }
        out.clear();
        let received = session.receive(&mut record, &mut out);
        match received {
            Ok(Received::Data(data)) => assert!(!data.is_empty() && data.len() <= PLAINTEXT_BYTES_MAX),
            Ok(Received::Nothing | Received::CloseNotify) => {}
            Ok(Received::Hello | Received::Early(_) | Received::Established(_)) => panic!("it was established before"),
            Err(error) => {
                assert_eq!(error.alert().is_some(), !out.is_empty(), "{error:?}");
                assert!(!session.is_established());
                return;
            }
        }
        // What the session says between records is itself records.
        let mut at = 0;
        while at < out.len() {
            at += record_bytes(&out[at..]).expect("it is a record").expect("it is whole");
        }
        assert_eq!(at, out.len());
    }
});
