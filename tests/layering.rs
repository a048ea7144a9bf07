//! Holds the source to its layers: who may use whom, where `unsafe` may stand, what the byte path and the pure modules
//! must never touch, how long a function may be.
//!
//! Works on text: comments and literals are blanked, what `#[cfg(test)]` guards is left out, and words are looked up in
//! what remains. The tables below are the rules; a list of exceptions may only shrink. Every rule is shown a bad
//! snippet at the end of this file, so that none can go blind unnoticed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Which top modules each top module may use. `a::b` allows that part of `a` alone.
const ARROWS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("ring", &["base"]),
    ("tls", &["base"]),
    ("tickets", &["base"]),
    ("mmtp", &["base"]),
    ("backbone", &["base", "mmtp"]),
    ("relay", &["base", "mmtp", "backbone"]),
    ("gateway", &["base", "mmtp"]),
    // The PROXY header comes before the handshake, so the worker reads it; roles never see those bytes.
    ("worker", &["base", "ring", "tls", "tickets", "relay::proxy_protocol"]),
    // Turns a configuration into what every part is made from, so it knows them all.
    ("server", &["base", "ring", "tls", "tickets", "mmtp", "backbone", "relay", "gateway", "worker"]),
    ("client", &["base", "tls", "mmtp"]),
    // A loop of its own over the parts of the engine; addresses are read by the client's grammar, answers of HTTP by the
    // gateway's codec.
    ("load", &["base", "ring", "tls", "mmtp", "gateway::http1", "client::Url", "client::UrlError", "client::Endpoint"]),
    // Tries what a process of the configuration would do: a ring, a handshake, a greeting of the ticket server.
    ("doctor", &["base", "ring", "tls", "tickets", "server"]),
    // The demo's origin speaks HTTP/1.1 with the gateway's codec. `load` is handed settings of TLS, made from its flags.
    ("cli", &["base", "client", "load", "doctor", "server", "tls", "gateway::http1"]),
    ("main", &["cli"]),
];

/// Crates that only some files may name: their types or their reach must not spread.
const CRATES: &[(&str, &[&str])] = &[
    ("io_uring", &["src/ring/"]),
    ("socket2", &["src/ring/", "src/server/listen.rs", "src/client/fast_open.rs"]),
    // The demo's tunnel client is to be a stranger to Trunkline's own TLS.
    ("rustls", &["src/tls/", "src/cli/demo/tunnel.rs"]),
    ("aws_lc_rs", &["src/tls/", "src/tickets/seal.rs"]),
    // rustls has a module of that name.
    ("hmac", &["src/tls/derive.rs", "src/tls/mint.rs"]),
    ("sha2", &["src/tls/derive.rs"]),
    ("mio", &["src/client/", "src/server/"]),
    ("core_affinity", &["src/server/", "src/load/"]),
    ("mimalloc", &["src/main.rs"]),
    ("libmimalloc_sys", &["src/ring/sys.rs"]),
    // Error numbers beside what the ring needs.
    ("libc", &["src/ring/", "src/worker/"]),
    ("tracing", &["src/server/"]),
    ("clap", &["src/cli/"]),
    ("rcgen", &["src/server/", "src/cli/"]),
];

/// Where bytes of clients pass.
const BYTE_PATH: &[&str] = &["base", "ring", "tls", "tickets", "mmtp", "backbone", "relay", "gateway", "worker"];

/// What the byte path must not say.
const NOT_ON_BYTE_PATH: &[&str] =
    &["Mutex", "RwLock", "Condvar", "Rc", "RefCell", "async", "await", "dyn", "println", "eprintln", "tracing"];

/// Exceptions to [`NOT_ON_BYTE_PATH`]: file, word, reason.
const BYTE_PATH_EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "src/tls/settings.rs",
        "dyn",
        "rustls takes key exchange groups and the verifier as trait objects; built once per settings",
    ),
    (
        "src/tls/derive.rs",
        "dyn",
        "rustls takes HKDF and the transcript's hash as trait objects; used in handshakes only",
    ),
    (
        "src/tls/mint.rs",
        "dyn",
        "rustls takes HKDF, signers and the verifier as trait objects; used in a client's handshakes only",
    ),
    ("src/tickets/store.rs", "Mutex", "once or twice per handshake, never held across anything; a shard of 64 each"),
];

