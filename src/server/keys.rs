//! Key files that the nodes of a POP share: the keys that seal tickets, and those of TCP Fast Open.
//!
//! Owns the form of these files, their reading, making and rotation. Invariant: a key never reaches a message, a log or
//! a debug print; a file is replaced whole, so that whoever reads it meanwhile finds the old one or the new one.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use super::certificates::{read_bounded, warn_if_others_can_read};
use super::problems::Problems;
use super::section::Located;
use crate::base::hex;
use crate::tickets::seal::KEY_BYTES;

/// Length of a key of TCP Fast Open, in bytes: what Linux takes.
pub const FAST_OPEN_KEY_BYTES: usize = 16;

/// Largest key file, in bytes: three keys and some comments.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Permission bits of a key file.
const FILE_MODE: u32 = 0o600;

const TICKETS_REMEDY: &str = "write current = \"…\", and next and previous if there are any, each of 64 hex digits; \
                              `trunkline keys new --kind tickets FILE` makes such a file";
const FAST_OPEN_REMEDY: &str = "write one or two lines of 32 hex digits, the current key first; \
                                `trunkline keys new --kind fast-open FILE` makes such a file";

/// What a key file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `tickets.keys`.
    Tickets,
    /// `fast_open.keys`.
    FastOpen,
}

/// A key that seals tickets, cleared when dropped.
pub type TicketKey = Zeroizing<[u8; KEY_BYTES]>;

/// The keys tickets are sealed with before they leave the process.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKeys {
    /// The file they came from.
    pub file: PathBuf,
    /// Seals, and opens.
    pub current: TicketKey,
    /// Opens what nodes have sealed that are a rotation ahead.
    pub next: Option<TicketKey>,
    /// Opens what was sealed before the last rotation.
    pub previous: Option<TicketKey>,
}

/// The keys of TCP Fast Open.
#[derive(Clone, PartialEq, Eq)]
pub struct FastOpenKeys {
    /// The file they came from.
    pub file: PathBuf,
    /// Makes cookies, and knows its own.
    pub current: [u8; FAST_OPEN_KEY_BYTES],
    /// Cookies of this one are good as well.
    pub previous: Option<[u8; FAST_OPEN_KEY_BYTES]>,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TicketKeys").field("file", &self.file).finish_non_exhaustive()
    }
}

impl fmt::Debug for FastOpenKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FastOpenKeys").field("file", &self.file).finish_non_exhaustive()
    }
}

impl TicketKeys {
    /// Reads a file. Notes every mistake; None when there is one.
    #[must_use]
    pub(super) fn load(problems: &mut Problems, file: &Located<PathBuf>) -> Option<TicketKeys> {
        let text = read_text(problems, file, TICKETS_REMEDY)?;
        let parsed = TicketKeys::parse(&file.value, &text);
        noted(problems, file, parsed, TICKETS_REMEDY)
    }

    fn parse(file: &Path, text: &str) -> Result<TicketKeys, String> {
        // The parser's own message would quote the line, and with it a key.
        let table: toml::Table = text.parse().map_err(|_| "is not TOML".to_owned())?;
        if let Some(stranger) = table.keys().find(|key| !["current", "next", "previous"].contains(&key.as_str())) {
            return Err(format!("holds the unknown key {}", stranger.escape_default()));
        }
        let key = |name: &str| {
            let given = table.get(name).map(|value| value.as_str().and_then(hex::array).map(Zeroizing::new));
            given.map(|key| key.ok_or_else(|| format!("holds no 64 hex digits for {name}"))).transpose()
        };
        let keys = TicketKeys {
            file: file.to_path_buf(),
            current: key("current")?.ok_or("holds no current key")?,
            next: key("next")?,
            previous: key("previous")?,
        };
        let is_weak = |key: &TicketKey| key.iter().all(|byte| *byte == key[0]);
        if keys.each().any(is_weak) {
            return Err("holds a key that is one byte over and over, as in an example".to_owned());
        }
        if keys.each().enumerate().any(|(index, key)| keys.each().skip(index + 1).any(|other| key == other)) {
            return Err("holds one key twice".to_owned());
        }
        Ok(keys)
    }

