//! `trunkline call`: one request over `mmtp://` from the command line, or many equal ones. Owns the translation between
//! flags and a [`Request`], and what goes to which output; never speaks the protocol itself.
//!
//! Standard output carries the body and nothing else. Standard error carries one line per failure and, when asked for,
//! the report as one line of JSON. Exit code: 0 an answer, whatever its status; 1 refused or failed; 2 not usable as
//! given.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{
    BuildError, Call, CallError, Client, Failure, PRIORITY_DEFAULT, Receipt, Report, Request, TIMEOUT_DEFAULT, Url,
};

/// Bytes read from a file or written to standard output at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Largest body that repeated calls compare, in bytes: each is held whole.
const COMPARED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most calls outstanding at once.
const OUTSTANDING_MAX: u32 = 10_000;

/// What `trunkline call` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct CallArgs {
    /// Method; GET unless given, POST with --data
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    pub method: Option<String>,

    /// Header field; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,

    /// Body: the text itself, @FILE for a file, @- for standard input
    #[arg(short = 'd', long = "data", value_name = "DATA|@FILE|@-")]
    pub data: Option<String>,

    /// Certificates to trust, PEM; the system's unless given
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Urgency, 0 (a payment) to 7 (prefetch)
    #[arg(long, value_name = "N", default_value_t = PRIORITY_DEFAULT,
        value_parser = clap::value_parser!(u8).range(0..=7))]
    pub priority: u8,

    /// Time for the whole call: 250ms, 5s, 2m; 0 for no limit [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,

    /// Request id, by which it is known again when it is sent again
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,

    /// Say that it does no harm when an attacker sends it a second time: it may go out as early data, before the server
    /// has answered
    #[arg(long)]
    pub early: bool,

    /// Keep session tickets in a file, so that the next call resumes; made with mode 0600
    #[arg(long, value_name = "FILE")]
    pub tickets: Option<PathBuf>,

    /// Write what the call took to standard error
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub report: Option<ReportFormat>,

    /// Make the same call so many times over one connection; the body is printed once, and any that differs is a
    /// failure
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: Option<u32>,

    /// With --repeat: calls under way at once
    #[arg(long, value_name = "COUNT", default_value_t = 1, requires = "repeat",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(OUTSTANDING_MAX)))]
    pub outstanding: u32,

    /// mmtp://HOST:PORT/SERVICE/PATH
    #[arg(value_name = "URL")]
    pub url: String,
}

/// How the report is written.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReportFormat {
    /// One line of JSON.
    Json,
}

/// Why the command does not exit with 0.
#[derive(Debug)]
enum Fault {
    /// What was asked for cannot be done as given.
    Usage(String),
    /// The call failed, or what came could not be used.
    Failed(String),
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Fault {
        match error.failure() {
            Failure::Request(why) => Fault::Usage(why.to_string()),
            _ => Fault::Failed(error.to_string()),
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: CallArgs) -> ExitCode {
    match execute(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fault::Failed(message)) => {
            eprintln!("trunkline call: {message}");
            ExitCode::from(1)
        }
        Err(Fault::Usage(message)) => {
            eprintln!("trunkline call: {message}");
            ExitCode::from(2)
        }
    }
}

fn execute(args: &CallArgs) -> Result<(), Fault> {
    let request = request(args)?;
    let body = Source::of(args.data.as_deref())?;
    let client = client(args.ca.as_deref(), args.tickets.as_deref())?;
    let result = match args.repeat {
        None => once(&client, request, body, args.report),
        Some(count) => {
            let request = request.body(body.whole()?);
            repeat(&client, &request, count, args.outstanding, args.report)
        }
    };
    if let Some(notice) = client.tickets_notice() {
        eprintln!("trunkline call: {notice}");
    }
    result
}

fn request(args: &CallArgs) -> Result<Request, Fault> {
    let url = Url::parse(&args.url).map_err(|error| Fault::Usage(format!("{}: {error}", args.url)))?;
    let method = args.method.as_deref().unwrap_or(if args.data.is_some() { "POST" } else { "GET" });
    let mut request = Request::new(method, url).priority(args.priority).replay_safe(args.early);
    request = match args.timeout.unwrap_or(TIMEOUT_DEFAULT) {
        Duration::ZERO => request.no_timeout(),
        timeout => request.timeout(timeout),
    };
    if let Some(request_id) = &args.request_id {
        request = request.request_id(request_id);
    }
    for header in &args.headers {
        let Some((name, value)) = header.split_once(':') else {
            return Err(Fault::Usage(format!("-H '{header}': a header field is written 'name: value'")));
        };
        request = request.field(name.trim_end(), value.trim());
    }
    Ok(request)
}

fn client(ca: Option<&Path>, tickets: Option<&Path>) -> Result<Client, Fault> {
    let usage = |error: BuildError| Fault::Usage(error.to_string());
    let mut builder =
        Client::builder().attributes("trunkline-call", env!("CARGO_PKG_VERSION"), std::env::consts::OS, "");
    if let Some(path) = tickets {
        builder = builder.tickets_file(path);
    }
    let Some(path) = ca else {
        let found = rustls_native_certs::load_native_certs();
        let roots = found.certs.iter().map(|certificate| certificate.to_vec());
        return builder.roots(roots).build().map_err(|error| match error {
            BuildError::NoRoots => {
                Fault::Usage("this system has no trusted certificates: name some with --ca FILE".to_owned())
            }
            other => usage(other),
        });
    };
    let pem = std::fs::read(path).map_err(|error| Fault::Usage(format!("--ca {}: {error}", path.display())))?;
    builder.ca_pem(&pem).build().map_err(|error| match error {
        BuildError::Tickets(_) => usage(error),
        other => Fault::Usage(format!("--ca {}: {other}", path.display())),
    })
}

/// Where the body comes from.
enum Source {
    /// The command line; empty when there is none.
    Text(Vec<u8>),
    /// A file, of so many bytes when that is known.
    Stream(Box<dyn Read + Send>, Option<u64>),
}

impl Source {
    fn of(data: Option<&str>) -> Result<Source, Fault> {
        match data {
            None => Ok(Source::Text(Vec::new())),
            Some("@-") => Ok(Source::Stream(Box::new(io::stdin()), None)),
            Some(text) => match text.strip_prefix('@') {
                None => Ok(Source::Text(text.as_bytes().to_vec())),
                Some(path) => {
                    let usage = |error: io::Error| Fault::Usage(format!("--data @{path}: {error}"));
                    let file = File::open(path).map_err(usage)?;
                    let metadata = file.metadata().map_err(usage)?;
                    if metadata.is_dir() {
                        return Err(Fault::Usage(format!("--data @{path}: is a directory")));
                    }
                    let length = metadata.is_file().then_some(metadata.len());
                    Ok(Source::Stream(Box::new(file), length))
                }
            },
        }
    }

