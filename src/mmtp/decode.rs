//! Bytes to frames (MMTP 3 and 4). Owns nothing; never keeps bytes, never allocates.

use super::error::{Code, Receipt, Violation};
use super::frame::{FLAG_END, FLAG_PONG, Frame, FrameHeader, GOAWAY_ADDRESS_BYTES_MAX, HeaderFlags, Kind};

/// Reads one variable-length integer (MMTP 3.2, RFC 9000 section 16): its value and its length in bytes, or none when
/// `bytes` ends first. Errs when it is not in its shortest form.
pub fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let length = 1usize << (first >> 6);
    if length == 1 {
        return Ok(Some((u64::from(first), 1)));
    }
    let Some(bytes) = bytes.get(..length) else { return Ok(None) };
    let value = bytes[1..].iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    // Shortest: the next smaller form holds 2^(length * 4 - 2) values.
    if value >> (length * 4 - 2) == 0 {
        return Err(Violation::IntegerNotShortest);
    }
    Ok(Some((value, length)))
}

/// Reads a frame header (MMTP 3.1): it and its length in bytes, or none when `bytes` ends first. Errs as soon as a byte
/// is wrong.
pub fn header(bytes: &[u8]) -> Result<Option<(FrameHeader, usize)>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let kind = Kind::from_nibble(first >> 4).ok_or(Violation::FrameUnknown)?;
    let flags = first & 0xf;
    if flags & !kind.flags() != 0 {
        return Err(Violation::FlagsUnknown);
    }
    let (stream, stream_bytes) = if kind.has_stream() {
        let Some(read) = varint(&bytes[1..])? else { return Ok(None) };
        read
    } else {
        (0, 0)
    };
    if stream == 0 && kind.has_stream() && kind != Kind::Credit {
        return Err(Violation::StreamZero);
    }
    let rest = &bytes[1 + stream_bytes..];
    if rest.first().is_some_and(|first| first >> 6 == 3) {
        return Err(Violation::FrameTooLarge); // eight bytes hold 2^30 at least: no need to gather them
    }
    let Some((length, length_bytes)) = varint(rest)? else { return Ok(None) };
    if length > kind.payload_bytes_max() as u64 {
        return Err(Violation::FrameTooLarge);
    }
    Ok(Some((FrameHeader { kind, flags, stream, length: length as usize }, 1 + stream_bytes + length_bytes)))
}

/// Reads one whole frame: it and its length in bytes, or none when `bytes` ends first.
pub fn frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Violation> {
    let Some((header, header_bytes)) = header(bytes)? else { return Ok(None) };
    let Some(payload) = bytes[header_bytes..].get(..header.length) else { return Ok(None) };
    Ok(Some((self::payload(header, payload)?, header_bytes + header.length)))
}

/// Reads the payload of a frame, which must be as long as its header says (MMTP 4).
pub fn payload<'a>(header: FrameHeader, payload: &'a [u8]) -> Result<Frame<'a>, Violation> {
    debug_assert_eq!(header.length, payload.len());
    let stream = header.stream;
    match header.kind {
        Kind::Hello => Ok(Frame::Hello(payload)),
        Kind::Headers => {
            let flags = HeaderFlags::from_bits(header.flags).ok_or(Violation::FlagsUnknown)?;
            Ok(Frame::Headers { stream, flags, block: payload })
        }
        Kind::Data => Ok(Frame::Data { stream, end: header.flags & FLAG_END != 0, bytes: payload }),
        Kind::Reset => {
            let mut reader = Reader::new(payload);
            let code = Code(reader.number()?);
            let receipt = match reader.byte()? {
                0 => Receipt::NotForwarded,
                1 => Receipt::Unknown,
                2 => Receipt::Refused,
                _ => return Err(Violation::ReceiptUnknown),
            };
            let wait_ms = reader.number()?;
            reader.end()?;
            Ok(Frame::Reset { stream, code, receipt, wait_ms })
        }
        Kind::Credit => {
            let mut reader = Reader::new(payload);
            let bytes = reader.number()?;
            reader.end()?;
            if bytes == 0 {
                return Err(Violation::CreditZero);
            }
            Ok(Frame::Credit { stream, bytes })
        }
        Kind::Ping => {
            let nonce = payload.try_into().map_err(|_| Violation::PayloadMalformed)?;
            Ok(Frame::Ping { pong: header.flags & FLAG_PONG != 0, nonce })
        }
        Kind::GoAway => {
            let mut reader = Reader::new(payload);
            let last_stream = reader.varint()?;
            let (code, wait_ms, jitter_ms) = (Code(reader.number()?), reader.number()?, reader.number()?);
            let address = reader.rest();
            if address.len() > GOAWAY_ADDRESS_BYTES_MAX || !address.iter().all(u8::is_ascii_graphic) {
                return Err(Violation::PayloadMalformed);
            }
            Ok(Frame::GoAway { last_stream, code, wait_ms, jitter_ms, address })
        }
        Kind::Ack
        | Kind::Resume
        | Kind::Advice
        | Kind::Push
        | Kind::Bind
        | Kind::Report
        | Kind::Extension
        | Kind::StreamExtension => Ok(Frame::Other { header, payload }),
    }
}

/// Reads the fields of a payload one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, Violation> {
        let (&first, rest) = self.bytes.split_first().ok_or(Violation::PayloadMalformed)?;
        self.bytes = rest;
        Ok(first)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Violation> {
        let (value, length) = varint(self.bytes)?.ok_or(Violation::PayloadMalformed)?;
        self.bytes = &self.bytes[length..];
        Ok(value)
    }

    /// A number below 2^30: what an integer of at most four bytes holds.
    pub(super) fn number(&mut self) -> Result<u32, Violation> {
        let value = self.varint()?;
        if value >= 1 << 30 {
            return Err(Violation::PayloadMalformed);
        }
        Ok(value as u32)
    }

    pub(super) fn bytes(&mut self, count: u64) -> Result<&'a [u8], Violation> {
        let count = usize::try_from(count).map_err(|_| Violation::PayloadMalformed)?;
        let (bytes, rest) = self.bytes.split_at_checked(count).ok_or(Violation::PayloadMalformed)?;
        self.bytes = rest;
        Ok(bytes)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.bytes)
    }

    pub(super) fn end(self) -> Result<(), Violation> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Violation::PayloadMalformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_rfc_9000_are_read() {
        // RFC 9000 appendix A.1; the two-byte form of 37 is not shortest, which MMTP refuses [M 3.2-1].
        let eight = [0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c];
        assert_eq!(varint(&eight), Ok(Some((151_288_809_941_952_652, 8))));
        assert_eq!(varint(&[0x9d, 0x7f, 0x3e, 0x7d]), Ok(Some((494_878_333, 4))));
        assert_eq!(varint(&[0x7b, 0xbd]), Ok(Some((15_293, 2))));
        assert_eq!(varint(&[0x25]), Ok(Some((37, 1))));
        assert_eq!(varint(&[0x40, 0x25]), Err(Violation::IntegerNotShortest));
        for cut in 0..8 {
            assert_eq!(varint(&eight[..cut]), Ok(None));
        }
    }
}
