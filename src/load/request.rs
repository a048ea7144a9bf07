//! What is asked, written down once before anything starts.
//!
//! Owns the bytes of every request. Never changes them: a request is a copy, so that what load costs is the network and
//! not the writing. Invariant: what stands here is one valid request.

use std::fmt;

use super::mix::{Mix, PRIORITIES};
use super::target::{Scheme, Target};
use crate::mmtp::frame::PRIORITY_DEFAULT;
use crate::mmtp::{HeaderError, HeaderFlags, HeaderWriter, Known};

/// Largest body of a request, in bytes. It is held once for all workers; a connection holds copies of no more than
/// [`crate::base::limits::SEND_HIGH_WATER_BYTES`] of what it has yet to send.
pub const BODY_BYTES_MAX: usize = 1 << 30;

/// A request as it goes out.
pub enum Recipe {
    /// HTTP/1.1: head and body.
    Http {
        /// All of it.
        bytes: Vec<u8>,
        /// Whether the answer has no body whatever its fields say.
        method_is_head: bool,
    },
    /// MMTP: a header block for each priority of the mix.
    Mmtp {
        /// By priority; empty for those that are not drawn.
        blocks: [Vec<u8>; PRIORITIES],
        /// Flags of HEADERS.
        flags: HeaderFlags,
        /// The body.
        body: Vec<u8>,
    },
}

/// Why a request cannot be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecipeError {
    /// The method is not a token of HTTP.
    Method(String),
    /// The header block is not right.
    Block(HeaderError),
}

impl fmt::Display for RecipeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecipeError::Method(method) => write!(out, "'{method}' is no method: letters, digits and -.!#$%&'*+^_`|~"),
            RecipeError::Block(why) => write!(out, "the request cannot be written as MMTP: {why:?}"),
        }
    }
}

impl std::error::Error for RecipeError {}

impl From<HeaderError> for RecipeError {
    fn from(error: HeaderError) -> RecipeError {
        RecipeError::Block(error)
    }
}

impl Recipe {
    /// Writes a request of `method` with so many bytes of body. `replay_safe`: it may go out as early data.
    ///
    /// # Errors
    /// When the method or the path cannot be sent.
    pub fn new(
        target: &Target,
        method: &str,
        body_bytes: usize,
        mix: &Mix,
        replay_safe: bool,
    ) -> Result<Recipe, RecipeError> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-.!#$%&'*+^_`|~".contains(&byte);
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(RecipeError::Method(method.to_owned()));
        }
        if target.scheme != Scheme::Mmtp {
            return Ok(http(target, method, body_bytes));
        }
        let mut blocks = [const { Vec::new() }; PRIORITIES];
        for priority in mix.priorities() {
            write_block(target, method, body_bytes, priority, &mut blocks[usize::from(priority)])?;
        }
        let mut flags = HeaderFlags::NONE;
        for (is_set, flag) in [
            (body_bytes == 0, HeaderFlags::END),
            (is_idempotent(method), HeaderFlags::IDEMPOTENT),
            (replay_safe, HeaderFlags::REPLAY_SAFE),
        ] {
            flags = if is_set { flags | flag } else { flags };
        }
        Ok(Recipe::Mmtp { blocks, flags, body: body(body_bytes) })
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Whether a request without a body says so.
fn expects_body(method: &str) -> bool {
    matches!(method, "POST" | "PUT" | "PATCH")
}

fn body(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes]
}

