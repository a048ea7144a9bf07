//! Trunkline: an edge accelerator for mobile traffic.
//!
//! The journey of one byte of a request, from a phone to a server in the data center:
//!
//! ```text
//!  phone
//!    |  a TLS record
//!    v
//!  ring       fills a buffer on loan with what the socket received            \
//!  worker     finds the link it came on, cuts the stream into records          |
//!  tls        opens the record where it lies                                   |  POP,
//!  mmtp       reads frames: this byte belongs to stream 5 of this client       |  one worker
//!  relay      knows which stream of which trunk stream 5 travels on            |  per core
//!  backbone   chose that trunk, dialled it long ago, keeps it warm             |
//!  mmtp       writes a frame for the trunk, within its credit                  |
//!  tls        seals the frames of this pass as one record, in the send buffer  |
//!  ring       sends the buffer                                                /
//!    |  a TLS record of a trunk, shared by many clients
//!    v
//!  ring, worker, tls, mmtp   as above                                         \   gateway,
//!  gateway    knows which exchange the stream is, and its upstream             |  one worker
//!  ring       sends to the upstream: HTTP/1.1, or the bytes of a tunnel       /   per core
//!    |
//!    v
//!  server in the data center
//! ```
//!
//! The answer travels the same list reversed. `docs/ARCHITECTURE.md` tells it hop by hop, with what happens when a hop
//! cannot take more, breaks, or lies.
//!
//! The modules in the order of that journey:
//!
//! 1. [`ring`] is the door to the kernel: io_uring behind a small trait, and every `unsafe` block there is.
//! 2. [`worker`] is the loop of one core: reap, feed, drain, submit once. Here the kernel and the pure parts meet.
//! 3. [`tls`] is TLS 1.3: rustls shakes hands, then a record layer of its own opens and seals in place.
//! 4. [`mmtp`] is MMTP/1 without input or output: frames, streams, credit, turns (`docs/MMTP.md`).
//! 5. [`relay`] is what a POP does: it pairs the streams of clients with those of trunks.
//! 6. [`backbone`] is the trunks of a worker: dialled at start, kept warm, chosen for each stream.
//! 7. [`gateway`] is what the data center's end does: trunk streams become HTTP/1.1 requests and TCP connections.
//!
//! Around them: [`server`] makes a process of it (configuration, certificates, signals, metrics, log), [`client`] is the
//! terminal's side for apps, [`load`] puts load on a server and measures it, [`tickets`] is what resumptions need to
//! remember, [`doctor`] looks at a node for what would hurt it, [`cli`] holds the commands, and [`base`]
//! what all of them share, above all the contract between a role and whatever moves its bytes ([`base::wire`]).
//!
//! `tls`, `tickets`, `mmtp`, `relay`, `backbone`, `gateway` and `base` are pure: no socket, clock, thread or entropy of
//! their own, so that a simulation can run whole POPs and gateways from one seed. `tests/layering.rs` holds who may use
//! whom.

#![warn(missing_docs)]

pub mod backbone;
pub mod base;
pub mod cli;
pub mod client;
pub mod doctor;
pub mod gateway;
pub mod load;
pub mod mmtp;
pub mod relay;
pub mod ring;
pub mod server;
pub mod tickets;
pub mod tls;
pub mod worker;
