//! All links of a worker, and the role's way to act on them ([`Wire`]).
//!
//! Owns every [`Link`], the list of lanes to flush and the requests of the role. Never enters the kernel: requests are
//! carried out by the worker after the event that made them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use super::socket::{BULK_BUFFER_BYTES, Ending, Link, Phase, SendLane};
use crate::base::counters::Counters;
use crate::base::slab::Slab;
use crate::base::time::Time;
use crate::base::wire::{LinkId, LogLine, Origin, Target, Wire};

/// Spare buffers of single records and less kept for reuse.
const SPARE_COUNT_MAX: usize = 128;

/// A spare buffer larger than this is one of bulk.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// What nobody waits for goes at the latest after this: with what others send meanwhile if there is any.
const LATER: Duration = Duration::from_millis(1);

/// Spare buffers of bulk kept for reuse: 32 of them hold 5 MiB. The last one given back is the first one taken, since it
/// is the one that is still in the core's cache.
const BULK_SPARE_COUNT_MAX: usize = 32;

/// What grew beyond this, for frames larger than the room that was left, is not kept.
const BULK_BUFFER_BYTES_MAX: usize = 2 * BULK_BUFFER_BYTES;

/// Something a role asked for that needs the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Finish(LinkId),
    Close(LinkId),
    Abort(LinkId),
    Pause(LinkId),
    Resume(LinkId),
    Dial(LinkId),
}

/// The links of one worker.
pub struct Links {
    pub(super) slab: Slab<Link>,
    /// Links whose lane may have something to send.
    pub(super) dirty: Vec<LinkId>,
    /// Links with bytes that can wait for others to go with: those of this tick and of the last one.
    patient: [Vec<LinkId>; 2],
    /// Links with bytes that may wait for [`LATER`], and until when they do, in order.
    later: VecDeque<(Time, LinkId)>,
    pub(super) requests: VecDeque<Request>,
    pub(super) counters: Counters,
    /// The time of this pass.
    pub(super) now: Time,
    /// Empty buffers that were used before.
    pub(super) spare: Vec<Vec<u8>>,
    /// Spares of [`BULK_BUFFER_BYTES`].
    bulk_spare: Vec<Vec<u8>>,
    shared: Arc<Shared>,
    worker: usize,
}

impl Links {
    pub(super) fn new(shared: Arc<Shared>, worker: usize) -> Links {
        Links {
            slab: Slab::new(),
            dirty: Vec::new(),
            patient: [Vec::new(), Vec::new()],
            later: VecDeque::new(),
            requests: VecDeque::new(),
            counters: Counters::default(),
            now: Time::ZERO,
            spare: Vec::new(),
            bulk_spare: Vec::new(),
            shared,
            worker,
        }
    }

    /// Takes a buffer back.
    pub(super) fn keep_spare(&mut self, mut buffer: Vec<u8>) {
        let (spares, count_max) = match buffer.capacity() {
            0 => return,
            1..=SPARE_BYTES_MAX => (&mut self.spare, SPARE_COUNT_MAX),
            BULK_BUFFER_BYTES..=BULK_BUFFER_BYTES_MAX => (&mut self.bulk_spare, BULK_SPARE_COUNT_MAX),
            _ => return,
        };
        if spares.len() < count_max {
            buffer.clear();
            spares.push(buffer);
        }
    }

    /// Notes that what was put on a link's lane need not go by itself: the next flush of the lane takes it along, or else
    /// the second tick from now does.
    pub(super) fn touch_later(&mut self, link: LinkId) {
        self.patient[0].push(link);
    }

    /// A tick has come: what has been patient for a whole one goes now.
    pub(super) fn touch_patient(&mut self) {
        let [fresh, waited] = &mut self.patient;
        std::mem::swap(fresh, waited);
        for link in std::mem::take(fresh) {
            // Most have gone by now. Those are left alone: a touch counts as activity.
            if self.slab.get(link).is_some_and(|found| !found.lane.filling.is_empty()) {
                self.touch(link);
            }
        }
    }

    /// When the first link is due whose bytes have waited for [`LATER`].
    pub(super) fn later_due(&self) -> Option<Time> {
        self.later.front().map(|(at, _)| *at)
    }

    /// Lets go what has waited for [`LATER`], and forgets what has gone meanwhile.
    pub(super) fn touch_later_due(&mut self) {
        while let Some((at, link)) = self.later.front().copied() {
            let waits = self.slab.get(link).is_some_and(|found| !found.lane.filling.is_empty());
            if waits && at > self.now {
                return;
            }
            self.later.pop_front();
            if waits {
                self.touch(link);
            }
        }
    }

    /// Puts a link on the list of lanes to flush and gives its lane a buffer.
    pub(super) fn touch(&mut self, link: LinkId) -> Option<&mut Link> {
        let found = self.slab.get_mut(link)?;
        if !found.lane.dirty {
            found.lane.dirty = true;
            found.lane.sizing.turn(self.now);
            self.dirty.push(link);
        }
        if found.lane.filling.capacity() == 0 {
            let spares = if found.lane.is_bulk { &mut self.bulk_spare } else { &mut self.spare };
            found.lane.filling = spares.pop().unwrap_or_default();
        }
        Some(found)
    }
}

impl Wire for Links {
    type Out = SendLane;

    fn out(&mut self, link: LinkId) -> Option<&mut SendLane> {
        let found = self.slab.get(link)?;
        if found.phase != Phase::Open || found.lane.ending != Ending::Open {
            return None;
        }
        self.touch(link).map(|found| &mut found.lane)
    }

    // Behind bytes that are patient (`touch_later`) these would wait as long as those do. Only trunks are written to in this
    // way, and no trunk has any: what is patient are the tickets of clients.
    fn out_later(&mut self, link: LinkId) -> Option<&mut SendLane> {
        let found = self.slab.get_mut(link)?;
        if found.phase != Phase::Open || found.lane.ending != Ending::Open {
            return None;
        }
        if found.lane.filling.is_empty() {
            found.lane.sizing.turn(self.now);
            self.later.push_back((self.now + LATER, link));
        }
        Some(&mut found.lane)
    }

    fn finish(&mut self, link: LinkId) {
        self.requests.push_back(Request::Finish(link));
    }

    fn close(&mut self, link: LinkId) {
        self.requests.push_back(Request::Close(link));
    }

    fn abort(&mut self, link: LinkId) {
        self.requests.push_back(Request::Abort(link));
    }

    fn pause(&mut self, link: LinkId) {
        self.requests.push_back(Request::Pause(link));
    }

    fn resume(&mut self, link: LinkId) {
        self.requests.push_back(Request::Resume(link));
    }

    fn dial(&mut self, target: Target, tag: u64) -> LinkId {
        let link = Link::new(Phase::Connecting, Origin::Dialed { tag }, target.security, target.address);
        let link = self.slab.insert(link);
        self.counters.links_open += 1;
        self.requests.push_back(Request::Dial(link));
        link
    }

    fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn log(&mut self, line: LogLine) {
        if self.shared.logs.push((self.worker, line)).is_err() {
            self.counters.log_lines_dropped += 1;
        }
    }
}
