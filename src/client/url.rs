//! Where a call goes: `mmtp://HOST:PORT/SERVICE/PATH`. Owns the reading of such addresses; never resolves a name.
//!
//! Invariant: every part of a [`Url`] can be sent as it stands: nothing in it needs escaping.

use std::fmt;

/// The port of an address that names none.
pub const PORT_DEFAULT: u16 = 443;

/// Longest name of a service, in bytes.
const SERVICE_BYTES_MAX: usize = 64;

/// Longest path, in bytes: it has to fit a header block with everything else.
const PATH_BYTES_MAX: usize = 8 * 1024;

/// One machine to connect to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

/// An `mmtp://` address, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// Whom to connect to.
    pub endpoint: Endpoint,
    /// The service there.
    pub service: String,
    /// Path and query, starting with a slash.
    pub path: String,
}

/// Why a text is no `mmtp://` address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum UrlError {
    /// It does not start with `mmtp://`.
    Scheme,
    /// The host is missing or has characters that no host has.
    Host,
    /// The port is not a number from 1 to 65535.
    Port,
    /// It has a user name. Those belong in a header field.
    UserInfo,
    /// The service is missing, too long, or has characters other than letters, digits, `-`, `.` and `_`.
    Service,
    /// The path is too long, or has a space, a control character or one outside ASCII: it must be percent-encoded.
    Path,
    /// It has a fragment (`#…`), which no server sees.
    Fragment,
}

impl fmt::Display for UrlError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            UrlError::Scheme => "the address must start with mmtp://",
            UrlError::Host => "the address has no valid host",
            UrlError::Port => "the port must be a number from 1 to 65535",
            UrlError::UserInfo => "an address cannot carry a user name; use a header field",
            UrlError::Service => {
                "the address names no valid service: mmtp://HOST:PORT/SERVICE/PATH, \
                 a service being at most 64 letters, digits, '-', '.' and '_'"
            }
            UrlError::Path => "the path is longer than 8 KiB, or has characters that must be percent-encoded",
            UrlError::Fragment => "an address cannot have a fragment (#)",
        })
    }
}

impl std::error::Error for UrlError {}

impl Url {
    /// Takes an address apart. Without a port it is [`PORT_DEFAULT`]; without a path it is `/`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let rest = strip_scheme(text).ok_or(UrlError::Scheme)?;
        let authority_bytes = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(authority_bytes);
        let endpoint = parse_authority(authority)?;
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let rest = rest.strip_prefix('/').ok_or(UrlError::Service)?;
        let service_bytes = rest.find(['/', '?']).unwrap_or(rest.len());
        let (service, path) = rest.split_at(service_bytes);
        if !is_service(service) {
            return Err(UrlError::Service);
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if !is_path(&path) {
            return Err(UrlError::Path);
        }
        Ok(Url { endpoint, service: service.to_owned(), path })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "mmtp://{}/{}{}", self.endpoint, self.service, self.path)
    }
}

impl std::str::FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        Url::parse(text)
    }
}

fn strip_scheme(text: &str) -> Option<&str> {
    const SCHEME: &str = "mmtp://";
    let head = text.get(..SCHEME.len())?;
    head.eq_ignore_ascii_case(SCHEME).then(|| &text[SCHEME.len()..])
}

fn parse_authority(authority: &str) -> Result<Endpoint, UrlError> {
    if authority.contains('@') {
        return Err(UrlError::UserInfo);
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(UrlError::Host)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
        let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(UrlError::Host)?) };
        (host, port)
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let is_address = host.contains(':'); // it was read as IPv6 just above
    if !is_address && !is_host(host) {
        return Err(UrlError::Host);
    }
    let port = match port {
        None => PORT_DEFAULT,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?
        }
        Some(_) => return Err(UrlError::Port),
    };
    Ok(Endpoint { host: host.to_ascii_lowercase(), port })
}

fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Whether `service` can be the name of a service.
pub(super) fn is_service(service: &str) -> bool {
    !service.is_empty()
        && service.len() <= SERVICE_BYTES_MAX
        && service.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Whether `path` can stand in a request line: it starts with a slash and is visible ASCII throughout.
pub(super) fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, u16, String, String) {
        let url = Url::parse(text).expect(text);
        (url.endpoint.host, url.endpoint.port, url.service, url.path)
    }

    #[test]
    fn addresses_are_taken_apart() {
        let of = |host: &str, port, service: &str, path: &str| (host.into(), port, service.into(), path.into());
        assert_eq!(parsed("mmtp://localhost:8443/pay/v1/x?a=1&b=/"), of("localhost", 8443, "pay", "/v1/x?a=1&b=/"));
        assert_eq!(parsed("MMTP://Example.COM/pay"), of("example.com", PORT_DEFAULT, "pay", "/"));
        assert_eq!(parsed("mmtp://10.0.0.1:1/a-b_c.d/"), of("10.0.0.1", 1, "a-b_c.d", "/"));
        assert_eq!(parsed("mmtp://[::1]:65535/pay?q"), of("::1", 65535, "pay", "/?q"));
        assert_eq!(parsed("mmtp://[2001:db8::1]/pay//x"), of("2001:db8::1", PORT_DEFAULT, "pay", "//x"));
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, error) in [
            ("http://a/b", UrlError::Scheme),
            ("mmtp:/a", UrlError::Scheme),
            ("", UrlError::Scheme),
            ("mmtp:///pay/x", UrlError::Host),
            ("mmtp://a b/pay", UrlError::Host),
            ("mmtp://[::1/pay", UrlError::Host),
            ("mmtp://[::zz]/pay", UrlError::Host),
            ("mmtp://[::1]x/pay", UrlError::Host),
            ("mmtp://::1/pay", UrlError::Host),
            ("mmtp://a:0/pay", UrlError::Port),
            ("mmtp://a:65536/pay", UrlError::Port),
            ("mmtp://a:+1/pay", UrlError::Port),
            ("mmtp://a:/pay", UrlError::Port),
            ("mmtp://me@a/pay", UrlError::UserInfo),
            ("mmtp://a", UrlError::Service),
            ("mmtp://a/", UrlError::Service),
            ("mmtp://a?x", UrlError::Service),
            ("mmtp://a//x", UrlError::Service),
            ("mmtp://a/p%20y/", UrlError::Service),
            ("mmtp://a/pay/ x", UrlError::Path),
            ("mmtp://a/pay/\u{e9}", UrlError::Path),
            ("mmtp://a/pay/\r\nx: y", UrlError::Path),
            ("mmtp://a/pay/#x", UrlError::Fragment),
        ] {
            assert_eq!(Url::parse(text), Err(error), "{text}");
            assert!(!error.to_string().is_empty());
        }
        assert_eq!(Url::parse(&format!("mmtp://a/{}/", "s".repeat(65))), Err(UrlError::Service));
        assert_eq!(Url::parse(&format!("mmtp://a/s/{}", "p".repeat(9000))), Err(UrlError::Path));
    }

    #[test]
    fn an_address_prints_as_it_is_read() {
        for text in ["mmtp://localhost:8443/pay/v1/x?a=1", "mmtp://[::1]:8443/pay/"] {
            let url = Url::parse(text).expect("valid");
            assert_eq!(url.to_string(), text);
            assert_eq!(url.to_string().parse::<Url>(), Ok(url));
        }
    }
}