    /// The current one first.
    fn each(&self) -> impl Iterator<Item = &TicketKey> {
        std::iter::once(&self.current).chain(&self.next).chain(&self.previous)
    }

    fn text(&self) -> String {
        let line = |name: &str, key: Option<&TicketKey>| {
            key.map_or_else(String::new, |key| format!("{name} = \"{}\"\n", hex::text(&key[..])))
        };
        format!(
            "# Keys that seal resumption tickets: the same on every node. `trunkline keys rotate` moves them on.\n{}{}{}",
            line("current", Some(&self.current)),
            line("next", self.next.as_ref()),
            line("previous", self.previous.as_ref())
        )
    }

    /// The keys a rotation later: what was next seals, what sealed still opens, and there is a new next. Every node
    /// that is one rotation ahead or behind can open what this one seals.
    fn rotated(self) -> io::Result<TicketKeys> {
        let current = self.next.map_or_else(fresh_ticket_key, Ok)?;
        Ok(TicketKeys { current, next: Some(fresh_ticket_key()?), previous: Some(self.current), file: self.file })
    }
}

impl FastOpenKeys {
    /// Reads a file. Notes every mistake; None when there is one.
    #[must_use]
    pub(super) fn load(problems: &mut Problems, file: &Located<PathBuf>) -> Option<FastOpenKeys> {
        let text = read_text(problems, file, FAST_OPEN_REMEDY)?;
        let parsed = FastOpenKeys::parse(&file.value, &text);
        noted(problems, file, parsed, FAST_OPEN_REMEDY)
    }

    fn parse(file: &Path, text: &str) -> Result<FastOpenKeys, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<_>> = lines.map(hex::array::<FAST_OPEN_KEY_BYTES>).collect();
        match keys.ok_or("holds a line that is not 32 hex digits")?.as_slice() {
            [] => Err("holds no key".to_owned()),
            [current] => Ok(FastOpenKeys { file: file.to_path_buf(), current: *current, previous: None }),
            [one, two] if one == two => Err("holds one key twice".to_owned()),
            [one, two] => Ok(FastOpenKeys { file: file.to_path_buf(), current: *one, previous: Some(*two) }),
            _ => Err("holds more than two keys".to_owned()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("# Keys of TCP Fast Open, current and previous: the same on every node.\n{}\n", {
            hex::text(&self.current)
        });
        if let Some(previous) = &self.previous {
            text.push_str(&hex::text(previous));
            text.push('\n');
        }
        text
    }

    /// What the kernel takes: the current key, then the previous one if there is one (tcp(7), TCP_FASTOPEN_KEY).
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let previous = self.previous.iter().flatten();
        self.current.iter().chain(previous).copied().collect()
    }
}

/// Makes a file of fresh keys that only its owner can read.
///
/// # Errors
/// Those of the file system; `AlreadyExists` when there is a file of that name.
pub fn make(kind: Kind, file: &Path) -> io::Result<()> {
    if file.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    write_whole(file, &fresh_text(kind, file)?)
}

fn fresh_text(kind: Kind, file: &Path) -> io::Result<String> {
    let file = file.to_path_buf();
    Ok(match kind {
        Kind::Tickets => {
            let (current, next) = (fresh_ticket_key()?, Some(fresh_ticket_key()?));
            TicketKeys { file, current, next, previous: None }.text()
        }
        Kind::FastOpen => FastOpenKeys { file, current: fresh()?, previous: None }.text(),
    })
}

