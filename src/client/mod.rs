//! The terminal's side of Trunkline, for apps: calls over `mmtp://`, on anything that has sockets and threads.
//!
//! A [`Client`] owns one thread and, per server, one connection that all its calls share: TLS 1.3, then MMTP/1. Calls
//! may be made from any thread, as many at once as one likes; they queue here when the server allows no more.
//! Everything a server may do wrong ends in a [`CallError`] with a [`Receipt`], and no call outlives its timeout.
//!
//! ```no_run
//! use std::time::Duration;
//! use trunkline::client::{Advice, Client, Request, Url};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder()
//!     .ca_pem(&std::fs::read("ca.pem")?)
//!     .attributes("shop", "4.2", "linux", "wifi")
//!     .build()?;
//!
//! // The whole answer at once.
//! let url = Url::parse("mmtp://pop.example:8443/pay/v1/transfer")?;
//! let request = Request::post(url, r#"{"amount": 12}"#)
//!     .field("content-type", "application/json")
//!     .request_id("a0b1c2") // by which it is known again
//!     .priority(0)
//!     .timeout(Duration::from_secs(5));
//! match client.call(request) {
//!     Ok(response) => println!("{} in {:?} ms", response.status, response.report.total_ms),
//!     Err(error) => match error.advice() {
//!         Advice::Retry { after } => println!("nothing was done; again in {after:?}"),
//!         Advice::RetryIfRepeatable => println!("unknown; ask for its outcome by its id"),
//!         Advice::Change => println!("pointless to repeat: {error}"),
//!     },
//! }
//!
//! // Bytes as they come, both ways.
//! let call = client.start(Request::new("PUT", Url::parse("mmtp://pop.example/files/a.bin")?).streamed());
//! call.write(b"first part, ")?;
//! call.write(b"second part")?;
//! call.finish();
//! let head = call.response_head()?;
//! let body = call.body(1 << 20)?;
//! println!("{} with {} bytes", head.status, body.len());
//! # Ok(())
//! # }
//! ```
//!
//! Inside: the app's threads and the driver share one small state per call (`call`), commands reach the driver through
//! a `mailbox`, the `driver` owns sockets (`link`), and `exchange` carries calls over the streams of one connection.
//! What makes coming back cheap: `tickets`, early data (`secure`), and first bytes that leave with the SYN (`fast_open`).
//! Owns no global state; never touches io_uring, and needs nothing that only Linux has: TCP Fast Open is used where it is.
//! Invariant: memory per call is bounded by the credit granted to the server and by what the app hands over.

mod call;
mod dial;
mod driver;
mod entry;
mod error;
mod exchange;
mod fast_open;
mod link;
mod mailbox;
mod message;
mod report;
mod request;
mod resolve;
mod secure;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tickets;
mod url;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::mmtp::hello::ATTRIBUTE_BYTES_MAX;
use crate::mmtp::{self, Agent, Attribute, CreditPolicy, Side};

pub use call::Call;
pub use error::{Advice, BuildError, CallError, Failure, Receipt, RequestError, Stage};
pub use message::{Fields, Head, Response};
pub use report::{EarlyData, Handshake, Outcome, Report};
pub use request::{PRIORITY_DEFAULT, Request, TIMEOUT_DEFAULT};
pub use url::{Endpoint, PORT_DEFAULT, Url, UrlError};

use call::Outgoing;
use driver::{Driver, Options, WAKER};
use mailbox::{Handle, Mailbox};
use secure::Trust;
use tickets::{Notice, Tickets};

/// Time to connect, agree on keys and hear the server's HELLO, unless set.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Silence after which the server is asked whether it is there, unless set. Mobile NATs forget a flow after 30 s and
/// more.
pub const KEEP_ALIVE_DEFAULT: Duration = Duration::from_secs(25);

/// How long a connection without calls is kept, unless set.
pub const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// Largest answer that [`Client::call`] holds in memory, unless set.
pub const ANSWER_BYTES_MAX_DEFAULT: usize = 64 * 1024 * 1024;

/// Most calls under way or in line in one client. What an app has to do at once is far less; more is a loop gone wild.
const CALLS_MAX: usize = 65_536;

