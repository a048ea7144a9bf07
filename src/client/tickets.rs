//! The tickets a client keeps, by server: each is given out once. Owns the list and, if asked, a file of it; never
//! looks into a ticket.
//!
//! The file may be shared: whoever changes it holds a lock (`FILE.lock`), reads what is there, and puts a new file in
//! its place. A ticket is out of the file before it is used, so that a process that crashes cannot use it twice. Only new
//! tickets are waited for until the disk has them: no connection waits for a disk.
//! Invariant: trouble with the file costs resumption, never a call; [`Notice`] says what it was.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use crate::base::hex;
use crate::tls::ClientTicket;

use super::error::BuildError;
use super::url::Endpoint;

/// Tickets kept per server: two connections in a row after one handshake, and one for each in parallel.
const TICKETS_PER_SERVER_MAX: usize = 4;

/// Tickets kept in all. An app has a few servers.
const TICKETS_MAX: usize = 128;

/// Longest file that is read, in bytes: more than that many tickets of any usual size.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// First line of a file.
const HEADER: &str = "trunkline-tickets 1";

/// Times that a busy lock is tried, and the pause between two tries: another process holds it for a few milliseconds,
/// unless its disk is slow.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What was wrong with the file last.
pub(super) type Notice = Arc<Mutex<Option<String>>>;

struct Kept {
    endpoint: Endpoint,
    ticket: ClientTicket,
}

impl Kept {
    fn line(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.ticket.to_bytes());
        let digits = Zeroizing::new(hex::text(&bytes));
        Zeroizing::new(format!("{} {} {}\n", self.endpoint.host, self.endpoint.port, digits.as_str()))
    }
}

/// Tickets, newest first.
#[derive(Default)]
pub(super) struct Tickets {
    kept: Vec<Kept>,
    file: Option<PathBuf>,
    notice: Notice,
}

/// Whether a change has to outlast a machine that stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    Yes,
    /// The old file may come back. What is in it is no use to anyone by then: a server takes a ticket once.
    No,
}

/// The lock of a file. Held until dropped.
struct Locked(#[allow(dead_code, reason = "the lock goes with the handle")] File);

impl Tickets {
    /// No tickets yet; with a file, those in it.
    ///
    /// # Errors
    /// The file is there but cannot be read, or others can read it.
    pub(super) fn new(file: Option<PathBuf>, notice: Notice) -> Result<Tickets, BuildError> {
        let tickets = Tickets { kept: Vec::new(), file, notice };
        if let Some(path) = &tickets.file {
            match File::open(path).and_then(|file| check_private(&file)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|error| BuildError::Tickets(format!("{}: {error}", path.display())))?,
            }
        }
        Ok(tickets)
    }

    /// Whether tickets outlive the process.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The newest ticket for a server that can still be used. It is not given out again.
    pub(super) fn take(&mut self, endpoint: &Endpoint) -> Option<ClientTicket> {
        let locked = self.refresh();
        let now_s = now_s();
        self.kept.retain(|kept| kept.ticket.expires_s() > now_s);
        let index = self.kept.iter().position(|kept| kept.endpoint == *endpoint)?;
        let taken = self.kept.remove(index).ticket;
        match (&self.file, self.save(locked, Durable::No)) {
            (None, _) | (_, true) => Some(taken),
            (Some(_), false) => None, // it may still be in the file: not used, lest it be used twice
        }
    }

    /// Keeps tickets that a server gave, and drops the oldest beyond the limits.
    pub(super) fn put(&mut self, endpoint: &Endpoint, tickets: Vec<ClientTicket>) {
        let locked = self.refresh();
        for ticket in tickets {
            self.kept.insert(0, Kept { endpoint: endpoint.clone(), ticket });
        }
        self.trim();
        self.save(locked, Durable::Yes);
    }

    fn trim(&mut self) {
        let mut index = 0;
        while index < self.kept.len() {
            let endpoint = &self.kept[index].endpoint;
            let newer = self.kept[..index].iter().filter(|kept| kept.endpoint == *endpoint).count();
            if newer >= TICKETS_PER_SERVER_MAX {
                self.kept.remove(index);
            } else {
                index += 1;
            }
        }
        self.kept.truncate(TICKETS_MAX);
    }

    /// With a file: locks it, and takes over what others did to it.
    fn refresh(&mut self) -> Option<Locked> {
        let path = self.file.as_ref()?;
        let read = lock(path).and_then(|locked| read(path).map(|found| (locked, found)));
        match read {
            Ok((locked, found)) => {
                let mut own = std::mem::take(&mut self.kept);
                // What is not there any more was used, or given up; what this process was given keeps its own form.
                for mut kept in found {
                    let bytes = kept.ticket.to_bytes();
                    if let Some(index) = own.iter().position(|own| own.ticket.to_bytes() == bytes) {
                        kept = own.swap_remove(index);
                    }
                    self.kept.push(kept);
                }
                Some(locked)
            }
            Err(error) => {
                self.complain(&error);
                None
            }
        }
    }

    /// Without a file: nothing to do. With one: whether it has been written.
    fn save(&self, locked: Option<Locked>, durable: Durable) -> bool {
        let (Some(path), Some(_locked)) = (&self.file, locked) else { return false };
        let written = write(path, &self.kept, durable);
        if let Err(error) = &written {
            self.complain(error);
        }
        written.is_ok()
    }

    fn complain(&self, error: &io::Error) {
        let path = self.file.as_deref().unwrap_or(Path::new(""));
        let text = format!("the ticket file {} is not used: {error}", path.display());
        *self.notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(text);
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> io::Result<Locked> {
    let file = private(OpenOptions::new().write(true).create(true).truncate(false)).open(beside(path, ".lock"))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(Locked(file)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("another process holds its lock"))
}

/// What a file holds. A file that is not there holds nothing; one that is damaged counts as such, and is replaced when
/// there are new tickets.
fn read(path: &Path) -> io::Result<Vec<Kept>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    check_private(&file)?;
    // Room for all of it at once: a text that grows leaves copies behind.
    let length = file.metadata()?.len().min(FILE_BYTES_MAX);
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    if file.take(FILE_BYTES_MAX).read_to_string(&mut text).is_err() {
        text.clear();
    }
    parse(&text).ok_or_else(|| damaged(path))
}

/// Moves a damaged file aside, so that the next tickets can be kept.
fn damaged(path: &Path) -> io::Error {
    let aside = beside(path, ".damaged");
    match std::fs::rename(path, &aside) {
        Ok(()) => io::Error::other(format!("it is damaged, and was moved to {}", aside.display())),
        Err(error) => io::Error::other(format!("it is damaged, and cannot be moved aside: {error}")),
    }
}

/// `None` when anything in it is wrong.
fn parse(text: &str) -> Option<Vec<Kept>> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    if lines.next()? != HEADER {
        return None;
    }
    let (last, lines) = lines.collect::<Vec<_>>().split_last().map(|(last, lines)| (*last, lines.to_vec()))?;
    let count: usize = last.strip_prefix("end ")?.parse().ok()?;
    let kept = lines.into_iter().map(parse_line).collect::<Option<Vec<_>>>()?;
    (kept.len() == count && count <= TICKETS_MAX).then_some(kept)
}

