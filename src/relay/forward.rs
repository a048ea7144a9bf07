//! Header blocks on their way through the POP.
//!
//! Owns the rule of who may set which field. Never changes a value: fields are copied as they are, or left out.

use std::net::SocketAddr;

use crate::mmtp::{HeaderBlock, HeaderError, HeaderWriter, Known};

/// Writes the block of a client's request for the trunk into `into`: what only a POP may set is left out (returns how
/// many fields that were) and set anew. With `early` the block says that it came in early data (MMTP 2.5).
///
/// # Errors
/// When the block grows past its limit.
pub(super) fn request(
    into: &mut Vec<u8>,
    block: &HeaderBlock<'_>,
    client: SocketAddr,
    pop_id: &str,
    early: bool,
) -> Result<u64, HeaderError> {
    into.clear();
    let mut dropped = 0;
    let mut writer = HeaderWriter::new(into);
    for field in block.fields() {
        if field.is_pop_only() {
            dropped += 1;
        } else {
            writer.raw(field.raw)?;
        }
    }
    provenance(&mut writer, client, pop_id, early)?;
    Ok(dropped)
}

/// Writes the block that opens a tunnel to `service` into `into`. With `early` it says that the tunnel's first bytes
/// came in early data.
///
/// # Errors
/// When `service` or `pop_id` is no label; the configuration rules that out.
pub(super) fn tunnel(
    into: &mut Vec<u8>,
    service: &str,
    client: SocketAddr,
    pop_id: &str,
    early: bool,
) -> Result<(), HeaderError> {
    into.clear();
    let mut writer = HeaderWriter::new(into);
    writer.known(Known::Service, service.as_bytes())?;
    provenance(&mut writer, client, pop_id, early)
}

/// The field *early* with value 1, as it stands at the end of a block that says so: id, length, value (MMTP 7.1, 7.2).
const EARLY_FIELD: [u8; 3] = [12, 1, 1];

/// The block without its *early*, which it was written with.
pub(super) fn without_early(block: &[u8]) -> &[u8] {
    block.strip_suffix(&EARLY_FIELD).expect("what is early was written so, with the field last")
}

fn provenance(writer: &mut HeaderWriter<'_>, client: SocketAddr, pop_id: &str, early: bool) -> Result<(), HeaderError> {
    use std::io::Write;
    let mut text = [0u8; 64];
    let mut left = &mut text[..];
    write!(left, "{client}").expect("the longest socket address is 58 characters");
    let used = 64 - left.len();
    writer.known(Known::ClientAddress, &text[..used])?;
    writer.known(Known::PopId, pop_id.as_bytes())?;
    if early {
        writer.number(Known::Early, 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmtp::Message;

    #[test]
    fn what_only_a_pop_may_set_is_replaced() {
        let client: SocketAddr = "[2001:db8::1]:4711".parse().expect("an address");
        let mut sent = Vec::new();
        let mut writer = HeaderWriter::new(&mut sent);
        writer.known(Known::Service, b"pay").expect("valid");
        writer.known(Known::ClientAddress, b"10.0.0.1:1").expect("valid");
        writer.number(Known::Early, 1).expect("valid");
        writer.spelled(b"x-app", b"7").expect("valid");
        let block = HeaderBlock::parse(&sent, Message::Request).expect("valid");
        let mut forwarded = Vec::new();
        assert_eq!(request(&mut forwarded, &block, client, "pop-1", false), Ok(2));
        let block = HeaderBlock::parse(&forwarded, Message::Request).expect("valid");
        assert_eq!(block.get(Known::Service), Some(b"pay".as_slice()));
        assert_eq!(block.get(Known::ClientAddress), Some(b"[2001:db8::1]:4711".as_slice()));
        assert_eq!(block.get(Known::PopId), Some(b"pop-1".as_slice()));
        assert_eq!(block.get(Known::Early), None);
        assert_eq!(block.fields().count(), 4);
    }

    /// [M 7.4-1]: what a client says of *early* never counts. [M 2.5-2]
    #[test]
    fn early_is_what_the_pop_says_and_comes_off_again() {
        let client: SocketAddr = "192.0.2.7:99".parse().expect("an address");
        let mut sent = Vec::new();
        let mut writer = HeaderWriter::new(&mut sent);
        writer.known(Known::Service, b"pay").expect("valid");
        writer.number(Known::Early, 0).expect("valid");
        let block = HeaderBlock::parse(&sent, Message::Request).expect("valid");
        let (mut early, mut plain) = (Vec::new(), Vec::new());
        assert_eq!(request(&mut early, &block, client, "pop-1", true), Ok(1));
        assert_eq!(request(&mut plain, &block, client, "pop-1", false), Ok(1));
        let block = HeaderBlock::parse(&early, Message::Request).expect("valid");
        assert_eq!(block.number(Known::Early), Some(1));
        assert_eq!(without_early(&early), plain);
        tunnel(&mut early, "web", client, "pop-1", true).expect("labels");
        tunnel(&mut plain, "web", client, "pop-1", false).expect("labels");
        assert_eq!(without_early(&early), plain);
    }

    #[test]
    fn a_tunnel_names_its_service_and_client() {
        let client: SocketAddr = "192.0.2.7:99".parse().expect("an address");
        let mut block = Vec::new();
        tunnel(&mut block, "web", client, "pop-1", false).expect("labels");
        let block = HeaderBlock::parse(&block, Message::Request).expect("valid");
        assert_eq!(block.get(Known::Service), Some(b"web".as_slice()));
        assert_eq!(block.get(Known::ClientAddress), Some(b"192.0.2.7:99".as_slice()));
    }
}
