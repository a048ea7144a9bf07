//! Header blocks on their way through the POP.
//!
//! Owns the rule of who may set which field. Never changes a value: fields are copied as they are, or left out.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::mmtp::{HeaderBlock, HeaderError, HeaderWriter, Known};

/// What this POP says of whence a stream came. A client's requests come in runs: its address is spelled once for a run.
#[derive(Debug)]
pub(super) struct Provenance {
    pop_id: String,
    client: Option<SocketAddr>,
    text: String,
}

impl Provenance {
    pub(super) fn new(pop_id: String) -> Provenance {
        Provenance { pop_id, client: None, text: String::new() }
    }

    fn put(&mut self, writer: &mut HeaderWriter<'_>, client: SocketAddr, early: bool) -> Result<(), HeaderError> {
        if self.client != Some(client) {
            self.text.clear();
            write!(self.text, "{client}").expect("a string takes everything");
            self.client = Some(client);
        }
        writer.known(Known::ClientAddress, self.text.as_bytes())?;
        writer.known(Known::PopId, self.pop_id.as_bytes())?;
        if early {
            writer.number(Known::Early, 1)?;
        }
        Ok(())
    }
}

/// Writes the block of a client's request for the trunk into `into`: what only a POP may set is left out (returns how
/// many fields that were) and set anew. With `early` the block says that it came in early data (MMTP 2.5).
///
/// # Errors
/// When the block grows past its limit.
pub(super) fn request(
    into: &mut Vec<u8>,
    block: &HeaderBlock<'_>,
    provenance: &mut Provenance,
    client: SocketAddr,
    early: bool,
) -> Result<u64, HeaderError> {
    into.clear();
    if !block.may_hold_pop_only() {
        provenance.put(&mut HeaderWriter::behind(block, into), client, early)?;
        return Ok(0);
    }
    let mut dropped = 0;
    let mut writer = HeaderWriter::new(into);
    for field in block.fields() {
        if field.is_pop_only() {
            dropped += 1;
        } else {
            writer.raw(field.raw)?;
        }
    }
    provenance.put(&mut writer, client, early)?;
    Ok(dropped)
}

/// Writes the block that opens a tunnel to `service` into `into`. With `early` it says that the tunnel's first bytes
/// came in early data.
///
/// # Errors
/// When `service` or the POP's id is no label; the configuration rules that out.
pub(super) fn tunnel(
    into: &mut Vec<u8>,
    service: &str,
    provenance: &mut Provenance,
    client: SocketAddr,
    early: bool,
) -> Result<(), HeaderError> {
    into.clear();
    let mut writer = HeaderWriter::new(into);
    writer.known(Known::Service, service.as_bytes())?;
    provenance.put(&mut writer, client, early)
}

/// The field *early* with value 1, as it stands at the end of a block that says so: id, length, value (MMTP 7.1, 7.2).
const EARLY_FIELD: [u8; 3] = [12, 1, 1];

/// The block without its *early*, which it was written with.
pub(super) fn without_early(block: &[u8]) -> &[u8] {
    block.strip_suffix(&EARLY_FIELD).expect("what is early was written so, with the field last")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmtp::Message;

    #[test]
    fn what_only_a_pop_may_set_is_replaced() {
        let mut from = Provenance::new("pop-1".to_owned());
        let client: SocketAddr = "[2001:db8::1]:4711".parse().expect("an address");
        let mut sent = Vec::new();
        let mut writer = HeaderWriter::new(&mut sent);
        writer.known(Known::Service, b"pay").expect("valid");
        writer.known(Known::ClientAddress, b"10.0.0.1:1").expect("valid");
        writer.number(Known::Early, 1).expect("valid");
        writer.spelled(b"x-app", b"7").expect("valid");
        let block = HeaderBlock::parse(&sent, Message::Request).expect("valid");
        let mut forwarded = Vec::new();
        assert_eq!(request(&mut forwarded, &block, &mut from, client, false), Ok(2));
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
        let mut from = Provenance::new("pop-1".to_owned());
        let client: SocketAddr = "192.0.2.7:99".parse().expect("an address");
        let mut sent = Vec::new();
        let mut writer = HeaderWriter::new(&mut sent);
        writer.known(Known::Service, b"pay").expect("valid");
        writer.number(Known::Early, 0).expect("valid");
        let block = HeaderBlock::parse(&sent, Message::Request).expect("valid");
        let (mut early, mut plain) = (Vec::new(), Vec::new());
        assert_eq!(request(&mut early, &block, &mut from, client, true), Ok(1));
        assert_eq!(request(&mut plain, &block, &mut from, client, false), Ok(1));
        let block = HeaderBlock::parse(&early, Message::Request).expect("valid");
        assert_eq!(block.number(Known::Early), Some(1));
        assert_eq!(without_early(&early), plain);
        tunnel(&mut early, "web", &mut from, client, true).expect("labels");
        tunnel(&mut plain, "web", &mut from, client, false).expect("labels");
        assert_eq!(without_early(&early), plain);
    }

    #[test]
    fn a_tunnel_names_its_service_and_client() {
        let mut from = Provenance::new("pop-1".to_owned());
        let client: SocketAddr = "192.0.2.7:99".parse().expect("an address");
        let mut block = Vec::new();
        tunnel(&mut block, "web", &mut from, client, false).expect("labels");
        let block = HeaderBlock::parse(&block, Message::Request).expect("valid");
        assert_eq!(block.get(Known::Service), Some(b"web".as_slice()));
        assert_eq!(block.get(Known::ClientAddress), Some(b"192.0.2.7:99".as_slice()));
    }

    #[test]
    fn each_block_names_its_own_client() {
        let mut from = Provenance::new("pop-1".to_owned());
        for client in ["192.0.2.7:99", "192.0.2.7:99", "192.0.2.7:9", "[::1]:9", "192.0.2.7:99"] {
            let mut block = Vec::new();
            tunnel(&mut block, "web", &mut from, client.parse().expect("an address"), false).expect("labels");
            let block = HeaderBlock::parse(&block, Message::Request).expect("valid");
            assert_eq!(block.get(Known::ClientAddress), Some(client.as_bytes()));
        }
    }
}
