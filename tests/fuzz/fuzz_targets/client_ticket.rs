//! A client's ticket from a file that anything may have been written to: no panic, what is taken for a ticket survives
//! being written and read again, and a session that is given it begins.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::digest;
use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, KeyPair};
use trunkline::tls::{ClientOptions, ClientSettings, ClientTicket, Roots, Session, record_bytes};

/// A week, longer than which no ticket lives (RFC 8446 4.6.1).
const LIFETIME_S_MAX: u64 = 7 * 24 * 3600;

static SETTINGS: LazyLock<ClientSettings> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("the system gives randomness");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).and_then(|params| params.self_signed(&key));
    let certificate = certificate.expect("the parameters are good").der().to_vec();
    let roots = Roots::from_der(vec![certificate]).expect("it is a certificate");
    ClientSettings::new(&ClientOptions::new(roots)).expect("the options are good")
});

fuzz_target!(|input: &[u8]| {
    // As it is: nobody guesses the digest at its end.
    assert!(ClientTicket::from_bytes(input).is_none());
    let sealed = [input, digest::digest(&digest::SHA256, input).as_ref()].concat();
    let Some(ticket) = ClientTicket::from_bytes(&sealed) else { return };
    let written = ticket.to_bytes();
    let again = ClientTicket::from_bytes(&written).expect("what was written can be read");
    assert_eq!(again.to_bytes(), written);
    let told = |ticket: &ClientTicket| {
        (ticket.server_name().to_owned(), ticket.received_s(), ticket.expires_s(), ticket.early_bytes_max())
    };
    assert_eq!(told(&again), told(&ticket));
    assert!(ticket.expires_s() - ticket.received_s() <= LIFETIME_S_MAX);
    let mut out = Vec::new();
    let session = Session::client(&SETTINGS, "localhost", Some(ticket), &mut out).expect("the name is good");
    assert_eq!(session.early_room(), 0, "it came with other settings");
    assert_eq!(record_bytes(&out).expect("it is a record"), Some(out.len()));
});
