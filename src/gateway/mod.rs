//! The data center's end of a trunk: streams in, requests to upstream servers out, answers back.
//!
//! Pure: bytes and time are handed in, bytes and wishes come out. Never touches a kernel, a clock or entropy.

pub mod http1;
