//! Every `unsafe` block of the crate: pushing operations, lending memory to the kernel, and taking it back.
//!
//! Owns the io_uring, the provided buffers and every buffer that is lent. Its safe functions keep the promise that
//! the kernel asks for: memory named in an operation stays valid and untouched until the operation's last completion.
//! Never interprets what happened; that is `uring.rs`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{SockAddr, SockRef};

use super::op::{Fd, Kind, Token};
use super::setup::RingSettings;
use super::supply::Supply;
use crate::base::slab::Key;

const BUFFER_GROUP: u16 = 0;

/// One completion as the kernel gave it, with what was lent for it.
pub(super) struct Raw {
    pub(super) token: Token,
    pub(super) result: i32,
    pub(super) more: bool,
    pub(super) lease: Option<Lease>,
    pub(super) bytes: Option<Vec<u8>>,
}

/// A receive buffer that the kernel filled and that must be given back. There is one per buffer at most: the kernel
/// does not fill a buffer again before it was given back.
#[derive(Debug)]
pub struct Lease {
    buffer: u16,
    filled: u32,
}

/// The io_uring and all memory it may touch.
pub(super) struct Queue {
    ring: IoUring,
    buffers: Buffers,
    /// Per slot, what is lent for its send. Invariant: some exactly while a send of that slot is out.
    sends: Vec<Option<Vec<u8>>>,
    /// Addresses lent for connects, until they complete.
    connects: Vec<(u32, Box<SockAddr>)>,
    /// Entries for which the submission queue had no room, in order.
    overflow: VecDeque<squeue::Entry>,
    /// Operations whose final completion has not come.
    out: usize,
    /// Operations pushed since the last [`Queue::enter`] that as a rule complete as they are submitted.
    prompt: usize,
    /// Calls of io_uring_enter(2).
    enters: u64,
}

impl Queue {
    /// Sets a ring up for the calling thread, which must be the only one to use it.
    pub(super) fn new(settings: &RingSettings) -> Result<Queue, (&'static str, io::Error)> {
        let ring = build(settings).map_err(|error| ("io_uring_setup", error))?;
        // A registered ring descriptor saves a look-up per call; without it everything still works.
        let _ = ring.submitter().register_ring_fd();
        let buffers = Buffers::new(&ring, settings.buffers, settings.buffer_bytes)?;
        Ok(Queue {
            ring,
            buffers,
            sends: Vec::new(),
            connects: Vec::new(),
            overflow: VecDeque::new(),
            out: 0,
            prompt: 0,
            enters: 0,
        })
    }

    pub(super) fn push_nop(&mut self, key: Key) {
        self.push(opcode::Nop::new().build(), Token::new(Kind::Unwatched, key));
    }

