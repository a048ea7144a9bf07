//! A session after its handshake: application data, and the few messages that may still come between.
//!
//! Owns both directions' protection, and on a client what is left of rustls to take tickets. Never buffers application
//! data, and holds nothing but secrets and counters while it rests.
//! Invariant: what it answers (KeyUpdate, alerts) is whole records, appended only between records of its caller.

use super::Received;
use super::error::{Alert, TlsError};
use super::handshake::Complete;
use super::keepsake::ClientTicket;
use super::mint::TicketTaker;
use super::record::{ContentType, Protection};

/// Records in a row that carry no application data, before the peer is taken for one that only wants to keep us busy.
const IDLE_RECORDS_MAX: u16 = 32;
/// Key updates of the peer that may come close to each other. A legitimate one makes one in millions of records.
const KEY_UPDATE_CREDIT_MAX: u16 = 32;
/// Records that earn a peer one more key update: as much work as one is, so that none is worth sending for its own sake.
const KEY_UPDATE_SPACING_RECORDS: u64 = 64;
/// Longest handshake message taken after the handshake: a ticket with a client certificate chain in it fits.
const MESSAGE_BYTES_MAX: usize = 1 << 14;
const MESSAGE_HEADER_BYTES: usize = 4;
const MESSAGE_NEW_SESSION_TICKET: u8 = 4;
const MESSAGE_KEY_UPDATE: u8 = 24;
const ALERT_CLOSE_NOTIFY: u8 = 0;
const ALERT_USER_CANCELED: u8 = 90;

pub(super) struct Traffic {
    receiving: Protection,
    sending: Protection,
    /// Some on a client.
    tickets: Option<Box<TicketTaker>>,
    /// The beginning of a handshake message that spans records.
    partial: Option<Box<Partial>>,
    key_update_records: u64,
    /// Records since the last one that carried application data.
    idle_records: u16,
    /// Key updates that the peer may make.
    key_update_credit: u16,
    /// The peer was asked for a key update and has not made it yet.
    update_requested: bool,
    /// close_notify, or a fatal alert, was put.
    sending_closed: bool,
    /// close_notify came.
    receiving_closed: bool,
}

/// Boxed as a whole: hardly any session ever has one.
struct Partial {
    message: Vec<u8>,
}

impl Traffic {
    pub(super) fn new(complete: Complete) -> Traffic {
        Traffic {
            receiving: complete.receiving,
            sending: complete.sending,
            tickets: complete.tickets,
            partial: None,
            key_update_records: complete.key_update_records,
            idle_records: 0,
            key_update_credit: KEY_UPDATE_CREDIT_MAX,
            update_requested: false,
            sending_closed: complete.sending_closed,
            receiving_closed: false,
        }
    }

    /// Lets go of both ciphers, which their secrets can give again.
    pub(super) fn rest(&mut self) {
        self.receiving.rest();
        self.sending.rest();
    }

