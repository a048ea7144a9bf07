//! A client that is always new: connects, shakes hands, asks once, closes. For measuring what a new connection costs a
//! server, any server: it speaks through rustls's buffered client and knows nothing of Trunkline but, if told, MMTP.
//!
//! ```text
//! newcomers full|resumed|early --target ADDR --ca FILE [--seconds S | --connections N] [--pid SERVER]
//! newcomers storm              --target ADDR --ca FILE --rate HELLOS_PER_SECOND
//! newcomers hold               --target ADDR --ca FILE --connections 15000
//! newcomers replay             --target ADDR... --ca FILE --origin ADDR --connections 100000
//! ```
//!
//! Each prints one line of JSON. Scripts under `scripts/` run it; `newcomers --help` lists the rest.

mod connection;
mod hold;
mod replay;
mod rounds;
mod speech;
mod storm;
mod trust;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// What every kind is told.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Server under test. Of several, each connection goes to one at random.
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    /// Name asked for, and proven by the certificate.
    #[arg(long, default_value = "localhost")]
    name: String,
    /// Authorities that may vouch for the server, PEM.
    #[arg(long)]
    ca: PathBuf,
    /// Application protocol: http/1.1, mmtp, or none (HTTP/1.1 without ALPN).
    #[arg(long, default_value = "none")]
    alpn: speech::Alpn,
    /// Path asked for.
    #[arg(long, default_value = "/281")]
    path: String,
    /// Service asked for, with MMTP.
    #[arg(long, default_value = "pay")]
    service: String,
    /// Threads, each with one connection at a time.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// A word for the report.
    #[arg(long, default_value = "")]
    label: String,
}

#[derive(Parser)]
#[command(about = "A client that is always new, for measuring what a new connection costs a server")]
struct Cli {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// Full handshakes: no ticket is ever kept.
    Full(rounds::Rounds),
    /// Resumptions without early data.
    Resumed(rounds::Rounds),
    /// Resumptions with the request as early data.
    Early(rounds::Rounds),
    /// A flood of full handshakes at a fixed rate that are never completed.
    Storm(storm::Storm),
    /// Many connections that ask once, stay, and ask once more when a line comes on standard input.
    Hold(hold::Hold),
    /// Early data whose first flights are sent again by somebody who recorded them; counts at an origin of its own.
    Replay(replay::Replay),
}

fn main() -> ExitCode {
    connection::raise_descriptor_limit();
    let done = match Cli::parse().kind {
        Kind::Full(rounds) => rounds.run(rounds::Kind::Full),
        Kind::Resumed(rounds) => rounds.run(rounds::Kind::Resumed),
        Kind::Early(rounds) => rounds.run(rounds::Kind::Early),
        Kind::Storm(storm) => storm.run(),
        Kind::Hold(hold) => hold.run(),
        Kind::Replay(replay) => replay.run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("newcomers: {error}");
            ExitCode::from(2)
        }
    }
}
