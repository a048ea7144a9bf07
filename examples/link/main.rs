//! A link emulator for kernels without netem: TUN devices in network namespaces, and between them a model of a mobile
//! network that delays, strays, loses, reorders, limits and goes dark, each direction apart, all from a seed.
//!
//! ```text
//! link run      --profile FILE --seed N --stats FILE --stretch phone_pop=NETNS/DEVICE,NETNS/DEVICE ...
//! link describe --profile FILE
//! ```
//!
//! `scripts/bench/net.sh` runs it; docs/LINKS.md says what it models and what it does not. SIGHUP begins anew (time zero, the same
//! fates), SIGUSR1 writes the statistics, SIGTERM writes them and ends.

mod driver;
mod model;
#[cfg(test)]
mod namespaces;
mod profile;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use driver::{Command, Driver, Place, Summary, Wish};
use profile::{Profile, Stretch};

#[derive(Parser)]
#[command(about = "Emulates mobile links between network namespaces")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make the devices and carry packets until SIGTERM.
    Run {
        /// What the links do.
        #[arg(long)]
        profile: PathBuf,
        /// What every chance follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where statistics go, as JSON.
        #[arg(long)]
        stats: PathBuf,
        /// STRETCH=NETNS/DEVICE,NETNS/DEVICE: the client's end, then the origin's.
        #[arg(long, required = true, value_parser = parse_stretch)]
        stretch: Vec<(Stretch, [Place; 2])>,
    },
    /// Print what a profile asks of each stretch, as JSON, times in nanoseconds.
    Describe {
        /// What the links would do.
        #[arg(long)]
        profile: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().action {
        Action::Run { profile, seed, stats, stretch } => run(&profile, seed, &stats, stretch),
        Action::Describe { profile } => describe(&profile),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("link: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(profile: &Path, seed: u64, stats: &Path, stretches: Vec<(Stretch, [Place; 2])>) -> Result<(), String> {
    let profile = Profile::read(profile)?;
    let wish = |(stretch, ends)| Wish { name: name_of(stretch).to_owned(), plan: profile.plan(stretch), ends };
    let wishes = stretches.into_iter().map(wish).collect();
    let commands = signals().map_err(|error| format!("signals: {error}"))?;
    let mut driver = Driver::new(wishes, seed, commands).map_err(|error| error.to_string())?;
    driver.run(|summary| write(stats, summary)).map_err(|error| error.to_string())
}

/// A reader never sees half a report.
fn write(stats: &Path, summary: &Summary) -> io::Result<()> {
    let part = stats.with_extension("part");
    fs::write(&part, serde_json::to_string(summary)? + "\n")?;
    fs::rename(&part, stats)
}

fn signals() -> io::Result<Vec<(UnixStream, Command)>> {
    let meanings =
        [(SIGHUP, Command::Begin), (SIGUSR1, Command::Report), (SIGTERM, Command::Stop), (SIGINT, Command::Stop)];
    let mut commands = Vec::with_capacity(meanings.len());
    for (signal, command) in meanings {
        let (ours, theirs) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(signal, theirs)?;
        commands.push((ours, command));
    }
    Ok(commands)
}

fn describe(path: &Path) -> Result<(), String> {
    let profile = Profile::read(path)?;
    let mut described = serde_json::Map::new();
    described.insert("about".to_owned(), profile.about.clone().into());
    for (stretch, name) in Stretch::ALL {
        let plan = serde_json::to_value(profile.plan(stretch)).map_err(|error| error.to_string())?;
        described.insert(name.to_owned(), plan);
    }
    println!("{}", serde_json::Value::Object(described));
    Ok(())
}

fn name_of(stretch: Stretch) -> &'static str {
    Stretch::ALL.into_iter().find(|(known, _)| *known == stretch).map_or("", |(_, name)| name)
}

fn parse_stretch(text: &str) -> Result<(Stretch, [Place; 2]), String> {
    let shape = || "write STRETCH=NETNS/DEVICE,NETNS/DEVICE with STRETCH phone_pop, pop_dc or phone_dc".to_owned();
    let (name, ends) = text.split_once('=').ok_or_else(shape)?;
    let (stretch, _) = Stretch::ALL.into_iter().find(|(_, known)| *known == name).ok_or_else(shape)?;
    let (near, far) = ends.split_once(',').ok_or_else(shape)?;
    Ok((stretch, [parse_place(near).ok_or_else(shape)?, parse_place(far).ok_or_else(shape)?]))
}

fn parse_place(text: &str) -> Option<Place> {
    let (namespace, device) = text.split_once('/')?;
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', ',', '.']);
    (is_name(namespace) && is_name(device))
        .then(|| Place { namespace: namespace.to_owned(), device: device.to_owned() })
}
