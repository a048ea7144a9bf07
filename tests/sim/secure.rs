//! The far end of a TLS connection, as clients of the simulation have it, and the certificates of all runs.

use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SerialNumber,
};
use trunkline::base::prng::Prng;
use trunkline::base::wire::Sink;
use trunkline::ring::Fd;
use trunkline::tls::{
    ClientAuth, ClientOptions, ClientSettings, Identity, PLAINTEXT_BYTES_MAX, RECORD_HEADER_BYTES, Received, Roots,
    ServerOptions, ServerSettings, Session, record_bytes,
};
use trunkline::worker::TlsSettings;

use crate::net::{Net, Read};

/// TLS of every party. Made once: lengths do not depend on the keys, since Ed25519 has one length for everything.
pub struct Security {
    pub pop: Arc<TlsSettings>,
    pub gateway: Arc<TlsSettings>,
    pub mmtp_client: ClientSettings,
    pub tunnel_client: ClientSettings,
}

pub fn security() -> &'static Security {
    static SECURITY: OnceLock<Security> = OnceLock::new();
    SECURITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(SerialNumber::from(1));
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("entropy");
        let root = params.self_signed(&key).expect("self-signed").der().to_vec();
        let issuer = Issuer::new(params, key);
        let roots = || Roots::from_der(vec![root.clone()]).expect("just made");
        let sign = |name: &str, serial: u64| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.serial_number = Some(SerialNumber::from(serial));
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("entropy");
            let certificate = params.signed_by(&key, &issuer).expect("signed");
            Identity::from_der(vec![certificate.der().to_vec()], key.serialize_der()).expect("just made")
        };
        let (pop, gateway) = (sign("pop", 2), sign("gateway", 3));
        let server = |identity: &Identity, tunnels, client_auth| {
            let options = ServerOptions { tickets: 0, tunnels, client_auth, ..ServerOptions::new(identity.clone()) };
            ServerSettings::new(&options).expect("sound")
        };
        let client = |identity: Option<&Identity>, alpn: &[&[u8]]| {
            let alpn = alpn.iter().map(|name| name.to_vec()).collect();
            let options =
                ClientOptions { sessions: 0, identity: identity.cloned(), alpn, ..ClientOptions::new(roots()) };
            ClientSettings::new(&options).expect("sound")
        };
        let trunk = client(Some(&pop), &[b"mmtp/1"]);
        Security {
            pop: Arc::new(TlsSettings {
                listeners: vec![Some(server(&pop, true, ClientAuth::None))],
                gateways: vec![Some((trunk, "gateway".to_owned())); 2],
            }),
            gateway: Arc::new(TlsSettings {
                listeners: vec![Some(server(&gateway, false, ClientAuth::Required(roots())))],
                gateways: vec![],
            }),
            mmtp_client: client(None, &[b"mmtp/1"]),
            tunnel_client: client(None, &[]),
        }
    })
}

/// Plaintext on its way out.
#[derive(Default)]
pub struct Outbox {
    pub plain: Vec<u8>,
    put: u64,
}

const OUTBOX_BYTES: usize = 32 * 1024;

impl Sink for Outbox {
    fn room(&self) -> usize {
        OUTBOX_BYTES.saturating_sub(self.plain.len())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.put += bytes.len() as u64;
        self.plain.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.put
    }
}

/// How the far end of a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Far {
    Open,
    /// It said close_notify.
    Ended,
    /// The connection ended without one, or was reset, or TLS failed.
    Broken,
}

/// One client's TLS connection.
pub struct Secure {
    pub fd: Fd,
    session: Session,
    carry: Vec<u8>,
    pub out: Outbox,
    /// Sealed bytes that the socket has not taken.
    sealed: Vec<u8>,
    goodbye: bool,
    goodbye_sealed: bool,
    finished: bool,
    pub far: Far,
    /// Set when TLS itself failed: what it said.
    pub tls_error: Option<String>,
    /// After so many sealed bytes one is changed.
    pub corrupt_after: Option<usize>,
    sent_bytes: usize,
    /// While the handshake is not complete (see `doorman`): how much more early data the server takes.
    pub early_room: Option<usize>,
    /// What went out as early data.
    pub flight: Vec<u8>,
}

impl Secure {
    pub fn new(fd: Fd, settings: &ClientSettings) -> Secure {
        let mut sealed = Vec::new();
        let session = Session::client(settings, "pop", None, &mut sealed).expect("a name");
        Secure {
            fd,
            session,
            carry: Vec::new(),
            out: Outbox::default(),
            sealed,
            goodbye: false,
            goodbye_sealed: false,
            finished: false,
            far: Far::Open,
            tls_error: None,
            corrupt_after: None,
            sent_bytes: 0,
            early_room: None,
            flight: Vec::new(),
        }
    }

