//! MMTP/1, the framing between terminals, POPs and gateways, without input or output of its own (`docs/MMTP.md`).
//!
//! Owns the wire format, the life of streams, credit and turns of one connection ([`Connection`]); both ends use the
//! same code. Never touches a socket, a clock or entropy, never knows what a stream is for, and never holds received
//! payload: what arrives is passed on in the slices it arrived in.
//! Invariant: whatever bytes arrive, the memory held stays within the limits of the connection's [`Settings`].

pub mod conn;
pub mod decode;
pub mod encode;
pub mod error;
pub mod frame;
pub mod header;
pub mod hello;
#[cfg(test)]
mod simulation;
mod stream;
mod turns;
mod window;

pub use conn::{Connection, Event, OpenError, Reset, StreamError};
pub use error::{Code, ConnError, HeaderError, Limit, Receipt, Scope, Violation};
pub use frame::{HeaderFlags, StreamId, Tag};
pub use header::{Field, HeaderBlock, HeaderWriter, Known, Message, Name};
pub use hello::{Agent, Attribute, CreditPolicy, PeerHello, Settings, Side};
