//! One call as the driver sees it. Owns its place: in line, or on a stream; never its bytes.
//!
//! Invariant: an entry that goes away without having been settled fails its call, so that nobody waits for ever.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::slab::{Key, Slab};
use crate::base::time::Time;
use crate::mmtp::{HeaderFlags, StreamId, Tag};

use super::call::Shared;
use super::error::{Failure, Receipt};

/// What the frames of a small request add to its header block and its body, at most.
const FRAMES_BYTES: usize = 64;

/// Where a call is.
#[derive(Debug)]
pub(super) enum Place {
    /// In its pool's line, at this place.
    Waiting {
        /// Priority, then the order of arrival.
        order: (u8, u64),
    },
    /// On a stream.
    Sent(Sent),
}

/// A call's stream.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) link: Key,
    pub(super) stream: StreamId,
    /// Whether it was put on the link before its handshake was complete.
    pub(super) is_early: bool,
    /// Position of its HEADERS in what the link sends.
    pub(super) headers_at: u64,
    /// Whether the head of the answer has come.
    pub(super) has_head: bool,
    /// Whether the whole answer has come.
    pub(super) is_answered: bool,
    /// Whether the whole request has been handed to the connection.
    pub(super) is_handed_over: bool,
    /// Bytes of it that the connection still holds back, for want of credit or of room.
    pub(super) queued_bytes: usize,
}

impl Sent {
    /// Whether nothing more will happen on the stream.
    pub(super) fn is_over(&self) -> bool {
        self.is_answered && self.is_handed_over && self.queued_bytes == 0
    }
}

/// One call on the driver's slab.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Key,
    pub(super) place: Place,
    /// When its time is up.
    pub(super) deadline: Option<Time>,
    /// Whether it went out as early data on a connection that came to nothing: it may have been acted on.
    pub(super) is_exposed: bool,
}

impl Entry {
    /// Ends the call with a failure; nothing is claimed of it that an earlier attempt may have made untrue.
    pub(super) fn fail(self, now: Time, failure: Failure, receipt: Receipt) {
        let receipt = match receipt {
            Receipt::NotForwarded if self.is_exposed => Receipt::Unknown,
            other => other,
        };
        self.shared.fail(now, failure, receipt);
    }

    /// Whether it may go out before the handshake, into so many bytes.
    pub(super) fn fits_early(&self, room_bytes: usize) -> bool {
        let prepared = &self.shared.prepared;
        if !prepared.flags.contains(HeaderFlags::REPLAY_SAFE) {
            return false;
        }
        let state = self.shared.lock();
        let Some(body_bytes) = state.outgoing.whole_bytes() else { return false };
        state.report.restarts == 0 && prepared.block.len() + body_bytes + FRAMES_BYTES <= room_bytes
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let receipt = match self.place {
            Place::Waiting { .. } if !self.is_exposed => Receipt::NotForwarded,
            Place::Waiting { .. } | Place::Sent(_) => Receipt::Unknown,
        };
        self.shared.fail_unsettled(Failure::Stopped, receipt);
    }
}

/// Every call under way, and when each one's time is up.
///
/// Invariant: `deadlines` holds exactly the deadlines of `entries`.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: Slab<Entry>,
    deadlines: BTreeSet<(Time, Key)>,
}

impl Book {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(&mut self, entry: Entry) -> Key {
        let deadline = entry.deadline;
        let key = self.entries.insert(entry);
        self.deadlines.extend(deadline.map(|deadline| (deadline, key)));
        key
    }

    pub(super) fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// A call, to change.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Where a call is, to change.
    pub(super) fn place_mut(&mut self, key: Key) -> Option<&mut Place> {
        self.entries.get_mut(key).map(|entry| &mut entry.place)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, key));
        }
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Entry)> {
        self.entries.iter()
    }

    /// When the first deadline comes.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A call whose time is up.
    pub(super) fn overdue(&self, now: Time) -> Option<Key> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, key)| *key)
    }
}

/// The calls of one link, as the exchange of bytes needs them.
pub(super) struct Calls<'a> {
    pub(super) book: &'a mut Book,
    pub(super) link: Key,
    pub(super) now: Time,
}

impl Calls<'_> {
    /// The call on a stream. A tag is a slot, which may by now belong to another call: stream and link must agree.
    pub(super) fn key_of(&self, tag: Tag, stream: StreamId) -> Option<Key> {
        let key = self.book.entries.key_at(tag)?;
        match &self.book.get(key)?.place {
            Place::Sent(sent) if sent.link == self.link && sent.stream == stream => Some(key),
            Place::Sent(_) | Place::Waiting { .. } => None,
        }
    }

    /// The call with this key, if it is on a stream of this link.
    pub(super) fn sent(&mut self, key: Key) -> Option<(&Arc<Shared>, &mut Sent)> {
        let entry = self.book.entries.get_mut(key)?;
        match &mut entry.place {
            Place::Sent(sent) if sent.link == self.link => Some((&entry.shared, sent)),
            Place::Sent(_) | Place::Waiting { .. } => None,
        }
    }

    /// The call on a stream, to change.
    pub(super) fn on_stream(&mut self, tag: Tag, stream: StreamId) -> Option<(&Arc<Shared>, &mut Sent)> {
        let key = self.key_of(tag, stream)?;
        self.sent(key)
    }

    /// Whether a stream's call was put on it before the handshake was complete.
    pub(super) fn is_early(&mut self, tag: Tag, stream: StreamId) -> bool {
        self.on_stream(tag, stream).is_some_and(|(_, sent)| sent.is_early)
    }

    /// Lets go of a call on which nothing more will happen.
    pub(super) fn close_if_over(&mut self, key: Key) {
        if self.sent(key).is_some_and(|(_, sent)| sent.is_over())
            && let Some(entry) = self.book.remove(key)
        {
            entry.shared.close();
        }
    }

    /// Ends a call with a failure.
    pub(super) fn fail(&mut self, key: Key, failure: Failure, receipt: Receipt) {
        if let Some(entry) = self.book.remove(key) {
            entry.fail(self.now, failure, receipt);
        }
    }
}
