//! Which bytes HTTP allows where, and the fields that belong to one connection.

/// What a byte may be part of.
const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const PATH: u8 = 4;
const HOST: u8 = 8;

const CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0_u8; 256];
    let mut byte = 0_usize;
    while byte < 256 {
        let b = byte as u8;
        let alphanumeric = b.is_ascii_alphanumeric();
        // RFC 9110 5.6.2: tchar.
        if alphanumeric
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            table[byte] |= TOKEN;
        }
        // RFC 9110 5.5: VCHAR, obs-text, and SP or HTAB between them.
        if b == b'\t' || (b >= b' ' && b != 0x7F) {
            table[byte] |= VALUE;
        }
        // RFC 9112 3.2.1 allows less; browsers send the rest of visible ASCII, and servers take it. A fragment is no
        // part of a request target, and a byte outside ASCII must come percent-encoded.
        if b > b' ' && b < 0x7F && b != b'#' {
            table[byte] |= PATH;
        }
        // RFC 3986 3.2.2: reg-name. No "@": user information in Host is a way to lie about the host.
        if alphanumeric
            || matches!(
                b,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'%'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
            )
        {
            table[byte] |= HOST;
        }
        byte += 1;
    }
    table
}

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|&b| CLASSES[usize::from(b)] & class != 0)
}

/// Whether `byte` may stand in a token (RFC 9110 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

/// Whether `byte` may stand in a field value (RFC 9110 5.5).
pub(super) fn is_value_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & VALUE != 0
}

/// Whether `bytes` is a token (RFC 9110 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Whether `bytes` is a field value that reads back as itself: no control bytes, no whitespace at its ends
/// (RFC 9110 5.5).
pub(super) fn is_value(bytes: &[u8]) -> bool {
    all(bytes, VALUE) && trim(bytes).len() == bytes.len()
}

/// Whether `bytes` is an origin-form request target (RFC 9112 3.2.1).
pub(super) fn is_origin_form(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'/') && all(bytes, PATH)
}

/// Whether `bytes` is `host [":" port]` with a host that is not empty (RFC 9110 4.2.1, 7.2).
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let (host_is_valid, rest) = if let Some(after) = bytes.strip_prefix(b"[") {
        // IP-literal: the brackets must hold an address, so that nothing else hides in them.
        let Some(end) = memchr::memchr(b']', after) else { return false };
        let address = str::from_utf8(&after[..end]).ok().and_then(|text| text.parse::<std::net::Ipv6Addr>().ok());
        (address.is_some(), &after[end + 1..])
    } else {
        let end = memchr::memchr(b':', bytes).unwrap_or(bytes.len());
        (end > 0 && all(&bytes[..end], HOST), &bytes[end..])
    };
    host_is_valid && (rest.is_empty() || is_port(rest))
}

/// Whether `bytes` is `":" port` with a port from 0 to 65535.
fn is_port(bytes: &[u8]) -> bool {
    let Some(digits) = bytes.strip_prefix(b":") else { return false };
    decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX))
}

/// The value of `1*DIGIT`; none for anything else, or for more than 64 bits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &b| {
        if !b.is_ascii_digit() {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// `bytes` without spaces and tabs at its ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Whether a field speaks of this connection alone and is never passed on (RFC 9110 7.6.1). Trailer is among them
/// because trailers are dropped; the two Proxy- fields because they are meant for the next hop.
pub(super) fn is_hop_by_hop(name: &[u8]) -> bool {
    let named = match name.len() {
        2 => "te",
        7 => return name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"trailer"),
        10 => return name.eq_ignore_ascii_case(b"connection") || name.eq_ignore_ascii_case(b"keep-alive"),
        16 => "proxy-connection",
        17 => "transfer-encoding",
        18 => "proxy-authenticate",
        19 => "proxy-authorization",
        _ => return false,
    };
    name.eq_ignore_ascii_case(named.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for good in ["a", "a.b:80", "[::1]", "[::1]:443", "127.0.0.1:9000", "xn--a_b", "a:0", "a:65535"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:", "a:65536", "a:+1", "a b", "u@h", "a/b", "a:1:2", "[::1", "[::1]x", "[]", "[a]", "a\r\nb",
            "a\0", "é", "a:80,b", "a?b", "a#b",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"0018446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "+1", "-1", "1 ", "0x1", "1_0", "１"] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn values_read_back_as_themselves() {
        for good in [&b""[..], b"a", b"a b\tc", b"\xFF", b"\x80x"] {
            assert!(is_value(good), "{good:?}");
        }
        for bad in [&b" a"[..], b"a ", b"\ta", b"a\t", b"\x7F", b"a\rb", b"a\nb", b"a\0b", b"a\x0Bb", b" "] {
            assert!(!is_value(bad), "{bad:?}");
        }
    }

    #[test]
    fn hop_by_hop_in_any_case() {
        for name in [
            "TE",
            "Upgrade",
            "trailer",
            "Connection",
            "KEEP-ALIVE",
            "Proxy-Connection",
            "Transfer-Encoding",
            "Proxy-Authenticate",
            "Proxy-Authorization",
        ] {
            assert!(is_hop_by_hop(name.as_bytes()), "{name}");
        }
        for name in ["", "tf", "upgrades", "accept", "content-length", "set-cookie", "trailers"] {
            assert!(!is_hop_by_hop(name.as_bytes()), "{name}");
        }
    }
}
