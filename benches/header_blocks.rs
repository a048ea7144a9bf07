//! Header blocks: written as a client writes them, parsed as whoever receives them, and gone through.
//!
//! Floor of writing: every byte of a value moves once, and every field has two integers in front: `floor_copy` of the
//! block's size, some 10 cycles, and about 3 cycles for each of 10 fields.
//!
//! Floor of parsing: every byte of a value is looked at once, since a value may not hold line ends or zeros, and every field
//! has its rules: `floor_read` of the block's size, and two integers and a look into the table for each field. Nothing
//! moves.

#[allow(dead_code)] // each bench takes the floors it has
mod floor;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trunkline::mmtp::{HeaderBlock, HeaderWriter, Known, Message};

const HTTP_FIELDS: [(&[u8], &[u8]); 7] = [
    (b"user-agent", b"shop/7.3 (Android 15; arm64)"),
    (b"accept", b"application/json"),
    (b"accept-language", b"de-DE,de;q=0.9,en;q=0.8"),
    (b"authorization", b"Bearer 0123456789abcdef0123456789abcdef"),
    (b"content-type", b"application/json; charset=utf-8"),
    (b"x-session", b"6f1c9e0a-45d2-4c7e-9d0b-2f6d1b7c8a90"),
    (b"cookie", b"theme=dark; region=eu-central"),
];

fn write(block: &mut Vec<u8>) {
    let mut writer = HeaderWriter::new(block);
    writer.known(Known::Service, b"pay").expect("a label");
    writer.known(Known::Method, b"POST").expect("a method");
    writer.known(Known::Path, b"/v2/orders/81724/payments?currency=EUR").expect("a path");
    for (name, value) in HTTP_FIELDS {
        writer.http(name, value).expect("a field");
    }
}

fn header_blocks(criterion: &mut Criterion) {
    let mut block = Vec::with_capacity(1024);
    write(&mut block);
    let mut group = criterion.benchmark_group("header_blocks");
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| HeaderBlock::parse(black_box(&block), Message::Request).is_ok());
    });
    let parsed = HeaderBlock::parse(&block, Message::Request).expect("just written");
    assert_eq!(parsed.fields().count(), 3 + HTTP_FIELDS.len());
    group.bench_function("go_through", |bencher| {
        bencher.iter(|| black_box(&parsed).fields().fold(0, |bytes, field| bytes + field.value.len()));
    });
    group.bench_function("look_up", |bencher| bencher.iter(|| black_box(&parsed).get(Known::Path)));
    let bytes = block.len();
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            block.clear();
            write(black_box(&mut block));
        });
    });
    floor::copy(&mut group, bytes);
    floor::read(&mut group, bytes);
    group.finish();
}

criterion_group!(benches, header_blocks);
criterion_main!(benches);
