//! The POP's half of the path: what arrives from terminals goes onto trunks, and back.
//!
//! Pure: bytes and time are handed in, bytes and wishes come out. Never touches a kernel, a clock or entropy.

pub mod proxy_protocol;