    /// Opens one whole record. On an error the caller puts the alert.
    pub(super) fn receive<'a>(&mut self, record: &'a mut [u8], out: &mut Vec<u8>) -> Result<Received<'a>, TlsError> {
        if self.receiving_closed {
            return Ok(Received::Nothing); // RFC 8446 6.1: data after a closure alert is ignored
        }
        let (content, plaintext) = self.receiving.open(record)?;
        if content != ContentType::Handshake && self.partial.is_some() {
            return Err(TlsError::Unexpected("record inside a handshake message")); // RFC 8446 5.1
        }
        if content == ContentType::ApplicationData && !plaintext.is_empty() {
            self.idle_records = 0;
            return Ok(Received::Data(plaintext));
        }
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(TlsError::Flood("too many records without application data"));
        }
        match content {
            ContentType::ApplicationData => Ok(Received::Nothing),
            ContentType::Handshake => self.handshake(plaintext, out).map(|()| Received::Nothing),
            ContentType::Alert => self.alert(plaintext),
            ContentType::ChangeCipherSpec => Err(TlsError::Unexpected("protected change_cipher_spec")), // RFC 8446 5
        }
    }

    fn alert(&mut self, plaintext: &[u8]) -> Result<Received<'static>, TlsError> {
        match *plaintext {
            [] => Err(TlsError::Unexpected("empty alert record")), // RFC 8446 5.4
            [_, ALERT_CLOSE_NOTIFY] => {
                self.receiving_closed = true;
                Ok(Received::CloseNotify)
            }
            [_, ALERT_USER_CANCELED] => Ok(Received::Nothing), // RFC 8446 6.1: a close_notify follows
            // RFC 8446 6: every other alert is fatal, whatever its level says.
            [_, code] => {
                self.sending_closed = true; // nobody is there to read
                Err(TlsError::PeerAlert(code))
            }
            _ => Err(TlsError::Malformed("alert of a wrong length")),
        }
    }

    /// Takes a record of handshake bytes: several messages, or a part of one.
    fn handshake(&mut self, fragment: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        if fragment.is_empty() {
            return Err(TlsError::Unexpected("empty handshake record")); // RFC 8446 5.4
        }
        let Some(mut partial) = self.partial.take() else {
            let used_bytes = self.messages(fragment, out)?;
            let message = fragment[used_bytes..].to_vec();
            self.partial = (!message.is_empty()).then(|| Box::new(Partial { message }));
            return Ok(());
        };
        partial.message.extend_from_slice(fragment);
        let used_bytes = self.messages(&partial.message, out)?;
        partial.message.drain(..used_bytes);
        self.partial = (!partial.message.is_empty()).then_some(partial);
        Ok(())
    }

    /// Takes the whole messages at the front of `bytes`; returns how many bytes they were.
    fn messages(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, TlsError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(message_bytes) = self.message_bytes(rest)? else { break };
            let Some((message, behind)) = rest.split_at_checked(message_bytes) else { break };
            self.message(message[0], &message[MESSAGE_HEADER_BYTES..], behind.is_empty(), out)?;
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Length of the message that starts here, header included; `None` until its header is there. Refuses at its first
    /// byte what may not come, so that nothing else is ever gathered.
    fn message_bytes(&self, fragment: &[u8]) -> Result<Option<usize>, TlsError> {
        let length_bytes_max = match (fragment[0], &self.tickets) {
            (MESSAGE_KEY_UPDATE, _) => 1,
            (MESSAGE_NEW_SESSION_TICKET, Some(_)) => MESSAGE_BYTES_MAX,
            _ => return Err(TlsError::Unexpected("handshake message after the handshake")),
        };
        let Some(&[_, high, middle, low]) = fragment.first_chunk::<MESSAGE_HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > length_bytes_max {
            return Err(TlsError::Malformed("handshake message too long"));
        }
        Ok(Some(MESSAGE_HEADER_BYTES + length))
    }

    fn message(&mut self, kind: u8, body: &[u8], is_last: bool, out: &mut Vec<u8>) -> Result<(), TlsError> {
        match (kind, &mut self.tickets) {
            (MESSAGE_NEW_SESSION_TICKET, Some(taker)) => taker.take(body),
            (MESSAGE_KEY_UPDATE, _) if !is_last => {
                // RFC 8446 5.1: a message must not span a change of keys.
                Err(TlsError::Unexpected("KeyUpdate is not the end of its record"))
            }
            (MESSAGE_KEY_UPDATE, _) => self.key_update(body, out),
            _ => Err(TlsError::Unexpected("handshake message after the handshake")),
        }
    }

    /// RFC 8446 4.6.3.
    fn key_update(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let answer = match *body {
            [0] => false,
            [1] => true,
            [_] => return Err(TlsError::IllegalParameter("request_update is neither 0 nor 1")),
            _ => return Err(TlsError::Malformed("KeyUpdate of a wrong length")),
        };
        let earned = self.receiving.sequence() / KEY_UPDATE_SPACING_RECORDS;
        let credit = (u64::from(self.key_update_credit) + earned).min(u64::from(KEY_UPDATE_CREDIT_MAX));
        let Some(credit) = credit.checked_sub(1) else { return Err(TlsError::Flood("too many key updates")) };
        self.key_update_credit = u16::try_from(credit).expect("at most KEY_UPDATE_CREDIT_MAX");
        self.receiving.update()?;
        self.update_requested = false;
        if answer && !self.sending_closed {
            self.put_update(false, out)?;
        }
        Ok(())
    }

    /// On a client that keeps tickets: those that came since the last call.
    pub(super) fn taken_tickets(&mut self) -> Vec<ClientTicket> {
        self.tickets.as_mut().map(|taker| taker.taken()).unwrap_or_default()
    }

    pub(super) fn seal(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), TlsError> {
        if self.sending_closed {
            return Err(TlsError::Misuse("sealed after the end"));
        }
        self.sending.seal(ContentType::ApplicationData, out, start)
    }

    pub(super) fn key_update_due(&self) -> bool {
        let received_out = self.receiving.sequence() >= self.key_update_records && !self.update_requested;
        !self.sending_closed && (self.sending.sequence() >= self.key_update_records || received_out)
    }

    /// Updates the sending key, and asks the peer to do the same when it has used its own for long.
    pub(super) fn put_key_update(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.sending_closed {
            return Err(TlsError::Misuse("key update after the end"));
        }
        let request = self.receiving.sequence() >= self.key_update_records / 2 && !self.update_requested;
        self.put_update(request, out)?;
        self.update_requested |= request;
        Ok(())
    }

    fn put_update(&mut self, request: bool, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.sending.put(ContentType::Handshake, &[MESSAGE_KEY_UPDATE, 0, 0, 1, u8::from(request)], out)?;
        self.sending.update()
    }

    pub(super) fn put_close_notify(&mut self, out: &mut Vec<u8>) {
        self.put_alert(Alert::CloseNotify, out);
    }

    /// Puts an alert, after which nothing more is sent. Puts nothing after an earlier one.
    pub(super) fn put_alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        if self.sending_closed {
            return;
        }
        // With a key that is used up, the peer sees the connection end without the alert.
        let _ = self.sending.put(ContentType::Alert, &alert.message(), out);
        self.sending_closed = true;
    }
}

