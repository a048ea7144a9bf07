//! Reading the chunked coding (RFC 9112 7.1): data is handed on as slices of the input, all else is consumed here.
//!
//! Extensions and trailers are checked, limited and dropped; nothing is buffered. Every line must end in CRLF.

use super::bytes::{is_token_byte, is_value_byte};
use super::response::ResponseError;

/// Bytes of chunk extensions in one body. They mean nothing here, and without a limit a server could send a line of
/// them for every byte of data.
pub const CHUNK_EXTENSION_BYTES_MAX: u32 = 16 * 1024;

/// Bytes of trailer fields after one body: they are dropped, so this is only the price of dropping them.
pub const TRAILER_BYTES_MAX: u32 = 16 * 1024;

/// Hexadecimal digits of a chunk size: what fills 64 bits, leading zeros included.
const SIZE_DIGITS_MAX: u8 = 16;

/// Where in the coding the next byte stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Size {
        size_bytes: u64,
        digits: u8,
    },
    /// After whitespace behind the size: only an extension may follow.
    SizeSpace {
        size_bytes: u64,
    },
    Extension {
        size_bytes: u64,
    },
    SizeLineFeed {
        size_bytes: u64,
    },
    /// More than zero.
    Data {
        remaining_bytes: u64,
    },
    DataReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Ended,
}

/// What came of a look at the input.
#[derive(Debug)]
pub(crate) enum Piece<'i> {
    /// The input is used up.
    More,
    /// Data, never empty.
    Data(&'i [u8]),
    /// The body is over.
    Ended,
}

/// Reads one chunked body.
#[derive(Clone, Debug)]
pub(crate) struct ChunkReader {
    place: Place,
    extension_bytes: u32,
    trailer_bytes: u32,
    trailers: u32,
}

impl ChunkReader {
    /// At the start of a body.
    pub(crate) fn new() -> ChunkReader {
        ChunkReader { place: START, extension_bytes: 0, trailer_bytes: 0, trailers: 0 }
    }

    /// Trailer fields that were dropped.
    pub(super) fn trailers(&self) -> u32 {
        self.trailers
    }

    /// Consumes from the front of `input` up to the next data, or the end.
    pub(crate) fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Piece<'i>, ResponseError> {
        loop {
            if self.place == Place::Ended {
                return Ok(Piece::Ended);
            }
            if let Place::Data { remaining_bytes } = &mut self.place
                && !input.is_empty()
            {
                let data = take(input, *remaining_bytes);
                *remaining_bytes -= data.len() as u64;
                if *remaining_bytes == 0 {
                    self.place = Place::DataReturn;
                }
                return Ok(Piece::Data(data));
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(Piece::More) };
            *input = rest;
            self.place = self.place.after(byte)?;
            self.count()?;
        }
    }

    /// Counts the byte that led to the present place against the limits.
    fn count(&mut self) -> Result<(), ResponseError> {
        match self.place {
            Place::SizeSpace { .. } | Place::Extension { .. } => {
                self.extension_bytes += 1;
                if self.extension_bytes > CHUNK_EXTENSION_BYTES_MAX {
                    return Err(ResponseError::ChunkExtensionsTooLong);
                }
            }
            Place::TrailerName | Place::TrailerValue => {
                self.trailer_bytes += 1;
                if self.trailer_bytes > TRAILER_BYTES_MAX {
                    return Err(ResponseError::TrailersTooLong);
                }
            }
            // Bounded by the bytes counted above: a trailer has at least two.
            Place::TrailerLineFeed => self.trailers += 1,
            _ => {}
        }
        Ok(())
    }
}

const START: Place = Place::Size { size_bytes: 0, digits: 0 };

