//! Frames from anywhere: decoding ends without a panic, what decodes encodes to the same bytes, and no prefix of it
//! decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{PeerHello, Side, decode, encode};

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    while let Ok(Some((frame, length))) = decode::frame(rest) {
        let mut again = Vec::new();
        encode::put_frame(frame, &mut again);
        assert_eq!(again, &rest[..length]);
        assert_eq!(decode::frame(&rest[..length - 1]), Ok(None));
        if let Frame::Hello(payload) = frame {
            for side in [Side::Initiator, Side::Acceptor] {
                let _ = PeerHello::parse(payload, side);
            }
        }
        rest = &rest[length..];
    }
});
