//! What load is put on: `mmtp://HOST:PORT/SERVICE/PATH`, `https://HOST:PORT/PATH`, `http://HOST:PORT/PATH`.
//!
//! Owns the reading of such addresses; never resolves a name. Invariant: every part can be sent as it stands.

use std::fmt;

use crate::client::Endpoint;
use crate::client::Url;
use crate::client::UrlError;

/// What is spoken to a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// MMTP/1 over TLS 1.3.
    Mmtp,
    /// HTTP/1.1 over TLS 1.3.
    Https,
    /// HTTP/1.1.
    Http,
}

impl Scheme {
    /// Whether connections begin with a TLS handshake.
    #[must_use]
    pub fn is_secure(self) -> bool {
        self != Scheme::Http
    }
}

/// An address, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// What is spoken.
    pub scheme: Scheme,
    /// Whom to connect to.
    pub endpoint: Endpoint,
    /// The service asked for; empty but for MMTP.
    pub service: String,
    /// Path and query, starting with a slash.
    pub path: String,
    /// As it was written.
    pub text: String,
}

/// Why a text is no address of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetError {
    /// None of the three schemes.
    Scheme,
    /// What is wrong behind the scheme.
    Rest(UrlError),
}

impl fmt::Display for TargetError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TargetError::Scheme => out.write_str("the address must start with mmtp://, https:// or http://"),
            TargetError::Rest(why) => why.fmt(out),
        }
    }
}

impl std::error::Error for TargetError {}

/// Default port of plain HTTP (RFC 9110 4.2.1).
const HTTP_PORT: u16 = 80;

impl Target {
    /// Takes an address apart. Without a port it is 443, and 80 for `http`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        let (scheme, rest) = text.split_once("://").ok_or(TargetError::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "mmtp" => Scheme::Mmtp,
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(TargetError::Scheme),
        };
        // One grammar for hosts, ports and paths: that of MMTP's addresses, with a service put in for HTTP's.
        let authority_bytes = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_bytes);
        let url = match scheme {
            Scheme::Mmtp => Url::parse(text),
            Scheme::Https | Scheme::Http => Url::parse(&format!("mmtp://{authority}/http{path}")),
        };
        let mut url = url.map_err(TargetError::Rest)?;
        if scheme == Scheme::Http && !has_port(authority) {
            url.endpoint.port = HTTP_PORT;
        }
        let service = if scheme == Scheme::Mmtp { url.service } else { String::new() };
        Ok(Target { scheme, endpoint: url.endpoint, service, path: url.path, text: text.to_owned() })
    }
}

fn has_port(authority: &str) -> bool {
    authority.rsplit_once(']').map_or(authority, |(_, after)| after).contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_three_schemes_are_taken_apart() {
        for (text, scheme, host, port, service, path) in [
            ("mmtp://localhost:8443/pay/v1?a=1", Scheme::Mmtp, "localhost", 8443, "pay", "/v1?a=1"),
            ("mmtp://pop/pay", Scheme::Mmtp, "pop", 443, "pay", "/"),
            ("https://10.0.0.1/a/b?c=/", Scheme::Https, "10.0.0.1", 443, "", "/a/b?c=/"),
            ("HTTPS://Host:8443", Scheme::Https, "host", 8443, "", "/"),
            ("http://[::1]/x", Scheme::Http, "::1", 80, "", "/x"),
            ("http://[::1]:81?q", Scheme::Http, "::1", 81, "", "/?q"),
            ("http://a:8080/", Scheme::Http, "a", 8080, "", "/"),
        ] {
            let target = Target::parse(text).expect(text);
            let endpoint = Endpoint { host: host.to_owned(), port };
            assert_eq!((target.scheme, target.endpoint), (scheme, endpoint), "{text}");
            assert_eq!((&target.service[..], &target.path[..]), (service, path), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        let rest = TargetError::Rest;
        for (text, error) in [
            ("", TargetError::Scheme),
            ("ftp://a/", TargetError::Scheme),
            ("localhost:80/x", TargetError::Scheme),
            ("http://", rest(UrlError::Host)),
            ("http://a b/", rest(UrlError::Host)),
            ("http://a:0/", rest(UrlError::Port)),
            ("https://a:65536/", rest(UrlError::Port)),
            ("https://me@a/", rest(UrlError::UserInfo)),
            ("https://a/#x", rest(UrlError::Fragment)),
            ("https://a#x", rest(UrlError::Fragment)),
            ("http://a/ x", rest(UrlError::Path)),
            ("http://a/\r\nHost: b", rest(UrlError::Path)),
            ("mmtp://a", rest(UrlError::Service)),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text:?}");
            assert!(!error.to_string().is_empty());
        }
    }
}