fn parse_line(line: &str) -> Option<Kept> {
    let mut words = line.split(' ');
    let (host, port, digits) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let endpoint = Endpoint { host: host.to_owned(), port: port.parse().ok()? };
    let bytes = Zeroizing::new(hex::bytes(digits)?);
    Some(Kept { endpoint, ticket: ClientTicket::from_bytes(&bytes)? })
}

/// Puts a whole new file in the place of the old one.
fn write(path: &Path, kept: &[Kept], durable: Durable) -> io::Result<()> {
    let lines: Vec<Zeroizing<String>> = kept.iter().map(Kept::line).collect();
    let (first, last) = (format!("{HEADER}\n"), format!("end {}\n", kept.len()));
    let length = first.len() + lines.iter().map(|line| line.len()).sum::<usize>() + last.len();
    let mut text = Zeroizing::new(String::with_capacity(length));
    text.push_str(&first);
    lines.iter().for_each(|line| text.push_str(line));
    text.push_str(&last);
    let novel = beside(path, ".new");
    let _ = std::fs::remove_file(&novel); // of a process that was stopped in the middle; the lock is ours
    let mut file = private(OpenOptions::new().write(true).create_new(true)).open(&novel)?;
    file.write_all(text.as_bytes())?;
    if durable == Durable::Yes {
        file.sync_data()?;
    }
    std::fs::rename(&novel, path)?;
    if durable == Durable::Yes {
        keep_entry(path);
    }
    Ok(())
}

/// Has the folder written down which file stands there, so that a machine that stops does not bring the old one back. Not
/// every file system can; without it the new file is there all the same.
#[cfg(unix)]
fn keep_entry(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(not(unix))]
fn keep_entry(_: &Path) {}

#[cfg(unix)]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600)
}

#[cfg(not(unix))]
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options // where files follow their folder's rules
}

/// Refuses a file that others than its owner may open.
#[cfg(unix)]
fn check_private(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if mode & 0o077 != 0 {
        let mode = mode & 0o777;
        return Err(io::Error::other(format!("others may open it (mode {mode:o}): it must have mode 600")));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_: &File) -> io::Result<()> {
    Ok(())
}
