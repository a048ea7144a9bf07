//! Header blocks and the table of known fields (MMTP 7).
//!
//! Owns what a field may hold; never owns a block. A [`HeaderBlock`] exists only checked, so whoever reads one may turn
//! its fields into HTTP without looking for CR, LF or NUL again.
//! Invariant: a block written by [`HeaderWriter`] passes the field checks of [`HeaderBlock::parse`].

use super::decode::{self, Reader};
use super::encode;
use super::error::{HeaderError, Violation};
use super::frame::{PRIORITY_DEFAULT, PRIORITY_MAX, VARINT_MAX};
use crate::base::limits::{HEADER_BLOCK_BYTES_MAX, HEADER_FIELDS_MAX};

/// Largest field id (MMTP 7.1).
pub const FIELD_ID_MAX: u16 = 0x3fff;

/// The bit of a field id that says: whoever does not know it may ignore it (MMTP 7.1).
pub const FIELD_IGNORABLE: u16 = 0x20;

/// Longest spelled name, in bytes (MMTP 7.3).
pub const NAME_BYTES_MAX: usize = 256;

/// Longest label (service, POP id), in bytes (MMTP 7.2).
pub const LABEL_BYTES_MAX: usize = 64;

/// Longest short text of visible characters (request id, client address), in bytes (MMTP 7.2).
pub const VISIBLE_BYTES_MAX: usize = 128;

/// What kind of message a block belongs to (MMTP 7.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Opens a stream.
    Request,
    /// Answers one.
    Answer,
}

/// What a value may be (MMTP 7.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syntax {
    /// 1 to [`LABEL_BYTES_MAX`] of `A-Z a-z 0-9 . _ -`.
    Label,
    /// 1 to [`VISIBLE_BYTES_MAX`] visible ASCII characters.
    Visible,
    /// An HTTP token (RFC 9110 section 5.6.2) of 1 to [`LABEL_BYTES_MAX`] bytes.
    Token,
    /// Visible ASCII that starts with `/`, or `*` alone.
    Target,
    /// Visible ASCII without `/ ? # @ \ ,`, at most 255 bytes.
    Authority,
    /// A variable-length integer from the first to the second.
    Number(u64, u64),
    /// A field value of HTTP: no control character but tab, no blank at either end.
    Text,
}

/// Where a field may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Request,
    Answer,
    Both,
}

/// Everything fixed about a known field.
#[derive(Clone, Copy, Debug)]
struct Row {
    known: Known,
    id: u16,
    http_name: &'static str,
    syntax: Syntax,
    place: Place,
    repeats: bool,
    pop_only: bool,
}

macro_rules! known_fields {
    ($(
        $name:ident = $id:literal, $http:literal, $syntax:expr, $place:ident, $repeats:literal, $pop_only:literal;
    )*) => {
        /// A field with a number (MMTP 7.2).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Known {
            $(#[doc = concat!("Field ", $id, " (MMTP 7.2); HTTP: `", $http, "`.")] $name,)*
        }

        impl Known {
            /// Every known field, by id.
            pub const ALL: &'static [Known] = &[$(Known::$name,)*];

            /// The field with this id.
            #[must_use]
            pub fn from_id(id: u16) -> Option<Known> {
                match id {
                    $($id => Some(Known::$name),)*
                    _ => None,
                }
            }

            /// The field that carries the HTTP field of this lower-case name.
            #[must_use]
            pub fn from_http_name(name: &[u8]) -> Option<Known> {
                let is_it = |row: &&Row| !name.is_empty() && row.http_name.as_bytes() == name;
                ROWS.iter().find(is_it).map(|row| row.known)
            }

            fn row(self) -> &'static Row {
                &ROWS[self as usize]
            }
        }

        const ROWS: &[Row] = &[
            $(Row {
                known: Known::$name,
                id: $id,
                http_name: $http,
                syntax: $syntax,
                place: Place::$place,
                repeats: $repeats,
                pop_only: $pop_only,
            },)*
        ];
    };
}

