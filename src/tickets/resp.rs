//! What a Redis-compatible server may say to us, read strictly (RESP2), and what we say to it.
//!
//! Owns at most one unfinished reply ([`REPLY_BYTES_MAX`]). Knows nothing of requests. Whatever is not one of the few
//! replies below is garbage, after which the stream must not be read on: its bounds are lost.

use super::seal::SEALED_BYTES_MAX;

/// Longest bulk string in bytes: a sealed value.
pub const BULK_BYTES_MAX: usize = SEALED_BYTES_MAX;

/// Longest line in bytes, its end included: an error may say something, but need not be heard out.
pub const LINE_BYTES_MAX: usize = 512;

/// What an unfinished reply may hold: a bulk string and its end.
pub const REPLY_BYTES_MAX: usize = BULK_BYTES_MAX + 2;

/// A reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// `+OK`.
    Okay,
    /// `+PONG`.
    Pong,
    /// `-`, and what the server complains of.
    Error(&'a [u8]),
    /// No such key.
    Nil,
    /// A value.
    Bulk(&'a [u8]),
}

/// The server said something that is none of the replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbage;

/// Reads replies from bytes in any pieces.
#[derive(Debug, Default)]
pub struct Parser {
    /// The unfinished line or bulk string, and after [`Parser::next`] the finished one.
    held: Vec<u8>,
    /// Length of the bulk string that is being read.
    bulk: Option<usize>,
    /// `held` was given out as a reply.
    is_done: bool,
}

impl Parser {
    /// The next whole reply; `None` when `input` is used up and more is needed.
    ///
    /// # Errors
    /// [`Garbage`], as soon as it can be told.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Reply<'_>>, Garbage> {
        if std::mem::take(&mut self.is_done) {
            self.held.clear();
        }
        if self.bulk.is_none() {
            if !self.line(input)? {
                return Ok(None);
            }
            match self.held.split_first() {
                Some((b'$', b"-1\r\n")) => {
                    self.is_done = true;
                    return Ok(Some(Reply::Nil));
                }
                Some((b'$', digits)) => self.bulk = Some(length(digits)?),
                _ => {
                    self.is_done = true;
                    return simple(&self.held).map(Some);
                }
            }
            self.held.clear();
        }
        let Some(length) = self.bulk else { return Err(Garbage) };
        let (now, later) = input.split_at(input.len().min(length + 2 - self.held.len()));
        self.held.extend_from_slice(now);
        *input = later;
        let (value, end) = self.held.split_at(self.held.len().min(length));
        if !b"\r\n".starts_with(end) {
            return Err(Garbage);
        }
        if end.len() < 2 {
            return Ok(None);
        }
        (self.bulk, self.is_done) = (None, true);
        Ok(Some(Reply::Bulk(value)))
    }

    /// Reads up to the end of a line; whether it is whole.
    fn line(&mut self, input: &mut &[u8]) -> Result<bool, Garbage> {
        let end = memchr::memchr(b'\n', input).map(|at| at + 1);
        let (now, later) = input.split_at(end.unwrap_or(input.len()));
        if now.len() > LINE_BYTES_MAX - self.held.len() {
            return Err(Garbage);
        }
        self.held.extend_from_slice(now);
        *input = later;
        if self.held.first().is_some_and(|first| !b"+-$".contains(first)) {
            return Err(Garbage);
        }
        match end {
            Some(_) if !self.held.ends_with(b"\r\n") => Err(Garbage),
            end => Ok(end.is_some()),
        }
    }

    /// Bytes of an unfinished reply.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        if self.is_done { 0 } else { self.held.len() }
    }
}

fn simple(line: &[u8]) -> Result<Reply<'_>, Garbage> {
    match line {
        b"+OK\r\n" => Ok(Reply::Okay),
        b"+PONG\r\n" => Ok(Reply::Pong),
        [b'-', text @ .., b'\r', b'\n'] => Ok(Reply::Error(text)),
        _ => Err(Garbage),
    }
}

/// A decimal length with its line end, without signs or leading zeros, up to the limit.
fn length(digits: &[u8]) -> Result<usize, Garbage> {
    let digits = digits.strip_suffix(b"\r\n").ok_or(Garbage)?;
    let is_plain = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() <= 4;
    if !is_plain || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Garbage);
    }
    let length = digits.iter().fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    if length <= BULK_BYTES_MAX { Ok(length) } else { Err(Garbage) }
}