/// Moves the keys of a file on: next becomes current, current becomes previous, and what was previous is gone. Tells
/// which kind of file it was.
///
/// # Errors
/// Those of the file system; `InvalidData`, with what is wrong, when it is no key file. Then it is as it was.
pub fn rotate(file: &Path) -> io::Result<Kind> {
    let text = String::from_utf8(read_bounded(file, FILE_BYTES_MAX)?).map_err(|_| io::ErrorKind::InvalidData)?;
    let (kind, text) = match (TicketKeys::parse(file, &text), FastOpenKeys::parse(file, &text)) {
        (Ok(keys), _) => (Kind::Tickets, keys.rotated()?.text()),
        (_, Ok(keys)) => {
            let rotated = FastOpenKeys { current: fresh()?, previous: Some(keys.current), ..keys };
            (Kind::FastOpen, rotated.text())
        }
        (Err(tickets), Err(fast_open)) => {
            let why = format!("as a file of ticket keys it {tickets}, as one of TCP Fast Open it {fast_open}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    };
    // A link is followed: what is replaced is the file, not the way to it.
    write_whole(&file.canonicalize()?, &text)?;
    Ok(kind)
}

/// Writes a file beside its place and moves it there.
fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&beside)
        .and_then(|mut open| open.write_all(text.as_bytes()).and_then(|()| open.sync_all()))
        .and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        // Whatever went wrong with the file, this only tidies up after it.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn read_text(problems: &mut Problems, file: &Located<PathBuf>, remedy: &str) -> Option<String> {
    let path = file.value.display();
    let read = read_bounded(&file.value, FILE_BYTES_MAX);
    match read.map(String::from_utf8) {
        Ok(Ok(text)) => {
            warn_if_others_can_read(problems, file);
            Some(text)
        }
        Ok(Err(_)) => {
            problems.error(&file.place, format!("{path} is not text"), remedy);
            None
        }
        Err(error) => {
            problems.error(&file.place, format!("cannot read {path}: {error}"), remedy);
            None
        }
    }
}

fn noted<T>(problems: &mut Problems, file: &Located<PathBuf>, parsed: Result<T, String>, remedy: &str) -> Option<T> {
    parsed.map_err(|what| problems.error(&file.place, format!("{} {what}", file.value.display()), remedy)).ok()
}

fn fresh<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut key = [0; BYTES];
    // Requests of up to 256 bytes are never cut short (getrandom(2)).
    let filled = getrandom(&mut key, GetRandomFlags::empty())?;
    assert_eq!(filled, BYTES, "a key is far below 256 bytes");
    Ok(key)
}

