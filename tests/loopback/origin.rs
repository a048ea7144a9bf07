//! Servers behind the gateway: Debian's nginx, and scripted ones for what nginx never does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::{SOON, address};
use crate::support::{NGINX_HTTP_PATHS, Nginx};

/// nginx that serves files of `files/`, stores what is PUT under `/store/`, and says at `/who` what it was told.
pub fn nginx(files: &[(&str, &[u8])]) -> Nginx {
    Nginx::start(|address, scratch| {
        scratch.write("files/index.html", "hello from nginx\n");
        std::fs::create_dir(scratch.path().join("files/store")).expect("scratch is writable");
        for (name, content) in files {
            scratch.write(&format!("files/{name}"), content);
        }
        let root = scratch.path().join("files");
        format!(
            "http {{ {NGINX_HTTP_PATHS} keepalive_requests 100000; server {{ listen {address} backlog=4096;
                root {}; client_max_body_size 1g; default_type application/octet-stream; if_modified_since before;
                location /store/ {{ dav_methods PUT DELETE; create_full_put_path on; }}
                location /who {{ return 200 \"$http_x_forwarded_for|$http_x_forwarded_proto|$host|$http_x_app\\n\"; }}
                location /nothing {{ return 204; }}
            }} }}",
            root.display()
        )
    })
}

/// A server whose every connection is handled by one closure, on a thread of its own.
pub struct Scripted {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
}

impl Scripted {
    /// Starts one. `script` gets each connection and its number, from 0. A script that panics shows in the output and
    /// by the connection it drops.
    pub fn start(script: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Scripted {
        let address = address();
        let listener = TcpListener::bind(address).expect("the address was free a moment ago");
        let (accepted, stopping) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop, script) = (accepted.clone(), stopping.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let stream = stream.expect("loopback accepts");
                stream.set_read_timeout(Some(SOON)).expect("a timeout");
                stream.set_write_timeout(Some(SOON)).expect("a timeout");
                let number = count.fetch_add(1, Ordering::AcqRel);
                let script = script.clone();
                thread::spawn(move || script(stream, number));
            }
        });
        Scripted { address, accepted, stopping }
    }

    /// One whose every connection answers HTTP requests, one after the other.
    pub fn http(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Scripted {
        Scripted::start(move |stream, _| {
            let mut connection = Http::new(stream);
            while let Some(asked) = connection.asked() {
                connection.write(&answer(&asked));
            }
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Acquire)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

/// A request as the origin got it.
#[derive(Debug, Default)]
pub struct Asked {
    /// First line, without its end.
    pub line: String,
    /// Fields in order; names in lower case.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came in chunks.
    pub chunked: bool,
}

impl Asked {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// An HTTP/1.1 connection on the origin's side, as plain as can be.
pub struct Http {
    reader: BufReader<TcpStream>,
}

impl Http {
    pub fn new(stream: TcpStream) -> Http {
        Http { reader: BufReader::new(stream) }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).unwrap_or(0);
        (count > 0).then(|| line.strip_suffix("\r\n").expect("lines end with CRLF").to_owned())
    }

    /// The next request without its body; none when the connection has ended.
    pub fn head(&mut self) -> Option<Asked> {
        let mut asked = Asked { line: self.line()?, ..Asked::default() };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect("a field");
            asked.fields.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        asked.chunked = asked.field("transfer-encoding") == Some("chunked");
        Some(asked)
    }

    /// The next request; none when the connection has ended.
    pub fn asked(&mut self) -> Option<Asked> {
        let mut asked = self.head()?;
        if asked.chunked {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).expect("a chunk's size");
                let from = asked.body.len();
                asked.body.resize(from + size, 0);
                self.reader.read_exact(&mut asked.body[from..]).ok()?;
                assert_eq!(self.line()?, "");
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = asked.field("content-length") {
            asked.body = vec![0; length.parse().expect("a number")];
            self.reader.read_exact(&mut asked.body).ok()?;
        }
        Some(asked)
    }

    /// At most so many bytes of a body, as they come; none when the connection has ended.
    pub fn piece(&mut self, bytes_max: usize) -> Option<Vec<u8>> {
        let buffer = self.reader.fill_buf().ok()?;
        let piece = buffer[..buffer.len().min(bytes_max)].to_vec();
        self.reader.consume(piece.len());
        (!piece.is_empty()).then_some(piece)
    }

    /// Writes bytes as they are. The other side may be gone.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.reader.get_mut().write_all(bytes);
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}

/// A response with its length.
pub fn response(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{fields}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A response in chunks of so many bytes.
pub fn chunked(fields: &str, body: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut all = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{fields}\r\n").into_bytes();
    for chunk in body.chunks(chunk_bytes) {
        all.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        all.extend_from_slice(chunk);
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"0\r\n\r\n");
    all
}