/// Modules that are handed time, bytes and randomness.
const PURE: &[&str] = &["base", "tls", "tickets", "mmtp", "backbone", "relay", "gateway"];

/// What reaches a kernel, a clock or entropy.
const NOT_IN_PURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "io::Error",
    "io::Result",
    "RawFd",
    "OwnedFd",
    "libc",
    "rand",
    "getrandom",
    "RandomState",
    // A map without a hasher of its own draws a random key, and walks in a random order.
    "HashMap::new",
    "HashSet::new",
    "HashMap::default",
    "HashSet::default",
];

/// The one file with `unsafe`, and the one line that lets it.
const UNSAFE_FILE: &str = "src/ring/sys.rs";
const UNSAFE_ALLOWED_BY: &str = "src/ring/mod.rs";

/// Lines a function may have, from its signature to its last brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are longer, all of them flat matches. May only shrink.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];

/// Marks of unfinished work.
const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];
const UNFINISHED_CODE: &[&str] = &["todo", "unimplemented", "dbg"];

// ---- one file ----

/// A source file, as it is and as the rules see it.
struct Source {
    /// From the root of the repository, with `/`.
    path: String,
    text: String,
    /// The text without comments, literals and test code; every line stands where it stood.
    code: Vec<char>,
    /// Names of modules that exist in tests only and live in files of their own.
    test_modules: Vec<String>,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let mut code = blank_comments_and_literals(&text.chars().collect::<Vec<char>>());
        let test_modules = blank_tests(&mut code);
        Source { path: path.to_owned(), text: text.to_owned(), code, test_modules }
    }

    /// `relay` for `src/relay/stream.rs` and for `src/relay.rs`.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split(['/', '.']).next().unwrap_or(inside)
    }

    /// How many `super` lead from this file's module to the crate.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count() - 1;
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }

    /// The files that would hold a module declared here.
    fn files_of(&self, module: &str) -> [String; 2] {
        let own = self.path.trim_end_matches(".rs");
        let is_folder = ["/mod", "/lib", "/main"].iter().any(|name| own.ends_with(name));
        let folder = if is_folder { own.rsplit_once('/').map_or("", |(folder, _)| folder) } else { own };
        [format!("{folder}/{module}.rs"), format!("{folder}/{module}/mod.rs")]
    }

    fn line_of(&self, position: usize) -> usize {
        1 + self.code[..position].iter().filter(|char| **char == '\n').count()
    }

    /// Where `words` stand in the code, not as parts of longer names. `::` may have blanks around it.
    fn find(&self, words: &str) -> Vec<usize> {
        let wanted: Vec<char> = words.chars().collect();
        let is_apart = |index: usize| self.code.get(index).is_none_or(|char| !is_name(*char));
        (0..self.code.len())
            .filter(|&start| self.code[start..].starts_with(&wanted))
            .filter(|&start| (start == 0 || is_apart(start - 1)) && is_apart(start + wanted.len()))
            .collect()
    }

    fn complain(&self, position: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, self.line_of(position))
    }
}

