//! What no code can do without, measured in the same run as the code beside it: copying bytes, and AES-128-GCM.
//!
//! A figure is told as a multiple of its floor: absolute times drift from machine to machine and from hour to hour.

use std::hint::black_box;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Throughput};

/// Bytes copied from one place to another, both in the cache: what a byte that changes its place costs.
pub fn copy(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    // Half a page apart: places whose addresses differ in the page alone are taken for one another by some cores.
    let mut memory = vec![7u8; 2 * bytes + 2048];
    let (from, to) = memory.split_at_mut(bytes + 2048);
    let from = &from[..bytes];
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new("floor_copy", bytes), |bencher| {
        bencher.iter(|| black_box(&mut *to).copy_from_slice(black_box(from)));
    });
}

/// Bytes read once, eight at a time: what looking at every byte costs.
pub fn read(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    let from = vec![7u8; bytes];
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new("floor_read", bytes), |bencher| {
        bencher.iter(|| {
            let words = black_box(&from).chunks_exact(8);
            words.fold(0, |sum: u64, word| sum ^ u64::from_ne_bytes(word.try_into().expect("eight bytes")))
        });
    });
}

/// Bytes encrypted in place by the cipher alone, as one record would be.
pub fn aes_gcm(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).expect("sixteen bytes"));
    let mut record = vec![7u8; bytes];
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(BenchmarkId::new("floor_aes_128_gcm", bytes), |bencher| {
        bencher.iter(|| {
            let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]); // of no secret
            key.seal_in_place_separate_tag(nonce, Aad::from([23, 3, 3, 1, 0]), black_box(&mut record))
        });
    });
}
