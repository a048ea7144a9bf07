//! What every other module may use: time, keys, limits, counters and the contract between pure roles and the worker.
//!
//! Owns no state of its own; never touches a kernel, a clock or entropy.

pub mod backoff;
pub mod counters;
pub mod hex;
pub mod limits;
pub mod patience;
pub mod prng;
pub mod slab;
pub mod time;
pub mod timers;
pub mod wire;