/// Bytes of an answer that the server may send before the app reads any: one round trip of 350 ms at 6 Mbit/s.
const STREAM_CREDIT_BYTES: u32 = 256 * 1024;

/// What that may grow to for an app that reads quickly: the most one call holds in memory.
const STREAM_CREDIT_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// Bytes that may be on their way on one connection.
const CONNECTION_CREDIT_BYTES: u32 = 4 * 1024 * 1024;

/// Makes a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    roots: Vec<Vec<u8>>,
    found_roots: Vec<Vec<u8>>,
    root_error: Option<BuildError>,
    attributes: [(&'static str, String); 4],
    connect_timeout: Duration,
    keep_alive: Duration,
    idle_timeout: Duration,
    answer_bytes_max: usize,
    early_data: bool,
    fast_open: bool,
    tickets_file: Option<PathBuf>,
    send_first: SendFirst,
}

/// Sends the first bytes of a connection; another one in tests.
type SendFirst = fn(&mio::net::TcpStream, SocketAddr, &[u8]) -> std::io::Result<fast_open::First>;

impl Builder {
    /// Trusts the certificates of a PEM text. May be called several times.
    #[must_use]
    pub fn ca_pem(mut self, pem: &[u8]) -> Builder {
        match secure::read_pem(pem) {
            Ok(roots) => self.roots.extend(roots),
            Err(error) => self.root_error = Some(error),
        }
        self
    }

    /// Trusts certificates in DER that were found somewhere, such as those of the system; what is no usable certificate
    /// is passed over, as long as one is. May be called several times.
    #[must_use]
    pub fn roots(mut self, roots: impl IntoIterator<Item = Vec<u8>>) -> Builder {
        self.found_roots.extend(roots);
        self
    }

    /// Time to connect, agree on keys and hear the server's HELLO; and, later, for the answer to a PING, without which
    /// the connection counts as dead. [`CONNECT_TIMEOUT_DEFAULT`] unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// What the app says about itself to the server: its name and version, the operating system, the type of network.
    /// Empty ones are not sent.
    #[must_use]
    pub fn attributes(mut self, app: &str, version: &str, system: &str, network: &str) -> Builder {
        let texts = [app, version, system, network];
        for ((_, value), text) in self.attributes.iter_mut().zip(texts) {
            text.clone_into(value);
        }
        self
    }

    /// Silence after which the server is asked whether it is still there. [`KEEP_ALIVE_DEFAULT`] unless set.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Builder {
        self.keep_alive = interval;
        self
    }

    /// How long a connection without calls is kept. [`IDLE_TIMEOUT_DEFAULT`] unless set.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Builder {
        self.idle_timeout = timeout;
        self
    }

    /// Largest answer that [`Client::call`] holds in memory, in bytes. [`ANSWER_BYTES_MAX_DEFAULT`] unless set.
    #[must_use]
    pub fn answer_bytes_max(mut self, bytes_max: usize) -> Builder {
        self.answer_bytes_max = bytes_max;
        self
    }

    /// Whether calls that are [`Request::replay_safe`] may go out as early data, before the server has answered, on a
    /// connection that has a ticket of an earlier one. True unless set.
    #[must_use]
    pub fn early_data(mut self, early_data: bool) -> Builder {
        self.early_data = early_data;
        self
    }

    /// Whether connections are opened with TCP Fast Open where the system has it. True unless set.
    #[must_use]
    pub fn fast_open(mut self, fast_open: bool) -> Builder {
        self.fast_open = fast_open;
        self
    }

    /// Keeps tickets in this file as well, so that the next process resumes too. They are **secrets**: the file is made
    /// with mode 0600, and [`Builder::build`] refuses one that others may open. It may be shared by processes of one
    /// user; beside it, `FILE.lock` comes to be. What goes wrong with it later costs resumption, never a call:
    /// [`Client::tickets_notice`].
    #[must_use]
    pub fn tickets_file(mut self, path: impl Into<PathBuf>) -> Builder {
        self.tickets_file = Some(path.into());
        self
    }

    fn settings(&self, hash_seed: u64) -> mmtp::Settings {
        let mut settings = mmtp::Settings::new(Side::Initiator, Agent::Terminal);
        settings.stream_credit = STREAM_CREDIT_BYTES;
        settings.stream_credit_max = STREAM_CREDIT_BYTES_MAX;
        settings.connection_credit = CONNECTION_CREDIT_BYTES;
        // A call that its app does not read must not hold back the others.
        settings.credit_policy = CreditPolicy::OnArrival;
        settings.hash_seed = hash_seed;
        let ids = [Attribute::App, Attribute::AppVersion, Attribute::System, Attribute::Network];
        let values = self.attributes.iter().map(|(_, value)| value.clone().into_bytes());
        settings.attributes = ids.into_iter().zip(values).filter(|(_, value)| !value.is_empty()).collect();
        settings
    }

    /// Starts the client's thread. Nothing is connected before the first call.
    ///
    /// # Errors
    /// No usable root certificate, an attribute that is too long, or no thread to be had.
    pub fn build(self) -> Result<Client, BuildError> {
        if let Some(error) = self.root_error {
            return Err(error);
        }
        let trust = Trust::new(&self.roots, &self.found_roots)?;
        if let Some((name, _)) =
            self.attributes.iter().find(|(_, value)| value.len() > ATTRIBUTE_BYTES_MAX || !is_visible(value))
        {
            return Err(BuildError::Attribute(name));
        }
        let notice = Notice::default();
        let tickets = Tickets::new(self.tickets_file.clone(), notice.clone())?;
        let os = |error: std::io::Error| BuildError::Os(error.to_string());
        let poll = mio::Poll::new().map_err(os)?;
        let mailbox = Arc::new(Mailbox::new(mio::Waker::new(poll.registry(), WAKER).map_err(os)?));
        let seed = RandomState::new().build_hasher().finish(); // the standard library's own source of random keys
        let options = Options {
            trust,
            settings: self.settings(seed),
            connect_timeout: self.connect_timeout,
            keep_alive: self.keep_alive,
            idle_timeout: self.idle_timeout,
            calls_max: CALLS_MAX,
            early_data: self.early_data,
            fast_open: self.fast_open,
            send_first: self.send_first,
        };
        let driver = Driver::new(poll, mailbox.clone(), options, tickets, seed);
        let name = "trunkline-client".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || driver.run()).map_err(os)?;
        let handle = Arc::new(Handle::new(mailbox, thread));
        Ok(Client { handle, answer_bytes_max: self.answer_bytes_max, notice })
    }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

