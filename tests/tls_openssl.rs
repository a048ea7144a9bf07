//! TLS sessions of ours against programs that nobody here wrote: `openssl s_client`, `openssl s_server` and curl, over
//! loopback. A small blocking pump carries the records.

mod tls_support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tls_support::{Authority, NAME, Said, Signed, feed, seal};
use trunkline::base::wire::Protocol;
use trunkline::tls::{
    ClientAuth, ClientOptions, ClientSettings, Early, Identity, Roots, ServerOptions, ServerSettings, Session, Suite,
    TlsError,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a program may be made to print: several records, and less than a pipe holds, since it is read at the end.
const OUTPUT_BYTES: usize = 50_000;

/// A session of ours on a socket.
struct Connection {
    socket: TcpStream,
    session: Session,
    input: Vec<u8>,
    said: Said,
    is_over: bool,
}

impl Connection {
    fn accept(listener: &TcpListener, settings: &ServerSettings) -> Connection {
        let (socket, _) = listener.accept().unwrap();
        Connection::new(socket, Session::server(settings))
    }

    fn connect(port: u16, settings: &ClientSettings) -> Connection {
        let start = Instant::now();
        let mut socket = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(socket) => break socket,
                Err(error) => assert!(start.elapsed() < PATIENCE, "the server does not listen: {error}"),
            }
            sleep(Duration::from_millis(20));
        };
        let mut hello = Vec::new();
        let session = Session::client(settings, NAME, None, &mut hello).unwrap();
        socket.write_all(&hello).unwrap();
        Connection::new(socket, session)
    }

    fn new(socket: TcpStream, session: Session) -> Connection {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { socket, session, input: Vec::new(), said: Said::default(), is_over: false }
    }

    /// Reads and answers until `done`, an error, or the end of the stream.
    fn pump(&mut self, done: impl Fn(&Said) -> bool) {
        while !done(&self.said) && self.said.error.is_none() && !self.is_over {
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => self.is_over = true,
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) => panic!("nothing more came, after {:?}: {error}", self.said),
            }
            let mut out = Vec::new();
            self.said.merge(feed(&mut self.session, &mut self.input, &mut out));
            let _ = self.socket.write_all(&out); // the other side may be gone by now, which the next read tells
        }
    }

    fn expect_data(&mut self, expected: &[u8]) {
        self.pump(|said| said.data.len() >= expected.len());
        assert_eq!((self.said.error, &self.said.data[..]), (None, expected));
        self.said.data.clear();
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut out = Vec::new();
        for chunk in bytes.chunks(1 << 14) {
            seal(&mut self.session, chunk, &mut out).unwrap();
        }
        self.socket.write_all(&out).unwrap();
    }

    fn update_key(&mut self) {
        let mut out = Vec::new();
        self.session.put_key_update(&mut out).unwrap();
        self.socket.write_all(&out).unwrap();
    }

    fn close(mut self) -> Said {
        let mut out = Vec::new();
        self.session.put_close_notify(&mut out);
        let _ = self.socket.write_all(&out);
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        self.pump(|_| false);
        let _ = self.socket.read_to_end(&mut Vec::new()); // after an error, until the other side has read its alert
        self.said
    }
}

