//! Sealing and opening records: a small response and a full record.
//!
//! Floor: the cipher on the bytes of the record and the one byte of its type, which is `floor_aes_128_gcm` of the same size.
//! Its cost is a fixed part for each record (the counter blocks, the tag) and one for each byte. Sealing also moves the
//! plaintext behind a record header once: `floor_copy`. Opening is in place and moves nothing.
//!
//! By the figures of docs/BENCHMARKS.md (0.25 µs for 300 bytes, 4.3 µs for 16 KiB, our layer included) a byte costs no more
//! than (4.3 - 0.25) µs / 16 084 = 0.25 ns, and a record by itself no more than 0.25 µs - 300 * 0.25 ns = 0.18 µs.

#[allow(dead_code)] // each bench takes the floors it has
mod floor;
#[path = "../tests/tls_support/pair.rs"]
mod pair;
#[path = "../tests/tls_support/mod.rs"]
mod tls_support;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pair::Pair;
use tls_support::{Authority, seal};
use trunkline::tls::{ClientSettings, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, Received, ServerSettings};

fn established() -> Pair {
    let authority = Authority::new();
    let client = ClientSettings::new(&authority.client_options()).expect("the options are good");
    let server = ServerSettings::new(&authority.server_options()).expect("the options are good");
    let mut pair = Pair::new(&client, &server);
    pair.run();
    pair
}

fn record_layer(criterion: &mut Criterion) {
    let plaintext = vec![7; PLAINTEXT_BYTES_MAX];
    let mut group = criterion.benchmark_group("record_layer");
    for bytes in [300, PLAINTEXT_BYTES_MAX] {
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("seal", bytes), |bencher| {
            let mut pair = established();
            let mut out = Vec::with_capacity(2 * RECORD_BYTES_MAX);
            bencher.iter(|| {
                if pair.server.key_update_due() {
                    pair.server.put_key_update(&mut out).expect("the session is established");
                }
                out.clear();
                seal(&mut pair.server, &plaintext[..bytes], &mut out).expect("the session is established");
            });
        });
        group.bench_function(BenchmarkId::new("open", bytes), |bencher| {
            let mut pair = established();
            let mut answer = Vec::new();
            // A record opens once, in order: a batch is sealed first, without being timed.
            bencher.iter_batched_ref(
                || {
                    let mut record = Vec::with_capacity(RECORD_BYTES_MAX);
                    seal(&mut pair.client, &plaintext[..bytes], &mut record).expect("the session is established");
                    record
                },
                |record| {
                    let received = pair.server.receive(record, &mut answer);
                    assert!(matches!(received, Ok(Received::Data(data)) if data.len() == bytes));
                },
                BatchSize::SmallInput,
            );
        });
        floor::aes_gcm(&mut group, bytes);
        floor::copy(&mut group, bytes);
    }
    group.finish();
}

criterion_group!(benches, record_layer);
criterion_main!(benches);
