//! Trunkline: an edge accelerator for mobile traffic.
#![warn(missing_docs)]

pub mod base;
pub mod cli;
pub mod client;
pub mod mmtp;
