//! `trunkline certs`: a development authority, and what POP and gateway need from it.
//!
//! Writes `ca.pem` (which clients, POPs and gateways trust), `pop.pem`, `pop.key`, `gateway.pem` and `gateway.key`. The
//! authority's own key is never written: nobody can issue more in its name, and new certificates mean a new authority.
//! Never overwrites a file unless told to.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::server::certificates::{DevelopmentCa, IssueError, Usage, is_certificate_name};

use super::EXIT_USAGE;

/// Arguments of `trunkline certs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory for the files, made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// DNS name or IP address that clients and POPs connect to; localhost, 127.0.0.1 and ::1 are always added
    #[arg(long = "name", value_name = "NAME", required = true, num_args = 1.., value_parser = parse_name)]
    names: Vec<String>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
}

fn parse_name(name: &str) -> Result<String, String> {
    if is_certificate_name(name) {
        Ok(name.to_owned())
    } else {
        Err("give a DNS name such as pop.example.com, or an IP address, without scheme and port".to_owned())
    }
}

/// A file to be written.
struct Output {
    name: &'static str,
    text: String,
    /// Permission bits.
    mode: u32,
}

const MODE_PUBLIC: u32 = 0o644;
const MODE_SECRET: u32 = 0o600;

/// `trunkline certs`.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let outputs = match make(&args.names) {
        Ok(outputs) => outputs,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let present = existing(&args.out, &outputs);
    if !present.is_empty() && !args.force {
        for path in present {
            eprintln!("error: {} exists\n  remedy: choose another --out, or replace it with --force", path.display());
        }
        return ExitCode::from(EXIT_USAGE);
    }
    if let Err((path, error)) = write_all(&args.out, &outputs) {
        eprintln!("error: cannot write {}: {error}\n  remedy: choose a directory you may write to", path.display());
        return ExitCode::FAILURE;
    }
    tell(args, &outputs);
    ExitCode::SUCCESS
}

fn make(names: &[String]) -> Result<Vec<Output>, IssueError> {
    let ca = DevelopmentCa::new()?;
    let pop = ca.issue("Trunkline development POP", names, Usage::ServerAndClient)?;
    let gateway = ca.issue("Trunkline development gateway", names, Usage::Server)?;
    Ok(vec![
        Output { name: "ca.pem", text: ca.pem(), mode: MODE_PUBLIC },
        Output { name: "pop.pem", text: pop.chain_pem, mode: MODE_PUBLIC },
        Output { name: "pop.key", text: pop.key_pem, mode: MODE_SECRET },
        Output { name: "gateway.pem", text: gateway.chain_pem, mode: MODE_PUBLIC },
        Output { name: "gateway.key", text: gateway.key_pem, mode: MODE_SECRET },
    ])
}

fn existing(directory: &Path, outputs: &[Output]) -> Vec<PathBuf> {
    let paths = outputs.iter().map(|output| directory.join(output.name));
    paths.filter(|path| path.symlink_metadata().is_ok()).collect()
}

/// Writes each file whole beside its place and then moves it there: a process that reads certificates again meanwhile
/// finds the old file or the new one, never half of one.
fn write_all(directory: &Path, outputs: &[Output]) -> Result<(), (PathBuf, io::Error)> {
    fs::create_dir_all(directory).map_err(|error| (directory.to_path_buf(), error))?;
    for output in outputs {
        let path = directory.join(output.name);
        write_one(&path, output).map_err(|error| (path, error))?;
    }
    Ok(())
}

fn write_one(path: &Path, output: &Output) -> io::Result<()> {
    let beside = path.with_file_name(format!(".{}.{}", output.name, std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(output.mode)
        .open(&beside)
        .and_then(|mut file| file.write_all(output.text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Whatever went wrong with the file, this only tidies up after it.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn tell(args: &Args, outputs: &[Output]) {
    let width = outputs.iter().map(|output| output.name.len()).max().unwrap_or(0);
    let directory = args.out.display();
    println!(
        "wrote to {directory}, for {} and this machine, valid for 365 days, development only:",
        args.names.join(", ")
    );
    for output in outputs {
        let about = match output.name {
            "ca.pem" => "what clients, POPs and gateways trust (curl --cacert, ca, client_ca); its key was thrown away",
            "pop.pem" => "certificate of the POP, for clients and for gateways",
            "pop.key" => "its key: keep it secret",
            "gateway.pem" => "certificate of the gateway",
            _ => "its key: keep it secret",
        };
        println!("  {:width$}  {about}", output.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn args(out: &Path, force: bool) -> Args {
        Args { out: out.to_path_buf(), names: vec!["localhost".to_owned()], force }
    }

    #[test]
    fn files_are_written_keys_for_their_owner_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let out = dir.path().join("a/certs");
        assert_eq!(run(&args(&out, false)), ExitCode::SUCCESS);
        let mode = |name: &str| fs::metadata(out.join(name)).expect("it was written").permissions().mode() & 0o777;
        assert_eq!((mode("pop.key"), mode("gateway.key")), (0o600, 0o600));
        assert_eq!(fs::read_dir(&out).expect("it was made").count(), 5, "and nothing else is left");
        let ca = fs::read_to_string(out.join("ca.pem")).expect("it was written");
        assert!(ca.starts_with("-----BEGIN CERTIFICATE-----") && !ca.contains("PRIVATE"));
    }

    #[test]
    fn files_that_exist_are_kept_unless_forced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let key = dir.path().join("pop.key");
        fs::write(&key, "mine").expect("our own directory");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("our own file");
        assert_eq!(run(&args(dir.path(), false)), ExitCode::from(EXIT_USAGE));
        assert_eq!(fs::read_to_string(&key).expect("still there"), "mine");
        assert!(!dir.path().join("ca.pem").exists(), "nothing is written when anything is in the way");
        assert_eq!(run(&args(dir.path(), true)), ExitCode::SUCCESS);
        assert_ne!(fs::read_to_string(&key).expect("still there"), "mine");
        assert_eq!(fs::metadata(&key).expect("still there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_directory_that_cannot_be_made_fails() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("our own directory");
        assert_eq!(run(&args(&file.join("certs"), false)), ExitCode::FAILURE);
    }

    #[test]
    fn names_are_checked() {
        assert!(parse_name("pop.example").is_ok() && parse_name("10.0.0.7").is_ok());
        assert!(parse_name("https://pop.example").is_err() && parse_name("").is_err());
    }
}
