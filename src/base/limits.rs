//! Every limit that more than one module must agree on, with its reason. Limits of one module stand in that module.

/// Largest MMTP payload of one frame, in bytes (MMTP 3.4): what fits one TLS record of 2^14 bytes is enough to
/// amortise a header, and bounds how long one frame can hold the connection.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 16_384;

/// Largest header block, in bytes: one frame holds it, and common servers take heads of 8 to 16 KiB.
pub const HEADER_BLOCK_BYTES_MAX: usize = 16_384;

/// Most fields in one header block: bounds work per block.
pub const HEADER_FIELDS_MAX: usize = 128;

/// Bytes in a send buffer above which its writers are asked to wait. Two large records in flight keep a socket busy;
/// more only waits in memory.
pub const SEND_HIGH_WATER_BYTES: usize = 128 * 1024;

const _: () = assert!(HEADER_BLOCK_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
