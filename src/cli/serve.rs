//! `trunkline pop` and `trunkline gateway`: read the configuration, tell what is wrong with it, and serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::server::config::{GatewayConfig, PopConfig};
use crate::server::problems::{Problem, Problems};
use crate::server::run::{self, RunError};

use super::EXIT_USAGE;

/// Arguments of both commands.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration, TOML (docs/CONFIG.md)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and every file it names, and exit
    #[arg(long)]
    check: bool,
}

/// `trunkline pop`.
#[must_use]
pub fn pop(args: &Args) -> ExitCode {
    match told(PopConfig::load(&args.config)) {
        None => ExitCode::from(EXIT_USAGE),
        Some(_) if args.check => checked(&args.config),
        Some(config) => ended(run::pop(&config)),
    }
}

/// `trunkline gateway`.
#[must_use]
pub fn gateway(args: &Args) -> ExitCode {
    match told(GatewayConfig::load(&args.config)) {
        None => ExitCode::from(EXIT_USAGE),
        Some(_) if args.check => checked(&args.config),
        Some(config) => ended(run::gateway(&config)),
    }
}

/// The configuration, after its warnings or mistakes were told on standard error.
fn told<T>(loaded: Result<(T, Vec<Problem>), Problems>) -> Option<T> {
    match loaded {
        Ok((config, warnings)) => {
            for warning in warnings {
                eprintln!("{warning}");
            }
            Some(config)
        }
        Err(problems) => {
            eprintln!("{problems}");
            None
        }
    }
}

fn checked(file: &Path) -> ExitCode {
    println!("{}: ok", file.display());
    ExitCode::SUCCESS
}

fn ended(result: Result<(), RunError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            match error {
                RunError::Config(_) => ExitCode::from(EXIT_USAGE),
                RunError::Workers(_) | RunError::Slow(_) | RunError::Log(_) => ExitCode::FAILURE,
            }
        }
    }
}
