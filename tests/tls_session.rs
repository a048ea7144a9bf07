//! TLS sessions of ours against each other.

mod tls_support;

use tls_support::{Authority, Pair, seal};
use trunkline::base::wire::Protocol;

#[test]
fn two_sessions_shake_hands_and_carry_data_both_ways() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority.client_options(), &authority.server_options());
    pair.run();
    for said in [&pair.client_said, &pair.server_said] {
        assert_eq!(said.error, None);
        assert_eq!(said.established.as_ref().unwrap().protocol, Protocol::Mmtp);
    }
    assert_eq!(pair.server_said.established.as_ref().unwrap().server_name.as_deref(), Some(tls_support::NAME));
    seal(&mut pair.client, b"to the origin", &mut pair.to_server).unwrap();
    seal(&mut pair.server, b"to the client", &mut pair.to_client).unwrap();
    pair.run();
    assert_eq!(pair.server_said.data, b"to the origin");
    assert_eq!(pair.client_said.data, b"to the client");
}
