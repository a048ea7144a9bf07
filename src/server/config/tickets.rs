//! How users come back: `[tickets]`, and the address of the ticket server that nodes share.
//!
//! Invariant: a password never reaches a message, a log or a debug print.

use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::reader::Reader;
use super::{DAY, MILLISECOND, SECOND};
use crate::base::hex;
use crate::server::defaults;
use crate::server::keys::TicketKeys;
use crate::server::problems::{Place, Problems};
use crate::server::section::{Located, Section};
use crate::tickets::remote::RemoteSettings;
use crate::tickets::store::CAPACITY_MAX;

/// Highest number of a database of the ticket server: a sane bound on what a number can be taken for.
const DATABASE_MAX: u32 = 65_535;

const STORE_REMEDY: &str = "write store = \"memory\", or \"redis://IP:PORT/DB\" with user:password@ before the IP if \
                            the server asks for them";

/// How users come back: `[tickets]`.
#[derive(Clone, Debug)]
pub struct TicketsConfig {
    /// Tickets in memory, of the whole process: `capacity`.
    pub capacity: usize,
    /// How long a ticket may be used: `lifetime`.
    pub lifetime: Duration,
    /// Where tickets are kept: `store`, `keys` and `lookup_timeout`.
    pub store: TicketStore,
}

/// Where tickets are kept: `tickets.store`.
#[derive(Clone, Debug)]
pub enum TicketStore {
    /// In this process.
    Memory,
    /// At a ticket server that nodes share.
    Remote(Box<RemoteStore>),
}

/// A ticket server, and what never reaches it.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    /// What `store` says of the server, with `lookup_timeout` and `lifetime`.
    pub server: RemoteSettings,
    /// What tickets are sealed with before they leave the process: `keys`.
    pub keys: TicketKeys,
}

impl Default for TicketsConfig {
    fn default() -> TicketsConfig {
        TicketsConfig {
            capacity: defaults::TICKETS_CAPACITY,
            lifetime: defaults::TICKETS_LIFETIME,
            store: TicketStore::Memory,
        }
    }
}

impl TicketsConfig {
    /// The keys tickets are sealed with, if they leave the process.
    #[must_use]
    pub fn keys(&self) -> Option<&TicketKeys> {
        match &self.store {
            TicketStore::Memory => None,
            TicketStore::Remote(remote) => Some(&remote.keys),
        }
    }

    pub(super) fn keys_mut(&mut self) -> Option<&mut TicketKeys> {
        match &mut self.store {
            TicketStore::Memory => None,
            TicketStore::Remote(remote) => Some(&mut remote.keys),
        }
    }
}

impl Reader<'_> {
    pub(super) fn tickets(&mut self, root: &mut Section<'_>) -> Option<TicketsConfig> {
        let default = TicketsConfig::default();
        let Some(mut section) = root.table(&mut self.problems, "tickets") else {
            return (!root.has("tickets")).then_some(default);
        };
        let problems = &mut self.problems;
        let capacity = section.number(problems, "capacity", 1..=CAPACITY_MAX as u64);
        let lifetime = section.duration(problems, "lifetime", default.lifetime, SECOND..=DAY);
        let store = self.ticket_store(&mut section, lifetime);
        section.close(&mut self.problems);
        let capacity = capacity.map_or(default.capacity, |found| found.value as usize);
        Some(TicketsConfig { capacity, lifetime, store: store? })
    }

    fn ticket_store(&mut self, section: &mut Section<'_>, lifetime: Duration) -> Option<TicketStore> {
        let range = MILLISECOND..=SECOND;
        let timeout = section.duration(&mut self.problems, "lookup_timeout", defaults::TICKETS_LOOKUP_TIMEOUT, range);
        let keys = section.text(&mut self.problems, "keys").map(|found| self.relative(found));
        let store = section.text(&mut self.problems, "store");
        let is_wrong = store.is_none() && section.has("store");
        let Some(store) = store.filter(|store| store.value != "memory") else {
            for key in ["keys", "lookup_timeout"].into_iter().filter(|key| !is_wrong && section.has(key)) {
                let remedy = "write store = \"redis://IP:PORT/DB\" for a server that nodes share, or remove it";
                self.problems.error(&section.place_of(key), "has no meaning for tickets in memory", remedy);
            }
            return (!is_wrong).then_some(TicketStore::Memory);
        };
        let server = parse_store(&mut self.problems, &store);
        if server.is_some() && !section.has("keys") {
            let remedy =
                "write keys = \"FILE\", the same on every node; `trunkline keys new --kind tickets FILE` makes it";
            self.problems.error(&section.place_of("keys"), "is missing: tickets leave the process sealed", remedy);
        }
        let keys = keys.and_then(|file| TicketKeys::load(&mut self.problems, &file));
        let server = RemoteSettings { lookup_timeout: timeout, lifetime, ..server? };
        Some(TicketStore::Remote(Box::new(RemoteStore { server, keys: keys? })))
    }
}

