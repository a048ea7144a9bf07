//! One connection's bytes on their way out, sealed as TLS records if it has a session, and its records on their way in.
//!
//! Owns the session and the buffers; two buffers take turns between being filled and being lent to the kernel, so that
//! steady traffic allocates nothing. Never enters the kernel. Invariant: at most one buffer is lent at a time, and
//! nothing that the application says leaves before the handshake is complete, but for early data.

use crate::base::limits::SEND_HIGH_WATER_BYTES;
use crate::base::wire::Sink;
use crate::tls::{PLAINTEXT_BYTES_MAX, RECORD_HEADER_BYTES, Session, TlsError};

/// A buffer larger than this is not kept when it comes back empty: it was needed for one large body.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// Bytes on their way out of one socket.
pub(super) struct Lane {
    /// None for plain HTTP.
    session: Option<Box<Session>>,
    /// Whether what is put may be sealed: without a session, or with the handshake complete.
    is_open: bool,
    filling: Vec<u8>,
    /// Where the open record starts in `filling`.
    record_start: Option<usize>,
    /// Plaintext that waits for the handshake.
    waiting: Vec<u8>,
    spare: Vec<u8>,
    /// Bytes lent to the kernel; zero when none are.
    in_flight_bytes: usize,
    position: u64,
    /// Sealing failed: the session is over.
    is_broken: bool,
    /// A send failed: what follows would follow a hole.
    is_cut: bool,
}

impl Lane {
    /// A lane for plain bytes.
    pub(super) fn plain() -> Lane {
        Lane {
            session: None,
            is_open: true,
            filling: Vec::new(),
            record_start: None,
            waiting: Vec::new(),
            spare: Vec::new(),
            in_flight_bytes: 0,
            position: 0,
            is_broken: false,
            is_cut: false,
        }
    }

    /// A lane whose session has just begun, with its ClientHello.
    pub(super) fn secure(session: Session, hello: Vec<u8>) -> Lane {
        Lane { session: Some(Box::new(session)), is_open: false, filling: hello, ..Lane::plain() }
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        self.session.as_deref_mut()
    }

    pub(super) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// Seals as much as may go early of what waits. Whether all of it may.
    pub(super) fn put_early(&mut self) -> bool {
        let Some(session) = self.session.as_mut() else { return false };
        while !self.waiting.is_empty() {
            let bytes = self.waiting.len().min(session.early_room()).min(PLAINTEXT_BYTES_MAX);
            if bytes == 0 {
                return false;
            }
            let start = self.filling.len();
            self.filling.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
            self.filling.extend_from_slice(&self.waiting[..bytes]);
            if session.seal(&mut self.filling, start).is_err() {
                self.is_broken = true;
                return false;
            }
            self.waiting.drain(..bytes);
        }
        true
    }

    /// The handshake is complete: what waited goes.
    pub(super) fn open(&mut self) {
        self.is_open = true;
        let waiting = std::mem::take(&mut self.waiting);
        self.put_plaintext(&waiting);
    }

    /// Puts bytes of the session itself before the record that is still open: they were sealed before it will be.
    pub(super) fn put_ahead(&mut self, replies: &[u8]) {
        match self.record_start {
            None => self.filling.extend_from_slice(replies),
            Some(start) => {
                self.filling.splice(start..start, replies.iter().copied());
                self.record_start = Some(start + replies.len());
            }
        }
    }

    /// Ends the session for a fault found while its records were cut.
    pub(super) fn fail(&mut self, error: TlsError) {
        let Lane { session, filling, record_start, .. } = self;
        if let Some(session) = session {
            filling.truncate(record_start.take().unwrap_or(filling.len()));
            session.fail(error, filling);
        }
    }

    /// Says goodbye under TLS. Nothing may be put afterwards.
    pub(super) fn put_goodbye(&mut self) {
        self.seal();
        if let (Some(session), true) = (self.session.as_mut(), self.is_open) {
            session.put_close_notify(&mut self.filling);
        }
    }

