//! Security of trunks, at both ends: mutual TLS, or with `tls = false` none at all, which is for benchmarks.
//!
//! Owns the keys `tls` and `plaintext_trunks_allowed` of `[backbone]` and of a gateway's `[listen]`. Invariant: trunks that
//! could leave the machine are plaintext only if both keys say so.

use std::net::SocketAddr;

use super::reader::Reader;
use crate::server::certificates::{Authorities, Identity};
use crate::server::section::Section;

/// Mutual TLS of trunks, at one end.
#[derive(Clone, Debug)]
pub struct TrunkTls {
    /// Who may vouch for the other end: `ca` of a POP, `client_ca` of a gateway.
    pub authorities: Authorities,
    /// How this end proves itself: `certificate`, `key`, and `ocsp` of a gateway.
    pub identity: Identity,
}

/// One end of trunks, as its table is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TrunkEnd {
    /// `[backbone]`, which dials.
    Pop,
    /// `[listen]` of a gateway.
    Gateway,
}

impl Reader<'_> {
    /// None when something is wrong, else what secures trunks, if anything does. With `tls = false` the keys of TLS may
    /// stay, so that a benchmark changes one line, but nothing reads the files.
    pub(super) fn trunk_tls(&mut self, section: &mut Section<'_>, end: TrunkEnd) -> Option<Option<TrunkTls>> {
        let authorities_key = match end {
            TrunkEnd::Pop => "ca",
            TrunkEnd::Gateway => "client_ca",
        };
        if section.boolean(&mut self.problems, "tls", true) {
            let authorities = self.authorities(section, authorities_key);
            let ocsp = if end == TrunkEnd::Gateway { self.ocsp_path(section) } else { None };
            let identity = self.identity(section, ocsp);
            return Some(Some(TrunkTls { authorities: authorities?, identity: identity? }));
        }
        for key in ["certificate", "key", authorities_key] {
            section.text(&mut self.problems, key);
        }
        if end == TrunkEnd::Gateway {
            section.text(&mut self.problems, "ocsp");
        }
        Some(None)
    }

    /// Refuses plaintext trunks to or at `addresses` that are not loopback, unless they are allowed, and warns of others.
    pub(super) fn check_plaintext(
        &mut self,
        section: &mut Section<'_>,
        is_plaintext: bool,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) {
        let problems = &mut self.problems;
        let are_allowed = section.boolean(problems, "plaintext_trunks_allowed", false);
        if !is_plaintext {
            if section.has("plaintext_trunks_allowed") {
                let place = section.place_of("plaintext_trunks_allowed");
                problems.error(&place, "has no meaning without tls = false", "remove it");
            }
            return;
        }
        let place = section.place_of("tls");
        let is_outside = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
        let outside: Vec<String> =
            addresses.into_iter().filter(is_outside).map(|address| address.to_string()).collect();
        if are_allowed || outside.is_empty() {
            let what = "trunks are plaintext: whoever reaches them can read, change and forge every request";
            problems.warning(&place, what, "remove tls = false; it is there for benchmarks");
        } else {
            let what = format!("plaintext trunks are refused beyond loopback, which {} is not", outside.join(", "));
            let remedy = "remove tls = false, or, if everybody on the way may read and forge every request, set \
                          plaintext_trunks_allowed = true as well";
            problems.error(&place, what, remedy);
        }
    }
}