/// Appends a command.
pub fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    head(out, b'*', words.len());
    for word in words {
        head(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn head(out: &mut Vec<u8>, mark: u8, number: usize) {
    out.push(mark);
    out.extend_from_slice(number.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything a stream says, in pieces of these lengths.
    fn read(stream: &[u8], pieces: &[usize]) -> (Vec<String>, bool) {
        let (mut parser, mut said, mut at) = (Parser::default(), Vec::new(), 0);
        let mut pieces = pieces.iter().copied().cycle();
        while at < stream.len() {
            let end = stream.len().min(at + pieces.next().unwrap_or(stream.len()).max(1));
            let mut input = &stream[at..end];
            loop {
                match parser.next(&mut input) {
                    Ok(Some(reply)) => said.push(format!("{reply:?}")),
                    Ok(None) => break,
                    Err(Garbage) => return (said, false),
                }
            }
            assert!(input.is_empty() && parser.held_bytes() <= REPLY_BYTES_MAX);
            at = end;
        }
        (said, true)
    }

    #[test]
    fn replies_are_read_and_nothing_else() {
        let whole = |stream: &[u8]| read(stream, &[usize::MAX]);
        let (said, is_fine) = whole(b"+OK\r\n+PONG\r\n-ERR no\r\n$-1\r\n$0\r\n\r\n$2\r\n\r\n\r\n");
        assert!(is_fine);
        let expected =
            [Reply::Okay, Reply::Pong, Reply::Error(b"ERR no"), Reply::Nil, Reply::Bulk(b""), Reply::Bulk(b"\r\n")];
        assert_eq!(said, expected.map(|reply| format!("{reply:?}")));
        let garbage: [&[u8]; 18] = [
            b"\r\n",
            b"+ok\r\n",
            b"+OK \r\n",
            b"+OK\n",
            b"OK",
            b":1\r\n",
            b"*1\r\n",
            b"_\r\n",
            b"$\r\n",
            b"$-2\r\n",
            b"$+1\r\n",
            b"$01\r\n",
            b"$2049\r\n",
            b"$99999999999999999999\r\n",
            b"$1 \r\n",
            b"$1\r\nabc",
            b"$1\r\na\n",
            b"$-1\n",
        ];
        for stream in garbage {
            assert_eq!(whole(stream), (Vec::new(), false), "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let longest = [b"$2048\r\n".as_slice(), &[b'v'; BULK_BYTES_MAX], b"\r\n"].concat();
        assert_eq!(read(&longest, &[1]).0.len(), 1);
        let line = |length: usize| [b"-".as_slice(), &vec![b'e'; length - 3], b"\r\n"].concat();
        assert_eq!(read(&line(LINE_BYTES_MAX), &[1]).0.len(), 1);
        assert_eq!(read(&line(LINE_BYTES_MAX + 1), &[1]), (Vec::new(), false));
        assert_eq!(read(&line(LINE_BYTES_MAX + 1), &[usize::MAX]), (Vec::new(), false));
    }

    #[test]
    fn commands_are_counted() {
        let mut out = Vec::new();
        command(&mut out, &[b"GETDEL", b"a\r\nbcdefghij"]);
        assert_eq!(out, b"*2\r\n$6\r\nGETDEL\r\n$12\r\na\r\nbcdefghij\r\n");
    }

    fn arb_reply() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(b"+OK\r\n".to_vec()),
            Just(b"+PONG\r\n".to_vec()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"-LOADING wait\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..300)
                .prop_map(|value| { [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat() }),
        ]
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            replies in prop::collection::vec(arb_reply(), 1..12),
            pieces in prop::collection::vec(1..40_usize, 1..6),
        ) {
            let stream = replies.concat();
            let (said, is_fine) = read(&stream, &[usize::MAX]);
            prop_assert!(is_fine && said.len() == replies.len());
            prop_assert_eq!(read(&stream, &pieces), (said, true));
        }

        #[test]
        fn damage_is_read_alike_in_all_pieces(
            replies in prop::collection::vec(arb_reply(), 1..6),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            pieces in prop::collection::vec(1..40_usize, 1..6),
        ) {
            let mut stream = replies.concat();
            let at = at.index(stream.len());
            stream[at] = byte;
            prop_assert_eq!(read(&stream, &pieces), read(&stream, &[usize::MAX]));
        }
    }
}