known_fields! {
    Service = 1, "", Syntax::Label, Request, false, false;
    Method = 2, "", Syntax::Token, Request, false, false;
    Path = 3, "", Syntax::Target, Request, false, false;
    Authority = 4, "host", Syntax::Authority, Request, false, false;
    Status = 5, "", Syntax::Number(100, 599), Answer, false, false;
    Priority = 6, "", Syntax::Number(0, PRIORITY_MAX as u64), Request, false, false;
    DeadlineMs = 7, "", Syntax::Number(0, u32::MAX as u64), Request, false, false;
    RequestId = 8, "", Syntax::Visible, Request, false, false;
    ContentLength = 9, "content-length", Syntax::Number(0, VARINT_MAX), Both, false, false;
    ContentType = 10, "content-type", Syntax::Text, Both, false, false;
    ContentEncoding = 11, "content-encoding", Syntax::Text, Both, true, false;
    Early = 12, "", Syntax::Number(0, 1), Request, false, true;
    ClientAddress = 13, "", Syntax::Visible, Request, false, true;
    PopId = 14, "", Syntax::Label, Request, false, true;
    Trace = 32, "traceparent", Syntax::Text, Both, false, false;
    Accept = 33, "accept", Syntax::Text, Both, true, false;
    AcceptEncoding = 34, "accept-encoding", Syntax::Text, Both, true, false;
    AcceptLanguage = 35, "accept-language", Syntax::Text, Both, true, false;
    Authorization = 36, "authorization", Syntax::Text, Both, false, false;
    Cookie = 37, "cookie", Syntax::Text, Both, true, false;
    UserAgent = 38, "user-agent", Syntax::Text, Both, true, false;
    CacheControl = 39, "cache-control", Syntax::Text, Both, true, false;
    Date = 40, "date", Syntax::Text, Both, true, false;
    Etag = 41, "etag", Syntax::Text, Both, true, false;
    LastModified = 42, "last-modified", Syntax::Text, Both, true, false;
    Location = 43, "location", Syntax::Text, Both, true, false;
    Server = 44, "server", Syntax::Text, Both, true, false;
    SetCookie = 45, "set-cookie", Syntax::Text, Both, true, false;
    Vary = 46, "vary", Syntax::Text, Both, true, false;
    IfNoneMatch = 47, "if-none-match", Syntax::Text, Both, true, false;
    IfModifiedSince = 48, "if-modified-since", Syntax::Text, Both, true, false;
    Range = 49, "range", Syntax::Text, Both, true, false;
    ContentRange = 50, "content-range", Syntax::Text, Both, true, false;
    ContentDisposition = 51, "content-disposition", Syntax::Text, Both, true, false;
    AcceptRanges = 52, "accept-ranges", Syntax::Text, Both, true, false;
    Age = 53, "age", Syntax::Text, Both, true, false;
    Expires = 54, "expires", Syntax::Text, Both, true, false;
    RetryAfter = 55, "retry-after", Syntax::Text, Both, true, false;
    Referer = 56, "referer", Syntax::Text, Both, true, false;
    Origin = 57, "origin", Syntax::Text, Both, true, false;
}

/// Names that belong to one hop of HTTP/1.1, or that HTTP/1.1 uses for framing: never spelled (MMTP 7.3).
const FORBIDDEN_NAMES: [&str; 8] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"];

const _: () = assert!(Known::ALL.len() <= 64, "the fields seen fit one word of bits");

/// The bits of what only a POP may set.
const POP_ONLY: u64 = {
    let mut bits = 0;
    let mut index = 0;
    while index < ROWS.len() {
        bits |= (ROWS[index].pop_only as u64) << index;
        index += 1;
    }
    bits
};

impl Known {
    /// Its number on the wire.
    #[must_use]
    pub fn id(self) -> u16 {
        self.row().id
    }

