//! The HTTP/1.1 codec against servers that are not ours: Debian's nginx, and scripted ones for what nginx never sends.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use support::{NGINX_HTTP_PATHS, Nginx};
use trunkline::gateway::http1::{
    BodyLength, BodyWriter, RequestHead, ResponseBody, ResponseError, ResponseEvent, ResponseReader, write_request_head,
};

type Field<'a> = (&'a str, &'a str);

/// A whole response.
#[derive(Debug, Default)]
struct Answer {
    interim: Vec<u16>,
    status: u16,
    content_length: Option<u64>,
    framing: Option<ResponseBody>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    reusable: bool,
    trailers: u32,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        str::from_utf8(value).ok()
    }

    fn take(&mut self, event: ResponseEvent<'_>) {
        match event {
            ResponseEvent::Interim { status, .. } => self.interim.push(status),
            ResponseEvent::Head { status, content_length, body, fields } => {
                self.status = status;
                self.content_length = content_length;
                self.framing = Some(body);
                self.fields =
                    fields.map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec())).collect();
            }
            ResponseEvent::Body(data) => self.body.extend_from_slice(data),
            ResponseEvent::End { reusable, trailers } => {
                self.reusable = reusable;
                self.trailers = trailers;
            }
        }
    }
}

/// One connection on which requests follow each other.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("the time is not zero");
        Client { stream }
    }

    fn get(&mut self, path: &str, fields: &[Field]) -> Answer {
        self.send("GET", path, fields, BodyLength::None, &[]);
        self.read(false).expect("a right answer")
    }

    fn send(&mut self, method: &str, path: &str, fields: &[Field], body: BodyLength, parts: &[&[u8]]) {
        let mut out = format_head(method, path, fields, body);
        let mut writer = BodyWriter::new(body);
        for part in parts {
            writer.put(part, &mut out).expect("the test keeps its own length");
        }
        writer.finish(&mut out).expect("the test keeps its own length");
        self.stream.write_all(&out).expect("the server reads");
    }

    fn read(&mut self, method_is_head: bool) -> Result<Answer, ResponseError> {
        let mut reader = ResponseReader::new(method_is_head);
        let mut answer = Answer::default();
        // A size that cuts lines, chunks and heads anywhere.
        let mut buffer = [0; 1009];
        while !reader.has_ended() {
            let count = self.stream.read(&mut buffer).expect("the server answers in time");
            if count == 0 {
                if let Some(event) = reader.eof()? {
                    answer.take(event);
                }
                break;
            }
            let mut input = &buffer[..count];
            while let Some(event) = reader.receive(&mut input)? {
                answer.take(event);
            }
        }
        Ok(answer)
    }
}

fn format_head(method: &str, path: &str, fields: &[Field], body: BodyLength) -> Vec<u8> {
    let head = RequestHead {
        method: method.as_bytes(),
        path: path.as_bytes(),
        authority: b"localhost",
        fields: fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        body,
    };
    let mut out = Vec::new();
    write_request_head(&mut out, &head).expect("the test asks for something valid");
    out
}

/// Bytes that repeat in no obvious period.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

const LARGE_BYTES: usize = 1024 * 1024;

fn start_nginx() -> Nginx {
    Nginx::start(|address, scratch| {
        scratch.write("www/small.txt", "small\n");
        scratch.write("www/large.bin", pattern(LARGE_BYTES));
        scratch.write("www/filtered/large.bin", pattern(LARGE_BYTES));
        scratch.write("www/endless/large.bin", pattern(LARGE_BYTES));
        scratch.write("www/upload/kept.txt", "kept\n");
        // A filter that may change the length makes nginx forget it: chunked, or until close where that is off.
        let filter = "sub_filter_types *; sub_filter_once off; sub_filter 'nowhere in the pattern' 'x';";
        format!(
            "http {{ {NGINX_HTTP_PATHS} default_type text/plain;
                server {{
                    listen {address}; root www;
                    location /filtered/ {{ {filter} }}
                    location /endless/ {{ {filter} chunked_transfer_encoding off; }}
                    location /upload/ {{ dav_methods PUT DELETE; client_max_body_size 0; }}
                    location /limited/ {{ dav_methods PUT; client_max_body_size 10; }}
                    location /empty {{ return 204; }}
                    location /last {{ keepalive_timeout 0; return 200 last; }}
                }}
            }}"
        )
    })
}

#[test]
fn one_connection_carries_every_kind_of_response() {
    let nginx = start_nginx();
    let mut client = Client::connect(nginx.address());

    let small = client.get("/small.txt", &[("accept", "*/*")]);
    assert_eq!((small.status, &small.body[..]), (200, &b"small\n"[..]));
    assert_eq!((small.content_length, small.framing), (Some(6), Some(ResponseBody::Known(6))));
    assert!(small.reusable);
    assert!(small.field("server").is_some_and(|value| value.starts_with("nginx")));
    assert_eq!(small.field("connection"), None, "nginx sends it, and it goes no further");
    assert_eq!(small.field("content-length"), None, "it is told apart");

    let large = client.get("/large.bin", &[]);
    assert_eq!((large.status, large.framing), (200, Some(ResponseBody::Known(LARGE_BYTES as u64))));
    assert!(large.body == pattern(LARGE_BYTES) && large.reusable);

    let filtered = client.get("/filtered/large.bin", &[]);
    assert_eq!((filtered.status, filtered.framing), (200, Some(ResponseBody::Chunked)));
    assert!(filtered.body == pattern(LARGE_BYTES) && filtered.reusable);

    client.send("HEAD", "/large.bin", &[], BodyLength::None, &[]);
    let head = client.read(true).expect("a right answer");
    assert_eq!((head.status, head.content_length), (200, Some(LARGE_BYTES as u64)));
    assert!(head.body.is_empty() && head.reusable);

    let etag = small.field("etag").expect("nginx tags files");
    let unchanged = client.get("/small.txt", &[("if-none-match", etag)]);
    assert_eq!((unchanged.status, unchanged.framing), (304, Some(ResponseBody::Empty)));
    assert!(unchanged.body.is_empty() && unchanged.reusable);

    let empty = client.get("/empty", &[]);
    assert_eq!((empty.status, empty.framing, empty.reusable), (204, Some(ResponseBody::Empty), true));

    client.send("OPTIONS", "*", &[], BodyLength::None, &[]);
    assert_eq!(client.read(false).expect("a right answer").status, 400, "nginx does not know it, but it answers");
}