impl Place {
    /// The transition table of the coding. `Data` is consumed in slices and never asked.
    fn after(self, byte: u8) -> Result<Place, ResponseError> {
        match (self, byte) {
            (Place::Size { size_bytes, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(ResponseError::ChunkSizeTooLarge);
                }
                Ok(Place::Size { size_bytes: size_bytes << 4 | hex(byte), digits: digits + 1 })
            }
            (Place::Size { digits: 0, .. }, _) => Err(ResponseError::ChunkSize),
            (Place::Size { size_bytes, .. }, b'\r') => Ok(Place::SizeLineFeed { size_bytes }),
            (Place::Size { size_bytes, .. } | Place::SizeSpace { size_bytes }, b';') => {
                Ok(Place::Extension { size_bytes })
            }
            (Place::Size { size_bytes, .. } | Place::SizeSpace { size_bytes }, b' ' | b'\t') => {
                Ok(Place::SizeSpace { size_bytes })
            }
            (Place::Size { .. } | Place::SizeSpace { .. }, _) => Err(ResponseError::ChunkSize),
            (Place::Extension { size_bytes }, b'\r') => Ok(Place::SizeLineFeed { size_bytes }),
            (Place::Extension { size_bytes }, byte) if is_value_byte(byte) => Ok(Place::Extension { size_bytes }),
            (Place::Extension { .. }, _) => Err(ResponseError::ChunkExtension),
            (Place::SizeLineFeed { size_bytes: 0 }, b'\n') => Ok(Place::TrailerStart),
            (Place::SizeLineFeed { size_bytes }, b'\n') => Ok(Place::Data { remaining_bytes: size_bytes }),
            (Place::DataReturn, b'\r') => Ok(Place::DataLineFeed),
            (Place::DataLineFeed, b'\n') => Ok(START),
            (Place::DataReturn | Place::DataLineFeed, _) => Err(ResponseError::ChunkEnd),
            (Place::TrailerStart, b'\r') => Ok(Place::LastLineFeed),
            (Place::TrailerStart | Place::TrailerName, byte) if is_token_byte(byte) => Ok(Place::TrailerName),
            (Place::TrailerName, b':') => Ok(Place::TrailerValue),
            (Place::TrailerValue, b'\r') => Ok(Place::TrailerLineFeed),
            (Place::TrailerValue, byte) if is_value_byte(byte) => Ok(Place::TrailerValue),
            (Place::TrailerLineFeed, b'\n') => Ok(Place::TrailerStart),
            (Place::LastLineFeed, b'\n') => Ok(Place::Ended),
            (Place::TrailerStart | Place::TrailerName | Place::TrailerValue, _) => Err(ResponseError::Trailer),
            (Place::SizeLineFeed { .. } | Place::TrailerLineFeed | Place::LastLineFeed, _) => {
                Err(ResponseError::BareCarriageReturn)
            }
            (Place::Data { .. } | Place::Ended, _) => Ok(self),
        }
    }
}

fn hex(digit: u8) -> u64 {
    u64::from(match digit {
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => digit - b'0',
    })
}