    fn whole(self) -> Result<Vec<u8>, Fault> {
        match self {
            Source::Text(bytes) => Ok(bytes),
            Source::Stream(mut source, _) => {
                let mut bytes = Vec::new();
                source.read_to_end(&mut bytes).map_err(|error| Fault::Usage(format!("--data: {error}")))?;
                Ok(bytes)
            }
        }
    }
}

/// The line that `--report json` writes.
#[derive(serde::Serialize)]
struct Line {
    #[serde(flatten)]
    report: Report,
    error: Option<String>,
}

/// One call, its body streamed to standard output.
fn once(client: &Client, request: Request, body: Source, format: Option<ReportFormat>) -> Result<(), Fault> {
    let call = match body {
        Source::Text(bytes) => Arc::new(client.start(request.body(bytes))),
        Source::Stream(source, length) => {
            let request = match length {
                Some(length) => request.field("content-length", length.to_string()),
                None => request,
            };
            let call = Arc::new(client.start(request.streamed()));
            upload(call.clone(), source)?;
            call
        }
    };
    let result = download(&call);
    if format.is_some() {
        let report = match &result {
            Err(Broken::Call(error)) => error.report().clone(),
            Ok(()) | Err(Broken::Output(_)) => call.report(),
        };
        let line = Line { report, error: result.as_ref().err().map(Broken::to_string) };
        eprintln!("{}", serde_json::to_string(&line).map_err(|error| Fault::Failed(error.to_string()))?);
    }
    match result {
        Ok(()) => Ok(()),
        Err(Broken::Call(error)) => Err(error.into()),
        Err(broken @ Broken::Output(_)) => Err(Fault::Failed(broken.to_string())),
    }
}

/// Sends a body from another thread, so that an answer that comes meanwhile is read. The thread ends with the call; one
/// that waits for standard input ends with the process.
fn upload(call: Arc<Call>, mut source: Box<dyn Read + Send>) -> Result<(), Fault> {
    let work = move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match source.read(&mut chunk) {
                Ok(0) => return call.finish(),
                Ok(count) => {
                    if call.write(&chunk[..count]).is_err() {
                        return; // whoever reads the answer learns why
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("trunkline call: cannot read the body: {error}");
                    return call.cancel();
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("trunkline-upload".to_owned()).spawn(work);
    thread.map(drop).map_err(|error| Fault::Failed(error.to_string()))
}

/// What ended the reading of an answer.
enum Broken {
    Call(CallError),
    Output(io::Error),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Call(error) => error.fmt(out),
            Broken::Output(error) => write!(out, "cannot write to standard output: {error}"),
        }
    }
}

fn download(call: &Call) -> Result<(), Broken> {
    call.response_head().map_err(Broken::Call)?;
    let mut output = io::stdout().lock();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = call.read(&mut chunk).map_err(Broken::Call)?;
        if count == 0 {
            return output.flush().map_err(Broken::Output);
        }
        // Flushed each time: a tunnel's bytes are wanted when they come.
        output.write_all(&chunk[..count]).and_then(|()| output.flush()).map_err(Broken::Output)?;
    }
}

/// What many equal calls came to.
#[derive(Default)]
struct Tally {
    answered: u32,
    failed: u32,
    /// Of those that failed, by receipt.
    not_forwarded: u32,
    unknown: u32,
    refused: u32,
    differing: u32,
    connections: u32,
    times_ms: Vec<f64>,
    first_error: Option<CallError>,
    /// Status and body of the first answer.
    expected: Option<(u16, Vec<u8>)>,
}

impl Tally {
    fn count(&mut self, call: &Call) {
        match call.response(COMPARED_BYTES_MAX) {
            Err(error) => {
                self.failed += 1;
                match error.receipt() {
                    Receipt::NotForwarded => self.not_forwarded += 1,
                    Receipt::Unknown => self.unknown += 1,
                    Receipt::Refused { .. } => self.refused += 1,
                }
                self.first_error.get_or_insert(error);
            }
            Ok(response) => {
                self.answered += 1;
                self.connections += u32::from(!response.report.reused);
                self.times_ms.extend(response.report.total_ms);
                let answer = (response.status, response.body);
                match &self.expected {
                    None => self.expected = Some(answer),
                    Some(expected) => self.differing += u32::from(*expected != answer),
                }
            }
        }
    }

