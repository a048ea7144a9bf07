//! A client that is always new: connects, shakes hands, asks once, closes. For seeing what becomes of new connections at a
//! server, any server: it speaks through rustls's buffered client and knows nothing of Trunkline but, if told, MMTP. What
//! they cost is for `trunkline load` to measure.
//!
//! ```text
//! newcomers full|resumed|early --target ADDR... --ca FILE --connections N
//! newcomers storm              --target ADDR --ca FILE --rate HELLOS_PER_SECOND
//! newcomers replay             --target ADDR... --ca FILE --origin ADDR --connections 100000
//! ```
//!
//! Each prints one line of JSON. Scripts under `scripts/` run it; `newcomers --help` lists the rest.

mod connection;
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
}

#[derive(Parser)]
#[command(about = "A client that is always new, for seeing what becomes of new connections")]
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
    /// Early data whose first flights are sent again by somebody who recorded them; counts at an origin of its own.
    Replay(replay::Replay),
}

fn main() -> ExitCode {
    connection::raise_descriptor_limit();
    let done = match Cli::parse().kind {
        Kind::Full(rounds) => rounds.run(connection::Kind::Full),
        Kind::Resumed(rounds) => rounds.run(connection::Kind::Resumed),
        Kind::Early(rounds) => rounds.run(connection::Kind::Early),
        Kind::Storm(storm) => storm.run(),
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
