//! A server's part of a handshake, and the parts of which cryptography has no choice. The client's part is not timed.

#[path = "../tests/tls_support/mod.rs"]
mod tls_support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use criterion::{Criterion, criterion_group, criterion_main};
use tls_support::{Authority, NAME, Said, feed, seal};
use trunkline::tls::{ClientOptions, ClientSettings, ServerOptions, ServerSettings, Session};

/// Time the server took for one handshake, from its first record to the last.
fn server_time(client: &ClientSettings, server: &ServerSettings, resumed: bool) -> Duration {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Session::client(client, NAME, None, &mut to_server).expect("the name is good");
    let mut said = Said::default();
    let mut taken = Duration::ZERO;
    let mut session = None;
    while !to_server.is_empty() {
        let start = Instant::now();
        let server = session.get_or_insert_with(|| Session::server(server));
        said.merge(feed(server, &mut to_server, &mut to_client));
        taken += start.elapsed();
        feed(&mut client, &mut to_client, &mut to_server);
    }
    assert_eq!(said.established.map(|established| established.resumed), Some(resumed));
    seal(&mut client, b"x", &mut to_server).expect("the session is established");
    taken
}

fn handshakes(criterion: &mut Criterion) {
    let authority = Authority::new();
    let mut group = criterion.benchmark_group("handshake_server");
    for (name, sessions, tickets) in
        [("full_0_tickets", 0, 0), ("full_1_ticket", 0, 1), ("full_2_tickets", 0, 2), ("resumed_1_ticket", 1, 1)]
    {
        let client = ClientOptions { sessions, ..authority.client_options() };
        let client = ClientSettings::new(&client).expect("the options are good");
        let server = ServerOptions { tickets, ..authority.server_options() };
        let server = ServerSettings::new(&server).expect("the options are good");
        if sessions > 0 {
            server_time(&client, &server, false); // leaves the first ticket
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| server_time(&client, &server, sessions > 0)).sum());
        });
    }
    group.finish();
}

fn parts(criterion: &mut Criterion) {
    let random = SystemRandom::new();
    let mut group = criterion.benchmark_group("handshake_parts");
    group.bench_function("x25519_generate_and_agree", |bencher| {
        let peer = EphemeralPrivateKey::generate(&X25519, &random).expect("the system gives randomness");
        let peer = peer.compute_public_key().expect("a key has a public half");
        bencher.iter(|| {
            let ours = EphemeralPrivateKey::generate(&X25519, &random).expect("the system gives randomness");
            black_box(ours.compute_public_key().expect("a key has a public half"));
            let peer = UnparsedPublicKey::new(&X25519, &peer);
            agree_ephemeral(ours, peer, (), |secret| {
                black_box(secret);
                Ok(())
            })
            .expect("the peer's key is good");
        });
    });
    group.bench_function("ecdsa_p256_sign", |bencher| {
        let signed = Authority::new().sign(NAME);
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &signed.key_der).expect("it is PKCS#8");
        bencher.iter(|| black_box(key.sign(&random, &[7; 130]).expect("signing works")));
    });
    group.finish();
}

criterion_group!(benches, handshakes, parts);
criterion_main!(benches);
