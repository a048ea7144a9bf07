//! The commands, one file each: flags to library and back.

pub mod call;