    /// Reads some of what has come; plaintext is handed to `take`. True when anything moved.
    pub fn read(&mut self, net: &mut Net, prng: &mut Prng, take: &mut dyn FnMut(&[u8])) -> bool {
        if self.far == Far::Broken {
            return false;
        }
        let most = if prng.chance(4) { 1 + prng.below(600) as usize } else { 32 * 1024 };
        match net.read(self.fd, most) {
            Read::Nothing => return false,
            Read::Reset => self.far = Far::Broken,
            Read::End => {
                if self.far == Far::Ended {
                    return false;
                }
                self.far = Far::Broken;
            }
            Read::Bytes(bytes) => {
                self.carry.extend_from_slice(&bytes);
                self.open_records(take);
            }
        }
        true
    }

    fn open_records(&mut self, take: &mut dyn FnMut(&[u8])) {
        let mut at = 0;
        while let Ok(Some(length)) = record_bytes(&self.carry[at..]) {
            if self.carry.len() - at < length {
                break;
            }
            match self.session.receive(&mut self.carry[at..at + length], &mut self.sealed) {
                Ok(Received::Data(bytes)) => take(bytes),
                Ok(Received::Hello | Received::Early(_)) => unreachable!("the far end is a client"),
                Ok(Received::Nothing | Received::Established(_)) => {}
                Ok(Received::CloseNotify) => self.far = Far::Ended,
                Err(error) => {
                    self.tls_error = Some(format!("{error:?}"));
                    self.far = Far::Broken;
                    break;
                }
            }
            at += length;
        }
        if let Err(error) = record_bytes(&self.carry[at..]) {
            self.tls_error = Some(format!("{error:?}"));
            self.far = Far::Broken;
        }
        self.carry.drain(..at);
    }

    /// The bytes that wait for the socket.
    pub fn take_sealed(self) -> Vec<u8> {
        self.sealed
    }

    /// Ends this direction once everything has gone.
    pub fn say_goodbye(&mut self) {
        self.goodbye = true;
    }

    /// Whether everything put, goodbye included, was taken by the socket.
    pub fn is_flushed(&self) -> bool {
        self.out.plain.is_empty() && self.sealed.is_empty() && (!self.goodbye || self.finished)
    }

    pub fn is_established(&self) -> bool {
        self.session.is_established()
    }

    /// Seals and writes what the socket takes. True when anything moved.
    pub fn write(&mut self, net: &mut Net, prng: &mut Prng) -> bool {
        if self.far == Far::Broken {
            return false;
        }
        if self.session.is_established() && !self.goodbye_sealed {
            while !self.out.plain.is_empty() && self.early_room != Some(0) {
                let most = if prng.chance(3) { 1 + prng.below(2000) as usize } else { PLAINTEXT_BYTES_MAX };
                let most = most.min(self.early_room.unwrap_or(PLAINTEXT_BYTES_MAX));
                let count = most.min(self.out.plain.len()).min(PLAINTEXT_BYTES_MAX);
                if let Some(room) = &mut self.early_room {
                    *room -= count;
                    self.flight.extend_from_slice(&self.out.plain[..count]);
                }
                let start = self.sealed.len();
                self.sealed.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
                self.sealed.extend(self.out.plain.drain(..count));
                self.session.seal(&mut self.sealed, start).expect("established and not said goodbye");
            }
            if self.goodbye && self.out.plain.is_empty() {
                self.session.put_close_notify(&mut self.sealed);
                self.goodbye_sealed = true;
            }
        }
        let mut moved = false;
        if !self.sealed.is_empty() {
            let mut sealed = std::mem::take(&mut self.sealed);
            if let Some(after) = self.corrupt_after
                && self.sent_bytes + sealed.len() > after
            {
                sealed[after.saturating_sub(self.sent_bytes)] ^= 0x55;
                self.corrupt_after = None;
            }
            match net.write(self.fd, &sealed) {
                Ok(count) => {
                    self.sent_bytes += count;
                    sealed.drain(..count);
                    moved = count > 0;
                }
                Err(_) => {
                    // What the peer sent before it broke off may still be unread.
                    sealed.clear();
                    if !net.is_readable(self.fd) {
                        self.far = Far::Broken;
                    }
                    moved = true;
                }
            }
            self.sealed = sealed;
        }
        if self.goodbye_sealed && self.sealed.is_empty() && !self.finished {
            net.finish(self.fd);
            self.finished = true;
            moved = true;
        }
        moved
    }
}