    pub(super) fn push_accept(&mut self, fd: Fd, key: Key) {
        let entry = opcode::AcceptMulti::new(types::Fd(fd.0)).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry, Token::new(Kind::Accept, key));
    }

    pub(super) fn push_accept_one(&mut self, fd: Fd, key: Key) {
        // No place for an address: it is asked for later, and nothing is lent.
        let entry = opcode::Accept::new(types::Fd(fd.0), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.push(entry, Token::new(Kind::Accept, key));
    }

    pub(super) fn push_receive(&mut self, fd: Fd, key: Key) {
        let entry = opcode::RecvMulti::new(types::Fd(fd.0), BUFFER_GROUP).build();
        self.push(entry, Token::new(Kind::Receive, key));
    }

    pub(super) fn push_send(&mut self, fd: Fd, key: Key, bytes: Vec<u8>, from: usize, is_last: bool) {
        let slot = key.index as usize;
        if self.sends.len() <= slot {
            self.sends.resize_with(slot + 1, || None);
        }
        assert!(self.sends[slot].is_none(), "one send in flight per slot");
        let part = &bytes[from..];
        let length = u32::try_from(part.len()).expect("a send buffer is far below 4 GiB");
        let entry = opcode::Send::new(types::Fd(fd.0), part.as_ptr(), length)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL | if is_last { libc::MSG_MORE } else { 0 })
            .build();
        self.sends[slot] = Some(bytes); // moving a Vec does not move its heap memory, to which `entry` points
        self.push(entry, Token::new(Kind::Send, key));
    }

    pub(super) fn push_connect(&mut self, fd: Fd, key: Key, address: SockAddr) {
        let address = Box::new(address);
        let entry = opcode::Connect::new(types::Fd(fd.0), address.as_ptr().cast(), address.len()).build();
        self.connects.push((key.index, address));
        self.push(entry, Token::new(Kind::Connect, key));
    }

    pub(super) fn push_poll(&mut self, fd: Fd, key: Key) {
        let entry = opcode::PollAdd::new(types::Fd(fd.0), libc::POLLIN as u32).multi(true).build();
        self.push(entry, Token::new(Kind::Wake, key));
    }

    pub(super) fn push_cancel_fd(&mut self, fd: Fd, key: Key) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::fd(types::Fd(fd.0)).all()).build();
        self.push(entry, Token::new(Kind::Unwatched, key));
    }

    pub(super) fn push_cancel(&mut self, token: Token) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(token.bits())).build();
        self.push(entry, Token::new(Kind::Unwatched, Key { index: token.slot(), generation: 0 }));
    }

    pub(super) fn push_close(&mut self, fd: Fd, key: Key) {
        self.push(opcode::Close::new(types::Fd(fd.0)).build(), Token::new(Kind::Unwatched, key));
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.bits());
        self.out += 1;
        self.prompt += usize::from(matches!(token.kind(), Kind::Send | Kind::Unwatched));
        if !self.overflow.is_empty() {
            self.overflow.push_back(entry);
            return;
        }
        // SAFETY: what `entry` points to (a send's bytes, a connect's address) was put into `self.sends` or
        // `self.connects` by the caller and stays there until `reap` sees the operation's last completion; receives
        // write only into `self.buffers`, which `Drop` frees after the last completion or not at all.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Full: hand what is there to the kernel and try again; if it will not take any now, keep the order.
            self.enters += 1;
            let _ = self.ring.submit();
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.overflow.push_back(entry);
            }
        }
    }

    fn push_overflow(&mut self) {
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `push`: what the entry points to is still held, since it was never completed.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                return;
            }
            self.overflow.pop_front();
        }
    }

    /// Whether the kernel can wait a little for a fuller batch (Linux 6.12).
    pub(super) fn can_batch(&self) -> bool {
        self.ring.params().is_feature_min_timeout()
    }

    /// Submits what fits the submission queue.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.push_overflow();
        self.enters += 1;
        let_go(self.ring.submit())
    }

    /// Submits, then waits for one completion at least, or for `timeout`. With `batch` it returns before that only once
    /// so many completions are there beside those of what is submitted now, or after so many microseconds with fewer.
    pub(super) fn enter(&mut self, timeout: Option<Duration>, batch: Option<(usize, u32)>) -> io::Result<()> {
        self.push_overflow();
        self.enters += 1;
        let prompt = std::mem::take(&mut self.prompt);
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                // No time at all is waited for too: the kernel carries out deferred work only for those who wait.
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                match batch {
                    None => self.ring.submitter().submit_with_args(1, &args),
                    Some((count, wait_us)) => {
                        self.ring.submitter().submit_with_args(prompt + count, &args.min_wait_usec(wait_us))
                    }
                }
            }
        };
        let_go(result)
    }

    /// Takes one completion.
    pub(super) fn reap(&mut self) -> Option<Raw> {
        let entry = self.ring.completion().next()?;
        let more = cqueue::more(entry.flags());
        if !more {
            self.out -= 1;
        }
        let token = Token::from_bits(entry.user_data()).expect("every entry was pushed with a token");
        let lease = cqueue::buffer_select(entry.flags()).map(|buffer| {
            self.buffers.taken();
            Lease { buffer, filled: u32::try_from(entry.result()).unwrap_or(0) }
        });
        let slot = token.slot();
        let bytes = match token.kind() {
            Kind::Send => self.sends.get_mut(slot as usize).and_then(Option::take),
            Kind::Connect => {
                self.connects.retain(|(owner, _)| *owner != slot);
                None
            }
            _ => None,
        };
        Some(Raw { token, result: entry.result(), more, lease, bytes })
    }

    pub(super) fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.buffers.bytes(lease)
    }

    pub(super) fn give_back(&mut self, lease: Lease) {
        self.buffers.give_back(lease.buffer);
    }

    /// Calls of io_uring_enter(2) so far.
    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    /// All completions at hand were taken: the kernel gets as many buffers as such a pass has been seen to fill.
    pub(super) fn supply(&mut self) {
        self.buffers.supply();
    }

    /// The kernel has run out of buffers: it gets all there are.
    pub(super) fn supply_all(&mut self) {
        self.buffers.supply_all();
    }

    pub(super) fn buffers_free(&self) -> usize {
        self.buffers.given + self.buffers.kept.len()
    }

    pub(super) fn buffers_total(&self) -> usize {
        usize::from(self.buffers.count)
    }

    /// Completions that found the queue full and were kept by the kernel, since the ring was made.
    #[cfg(test)]
    pub(super) fn overflowed(&mut self) -> u32 {
        self.ring.completion().overflow()
    }
}

