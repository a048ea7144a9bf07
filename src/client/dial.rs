//! The order in which a host's addresses are tried (RFC 8305, the part that pays): families take turns, the next
//! address starts when the last one failed or has been silent for 250 ms, the first to connect wins. Owns that order
//! only; never opens a socket.
//!
//! Invariant: an address is handed out once, and once more if asked; while none is under way the next is due at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::time::Time;

/// How long an address may be silent before the next one is tried beside it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Most addresses tried for one connection; a name with more is answered from its first ones.
const ADDRESSES_MAX: usize = 8;

/// Addresses still to be tried and how many are being tried.
#[derive(Debug)]
pub(super) struct Plan {
    waiting: VecDeque<SocketAddr>,
    under_way: usize,
    /// When the next address may start; meaningless while none waits.
    next_at: Time,
}

impl Plan {
    /// A plan for what the resolver returned, in the resolver's order of preference.
    pub(super) fn new(addresses: Vec<SocketAddr>, now: Time) -> Plan {
        Plan { waiting: interleave(addresses), under_way: 0, next_at: now }
    }

    /// The address to start connecting to now, if one is due.
    pub(super) fn take_due(&mut self, now: Time) -> Option<SocketAddr> {
        if self.under_way > 0 && now < self.next_at {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.under_way += 1;
        self.next_at = now + STAGGER;
        Some(address)
    }

    /// The attempt just begun at this address is one that may be silent for no fault of the address: it is tried again,
    /// next in line.
    pub(super) fn again(&mut self, address: SocketAddr) {
        self.waiting.push_front(address);
    }

    /// One of the attempts failed: the next address is due at once.
    pub(super) fn failed(&mut self, now: Time) {
        self.under_way = self.under_way.saturating_sub(1);
        self.next_at = now;
    }

    /// When to ask again, if an address waits.
    pub(super) fn next_at(&self) -> Option<Time> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }

    /// Whether every address has been tried and has failed.
    pub(super) fn is_exhausted(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }
}

/// Families in turn, starting with that of the first address.
fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first_is_v6) = addresses.first().map(SocketAddr::is_ipv6) else {
        return VecDeque::new();
    };
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut mixed = VecDeque::new();
    loop {
        let pair = [preferred.next(), other.next()];
        if pair == [None, None] || mixed.len() >= ADDRESSES_MAX {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("a literal address")
    }

    #[test]
    fn families_take_turns_and_silence_starts_the_next() {
        let start = Time::from_nanos(1);
        let list = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(address).to_vec();
        let mut plan = Plan::new(list, start);
        assert_eq!(plan.take_due(start), Some(address("[::1]:1")));
        assert_eq!(plan.take_due(start), None);
        assert_eq!(plan.next_at(), Some(start + STAGGER));
        let later = start + STAGGER;
        assert_eq!(plan.take_due(later), Some(address("1.1.1.1:1")));
        plan.failed(later);
        assert_eq!(plan.take_due(later), Some(address("[::2]:1")));
        plan.failed(later);
        plan.failed(later);
        assert!(!plan.is_exhausted());
        assert_eq!(plan.take_due(later), Some(address("[::3]:1")));
        plan.failed(later);
        assert!(plan.is_exhausted());
        assert_eq!(plan.next_at(), None);
    }

    #[test]
    fn no_address_is_exhausted_at_once_and_many_are_cut() {
        assert!(Plan::new(Vec::new(), Time::ZERO).is_exhausted());
        let many: Vec<SocketAddr> = (1..100).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        assert_eq!(Plan::new(many, Time::ZERO).waiting.len(), ADDRESSES_MAX);
    }
}
