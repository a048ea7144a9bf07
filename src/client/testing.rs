//! For tests: a server that does what each test says, over blocking sockets, rustls and the accepting side of MMTP.
//! Shares no code with the client but MMTP itself.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls::{ServerConfig, ServerConnection};

use crate::base::time::Time;
use crate::mmtp::{
    Agent, Code, Connection, Event, HeaderFlags, HeaderWriter, Known, Receipt, Reset, Settings, Side, StreamId,
};

use super::Url;

/// What a CA made here signs, and the CA itself.
pub(crate) struct Identity {
    pub(crate) ca_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

pub(crate) fn new_identity(name: &str) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&ca_key).expect("a certificate");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).expect("valid names");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    Identity { ca_pem: ca.pem(), chain: vec![leaf.der().clone()], key: key.serialize_der() }
}

pub(crate) fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| new_identity("localhost"))
}

pub(crate) fn server_config(alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(identity().key.clone()).expect("a PKCS #8 key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(identity().chain.clone(), key)
        .expect("the key fits");
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// The same, for several connections: with a store of tickets that allow early data. To take it is another matter.
pub(crate) fn resuming(store: &Arc<dyn StoresServerSessions>, takes_early_data: bool) -> Arc<ServerConfig> {
    let mut config = ServerConfig::clone(&server_config(&[b"mmtp/1"]));
    config.session_storage = store.clone();
    config.max_early_data_size = if takes_early_data { 16_384 } else { 0 };
    Arc::new(config)
}

/// A store of tickets.
pub(crate) fn ticket_store() -> Arc<dyn StoresServerSessions> {
    ServerSessionMemoryCache::new(256)
}

/// An event that does not borrow.
#[derive(Debug)]
pub(crate) enum Got {
    Headers { stream: StreamId, path: String, end: bool },
    Data { stream: StreamId, bytes: Vec<u8>, end: bool },
    Reset { code: Code },
    Other,
}

/// The server's end of one connection.
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    tls: ServerConnection,
    pub(crate) mmtp: Connection,
    pub(crate) out: Vec<u8>,
    input: Vec<u8>,
    origin: Instant,
    /// Bytes that came as early data.
    pub(crate) early_bytes: usize,
}

impl Peer {
    /// Handshakes; None when the client goes away meanwhile.
    pub(crate) fn accept(socket: TcpStream, alpn: &[&[u8]]) -> Option<Peer> {
        Peer::accept_as(socket, server_config(alpn))
    }

    /// Handshakes with this configuration.
    pub(crate) fn accept_as(socket: TcpStream, config: Arc<ServerConfig>) -> Option<Peer> {
        let mut tls = ServerConnection::new(config).expect("a valid configuration");
        tls.set_buffer_limit(None);
        socket.set_nodelay(true).ok()?;
        let mut stream = &socket;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).ok()?;
        }
        let mut input = Vec::new();
        if let Some(mut early) = tls.early_data() {
            early.read_to_end(&mut input).ok()?;
        }
        let mut settings = Settings::new(Side::Acceptor, Agent::Pop);
        settings.streams_max = 100;
        settings.heartbeat.0 = std::time::Duration::from_millis(10);
        let mmtp = Connection::new(&settings, Time::ZERO);
        let (early_bytes, out) = (input.len(), Vec::new());
        Some(Peer { socket, tls, mmtp, out, input, origin: Instant::now(), early_bytes })
    }

    /// Handshakes with this configuration, and begins MMTP.
    pub(crate) fn mmtp_as(socket: TcpStream, config: Arc<ServerConfig>) -> Option<Peer> {
        let mut peer = Peer::accept_as(socket, config)?;
        peer.mmtp.start(&mut peer.out);
        peer.flush();
        Some(peer)
    }

    pub(crate) fn mmtp(socket: TcpStream) -> Option<Peer> {
        let mut peer = Peer::accept(socket, &[b"mmtp/1"])?;
        peer.mmtp.start(&mut peer.out);
        peer.flush();
        Some(peer)
    }

    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    pub(crate) fn flush(&mut self) {
        self.mmtp.drain(&mut self.out, |_, _, _| {});
        let out = std::mem::take(&mut self.out);
        self.send_raw(&out);
    }

    /// Sends bytes that need not be MMTP.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).expect("no limit");
        while self.tls.wants_write() && self.tls.write_tls(&mut self.socket).is_ok() {}
    }

    /// The next event, after sending what is due; None at the end.
    pub(crate) fn next(&mut self) -> Option<Got> {
        loop {
            let now = self.now();
            let mut input = &self.input[..];
            let before = input.len();
            let got = match self.mmtp.receive(now, &mut input) {
                Ok(None) => None,
                Ok(Some(Event::Headers { stream, block, flags, .. })) => {
                    let path = String::from_utf8_lossy(block.get(Known::Path).unwrap_or(b"")).into_owned();
                    Some(Got::Headers { stream, path, end: flags.end() })
                }
                Ok(Some(Event::Data { stream, bytes, end, .. })) => {
                    Some(Got::Data { stream, bytes: bytes.to_vec(), end })
                }
                Ok(Some(Event::Reset { code, .. })) => Some(Got::Reset { code }),
                Ok(Some(_)) => Some(Got::Other),
                Err(error) => panic!("the client broke a rule: {error}"),
            };
            let used = before - input.len();
            self.input.drain(..used);
            match got {
                Some(got) => return Some(got),
                None => {
                    self.flush();
                    self.fill()?;
                }
            }
        }
    }

    pub(crate) fn fill(&mut self) -> Option<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.tls.reader().read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    return Some(());
                }
                Err(_) => {
                    if self.tls.read_tls(&mut self.socket).ok()? == 0 {
                        return None;
                    }
                    self.tls.process_new_packets().ok()?;
                }
            }
        }
    }

    /// Waits for a request's HEADERS.
    pub(crate) fn request(&mut self) -> Option<(StreamId, String)> {
        loop {
            if let Got::Headers { stream, path, .. } = self.next()? {
                return Some((stream, path));
            }
        }
    }

    pub(crate) fn head(&mut self, stream: StreamId, status: u16, end: bool) {
        let mut block = Vec::new();
        let mut writer = HeaderWriter::new(&mut block);
        writer.number(Known::Status, u64::from(status)).expect("a status");
        if status >= 200 {
            writer.http(b"x-served-by", b"test").expect("a field");
        }
        let flags = if end { HeaderFlags::END } else { HeaderFlags::NONE };
        self.mmtp.send_headers(stream, &block, flags, &mut self.out).expect("an open stream");
    }

    pub(crate) fn answer(&mut self, stream: StreamId, status: u16, body: &[u8]) {
        self.head(stream, status, body.is_empty());
        if !body.is_empty() {
            self.mmtp.send_data(stream, body, true, &mut self.out).expect("an open stream");
        }
        self.flush();
    }

    pub(crate) fn reset(&mut self, stream: StreamId, receipt: Receipt, wait_ms: u32) {
        self.reset_as(stream, Code::OVERLOADED, receipt, wait_ms);
    }

    pub(crate) fn reset_as(&mut self, stream: StreamId, code: Code, receipt: Receipt, wait_ms: u32) {
        self.mmtp.reset(stream, Reset { code, receipt, wait_ms }, &mut self.out);
        self.flush();
    }

    pub(crate) fn consumed(&mut self, stream: StreamId, bytes: usize) {
        let now = self.now();
        self.mmtp.consumed(now, stream, bytes, &mut self.out);
    }

    /// Serves until the client goes: `/size/N` gives N bytes, `/echo` gives back what came, anything else its own path.
    pub(crate) fn serve(mut self) {
        let mut echoes = HashSet::new();
        while let Some(got) = self.next() {
            match got {
                Got::Headers { stream, path, end, .. } => match path.strip_prefix("/size/") {
                    Some(size) => {
                        let body = pattern(size.parse().expect("a number"));
                        self.answer(stream, 200, &body);
                    }
                    None if path == "/echo" => {
                        self.head(stream, 200, end);
                        echoes.insert(stream);
                    }
                    None => self.answer(stream, 200, path.as_bytes()),
                },
                Got::Data { stream, bytes, end } => {
                    self.consumed(stream, bytes.len());
                    if echoes.contains(&stream) {
                        let _ = self.mmtp.send_data(stream, &bytes, end, &mut self.out);
                    }
                }
                Got::Reset { .. } | Got::Other => {}
            }
        }
    }

    /// Reads until the client goes, to see what it says at last.
    pub(crate) fn until_reset(&mut self) -> Option<Code> {
        loop {
            if let Got::Reset { code, .. } = self.next()? {
                return Some(code);
            }
        }
    }
}

pub(crate) fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// A listener whose connections are handled one thread each; ends with the process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// `handle` gets each connection with its number.
    pub(crate) fn new(handle: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, handle) = (accepted.clone(), Arc::new(handle));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let handle = handle.clone();
                std::thread::spawn(move || handle(number, socket));
            }
        });
        Server { address, accepted }
    }

    pub(crate) fn serving() -> Server {
        Server::new(|_, socket| {
            if let Some(peer) = Peer::mmtp(socket) {
                peer.serve();
            }
        })
    }

    /// A server for one conversation on each connection, over MMTP.
    pub(crate) fn talking(talk: impl Fn(Peer) + Send + Sync + 'static) -> Server {
        Server::new(move |_, socket| {
            if let Some(peer) = Peer::mmtp(socket) {
                talk(peer);
            }
        })
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("mmtp://localhost:{}/pay{path}", self.address.port())).expect("valid")
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}
