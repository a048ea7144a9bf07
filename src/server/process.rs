//! What the operating system says of this process: cores, descriptors, time and memory used.
//!
//! Reads /proc and limits only; the one thing it changes is the soft limit of open descriptors.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The cores this process may use, in order; empty when the operating system does not say.
#[must_use]
pub fn cores_allowed() -> Vec<usize> {
    let mut cores: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// How many descriptors this process may have open once [`descriptors_raise`] was called.
#[must_use]
pub fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Raises the soft limit of open descriptors to the hard one, and returns it. Service managers start processes with a
/// low soft limit for the sake of programs that use select(2).
///
/// # Errors
/// Those of setrlimit(2).
pub fn descriptors_raise() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(descriptors_max())
}

/// Figures of this process.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProcessFigures {
    /// User and system time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub descriptors_open: u64,
    /// How many may be open now.
    pub descriptors_max: u64,
    /// Threads.
    pub threads: u64,
}

impl ProcessFigures {
    /// Reads them from /proc.
    ///
    /// # Errors
    /// When /proc is not mounted, or reads other than expected.
    pub fn read() -> io::Result<ProcessFigures> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (ticks, threads, pages) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let descriptors = fs::read_dir("/proc/self/fd")?.count() as u64;
        Ok(ProcessFigures {
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            resident_bytes: pages * rustix::param::page_size() as u64,
            // The directory itself was open while it was read.
            descriptors_open: descriptors.saturating_sub(1),
            descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            threads,
        })
    }
}

/// Clock ticks of user and system time, threads, and resident pages, from /proc/PID/stat (proc(5)). The name of the
/// program may hold spaces and brackets, so fields are counted from its last bracket.
fn parse_stat(stat: &str) -> Option<(u64, u64, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `rest` begins with field 3 of proc(5).
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(20)?, field(24)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process_are_plausible() {
        let figures = ProcessFigures::read().expect("/proc is there");
        assert!(figures.resident_bytes > 100_000, "{figures:?}");
        assert!(figures.descriptors_open >= 3 && figures.descriptors_open <= figures.descriptors_max, "{figures:?}");
        assert!(figures.threads >= 1);
        assert!(!cores_allowed().is_empty());
    }

    #[test]
    fn a_program_name_with_brackets_does_not_shift_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 9 0 100 1000 77 18446744073709551615";
        assert_eq!(parse_stat(stat), Some((110, 9, 77)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn the_descriptor_limit_rises_to_the_hard_one() {
        let limit = descriptors_raise().expect("raising up to the hard limit is always allowed");
        assert_eq!(limit, descriptors_max());
    }
}
