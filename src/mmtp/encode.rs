//! Frames to bytes (MMTP 3 and 4). Owns nothing; never allocates beyond what the sink does.
//!
//! Panics on a frame outside its documented ranges: only our own code builds frames.

use super::error::Receipt;
use super::frame::{FLAG_END, FLAG_PONG, FRAME_HEADER_BYTES_MAX, Frame, Kind, StreamId, VARINT_MAX};
use crate::base::wire::Sink;

/// A few bytes under construction on the stack.
#[derive(Clone, Copy, Debug)]
struct Scratch<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Scratch<N> {
    fn new() -> Scratch<N> {
        Scratch { bytes: [0; N], length: 0 }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    fn varint(&mut self, value: u64) {
        let (bytes, length) = varint_bytes(value);
        self.bytes[self.length..self.length + length].copy_from_slice(&bytes[8 - length..]);
        self.length += length;
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The shortest form of `value`, in the last bytes of the array, and its length (MMTP 3.2).
pub(super) fn varint_bytes(value: u64) -> ([u8; 8], usize) {
    assert!(value <= VARINT_MAX, "an integer on the wire is below 2^62");
    let (length, prefix) = match value {
        0..0x40 => (1, 0u64),
        0x40..0x4000 => (2, 1 << 14),
        0x4000..0x4000_0000 => (4, 2 << 30),
        _ => (8, 3 << 62),
    };
    ((value | prefix).to_be_bytes(), length)
}

/// Bytes that [`put_varint`] puts for `value`.
#[must_use]
pub fn varint_len(value: u64) -> usize {
    varint_bytes(value).1
}

/// Puts a variable-length integer in its shortest form. `value` is at most [`VARINT_MAX`].
pub fn put_varint(value: u64, out: &mut impl Sink) {
    let (bytes, length) = varint_bytes(value);
    out.put(&bytes[8 - length..]);
}

/// Puts a frame header (MMTP 3.1).
pub fn put_header(kind: Kind, flags: u8, stream: StreamId, length: usize, out: &mut impl Sink) {
    assert!(length <= kind.payload_bytes_max(), "a payload fits its frame type");
    assert_eq!(flags & !kind.flags(), 0, "flags belong to their frame type");
    let mut scratch = Scratch::<FRAME_HEADER_BYTES_MAX>::new();
    scratch.byte(kind.nibble() << 4 | flags);
    if kind.has_stream() {
        assert!(stream != 0 || kind == Kind::Credit, "stream 0 is the connection");
        scratch.varint(stream);
    }
    scratch.varint(length as u64);
    out.put(scratch.as_slice());
}

fn put_small<const N: usize>(kind: Kind, flags: u8, stream: StreamId, payload: &Scratch<N>, out: &mut impl Sink) {
    put_header(kind, flags, stream, payload.length, out);
    out.put(payload.as_slice());
}

/// Puts one whole frame. Its fields are within the ranges that [`Frame`] documents.
pub fn put_frame(frame: Frame<'_>, out: &mut impl Sink) {
    match frame {
        Frame::Hello(payload) => {
            put_header(Kind::Hello, 0, 0, payload.len(), out);
            out.put(payload);
        }
        Frame::Headers { stream, flags, block } => {
            put_header(Kind::Headers, flags.bits(), stream, block.len(), out);
            out.put(block);
        }
        Frame::Data { stream, end, bytes } => {
            put_header(Kind::Data, if end { FLAG_END } else { 0 }, stream, bytes.len(), out);
            out.put(bytes);
        }
        Frame::Reset { stream, code, receipt, wait_ms } => {
            let mut payload = Scratch::<13>::new();
            payload.varint(small(code.0));
            payload.byte(match receipt {
                Receipt::NotForwarded => 0,
                Receipt::Unknown => 1,
                Receipt::Refused => 2,
            });
            payload.varint(small(wait_ms));
            put_small(Kind::Reset, 0, stream, &payload, out);
        }
        Frame::Credit { stream, bytes } => {
            assert_ne!(bytes, 0, "CREDIT grants something");
            let mut payload = Scratch::<4>::new();
            payload.varint(small(bytes));
            put_small(Kind::Credit, 0, stream, &payload, out);
        }
        Frame::Ping { pong, nonce } => {
            put_header(Kind::Ping, if pong { FLAG_PONG } else { 0 }, 0, nonce.len(), out);
            out.put(&nonce);
        }
        Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address } => {
            let mut payload = Scratch::<20>::new();
            payload.varint(last_stream);
            payload.varint(small(code.0));
            payload.varint(small(wait_ms));
            payload.varint(small(jitter_ms));
            put_header(Kind::GoAway, 0, 0, payload.length + address.len(), out);
            out.put(payload.as_slice());
            out.put(address);
        }
        Frame::Other { header, payload } => {
            put_header(header.kind, header.flags, header.stream, payload.len(), out);
            out.put(payload);
        }
    }
}

fn small(value: u32) -> u64 {
    assert!(value < 1 << 30, "codes, waits and grants are below 2^30");
    u64::from(value)
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;

    #[test]
    fn integers_are_put_in_their_shortest_form() {
        for value in [0, 1, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, VARINT_MAX] {
            let mut out = Vec::new();
            put_varint(value, &mut out);
            assert_eq!(decode::varint(&out), Ok(Some((value, out.len()))));
            assert_eq!(varint_len(value), out.len());
        }
    }

    #[test]
    fn a_small_request_costs_few_bytes_of_framing() {
        let mut out = Vec::new();
        put_frame(Frame::Data { stream: 1, end: true, bytes: b"hello" }, &mut out);
        assert_eq!(out, b"\x21\x01\x05hello");
    }
}
