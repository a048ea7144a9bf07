//! The documents against the code: metrics that are documented exist and the other way round, examples are the
//! examples, links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use trunkline::base::counters::{DESCRIPTIONS, Kind};
use trunkline::ring::RingSettings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// README and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let in_folder = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("the folder is there");
        entries.map(|entry| entry.expect("it can be read").path()).filter(is_page).collect()
    };
    [in_folder(root()), in_folder(&root().join("docs"))].concat()
}

/// What stands between the fences of a language that begin with this line.
fn block(page: &str, first_line: &str) -> String {
    let (_, rest) = page.split_once(&format!("```toml\n{first_line}\n")).expect("the block is there");
    rest.split_once("```").expect("it ends").0.to_owned()
}

#[test]
fn every_metric_is_documented_as_it_is() {
    let page = read("docs/OPERATING.md");
    let documented: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `trunkline_") && line.matches(" | ").count() == 2).collect();
    let described: Vec<String> = DESCRIPTIONS
        .iter()
        .map(|figure| {
            let (kind, suffix) = match figure.kind {
                Kind::Counter => ("counter", "_total"),
                Kind::Gauge => ("gauge", ""),
            };
            let labels = if figure.labels.is_empty() { String::new() } else { format!("{{{}}}", figure.labels) };
            format!("| `trunkline_{}{suffix}{labels}` | {kind} | {} |", figure.name, figure.help)
        })
        .collect();
    assert_eq!(documented, described, "the table in docs/OPERATING.md, in the order of src/base/counters.rs");
}

#[test]
fn receive_buffers_are_documented_as_they_are() {
    let RingSettings { buffers, buffer_bytes, .. } = RingSettings::default();
    let all_mib = (u32::from(buffers) * buffer_bytes) >> 20;
    let configuration = read("docs/CONFIG.md");
    let row = |key: &str| configuration.lines().find(|line| line.starts_with(&format!("| `{key}` |"))).expect("a row");
    assert!(row("buffers").starts_with(&format!("| `buffers` | `{buffers}` |")), "{}", row("buffers"));
    assert!(row("buffer_bytes").starts_with(&format!("| `buffer_bytes` | `{buffer_bytes}` |")));
    assert!(row("buffer_bytes").contains(&format!(" {all_mib} MiB ")), "{}", row("buffer_bytes"));
    let sketch = format!("receive buffers {buffers} × {} KiB = {all_mib} MiB", buffer_bytes >> 10);
    assert!(read("docs/ARCHITECTURE.md").contains(&sketch), "docs/ARCHITECTURE.md lacks: {sketch}");
}

#[test]
fn the_configuration_in_the_readme_is_that_of_the_examples() {
    let readme = read("README.md");
    for file in ["pop.toml", "gateway.toml"] {
        let shown: toml::Table = block(&readme, &format!("# {file}")).parse().expect("it is TOML");
        let example: toml::Table = read(&format!("docs/examples/{file}")).parse().expect("it is TOML");
        assert_eq!(shown, example, "{file}");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).expect("it was listed");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.starts_with("http") {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                let target = fs::read_to_string(&target).expect("it exists");
                let is_found = target.lines().any(|line| line.starts_with('#') && anchor_of(line) == anchor);
                assert!(is_found, "{}: {link}: no such heading", page.display());
            }
        }
    }
}

/// The anchor that a heading gets.
fn anchor_of(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[test]
fn files_named_by_the_architecture_exist() {
    let page = read("docs/ARCHITECTURE.md");
    let names = page.split('`').skip(1).step_by(2).filter(|name| name.contains('/') && !name.contains([' ', '*', ':']));
    for name in names.filter(|name| name.ends_with(".rs") || name.ends_with('/') || name.ends_with(".sh")) {
        let exists = root().join(name).exists() || root().join("src").join(name).exists();
        assert!(exists, "docs/ARCHITECTURE.md names {name}");
    }
}
