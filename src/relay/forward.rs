//! Header blocks on their way through the POP.
//!
//! Owns the rule of who may set which field. Never changes a value: fields are copied as they are, or left out.

use std::net::SocketAddr;

use crate::mmtp::{HeaderBlock, HeaderError, HeaderWriter, Known};

/// Writes the block of a client's request for the trunk into `into`: what only a POP may set is left out (returns how
/// many fields that were) and set anew.
///
/// # Errors
/// When the block grows past its limit.
pub(super) fn request(
    into: &mut Vec<u8>,
    block: &HeaderBlock<'_>,
    client: SocketAddr,
    pop_id: &str,
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
    provenance(&mut writer, client, pop_id)?;
    Ok(dropped)
}

/// Writes the block that opens a tunnel to `service` into `into`.
///
/// # Errors
/// When `service` or `pop_id` is no label; the configuration rules that out.
pub(super) fn tunnel(into: &mut Vec<u8>, service: &str, client: SocketAddr, pop_id: &str) -> Result<(), HeaderError> {
    into.clear();
    let mut writer = HeaderWriter::new(into);
    writer.known(Known::Service, service.as_bytes())?;
    provenance(&mut writer, client, pop_id)
}

fn provenance(writer: &mut HeaderWriter<'_>, client: SocketAddr, pop_id: &str) -> Result<(), HeaderError> {
    use std::io::Write;
    let mut text = [0u8; 64];
    let mut left = &mut text[..];
    write!(left, "{client}").expect("the longest socket address is 58 characters");
    let used = 64 - left.len();
    writer.known(Known::ClientAddress, &text[..used])?;
    writer.known(Known::PopId, pop_id.as_bytes())?;
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
        assert_eq!(request(&mut forwarded, &block, client, "pop-1"), Ok(2));
        let block = HeaderBlock::parse(&forwarded, Message::Request).expect("valid");
        assert_eq!(block.get(Known::Service), Some(b"pay".as_slice()));
        assert_eq!(block.get(Known::ClientAddress), Some(b"[2001:db8::1]:4711".as_slice()));
        assert_eq!(block.get(Known::PopId), Some(b"pop-1".as_slice()));
        assert_eq!(block.get(Known::Early), None);
        assert_eq!(block.fields().count(), 4);
    }

    #[test]
    fn a_tunnel_names_its_service_and_client() {
        let client: SocketAddr = "192.0.2.7:99".parse().expect("an address");
        let mut block = Vec::new();
        tunnel(&mut block, "web", client, "pop-1").expect("labels");
        let block = HeaderBlock::parse(&block, Message::Request).expect("valid");
        assert_eq!(block.get(Known::Service), Some(b"web".as_slice()));
        assert_eq!(block.get(Known::ClientAddress), Some(b"192.0.2.7:99".as_slice()));
    }
}