fn is_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// Replaces comments, strings and character literals by blanks, and keeps line ends.
fn blank_comments_and_literals(text: &[char]) -> Vec<char> {
    let mut code = text.to_vec();
    let mut at = 0;
    while at < text.len() {
        let end = skip(text, at);
        match end {
            Some(end) => {
                for char in &mut code[at..end] {
                    *char = if *char == '\n' { '\n' } else { ' ' };
                }
                at = end;
            }
            None => at += 1,
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends.
fn skip(text: &[char], at: usize) -> Option<usize> {
    let starts =
        |with: &str| text[at..].iter().copied().zip(with.chars()).filter(|(a, b)| a == b).count() == with.len();
    let until = |mut end: usize, is_end: &dyn Fn(usize) -> bool| {
        while end < text.len() && !is_end(end) {
            end += if text[end] == '\\' { 2 } else { 1 };
        }
        (end + 1).min(text.len())
    };
    if starts("//") {
        return Some(text[at..].iter().position(|char| *char == '\n').map_or(text.len(), |length| at + length));
    }
    if starts("/*") {
        return Some(skip_block_comment(text, at));
    }
    if text[at] == '"' {
        return Some(until(at + 1, &|end| text[end] == '"'));
    }
    if text[at] == 'r' && (at == 0 || !is_name(text[at - 1]) || (at > 0 && text[at - 1] == 'b')) {
        return skip_raw_string(text, at);
    }
    if text[at] == '\'' {
        let is_literal = text.get(at + 1) == Some(&'\\') || text.get(at + 2) == Some(&'\'');
        return is_literal.then(|| until(at + 1, &|end| text[end] == '\''));
    }
    None
}

fn skip_block_comment(text: &[char], at: usize) -> usize {
    let (mut depth, mut end) = (0, at);
    while end + 1 < text.len() {
        match (text[end], text[end + 1]) {
            ('/', '*') => (depth, end) = (depth + 1, end + 2),
            ('*', '/') => (depth, end) = (depth - 1, end + 2),
            _ => end += 1,
        }
        if depth == 0 {
            return end;
        }
    }
    text.len()
}

fn skip_raw_string(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at + 1..].iter().take_while(|char| **char == '#').count();
    if text.get(at + 1 + hashes) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let begin = at + 2 + hashes;
    let length = text[begin..].windows(close.len()).position(|window| window == close)?;
    Some(begin + length + close.len())
}

/// Blanks what `#[cfg(test)]` guards; returns the modules among it that live in files of their own.
fn blank_tests(code: &mut [char]) -> Vec<String> {
    let mark: Vec<char> = "#[cfg(test)]".chars().collect();
    let mut modules = Vec::new();
    while let Some(start) = code.windows(mark.len()).position(|window| window == mark) {
        let end = item_end(code, start + mark.len());
        let item: String = code[start + mark.len()..end].iter().collect();
        if let Some(name) = item.trim_end().strip_suffix(';').and_then(|item| item.rsplit_once("mod ")) {
            modules.push(name.1.trim().to_owned());
        }
        for char in &mut code[start..end] {
            *char = if *char == '\n' { '\n' } else { ' ' };
        }
    }
    modules
}

/// Where the item that begins at `at` ends: behind its first `;` or its last brace.
fn item_end(code: &[char], at: usize) -> usize {
    let mut depth = 0usize;
    for (index, char) in code.iter().enumerate().skip(at) {
        match char {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            ';' if depth == 0 => return index + 1,
            '{' if depth == 0 => return block_end(code, index),
            _ => {}
        }
    }
    code.len()
}

/// Where the block whose brace stands at `open` ends.
fn block_end(code: &[char], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, char) in code.iter().enumerate().skip(open) {
        match char {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

// ---- the rules ----

/// Everything that is wrong with these files.
fn complaints(sources: &[Source]) -> Vec<String> {
    let test_files: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| source.test_modules.iter().flat_map(|module| source.files_of(module)))
        .collect();
    let mut found = Vec::new();
    for source in sources {
        contract(source, &mut found);
        unfinished(source, &mut found);
        if test_files.contains(&source.path) {
            continue;
        }
        arrows(source, &mut found);
        crates(source, &mut found);
        unsafe_code(source, &mut found);
        functions(source, &mut found);
        byte_path(source, &mut found);
        pure(source, &mut found);
    }
    found
}

fn contract(source: &Source, found: &mut Vec<String>) {
    if !source.text.starts_with("//! ") {
        found.push(format!("{}:1: a file opens with its contract (//!)", source.path));
    }
}

fn unfinished(source: &Source, found: &mut Vec<String>) {
    for (index, line) in source.text.lines().enumerate() {
        let has = |mark: &&&str| line.split(|char: char| !is_name(char)).any(|word| word == **mark);
        if let Some(mark) = UNFINISHED.iter().find(has) {
            found.push(format!("{}:{}: {mark}: finish it or file it", source.path, index + 1));
        }
    }
    for word in UNFINISHED_CODE {
        for at in source.find(word) {
            if source.code.get(at + word.len()) == Some(&'!') {
                found.push(source.complain(at, &format!("{word}! does not ship")));
            }
        }
    }
}

/// The paths into other modules that stand behind `crate::`, or behind enough `super::`.
fn paths(source: &Source) -> Vec<(usize, String)> {
    let supers = "super::".repeat(source.depth());
    let mut paths = Vec::new();
    for root in ["crate::", supers.as_str()] {
        for at in source.find(root.trim_end_matches(':')) {
            let rest: String = source.code[at..].iter().take(400).collect();
            if root.starts_with("super") && source.code[..at].ends_with(&[':', ':']) {
                continue; // the tail of a longer chain
            }
            let Some(rest) = rest.strip_prefix(root) else { continue };
            match rest.strip_prefix('{') {
                None => paths.push((at, path_of(rest))),
                Some(group) => {
                    let group = group.split_once("};").map_or(group, |(group, _)| group);
                    paths.extend(group.split(',').map(|each| (at, path_of(each.trim()))));
                }
            }
        }
    }
    paths.retain(|(_, path)| !path.is_empty() && !path.starts_with("super") && !path.starts_with("self"));
    paths
}

fn path_of(text: &str) -> String {
    text.chars().take_while(|char| is_name(*char) || *char == ':').collect::<String>().trim_end_matches(':').to_owned()
}

fn arrows(source: &Source, found: &mut Vec<String>) {
    let module = source.module();
    if module == "lib" {
        return;
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        found.push(format!("{}:1: module `{module}` is not in the table of arrows", source.path));
        return;
    };
    let is_module = |path: &str| ARROWS.iter().any(|(name, _)| path.split("::").next() == Some(*name));
    for (at, path) in paths(source).into_iter().filter(|(_, path)| is_module(path)) {
        let is_own = path.split("::").next() == Some(module);
        let fits = |to: &&str| path == **to || path.starts_with(&format!("{to}::"));
        if !is_own && !allowed.iter().any(fits) {
            found.push(source.complain(at, &format!("`{module}` must not use `{path}`")));
        }
        let before: String = source.code[..at].iter().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect();
        if !is_own && before.ends_with("pub use ") {
            found.push(source.complain(at, &format!("`{module}` must not pass `{path}` on as its own")));
        }
    }
}

fn crates(source: &Source, found: &mut Vec<String>) {
    for (name, places) in CRATES {
        if places.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        for at in source.find(name) {
            let behind: String = source.code[at + name.len()..].iter().take(2).collect();
            let is_path = behind == "::" && !source.code[..at].ends_with(&[':', ':']);
            if is_path {
                found.push(source.complain(at, &format!("crate `{name}` must not be named here")));
            }
        }
    }
}

fn unsafe_code(source: &Source, found: &mut Vec<String>) {
    for at in source.find("allow(unsafe_code)") {
        if source.path != UNSAFE_ALLOWED_BY {
            found.push(source.complain(at, "unsafe code is allowed in one place only"));
        }
    }
    for at in source.find("unsafe") {
        if source.path != UNSAFE_FILE {
            found.push(source.complain(at, &format!("`unsafe` has one address: {UNSAFE_FILE}")));
        } else {
            let line = source.line_of(at);
            let above: Vec<&str> = source.text.lines().take(line).collect();
            let reason = above.iter().rev().take(8).take_while(|line| !line.trim().is_empty());
            if !reason.into_iter().any(|line| line.contains("SAFETY:")) {
                found.push(source.complain(at, "`unsafe` without a SAFETY reason above it"));
            }
        }
    }
}

fn functions(source: &Source, found: &mut Vec<String>) {
    for at in source.find("fn") {
        let rest = &source.code[at + 2..];
        let name: String = rest.iter().skip_while(|char| **char == ' ').take_while(|char| is_name(**char)).collect();
        if name.is_empty() || rest.first() != Some(&' ') {
            continue; // a function type
        }
        let end = item_end(&source.code, at);
        let lines = source.line_of(end) - source.line_of(at) + 1;
        let is_listed = LONG_FUNCTIONS.contains(&(source.path.as_str(), name.as_str()));
        if lines > FUNCTION_LINES_MAX && !is_listed {
            found.push(source.complain(at, &format!("`{name}` has {lines} lines, {FUNCTION_LINES_MAX} are a screen")));
        }
        if lines <= FUNCTION_LINES_MAX && is_listed {
            found.push(source.complain(at, &format!("`{name}` is short enough now: take it off the list")));
        }
        let body: String = source.code[at..end].iter().collect();
        if body.contains("#[cfg(") || body.contains("cfg!(") {
            found.push(source.complain(at, &format!("`{name}` has a cfg in its body")));
        }
    }
}

fn byte_path(source: &Source, found: &mut Vec<String>) {
    if !BYTE_PATH.contains(&source.module()) {
        return;
    }
    for word in NOT_ON_BYTE_PATH {
        let is_excepted =
            BYTE_PATH_EXCEPTIONS.iter().any(|(path, excepted, _)| *path == source.path && excepted == word);
        let places = source.find(word);
        if is_excepted && places.is_empty() {
            found.push(format!("{}:1: the exception for `{word}` is not needed any more", source.path));
        }
        if !is_excepted {
            found.extend(places.into_iter().map(|at| source.complain(at, &format!("`{word}` on the byte path"))));
        }
    }
}

fn pure(source: &Source, found: &mut Vec<String>) {
    if !PURE.contains(&source.module()) {
        return;
    }
    for word in NOT_IN_PURE {
        for at in source.find(word) {
            found.push(source.complain(at, &format!("`{word}` in a pure module")));
        }
    }
}

// ---- the source ----

fn read_tree(folder: &Path, root: &Path, into: &mut Vec<Source>) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it can be read").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_tree(&path, root, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("it is below the root").to_string_lossy().replace('\\', "/");
            into.push(Source::new(&name, &fs::read_to_string(&path).expect("source is text")));
        }
    }
}

