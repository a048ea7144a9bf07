//! Reads one table of a TOML file key by key, and notes every mistake instead of stopping at the first.
//!
//! serde stops at the first unknown key or wrong type; whoever edits a configuration wants all of them. So the keys
//! that are asked for *are* the known ones: what is left when a table is closed is unknown, and there is no second list
//! that could disagree. Never touches a file beyond the text it was given.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::{Place, Problems};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// A table that is being read. [`Section::close`] reports the keys that nobody asked for.
pub struct Section<'t> {
    table: &'t DeTable<'t>,
    text: &'t str,
    place: Place,
    asked: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The whole file.
    #[must_use]
    pub fn root(table: &'t DeTable<'t>, text: &'t str) -> Section<'t> {
        Section { table, text, place: Place::default(), asked: Vec::new() }
    }

    /// Where the table begins.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where `key` stands, or would stand.
    #[must_use]
    pub fn place_of(&self, key: &str) -> Place {
        let line = self.table.get(key).map_or(self.place.line, |value| line_of(self.text, value.span().start));
        Place { key: self.path_of(key), line }
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Text of at least one character.
    pub fn text(&mut self, problems: &mut Problems, key: &'static str) -> Option<Located<String>> {
        let found = self.typed(problems, key, "text in quotes", |value| value.as_str().map(str::to_owned))?;
        if found.value.is_empty() {
            problems.error(&found.place, "is empty", "give a value, or remove the key");
            return None;
        }
        Some(found)
    }

    /// Like [`Section::text`], and a mistake when the key is missing. `remedy` says what to write.
    pub fn text_required(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        remedy: &str,
    ) -> Option<Located<String>> {
        self.require(problems, key, remedy);
        self.text(problems, key)
    }

    /// true or false.
    pub fn boolean(&mut self, problems: &mut Problems, key: &'static str, default: bool) -> bool {
        self.typed(problems, key, "true or false", DeValue::as_bool).map_or(default, |found| found.value)
    }

    /// A whole number within `range`.
    pub fn number(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Located<u64>> {
        let found = self.typed(problems, key, "a whole number", |value| {
            value
                .as_integer()
                .map(|integer| i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX))
        })?;
        match u64::try_from(found.value) {
            Ok(value) if range.contains(&value) => Some(Located { value, place: found.place }),
            _ => {
                let what = format!("{} is out of range", found.value);
                problems.error(&found.place, what, format!("use {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    /// Several whole numbers.
    pub fn numbers(&mut self, problems: &mut Problems, key: &'static str) -> Option<Located<Vec<usize>>> {
        self.typed(problems, key, "whole numbers in brackets, such as [0, 1]", |value| {
            let array = value.as_array()?;
            let number = |item: &Spanned<DeValue<'_>>| {
                let integer = item.get_ref().as_integer()?;
                usize::from_str_radix(integer.as_str(), integer.radix()).ok()
            };
            array.iter().map(number).collect::<Option<Vec<usize>>>()
        })
    }

    /// A duration such as `"5s"` within `range`, `default` when it is not given or wrong.
    pub fn duration(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let hint = "a duration in quotes, such as \"250ms\", \"5s\", \"10m\" or \"1h\"";
        let Some(found) = self.typed(problems, key, hint, |value| value.as_str().map(str::to_owned)) else {
            return default;
        };
        match parse_duration(&found.value) {
            Some(value) if range.contains(&value) => value,
            Some(_) => {
                let what = format!("{} is out of range", found.value);
                let (least, most) = (duration_text(*range.start()), duration_text(*range.end()));
                problems.error(&found.place, what, format!("use {least} to {most}"));
                default
            }
            None => {
                problems.error(&found.place, format!("\"{}\" is not a duration", found.value), format!("write {hint}"));
                default
            }
        }
    }

    /// One of `choices`, `default` when it is not given or wrong.
    pub fn choice<T: Copy>(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        default: T,
        choices: &[(&'static str, T)],
    ) -> T {
        let Some(found) = self.text(problems, key) else { return default };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == found.value) {
            return *value;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let remedy = match nearest(&found.value, &names) {
            Some(name) => format!("did you mean \"{name}\"? Possible are {}", quoted(&names)),
            None => format!("use one of {}", quoted(&names)),
        };
        problems.error(&found.place, format!("\"{}\" is not known here", found.value), remedy);
        default
    }

    /// Several texts of at least one character; at least one.
    pub fn texts(&mut self, problems: &mut Problems, key: &'static str) -> Option<Located<Vec<String>>> {
        let found = self.typed(problems, key, "texts in brackets, such as [\"a\", \"b\"]", |value| {
            let array = value.as_array()?;
            array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        })?;
        if found.value.is_empty() || found.value.iter().any(String::is_empty) {
            problems.error(&found.place, "is empty, or holds an empty text", "give a value, or remove the key");
            return None;
        }
        Some(found)
    }

    /// One address with a port.
    pub fn address(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        use_: AddressUse,
    ) -> Option<Located<SocketAddr>> {
        let found = self.text(problems, key)?;
        let value = parse_address(problems, &found.place, &found.value, use_)?;
        Some(Located { value, place: found.place })
    }

    /// One address with a port, or several in brackets; at least one, each once. None when any is wrong.
    pub fn addresses(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        use_: AddressUse,
    ) -> Option<Vec<Located<SocketAddr>>> {
        self.require(problems, key, use_.example(key));
        let texts = self.typed(problems, key, "an address in quotes, or several in brackets", |value| match value {
            DeValue::String(text) => Some(vec![text.to_string()]),
            DeValue::Array(items) => items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect(),
            _ => None,
        })?;
        if texts.value.is_empty() {
            problems.error(&texts.place, "holds no address", use_.example(key));
            return None;
        }
        let mut addresses: Vec<Located<SocketAddr>> = Vec::new();
        let mut all_good = true;
        for text in &texts.value {
            match parse_address(problems, &texts.place, text, use_) {
                Some(value) if addresses.iter().any(|other| other.value == value) => {
                    problems.error(&texts.place, format!("{value} stands twice"), "remove one of the two");
                    all_good = false;
                }
                Some(value) => addresses.push(Located { value, place: texts.place.clone() }),
                None => all_good = false,
            }
        }
        all_good.then_some(addresses)
    }

    /// A table; an empty one when it is not there.
    pub fn table(&mut self, problems: &mut Problems, key: &'static str) -> Option<Section<'t>> {
        self.asked.push(key);
        let found = self.table.get(key)?;
        let place = self.place_of(key);
        match found.get_ref().as_table() {
            Some(table) => Some(Section { table, text: self.text, place, asked: Vec::new() }),
            None => {
                let (what, remedy) = (wrong_type(found.get_ref(), "a table"), format!("write it as [{}]", place.key));
                problems.error(&place, what, remedy);
                None
            }
        }
    }

    /// The tables of an array of tables; none when it is not there.
    pub fn tables(&mut self, problems: &mut Problems, key: &'static str) -> Vec<Section<'t>> {
        self.asked.push(key);
        let Some(found) = self.table.get(key) else { return Vec::new() };
        let place = self.place_of(key);
        let remedy = format!("write each as [[{}]]", place.key);
        let Some(array) = found.get_ref().as_array() else {
            problems.error(&place, wrong_type(found.get_ref(), "a list of tables"), remedy);
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let place = Place { key: format!("{}[{index}]", place.key), line: line_of(self.text, item.span().start) };
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section { table, text: self.text, place, asked: Vec::new() }),
                None => problems.error(&place, wrong_type(item.get_ref(), "a table"), remedy.clone()),
            }
        }
        sections
    }

    /// Like [`Section::tables`], and a mistake when there is none. `remedy` says what to write.
    pub fn tables_required(&mut self, problems: &mut Problems, key: &'static str, remedy: &str) -> Vec<Section<'t>> {
        let found = self.table.get(key).map(Spanned::get_ref);
        if found.is_none_or(|value| value.as_array().is_some_and(|array| array.is_empty())) {
            problems.error(&self.place_of(key), "is missing", remedy);
        }
        self.tables(problems, key)
    }

    /// Reports keys that nobody asked for.
    pub fn close(self, problems: &mut Problems) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let place = Place { key: self.path_of(name), line: line_of(self.text, key.span().start) };
            let remedy = match nearest(name, &self.asked) {
                Some(known) => format!("did you mean `{known}`? Known here are {}", listed(&self.asked)),
                None => format!("remove it, or use one of {}", listed(&self.asked)),
            };
            problems.error(&place, "unknown key", remedy);
        }
    }

    /// A mistake when `key` is not there.
    fn require(&mut self, problems: &mut Problems, key: &'static str, remedy: impl Into<String>) {
        if !self.has(key) {
            problems.error(&self.place_of(key), "is missing", remedy);
        }
    }

    fn typed<T>(
        &mut self,
        problems: &mut Problems,
        key: &'static str,
        wanted: &str,
        take: impl FnOnce(&DeValue<'t>) -> Option<T>,
    ) -> Option<Located<T>> {
        self.asked.push(key);
        let found = self.table.get(key)?;
        let place = self.place_of(key);
        match take(found.get_ref()) {
            Some(value) => Some(Located { value, place }),
            None => {
                problems.error(&place, wrong_type(found.get_ref(), wanted), format!("write {wanted}"));
                None
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.place.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place.key) }
    }
}

/// What an address is for, which decides whether it may have port 0 or stand for every address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressUse {
    /// To listen on, by several sockets: port 0 would give each another port.
    Listen,
    /// To listen on, by one socket.
    ListenOnce,
    /// To connect to.
    Connect,
}

impl AddressUse {
    fn example(self, key: &str) -> String {
        match self {
            AddressUse::Listen => format!("write {key} = \"0.0.0.0:8443\", or [\"0.0.0.0:8443\", \"[::]:8443\"]"),
            AddressUse::ListenOnce => format!("write {key} = \"127.0.0.1:9901\""),
            AddressUse::Connect => format!("write an IP address and a port, such as {key} = \"10.0.0.7:7443\""),
        }
    }
}

fn parse_address(problems: &mut Problems, place: &Place, text: &str, use_: AddressUse) -> Option<SocketAddr> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        let hint = "write an IP address and a port, such as \"127.0.0.1:8443\" or \"[::1]:8443\"";
        let remedy = if text.parse::<std::net::IpAddr>().is_ok() {
            format!("add the port: {hint}")
        } else if text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            format!("names are not looked up: {hint}")
        } else {
            hint.to_owned()
        };
        problems.error(place, format!("\"{text}\" is not an address"), remedy);
        return None;
    };
    if address.port() == 0 && use_ != AddressUse::ListenOnce {
        problems.error(place, format!("{address} has port 0"), "give a port from 1 to 65535");
        return None;
    }
    if address.ip().is_unspecified() && use_ == AddressUse::Connect {
        problems.error(place, format!("{address} is no address to connect to"), "give the address of the other end");
        return None;
    }
    Some(address)
}

/// `50us`, `250ms`, `5s`, `10m`, `1h`: a whole number and a unit. None when it is anything else.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        _ if !duration.as_micros().is_multiple_of(1_000) => format!("{}us", duration.as_micros()),
        _ if millis.is_multiple_of(3_600_000) && millis > 0 => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) && millis > 0 => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

fn wrong_type(found: &DeValue<'_>, wanted: &str) -> String {
    format!("is {}, not {wanted}", with_article(found.type_str()))
}

fn with_article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// The known word that a slip of the fingers would explain.
fn nearest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    let near = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), *known)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// Line of a byte offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + memchr::memchr_iter(b'\n', before).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(parse_duration("50us"), Some(Duration::from_micros(50)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("10m"), Some(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        for wrong in ["", "5", "s", "5 s", "-5s", "5.5s", "5sec", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        for text in ["50us", "250ms", "5s", "10m", "1h", "0s"] {
            assert_eq!(duration_text(parse_duration(text).expect("one of the above")), text);
        }
    }

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        assert_eq!(nearest("certifcate", &["address", "certificate", "key"]), Some("certificate"));
        assert_eq!(nearest("adress", &["address", "certificate"]), Some("address"));
        assert_eq!(nearest("zzzz", &["address", "key"]), None);
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn lines_are_counted_from_one() {
        assert_eq!(line_of("a\nb\nc", 0), 1);
        assert_eq!(line_of("a\nb\nc", 2), 2);
        assert_eq!(line_of("a\nb\nc", 99), 3);
    }
}
