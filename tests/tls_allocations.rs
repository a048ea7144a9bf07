//! What a TLS session allocates: nothing per record, and little while it is idle.
//!
//! Its own test binary, because the allocator of a process is one. One test, because threads would mix their figures.
#![allow(unsafe_code)] // a global allocator cannot be written without

mod tls_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use tls_support::{Authority, Pair, feed, seal};
use trunkline::tls::{RECORD_BYTES_MAX, Session};

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
    for _ in 0..count {
        seal(&mut pair.client, &plaintext[..plaintext_bytes], &mut pair.to_server).unwrap();
        seal(&mut pair.server, &plaintext[..plaintext_bytes], &mut pair.to_client).unwrap();
        pair.server_said.data.clear();
        pair.client_said.data.clear();
        let mut pump = |session: &mut Session, input: &mut Vec<u8>, out: &mut Vec<u8>| {
            let received = session.receive(input, out).unwrap();
            assert!(matches!(received, trunkline::tls::Received::Data(data) if data.len() == plaintext_bytes));
            input.clear();
        };
        let mut none = Vec::new();
        pump(&mut pair.server, &mut pair.to_server, &mut none);
        pump(&mut pair.client, &mut pair.to_client, &mut none);
    }
}

#[test]
fn steady_traffic_allocates_nothing_and_an_idle_session_little() {
    let authority = Authority::new();
    let (client, server) = (authority.client_options(), authority.server_options());
    let mut pair = Pair::new(&client, &server);
    pair.run();
    assert!(pair.client.is_established() && pair.server.is_established());
    pair.to_server.reserve(2 * RECORD_BYTES_MAX);
    pair.to_client.reserve(2 * RECORD_BYTES_MAX);
    exchange(&mut pair, 300, 1);
    assert_eq!(allocations(|| exchange(&mut pair, 300, 1000)), 0);
    assert_eq!(allocations(|| exchange(&mut pair, 1 << 14, 100)), 0);

    let client = trunkline::tls::ClientSettings::new(&client).unwrap();
    let server = trunkline::tls::ServerSettings::new(&server).unwrap();
    let mut warm = Pair::with(&client, &server);
    warm.run();
    let mut out = Vec::with_capacity(1 << 16);
    let mut client_out = Vec::with_capacity(1 << 16);
    let mut client_session = Session::client(&client, tls_support::NAME, &mut client_out).unwrap();
    let before_bytes = LIVE_BYTES.load(Ordering::Relaxed);
    let mut session = Session::server(&server).unwrap();
    drop(feed(&mut session, &mut client_out, &mut out));
    let client_before_bytes = LIVE_BYTES.load(Ordering::Relaxed);
    drop(feed(&mut client_session, &mut out, &mut client_out));
    let client_grown = LIVE_BYTES.load(Ordering::Relaxed).wrapping_sub(client_before_bytes);
    drop(feed(&mut session, &mut client_out, &mut out));
    assert!(session.is_established());
    let session_bytes = LIVE_BYTES.load(Ordering::Relaxed).wrapping_sub(before_bytes).wrapping_sub(client_grown);
    println!("rust heap of an established server session {session_bytes}, size {}", size_of::<Session>());
}