fn source_tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    read_tree(&root.join("src"), root, &mut sources);
    sources
}

#[test]
fn the_source_keeps_to_its_layers() {
    let found = complaints(&source_tree());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_tables_name_what_exists() {
    let sources = source_tree();
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).filter(|module| *module != "lib").collect();
    let named: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules, named);
    assert!(BYTE_PATH.iter().chain(PURE).all(|module| named.contains(module)));
    for (path, name) in LONG_FUNCTIONS {
        assert!(sources.iter().any(|source| source.path == *path && source.text.contains(&format!("fn {name}"))));
    }
    for (path, word, reason) in BYTE_PATH_EXCEPTIONS {
        assert!(sources.iter().any(|source| source.path == *path), "{path} is gone");
        assert!(NOT_ON_BYTE_PATH.contains(word) && !reason.is_empty());
    }
}

// ---- tests of the rules themselves ----

/// What the rules say about one file with this text behind its contract.
fn told(path: &str, text: &str) -> Vec<String> {
    complaints(&[Source::new(path, &format!("//! A contract.\n{text}\n"))])
}

#[track_caller]
fn refuses(path: &str, text: &str, expected: &str) {
    let found = told(path, text);
    assert!(found.iter().any(|complaint| complaint.contains(expected)), "{expected:?} is not in {found:?}");
}

