//! Hostile bytes instead of a handshake, to a server and to a client.
//!
//! The first byte of the input says which; the rest is what the peer sends.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, KeyPair};
use trunkline::tls::{
    ClientAuth, ClientOptions, ClientSettings, Identity, Received, Roots, ServerOptions, ServerSettings, Session, record_bytes,
};

static SETTINGS: LazyLock<(ServerSettings, ServerSettings, ClientSettings)> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("the system gives randomness");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).and_then(|params| params.self_signed(&key));
    let certificate = certificate.expect("the parameters are good").der().to_vec();
    let identity = Identity::from_der(vec![certificate.clone()], key.serialize_der()).expect("they belong together");
    let roots = Roots::from_der(vec![certificate]).expect("it is a certificate");
    let mut options = ServerOptions { tunnels: true, post_quantum: true, ..ServerOptions::new(identity) };
    let tunnels = ServerSettings::new(&options).expect("the options are good");
    options.client_auth = ClientAuth::Required(roots.clone());
    options.tunnels = false;
    let mutual = ServerSettings::new(&options).expect("the options are good");
    (tunnels, mutual, ClientSettings::new(&ClientOptions::new(roots)).expect("the options are good"))
});

fuzz_target!(|input: &[u8]| {
    let Some((&side, bytes)) = input.split_first() else { return };
    let (tunnels, mutual, client) = &*SETTINGS;
    let mut out = Vec::new();
    let mut session = match side % 3 {
        0 => Session::server(tunnels),
        1 => Session::server(mutual),
        _ => Session::client(client, "localhost", None, &mut out).expect("the name is good"),
    };
    out.clear();
    let mut input = bytes.to_vec();
    let mut rest = &mut input[..];
    loop {
        let length = match record_bytes(rest) {
            Ok(Some(length)) if length <= rest.len() => length,
            Ok(_) => break,
            Err(error) => {
                session.fail(error, &mut out);
                break;
            }
        };
        let (record, behind) = rest.split_at_mut(length);
        rest = behind;
        let received = match session.receive(record, &mut out) {
            Ok(Received::Hello) => session.proceed(None, &mut out),
            other => other,
        };
        match received {
            Ok(Received::Nothing) => assert!(!session.is_established(), "nobody guesses a Finished"),
            Ok(other) => panic!("{other:?} out of nothing"),
            Err(error) => {
                assert!(!session.is_established(), "{error:?}");
                break;
            }
        }
    }
    // Whatever it was told, what a session says is records.
    let mut at = 0;
    while at < out.len() {
        at += record_bytes(&out[at..]).expect("it is a record").expect("it is whole");
    }
    assert_eq!(at, out.len());
});
