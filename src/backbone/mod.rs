//! Trunks: few long-lived connections to each gateway, dialled at start, kept warm, mended early.
//!
//! Owns the trunks of one worker. Never sees a client, never looks into a stream, never reads a clock.

mod pool;
mod trunk;

pub use pool::{Pool, PoolSettings};
pub use trunk::{State, Trunk};
