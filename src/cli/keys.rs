//! `trunkline keys`: makes and rotates the key files that the nodes of a POP share.
//!
//! `new` never overwrites a file; `rotate` replaces one whole. Neither prints a key.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use crate::server::keys::{self, Kind};

use super::EXIT_USAGE;

/// Arguments of `trunkline keys`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a file of fresh keys that only its owner can read
    New {
        /// What the keys are for
        #[arg(long, value_enum)]
        kind: KindArg,
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Move the keys of a file on: the next becomes current, the current previous, and the previous is gone
    Rotate {
        /// The file
        file: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum KindArg {
    /// Keys that seal resumption tickets: tickets.keys
    Tickets,
    /// Keys of TCP Fast Open: fast_open.keys
    FastOpen,
}

/// `trunkline keys`.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match &args.command {
        Command::New { kind, file } => {
            let kind = match kind {
                KindArg::Tickets => Kind::Tickets,
                KindArg::FastOpen => Kind::FastOpen,
            };
            ended(file, "made", keys::make(kind, file).map(|()| kind))
        }
        Command::Rotate { file } => ended(file, "rotated", keys::rotate(file)),
    }
}

fn ended(file: &Path, done: &str, result: io::Result<Kind>) -> ExitCode {
    let path = file.display();
    match result {
        Ok(kind) => {
            let key = match kind {
                Kind::Tickets => "tickets.keys",
                Kind::FastOpen => "fast_open.keys",
            };
            println!("{done} {path}: name it as {key} of every node, and give each the same file");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::AlreadyExists => "choose another name, or rotate it",
                io::ErrorKind::NotFound => "correct the path, or make the file with `trunkline keys new`",
                io::ErrorKind::InvalidData => "give a file that `trunkline keys new` has made",
                _ => "choose a directory you may write to",
            };
            eprintln!("error: {path}: {error}\n  remedy: {remedy}");
            match error.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound | io::ErrorKind::InvalidData => {
                    ExitCode::from(EXIT_USAGE)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(kind: KindArg, file: &Path) -> ExitCode {
        run(&Args { command: Command::New { kind, file: file.to_path_buf() } })
    }

    fn rotate(file: &Path) -> ExitCode {
        run(&Args { command: Command::Rotate { file: file.to_path_buf() } })
    }

    #[test]
    fn files_are_made_once_and_rotated() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for kind in [KindArg::Tickets, KindArg::FastOpen] {
            let file = dir.path().join(format!("{kind:?}"));
            assert_eq!(rotate(&file), ExitCode::from(EXIT_USAGE), "there is none");
            assert_eq!(new(kind, &file), ExitCode::SUCCESS);
            let first = std::fs::read_to_string(&file).expect("it was made");
            assert_eq!(new(kind, &file), ExitCode::from(EXIT_USAGE), "there is one");
            assert_eq!(rotate(&file), ExitCode::SUCCESS);
            assert_ne!(std::fs::read_to_string(&file).expect("it is there"), first);
        }
        let other = dir.path().join("other");
        std::fs::write(&other, "something else").expect("our own directory");
        assert_eq!(rotate(&other), ExitCode::from(EXIT_USAGE));
        assert_eq!(std::fs::read_to_string(&other).expect("it is there"), "something else");
    }
}
