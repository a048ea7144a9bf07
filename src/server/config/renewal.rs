//! Certificates, authorities and keys read again while the process runs, from the paths they came from.
//!
//! Owns no file and swaps nothing by itself. Invariant: what cannot be used stays as it was, piece by piece, so that one
//! broken pair keeps no other from being renewed before it expires.

use std::path::Path;
use std::time::SystemTime;

use crate::server::certificates::{Authorities, Identity, located};
use crate::server::keys::{FastOpenKeys, TicketKeys};
use crate::server::problems::Problems;

/// What came of reading again.
#[derive(Clone, Debug)]
pub struct Renewed<C> {
    /// The configuration, with what could be used.
    pub config: C,
    /// Whether anything in it is new.
    pub is_changed: bool,
    /// How many pairs, authorities, staples and key files could not be used: the old ones stay.
    pub refused: u64,
    /// Why they could not, and warnings.
    pub problems: Problems,
}

/// Reading again under way.
pub(super) struct Renewal {
    problems: Problems,
    now: SystemTime,
    is_changed: bool,
    refused: u64,
}

impl Renewal {
    pub(super) fn new(file: &Path, now: SystemTime) -> Renewal {
        Renewal { problems: Problems::new(file.to_path_buf()), now, is_changed: false, refused: 0 }
    }

    /// The pair first, then what vouches for it: a staple for another certificate is of no use.
    pub(super) fn identity(&mut self, identity: &mut Identity, table: &str) {
        let files = identity.located_files(table);
        let pair = Identity::load_pair(&mut self.problems, &files, self.now);
        let mut fresh = match pair {
            Some(pair) => pair.with_staple_of(identity),
            None => {
                self.refused += 1;
                identity.clone()
            }
        };
        if let Some(ocsp) = &files.ocsp
            && !fresh.load_staple(&mut self.problems, ocsp, self.now)
        {
            self.refused += 1;
        }
        self.take(identity, Some(fresh));
    }

    pub(super) fn authorities(&mut self, authorities: &mut Authorities, key: &str) {
        let read = Authorities::load(&mut self.problems, &located(&authorities.file, key), self.now);
        self.take(authorities, read);
    }

    pub(super) fn ticket_keys(&mut self, keys: &mut TicketKeys) {
        let read = TicketKeys::load(&mut self.problems, &located(&keys.file, "tickets.keys"));
        self.take(keys, read);
    }

    pub(super) fn fast_open_keys(&mut self, keys: &mut FastOpenKeys) {
        let read = FastOpenKeys::load(&mut self.problems, &located(&keys.file, "fast_open.keys"));
        self.take(keys, read);
    }

    fn take<T: PartialEq>(&mut self, old: &mut T, read: Option<T>) {
        match read {
            Some(read) => {
                self.is_changed |= *old != read;
                *old = read;
            }
            None => self.refused += 1,
        }
    }

    pub(super) fn finish<C>(self, config: C) -> Renewed<C> {
        Renewed { config, is_changed: self.is_changed, refused: self.refused, problems: self.problems }
    }
}
