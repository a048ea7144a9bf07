//! MMTP frames to bytes and back: a request's HEADERS, DATA of a small answer, DATA of the largest size.
//!
//! Floor of encoding: every byte of a payload moves once, into the send buffer. That is `floor_copy` of the same size: at
//! 16 to 32 bytes a cycle, which a core does within its first two caches, 300 bytes take 10 to 20 cycles, 16 KiB 512 to
//! 1 024. Beside it stand 3 to 6 bytes of frame header, and the look whether there is room.
//!
//! Floor of decoding: the payload stays where it is and nothing of it is read, so the size must not show at all: two
//! variable-length integers, a few cycles each.

#[allow(dead_code)] // each bench takes the floors it has
mod floor;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{HeaderFlags, decode, encode};

/// DATA of one record's size.
const LARGE_BYTES: usize = 16 * 1024;

fn codec(criterion: &mut Criterion) {
    let payload = vec![7; LARGE_BYTES];
    let frames = [
        ("headers", Frame::Headers { stream: 12_345, flags: HeaderFlags::END, block: &payload[..100] }),
        ("data", Frame::Data { stream: 12_345, end: true, bytes: &payload[..300] }),
        ("data", Frame::Data { stream: 12_345, end: false, bytes: &payload }),
        ("credit", Frame::Credit { stream: 12_345, bytes: 65_536 }),
    ];
    let mut group = criterion.benchmark_group("codec");
    for (name, frame) in frames {
        let mut bytes = Vec::with_capacity(2 * LARGE_BYTES);
        encode::put_frame(frame, &mut bytes);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let sized = |what: &str| BenchmarkId::new(format!("{what}_{name}"), bytes.len());
        group.bench_function(sized("decode"), |bencher| {
            bencher.iter(|| decode::frame(black_box(&bytes)).is_ok());
        });
        assert_eq!(decode::frame(&bytes), Ok(Some((frame, bytes.len()))));
        let id = sized("encode");
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                bytes.clear();
                encode::put_frame(black_box(frame), &mut bytes);
            });
        });
    }
    for bytes in [100, 300, LARGE_BYTES] {
        floor::copy(&mut group, bytes);
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
