//! The commands: arguments in, exit code out.
//!
//! Each command has a file. Owns what is printed to people; the work is done elsewhere. Exit codes: 0 done, 1 failed,
//! 2 wrong arguments or configuration.

pub mod call;
pub mod certs;
pub mod demo;
pub mod doctor;
pub mod keys;
pub mod load;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The exit code for wrong arguments or configuration; clap uses the same.
pub const EXIT_USAGE: u8 = 2;

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "trunkline", version, about = "Edge accelerator for mobile traffic", arg_required_else_help = true)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a POP: end TLS near the user, forward streams over trunks
    Pop(serve::Args),
    /// Run a gateway: end trunks in the data center, forward to upstreams
    Gateway(serve::Args),
    /// Make a request over mmtp://
    Call(Box<call::CallArgs>),
    /// Put load on a server over mmtp://, https:// or http://, and measure it
    Load(Box<load::LoadArgs>),
    /// Make certificates for development
    Certs(certs::Args),
    /// Make and rotate the key files that the nodes of a POP share
    Keys(keys::Args),
    /// Look at this node: what is right, what is wrong, what to do
    Doctor(doctor::Args),
    /// Run a POP, a gateway and an origin here, send requests through them, and show what each step took
    Demo(demo::Args),
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    match CommandLine::parse().command {
        Command::Pop(args) => serve::pop(&args),
        Command::Gateway(args) => serve::gateway(&args),
        Command::Call(args) => call::run(*args),
        Command::Load(args) => load::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn wrong_usage_exits_with_two() {
        for args in [vec!["trunkline", "pop"], vec!["trunkline", "nonsense"], vec!["trunkline", "certs", "--out", "x"]]
        {
            let error = CommandLine::try_parse_from(args).expect_err("wrong usage");
            assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
        }
        let version = CommandLine::try_parse_from(["trunkline", "--version"]).expect_err("prints and ends");
        assert_eq!(version.exit_code(), 0);
    }
}
