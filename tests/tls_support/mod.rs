//! What the tests of TLS share: certificates made in memory, and a pump between two sessions.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use trunkline::tls::{
    ClientOptions, Established, Identity, RECORD_HEADER_BYTES, Received, Roots, ServerOptions, Session, TlsError,
    record_bytes,
};

/// The name every server certificate of the tests stands for.
pub const NAME: &str = "localhost";

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
    pub established: Option<Established>,
    pub data: Vec<u8>,
    pub closed: bool,
    pub error: Option<TlsError>,
}

impl Said {
    pub fn merge(&mut self, later: Said) {
        self.established = later.established.or(self.established.take());
        self.data.extend_from_slice(&later.data);
        self.closed |= later.closed;
        self.error = self.error.or(later.error);
    }
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
        match session.receive(&mut input[at..at + length], out) {
            Ok(Received::Nothing) => {}
            Ok(Received::Established(established)) => said.established = Some(*established),
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

/// Two sessions of ours and the bytes between them.
pub struct Pair {
    pub client: Session,
    pub server: Session,
    pub to_server: Vec<u8>,
    pub to_client: Vec<u8>,
    pub client_said: Said,
    pub server_said: Said,
}

impl Pair {
    pub fn new(client: &ClientOptions, server: &ServerOptions) -> Pair {
        let client = trunkline::tls::ClientSettings::new(client).unwrap();
        let server = trunkline::tls::ServerSettings::new(server).unwrap();
        Pair::with(&client, &server)
    }

    pub fn with(client: &trunkline::tls::ClientSettings, server: &trunkline::tls::ServerSettings) -> Pair {
        let mut to_server = Vec::new();
        let client = Session::client(client, NAME, &mut to_server).unwrap();
        let server = Session::server(server).unwrap();
        let (client_said, server_said) = (Said::default(), Said::default());
        Pair { client, server, to_server, to_client: Vec::new(), client_said, server_said }
    }

    /// Carries bytes until none are on the way.
    pub fn run(&mut self) {
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            self.server_said.merge(feed(&mut self.server, &mut self.to_server, &mut self.to_client));
            if self.server_said.error.is_some() {
                self.to_server.clear();
            }
            self.client_said.merge(feed(&mut self.client, &mut self.to_client, &mut self.to_server));
            if self.client_said.error.is_some() {
                self.to_client.clear();
            }
        }
    }
}
