//! What `trunkline certs` and the demo make must satisfy the TLS of trunks and clients without further settings: the
//! gateway's certificate for the bare IP of its address, the POP's as a client certificate, and both for names given.

use trunkline::server::certificates::{DevelopmentCa, Issued, Usage};
use trunkline::tls::{
    ClientAuth, ClientOptions, ClientSettings, Identity, Received, Roots, ServerOptions, ServerSettings, Session,
    record_bytes,
};

fn identity(issued: &Issued) -> Identity {
    Identity::from_der(issued.chain.clone(), issued.key.clone()).expect("a certificate and its key")
}

/// Hands the whole records of `bytes` to a session. Whether it said that it is established.
fn receive(session: &mut Session, bytes: &mut Vec<u8>, answers: &mut Vec<u8>) -> Result<bool, String> {
    let mut established = false;
    while let Some(length) = record_bytes(bytes).map_err(|error| error.to_string())? {
        if bytes.len() < length {
            break;
        }
        let mut record: Vec<u8> = bytes.drain(..length).collect();
        let mut received = session.receive(&mut record, answers).map_err(|error| error.to_string())?;
        if let Received::Hello = received {
            received = session.proceed(None, answers).map_err(|error| error.to_string())?;
        }
        established |= matches!(received, Received::Established(_));
    }
    Ok(established)
}

/// Mutual TLS between the POP's and the gateway's certificate of one authority.
fn dial(ca: &DevelopmentCa, pop: &Issued, gateway: &Issued, server_name: &str) -> Result<(), String> {
    let roots = Roots::from_der(ca.authorities().roots).expect("an authority");
    let mut server = ServerOptions::new(identity(gateway));
    server.client_auth = ClientAuth::Required(roots.clone());
    let mut client = ClientOptions::new(roots);
    client.identity = Some(identity(pop));
    let server = ServerSettings::new(&server).expect("plain settings");
    let client = ClientSettings::new(&client).expect("plain settings");
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut server = Session::server(&server);
    let mut client = Session::client(&client, server_name, None, &mut to_server).map_err(|error| error.to_string())?;
    let (mut server_done, mut client_done) = (false, false);
    for _ in 0..10 {
        server_done |= receive(&mut server, &mut to_server, &mut to_client)?;
        client_done |= receive(&mut client, &mut to_client, &mut to_server)?;
    }
    assert!(server_done && client_done);
    Ok(())
}

#[test]
fn trunks_come_up_by_address_and_by_name() {
    let ca = DevelopmentCa::new().expect("an authority");
    let names = ["gateway.example".to_owned(), "192.0.2.7".to_owned()];
    let pop = ca.issue("pop", &names, Usage::ServerAndClient).expect("a certificate");
    let gateway = ca.issue("gateway", &names, Usage::Server).expect("a certificate");
    for name in ["127.0.0.1", "::1", "localhost", "gateway.example", "192.0.2.7"] {
        assert_eq!(dial(&ca, &pop, &gateway, name), Ok(()), "{name}");
        assert_eq!(dial(&ca, &pop, &pop, name), Ok(()), "clients meet the POP by {name}");
    }
    assert!(dial(&ca, &pop, &gateway, "192.0.2.8").is_err(), "an address it was not made for");
    assert!(dial(&ca, &gateway, &gateway, "127.0.0.1").is_err(), "a gateway's certificate is none for a client");
    let other = DevelopmentCa::new().expect("an authority");
    let stranger = other.issue("pop", &[], Usage::ServerAndClient).expect("a certificate");
    assert!(dial(&ca, &stranger, &gateway, "127.0.0.1").is_err(), "another authority's certificate");
}
