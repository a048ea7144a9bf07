//! Finds out that files were replaced: looks at them once a second, and tells when what has changed holds still.
//!
//! Asks for what a file *is* (device, inode, size, times) and follows links. So a file written in place, one moved over
//! another, and a link that is turned elsewhere (as certbot and Kubernetes do) are all seen, also on file systems that
//! notify of nothing. Owns what was last seen of each file; reads none. Invariant: one state of the files is told once.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often files are looked at, and how long a change must hold still: a pair of files is not replaced in one step.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of a file from another; None while it cannot be looked at.
type Print = Option<[i64; 7]>;

/// Files that are watched.
#[derive(Debug)]
pub struct Watch {
    files: Vec<PathBuf>,
    /// The state that was last told; empty before the first time.
    told: Vec<Print>,
    /// The state at the last look.
    seen: Vec<Print>,
    look_at: Instant,
}

impl Watch {
    /// Watches `files`, and tells of their first state as well: they may have changed since the caller read them.
    #[must_use]
    pub fn new(mut files: Vec<PathBuf>, now: Instant) -> Watch {
        files.sort();
        files.dedup();
        let seen = files.iter().map(|file| print(file)).collect();
        Watch { files, told: Vec::new(), seen, look_at: now + LOOK_INTERVAL }
    }

    /// Whether the files should be read now. To be called some times a second.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK_INTERVAL;
        let prints: Vec<Print> = self.files.iter().map(|file| print(file)).collect();
        let held_still = prints == self.seen;
        self.seen = prints;
        if held_still && self.seen != self.told {
            self.told.clone_from(&self.seen);
            return true;
        }
        false
    }

    /// The files are about to be read for another reason: their state is not told again.
    pub fn note_read(&mut self) {
        self.seen = self.files.iter().map(|file| print(file)).collect();
        self.told.clone_from(&self.seen);
    }
}

fn print(file: &Path) -> Print {
    let found = std::fs::metadata(file).ok()?;
    // Numbers are compared, never read: that a large one wraps does no harm.
    let (device, inode, size) = (found.dev() as i64, found.ino() as i64, found.size() as i64);
    Some([device, inode, size, found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A watch over one file, that has told of its first state.
    fn watch(file: &Path) -> (Watch, Instant) {
        let start = Instant::now();
        let mut watch = Watch::new(vec![file.to_path_buf(), file.to_path_buf()], start);
        assert!(!watch.is_due(start));
        assert!(watch.is_due(start + LOOK_INTERVAL), "the first state");
        (watch, start + LOOK_INTERVAL)
    }

    #[test]
    fn a_change_is_told_once_when_it_holds_still() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("a");
        fs::write(&file, "one").expect("our own directory");
        let (mut watch, mut now) = watch(&file);
        let mut look = || {
            now += LOOK_INTERVAL;
            watch.is_due(now)
        };
        assert!(!look() && !look());
        fs::write(&file, "three").expect("our own directory");
        assert!(!look(), "seen, but it may go on");
        fs::write(&file, "three, longer").expect("our own directory");
        assert!(!look(), "it went on");
        assert!(look(), "it held still");
        assert!(!look() && !look(), "told once");
        fs::remove_file(&file).expect("our own directory");
        assert!(!look());
        assert!(look(), "gone is a state as well");
        assert!(!look());
    }

    #[test]
    fn a_file_moved_into_place_and_a_link_that_turns_are_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "two", "three"] {
            fs::write(path(name), "same").expect("our own directory");
        }
        std::os::unix::fs::symlink("one", path("link")).expect("our own directory");
        let (mut watch, mut now) = watch(&path("link"));
        let mut is_told = || {
            (0..3).any(|_| {
                now += LOOK_INTERVAL;
                watch.is_due(now)
            })
        };
        assert!(!is_told());
        std::os::unix::fs::symlink("two", path("new")).expect("our own directory");
        fs::rename(path("new"), path("link")).expect("our own directory");
        assert!(is_told());
        assert!(!is_told());
        fs::rename(path("three"), path("two")).expect("our own directory");
        assert!(is_told());
    }

    #[test]
    fn what_was_read_meanwhile_is_not_told_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("a");
        let (mut watch, now) = watch(&file);
        fs::write(&file, "one").expect("our own directory");
        watch.note_read();
        assert!(!watch.is_due(now + LOOK_INTERVAL) && !watch.is_due(now + 2 * LOOK_INTERVAL));
    }
}
