//! Reading the chunked coding (RFC 9112 7.1): data is handed on as slices of the input, everything else is consumed here.
//!
//! Extensions and trailers are checked, limited and dropped. Every line must end in CRLF.

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
pub(super) enum Piece<'i> {
    /// The input is used up.
    More,
    /// Data, never empty.
    Data(&'i [u8]),
    /// The body is over.
    Ended,
}

/// Reads one chunked body.
#[derive(Clone, Debug)]
pub(super) struct ChunkReader {
    place: Place,
    extension_bytes: u32,
    trailer_bytes: u32,
    trailers: u32,
}

impl ChunkReader {
    pub(super) fn new() -> ChunkReader {
        ChunkReader { place: START, extension_bytes: 0, trailer_bytes: 0, trailers: 0 }
    }

    /// Trailer fields that were dropped.
    pub(super) fn trailers(&self) -> u32 {
        self.trailers
    }

    /// Consumes from the front of `input` up to the next data, or the end.
    pub(super) fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Piece<'i>, ResponseError> {
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