    /// The bytes to send next, unless a send is out, there are none, or they could not be sealed.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        if self.in_flight_bytes > 0 || self.is_cut {
            return None;
        }
        self.seal();
        // What is not sent must not count as lent: nobody would give it back.
        if self.filling.is_empty() || self.is_broken {
            return None;
        }
        self.in_flight_bytes = self.filling.len();
        let spare = std::mem::take(&mut self.spare);
        Some(std::mem::replace(&mut self.filling, spare))
    }

    /// A send is over and took so many bytes. The buffer with where its rest begins, if there is one.
    pub(super) fn sent(&mut self, mut bytes: Vec<u8>, taken: usize) -> Option<(Vec<u8>, usize)> {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(taken);
        if self.in_flight_bytes > 0 {
            let from = bytes.len() - self.in_flight_bytes;
            return Some((bytes, from));
        }
        if bytes.capacity() <= SPARE_BYTES_MAX {
            bytes.clear();
            self.spare = bytes;
        }
        None
    }

    /// A send ended without having sent all of its bytes: nothing can follow them any more.
    pub(super) fn cut(&mut self) {
        self.in_flight_bytes = 0;
        self.is_cut = true;
        (self.filling, self.waiting, self.spare) = (Vec::new(), Vec::new(), Vec::new());
        self.record_start = None;
    }

    pub(super) fn is_lent(&self) -> bool {
        self.in_flight_bytes > 0
    }

    /// Whether something waits to be sent.
    pub(super) fn has_pending(&self) -> bool {
        !self.filling.is_empty() && !self.is_cut
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Lets go of buffers, for a connection that is held idle.
    pub(super) fn rest(&mut self) {
        if let Some(session) = self.session.as_mut() {
            session.rest();
        }
        self.spare = Vec::new();
        if self.filling.is_empty() {
            self.filling = Vec::new();
        }
    }

    fn put_plaintext(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let start = *self.record_start.get_or_insert_with(|| {
                self.filling.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
                self.filling.len() - RECORD_HEADER_BYTES
            });
            let used = self.filling.len() - start - RECORD_HEADER_BYTES;
            let (part, rest) = bytes.split_at(bytes.len().min(PLAINTEXT_BYTES_MAX - used));
            self.filling.extend_from_slice(part);
            bytes = rest;
            if used + part.len() == PLAINTEXT_BYTES_MAX {
                self.seal();
            }
        }
    }

    /// Finishes the open record, and rotates the key when its limit is near.
    fn seal(&mut self) {
        let (Some(start), Some(session)) = (self.record_start.take(), self.session.as_mut()) else { return };
        if session.seal(&mut self.filling, start).is_err() {
            self.filling.truncate(start);
            self.is_broken = true;
            return;
        }
        self.is_broken |= session.key_update_due() && session.put_key_update(&mut self.filling).is_err();
    }
}

impl Sink for Lane {
    fn room(&self) -> usize {
        if self.is_cut {
            return 0;
        }
        SEND_HIGH_WATER_BYTES.saturating_sub(self.filling.len() + self.waiting.len() + self.in_flight_bytes)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        if self.is_cut {
            return;
        }
        match (self.is_open, self.session.is_some()) {
            (false, _) => self.waiting.extend_from_slice(bytes),
            (true, false) => self.filling.extend_from_slice(bytes),
            (true, true) => self.put_plaintext(bytes),
        }
    }

    fn position(&self) -> u64 {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::tls::{ClientOptions, ClientSettings, Roots};

    /// A lane whose handshake has just begun.
    fn secure() -> Lane {
        let key = KeyPair::generate().expect("entropy");
        let root = CertificateParams::new(Vec::new()).expect("no names").self_signed(&key).expect("a key of its own");
        let roots = Roots::from_der(vec![root.der().to_vec()]).expect("a certificate");
        let settings = ClientSettings::new(&ClientOptions::new(roots)).expect("roots are all they need");
        let mut hello = Vec::new();
        let session = Session::client(&settings, "localhost", None, &mut hello).expect("a valid name");
        Lane::secure(session, hello)
    }

    #[test]
    fn a_lane_that_cannot_seal_lends_nothing() {
        let mut lane = secure();
        let hello = lane.take().expect("the hello goes first");
        assert_eq!(lane.sent(hello, usize::MAX), None);
        // There are no keys before the handshake is complete.
        lane.open();
        lane.put(b"early");
        assert_eq!(lane.take(), None);
        assert!(lane.is_broken() && !lane.is_lent());
    }

    #[test]
    fn nothing_follows_a_send_that_failed() {
        let mut lane = Lane::plain();
        lane.put(b"one");
        drop(lane.take());
        lane.put(b"two");
        lane.cut();
        lane.put(b"six");
        assert_eq!((lane.take(), lane.room()), (None, 0));
        assert!(!lane.is_lent() && !lane.has_pending());
    }

    #[test]
    fn two_buffers_take_turns() {
        let mut lane = Lane::plain();
        assert_eq!(lane.take(), None);
        lane.put(b"one");
        let first = lane.take().expect("something was put");
        lane.put(b"two");
        assert_eq!(lane.take(), None, "a send is out");
        assert_eq!(lane.room(), SEND_HIGH_WATER_BYTES - 6);
        let address = first.as_ptr();
        let (rest, from) = lane.sent(first, 1).expect("two bytes are left");
        assert_eq!(&rest[from..], b"ne");
        assert!(lane.is_lent());
        assert_eq!(lane.sent(rest, 2), None);
        assert_eq!(lane.take().as_deref(), Some(&b"two"[..]));
        lane.put(b"six");
        assert_eq!(lane.filling.as_ptr(), address, "the first buffer serves again");
        assert_eq!(lane.position(), 9);
    }
}