/// Files for programs that take nothing else. Gone with the value.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn new() -> Files {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("trunkline-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        Files { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn put(&self, name: &str, label: &str, der: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), pem(label, der)).unwrap();
        self.path(name)
    }

    fn put_root(&self, authority: &Authority) -> PathBuf {
        self.put("ca.pem", "CERTIFICATE", &authority.root_der)
    }

    fn put_signed(&self, signed: &Signed) -> (PathBuf, PathBuf) {
        let certificate = self.put("certificate.pem", "CERTIFICATE", &signed.certificate_der);
        (certificate, self.put("key.pem", "PRIVATE KEY", &signed.key_der))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().chain([&0, &0]).take(3).fold(0, |bits, &byte| bits << 8 | u32::from(byte));
            for place in 0..4 {
                let character = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63] as char;
                text.push(if place > group.len() { '=' } else { character });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// A program that is fed lines.
struct Program(Child);

impl Program {
    fn start(name: &str, arguments: &[&str]) -> Program {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Program(command.spawn().unwrap_or_else(|error| panic!("{name} is needed for this test: {error}")))
    }

    /// A line of its own: openssl looks for commands at the beginning of what one read gives it.
    fn type_line(&mut self, line: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
        sleep(Duration::from_millis(150));
    }

    fn finish(self) -> (String, String, bool) {
        let Output { status, stdout, stderr } = self.0.wait_with_output().unwrap();
        (String::from_utf8_lossy(&stdout).into(), String::from_utf8_lossy(&stderr).into(), status.success())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn s_client_talks_updates_keys_and_closes() {
    let authority = Authority::new();
    let files = Files::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let root = files.put_root(&authority);
    let (listener, address) = listen();
    let mut client = Program::start(
        "openssl",
        &[
            "s_client",
            "-connect",
            &address,
            "-CAfile",
            text(&root),
            "-servername",
            NAME,
            "-verify_hostname",
            NAME,
            "-verify_return_error",
            "-alpn",
            "mmtp/1",
            "-ciphersuites",
            "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
        ],
    );
    let mut ours = Connection::accept(&listener, &settings);
    ours.pump(|said| said.established.is_some());
    let established = ours.said.established.clone().unwrap();
    assert_eq!((established.protocol, established.suite), (Protocol::Mmtp, Suite::Aes128Gcm));
    assert_eq!(established.server_name.as_deref(), Some(NAME));
    client.type_line("first");
    ours.expect_data(b"first\n");
    ours.send(b"answer one\n");
    client.type_line("k"); // a KeyUpdate that asks for nothing
    client.type_line("second");
    ours.expect_data(b"second\n");
    client.type_line("K"); // one that asks for ours
    client.type_line("third");
    ours.expect_data(b"third\n");
    ours.send(b"answer two\n");
    ours.update_key();
    ours.send(b"answer three\n");
    client.type_line("fourth");
    ours.expect_data(b"fourth\n");
    client.type_line("Q");
    ours.pump(|said| said.closed);
    assert!(ours.said.closed);
    assert_eq!(ours.close().error, None);
    let (out, errors, _) = client.finish();
    for expected in ["answer one", "answer two", "answer three", "Verification: OK", "ALPN protocol: mmtp/1"] {
        assert!(out.contains(expected), "{expected} is missing: {out}{errors}");
    }
}

#[test]
fn s_client_resumes_and_reads_an_end_in_order() {
    let authority = Authority::new();
    let files = Files::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let root = files.put_root(&authority);
    let session = files.path("session.pem");
    for round in 0..3 {
        let (listener, address) = listen();
        let mut arguments =
            vec!["s_client", "-connect", &address, "-CAfile", text(&root), "-servername", NAME, "-alpn", "mmtp/1"];
        arguments.extend(["-sess_out", text(&session)]);
        if round > 0 {
            arguments.extend(["-sess_in", text(&session)]);
        }
        let mut client = Program::start("openssl", &arguments);
        let mut ours = Connection::accept(&listener, &settings);
        ours.pump(|said| said.established.is_some());
        assert_eq!(ours.said.established.as_ref().unwrap().resumed, round > 0);
        client.type_line("hello");
        ours.expect_data(b"hello\n");
        ours.send(&vec![b'z'; OUTPUT_BYTES]);
        let said = ours.close();
        assert_eq!((said.error, said.closed), (None, true));
        let (out, errors, _) = client.finish();
        assert!(out.contains(&"z".repeat(OUTPUT_BYTES)), "{errors}");
        assert!(out.contains(if round > 0 { "Reused, TLSv1.3" } else { "New, TLSv1.3" }), "{out}");
    }
}

#[test]
fn s_client_has_its_early_data_taken_once() {
    let authority = Authority::new();
    let files = Files::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let root = files.put_root(&authority);
    let session = files.path("session.pem");
    let early = files.path("early");
    std::fs::write(&early, b"early question").unwrap();
    for (round, used) in [("-sess_out", false), ("-sess_in", false), ("-sess_in", true)] {
        let (listener, address) = listen();
        let mut arguments =
            vec!["s_client", "-connect", &address, "-CAfile", text(&root), "-servername", NAME, "-alpn", "mmtp/1"];
        arguments.extend([round, text(&session)]);
        if round == "-sess_in" {
            arguments.extend(["-early_data", text(&early)]);
        }
        let mut client = Program::start("openssl", &arguments);
        let mut ours = Connection::accept(&listener, &settings);
        ours.pump(|said| said.established.is_some());
        let established = ours.said.established.clone().unwrap();
        let expected = match (round, used) {
            ("-sess_in", false) => (true, Early::Accepted, &b"early question"[..]),
            ("-sess_in", true) => (false, Early::Refused, &b""[..]),
            _ => (false, Early::NotOffered, &b""[..]),
        };
        assert_eq!((established.resumed, established.early, &ours.said.data[..]), expected);
        ours.said.data.clear();
        client.type_line("hello");
        ours.expect_data(b"hello\n");
        ours.send(b"welcome\n");
        assert_eq!(ours.close().error, None);
        let (out, errors, _) = client.finish();
        let told = ["Early data was not sent", "Early data was accepted", "Early data was rejected"];
        let told = told[usize::from(expected.1 != Early::NotOffered) + usize::from(used)];
        assert!(out.contains("welcome") && out.contains(told), "{out}{errors}");
    }
}

#[test]
fn s_client_sees_the_stapled_response() {
    const TRY_LATER: [u8; 5] = [0x30, 3, 0x0a, 1, 3]; // RFC 6960 4.2.1
    let authority = Authority::new();
    for stapled in [false, true] {
        let mut identity = authority.sign(NAME).identity();
        if stapled {
            identity = identity.with_ocsp(TRY_LATER.to_vec());
        }
        let settings = ServerSettings::new(&ServerOptions::new(identity)).unwrap();
        let (listener, address) = listen();
        let client = Program::start("openssl", &["s_client", "-connect", &address, "-alpn", "mmtp/1", "-status"]);
        let mut ours = Connection::accept(&listener, &settings);
        ours.pump(|said| said.established.is_some());
        ours.close();
        let (out, errors, _) = client.finish();
        let told = if stapled { "OCSP Response Status: trylater" } else { "OCSP response: no response sent" };
        assert!(out.contains(told), "{out}{errors}");
    }
}

#[test]
fn s_client_with_chacha_first_gets_it() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let (listener, address) = listen();
    let suites = "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256";
    let arguments = ["s_client", "-connect", &address, "-alpn", "mmtp/1", "-ciphersuites", suites];
    let client = Program::start("openssl", &arguments);
    let mut ours = Connection::accept(&listener, &settings);
    ours.pump(|said| said.established.is_some());
    assert_eq!(ours.said.established.as_ref().unwrap().suite, Suite::Chacha20Poly1305);
    ours.close();
    client.finish();
}

#[test]
fn s_client_is_told_why_it_is_refused() {
    let authority = Authority::new();
    let options = authority.server_options();
    let mutual = ServerOptions { client_auth: ClientAuth::Required(authority.roots()), ..authority.server_options() };
    for (options, arguments, error, told) in [
        (&options, &["-tls1_2"][..], TlsError::ProtocolVersion, "alert protocol version"),
        (&options, &["-tls1_3"], TlsError::NoApplicationProtocol, "no application protocol"),
        (&options, &["-alpn", "h2"], TlsError::NoApplicationProtocol, "no application protocol"),
        (&options, &["-alpn", "mmtp/1", "-groups", "X448"], TlsError::Incompatible(""), "handshake failure"),
        (
            &mutual,
            &["-alpn", "mmtp/1"],
            TlsError::Certificate(trunkline::tls::CertificateFault::Missing),
            "certificate required",
        ),
    ] {
        let (listener, address) = listen();
        let client = Program::start("openssl", &[&["s_client", "-connect", &address][..], arguments].concat());
        let mut ours = Connection::accept(&listener, &ServerSettings::new(options).unwrap());
        ours.pump(|_| false);
        let found = ours.said.error.unwrap();
        assert_eq!(found.alert(), error.alert(), "{found}");
        ours.close();
        let (_, errors, success) = client.finish();
        assert!(errors.contains(told) && !success, "{errors}");
    }
}

/// `openssl s_server`, which takes one connection.
fn s_server(files: &Files, signed: &Signed, arguments: &[&str]) -> (Program, u16) {
    let (certificate, key) = files.put_signed(signed);
    let port = listen().0.local_addr().unwrap().port(); // free again, and asked for at once
    let address = format!("127.0.0.1:{port}");
    let mut all = vec!["s_server", "-accept", &address, "-naccept", "1", "-cert", text(&certificate)];
    all.extend(["-key", text(&key)]);
    all.extend(arguments);
    (Program::start("openssl", &all), port)
}

#[test]
fn s_server_talks_updates_keys_and_verifies_us() {
    let authority = Authority::new();
    let files = Files::new();
    let root = files.put_root(&authority);
    let arguments = ["-alpn", "mmtp/1", "-CAfile", text(&root), "-Verify", "1", "-verify_return_error"];
    let (mut server, port) = s_server(&files, &authority.sign(NAME), &arguments);
    let shown = authority.sign("pop-1");
    // As an operator gives them: PEM.
    let certificate = pem("CERTIFICATE", &shown.certificate_der);
    let key = pem("PRIVATE KEY", &shown.key_der);
    let identity = Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let roots = Roots::from_pem(pem("CERTIFICATE", &authority.root_der).as_bytes()).unwrap();
    let options = ClientOptions { identity: Some(identity), ..ClientOptions::new(roots) };
    let mut ours = Connection::connect(port, &ClientSettings::new(&options).unwrap());
    ours.pump(|said| said.established.is_some());
    assert_eq!(ours.said.established.as_ref().unwrap().protocol, Protocol::Mmtp);
    ours.send(b"question one\n");
    server.type_line("first");
    ours.expect_data(b"first\n"); // and two tickets before it
    server.type_line("K");
    server.type_line("second");
    ours.expect_data(b"second\n");
    ours.send(b"question two\n");
    ours.update_key();
    ours.send(b"question three\n");
    server.type_line("k");
    server.type_line("third");
    ours.expect_data(b"third\n");
    let said = ours.close(); // which it answers with its own
    assert_eq!((said.error, said.closed), (None, true));
    let (out, errors, _) = server.finish();
    for expected in ["question one", "question two", "question three", "CN = rcgen self signed cert"] {
        assert!(out.contains(expected) || errors.contains(expected), "{expected} is missing: {out}{errors}");
    }
}

#[test]
fn s_server_without_tls_13_or_our_protocol_is_refused() {
    let authority = Authority::new();
    let files = Files::new();
    let settings = ClientSettings::new(&authority.client_options()).unwrap();
    for (arguments, error, told) in [
        (&["-tls1_2"][..], TlsError::PeerAlert(70), ""), // it refuses us: we offer nothing else
        (&[], TlsError::NoApplicationProtocol, "no application protocol"),
    ] {
        let (server, port) = s_server(&files, &authority.sign(NAME), arguments);
        let mut ours = Connection::connect(port, &settings);
        ours.pump(|_| false);
        assert_eq!(ours.said.error, Some(error));
        ours.close();
        let (_, errors, _) = server.finish();
        assert!(errors.contains(told), "{errors}");
    }
}

fn respond(ours: &mut Connection, body: &[u8]) {
    ours.pump(|said| said.data.ends_with(b"\r\n\r\n"));
    assert!(ours.said.data.starts_with(b"GET "), "{:?}", ours.said);
    ours.said.data.clear();
    ours.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    ours.send(body);
}

#[test]
fn curl_fetches_through_one_connection_and_another() {
    let authority = Authority::new();
    let files = Files::new();
    let root = files.put_root(&authority);
    let options = ServerOptions { tunnels: true, ..authority.server_options() };
    let settings = ServerSettings::new(&options).unwrap();
    let (listener, _) = listen();
    let url = format!("https://{NAME}:{}/", listener.local_addr().unwrap().port());
    let body = vec![b'y'; OUTPUT_BYTES];
    for _ in 0..2 {
        let client = Program::start("curl", &["-sS", "-4", "--noproxy", "*", "--cacert", text(&root), &url, &url]);
        let mut ours = Connection::accept(&listener, &settings);
        respond(&mut ours, &body);
        let established = ours.said.established.clone().unwrap();
        assert_eq!((established.protocol, established.alpn.as_deref()), (Protocol::Opaque, Some(&b"http/1.1"[..])));
        respond(&mut ours, b"again");
        ours.pump(|_| false);
        assert_eq!((ours.said.error, ours.said.closed), (None, true));
        let (out, errors, success) = client.finish();
        assert!(success, "{errors}");
        assert_eq!(out.len(), body.len() + 5);
    }
}

#[test]
fn curl_without_tls_is_recognised() {
    let authority = Authority::new();
    let settings = ServerSettings::new(&authority.server_options()).unwrap();
    let (listener, address) = listen();
    let client = Program::start("curl", &["-sS", "--noproxy", "*", &format!("http://{address}/")]);
    let mut ours = Connection::accept(&listener, &settings);
    ours.pump(|_| false);
    assert_eq!(ours.said.error, Some(TlsError::PlainHttp));
    drop(ours);
    assert!(!client.finish().2);
}
