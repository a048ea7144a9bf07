//! One connection, blocking: from a source address of its own choice to an orderly end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Common;
use crate::speech::Speech;

/// Ends a connection that hangs.
const TIME_MAX: Duration = Duration::from_secs(15);

/// What a handshake was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Full,
    /// Full, after a HelloRetryRequest.
    Retried,
    /// Resumed; early data was neither offered nor allowed.
    Resumed,
    /// Resumed, and the request went as early data.
    Early,
    /// Early data was sent and refused, whatever the handshake was.
    Refused,
}

impl Kind {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Full => "full",
            Kind::Retried => "retried",
            Kind::Resumed => "resumed",
            Kind::Early => "early",
            Kind::Refused => "early_refused",
        }
    }
}

/// Lets the process have as many descriptors as the system allows.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it, connections fail later and say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A socket for `target`. On loopback the source address changes each time: ports of one address are 28 000, and each
/// rests for a minute after its connection.
pub fn socket(target: SocketAddr) -> io::Result<Socket> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if matches!(target.ip(), IpAddr::V4(address) if address.is_loopback()) {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let source = Ipv4Addr::new(127, 1, (count / 250 % 4) as u8, (count % 250 + 1) as u8);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    Ok(socket)
}

/// Connects, for at most [`TIME_MAX`].
pub fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target)?;
    socket.set_write_timeout(Some(TIME_MAX))?; // connect(2) keeps to it as well
    socket.set_read_timeout(Some(TIME_MAX))?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

/// A connection that is being set up, or is.
pub struct Connection {
    pub socket: TcpStream,
    pub session: ClientConnection,
    pub speech: Speech,
    offered_early: bool,
}

impl Connection {
    /// Before a byte is sent. With early data allowed and possible, the request goes into it. Gives the first flight.
    pub fn begin(
        common: &Common,
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        path: &str,
    ) -> io::Result<(Connection, Vec<u8>)> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut this = Connection { socket, session, speech: Speech::new(common.alpn), offered_early: false };
        if let Some(mut early) = this.session.early_data() {
            early.write_all(&this.speech.request(common, path)?)?;
            this.offered_early = true;
        }
        let mut flight = Vec::new();
        while this.session.wants_write() {
            this.session.write_tls(&mut flight)?;
        }
        Ok((this, flight))
    }

    /// After the first flight has been sent: completes the handshake.
    pub fn complete(&mut self) -> io::Result<Kind> {
        // With early data the answer may come first, but the kind is known only when the handshake is complete.
        while self.session.is_handshaking() {
            self.session.complete_io(&mut self.socket)?;
        }
        Ok(match self.session.handshake_kind() {
            _ if self.offered_early && !self.session.is_early_data_accepted() => Kind::Refused,
            Some(HandshakeKind::Resumed) if self.offered_early => Kind::Early,
            Some(HandshakeKind::Resumed) => Kind::Resumed,
            Some(HandshakeKind::FullWithHelloRetryRequest) => Kind::Retried,
            _ => Kind::Full,
        })
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, common: &Common, path: &str) -> io::Result<()> {
        let request = self.speech.request(common, path)?;
        self.session.writer().write_all(&request)?;
        self.answer()
    }

    /// Waits for the answer to what was sent.
    pub fn answer(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        loop {
            while self.session.wants_write() {
                self.session.write_tls(&mut self.socket)?;
            }
            match self.session.reader().read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    if self.speech.receive(&piece[..count])? {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.session.read_tls(&mut self.socket)?;
                    self.session.process_new_packets().map_err(io::Error::other)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The whole life of a newcomer up to its answer.
    pub fn visit(
        common: &Common,
        target: SocketAddr,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        path: &str,
    ) -> io::Result<(Connection, Kind)> {
        let (mut this, flight) = Connection::begin(common, connect(target)?, config, name, path)?;
        this.socket.write_all(&flight)?;
        let kind = this.complete()?;
        match kind {
            Kind::Early => this.answer()?,
            Kind::Refused => {
                this.speech = Speech::new(common.alpn); // nothing said early was heard
                this.ask(common, path)?;
            }
            Kind::Full | Kind::Retried | Kind::Resumed => this.ask(common, path)?,
        }
        Ok((this, kind))
    }

    /// Says goodbye and waits for the other end's.
    pub fn close(mut self) -> io::Result<()> {
        self.session.send_close_notify();
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        self.socket.shutdown(Shutdown::Write)?;
        // Tickets may come as late as this, when the answer came ahead of them.
        while self.session.read_tls(&mut self.socket)? > 0 {
            self.session.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }
}
