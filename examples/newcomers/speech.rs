//! What is said over a connection: one request, and where its answer ends.

use std::io;

use clap::ValueEnum;
use trunkline::base::time::Time;
use trunkline::mmtp::frame::Frame;
use trunkline::mmtp::{
    Agent, Connection, HeaderBlock, HeaderFlags, HeaderWriter, Known, Message, Settings, Side, StreamId, decode, encode,
};

use crate::Common;

/// Application protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Alpn {
    /// HTTP/1.1 that says so.
    #[value(name = "http/1.1")]
    Http,
    /// HTTP/1.1 without a word about it.
    None,
    /// MMTP/1.
    Mmtp,
}

impl Alpn {
    /// As rustls wants it.
    pub fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Alpn::Http => vec![b"http/1.1".to_vec()],
            Alpn::None => Vec::new(),
            Alpn::Mmtp => vec![b"mmtp/1".to_vec()],
        }
    }
}

/// One side of the talk on one connection.
pub struct Speech {
    alpn: Alpn,
    /// Stream of the last request, with MMTP; 0 before the first.
    stream: StreamId,
    received: Vec<u8>,
    is_answered: bool,
}

impl Speech {
    /// Before the first word.
    pub fn new(alpn: Alpn) -> Speech {
        Speech { alpn, stream: 0, received: Vec::new(), is_answered: false }
    }

    /// The bytes of a request that may be repeated; with what goes before it, when it is the first.
    pub fn request(&mut self, common: &Common, path: &str) -> io::Result<Vec<u8>> {
        self.is_answered = false;
        if self.alpn != Alpn::Mmtp {
            return Ok(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", common.name).into_bytes());
        }
        let mut bytes = Vec::new();
        if self.stream == 0 {
            let settings = Settings::new(Side::Initiator, Agent::Terminal);
            Connection::new(&settings, Time::ZERO).start(&mut bytes);
            self.stream = 1;
        } else {
            self.stream += 2;
        }
        let mut block = Vec::new();
        let mut writer = HeaderWriter::new(&mut block);
        let fields = [(Known::Service, common.service.as_str()), (Known::Method, "GET"), (Known::Path, path)];
        for (known, value) in fields {
            writer.known(known, value.as_bytes()).map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
        let flags = HeaderFlags::END | HeaderFlags::REPLAY_SAFE;
        encode::put_frame(Frame::Headers { stream: self.stream, flags, block: &block }, &mut bytes);
        Ok(bytes)
    }

    /// Takes bytes of the answer. True when it is whole.
    ///
    /// # Errors
    /// Anything but a whole 200.
    pub fn receive(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.received.extend_from_slice(bytes);
        match self.alpn {
            Alpn::Mmtp => self.read_frames()?,
            Alpn::Http | Alpn::None => self.read_http()?,
        }
        Ok(self.is_answered)
    }

    fn read_http(&mut self) -> io::Result<()> {
        let Some(head_bytes) = memchr::memmem::find(&self.received, b"\r\n\r\n").map(|at| at + 4) else {
            return Ok(());
        };
        let head = String::from_utf8_lossy(&self.received[..head_bytes]).to_ascii_lowercase();
        if head.get(9..12) != Some("200") {
            return Err(io::Error::other(format!("answered {:?}", head.lines().next())));
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let whole_bytes = head_bytes + length.ok_or_else(|| io::Error::other("an answer without its length"))?;
        if self.received.len() >= whole_bytes {
            self.received.drain(..whole_bytes);
            self.is_answered = true;
        }
        Ok(())
    }

    fn read_frames(&mut self) -> io::Result<()> {
        while let Some((frame, used)) = decode::frame(&self.received).map_err(|_| io::Error::other("not MMTP"))? {
            match frame {
                Frame::Headers { stream, block, flags } if stream == self.stream => {
                    let status = HeaderBlock::parse(block, Message::Answer).ok().and_then(|block| block.status());
                    match status {
                        Some(100..200) => {}
                        Some(200) => self.is_answered |= flags.end(),
                        _ => return Err(io::Error::other(format!("answered {status:?}"))),
                    }
                }
                Frame::Data { stream, end, .. } if stream == self.stream => self.is_answered |= end,
                Frame::Reset { code, .. } => return Err(io::Error::other(format!("reset with {code:?}"))),
                Frame::GoAway { code, .. } => return Err(io::Error::other(format!("sent away with {code:?}"))),
                _ => {}
            }
            self.received.drain(..used);
        }
        Ok(())
    }
}
