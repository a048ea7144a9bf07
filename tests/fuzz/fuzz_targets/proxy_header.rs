//! The reader of PROXY headers: an answer, once given, stands however many bytes follow.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline::relay::proxy_protocol::{HEADER_BYTES_MAX, read};

fuzz_target!(|data: &[u8]| {
    let whole = read(data);
    for end in 0..data.len().min(HEADER_BYTES_MAX) {
        let so_far = read(&data[..end]);
        assert!(so_far == Ok(None) || so_far == whole);
    }
    match whole {
        Ok(Some((header_bytes, _))) => assert!(header_bytes <= data.len() && header_bytes <= HEADER_BYTES_MAX),
        Ok(None) => assert!(data.len() < HEADER_BYTES_MAX),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
