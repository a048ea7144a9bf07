//! `trunkline pop` and `trunkline gateway`: read the configuration, tell what is wrong with it, and serve.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::server::config::{GatewayConfig, PopConfig};
use crate::server::problems::{Problem, Problems};

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
        Some(_) => not_serving(),
    }
}

/// `trunkline gateway`.
#[must_use]
pub fn gateway(args: &Args) -> ExitCode {
    match told(GatewayConfig::load(&args.config)) {
        None => ExitCode::from(EXIT_USAGE),
        Some(_) if args.check => checked(&args.config),
        Some(_) => not_serving(),
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

fn not_serving() -> ExitCode {
    eprintln!("error: this build can only check configurations; add --check");
    ExitCode::FAILURE
}
