//! Clients that speak TLS and MMTP by hand, so that they can misbehave: rustls's buffered client below, MMTP frames of
//! the test's own above.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{
    Agent, Code, HeaderFlags, HeaderWriter, Known, Receipt, Settings, Side, StreamId, decode, encode,
};
use trunkline::tls::record_bytes;

use crate::harness::SOON;

/// A TLS client that can do with its connection what it likes.
pub struct Tls {
    session: ClientConnection,
    socket: TcpStream,
}

/// How the other end ended its direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// close_notify.
    Notified,
    /// FIN without close_notify.
    Cut,
    /// A reset, or an alert: something was lost or refused.
    Broken,
}

/// A client configuration that trusts the authority in a file.
pub fn trust(ca: &Path, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca).expect("the file exists");
    for certificate in certificates {
        roots.add(certificate.expect("a certificate")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder.expect("TLS 1.3 is there").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A session that shows a ticket, and its first flight with these bytes as early data.
pub fn early_flight(config: Arc<ClientConfig>, bytes: &[u8]) -> (ClientConnection, Vec<u8>) {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut session = ClientConnection::new(config, name).expect("a client");
    session.early_data().expect("a ticket that allows it").write_all(bytes).expect("it fits");
    let mut flight = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut flight).expect("memory");
    }
    (session, flight)
}

/// A TCP connection that gives up [`SOON`].
pub fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, SOON).expect("it listens");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    socket.set_write_timeout(Some(SOON)).expect("a timeout");
    socket.set_nodelay(true).expect("an option");
    socket
}

/// Closes a connection with a reset.
pub fn reset(socket: TcpStream) {
    let socket = socket2::Socket::from(socket);
    socket.set_linger(Some(Duration::ZERO)).expect("an option");
}

impl Tls {
    /// Connects and completes the handshake.
    pub fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Tls {
        Tls::over(connect(address), config).expect("the handshake succeeds")
    }

    /// Completes the handshake over a socket.
    pub fn over(socket: TcpStream, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(config, name).expect("a client");
        let mut tls = Tls { session, socket };
        while tls.session.is_handshaking() {
            tls.session.complete_io(&mut tls.socket)?;
        }
        Ok(tls)
    }

    /// Connects with a ticket that `config` holds, and these bytes as early data. Also gives the first flight, as it was
    /// sent.
    pub fn early(address: SocketAddr, config: Arc<ClientConfig>, bytes: &[u8]) -> (Tls, Vec<u8>) {
        let (session, flight) = early_flight(config, bytes);
        let mut tls = Tls { session, socket: connect(address) };
        tls.socket.write_all(&flight).expect("it is open");
        while tls.session.is_handshaking() {
            tls.session.complete_io(&mut tls.socket).expect("the handshake succeeds");
        }
        (tls, flight)
    }

    /// Whether a ticket spared the full handshake.
    pub fn is_resumed(&self) -> bool {
        self.session.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether early data was taken.
    pub fn is_early_accepted(&self) -> bool {
        self.session.is_early_data_accepted()
    }

    /// The protocol agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// The certificate that the server showed, DER.
    pub fn certificate(&self) -> Vec<u8> {
        self.session.peer_certificates().expect("a server shows one")[0].to_vec()
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // Piece by piece, so that rustls holds little.
        for piece in bytes.chunks(16 * 1024) {
            self.session.writer().write_all(piece)?;
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub fn half_close(&mut self) {
        self.session.send_close_notify();
        self.flush().expect("the other end reads");
        self.socket.shutdown(Shutdown::Write).expect("it is open");
    }

    /// The next bytes, or how the other end ended.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<usize, End> {
        loop {
            match self.session.reader().read(into) {
                Ok(0) => return Err(End::Notified),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(End::Cut),
                Err(_) => return Err(End::Broken),
            }
            match self.session.read_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing came for a long time"),
                Err(_) => return Err(End::Broken),
            }
            if self.session.process_new_packets().is_err() {
                let _ = self.flush();
                return Err(End::Broken);
            }
            if self.flush().is_err() {
                return Err(End::Broken);
            }
        }
    }

    /// Lengths of the records that bring application data, up to the one that brings these bytes last.
    pub fn record_lengths(&mut self, last: &[u8]) -> Vec<usize> {
        let (mut lengths, mut received, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let mut piece = vec![0; 64 * 1024];
        while !plain.ends_with(last) {
            let count = self.socket.read(&mut piece).expect("more is to come");
            assert_ne!(count, 0, "more is to come");
            received.extend_from_slice(&piece[..count]);
            while let Some(length) =
                record_bytes(&received).expect("records").filter(|length| *length <= received.len())
            {
                let mut record = &received[..length];
                while !record.is_empty() {
                    self.session.read_tls(&mut record).expect("memory"); // takes a part of a long one
                }
                let state = self.session.process_new_packets().expect("it is valid");
                let old_length = plain.len();
                plain.resize(old_length + state.plaintext_bytes_to_read(), 0);
                if plain.len() > old_length {
                    lengths.push(length);
                    self.session.reader().read_exact(&mut plain[old_length..]).expect("it is there");
                }
                received.drain(..length);
            }
        }
        lengths
    }

    /// Exactly so many bytes.
    pub fn receive_exact(&mut self, count: usize) -> Vec<u8> {
        let mut all = vec![0; count];
        let mut filled = 0;
        while filled < count {
            filled += self.receive(&mut all[filled..]).expect("more is to come");
        }
        all
    }

    /// All bytes up to the end, and what end it was.
    pub fn receive_all(&mut self) -> (Vec<u8>, End) {
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            match self.receive(&mut piece) {
                Ok(count) => all.extend_from_slice(&piece[..count]),
                Err(end) => return (all, end),
            }
        }
    }

    /// Says that nothing more will be sent, and leaves.
    pub fn close(mut self) {
        self.session.send_close_notify();
        // The other end may have left already.
        let _ = self.flush();
    }

    /// Ends the connection with FIN, without close_notify.
    pub fn cut(self) {
        self.socket.shutdown(Shutdown::Write).expect("it is open");
    }

    /// Drops the connection with a reset.
    pub fn reset(self) {
        reset(self.socket);
    }
}

/// What a POP said, of what the tests look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    Hello,
    /// Status of an answer, or of an interim one.
    Status(StreamId, u16),
    Data(StreamId, Vec<u8>, bool),
    Reset(StreamId, Code, Receipt),
    GoAway(Code),
    Credit,
    Other,
}

