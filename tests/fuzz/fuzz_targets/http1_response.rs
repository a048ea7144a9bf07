//! The reader of HTTP/1.1 responses: any bytes, cut anywhere, tell the same; what is told can be passed on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline::gateway::http1::{Fields, HEAD_FIELDS_MAX, ResponseError, ResponseEvent, ResponseReader};

/// What a reader told, with the parts of a body as one and without what depends on where the input was cut: whether
/// bytes behind an end are told with the end or after it.
#[derive(PartialEq, Debug, Default)]
struct Told {
    heads: Vec<(u16, Option<u64>, Vec<(Vec<u8>, Vec<u8>)>)>,
    body: Vec<u8>,
    end: Option<(bool, u32)>,
    error: Option<ResponseError>,
}

impl Told {
    fn take(&mut self, event: ResponseEvent<'_>) {
        assert!(self.end.is_none(), "nothing is told after the end");
        match event {
            ResponseEvent::Interim { status, fields } => {
                assert!((100..200).contains(&status) && status != 101);
                assert!(self.body.is_empty());
                self.heads.push((status, None, check_fields(fields)));
            }
            ResponseEvent::Head { status, content_length, fields, .. } => {
                assert!((200..600).contains(&status));
                assert!(self.heads.last().is_none_or(|(before, ..)| *before < 200), "there is one final head");
                self.heads.push((status, content_length, check_fields(fields)));
            }
            ResponseEvent::Body(data) => {
                assert!(!data.is_empty() && self.heads.last().is_some_and(|(status, ..)| *status >= 200));
                self.body.extend_from_slice(data);
            }
            ResponseEvent::End { reusable, trailers } => self.end = Some((reusable, trailers)),
        }
    }
}

fn check_fields(fields: Fields<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let fields: Vec<_> = fields.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    assert!(fields.len() <= HEAD_FIELDS_MAX);
    for (name, value) in &fields {
        assert!(!name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b':'));
        assert!(value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7F)));
        for hidden in ["connection", "transfer-encoding", "content-length", "te", "upgrade"] {
            assert!(!name.eq_ignore_ascii_case(hidden.as_bytes()));
        }
    }
    fields
}

fn read(bytes: &[u8], piece_bytes: usize, method_is_head: bool) -> Told {
    let mut reader = ResponseReader::new(method_is_head);
    let mut told = Told::default();
    for mut input in bytes.chunks(piece_bytes) {
        loop {
            match reader.receive(&mut input) {
                Ok(Some(event)) => told.take(event),
                Ok(None) => break,
                Err(error) => {
                    told.error = Some(error);
                    if error == ResponseError::ExtraBytes {
                        told.end = told.end.map(|(_, trailers)| (false, trailers));
                    }
                    return told;
                }
            }
        }
        assert!(input.is_empty());
    }
    match reader.eof() {
        Ok(Some(event)) => told.take(event),
        Ok(None) => assert!(told.end.is_some()),
        Err(error) => told.error = Some(error),
    }
    told
}

// The first byte of the input says whether the request was HEAD, and how long the pieces are.
fuzz_target!(|data: &[u8]| {
    let Some((how, bytes)) = data.split_first() else { return };
    let method_is_head = how & 1 != 0;
    let whole = read(bytes, bytes.len().max(1), method_is_head);
    assert_eq!(whole, read(bytes, usize::from(*how >> 1) + 1, method_is_head));
    assert_eq!(whole, read(bytes, 1, method_is_head));
});
