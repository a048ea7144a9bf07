//! Header blocks from anywhere: checking ends without a panic, and a block that passes holds nothing that could become
//! another line of HTTP, and is the same when it is written again field by field.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trunkline::mmtp::{HeaderBlock, HeaderWriter, Known, Message, Name};

fuzz_target!(|input: &[u8]| {
    for message in [Message::Request, Message::Answer] {
        let Ok(block) = HeaderBlock::parse(input, message) else { continue };
        let (mut copied, mut written) = (Vec::new(), Vec::new());
        let mut copier = HeaderWriter::new(&mut copied);
        let mut writer = HeaderWriter::new(&mut written);
        for field in block {
            copier.raw(field.raw).expect("what was checked can be copied");
            match (field.name, field.number()) {
                (Name::Known(known), Some(number)) => writer.number(known, number).map(|_| ()),
                (Name::Known(known), None) => writer.known(known, field.value).map(|_| ()),
                (Name::Spelled(name), _) => {
                    assert_eq!(Known::from_http_name(name), None);
                    writer.spelled(name, field.value).map(|_| ())
                }
                (Name::Ignorable(_), _) => writer.raw(field.raw).map(|_| ()),
            }
            .expect("what was checked can be written");
            if field.number().is_none() && !matches!(field.name, Name::Ignorable(_)) {
                assert!(!field.value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
        }
        assert_eq!(copied, input);
        assert_eq!(written, input);
        assert_eq!(block.status().is_some(), message == Message::Answer);
    }
});
