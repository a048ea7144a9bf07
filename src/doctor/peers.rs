//! Checks of peers: gateways and their trust in us, upstreams, and the ticket server.

use std::net::SocketAddr;
use std::time::Duration;

use super::facts::{Facts, Outcome, Peer, PeerKind, Unconnected, Unshaken};
use super::finding::{Finding, Group};

/// Alerts by which a gateway refuses a POP's certificate (RFC 8446 section 6.2).
const ALERT_CERTIFICATE_EXPIRED: u8 = 45;
const ALERT_UNKNOWN_CA: u8 = 48;
const ALERT_DECRYPT_ERROR: u8 = 51;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.trials.peers.iter().map(|peer| one(peer, facts)).collect();
    if let Some((address, outcome)) = &facts.trials.ticket_server {
        findings.push(ticket_server(*address, outcome));
    }
    findings
}

fn one(peer: &Peer, facts: &Facts) -> Finding {
    let group = Group::Peers;
    let (noun, why) = match &peer.kind {
        PeerKind::Gateway { .. } => ("gateway", "without a trunk, streams end as not forwarded"),
        PeerKind::Upstream => ("upstream", "streams to it are refused"),
    };
    let name = format!("{noun} {} {}", peer.name, peer.address);
    match &peer.outcome {
        Outcome::Good { round_trip, handshake: None } => {
            Finding::ok(group, name, format!("round trip {}", millis(*round_trip)))
        }
        Outcome::Good { round_trip, handshake: Some(handshake) } => {
            let found = format!("round trip {}, mutual TLS in {}", millis(*round_trip), millis(*handshake));
            Finding::ok(group, name, found)
        }
        Outcome::NotConnected(cause) => {
            let (found, remedy) = unconnected(cause, peer);
            // A service with another upstream goes on.
            let finding = match has_other(peer, facts) {
                true => Finding::warning(group, name, found, remedy),
                false => Finding::fault(group, name, found, remedy),
            };
            finding.expected("a connection").why(why)
        }
        Outcome::NotShaken(cause) => {
            let (found, remedy) = unshaken(cause, peer);
            Finding::fault(group, name, found, remedy).expected("a mutual TLS handshake, and mmtp/1").why(why)
        }
    }
}

/// Whether one of its kind and name could be reached.
fn has_other(peer: &Peer, facts: &Facts) -> bool {
    let is_good = |other: &Peer| matches!(other.outcome, Outcome::Good { .. });
    peer.kind == PeerKind::Upstream && facts.trials.peers.iter().any(|other| other.name == peer.name && is_good(other))
}

fn unconnected(cause: &Unconnected, peer: &Peer) -> (String, String) {
    let (address, port) = (peer.address, peer.address.port());
    match (cause, &peer.kind) {
        (Unconnected::Refused, PeerKind::Gateway { .. }) => (
            "connection refused: nobody listens there".to_owned(),
            format!(
                "start the gateway (trunkline gateway --config FILE; there: ss -ltn 'sport = :{port}'), or correct \
                 address of [[backbone.gateway]] {}",
                peer.name
            ),
        ),
        (Unconnected::Refused, PeerKind::Upstream) => (
            "connection refused: nobody listens there".to_owned(),
            format!("start the upstream, or correct upstream of [[service]] {}", peer.name),
        ),
        (Unconnected::Silent(timeout), _) => (
            format!("no answer within {}", millis(*timeout)),
            format!(
                "open TCP port {port} on the way there (firewall, security group); traceroute -T -p {port} {}",
                address.ip()
            ),
        ),
        (Unconnected::Other(error), _) => {
            (format!("no connection: {error}"), format!("ip route get {} must name a way there", address.ip()))
        }
    }
}

fn unshaken(cause: &Unshaken, peer: &Peer) -> (String, String) {
    let name = match &peer.kind {
        PeerKind::Gateway { server_name } => server_name.as_str(),
        PeerKind::Upstream => "",
    };
    let shown = format!("openssl s_client -connect {} -showcerts", peer.address);
    match cause {
        Unshaken::UnknownIssuer => (
            "its certificate is not vouched for by backbone.ca".to_owned(),
            format!("put the CA that issued it into the file of backbone.ca; `{shown}` shows the issuer"),
        ),
        Unshaken::WrongName => (
            format!("its certificate does not hold the name {name}"),
            format!(
                "server_name = \"NAME\" in [[backbone.gateway]] {}: one of the names that `{shown}` shows",
                peer.name
            ),
        ),
        Unshaken::OutOfTime => (
            "its certificate has expired or is not valid yet, by this machine's clock".to_owned(),
            "renew the certificate of the gateway, or set the clock of this machine".to_owned(),
        ),
        // The second: it knows a CA of that name, with another key.
        Unshaken::Refused(alert @ (ALERT_UNKNOWN_CA | ALERT_DECRYPT_ERROR)) => (
            format!("it refuses our certificate: alert {alert}, its listen.client_ca does not vouch for it"),
            "put the CA that issued backbone.certificate into the file of listen.client_ca of the gateway".to_owned(),
        ),
        Unshaken::Refused(ALERT_CERTIFICATE_EXPIRED) => (
            format!("it refuses our certificate: alert {ALERT_CERTIFICATE_EXPIRED}, expired"),
            "renew backbone.certificate, or set the clock of the gateway".to_owned(),
        ),
        Unshaken::Refused(alert) => (
            format!("it refuses our certificate: alert {alert}"),
            "give backbone.certificate one for client authentication that listen.client_ca of the gateway vouches for"
                .to_owned(),
        ),
        Unshaken::NotGateway(what) => (
            format!("what listens there is no gateway: {what}"),
            format!("correct address of [[backbone.gateway]] {}: it must be listen.address of a gateway", peer.name),
        ),
        Unshaken::Other(what) => (format!("TLS handshake failed: {what}"), format!("`{shown}` tells more")),
    }
}

