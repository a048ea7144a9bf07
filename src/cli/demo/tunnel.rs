//! A client that knows nothing of Trunkline: HTTP/1.1 over TLS, as a browser or curl would. Owns the rustls types of the
//! demo and one connection at a time.
//!
//! Invariant: an [`Answer`] is whole: the length it stated has come, and TLS was ended in order.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Longest wait for anything the other end has to do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// What came back, and what it took. `first_byte` and `total` count from the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) connect: Duration,
    pub(super) tls: Duration,
    pub(super) first_byte: Duration,
    pub(super) total: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum TunnelError {
    /// Connection, TLS, or an end in the middle.
    Io(&'static str, io::Error),
    /// The root, the name or the settings cannot be used.
    Tls(rustls::Error),
    /// What came is not one whole HTTP/1.1 answer.
    NotHttp,
}

impl fmt::Display for TunnelError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TunnelError::Io(doing, error) => write!(out, "{doing}: {error}"),
            TunnelError::Tls(error) => error.fmt(out),
            TunnelError::NotHttp => out.write_str("what came back is not a whole HTTP/1.1 answer"),
        }
    }
}

impl From<rustls::Error> for TunnelError {
    fn from(error: rustls::Error) -> TunnelError {
        TunnelError::Tls(error)
    }
}

/// Gets `path` from `address`, whose certificate must be for that IP and come from the authority `root` (DER).
///
/// # Errors
/// There was no whole answer.
pub(super) fn get(address: SocketAddr, root: Vec<u8>, path: &str) -> Result<Answer, TunnelError> {
    let config = Arc::new(config(root)?);
    let started = Instant::now();
    let socket = connect(address).map_err(|error| TunnelError::Io("connecting", error))?;
    let connect = started.elapsed();
    let session = ClientConnection::new(config, ServerName::from(address.ip()))?;
    let mut stream = StreamOwned::new(session, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| TunnelError::Io("the TLS handshake", error))?;
    }
    let tls = started.elapsed() - connect;
    let sent = write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    sent.and_then(|()| stream.flush()).map_err(|error| TunnelError::Io("sending", error))?;
    let mut bytes = vec![0; 16 * 1024];
    let count = stream.read(&mut bytes).map_err(|error| TunnelError::Io("waiting for the answer", error))?;
    let first_byte = started.elapsed();
    bytes.truncate(count);
    // Without close_notify rustls makes this an error, so the end is a true one.
    let rest = Read::take(&mut stream, ANSWER_BYTES_MAX).read_to_end(&mut bytes);
    rest.map_err(|error| TunnelError::Io("reading the answer", error))?;
    let total = started.elapsed();
    let (status, body) = parse(&bytes).ok_or(TunnelError::NotHttp)?;
    Ok(Answer { status, body, connect, tls, first_byte, total })
}

fn config(root: Vec<u8>) -> Result<ClientConfig, TunnelError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(root))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Status and body of an answer that states its length.
fn parse(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head_bytes) = response.parse(bytes).ok()? else { return None };
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"))?;
    let length: usize = std::str::from_utf8(length.value).ok()?.parse().ok()?;
    let body = bytes.get(head_bytes..)?;
    (body.len() == length).then(|| (response.code.unwrap_or_default(), body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(parse(whole), Some((200, b"ab".to_vec())));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\nab"), None);
        assert_eq!(parse(b"SSH-2.0\r\n\r\n"), None);
    }
}