#[track_caller]
fn takes(path: &str, text: &str) {
    assert_eq!(told(path, text), Vec::<String>::new());
}

#[test]
fn a_forbidden_arrow_is_found_however_it_is_written() {
    refuses("src/tls/record.rs", "use crate::mmtp::frame;", "`tls` must not use `mmtp::frame`");
    refuses("src/ring/mod.rs", "use super::tls;", "`ring` must not use `tls`");
    refuses("src/ring/uring.rs", "fn f() { super::super::worker::go() }", "`ring` must not use `worker::go`");
    refuses("src/base/slab.rs", "use crate::{ring, tls::Session};", "`base` must not use `tls::Session`");
    refuses("src/worker/engine.rs", "use crate::relay::Relay;", "`worker` must not use `relay::Relay`");
    refuses("src/mmtp/mod.rs", "pub use crate::base::time::Time;", "must not pass `base::time::Time` on");
    refuses("src/novel/mod.rs", "", "not in the table");
    refuses("src/worker/mod.rs", "use rustls::Error;", "crate `rustls`");
    takes("src/worker/engine.rs", "use crate::relay::proxy_protocol;\nuse super::links::Links;");
    takes("src/relay/stream.rs", "use crate::backbone::Pool;\nuse crate::base::{slab::Key, time::Time};");
    takes("src/tls/settings.rs", "use rustls::ServerConfig;\nfn f() -> Vec<&'static dyn Group> { g() }");
}