    /// The HTTP field that it carries, in lower case; none for a field that is no HTTP field of its own.
    #[must_use]
    pub fn http_name(self) -> Option<&'static str> {
        let name = self.row().http_name;
        (!name.is_empty()).then_some(name)
    }

    /// What its value may be.
    #[must_use]
    pub fn syntax(self) -> Syntax {
        self.row().syntax
    }

    /// Whether only a POP may set it (MMTP 7.4).
    #[must_use]
    pub fn is_pop_only(self) -> bool {
        self.row().pop_only
    }

    fn bit(self) -> u64 {
        1 << (self as usize)
    }

    fn fits(self, message: Message) -> bool {
        match (self.row().place, message) {
            (Place::Both, _) | (Place::Request, Message::Request) | (Place::Answer, Message::Answer) => true,
            (Place::Request, Message::Answer) | (Place::Answer, Message::Request) => false,
        }
    }
}

/// The name of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name<'a> {
    /// Has a number and a meaning.
    Known(Known),
    /// Has a number that this version does not know and may ignore.
    Ignorable(u16),
    /// A lower-case HTTP token.
    Spelled(&'a [u8]),
}

/// One field of a checked block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// Its value.
    pub value: &'a [u8],
    /// The whole field as it stands in the block, to copy with [`HeaderWriter::raw`].
    pub raw: &'a [u8],
}

impl Field<'_> {
    /// Whether only a POP may set it: to be dropped when anybody else did (MMTP 7.4).
    #[must_use]
    pub fn is_pop_only(&self) -> bool {
        matches!(self.name, Name::Known(known) if known.is_pop_only())
    }

    /// The value of a field whose syntax is a number.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self.name {
            Name::Known(known) if matches!(known.syntax(), Syntax::Number(..)) => number_value(self.value),
            Name::Known(_) | Name::Ignorable(_) | Name::Spelled(_) => None,
        }
    }
}

/// What checking a block found out besides its being right; enough to vouch for the same bytes later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Checked {
    status: u16,
    priority: u8,
    tally: Tally,
}

/// A header block that has been checked (MMTP 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderBlock<'a> {
    bytes: &'a [u8],
    checked: Checked,
}

impl<'a> HeaderBlock<'a> {
    /// Checks a block: every length, the number of fields, each name and value, what must and must not stand in this
    /// kind of message (MMTP 7.1 to 7.3).
    pub fn parse(bytes: &'a [u8], message: Message) -> Result<HeaderBlock<'a>, HeaderError> {
        if bytes.len() > HEADER_BLOCK_BYTES_MAX {
            return Err(HeaderError::TooLarge);
        }
        let mut rest = bytes;
        let mut checked = Checked { tally: Tally::NONE, ..Checked::REQUEST };
        while let Some(field) = next_field(&mut rest)? {
            checked.tally.count(field.name)?;
            check_field(&field)?;
            let Name::Known(known) = field.name else { continue };
            if !known.fits(message) {
                return Err(HeaderError::Misplaced(known));
            }
            match known {
                Known::Status => checked.status = field.number().map_or(0, |status| status as u16),
                Known::Priority => checked.priority = field.number().map_or(PRIORITY_DEFAULT, |value| value as u8),
                _ => {}
            }
        }
        let required = match message {
            Message::Request => Known::Service,
            Message::Answer => Known::Status,
        };
        if !checked.tally.has(required) {
            return Err(HeaderError::Missing(required));
        }
        Ok(HeaderBlock { bytes, checked })
    }

    /// Vouches for bytes that have been checked before.
    pub(super) fn of_checked(bytes: &'a [u8], checked: Checked) -> HeaderBlock<'a> {
        HeaderBlock { bytes, checked }
    }

    pub(super) fn checked(&self) -> Checked {
        self.checked
    }

    /// The fields in order.
    #[must_use]
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.bytes }
    }

