//! The process around the workers: configuration, certificates, signals, the admin address, metrics and the log.
//!
//! Everything here runs on the slow thread or before the workers start. Never touches a byte of a client.

pub mod admin;
pub mod certificates;
pub mod config;
pub mod defaults;
pub mod health;
pub mod keys;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod party;
pub mod problems;
pub mod process;
pub mod run;
pub mod section;
pub mod signals;
pub mod slow;
pub mod staple;
pub mod watch;
pub mod workers;
