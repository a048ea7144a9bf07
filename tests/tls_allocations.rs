//! What a TLS session allocates: nothing per record, and little while it is idle.
//!
//! Its own test binary, because the allocator of a process is one. One test, because threads would mix their figures.
#![allow(unsafe_code)] // a global allocator cannot be written without

#[path = "tls_support/pair.rs"]
mod pair;
mod tls_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use pair::Pair;
use tls_support::{Authority, NAME, STORE, feed, seal};
use trunkline::tls::{ClientSettings, RECORD_BYTES_MAX, Received, ServerSettings, Session};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `memory` came from `alloc` above, which passed on the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Seals and opens `count` records of `plaintext_bytes` in each direction, in buffers that have room already.
fn exchange(pair: &mut Pair, plaintext_bytes: usize, count: usize) {
    let plaintext = [7; 1 << 14];
    let take = |session: &mut Session, input: &mut Vec<u8>| {
        let mut none = Vec::new();
        let received = session.receive(input, &mut none).unwrap();
        assert!(matches!(received, Received::Data(data) if data.len() == plaintext_bytes));
        input.clear();
    };
    for _ in 0..count {
        seal(&mut pair.client, &plaintext[..plaintext_bytes], &mut pair.to_server).unwrap();
        seal(&mut pair.server, &plaintext[..plaintext_bytes], &mut pair.to_client).unwrap();
        take(&mut pair.server, &mut pair.to_server);
        take(&mut pair.client, &mut pair.to_client);
    }
}

/// Rust heap that one server session holds when its handshake is complete and it rests: the session itself aside, which
/// holds both traffic secrets.
fn idle_server_bytes(client: &ClientSettings, server: &ServerSettings) -> usize {
    STORE.with_borrow_mut(|store| *store = Vec::new());
    let mut to_client = Vec::with_capacity(1 << 16);
    let mut to_server = Vec::with_capacity(1 << 16);
    let mut client = Session::client(client, NAME, None, &mut to_server).unwrap();
    let live = || LIVE_BYTES.load(Ordering::Relaxed);
    let before = live();
    let mut session = Session::server(server);
    drop(feed(&mut session, &mut to_server, &mut to_client));
    let client_before = live();
    drop(feed(&mut client, &mut to_client, &mut to_server));
    let client_after = live();
    drop(feed(&mut session, &mut to_server, &mut to_client));
    assert!(session.is_established());
    session.rest();
    STORE.with_borrow_mut(|store| *store = Vec::new());
    (live() + client_before).wrapping_sub(before + client_after)
}

#[test]
fn steady_traffic_allocates_nothing_and_an_idle_session_holds_little() {
    let authority = Authority::new();
    let client = ClientSettings::new(&authority.client_options()).unwrap();
    let server = ServerSettings::new(&authority.server_options()).unwrap();
    let mut pair = Pair::new(&client, &server);
    pair.run();
    assert!(pair.client.is_established() && pair.server.is_established());
    pair.to_server.reserve(2 * RECORD_BYTES_MAX);
    pair.to_client.reserve(2 * RECORD_BYTES_MAX);
    exchange(&mut pair, 300, 1);
    assert_eq!(allocations(|| exchange(&mut pair, 300, 1000)), 0);
    assert_eq!(allocations(|| exchange(&mut pair, 1 << 14, 100)), 0);

    let bytes = idle_server_bytes(&client, &server);
    assert_eq!(bytes, 0, "an idle server session holds heap beside itself");
    assert!(size_of::<Session>() <= 192, "{}", size_of::<Session>());

    pair.server.rest();
    assert!(allocations(|| exchange(&mut pair, 300, 1)) > 0, "its ciphers are made anew");
    assert_eq!(allocations(|| exchange(&mut pair, 300, 1)), 0);
}