#[test]
fn requests_carry_bodies() {
    let nginx = start_nginx();
    let mut client = Client::connect(nginx.address());
    let content = pattern(100_000);
    let parts: Vec<&[u8]> = content.chunks(7777).collect();

    client.send("PUT", "/upload/chunked.bin", &[], BodyLength::Chunked, &parts);
    let made = client.read(false).expect("a right answer");
    assert_eq!((made.status, made.reusable), (201, true));
    assert!(nginx.scratch().read("www/upload/chunked.bin") == content);

    client.send("PUT", "/upload/counted.bin", &[], BodyLength::Known(content.len() as u64), &parts);
    assert_eq!(client.read(false).expect("a right answer").status, 201);
    assert!(nginx.scratch().read("www/upload/counted.bin") == content);

    client.send("PUT", "/upload/empty.bin", &[], BodyLength::None, &[]);
    assert_eq!(client.read(false).expect("a right answer").status, 201);
    assert!(nginx.scratch().read("www/upload/empty.bin").is_empty());

    client.send("PUT", "/upload/continued.txt", &[("expect", "100-continue")], BodyLength::Known(2), &[b"ok"]);
    let continued = client.read(false).expect("a right answer");
    assert_eq!((&continued.interim[..], continued.status), (&[100][..], 201));

    client.send("DELETE", "/upload/kept.txt", &[], BodyLength::None, &[]);
    assert_eq!(client.read(false).expect("a right answer").status, 204);
}

#[test]
fn an_answer_may_come_before_the_request_is_whole() {
    let nginx = start_nginx();
    let mut client = Client::connect(nginx.address());
    let head = format_head("PUT", "/limited/large.bin", &[], BodyLength::Known(LARGE_BYTES as u64));
    client.stream.write_all(&head).expect("the server reads");
    let early = client.read(false).expect("a right answer");
    assert_eq!((early.status, early.reusable), (413, false));
}

#[test]
fn nginx_says_when_a_connection_ends() {
    let nginx = start_nginx();
    let last = Client::connect(nginx.address()).get("/last", &[]);
    assert_eq!((last.status, &last.body[..], last.reusable), (200, &b"last"[..], false));

    let endless = Client::connect(nginx.address()).get("/endless/large.bin", &[]);
    assert_eq!((endless.status, endless.framing), (200, Some(ResponseBody::UntilClose)));
    assert!(endless.body == pattern(LARGE_BYTES) && !endless.reusable);
}

/// Answers one connection with `answer`, in pieces with pauses between them, after the first bytes of a request came.
fn serve_script(pieces: Vec<&'static [u8]>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let address = listener.local_addr().expect("a bound socket has an address");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the test connects");
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).expect("the test sends") > 0);
        for piece in pieces {
            stream.write_all(piece).expect("the test reads");
            thread::sleep(Duration::from_millis(20));
        }
        stream.shutdown(Shutdown::Write).expect("the test is still there");
    });
    (address, server)
}

fn ask_script(pieces: Vec<&'static [u8]>) -> Result<Answer, ResponseError> {
    let (address, server) = serve_script(pieces);
    let mut client = Client::connect(address);
    client.send("GET", "/", &[], BodyLength::None, &[]);
    let answer = client.read(false);
    server.join().expect("the script runs to its end");
    answer
}

#[test]
fn interim_responses_come_unasked() {
    let answer = ask_script(vec![
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Proc",
        b"essing\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"0\r\nDigest: x\r\n\r\n",
    ])
    .expect("a right answer");
    assert_eq!((&answer.interim[..], answer.status, &answer.body[..]), (&[103, 102][..], 200, &b"ok"[..]));
    assert_eq!((answer.reusable, answer.trailers), (true, 1));
}

#[test]
fn what_comes_behind_a_response_spoils_the_connection() {
    let answer = ask_script(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"]);
    let answer = answer.expect_err("it comes in the same piece");
    assert_eq!(answer, ResponseError::ExtraBytes);
}

#[test]
fn nonsense_is_told_from_silence() {
    let of = |pieces| ask_script(pieces).expect_err("no right answer");
    assert_eq!(of(vec![]), ResponseError::ClosedBeforeResponse);
    assert_eq!(of(vec![b"SSH-2.0-OpenSSH\r\n"]), ResponseError::NotHttp);
    assert_eq!(of(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"]), ResponseError::ClosedWithinResponse);
    assert_eq!(of(vec![b"HTTP/1.1 200 OK\r\nContent-Le"]), ResponseError::ClosedWithinResponse);
}