#[cfg(test)]
impl Traffic {
    pub(super) fn sending_for_test(&mut self) -> &mut Protection {
        &mut self.sending
    }

    pub(super) fn update_for_test(&mut self) {
        self.sending.update().unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Pair, hostile};
    use super::*;
    use crate::tls::RECORD_HEADER_BYTES;

    const EMPTY: &[u8] = &[];

    /// The server's answer to inner plaintexts that a client should never send: its error, and the alert the client saw.
    fn verdict(records: &[&[u8]]) -> (Option<TlsError>, Option<u8>) {
        let mut pair = Pair::established();
        let mut to_client = Vec::new();
        let mut error = None;
        for inner in records {
            let mut record = hostile(&mut pair.client).seal_inner(inner);
            error = pair.server.receive(&mut record, &mut to_client).err();
            if error.is_some() {
                break;
            }
        }
        let alert = pair.client_reads(&mut to_client).err().map(|error| match error {
            TlsError::PeerAlert(code) => code,
            other => panic!("the client saw {other}"),
        });
        (error, alert)
    }

    fn assert_refused(records: &[&[u8]], alert: Alert) {
        let (error, seen) = verdict(records);
        let error = error.expect("the server refuses");
        assert_eq!((error.alert(), seen), (Some(alert), Some(alert.code())), "{records:?}: {error}");
    }

    #[test]
    fn what_does_not_belong_here_is_unexpected() {
        assert_refused(&[&[0; 40]], Alert::UnexpectedMessage); // RFC 8446 5.4: no content type
        assert_refused(&[EMPTY], Alert::UnexpectedMessage);
        assert_refused(&[&[1, 20]], Alert::UnexpectedMessage); // RFC 8446 5: protected change_cipher_spec
        assert_refused(&[&[1, 2, 3, 24]], Alert::UnexpectedMessage); // heartbeat
        assert_refused(&[&[22]], Alert::UnexpectedMessage); // RFC 8446 5.4: empty handshake record
        assert_refused(&[&[21]], Alert::UnexpectedMessage); // RFC 8446 5.4: empty alert record
        for kind in (0..=255).filter(|&kind| kind != MESSAGE_KEY_UPDATE) {
            assert_refused(&[&[kind, 22]], Alert::UnexpectedMessage); // tickets are for clients, the rest for handshakes
        }
    }

    #[test]
    fn malformed_messages_are_told_so() {
        assert_refused(&[&[2, 21]], Alert::DecodeError);
        assert_refused(&[&[2, 80, 0, 21]], Alert::DecodeError);
        assert_refused(&[&[24, 0, 0, 2, 0, 0, 22]], Alert::DecodeError);
        assert_refused(&[&[24, 0, 0, 0, 22]], Alert::DecodeError);
        assert_refused(&[&[24, 0xff, 0xff, 0xff, 22]], Alert::DecodeError);
        assert_refused(&[&[24, 0, 0, 1, 2, 22]], Alert::IllegalParameter); // RFC 8446 4.6.3
    }

