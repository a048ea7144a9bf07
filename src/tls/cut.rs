//! Cuts a stream of bytes into the records of TLS, whatever pieces it arrives in.
//!
//! Owns nothing: the bytes, and the memory for a record that has not wholly arrived, are the caller's. Invariant: a record
//! that arrives in one piece is copied nowhere, and any other one once.

use super::error::TlsError;
use super::record::{RECORD_HEADER_BYTES, record_bytes};

/// What [`cut`] found at the front.
#[derive(PartialEq, Eq, Debug)]
pub enum Cut<'a> {
    /// A record, where it lies, and the bytes behind it.
    Whole(&'a mut [u8], &'a mut [u8]),
    /// A record that came in pieces, in what was the carry, and the bytes behind it.
    Gathered(Vec<u8>, &'a mut [u8]),
    /// Part of a record: all of the bytes are in the carry now.
    Partial,
}

/// Cuts the first record off `bytes`, which continue what is in `carry`: the part of a record that earlier calls were given.
/// An empty carry gets its memory from `spare` when there is something to put into it.
///
/// # Errors
/// Those of [`record_bytes`]: nothing more can be cut from this stream.
pub fn cut<'a>(carry: &mut Vec<u8>, bytes: &'a mut [u8], spare: impl FnOnce() -> Vec<u8>) -> Result<Cut<'a>, TlsError> {
    if !carry.is_empty() {
        return gather(carry, bytes);
    }
    let wanted = record_bytes(bytes)?.unwrap_or(0);
    if (1..=bytes.len()).contains(&wanted) {
        let (record, rest) = bytes.split_at_mut(wanted);
        return Ok(Cut::Whole(record, rest));
    }
    *carry = spare();
    carry.reserve_exact(wanted.max(bytes.len())); // once for all of the record
    carry.extend_from_slice(bytes);
    Ok(Cut::Partial)
}

/// Adds to the carried record what it still lacks: its header, then the rest.
fn gather<'a>(carry: &mut Vec<u8>, mut bytes: &'a mut [u8]) -> Result<Cut<'a>, TlsError> {
    loop {
        let length = record_bytes(carry)?;
        let wanted = length.unwrap_or(RECORD_HEADER_BYTES);
        let (part, rest) = bytes.split_at_mut(bytes.len().min(wanted - carry.len()));
        carry.extend_from_slice(part);
        bytes = rest;
        if carry.len() < wanted {
            return Ok(Cut::Partial);
        }
        // Else the header is whole, which tells how much follows: nothing, perhaps.
        if length.is_some() {
            return Ok(Cut::Gathered(core::mem::take(carry), bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of them is over with its header.
    const RECORDS: [&[u8]; 3] = [&[22, 3, 1, 0, 3, 7, 8, 9], &[23, 3, 3, 0, 0], &[23, 3, 3, 0, 2, 5, 6]];

    /// The records that come of a stream that arrives in these pieces, and how many of them were gathered.
    fn cut_all(pieces: &mut [&mut [u8]]) -> (Vec<Vec<u8>>, usize) {
        let (mut carry, mut records, mut gathered) = (Vec::new(), Vec::new(), 0);
        for piece in pieces {
            let mut bytes = &mut **piece;
            while !bytes.is_empty() {
                match cut(&mut carry, bytes, Vec::new).unwrap() {
                    Cut::Whole(record, rest) => {
                        records.push(record.to_vec());
                        bytes = rest;
                    }
                    Cut::Gathered(record, rest) => {
                        records.push(record);
                        gathered += 1;
                        bytes = rest;
                    }
                    Cut::Partial => break,
                }
            }
        }
        assert!(carry.is_empty(), "nothing of a whole stream is left");
        (records, gathered)
    }

    #[test]
    fn a_stream_gives_the_same_records_however_it_is_split() {
        let stream = RECORDS.concat();
        let mut whole = stream.clone();
        assert_eq!(cut_all(&mut [&mut whole]), (RECORDS.map(<[u8]>::to_vec).to_vec(), 0), "nothing is copied");
        for at in 1..stream.len() {
            for behind in at..stream.len() {
                let mut bytes = stream.clone();
                let (first, rest) = bytes.split_at_mut(at);
                let (second, third) = rest.split_at_mut(behind - at);
                assert_eq!(cut_all(&mut [first, second, third]).0, RECORDS, "split at {at} and {behind}");
            }
        }
        let mut bytes = stream.clone();
        let mut single: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
        assert_eq!(cut_all(&mut single), (RECORDS.map(<[u8]>::to_vec).to_vec(), RECORDS.len()));
    }

    #[test]
    fn memory_is_asked_for_when_a_record_is_partial_and_once() {
        let (mut carry, mut whole) = (Vec::new(), RECORDS[0].to_vec());
        assert!(matches!(cut(&mut carry, &mut whole, || unreachable!("it is whole")), Ok(Cut::Whole(_, []))));
        let spare = Vec::with_capacity(RECORDS[0].len());
        let place = spare.as_ptr();
        let (first, second) = whole.split_at_mut(6);
        assert_eq!(cut(&mut carry, first, || spare), Ok(Cut::Partial));
        let Ok(Cut::Gathered(record, [])) = cut(&mut carry, second, || unreachable!("it is begun")) else {
            panic!("the record is whole");
        };
        assert_eq!((record.as_ptr(), record.as_slice(), carry.capacity()), (place, RECORDS[0], 0));
    }

    #[test]
    fn what_is_no_record_is_told_when_its_first_bytes_are_there() {
        let mut carry = Vec::new();
        assert_eq!(cut(&mut carry, &mut [24, 3, 3], Vec::new), Err(TlsError::NotTls));
        assert_eq!(cut(&mut carry, &mut [23, 3, 3, 0x41], Vec::new), Ok(Cut::Partial));
        assert_eq!(cut(&mut carry, &mut [1, 0], Vec::new), Err(TlsError::RecordOverflow));
    }
}
