//! Trunkline: an edge accelerator for mobile traffic.
#![warn(missing_docs)]

pub mod backbone;
pub mod base;
pub mod cli;
pub mod client;
pub mod gateway;
pub mod mmtp;
pub mod relay;
pub mod ring;
pub mod server;
pub mod tls;
pub mod worker;