    /// The value of the first field of this name.
    #[must_use]
    pub fn get(&self, known: Known) -> Option<&'a [u8]> {
        self.find(known).map(|field| field.value)
    }

    /// The value of the first field of this name whose syntax is a number.
    #[must_use]
    pub fn number(&self, known: Known) -> Option<u64> {
        self.find(known).and_then(|field| field.number())
    }

    /// What is not there is not looked for.
    fn find(&self, known: Known) -> Option<Field<'a>> {
        let mut fields = self.checked.tally.has(known).then(|| self.fields())?;
        fields.find(|field| field.name == Name::Known(known))
    }

    /// Whether it may hold a field that only a POP may set (MMTP 7.4).
    #[must_use]
    pub fn may_hold_pop_only(&self) -> bool {
        self.checked.tally.seen & POP_ONLY != 0
    }

    /// The status of an answer, 100 to 599; none for a request.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.checked.status()
    }

    /// Whether it is an answer before the answer (status below 200).
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.checked.is_interim()
    }

    /// The priority of a request, 0 (highest) to 7.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.checked.priority
    }

    /// The block as it stands on the wire.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl Checked {
    /// Of a request whose priority nobody asks for any more, and in which any field may be.
    pub(super) const REQUEST: Checked = Checked { status: 0, priority: PRIORITY_DEFAULT, tally: Tally::ANY };

    fn status(self) -> Option<u16> {
        (self.status != 0).then_some(self.status)
    }

    pub(super) fn is_interim(self) -> bool {
        self.status().is_some_and(|status| status < 200)
    }

    pub(super) fn priority(self) -> u8 {
        self.priority
    }
}

impl<'a> IntoIterator for HeaderBlock<'a> {
    type Item = Field<'a>;
    type IntoIter = Fields<'a>;

    fn into_iter(self) -> Fields<'a> {
        self.fields()
    }
}

/// The fields of a checked block, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        next_field(&mut self.rest).ok().flatten() // the block was checked: no error is left in it
    }
}

/// Cuts the next field off; checks ids and lengths only.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<Field<'a>>, HeaderError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let block = *rest;
    let mut reader = Reader::new(block);
    let name = match reader.varint().map_err(truncated)? {
        0 => {
            let length = reader.varint().map_err(truncated)?;
            Name::Spelled(reader.bytes(length).map_err(truncated)?)
        }
        id => {
            let id = u16::try_from(id).ok().filter(|id| *id <= FIELD_ID_MAX).ok_or(HeaderError::FieldUnknown)?;
            match Known::from_id(id) {
                Some(known) => Name::Known(known),
                None if id & FIELD_IGNORABLE != 0 => Name::Ignorable(id),
                None => return Err(HeaderError::FieldUnknown),
            }
        }
    };
    let length = reader.varint().map_err(truncated)?;
    let value = reader.bytes(length).map_err(truncated)?;
    *rest = reader.rest();
    Ok(Some(Field { name, value, raw: &block[..block.len() - rest.len()] }))
}

fn truncated(_: Violation) -> HeaderError {
    HeaderError::Truncated
}

/// How many fields there were, and which of the known ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tally {
    fields: usize,
    seen: u64,
}

impl Tally {
    const NONE: Tally = Tally { fields: 0, seen: 0 };

    /// As many as there may be, and of every kind.
    const ANY: Tally = Tally { fields: HEADER_FIELDS_MAX, seen: u64::MAX };

    fn count(&mut self, name: Name<'_>) -> Result<(), HeaderError> {
        if self.fields == HEADER_FIELDS_MAX {
            return Err(HeaderError::TooManyFields);
        }
        if let Name::Known(known) = name {
            if self.has(known) && !known.row().repeats {
                return Err(HeaderError::Duplicate(known));
            }
            self.seen |= known.bit();
        }
        self.fields += 1;
        Ok(())
    }

    fn has(&self, known: Known) -> bool {
        self.seen & known.bit() != 0
    }
}

/// Checks name and value of a field whose lengths are right.
fn check_field(field: &Field<'_>) -> Result<(), HeaderError> {
    match field.name {
        Name::Known(known) => {
            if is_value_of(known.syntax(), field.value) {
                Ok(())
            } else {
                Err(HeaderError::Value(known))
            }
        }
        Name::Ignorable(_) => Ok(()),
        Name::Spelled(name) => {
            check_spelled_name(name)?;
            if is_text(field.value) { Ok(()) } else { Err(HeaderError::SpelledValue) }
        }
    }
}