fn fresh_ticket_key() -> io::Result<TicketKey> {
    fresh().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificates::located;
    use std::os::unix::fs::PermissionsExt as _;

    fn tickets(path: &Path) -> Result<TicketKeys, String> {
        let mut problems = Problems::new("pop.toml".into());
        let keys = TicketKeys::load(&mut problems, &located(path, "tickets.keys"));
        keys.filter(|_| problems.list().is_empty()).ok_or_else(|| problems.to_string())
    }

    fn fast_open(path: &Path) -> Result<FastOpenKeys, String> {
        let mut problems = Problems::new("pop.toml".into());
        let keys = FastOpenKeys::load(&mut problems, &located(path, "fast_open.keys"));
        keys.filter(|_| problems.list().is_empty()).ok_or_else(|| problems.to_string())
    }

    #[test]
    fn a_node_that_is_one_rotation_ahead_or_behind_opens_what_others_seal() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ticket-keys.toml");
        make(Kind::Tickets, &path).expect("our own directory");
        let first = tickets(&path).expect("it was just made");
        assert_eq!(rotate(&path).expect("a key file"), Kind::Tickets);
        let second = tickets(&path).expect("it was just made");
        assert_eq!((Some(&second.current), second.previous.as_ref()), (first.next.as_ref(), Some(&first.current)));
        assert_eq!(rotate(&path).expect("a key file"), Kind::Tickets);
        let third = tickets(&path).expect("it was just made");
        let opens = |keys: &TicketKeys, key: &TicketKey| keys.each().any(|own| own == key);
        for (one, other) in [(&first, &second), (&second, &third)] {
            assert!(opens(one, &other.current) && opens(other, &one.current));
        }
        assert!(!opens(&third, &first.current), "two rotations end a key that sealed");
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 1, "nothing else is left");
    }

    /// Whoever stole the file has its next key as well, which the second rotation only makes the previous one.
    #[test]
    fn no_key_of_a_stolen_file_is_left_after_three_rotations() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ticket-keys.toml");
        make(Kind::Tickets, &path).expect("our own directory");
        // Fresh, and with all three keys.
        for _ in 0..2 {
            let stolen = tickets(&path).expect("a key file");
            let mut left = Vec::new();
            for _ in 0..3 {
                rotate(&path).expect("a key file");
                let now = tickets(&path).expect("it was just made");
                left.push(now.each().filter(|key| stolen.each().any(|old| old == *key)).count());
            }
            assert_eq!(left, [2, 1, 0]);
        }
    }

    #[test]
    fn fast_open_keys_rotate_too() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("fast-open.keys");
        make(Kind::FastOpen, &path).expect("our own directory");
        let first = fast_open(&path).expect("it was just made");
        assert_eq!(first.bytes(), first.current);
        assert_eq!(rotate(&path).expect("a key file"), Kind::FastOpen);
        let second = fast_open(&path).expect("it was just made");
        assert_eq!(second.previous, Some(first.current));
        assert_eq!(second.bytes(), [second.current, first.current].concat());
        let again = make(Kind::FastOpen, &path).expect_err("there is one");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fast_open(&path), Ok(second), "it was not touched");
    }

    #[test]
    fn a_rotation_follows_a_link() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, link) = (dir.path().join("a"), dir.path().join("b"));
        make(Kind::FastOpen, &path).expect("our own directory");
        std::os::unix::fs::symlink("a", &link).expect("our own directory");
        rotate(&link).expect("a key file");
        assert!(link.is_symlink());
        assert!(fast_open(&path).expect("it is whole").previous.is_some());
    }

    #[test]
    fn what_is_wrong_is_told_without_a_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("keys");
        let write = |text: &str| {
            std::fs::write(&path, text).expect("our own directory");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        };
        let (key, short) = ("abcd".repeat(16), "ab".repeat(16));
        for (text, what) in [
            (String::new(), "no current key"),
            (format!("current = {key}"), "is not TOML"),
            (format!("current = \"{key}"), "is not TOML"),
            (format!("current = \"{short}\""), "no 64 hex digits for current"),
            (format!("current = \"{}é\"", &key[2..]), "no 64 hex digits for current"),
            (format!("current = \"{key}\"\nnext = 7"), "no 64 hex digits for next"),
            (format!("current = \"{key}\"\nnext = \"{key}\""), "one key twice"),
            (format!("current = \"{}\"", "ab".repeat(32)), "one byte over and over"),
            (format!("current = \"{key}\"\nold = \"{key}\""), "unknown key old"),
        ] {
            write(&text);
            let said = tickets(&path).expect_err("it is wrong");
            assert!(said.contains(what) && said.contains("remedy: "), "{said}");
            assert!(!said.contains("abab") && !said.contains("abcd"), "{said}");
        }
        for (text, what) in [
            ("# nothing\n\n".to_owned(), "holds no key"),
            (format!("{short}\n{key}\n"), "not 32 hex digits"),
            (format!("{short}\n{short}\n"), "one key twice"),
            (format!("{short}\n{}\n{}\n", "cd".repeat(16), "ef".repeat(16)), "more than two"),
        ] {
            write(&text);
            let said = fast_open(&path).expect_err("it is wrong");
            assert!(said.contains(what) && said.contains("remedy: ") && !said.contains("abab"), "{said}");
        }
        let said = rotate(&path).expect_err("no key file").to_string();
        assert!(said.contains("more than two") && !said.contains("abab"), "{said}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("our own file");
        std::fs::write(&path, &short).expect("our own file");
        assert!(fast_open(&path).expect_err("a warning").contains("every user can read"));
    }

    #[test]
    fn keys_are_not_shown() {
        let keys =
            TicketKeys { file: "f".into(), current: [0xab; 32].into(), next: None, previous: Some([0xcd; 32].into()) };
        assert_eq!(format!("{keys:?}"), "TicketKeys { file: \"f\", .. }");
    }
}