/// `redis://[[user]:password@]IP:PORT[/DB]`. User and password may be percent-encoded (RFC 3986 section 2.1). Messages
/// hold nothing of what stands before the `@`. The times are the defaults: other keys say them.
fn parse_store(problems: &mut Problems, store: &Located<String>) -> Option<RemoteSettings> {
    let mut wrong = |what: String, remedy: &str| {
        problems.error(&store.place, what, remedy);
    };
    let Some(rest) = store.value.strip_prefix("redis://") else {
        if store.value.starts_with("rediss://") {
            let remedy =
                "use redis:// on a network of your own: tickets are sealed, and the password is all that shows";
            wrong("TLS to the ticket server is not spoken".to_owned(), remedy);
        } else {
            wrong("is neither \"memory\" nor redis://".to_owned(), STORE_REMEDY);
        }
        return None;
    };
    let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
    let (address, database) = place.split_once('/').unwrap_or((place, ""));
    let database = match database {
        "" => Some(0),
        text => text.parse().ok().filter(|number| *number <= DATABASE_MAX),
    };
    let Some(database) = database else {
        wrong("holds no number of a database behind the address".to_owned(), "write it as in redis://127.0.0.1:6379/0");
        return None;
    };
    let (user, password) = match login.map(parse_login) {
        None => (String::new(), Zeroizing::default()),
        Some(Some(login)) => login,
        Some(None) => {
            let remedy = "write user:password@ or :password@, with %40 for @, %2F for / and %25 for %";
            wrong("holds no user and password before the @".to_owned(), remedy);
            return None;
        }
    };
    Some(RemoteSettings {
        server: server_address(problems, &store.place, address)?,
        user,
        password,
        database,
        lookup_timeout: defaults::TICKETS_LOOKUP_TIMEOUT,
        lifetime: defaults::TICKETS_LIFETIME,
    })
}

fn server_address(problems: &mut Problems, place: &Place, text: &str) -> Option<SocketAddr> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Some(address),
        _ => {
            let what = format!("\"{}\" is not the address of a server", text.escape_default());
            problems.error(
                place,
                what,
                "names are not looked up: write an IP address and a port, as in 127.0.0.1:6379",
            );
            None
        }
    }
}

/// User, who may be empty, and password, which may not.
fn parse_login(text: &str) -> Option<(String, Zeroizing<String>)> {
    let (user, password) = text.split_once(':')?;
    let (user, password) = (percent_decoded(user)?, Zeroizing::new(percent_decoded(password)?));
    (!password.is_empty()).then_some((user, password))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let [byte] = hex::array(std::str::from_utf8(rest.get(..2)?).ok()?)?;
        bytes.push(byte);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<RemoteSettings, String> {
        let mut problems = Problems::new("pop.toml".into());
        let store = Located { value: text.to_owned(), place: Place::of("tickets.store") };
        parse_store(&mut problems, &store).ok_or_else(|| problems.to_string())
    }

    #[test]
    fn an_address_with_and_without_login_and_database() {
        let server = parsed("redis://127.0.0.1:6379").expect("the shortest");
        assert_eq!((server.server.port(), server.database), (6379, 0));
        assert!(server.user.is_empty() && server.password.is_empty());
        let server = parsed("redis://pop:p%40ss%2F@[::1]:7/3").expect("the longest");
        assert_eq!((server.user.as_str(), server.password.as_str(), server.database), ("pop", "p@ss/", 3));
        assert!(!format!("{server:?}").contains("p@ss"));
        let server = parsed("redis://:a:b@127.0.0.1:1/").expect("a password alone, with a colon");
        assert_eq!((server.user.as_str(), server.password.as_str()), ("", "a:b"));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for (text, what) in [
            ("redis://u:geheim@store.example:6379", "store.example:6379\" is not the address"),
            ("redis://u:geheim@127.0.0.1", "127.0.0.1\" is not the address"),
            ("redis://u:geheim@0.0.0.0:1", "is not the address"),
            ("redis://u:geheim@127.0.0.1:0", "is not the address"),
            ("redis://u:geheim@127.0.0.1:1/x", "no number of a database"),
            ("redis://u:geheim@127.0.0.1:1/65536", "no number of a database"),
            ("redis://geheim@127.0.0.1:1", "no user and password"),
            ("redis://u:geheim%4@127.0.0.1:1", "no user and password"),
            ("redis://u:geheim%+1@127.0.0.1:1", "no user and password"),
            ("redis://u:@127.0.0.1:1", "no user and password"),
            ("rediss://u:geheim@127.0.0.1:1", "TLS to the ticket server"),
            ("memcached://geheim", "neither"),
        ] {
            let Err(said) = parsed(text) else { panic!("{text} was taken") };
            assert!(said.contains(what) && said.contains("remedy: "), "{text}: {said}");
            assert!(!said.contains("geheim"), "{said}");
        }
    }
}