fn ticket_server(address: SocketAddr, outcome: &Result<Duration, String>) -> Finding {
    let (group, name) = (Group::Peers, format!("ticket server {address}"));
    match outcome {
        Ok(took) => Finding::ok(group, name, format!("PONG, {} after connecting began", millis(*took))),
        Err(fault) => {
            let remedy = match fault.as_str() {
                "unreachable" => format!(
                    "start it, or correct tickets.store; redis-cli -h {} -p {} ping must say PONG",
                    address.ip(),
                    address.port()
                ),
                "WRONGPASS" | "NOAUTH" | "NOPERM" => {
                    "correct user and password in tickets.store, and the rights: ACL SETUSER pop on >PASSWORD \
                     ~trunkline:ticket:* +set +getdel +ping +select"
                        .to_owned()
                }
                _ => "look into the log of the server".to_owned(),
            };
            Finding::warning(group, name, fault, remedy)
                .expected("PONG")
                .why("users who come back to another node do full handshakes")
        }
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::sample as facts;
    use crate::doctor::finding::Level;

    fn gateway(outcome: Outcome) -> Peer {
        Peer {
            kind: PeerKind::Gateway { server_name: "dc.example".to_owned() },
            name: "dc-a".to_owned(),
            address: "192.0.2.1:7443".parse().expect("an address"),
            outcome,
        }
    }

    fn told(outcome: Outcome) -> Finding {
        one(&gateway(outcome), &facts())
    }

    #[test]
    fn a_gateway_that_answers_gives_its_round_trip() {
        let round_trip = Duration::from_micros(150_250);
        let finding = told(Outcome::Good { round_trip, handshake: Some(round_trip * 2) });
        assert_eq!(finding.level, Level::Ok);
        assert!(finding.found.contains("150.2 ms") && finding.found.contains("300.5 ms"), "{finding:?}");
    }

    #[test]
    fn every_way_to_fail_has_a_remedy_of_its_own() {
        let timeout = Duration::from_secs(5);
        let causes = [
            (Outcome::NotConnected(Unconnected::Refused), "start the gateway"),
            (Outcome::NotConnected(Unconnected::Silent(timeout)), "open TCP port 7443"),
            (Outcome::NotConnected(Unconnected::Other("EHOSTUNREACH".to_owned())), "ip route get 192.0.2.1"),
            (Outcome::NotShaken(Unshaken::UnknownIssuer), "backbone.ca"),
            (Outcome::NotShaken(Unshaken::WrongName), "server_name"),
            (Outcome::NotShaken(Unshaken::OutOfTime), "renew the certificate of the gateway"),
            (Outcome::NotShaken(Unshaken::Refused(48)), "issued backbone.certificate"),
            (Outcome::NotShaken(Unshaken::Refused(51)), "issued backbone.certificate"),
            (Outcome::NotShaken(Unshaken::Refused(45)), "renew backbone.certificate"),
            (Outcome::NotShaken(Unshaken::Refused(42)), "client authentication"),
            (Outcome::NotShaken(Unshaken::NotGateway("not TLS".to_owned())), "listen.address of a gateway"),
            (Outcome::NotShaken(Unshaken::Other("odd".to_owned())), "openssl s_client"),
        ];
        for (outcome, words) in causes {
            let finding = told(outcome);
            assert_eq!(finding.level, Level::Fault);
            assert!(finding.remedy.contains(words), "{words}: {finding:?}");
        }
    }

    #[test]
    fn an_upstream_with_another_is_a_warning() {
        let upstream = |port: u16, outcome| Peer {
            kind: PeerKind::Upstream,
            name: "web".to_owned(),
            address: SocketAddr::from(([192, 0, 2, 1], port)),
            outcome,
        };
        let mut facts = facts();
        let bad = Outcome::NotConnected(Unconnected::Refused);
        facts.trials.peers = vec![upstream(1, bad.clone()), upstream(2, bad)];
        assert!(check(&facts).iter().all(|finding| finding.level == Level::Fault));
        facts.trials.peers[1].outcome = Outcome::Good { round_trip: Duration::ZERO, handshake: None };
        let levels: Vec<Level> = check(&facts).iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Warning, Level::Ok]);
    }

    #[test]
    fn a_ticket_server_that_is_away_or_refuses_is_warned_of() {
        let address = "192.0.2.1:6379".parse().expect("an address");
        assert_eq!(ticket_server(address, &Ok(Duration::ZERO)).level, Level::Ok);
        for (fault, words) in [("unreachable", "redis-cli -h 192.0.2.1"), ("WRONGPASS", "ACL"), ("garbage", "log")] {
            let finding = ticket_server(address, &Err(fault.to_owned()));
            assert_eq!(finding.level, Level::Warning);
            assert!(finding.remedy.contains(words), "{finding:?}");
        }
    }
}
