//! Whether a request may be sent a second time, on a fresh connection.

/// What has become of the body of a request so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyState {
    /// No byte of it was put on the failed connection, or there is none.
    Unsent,
    /// Some was put, and all that was put is still at hand.
    Held,
    /// Some was put and is gone.
    Gone,
}

/// What is known about a request whose pooled connection turned out to be dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Whether a byte of the response came ([`super::ResponseReader::has_begun`]), an interim one included.
    pub response_begun: bool,
    /// Whether a byte of the request was ever handed to the kernel. What was not cannot have reached the upstream.
    pub request_submitted: bool,
    /// Whether the request is safe to repeat: its sender marked it so, or its method is ([`is_idempotent`]).
    pub idempotent: bool,
    /// What has become of its body.
    pub body: BodyState,
}

/// Whether the request may be moved to a fresh connection (RFC 9110 9.2.2, RFC 9112 9.3.1): nothing of the response has
/// come, the request cannot take effect twice or that would do no harm, and its body can be sent whole once more.
#[must_use]
pub fn may_move(attempt: Attempt) -> bool {
    let is_repeatable = !attempt.request_submitted || attempt.idempotent;
    !attempt.response_begun && is_repeatable && attempt.body != BodyState::Gone
}

/// Whether the method is idempotent by definition (RFC 9110 9.2.2). Case-sensitive, as methods are.
#[must_use]
pub fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        for bits in 0..8_u8 {
            for body in [BodyState::Unsent, BodyState::Held, BodyState::Gone] {
                let attempt = Attempt {
                    response_begun: bits & 1 != 0,
                    request_submitted: bits & 2 != 0,
                    idempotent: bits & 4 != 0,
                    body,
                };
                let expected = match (attempt.response_begun, body) {
                    (true, _) | (_, BodyState::Gone) => false,
                    _ => attempt.idempotent || !attempt.request_submitted,
                };
                assert_eq!(may_move(attempt), expected, "{attempt:?}");
            }
        }
    }

    #[test]
    fn methods_that_are_idempotent() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(is_idempotent(method.as_bytes()), "{method}");
        }
        for method in ["POST", "PATCH", "get", ""] {
            assert!(!is_idempotent(method.as_bytes()), "{method}");
        }
    }
}