impl Drop for Queue {
    /// Ends what is out and waits for it, so that the kernel holds no pointer when memory is freed. If the kernel does not
    /// let go in a second, the memory is leaked rather than freed.
    fn drop(&mut self) {
        let nobody = Key { index: u32::MAX, generation: 0 };
        self.push(opcode::AsyncCancel2::new(CancelBuilder::any()).build(), Token::new(Kind::Unwatched, nobody));
        let mut tries = 0;
        while self.out > 0 && tries < 100 {
            let _ = self.enter(Some(Duration::from_millis(10)), None);
            while let Some(raw) = self.reap() {
                if let Some(lease) = raw.lease {
                    self.give_back(lease);
                }
            }
            tries += 1;
        }
        if self.out > 0 {
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.connects));
            self.buffers.leak = true;
        }
        let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
    }
}

/// What entering the ring came to.
fn let_go(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        // Time is up, a signal came, or the completion queue must be emptied first: all are "look at completions".
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// CPU time of the calling thread.
pub(super) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec. The call cannot fail for the calling thread's own clock; if it did, no time
    // would have passed.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The shortest turn that the scheduler knows, in nanoseconds.
const TURN_NANOS: u64 = 100_000;

/// Asks the scheduler for the shortest turns there are, 100 microseconds, for the calling thread: whoever is content with
/// them gets the next one sooner (sched_setattr(2); the kernel's Documentation/scheduler/sched-eevdf.rst). A thread that is
/// woken for a request then need not wait until others on its core have had turns of milliseconds. The share of the core that
/// it gets stays the same, and so do its nice value and policy; other policies than the usual ones, such as real-time ones,
/// are left as they are. Kernels before 6.12 take the request and do nothing about it.
///
/// # Errors
/// Those of sched_setattr(2): a sandbox may refuse it.
pub fn ask_for_short_turns() -> io::Result<()> {
    let mut attributes = scheduling()?;
    if !matches!(attributes.sched_policy.cast_signed(), libc::SCHED_OTHER | libc::SCHED_BATCH) {
        return Ok(());
    }
    attributes.sched_runtime = TURN_NANOS;
    // SAFETY: `attributes` is readable and says its own size. Thread 0 is the calling one; the last argument must be 0.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the calling thread is scheduled.
fn scheduling() -> io::Result<libc::sched_attr> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all zeros is a value of this struct of integers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: `attributes` is writable and of the size given. Thread 0 is the calling one; the last argument must be 0.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) } {
        0 => Ok(libc::sched_attr { size: SIZE, ..attributes }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the kernel keeps the system's clock (adjtimex(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockState {
    /// Whether something keeps it to the time of others.
    pub is_synchronised: bool,
    /// How far it may be off, at most.
    pub error_max: Duration,
}

/// Asks how the kernel keeps the system's clock. Changes nothing.
///
/// # Errors
/// Those of adjtimex(2): a sandbox may refuse it.
pub fn clock_state() -> io::Result<ClockState> {
    // SAFETY: all zeros is a value of this struct of integers.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a writable timex. With `modes` of zero the call only reads the clock's state into it.
    if unsafe { libc::adjtimex(&raw mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ClockState {
        is_synchronised: state.status & libc::STA_UNSYNC == 0,
        error_max: Duration::from_micros(u64::try_from(state.maxerror).unwrap_or(0)),
    })
}

fn build(settings: &RingSettings) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_clamp()
        .setup_cqsize(settings.completions)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun();
    match builder.clone().setup_no_sqarray().build(settings.submissions) {
        // Linux before 6.6 does not know NO_SQARRAY, which is only a saving.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(settings.submissions),
        result => result,
    }
}

/// From one receive buffer to the next, in bytes. A power of two would put the starts of all of them, which is what small
/// requests use, into the same few sets of the cache: five cache lines more spread them.
fn stride(buffer_bytes: u32) -> usize {
    buffer_bytes as usize + 5 * 64
}

/// The ring of provided receive buffers.
struct Buffers {
    /// The kernel's ring of entries, then the buffers themselves, in one anonymous mapping.
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    /// Offset of the first buffer in the mapping.
    start: usize,
    count: u16,
    buffer_bytes: u32,
    tail: u16,
    /// Buffers given to the kernel and not yet filled. It fills them in turn.
    given: usize,
    /// Buffers that are not given to the kernel for now, the one that was used last on top. The fewer take turns, the more of
    /// them are still in the core's cache when they are filled again.
    kept: Vec<u16>,
    supply: Supply,
    /// Set when the kernel may still write: then the mapping is never undone.
    leak: bool,
}

impl Buffers {
    fn new(ring: &IoUring, count: u16, buffer_bytes: u32) -> Result<Buffers, (&'static str, io::Error)> {
        assert!(count.is_power_of_two() && count <= 32_768, "the kernel wants a power of two up to 32768");
        let start = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let mapping_bytes = start + usize::from(count) * stride(buffer_bytes);
        // SAFETY: a fresh anonymous mapping aliases nothing; the result is checked below.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapping_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(("mmap of receive buffers", io::Error::last_os_error()));
        }
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("mmap without MAP_FIXED does not return null");
        let (kept, supply) = (Vec::with_capacity(usize::from(count)), Supply::new(usize::from(count)));
        let mut buffers = Buffers {
            mapping,
            mapping_bytes,
            start,
            count,
            buffer_bytes,
            tail: 0,
            given: 0,
            kept,
            supply,
            leak: false,
        };
        // SAFETY: the mapping starts page-aligned, holds `count` entries, and outlives the registration: `Queue::drop`
        // unregisters before this struct's own drop unmaps.
        let registered =
            unsafe { ring.submitter().register_buf_ring_with_flags(mapping.as_ptr() as u64, count, BUFFER_GROUP, 0) };
        registered.map_err(|error| ("register provided buffers", error))?;
        buffers.kept.extend((0..count).rev());
        buffers.supply();
        Ok(buffers)
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < self.count, "the kernel names only buffers it was given");
        // SAFETY: in bounds of the mapping by the assertion and by how `mapping_bytes` was computed.
        unsafe { self.mapping.as_ptr().add(self.start + usize::from(buffer) * stride(self.buffer_bytes)) }
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        assert!(lease.filled <= self.buffer_bytes, "the kernel fills within the buffer");
        let address = self.address(lease.buffer);
        // SAFETY: the buffer is initialised (anonymous pages are zero) and belongs to the holder of the lease: leases
        // are made only in `reap`, one per filling, and the kernel fills no buffer that was not given back. The
        // exclusive borrow of the lease keeps the slice unique.
        unsafe { std::slice::from_raw_parts_mut(address, lease.filled as usize) }
    }

    /// The kernel has filled one.
    fn taken(&mut self) {
        self.given -= 1;
        self.supply.taken();
    }

    fn give_back(&mut self, buffer: u16) {
        if self.given < self.supply.wanted() {
            self.give(buffer);
        } else {
            self.kept.push(buffer);
        }
    }

    fn supply(&mut self) {
        self.supply.passed();
        while self.given < self.supply.wanted()
            && let Some(buffer) = self.kept.pop()
        {
            self.give(buffer);
        }
    }

    fn supply_all(&mut self) {
        self.supply.exhausted();
        self.supply();
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        let entries = self.mapping.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `index` is below `count`, so the entry lies in the mapping; the kernel does not read entries at or
        // beyond the tail, and this one is published only by the store below. The first entry's reserved field is
        // the tail, which `set_*` do not touch.
        let entry = unsafe { &mut *entries.add(index) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.given += 1;
        // SAFETY: the tail lives in the mapping, is aligned for u16, and is read by the kernel with acquire semantics,
        // so it is written through an atomic.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.leak {
            return;
        }
        // SAFETY: the mapping is ours, of this size, and the kernel is done with it (see `Queue::drop`).
        unsafe {
            libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes);
        }
    }
}