    #[test]
    fn a_key_update_ends_its_record_and_is_not_interrupted() {
        assert_refused(&[&[24, 0, 0, 1, 0, 24, 0, 0, 1, 0, 22]], Alert::UnexpectedMessage); // RFC 8446 5.1
        assert_refused(&[&[24, 0, 22], &[b'x', 23]], Alert::UnexpectedMessage);
        assert_refused(&[&[24, 0, 22], &[1, 0, 21]], Alert::UnexpectedMessage);
        let (error, alert) = verdict(&[&[24, 0, 22], &[0, 22], &[1, 22]]);
        assert_eq!((error, alert), (None, None));
    }

    #[test]
    fn a_key_update_in_pieces_changes_the_key() {
        let mut pair = Pair::established();
        let mut to_client = Vec::new();
        for inner in [&[24, 0, 22][..], &[0, 1, 1, 22]] {
            let mut record = hostile(&mut pair.client).seal_inner(inner);
            pair.server.receive(&mut record, &mut to_client).unwrap();
        }
        hostile(&mut pair.client).update();
        assert!(pair.carries_both_ways(&mut to_client));
    }

    #[test]
    fn records_that_are_too_long_overflow() {
        let mut longest = vec![b'x'; (1 << 14) + 1];
        longest[1 << 14] = 23;
        assert_eq!(verdict(&[&longest]), (None, None));
        longest.push(23);
        longest[1 << 14] = b'x';
        assert_refused(&[&longest], Alert::RecordOverflow);
        let mut padded = vec![0; (1 << 14) + 2]; // RFC 8446 5.4: padding counts too
        padded[0] = 23;
        assert_refused(&[&padded], Alert::RecordOverflow);
        padded.pop();
        assert_eq!(verdict(&[&padded]), (None, None));
    }

    #[test]
    fn padding_is_removed() {
        let mut pair = Pair::established();
        let mut record = hostile(&mut pair.client).seal_inner(b"data\0\0\x17\0\0\0\0");
        let received = pair.server.receive(&mut record, &mut Vec::new()).unwrap();
        assert!(matches!(received, Received::Data(b"data\0\0")));
    }

    #[test]
    fn records_without_data_are_limited_and_data_clears_the_count() {
        let empty: &[u8] = &[23];
        let canceled: &[u8] = &[1, 90, 21];
        let full = usize::from(IDLE_RECORDS_MAX);
        for idle in [empty, canceled] {
            assert_eq!(verdict(&vec![idle; full]), (None, None));
            assert_refused(&vec![idle; full + 1], Alert::UnexpectedMessage);
            let mut broken = vec![idle; full];
            broken.push(b"x\x17");
            broken.extend(vec![idle; full]);
            assert_eq!(verdict(&broken), (None, None));
        }
    }

    #[test]
    fn key_updates_are_limited() {
        let mut pair = Pair::established();
        let mut to_client = Vec::new();
        for count in 0.. {
            let mut record = hostile(&mut pair.client).seal_inner(&[24, 0, 0, 1, 1, 22]);
            hostile(&mut pair.client).update();
            match pair.server.receive(&mut record, &mut to_client) {
                Ok(_) => assert!(count < IDLE_RECORDS_MAX),
                Err(error) => {
                    assert_eq!((error.alert(), count), (Some(Alert::UnexpectedMessage), IDLE_RECORDS_MAX));
                    break;
                }
            }
        }
    }

    #[test]
    fn key_updates_are_limited_by_what_comes_between() {
        let spent = |between: usize| {
            let mut pair = Pair::established();
            let mut to_client = Vec::new();
            for count in 0..200 {
                for _ in 0..between {
                    pair.carries_to_server(&mut to_client);
                }
                let mut record = hostile(&mut pair.client).seal_inner(&[24, 0, 0, 1, 0, 22]);
                hostile(&mut pair.client).update();
                match pair.server.receive(&mut record, &mut to_client) {
                    Ok(_) => {}
                    Err(error) => return Some((count, error)),
                }
            }
            None
        };
        let flood = TlsError::Flood("too many key updates");
        assert_eq!(spent(1), Some((KEY_UPDATE_CREDIT_MAX, flood)));
        let spacing = usize::try_from(KEY_UPDATE_SPACING_RECORDS).unwrap();
        assert_eq!(spent(spacing - 2).map(|(_, error)| error), Some(flood));
        assert_eq!(spent(spacing - 1), None, "the key update is a record too");
    }

