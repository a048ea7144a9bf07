//! Trunkline: an edge accelerator for mobile traffic.
#![warn(missing_docs)]

pub mod base;
pub mod mmtp;
pub mod tls;