/// Splits at most `bytes_max` bytes from the front of `input`.
pub(super) fn take<'i>(input: &mut &'i [u8], bytes_max: u64) -> &'i [u8] {
    let bytes = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(input.len());
    let (front, rest) = input.split_at(bytes);
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::http1::{BodyLength, BodyWriter};
    use proptest::prelude::*;

    /// What was read of a whole body: its data, its trailers, and the bytes it took.
    type Decoded = (Vec<u8>, u32, usize);

    fn decode(bytes: &[u8]) -> Result<Option<Decoded>, ResponseError> {
        let mut reader = ChunkReader::new();
        let mut input = bytes;
        let mut data = Vec::new();
        loop {
            match reader.next(&mut input)? {
                Piece::More => return Ok(None),
                Piece::Data(piece) => data.extend_from_slice(piece),
                Piece::Ended => return Ok(Some((data, reader.trailers(), bytes.len() - input.len()))),
            }
        }
    }

    #[test]
    fn bodies_that_are_read() {
        let cases: &[(&[u8], &[u8], u32)] = &[
            (b"0\r\n\r\n", b"", 0),
            (b"3\r\nabc\r\n0\r\n\r\n", b"abc", 0),
            (b"3\r\n\r\n0\r\n0\r\n\r\n", b"\r\n0", 0),
            (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789", 0),
            (b"0003;a=b;c=\"d e\"\r\nabc\r\n000;x\r\n\r\n", b"abc", 0),
            (b"3 \t;a\r\nabc\r\n0\r\n\r\n", b"abc", 0),
            (b"0\r\nA: b\r\nContent-Length:5\r\nC:\r\n\r\n", b"", 3),
        ];
        for &(bytes, data, trailers) in cases {
            assert_eq!(decode(bytes), Ok(Some((data.to_vec(), trailers, bytes.len()))), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn bodies_that_are_refused() {
        let cases: &[(&[u8], ResponseError)] = &[
            (b"\r\n", ResponseError::ChunkSize),
            (b"g\r\n", ResponseError::ChunkSize),
            (b"-1\r\n", ResponseError::ChunkSize),
            (b"+1\r\n", ResponseError::ChunkSize),
            (b"0x1\r\n", ResponseError::ChunkSize),
            (b" 1\r\n", ResponseError::ChunkSize),
            (b"1 \r\n", ResponseError::ChunkSize),
            (b"1 2\r\n", ResponseError::ChunkSize),
            (b"1\n", ResponseError::ChunkSize),
            (b";a\r\n", ResponseError::ChunkSize),
            (b"1_0\r\n", ResponseError::ChunkSize),
            (b"10000000000000000\r\n", ResponseError::ChunkSizeTooLarge),
            (b"00000000000000001\r\n", ResponseError::ChunkSizeTooLarge),
            (b"1\rx", ResponseError::BareCarriageReturn),
            (b"1;a\n", ResponseError::ChunkExtension),
            (b"1;a\0\r\n", ResponseError::ChunkExtension),
            (b"1\r\nab", ResponseError::ChunkEnd),
            (b"1\r\na\n", ResponseError::ChunkEnd),
            (b"1\r\na\rb", ResponseError::ChunkEnd),
            (b"0\r\n\n", ResponseError::Trailer),
            (b"0\r\n a: b\r\n", ResponseError::Trailer),
            (b"0\r\n: b\r\n", ResponseError::Trailer),
            (b"0\r\na b: c\r\n", ResponseError::Trailer),
            (b"0\r\na: b\r\n c\r\n", ResponseError::Trailer),
            (b"0\r\na: b\n", ResponseError::Trailer),
            (b"0\r\na: \0\r\n", ResponseError::Trailer),
            (b"0\r\na: b\rc", ResponseError::BareCarriageReturn),
            (b"0\r\n\rx", ResponseError::BareCarriageReturn),
        ];
        for &(bytes, error) in cases {
            assert_eq!(decode(bytes), Err(error), "{}", bytes.escape_ascii());
            for end in 0..bytes.len() {
                let so_far = decode(&bytes[..end]);
                assert!(so_far == Ok(None) || so_far == Err(error), "{}: {so_far:?}", bytes[..end].escape_ascii());
            }
        }
    }

    #[test]
    fn a_chunk_of_all_sixty_four_bits_is_read_and_does_not_overflow() {
        assert_eq!(decode(b"ffffffffffffffff\r\nabc"), Ok(None));
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let extension_bytes_max = usize::try_from(CHUNK_EXTENSION_BYTES_MAX).expect("a few kilobytes");
        let extended = |bytes: usize| [b"0;", &vec![b'a'; bytes - 1][..], b"\r\n\r\n"].concat();
        assert!(decode(&extended(extension_bytes_max)).expect("within the limit").is_some());
        assert_eq!(decode(&extended(extension_bytes_max + 1)), Err(ResponseError::ChunkExtensionsTooLong));
        let spaced = [b"0", &vec![b' '; extension_bytes_max + 1][..]].concat();
        assert_eq!(decode(&spaced), Err(ResponseError::ChunkExtensionsTooLong));
        let many_chunks = b"1;aaaaaaa\r\nx\r\n".repeat(extension_bytes_max / 8 + 1);
        assert_eq!(decode(&many_chunks), Err(ResponseError::ChunkExtensionsTooLong), "the limit is for the whole body");

        let trailer_bytes_max = usize::try_from(TRAILER_BYTES_MAX).expect("a few kilobytes");
        let trailed = |count: usize| [b"0\r\n", &b"a:bc\r\n".repeat(count)[..], b"\r\n"].concat();
        let (_, trailers, _) = decode(&trailed(trailer_bytes_max / 4)).expect("within the limit").expect("whole");
        assert_eq!(trailers, TRAILER_BYTES_MAX / 4);
        assert_eq!(decode(&trailed(trailer_bytes_max / 4 + 1)), Err(ResponseError::TrailersTooLong));
    }

    /// The same by other means: the whole body at hand, and every line read by `httparse`.
    fn decode_by_httparse(bytes: &[u8]) -> Option<Decoded> {
        let mut rest = bytes;
        let mut data = Vec::new();
        loop {
            let Ok(httparse::Status::Complete((line_bytes, size))) = httparse::parse_chunk_size(rest) else {
                return None;
            };
            rest = &rest[line_bytes..];
            if size == 0 {
                break;
            }
            let (chunk, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
            data.extend_from_slice(chunk);
            rest = after.strip_prefix(b"\r\n")?;
        }
        let mut slots = [httparse::EMPTY_HEADER; 64];
        let Ok(httparse::Status::Complete((trailer_bytes, fields))) = httparse::parse_headers(rest, &mut slots) else {
            return None;
        };
        let trailers = u32::try_from(fields.len()).expect("there are 64 slots");
        Some((data, trailers, bytes.len() - rest.len() + trailer_bytes))
    }

    fn encoded() -> impl Strategy<Value = Vec<u8>> {
        let extension = prop_oneof![4 => Just(""), 1 => Just(";a"), 1 => Just("; b = \"c;d\""), 1 => Just(" ;e")];
        let chunk = (proptest::collection::vec(any::<u8>(), 1..20), extension, 0..3_usize).prop_map(
            |(data, extension, zeros)| {
                let line = format!("{}{:x}{extension}\r\n", "0".repeat(zeros), data.len());
                [line.as_bytes(), &data, b"\r\n"].concat()
            },
        );
        let trailer = prop_oneof![Just("a: b\r\n"), Just("X-Y:\r\n"), Just("content-length: 1\r\n")];
        (proptest::collection::vec(chunk, 0..5), proptest::collection::vec(trailer, 0..3)).prop_map(
            |(chunks, trailers)| [&chunks.concat()[..], b"0\r\n", trailers.concat().as_bytes(), b"\r\n"].concat(),
        )
    }

    proptest! {
        #[test]
        fn well_formed_bodies_read_as_another_reader_does(
            bytes in encoded(),
            behind in proptest::collection::vec(any::<u8>(), 0..5),
        ) {
            let input = [&bytes[..], &behind].concat();
            let decoded = decode(&input).expect("well-formed").expect("whole");
            prop_assert_eq!(decoded.2, bytes.len());
            prop_assert_eq!(Some(decoded), decode_by_httparse(&input));
        }

        /// Ours is the stricter reader: what it takes from a damaged body, the other takes the same way.
        #[test]
        fn damaged_bodies_never_read_otherwise(
            bytes in encoded(),
            edits in proptest::collection::vec(
                (any::<prop::sample::Index>(), 0..3_u8, prop::sample::select(&b"\r\n0a;: \t\0G"[..])), 1..4,
            ),
        ) {
            let mut input = bytes;
            for (at, kind, byte) in edits {
                match kind {
                    0 => input.insert(at.index(input.len() + 1), byte),
                    1 if !input.is_empty() => { let at = at.index(input.len()); input[at] = byte; }
                    _ if !input.is_empty() => { let at = at.index(input.len()); input.remove(at); }
                    _ => {}
                }
            }
            if let Ok(Some(decoded)) = decode(&input) {
                prop_assert_eq!(Some(decoded), decode_by_httparse(&input));
            }
        }

        #[test]
        fn what_the_writer_puts_the_reader_takes(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
        ) {
            let mut out = Vec::new();
            let mut writer = BodyWriter::new(BodyLength::Chunked);
            for part in &parts {
                writer.put(part, &mut out).expect("chunked takes any length");
            }
            writer.finish(&mut out).expect("chunked may end anywhere");
            prop_assert_eq!(decode(&out), Ok(Some((parts.concat(), 0, out.len()))));
        }
    }
}