#[test]
fn unsafe_code_is_found_outside_its_file_and_without_a_reason() {
    refuses("src/relay/mod.rs", "fn f() { unsafe { g() } }", "`unsafe` has one address");
    refuses("src/relay/mod.rs", "#[allow(unsafe_code)]\nmod x;", "allowed in one place only");
    refuses("src/ring/sys.rs", "fn f() { unsafe { g() } }", "without a SAFETY reason");
    takes("src/ring/sys.rs", "fn f() {\n    // SAFETY: because.\n    unsafe { g() }\n}");
}

#[test]
fn a_long_function_and_a_cfg_in_a_body_are_found() {
    let body = |lines: usize| format!("fn long() {{\n{}}}", "    g();\n".repeat(lines));
    refuses("src/relay/mod.rs", &body(69), "`long` has 71 lines");
    takes("src/relay/mod.rs", &body(68));
    refuses("src/relay/mod.rs", "fn f() {\n    #[cfg(unix)]\n    g();\n}", "`f` has a cfg in its body");
}

#[test]
fn what_the_byte_path_and_pure_modules_must_not_touch_is_found() {
    for word in NOT_ON_BYTE_PATH {
        refuses("src/worker/links.rs", &format!("type X = {word};"), "on the byte path");
    }
    for word in NOT_IN_PURE {
        refuses("src/mmtp/conn.rs", &format!("fn f() {{ {word}; }}"), "in a pure module");
    }
    takes("src/server/log.rs", "use std::sync::Mutex;\nuse std::time::Instant;");
    takes("src/mmtp/conn.rs", "struct RcInstants;\nfn f() { HashMap::with_hasher(seeded()); }");
}

#[test]
fn a_missing_contract_and_unfinished_work_are_found() {
    let found = complaints(&[Source::new("src/relay/mod.rs", "use std::fmt;\n")]);
    assert_eq!(found, ["src/relay/mod.rs:1: a file opens with its contract (//!)"]);
    refuses("src/relay/mod.rs", &format!("// {}: later", "TODO"), "finish it or file it");
    refuses("src/relay/mod.rs", "fn f() { todo!() }", "todo! does not ship");
}

#[test]
fn comments_literals_and_tests_do_not_count() {
    takes("src/mmtp/conn.rs", "// unsafe Mutex crate::ring\n/* Instant /* dyn */ libc */");
    takes("src/mmtp/conn.rs", "const A: &str = \"unsafe \\\" Mutex\";\nconst B: &[u8] = br#\"dyn \" Rc\"#;");
    takes("src/mmtp/conn.rs", "fn f<'a>(x: &'a u8) -> char { if *x == b'\\'' { '\"' } else { 'x' } }");
    takes(
        "src/mmtp/conn.rs",
        "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n    fn f() { unsafe { g() } }\n}",
    );
    let module = Source::new("src/mmtp/mod.rs", "//! A.\n#[cfg(test)]\npub(crate) mod testing;\n");
    let file = Source::new("src/mmtp/testing.rs", "//! B.\nuse std::time::Instant;\n");
    assert_eq!(complaints(&[module, file]), Vec::<String>::new());
    refuses(
        "src/mmtp/conn.rs",
        "#[cfg(test)]\nconst A: [u8; 2] = [1; 2];\nuse std::time::Instant;",
        "in a pure module",
    );
}