fn http(target: &Target, method: &str, body_bytes: usize) -> Recipe {
    let default_port = if target.scheme == Scheme::Https { 443 } else { 80 };
    let mut host = target.endpoint.to_string();
    if target.endpoint.port == default_port {
        host.truncate(host.rfind(':').unwrap_or(host.len()));
    }
    let mut head = format!("{method} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: trunkline-load\r\n", target.path);
    if body_bytes > 0 || expects_body(method) {
        head.push_str(&format!("Content-Length: {body_bytes}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&body(body_bytes));
    Recipe::Http { bytes, method_is_head: method == "HEAD" }
}

fn write_block(
    target: &Target,
    method: &str,
    body_bytes: usize,
    priority: u8,
    block: &mut Vec<u8>,
) -> Result<(), HeaderError> {
    let mut writer = HeaderWriter::new(block);
    writer.known(Known::Service, target.service.as_bytes())?;
    writer.known(Known::Method, method.as_bytes())?;
    writer.known(Known::Path, target.path.as_bytes())?;
    writer.known(Known::Authority, target.endpoint.to_string().as_bytes())?;
    if priority != PRIORITY_DEFAULT {
        writer.number(Known::Priority, u64::from(priority))?;
    }
    if body_bytes > 0 || expects_body(method) {
        writer.number(Known::ContentLength, body_bytes as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmtp::{HeaderBlock, Message};

    fn recipe(url: &str, method: &str, body_bytes: usize, mix: &str) -> Recipe {
        let target = Target::parse(url).expect("valid");
        Recipe::new(&target, method, body_bytes, &mix.parse().expect("valid"), false).expect("valid")
    }

    #[test]
    fn requests_of_http_say_what_follows() {
        for (url, method, body_bytes, expected) in [
            ("http://a/x?y", "GET", 0, "GET /x?y HTTP/1.1\r\nHost: a\r\nUser-Agent: trunkline-load\r\n\r\n"),
            (
                "https://[::1]:8443",
                "POST",
                3,
                "POST / HTTP/1.1\r\nHost: [::1]:8443\r\nUser-Agent: trunkline-load\r\nContent-Length: 3\r\n\r\nxxx",
            ),
            (
                "https://a",
                "PUT",
                0,
                "PUT / HTTP/1.1\r\nHost: a\r\nUser-Agent: trunkline-load\r\nContent-Length: 0\r\n\r\n",
            ),
        ] {
            let Recipe::Http { bytes, method_is_head } = recipe(url, method, body_bytes, "3:1") else {
                panic!("HTTP is spoken to {url}")
            };
            assert_eq!(String::from_utf8(bytes).expect("text"), expected);
            assert!(!method_is_head);
        }
        assert!(matches!(recipe("http://a", "HEAD", 0, "3:1"), Recipe::Http { method_is_head: true, .. }));
    }

    #[test]
    fn requests_of_mmtp_are_valid_blocks_of_each_priority() {
        let Recipe::Mmtp { blocks, flags, body } = recipe("mmtp://a:1/pay/x", "POST", 5, "0:1,3:1") else {
            panic!("MMTP is spoken")
        };
        for (priority, block) in blocks.iter().enumerate() {
            if !matches!(priority, 0 | 3) {
                assert!(block.is_empty());
                continue;
            }
            let block = HeaderBlock::parse(block, Message::Request).expect("our own block");
            assert_eq!(usize::from(block.priority()), priority);
            assert_eq!(block.get(Known::Path), Some(&b"/x"[..]));
            assert_eq!(block.number(Known::ContentLength), Some(5));
        }
        assert_eq!((flags, body.len()), (HeaderFlags::NONE, 5));
        let Recipe::Mmtp { flags, .. } = recipe("mmtp://a:1/pay/x", "GET", 0, "3:1") else { panic!("MMTP is spoken") };
        assert_eq!(flags, HeaderFlags::END | HeaderFlags::IDEMPOTENT);
    }

    #[test]
    fn what_is_no_method_is_refused() {
        for url in ["http://a", "mmtp://a/b"] {
            let target = Target::parse(url).expect("valid");
            for method in ["", "GE T", "GET\r\nX: y", "G\u{e9}T"] {
                let error = Recipe::new(&target, method, 0, &Mix::default(), false).err();
                assert_eq!(error, Some(RecipeError::Method(method.to_owned())));
            }
        }
    }
}