const _: () = {
    const fn is_shared_between_threads<T: Send + Sync>() {}
    is_shared_between_threads::<Client>();
    is_shared_between_threads::<Call>();
};

/// Makes calls. Cheap to clone; all clones share connections and thread, which end with the last clone and call.
#[derive(Clone, Debug)]
pub struct Client {
    handle: Arc<Handle>,
    answer_bytes_max: usize,
    notice: Notice,
}

impl Client {
    /// Begins a client. It needs to be told at least whom to trust.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            roots: Vec::new(),
            found_roots: Vec::new(),
            root_error: None,
            attributes: ["app", "version", "system", "network"].map(|name| (name, String::new())),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            keep_alive: KEEP_ALIVE_DEFAULT,
            idle_timeout: IDLE_TIMEOUT_DEFAULT,
            answer_bytes_max: ANSWER_BYTES_MAX_DEFAULT,
            early_data: true,
            fast_open: true,
            tickets_file: None,
            send_first: fast_open::send,
        }
    }

    /// What was last wrong with the file of [`Builder::tickets_file`], if anything was.
    #[must_use]
    pub fn tickets_notice(&self) -> Option<String> {
        self.notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Makes a call and waits for its whole answer.
    ///
    /// # Errors
    /// It failed; the error says how far it got. A request made for streaming is sent without a body.
    pub fn call(&self, request: Request) -> Result<Response, CallError> {
        let call = self.start(request);
        call.finish();
        call.response(self.answer_bytes_max)
    }

    /// Starts a call and returns at once: for many at a time, and for bodies that stream. A request that cannot be sent
    /// fails at the first use of the call.
    #[must_use]
    pub fn start(&self, request: Request) -> Call {
        match request.prepare() {
            Ok((prepared, body)) => Call::start(&self.handle, Ok(prepared), body),
            Err(error) => Call::start(&self.handle, Err(Failure::Request(error)), Outgoing::default()),
        }
    }
}
