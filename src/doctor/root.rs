//! The files a node tells itself by, below a root directory: `/`, or a copy of another node's `/proc` and `/sys`.
//!
//! Owns the reading of single files and of the few forms they have. Invariant: nothing is read beyond
//! [`FILE_BYTES_MAX`], and a file that is missing or says something else is None, never an error: kernels differ.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Most that is read of one file, in bytes: `/proc/interrupts` of a machine with hundreds of cores is the longest.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most cores a list may name: the kernel's own limit is 8192.
const CORES_MAX: usize = 8192;

/// A root directory.
#[derive(Clone, Debug)]
pub(super) struct Root {
    path: PathBuf,
}

impl Root {
    pub(super) fn new(path: &Path) -> Root {
        Root { path: path.to_path_buf() }
    }

    /// Whether it is this machine's own.
    pub(super) fn is_here(&self) -> bool {
        self.path == Path::new("/")
    }

    /// A path below it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name.trim_start_matches('/'))
    }

    /// A file's text without the white space around it.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        text_of(&self.path(name))
    }

    /// A file that holds one number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// A file that holds a list of cores.
    pub(super) fn cores(&self, name: &str) -> Option<Vec<usize>> {
        core_list(&self.text(name)?)
    }

    /// Names in a directory, in order; none if there is no such directory.
    pub(super) fn names(&self, name: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(name)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).take(65_536).collect();
        names.sort();
        names
    }

    /// The last part of what a link points to.
    pub(super) fn link_name(&self, name: &str) -> Option<String> {
        fs::read_link(self.path(name)).ok()?.file_name()?.to_str().map(str::to_owned)
    }
}

/// The text of a file without the white space around it.
pub(super) fn text_of(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    // A pipe or a device that somebody put there would be waited for.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A list of cores as the kernel writes it: `0-3,8`. None when it is none; empty for an empty one.
pub(super) fn core_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CORES_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    Some(cores)
}

/// A list of cores as the kernel writes it.
pub(super) fn core_text(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let part = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_and_written_as_the_kernel_does() {
        for (text, cores) in [("", vec![]), ("0", vec![0]), ("0-2,5,7-8\n", vec![0, 1, 2, 5, 7, 8])] {
            assert_eq!(core_list(text), Some(cores.clone()), "{text}");
            assert_eq!(core_text(&cores), text.trim());
        }
        for text in ["x", "3-1", "0-99999999", "1-"] {
            assert_eq!(core_list(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_missing_or_no_file_is_none() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = Root::new(directory.path());
        fs::create_dir(directory.path().join("proc")).expect("our own directory");
        fs::write(directory.path().join("number"), " 7\n").expect("our own directory");
        assert_eq!((root.text("/proc"), root.text("/none"), root.number("/number")), (None, None, Some(7_u8)));
        assert_eq!(root.number::<u8>("/none"), None);
        assert_eq!(root.names("/"), ["number", "proc"]);
        assert!(root.names("/none").is_empty() && !root.is_here());
    }
}