fn check_spelled_name(name: &[u8]) -> Result<(), HeaderError> {
    let is_token = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.iter().all(|byte| is_token_byte(*byte) && !byte.is_ascii_uppercase());
    if !is_token {
        return Err(HeaderError::Name);
    }
    if Known::from_http_name(name).is_some() {
        return Err(HeaderError::NameNumbered);
    }
    if FORBIDDEN_NAMES.iter().any(|forbidden| forbidden.as_bytes() == name) {
        return Err(HeaderError::NameForbidden);
    }
    Ok(())
}

fn is_value_of(syntax: Syntax, value: &[u8]) -> bool {
    match syntax {
        Syntax::Label => {
            (1..=LABEL_BYTES_MAX).contains(&value.len())
                && are_all(value, |byte| byte.is_ascii_alphanumeric() | matches!(byte, b'.' | b'_' | b'-'))
        }
        Syntax::Visible => {
            (1..=VISIBLE_BYTES_MAX).contains(&value.len()) && are_all(value, |byte| byte.is_ascii_graphic())
        }
        Syntax::Token => (1..=LABEL_BYTES_MAX).contains(&value.len()) && value.iter().all(|byte| is_token_byte(*byte)),
        Syntax::Target => {
            value == b"*" || (value.first() == Some(&b'/') && are_all(value, |byte| byte.is_ascii_graphic()))
        }
        Syntax::Authority => {
            let is_delimiter = |byte| matches!(byte, b'/' | b'?' | b'#' | b'@' | b'\\' | b',');
            (1..=255).contains(&value.len()) && are_all(value, |byte| byte.is_ascii_graphic() & !is_delimiter(byte))
        }
        Syntax::Number(least, most) => number_value(value).is_some_and(|number| (least..=most).contains(&number)),
        Syntax::Text => is_text(value),
    }
}

/// A number that fills its value exactly.
fn number_value(value: &[u8]) -> Option<u64> {
    match decode::varint(value) {
        Ok(Some((number, length))) if length == value.len() => Some(number),
        _ => None,
    }
}

fn is_text(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !is_blank(value.first())
        && !is_blank(value.last())
        && are_all(value, |byte| (byte == b'\t') | ((byte >= 0x20) & (byte != 0x7f)))
}

/// Looks at every byte, whatever the others are: without a way out the compiler looks at many at a time.
fn are_all(value: &[u8], is_good: impl Fn(u8) -> bool) -> bool {
    value.iter().fold(true, |are_good, byte| are_good & is_good(*byte))
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Writes a header block behind what `block` holds; refuses what [`HeaderBlock::parse`] would.
///
/// Each call that is refused leaves the block as it was.
#[derive(Debug)]
pub struct HeaderWriter<'a> {
    block: &'a mut Vec<u8>,
    start: usize,
    tally: Tally,
}

impl<'a> HeaderWriter<'a> {
    /// A writer whose block begins at the end of `block`.
    pub fn new(block: &'a mut Vec<u8>) -> HeaderWriter<'a> {
        let start = block.len();
        HeaderWriter { block, start, tally: Tally::NONE }
    }

    /// A writer that goes on behind a copy of `block` at the end of `into`.
    pub fn behind(block: &HeaderBlock<'_>, into: &'a mut Vec<u8>) -> HeaderWriter<'a> {
        let start = into.len();
        into.extend_from_slice(block.bytes);
        HeaderWriter { block: into, start, tally: block.checked.tally }
    }

    /// A known field with the value as it stands on the wire (see [`HeaderWriter::number`] for numbers).
    pub fn known(&mut self, known: Known, value: &[u8]) -> Result<&mut Self, HeaderError> {
        self.field(Name::Known(known), value)
    }

    /// A known field whose value is a number.
    pub fn number(&mut self, known: Known, value: u64) -> Result<&mut Self, HeaderError> {
        if !matches!(known.syntax(), Syntax::Number(..)) || value > VARINT_MAX {
            return Err(HeaderError::Value(known));
        }
        let (bytes, length) = encode::varint_bytes(value);
        self.field(Name::Known(known), &bytes[8 - length..])
    }