    fn report(&mut self, elapsed: Duration) -> serde_json::Value {
        self.times_ms.sort_by(f64::total_cmp);
        let last = self.times_ms.len().saturating_sub(1);
        let rank = |share: f64| self.times_ms.get((last as f64 * share).round() as usize);
        serde_json::json!({
            "calls": self.answered + self.failed,
            "answered": self.answered,
            "failed": self.failed,
            "not_forwarded": self.not_forwarded,
            "unknown": self.unknown,
            "refused": self.refused,
            "differing": self.differing,
            "connections": self.connections,
            "total_ms": elapsed.as_micros() as f64 / 1000.0,
            "per_second": (f64::from(self.answered) / elapsed.as_secs_f64()).round(),
            "p50_ms": rank(0.5),
            "p99_ms": rank(0.99),
            "max_ms": rank(1.0),
        })
    }
}

fn repeat(
    client: &Client,
    request: &Request,
    count: u32,
    outstanding: u32,
    format: Option<ReportFormat>,
) -> Result<(), Fault> {
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut under_way = VecDeque::new();
    for _ in 0..count {
        if under_way.len() >= outstanding as usize
            && let Some(call) = under_way.pop_front()
        {
            tally.count(&call);
        }
        under_way.push_back(client.start(request.clone()));
    }
    for call in under_way {
        tally.count(&call);
    }
    let report = tally.report(started.elapsed());
    if let Some((_, body)) = &tally.expected {
        let mut output = io::stdout().lock();
        let written = output.write_all(body).and_then(|()| output.flush());
        written.map_err(|error| Fault::Failed(Broken::Output(error).to_string()))?;
    }
    if format.is_some() {
        eprintln!("{report}");
    }
    match tally.first_error {
        Some(error) if tally.answered == 0 => Err(error.into()),
        Some(error) => Err(Fault::Failed(format!("{} of {count} calls failed; the first: {error}", tally.failed))),
        None if tally.differing > 0 => {
            Err(Fault::Failed(format!("{} of {count} answers differ from the first", tally.differing)))
        }
        None => Ok(()),
    }
}

/// A duration as the command line has it: a number and `ms`, `s` or `m`; seconds without a unit.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("'{unit}' is no unit of time: use ms, s or m")),
    };
    let count: f64 = number.parse().map_err(|_| "a time is a number and a unit, such as 5s or 250ms".to_owned())?;
    Duration::try_from_secs_f64(count * seconds_per_unit).map_err(|_| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::client::testing::{Server, identity};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: CallArgs,
    }

    fn args(line: &[&str]) -> Result<CallArgs, clap::Error> {
        Command::try_parse_from([&["call"], line].concat()).map(|command| command.args)
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "s", "5h", "-1s", "1e999s", "5 s", "99999999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_line_of_the_synopsis_is_understood() {
        let line = ["-X", "PUT", "-H", "x-a: 1", "-H", "x-b: 2", "-d", "@-", "--ca", "ca.pem", "--priority", "0"];
        let line = [&line[..], &["--timeout", "5s", "--report", "json", "mmtp://localhost:8443/pay/x"]].concat();
        let args = args(&line).expect("a valid line");
        assert_eq!(args.headers, ["x-a: 1", "x-b: 2"]);
        assert_eq!((args.priority, args.timeout), (0, Some(Duration::from_secs(5))));
        assert_eq!(args.report, Some(ReportFormat::Json));
        assert!(request(&args).is_ok());
    }

    #[test]
    fn what_is_not_usable_is_said_before_anything_is_sent() {
        for line in [
            &["--priority", "8", "mmtp://a/b"][..],
            &["--timeout", "soon", "mmtp://a/b"],
            &["--report", "xml", "mmtp://a/b"],
            &["--outstanding", "4", "mmtp://a/b"],
            &["--repeat", "0", "mmtp://a/b"],
            &[],
        ] {
            assert_eq!(args(line).err().map(|error| error.exit_code()), Some(2), "{line:?}");
        }
        for line in [
            &["http://a/b"][..],
            &["mmtp://a/"],
            &["-H", "no colon", "mmtp://a/b"],
            &["-d", "@/nonexistent/file", "mmtp://a/b"],
            &["--ca", "/nonexistent/file", "mmtp://a/b"],
            &["--ca", "Cargo.toml", "mmtp://a/b"],
        ] {
            let result = execute(&args(line).expect("clap has nothing to say"));
            assert!(matches!(result, Err(Fault::Usage(_))), "{line:?}: {result:?}");
        }
    }

    /// Runs a line against a server that echoes paths, trusting its CA.
    fn executed(line: &[&str], path: &str) -> Result<(), Fault> {
        let server = Server::serving();
        let ca = std::env::temp_dir().join(format!("trunkline-{}-{}.pem", std::process::id(), server.address.port()));
        std::fs::write(&ca, &identity().ca_pem).expect("written");
        let url = server.url(path).to_string();
        let line = [line, &["--report", "json", "--ca", ca.to_str().expect("UTF-8"), &url]].concat();
        let result = execute(&args(&line).expect("a valid line"));
        std::fs::remove_file(&ca).expect("removed");
        result
    }

    #[test]
    fn calls_are_made_and_answered() {
        executed(&[], "/one").expect("an answer");
        executed(&["-d", "text", "-H", "content-type: text/plain"], "/echo").expect("an answer");
        executed(&["-d", "@Cargo.toml", "-X", "PUT"], "/echo").expect("an answer");
        executed(&["-d", "@Cargo.toml", "--repeat", "20", "--outstanding", "5"], "/echo").expect("answers");
    }

    #[cfg(unix)]
    #[test]
    fn tickets_are_kept_in_a_private_file_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tickets");
        let name = path.to_str().expect("UTF-8");
        executed(&["--early", "--tickets", name], "/one").expect("an answer");
        assert!(std::fs::read_to_string(&path).expect("written").starts_with("trunkline-tickets 1\nlocalhost "));
        executed(&["--early", "--tickets", name], "/one").expect("an answer");
        make_public(&path);
        let result = executed(&["--tickets", name], "/one");
        let Err(Fault::Usage(message)) = result else { panic!("{result:?}") };
        assert!(message.contains("it must have mode 600"), "{message}");
    }

    #[cfg(unix)]
    fn make_public(path: &Path) {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(path, mode).expect("it is ours");
    }

    #[test]
    fn answers_that_differ_fail_the_run() {
        let counting = Server::talking(|mut peer| {
            let mut count = 0u32;
            while let Some((stream, _)) = peer.request() {
                count += 1;
                peer.answer(stream, 200, count.to_string().as_bytes());
            }
        });
        let client = Client::builder().ca_pem(identity().ca_pem.as_bytes()).build().expect("valid");
        let result = repeat(&client, &Request::get(counting.url("/")), 10, 2, None);
        let Err(Fault::Failed(message)) = result else { panic!("{result:?}") };
        assert_eq!(message, "9 of 10 answers differ from the first");
    }

    #[test]
    fn a_header_that_cannot_be_sent_is_a_usage_error() {
        let result = executed(&["-H", "transfer-encoding: chunked"], "/one");
        assert!(matches!(result, Err(Fault::Usage(_))), "{result:?}");
    }

    #[test]
    fn a_refused_connection_fails_with_its_receipt() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("mmtp://{}/pay/x", closed.local_addr().expect("bound"));
        drop(closed);
        let pem = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("generated").cert.pem();
        let ca = std::env::temp_dir().join(format!("trunkline-call-{}.pem", std::process::id()));
        std::fs::write(&ca, pem).expect("written");
        let result = execute(&args(&["--ca", ca.to_str().expect("UTF-8"), &url]).expect("a valid line"));
        std::fs::remove_file(&ca).expect("removed");
        let Err(Fault::Failed(message)) = result else { panic!("{result:?}") };
        assert!(message.contains("not-forwarded"), "{message}");
    }
}
