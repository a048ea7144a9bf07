//! Many connections that ask once and stay, so that the memory of an idle one can be seen; then each asks once more.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::Common;
use crate::connection::Connection;
use crate::rounds::percentiles;
use crate::trust;

/// Arguments.
#[derive(Args, Debug)]
pub struct Hold {
    #[command(flatten)]
    common: Common,
    /// How many.
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
}

/// What a round of all threads came to.
#[derive(Default)]
struct Round {
    micros: Vec<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Round {
    fn note(&mut self, began: Instant, outcome: &io::Result<()>) {
        match outcome {
            Ok(()) => self.micros.push(began.elapsed().as_micros() as u64),
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error.to_string());
            }
        }
    }

    fn merge(mut self, other: Round) -> Round {
        self.micros.extend(other.micros);
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self
    }

    fn print(mut self, label: &str, what: &str, seconds: f64) -> bool {
        self.micros.sort_unstable();
        let line = json!({
            "label": label,
            "kind": what,
            "connections": self.micros.len(),
            "seconds": seconds,
            "errors": self.errors,
            "first_error": self.first_error,
            "micros": percentiles(&self.micros),
        });
        println!("{line}");
        let _ = io::stdout().flush(); // whoever waits for the line reads a pipe
        self.errors == 0
    }
}

impl Hold {
    /// Opens all, prints, waits for a line (or the end) of standard input, wakes all, prints. True when none failed.
    pub fn run(&self) -> io::Result<bool> {
        let began = Instant::now();
        let mut held: Vec<Vec<Connection>> = Vec::new();
        let mut opened = Round::default();
        for (connections, round) in self.open_all()? {
            held.push(connections);
            opened = opened.merge(round);
        }
        let were_opened = opened.print(&self.common.label, "held", began.elapsed().as_secs_f64());
        io::stdin().read_line(&mut String::new())?;
        let began = Instant::now();
        let woken: Vec<Round> = thread::scope(|scope| {
            let threads: Vec<_> = held.iter_mut().map(|part| scope.spawn(|| self.wake(part))).collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        });
        let woken = woken.into_iter().fold(Round::default(), Round::merge);
        let woke = woken.print(&self.common.label, "woken", began.elapsed().as_secs_f64());
        for connection in held.into_iter().flatten() {
            // Counted above if it is broken.
            let _ = connection.close();
        }
        Ok(were_opened && woke)
    }

    fn open_all(&self) -> io::Result<Vec<(Vec<Connection>, Round)>> {
        let config = Arc::new(trust::config(&self.common)?);
        let name = trust::name(&self.common)?;
        let open = |count: usize| {
            let (mut connections, mut round) = (Vec::with_capacity(count), Round::default());
            for _ in 0..count {
                let (common, began) = (&self.common, Instant::now());
                let visit = Connection::visit(common, common.target[0], config.clone(), name.clone(), &common.path);
                round.note(
                    began,
                    &visit.map(|(mut connection, _)| {
                        connection.session.set_buffer_limit(Some(4096));
                        connections.push(connection);
                    }),
                );
            }
            (connections, round)
        };
        let threads = self.common.threads;
        let share = |index: usize| self.connections / threads + usize::from(index < self.connections % threads);
        Ok(thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads).map(|index| scope.spawn(move || open(share(index)))).collect();
            spawned.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
        }))
    }

    fn wake(&self, connections: &mut [Connection]) -> Round {
        let mut round = Round::default();
        for connection in connections {
            let began = Instant::now();
            let outcome = connection.ask(&self.common, &self.common.path);
            round.note(began, &outcome);
        }
        round
    }
}
