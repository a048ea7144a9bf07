//! The demo's origin: a small HTTP/1.1 server on threads. Owns its listener and a thread per connection.
//!
//! Answers a request without a body with what it was asked, and echoes a body in the framing it came in. Stands in for a
//! real service and is made to be read, not to be fast. Invariant: a connection holds at most one head and one piece of
//! a body in memory, and no more than [`CONNECTIONS_MAX`] connections are served at a time.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::http::{BodyReader, HEAD_BYTES_MAX, Head, Refused, read_head};
use crate::gateway::http1::{BodyLength, BodyWriter, Piece};

/// Connections served at a time; more are closed at accept.
const CONNECTIONS_MAX: usize = 1024;

/// Stack of a connection's thread, in bytes: there may be many, and none goes deep.
const STACK_BYTES: usize = 256 * 1024;

/// How long a connection may be silent, or may not take what it asked for.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The origin, running.
pub(super) struct Origin {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Origin {
    /// Listens on a port of loopback that the kernel chooses.
    ///
    /// # Errors
    /// Those of bind(2), and of starting a thread.
    pub(super) fn start() -> io::Result<Origin> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let asked = stopping.clone();
        let thread = thread("origin").spawn(move || accept(&listener, &asked))?;
        Ok(Origin { address, stopping, thread })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes nothing new. Connections end when their peer closes them.
    pub(super) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the accept. Without a connection the thread cannot be told, and ends with the process.
        if TcpStream::connect(self.address).is_ok() {
            let _ = self.thread.join();
        }
    }
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES)
}

fn accept(listener: &TcpListener, stopping: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        match stream {
            Ok(stream) if open.load(Ordering::Relaxed) < CONNECTIONS_MAX => {
                let place = Place::take(&open);
                // Without a thread the connection is closed, like one too many.
                let _ = thread("origin-connection").spawn(move || {
                    let _place = place;
                    // A peer that breaks off is its own affair.
                    let _ = serve(stream);
                });
            }
            Ok(_) => {}
            // No descriptor is free: one will be when a connection ends.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A place among the [`CONNECTIONS_MAX`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Place {
        open.fetch_add(1, Ordering::Relaxed);
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection: its bytes that were received and not yet read.
struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut connection = Connection { stream, received: Vec::new() };
    while let Some(head) = connection.head()? {
        connection.answer(&head)?;
        if !head.keeps_alive {
            break;
        }
    }
    Ok(())
}

impl Connection {
    /// The next request; None when the peer has ended, or was refused.
    fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            match read_head(&self.received) {
                Ok(Some((head, length))) => {
                    self.received.drain(..length);
                    return Ok(Some(head));
                }
                Ok(None) if self.receive()? => {}
                Ok(None) => return Ok(None),
                Err(refused) => return self.refuse(refused).map(|()| None),
            }
        }
    }

    /// Waits for more bytes. False: there will be none.
    fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = [0; HEAD_BYTES_MAX];
        let count = self.stream.read(&mut chunk)?;
        self.received.extend_from_slice(&chunk[..count]);
        Ok(count > 0)
    }

    fn refuse(&mut self, refused: Refused) -> io::Result<()> {
        let status = refused.status();
        write!(self.stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }

    fn answer(&mut self, head: &Head) -> io::Result<()> {
        match head.body {
            BodyLength::None | BodyLength::Known(0) => self.tell(head),
            BodyLength::Known(_) | BodyLength::Chunked => self.echo(head),
        }
    }

    /// Answers with the request as it arrived here, so that one sees what the way has made of it.
    fn tell(&mut self, head: &Head) -> io::Result<()> {
        let mut text = format!("Hello from the origin. It was asked:\n\n{} {}\n", head.method, head.target);
        for (name, value) in &head.fields {
            text += &format!("{name}: {value}\n");
        }
        let mut out = response_head(head, "text/plain; charset=utf-8", BodyLength::Known(text.len() as u64));
        if head.method != "HEAD" {
            out.extend_from_slice(text.as_bytes());
        }
        self.stream.write_all(&out)
    }

    fn echo(&mut self, head: &Head) -> io::Result<()> {
        let (mut reader, mut writer) = (BodyReader::new(head.body), BodyWriter::new(head.body));
        if head.expects_continue {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut out = response_head(head, "application/octet-stream", head.body);
        loop {
            let mut input = self.received.as_slice();
            let is_ended = loop {
                let broken = |_| io::Error::from(io::ErrorKind::InvalidData);
                match reader.next(&mut input).map_err(broken)? {
                    Piece::Data(data) => writer.put(data, &mut out).map_err(|_| io::ErrorKind::InvalidData)?,
                    Piece::More => break false,
                    Piece::Ended => break true,
                }
            };
            let left = input.len();
            self.received.drain(..self.received.len() - left);
            if is_ended {
                writer.finish(&mut out).map_err(|_| io::ErrorKind::InvalidData)?;
                return self.stream.write_all(&out);
            }
            self.stream.write_all(&out)?;
            out.clear();
            if !self.receive()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn response_head(head: &Head, content_type: &str, body: BodyLength) -> Vec<u8> {
    let framing = match body {
        BodyLength::None => "content-length: 0".to_owned(),
        BodyLength::Known(bytes) => format!("content-length: {bytes}"),
        BodyLength::Chunked => "transfer-encoding: chunked".to_owned(),
    };
    let end = if head.keeps_alive { "" } else { "connection: close\r\n" };
    format!("HTTP/1.1 200 OK\r\nserver: trunkline-demo\r\ncontent-type: {content_type}\r\n{framing}\r\n{end}\r\n")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `request`, whole, and gives all that comes back.
    fn exchange(origin: &Origin, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(origin.address()).expect("it listens");
        stream.write_all(request).expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("connected");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        answer
    }

    #[test]
    fn requests_are_answered_one_after_another() {
        let origin = Origin::start().expect("loopback has a free port");
        let answer = exchange(
            &origin,
            b"GET /one HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
              POST /three HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n\
              HEAD /four HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4, "{answer}");
        for words in ["GET /one\nHost: a\n", "\r\n\r\nabcHTTP", "\r\n\r\n2\r\nde\r\n0\r\n\r\nHTTP", "connection: close"]
        {
            assert!(answer.contains(words), "{words}: {answer}");
        }
        assert!(answer.ends_with("\r\n\r\n"), "HEAD has no body: {answer}");
        origin.stop();
    }

    #[test]
    fn a_body_is_asked_for_when_the_request_waits_for_that() {
        let origin = Origin::start().expect("loopback has a free port");
        let answer = exchange(&origin, b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx");
        assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
        origin.stop();
    }

    #[test]
    fn hostile_connections_end_and_the_next_is_served() {
        let origin = Origin::start().expect("loopback has a free port");
        assert!(exchange(&origin, b"\x16\x03\x01\x02\x00").starts_with("HTTP/1.1 400 "));
        let twice = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(exchange(&origin, twice).starts_with("HTTP/1.1 400 "));
        assert_eq!(exchange(&origin, b"GET / HT"), "");
        assert!(!exchange(&origin, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc").contains("abcx"));
        assert!(exchange(&origin, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        origin.stop();
    }
}