    #[test]
    fn a_rested_session_goes_on_where_it_was() {
        let mut pair = Pair::established();
        let mut to_client = Vec::new();
        for round in 0..4 {
            assert!(pair.carries_both_ways(&mut to_client));
            pair.server.rest();
            pair.server.rest();
            if round == 2 {
                pair.server.put_key_update(&mut to_client).unwrap();
                pair.server.rest();
            }
            if round == 3 {
                pair.client.rest();
            }
        }
        assert!(pair.carries_both_ways(&mut to_client));
    }

    #[test]
    fn what_does_not_decrypt_or_is_in_the_clear_ends_the_session() {
        for (at, alert) in [(0, Alert::UnexpectedMessage), (RECORD_HEADER_BYTES, Alert::BadRecordMac)] {
            let mut pair = Pair::established();
            let mut record = hostile(&mut pair.client).seal_inner(b"data\x17");
            record[at] ^= 1;
            let mut to_client = Vec::new();
            let error = pair.server.receive(&mut record, &mut to_client).unwrap_err();
            assert_eq!(error.alert(), Some(alert));
            assert_eq!(pair.client_reads(&mut to_client).unwrap_err(), TlsError::PeerAlert(alert.code()));
            assert!(!pair.server.is_established());
            assert!(matches!(pair.server.receive(&mut record, &mut to_client), Err(TlsError::Misuse(_))));
            assert!(to_client.is_empty());
        }
        let mut pair = Pair::established();
        for record in
            [&mut [23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &mut [23, 3, 3, 0, 0]]
        {
            let error = pair.server.receive(record, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, TlsError::BadRecordMac | TlsError::Misuse(_)));
        }
    }

    #[test]
    fn alerts_of_the_peer_are_not_answered() {
        for level in [1, 2, 77] {
            let (error, alert) = verdict(&[&[level, 48, 21]]);
            assert_eq!((error, alert), (Some(TlsError::PeerAlert(48)), None));
        }
    }

    #[test]
    fn closing_is_one_sided_and_what_follows_is_ignored() {
        let mut pair = Pair::established();
        let mut to_server = Vec::new();
        pair.client.put_close_notify(&mut to_server);
        let once = to_server.len();
        pair.client.put_close_notify(&mut to_server);
        assert_eq!(to_server.len(), once, "the second one does nothing");
        assert!(matches!(pair.client.seal(&mut vec![0; 9], 0), Err(TlsError::Misuse(_))));
        assert!(matches!(pair.client.put_key_update(&mut to_server), Err(TlsError::Misuse(_))));
        assert!(!pair.client.key_update_due());
        let mut to_client = Vec::new();
        assert!(matches!(pair.server.receive(&mut to_server, &mut to_client), Ok(Received::CloseNotify)));
        assert!(to_client.is_empty());
        assert!(matches!(pair.server.receive(&mut [1, 2, 3], &mut to_client), Ok(Received::Nothing)));
        let mut sealed = vec![0; RECORD_HEADER_BYTES];
        sealed.extend_from_slice(b"still");
        pair.server.seal(&mut sealed, 0).unwrap();
        assert!(matches!(pair.client.receive(&mut sealed, &mut to_server), Ok(Received::Data(b"still"))));
    }

    #[test]
    fn keys_are_updated_when_due_in_both_directions() {
        let mut pair = Pair::established_with(8);
        let mut to_client = Vec::new();
        for _ in 0..8 {
            assert!(!pair.client.key_update_due());
            pair.carries_to_server(&mut to_client);
        }
        assert!(pair.client.key_update_due(), "it sealed eight records");
        assert!(pair.server.key_update_due(), "it received eight records");
        pair.server.put_key_update(&mut to_client).unwrap(); // and asks for one
        assert!(!pair.server.key_update_due());
        let answer = pair.client_reads(&mut to_client).unwrap();
        assert!(!answer.is_empty() && !pair.client.key_update_due());
        pair.server.receive(&mut answer.clone(), &mut to_client).unwrap();
        assert!(to_client.is_empty(), "an answer asks for nothing");
        assert!(pair.carries_both_ways(&mut to_client));
    }
}
