//! Bytes as hex digits, two for each, and back: in key files, ticket files and the keys of a store.
//!
//! Owns nothing. Invariant: only digits are read, in either case: no sign, no space, no prefix.

/// The digits of these bytes, in lower case.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| digits(*byte)).map(char::from).collect()
}

/// Writes the digits of `bytes` into `into`, which has room for two for each.
///
/// # Panics
/// When it has not: the caller's own lengths are wrong.
pub fn write(bytes: &[u8], into: &mut [u8]) {
    assert_eq!(into.len(), 2 * bytes.len(), "two digits for each byte");
    for (pair, byte) in into.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&digits(*byte));
    }
}

/// The bytes that these digits say. `None` when there is anything else, or an odd one out.
#[must_use]
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(byte);
    pairs.collect()
}

/// The same for a length that is known: `None` also when there are more digits, or fewer.
#[must_use]
pub fn array<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut found = [0; BYTES];
    if text.len() != 2 * BYTES {
        return None;
    }
    for (place, pair) in found.iter_mut().zip(text.as_bytes().chunks(2)) {
        *place = byte(pair)?;
    }
    Some(found)
}

fn digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|value| b"0123456789abcdef"[usize::from(value)])
}

fn byte(pair: &[u8]) -> Option<u8> {
    let &[high, low] = pair else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(value(high)? << 4 | value(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_in_either_case() {
        let all: Vec<u8> = (0..=255).collect();
        let written = text(&all);
        assert!(written.starts_with("000102") && written.ends_with("fdfeff"), "{written}");
        assert_eq!(bytes(&written), Some(all.clone()));
        assert_eq!(bytes(&written.to_uppercase()), Some(all.clone()));
        let mut place = vec![0; 512];
        write(&all, &mut place);
        assert_eq!(place, written.into_bytes());
        assert_eq!(array("00fF"), Some([0, 255]));
        assert_eq!((bytes(""), array("")), (Some(vec![]), Some([])));
    }

    #[test]
    fn nothing_but_digits_is_read() {
        for wrong in ["+f", "-1", " f", "f", "fff", "0x", "fg", "ä", "0\n", "é0"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
            assert_eq!(array::<1>(wrong), None, "{wrong}");
        }
        assert_eq!((array::<1>(""), array::<1>("ffff")), (None, None));
    }
}
