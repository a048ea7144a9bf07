//! Life of one trunk.
//!
//! ```text
//! Down --dial--> Dialing --link open--> Greeting --HELLO--> Ready --GOAWAY--> Draining
//!   ^               |                      |                  |                  |
//!   +---------------+---- link closed -----+------------------+------------------+
//! ```
//! Invariant: a connection exists exactly in Greeting, Ready and Draining; a link in all states but Down.

use crate::base::backoff::Backoff;
use crate::base::time::Time;
use crate::base::wire::LinkId;
use crate::mmtp::Connection;

/// Where a trunk is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// No link; dialled at this time.
    Down {
        /// When to dial.
        retry_at: Time,
    },
    /// The link is being set up.
    Dialing,
    /// The link is up and our HELLO is out; the gateway's has not come.
    Greeting,
    /// Takes streams.
    Ready,
    /// The gateway asked for no more streams; what runs may end.
    Draining,
}

/// One trunk.
pub struct Trunk {
    /// Index of its gateway in the configuration.
    pub gateway: usize,
    /// Where it is in its life.
    pub state: State,
    /// Its link; some in every state but Down.
    pub link: Option<LinkId>,
    /// Its MMTP connection; some in Greeting, Ready and Draining.
    pub connection: Option<Box<Connection>>,
    pub(super) backoff: Backoff,
    /// When bytes last came.
    pub(super) heard_at: Time,
    /// When the next heartbeat is due.
    pub(super) beat_at: Time,
}

impl Trunk {
    pub(super) fn new(gateway: usize, backoff: Backoff) -> Trunk {
        Trunk {
            gateway,
            state: State::Down { retry_at: Time::ZERO },
            link: None,
            connection: None,
            backoff,
            heard_at: Time::ZERO,
            beat_at: Time::ZERO,
        }
    }

    /// Streams in flight.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.open_streams())
    }
}
