//! The real binary on 127.0.0.1: POP and gateway as processes of their own, with certificates and configurations made for
//! the test, and around them what knows nothing of Trunkline: nginx, curl, openssl, rustls, and scripted servers.
//!
//! Every test has processes, ports and files of its own, so all run side by side. What takes time is awaited by its
//! effect (a gauge, a line of the log, an answer) and never by a fixed sleep; ceilings are there to end a test that has
//! failed.

mod bad_input;
mod balance;
mod callers;
mod calls;
mod ends;
mod fast_open;
mod harness;
mod identities;
mod leaks;
mod load;
mod origin;
mod peers;
mod process;
mod replays;
mod returning;

#[path = "../support/mod.rs"]
mod support;
mod tickets;
mod trunks;
mod tunnel;
