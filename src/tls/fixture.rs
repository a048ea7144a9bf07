//! What the unit tests of this module share: certificates made in memory and sessions that have shaken hands.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::record::Protection;
use super::{
    ClientOptions, ClientSettings, Identity, KEY_UPDATE_RECORDS, RECORD_HEADER_BYTES, Received, Roots, ServerOptions,
    ServerSettings, Session, State, TlsError, record_bytes,
};

/// The name the server's certificate stands for.
pub(super) const NAME: &str = "localhost";

/// A certificate authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_der: Vec<u8>,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root_der = params.self_signed(&key).unwrap().der().to_vec();
        Authority { issuer: Issuer::new(params, key), root_der }
    }

    pub(super) fn sign(&self) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.der().to_vec(), key.serialize_der())
    }

    pub(super) fn client_options(&self) -> ClientOptions {
        ClientOptions::new(Roots::from_der(vec![self.root_der.clone()]).unwrap())
    }

    pub(super) fn server_options(&self) -> ServerOptions {
        let (certificate, key) = self.sign();
        ServerOptions::new(Identity::from_der(vec![certificate], key).unwrap())
    }
}

/// A client and a server after their handshake.
pub(super) struct Pair {
    pub(super) client: Session,
    pub(super) server: Session,
}

impl Pair {
    pub(super) fn established() -> Pair {
        Pair::established_with(KEY_UPDATE_RECORDS)
    }

    pub(super) fn established_with(key_update_records: u64) -> Pair {
        let authority = Authority::new();
        let client = ClientOptions { key_update_records, ..authority.client_options() };
        let server = ServerOptions { key_update_records, tickets: 0, ..authority.server_options() };
        let mut to_server = Vec::new();
        let client = Session::client(&ClientSettings::new(&client).unwrap(), NAME, None, &mut to_server).unwrap();
        let server = Session::server(&ServerSettings::new(&server).unwrap());
        let mut pair = Pair { client, server };
        let mut to_client = Vec::new();
        take(&mut pair.server, &mut to_server, &mut to_client).unwrap();
        take(&mut pair.client, &mut to_client, &mut to_server).unwrap();
        take(&mut pair.server, &mut to_server, &mut to_client).unwrap();
        assert!(pair.client.is_established() && pair.server.is_established());
        pair
    }

    /// What the client answers to `to_client`, which it takes.
    pub(super) fn client_reads(&mut self, to_client: &mut Vec<u8>) -> Result<Vec<u8>, TlsError> {
        let mut answer = Vec::new();
        take(&mut self.client, to_client, &mut answer).map(|_| answer)
    }

    pub(super) fn carries_to_server(&mut self, to_client: &mut Vec<u8>) {
        let mut record = vec![0; RECORD_HEADER_BYTES];
        record.extend_from_slice(b"data");
        self.client.seal(&mut record, 0).unwrap();
        assert!(matches!(self.server.receive(&mut record, to_client), Ok(Received::Data(b"data"))));
    }

    pub(super) fn carries_both_ways(&mut self, to_client: &mut Vec<u8>) -> bool {
        self.carries_to_server(to_client);
        let start = to_client.len();
        to_client.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        to_client.extend_from_slice(b"back");
        self.server.seal(to_client, start).unwrap();
        take(&mut self.client, to_client, &mut Vec::new()).unwrap() == b"back"
    }
}

/// Hands whole records to a session; the application data in them.
fn take(session: &mut Session, input: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Vec<u8>, TlsError> {
    let mut data = Vec::new();
    while let Some(length) = record_bytes(input)? {
        let mut rest = input.split_off(length);
        core::mem::swap(&mut rest, input);
        match session.receive(&mut rest, out)? {
            Received::Data(bytes) => data.extend_from_slice(bytes),
            Received::Hello => drop(session.proceed(None, out)?),
            _ => {}
        }
    }
    Ok(data)
}

/// The sending side of a session, to send what a session would not.
pub(super) fn hostile(session: &mut Session) -> Hostile<'_> {
    match &mut session.state {
        State::Established(traffic) => Hostile { traffic },
        State::Handshaking(_) | State::Failed => panic!("the session is established"),
    }
}

pub(super) struct Hostile<'a> {
    traffic: &'a mut super::traffic::Traffic,
}

impl Hostile<'_> {
    fn sending(&mut self) -> &mut Protection {
        self.traffic.sending_for_test()
    }

    pub(super) fn seal_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        self.sending().seal_inner(inner)
    }

    pub(super) fn skip(&mut self, count: u64) {
        self.sending().skip(count);
    }

    pub(super) fn sequence(&mut self) -> u64 {
        self.sending().sequence()
    }

    /// Changes the sending key without a word.
    pub(super) fn update(&mut self) {
        self.traffic.update_for_test();
    }
}