/// Calls for a worker's attention from another thread.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        // SAFETY: eventfd takes no pointers; the result is checked below.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that eventfd just made and nobody else knows.
        Ok(Waker { event: Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Makes the worker's wait return with [`super::Outcome::Woken`]. Never blocks; many calls may become one wake-up.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` is eight readable bytes. A full counter (EAGAIN) means a wake-up is pending already.
        unsafe {
            libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len());
        }
    }

    /// Takes pending wake-ups, so that the poll fires again for later ones.
    pub(super) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: `count` is eight writable bytes. EAGAIN means there was nothing to take.
        unsafe {
            libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len());
        }
    }

    pub(super) fn fd(&self) -> Fd {
        Fd(self.event.as_raw_fd())
    }
}

/// Gives memory that this thread has freed back to the system.
pub(super) fn return_memory() {
    // SAFETY: it takes no pointer and touches only what mimalloc itself holds for the calling thread; where mimalloc is not
    // the allocator, that is nothing.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Lets socket2 act on a descriptor for the length of one call.
pub(super) fn with_socket<T>(fd: Fd, act: impl FnOnce(SockRef<'_>) -> T) -> T {
    // SAFETY: the descriptor is open: slots hold theirs until `Ring::close`, which is the caller's last use of it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.0) };
    act(SockRef::from(&borrowed))
}

/// Sets a socket option that is an array of bytes.
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads `length` bytes, all within `value`, before the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The bytes of a socket option of at most `BYTES`.
#[cfg(test)]
pub(super) fn get_option<const BYTES: usize>(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<Vec<u8>> {
    let mut value = [0; BYTES];
    let mut length = libc::socklen_t::try_from(BYTES).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, all within `value`, and says how many, before the call returns.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(value[..length as usize].to_vec()) } else { Err(io::Error::last_os_error()) }
}

/// Closes a descriptor that never had an operation, for instance one accepted while stopping.
pub(super) fn close_now(fd: Fd) {
    // SAFETY: the caller gives up the descriptor; nobody else holds it.
    drop(unsafe { OwnedFd::from_raw_fd(fd.0) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_get_short_and_nothing_else_changes() {
        let of_thread = || scheduling().and_then(|before| ask_for_short_turns().map(|()| (before, scheduling())));
        let (before, after) = match std::thread::spawn(of_thread).join().unwrap() {
            Ok((before, after)) => (before, after.unwrap()),
            Err(error) => return println!("NOT RUN: sched_setattr(2) is refused: {error}"),
        };
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
        assert_eq!((after.sched_flags, after.sched_priority), (before.sched_flags, before.sched_priority));
        if before.sched_policy != libc::SCHED_OTHER.cast_unsigned() || before.sched_runtime == 0 {
            return println!("NOT RUN further: the kernel tells no length of turns, or another policy is on");
        }
        assert_eq!(after.sched_runtime, TURN_NANOS);
    }
}
