//! What the tests of TLS share: certificates made in memory, and a pump between two sessions.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use trunkline::tls::{
    ClientOptions, Established, Identity, IssuedTicket, RECORD_HEADER_BYTES, Received, Roots, ServerOptions, Session,
    TlsError, record_bytes,
};

/// The name every server certificate of the tests stands for.
pub const NAME: &str = "localhost";

static AUTHORITIES: AtomicU32 = AtomicU32::new(1);

/// A certificate authority, and what it has signed, in DER.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root_der: Vec<u8>,
}

/// A chain of one certificate and its key, in DER.
#[derive(Clone)]
pub struct Signed {
    pub certificate_der: Vec<u8>,
    pub key_der: Vec<u8>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities differ in name, as they do outside.
        let serial = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("Test authority {serial}"));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root_der = params.self_signed(&key).unwrap().der().to_vec();
        Authority { issuer: Issuer::new(params, key), root_der }
    }

    pub fn sign(&self, name: &str) -> Signed {
        self.sign_with(name, |_| {})
    }

    pub fn sign_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap(); // ECDSA P-256
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed { certificate_der: certificate.der().to_vec(), key_der: key.serialize_der() }
    }

    pub fn roots(&self) -> Roots {
        Roots::from_der(vec![self.root_der.clone()]).unwrap()
    }

    pub fn client_options(&self) -> ClientOptions {
        ClientOptions::new(self.roots())
    }

    pub fn server_options(&self) -> ServerOptions {
        ServerOptions::new(self.sign(NAME).identity())
    }
}

impl Signed {
    pub fn identity(&self) -> Identity {
        Identity::from_der(vec![self.certificate_der.clone()], self.key_der.clone()).unwrap()
    }
}

/// What a session said about a stretch of records.
#[derive(Debug, Default)]
pub struct Said {
    /// What a link with early data opened as.
    pub early: Option<Established>,
    pub established: Option<Established>,
    pub data: Vec<u8>,
    pub closed: bool,
    pub error: Option<TlsError>,
}

impl Said {
    pub fn merge(&mut self, later: Said) {
        self.early = later.early.or(self.early.take());
        self.established = later.established.or(self.established.take());
        self.data.extend_from_slice(&later.data);
        self.closed |= later.closed;
        self.error = self.error.or(later.error);
    }
}

thread_local! {
    /// Every ticket that servers of a test issued: each test has a thread of its own.
    pub static STORE: RefCell<Vec<IssuedTicket>> = const { RefCell::new(Vec::new()) };
}

/// Goes on with the ticket that the client shows, which is taken from the store.
fn proceed(session: &mut Session, out: &mut Vec<u8>) -> Result<Received<'static>, TlsError> {
    let shown = session.hello().expect("it waits").ticket;
    let taken = STORE.with_borrow_mut(|store| {
        let found = store.iter().position(|ticket| Some(ticket.id) == shown)?;
        Some(store.swap_remove(found))
    });
    session.proceed(taken.as_ref().map(|ticket| &ticket.value[..]), out)
}

/// Hands the whole records at the front of `input` to `session`, until an error.
pub fn feed(session: &mut Session, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Said {
    let mut said = Said::default();
    let mut at = 0;
    loop {
        let length = match record_bytes(&input[at..]) {
            Ok(Some(length)) if input.len() - at >= length => length,
            Ok(_) => break,
            Err(error) => {
                session.fail(error, out);
                said.error = Some(error);
                break;
            }
        };
        let mut received = session.receive(&mut input[at..at + length], out);
        if let Ok(Received::Hello) = received {
            received = proceed(session, out);
        }
        match received {
            Ok(Received::Nothing | Received::Hello) => {}
            Ok(Received::Early(opened)) => said.early = Some(*opened),
            Ok(Received::Established(established)) => {
                said.established = Some(*established);
                STORE.with_borrow_mut(|store| store.extend(session.issued()));
            }
            Ok(Received::Data(bytes)) => said.data.extend_from_slice(bytes),
            Ok(Received::CloseNotify) => said.closed = true,
            Err(error) => {
                said.error = Some(error);
                break;
            }
        }
        at += length;
    }
    input.drain(..at);
    said
}

/// Seals `plaintext` as one record.
pub fn seal(session: &mut Session, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    out.extend_from_slice(plaintext);
    session.seal(out, start)
}