/// An MMTP client whose frames the test writes.
pub struct Mmtp {
    pub tls: Tls,
    received: Vec<u8>,
}

impl Mmtp {
    /// Connects without a word of MMTP.
    pub fn silent(address: SocketAddr, ca: &Path) -> Mmtp {
        Mmtp { tls: Tls::connect(address, trust(ca, &["mmtp/1"])), received: Vec::new() }
    }

    /// Connects and says HELLO.
    pub fn connect(address: SocketAddr, ca: &Path) -> Mmtp {
        Mmtp::over(Tls::connect(address, trust(ca, &["mmtp/1"])))
    }

    /// Says HELLO on a connection.
    pub fn over(tls: Tls) -> Mmtp {
        assert_eq!(tls.alpn(), Some(b"mmtp/1".as_slice()));
        let mut mmtp = Mmtp { tls, received: Vec::new() };
        mmtp.tls.send(&hello()).expect("it is open");
        mmtp
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        encode::put_frame(frame, &mut bytes);
        // A POP that has had enough may have gone.
        let _ = self.tls.send(&bytes);
    }

    /// Sends a request without a body.
    pub fn get(&mut self, stream: StreamId, service: &str, path: &str) {
        let block = block(service, "GET", path);
        self.send(Frame::Headers { stream, flags: HeaderFlags::END, block: &block });
    }

    /// The next thing said, or how the connection ended.
    pub fn said(&mut self) -> Result<Said, End> {
        loop {
            if let Some((frame, used)) = decode::frame(&self.received).expect("a POP keeps the rules") {
                let said = match frame {
                    Frame::Hello(_) => Said::Hello,
                    Frame::Headers { stream, block, .. } => {
                        let block = trunkline::mmtp::HeaderBlock::parse(block, trunkline::mmtp::Message::Answer);
                        Said::Status(stream, block.expect("valid").status().expect("answers have a status"))
                    }
                    Frame::Data { stream, end, bytes } => Said::Data(stream, bytes.to_vec(), end),
                    Frame::Reset { stream, code, receipt, .. } => Said::Reset(stream, code, receipt),
                    Frame::GoAway { code, .. } => Said::GoAway(code),
                    Frame::Credit { .. } => Said::Credit,
                    Frame::Ping { .. } | Frame::Other { .. } => Said::Other,
                };
                self.received.drain(..used);
                return Ok(said);
            }
            let mut piece = [0; 16 * 1024];
            let count = self.tls.receive(&mut piece)?;
            self.received.extend_from_slice(&piece[..count]);
        }
    }

    /// Waits for something to be said, whatever comes before.
    pub fn until(&mut self, what: &str, mut wanted: impl FnMut(&Said) -> bool) -> Said {
        loop {
            match self.said() {
                Ok(said) if wanted(&said) => return said,
                Ok(_) => {}
                Err(end) => panic!("the connection ended ({end:?}) before {what}"),
            }
        }
    }

    /// Everything said until the connection ended.
    pub fn rest(&mut self) -> (Vec<Said>, End) {
        let mut all = Vec::new();
        loop {
            match self.said() {
                Ok(said) => all.push(said),
                Err(end) => return (all, end),
            }
        }
    }

    /// Status and body of the answer on a stream.
    pub fn answer(&mut self, wanted: StreamId) -> (u16, Vec<u8>) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            match self.said() {
                Ok(Said::Status(stream, found)) if stream == wanted => status = found,
                Ok(Said::Data(stream, bytes, end)) if stream == wanted => {
                    body.extend_from_slice(&bytes);
                    if end {
                        return (status, body);
                    }
                }
                Ok(Said::Reset(stream, ..)) if stream == wanted => panic!("the stream was reset"),
                Ok(_) => {}
                Err(end) => panic!("the connection ended ({end:?})"),
            }
        }
    }
}

/// The HELLO of a well-behaved terminal, as a frame.
pub fn hello() -> Vec<u8> {
    let settings = Settings::new(Side::Initiator, Agent::Terminal);
    let mut connection = trunkline::mmtp::Connection::new(&settings, trunkline::base::time::Time::ZERO);
    let mut bytes = Vec::new();
    connection.start(&mut bytes);
    bytes
}

/// The block of a request.
pub fn block(service: &str, method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let mut writer = HeaderWriter::new(&mut block);
    writer.known(Known::Service, service.as_bytes()).expect("valid");
    writer.known(Known::Method, method.as_bytes()).expect("valid");
    writer.known(Known::Path, path.as_bytes()).expect("valid");
    block
}