    /// A field that has no number, with its lower-case name.
    pub fn spelled(&mut self, name: &[u8], value: &[u8]) -> Result<&mut Self, HeaderError> {
        self.field(Name::Spelled(name), value)
    }

    /// An HTTP field by its lower-case name: numbered where it has a number. Fields whose value is not text (such as
    /// content-length) are refused: write them with [`HeaderWriter::number`].
    pub fn http(&mut self, name: &[u8], value: &[u8]) -> Result<&mut Self, HeaderError> {
        match Known::from_http_name(name) {
            Some(known) if matches!(known.syntax(), Syntax::Number(..)) => Err(HeaderError::Value(known)),
            Some(known) => self.known(known, value),
            None => self.spelled(name, value),
        }
    }

    /// Copies a field of another block, where it has been checked.
    pub fn raw(&mut self, raw: &[u8]) -> Result<&mut Self, HeaderError> {
        let mut rest = raw;
        let field = next_field(&mut rest)?.ok_or(HeaderError::Truncated)?;
        if !rest.is_empty() {
            return Err(HeaderError::Truncated);
        }
        self.reserve(field.name, raw.len())?;
        self.block.extend_from_slice(raw);
        Ok(self)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.block.len() - self.start
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn field(&mut self, name: Name<'_>, value: &[u8]) -> Result<&mut Self, HeaderError> {
        check_field(&Field { name, value, raw: &[] })?;
        let name_bytes = match name {
            Name::Known(known) => encode::varint_len(u64::from(known.id())),
            Name::Ignorable(id) => encode::varint_len(u64::from(id)),
            Name::Spelled(name) => 1 + encode::varint_len(name.len() as u64) + name.len(),
        };
        self.reserve(name, name_bytes + encode::varint_len(value.len() as u64) + value.len())?;
        match name {
            Name::Known(known) => encode::put_varint(u64::from(known.id()), self.block),
            Name::Ignorable(id) => encode::put_varint(u64::from(id), self.block),
            Name::Spelled(name) => {
                self.block.push(0);
                encode::put_varint(name.len() as u64, self.block);
                self.block.extend_from_slice(name);
            }
        }
        encode::put_varint(value.len() as u64, self.block);
        self.block.extend_from_slice(value);
        Ok(self)
    }

    /// Counts a field of so many bytes, unless it does not fit.
    fn reserve(&mut self, name: Name<'_>, bytes: usize) -> Result<(), HeaderError> {
        if self.len() + bytes > HEADER_BLOCK_BYTES_MAX {
            return Err(HeaderError::TooLarge);
        }
        self.tally.count(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Vec<u8> {
        let mut block = Vec::new();
        let mut writer = HeaderWriter::new(&mut block);
        writer.known(Known::Service, b"pay").unwrap();
        writer.known(Known::Method, b"POST").unwrap();
        writer.known(Known::Path, b"/x?y=1").unwrap();
        writer.number(Known::Priority, 0).unwrap();
        writer.spelled(b"x-a", b"1").unwrap();
        block
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = request();
        let block = HeaderBlock::parse(&bytes, Message::Request).unwrap();
        assert_eq!(block.get(Known::Path), Some(&b"/x?y=1"[..]));
        assert_eq!(block.get(Known::Authority), None);
        assert_eq!(block.priority(), 0);
        assert_eq!(block.status(), None);
        let fields: Vec<Field<'_>> = block.fields().collect();
        assert_eq!(fields.len(), 5);
        assert_eq!(fields[4].name, Name::Spelled(b"x-a"));
        let mut copy = Vec::new();
        let mut writer = HeaderWriter::new(&mut copy);
        for field in &fields {
            writer.raw(field.raw).unwrap();
        }
        assert_eq!(copy, bytes);
    }

    /// [M 7.4-1]: a relay can tell what it must drop.
    #[test]
    fn what_only_a_pop_may_say_is_told_apart() {
        let mut block = request();
        let mut writer = HeaderWriter::new(&mut block);
        writer.known(Known::ClientAddress, b"192.0.2.1:4711").unwrap();
        writer.known(Known::PopId, b"pop-1").unwrap();
        writer.number(Known::Early, 1).unwrap();
        let block = HeaderBlock::parse(&block, Message::Request).unwrap();
        assert!(block.may_hold_pop_only());
        let mut kept = Vec::new();
        let mut writer = HeaderWriter::new(&mut kept);
        for field in block.fields().filter(|field| !field.is_pop_only()) {
            writer.raw(field.raw).unwrap();
        }
        assert_eq!(kept, request());
        assert!(!HeaderBlock::parse(&kept, Message::Request).unwrap().may_hold_pop_only());
        for known in Known::ALL {
            assert_eq!(POP_ONLY & known.bit() != 0, known.is_pop_only());
        }
    }

    #[test]
    fn a_copy_counts_as_if_its_fields_had_been_written() {
        let bytes = request();
        let block = HeaderBlock::parse(&bytes, Message::Request).unwrap();
        let mut copy = b"before".to_vec();
        let mut writer = HeaderWriter::behind(&block, &mut copy);
        assert_eq!(writer.len(), bytes.len());
        assert_eq!(writer.known(Known::Path, b"/").map(|_| ()), Err(HeaderError::Duplicate(Known::Path)));
        for _ in 5..HEADER_FIELDS_MAX {
            writer.spelled(b"x-b", b"2").unwrap();
        }
        assert_eq!(writer.spelled(b"x-b", b"2").map(|_| ()), Err(HeaderError::TooManyFields));
        assert!(copy.starts_with(&[&b"before"[..], &bytes].concat()));
    }

    #[test]
    fn a_block_that_is_vouched_for_is_searched_for_every_field() {
        let bytes = request();
        let block = HeaderBlock::of_checked(&bytes, Checked::REQUEST);
        assert_eq!((block.get(Known::Path), block.get(Known::Cookie)), (Some(&b"/x?y=1"[..]), None));
        assert!(block.may_hold_pop_only(), "nobody knows");
    }

    #[test]
    fn the_writer_refuses_what_the_reader_would() {
        let mut block = request();
        let before = block.clone();
        let mut writer = HeaderWriter::new(&mut block);
        assert_eq!(writer.known(Known::Path, b"x").map(|_| ()), Err(HeaderError::Value(Known::Path)));
        assert_eq!(writer.number(Known::Path, 1).map(|_| ()), Err(HeaderError::Value(Known::Path)));
        assert_eq!(writer.number(Known::Priority, 8).map(|_| ()), Err(HeaderError::Value(Known::Priority)));
        assert_eq!(
            writer.number(Known::ContentLength, u64::MAX).map(|_| ()),
            Err(HeaderError::Value(Known::ContentLength))
        );
        assert_eq!(writer.spelled(b"host", b"x").map(|_| ()), Err(HeaderError::NameNumbered));
        assert_eq!(writer.http(b"content-length", b"1").map(|_| ()), Err(HeaderError::Value(Known::ContentLength)));
        assert_eq!(writer.http(b"te", b"trailers").map(|_| ()), Err(HeaderError::NameForbidden));
        assert_eq!(writer.spelled(b"x", &[b'a'; HEADER_BLOCK_BYTES_MAX]).map(|_| ()), Err(HeaderError::TooLarge));
        assert_eq!(writer.raw(b"\x01\x03pay\x01").map(|_| ()), Err(HeaderError::Truncated));
        assert!(writer.is_empty());
        writer.http(b"accept", b"*/*").unwrap().http(b"x-b", b"2").unwrap();
        assert_eq!(block[before.len()..], *b"\x21\x03*/*\0\x03x-b\x012");
    }

    #[test]
    fn the_table_is_in_order_and_says_which_ids_are_ignorable() {
        for (index, known) in Known::ALL.iter().enumerate() {
            assert_eq!(known.row().known, *known);
            assert_eq!(*known as usize, index);
            assert_eq!(Known::from_id(known.id()), Some(*known));
            if let Some(name) = known.http_name() {
                assert_eq!(Known::from_http_name(name.as_bytes()), Some(*known));
            }
        }
        assert!(Known::ALL.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    }
}
