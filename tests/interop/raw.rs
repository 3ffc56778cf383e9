//! A client of our own that speaks what no tool here does: extended headers, byte by byte. It shares nothing with the
//! server but the numbers of the protocol.

use std::io::{Error, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use farshore::nbd::protocol::*;

pub struct Raw {
    stream: UnixStream,
    next: u64,
}

/// A chunk of a reply: its type and its data.
pub type Chunk = (u16, Vec<u8>);

impl Raw {
    /// Past the greeting.
    pub fn connect(socket: &Path) -> Result<Raw> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting)?;
        stream.write_all(&3u32.to_be_bytes())?;
        Ok(Raw { stream, next: 1 })
    }

    /// In transmission, with extended headers and `base:allocation`.
    pub fn extended(socket: &Path, export: &str) -> Result<Raw> {
        let mut raw = Raw::connect(socket)?;
        let name = [&(export.len() as u32).to_be_bytes()[..], export.as_bytes()].concat();
        let context = b"base:allocation";
        let query = [&1u32.to_be_bytes()[..], &(context.len() as u32).to_be_bytes(), context].concat();
        let set = [&name[..], &query].concat();
        let go = [&name[..], &[0, 0]].concat();
        for (option, data) in [(OPT_EXTENDED_HEADERS, &[][..]), (OPT_SET_META_CONTEXT, &set), (OPT_GO, &go)] {
            let answers = raw.option(option, data)?;
            if answers.last().map(|(reply, _)| *reply) != Some(REP_ACK) {
                return Err(Error::other(format!("option {option} is answered with {answers:?}")));
            }
        }
        Ok(raw)
    }

    /// What is left to be said is said elsewhere.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Every answer to an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>> {
        self.stream.write_all(&OptionHead::encode(option, data.len() as u32))?;
        self.stream.write_all(data)?;
        let mut answers = Vec::new();
        loop {
            let mut head = [0; OPTION_REPLY_BYTES];
            self.stream.read_exact(&mut head)?;
            let head = OptionReplyHead::decode(&head);
            let mut data = vec![0; head.length as usize];
            self.stream.read_exact(&mut data)?;
            answers.push((head.reply, data));
            if !matches!(head.reply, REP_INFO | REP_SERVER | REP_META_CONTEXT) {
                return Ok(answers);
            }
        }
    }

    /// Sends an extended request and takes its reply: one chunk, and after one that is not the last the one that says so.
    pub fn ask(&mut self, flags: u16, command: u16, offset: u64, length: u64, payload: &[u8]) -> Result<Chunk> {
        let cookie = self.next;
        self.next += 1;
        self.stream.write_all(&RequestHead::encode_extended(flags, command, cookie, offset, length))?;
        self.stream.write_all(payload)?;
        let (last, chunk) = self.chunk(cookie, offset)?;
        if !last {
            match self.chunk(cookie, offset)? {
                (true, (REPLY_NONE, _)) => {}
                (_, (kind, data)) => return Err(Error::other(format!("then a chunk of type {kind:#x}: {data:02x?}"))),
            }
        }
        Ok(chunk)
    }

    /// One chunk, and whether it is the last one.
    fn chunk(&mut self, cookie: u64, offset: u64) -> Result<(bool, Chunk)> {
        let mut head = [0; CHUNK_EXTENDED_BYTES];
        self.stream.read_exact(&mut head)?;
        let wrong = be32(&head, 0) != MAGIC_REPLY_EXTENDED || be16(&head, 4) & !REPLY_FLAG_DONE != 0;
        if wrong || be64(&head, 8) != cookie || be64(&head, 16) != offset {
            return Err(Error::other(format!("not a chunk of the reply to {cookie}: {head:02x?}")));
        }
        let mut data = vec![0; usize::try_from(be64(&head, 24)).map_err(Error::other)?];
        self.stream.read_exact(&mut data)?;
        Ok((be16(&head, 4) != 0, (be16(&head, 6), data)))
    }

    /// As `ask`, for what succeeds without data.
    pub fn done(&mut self, flags: u16, command: u16, offset: u64, length: u64, payload: &[u8]) -> Result<()> {
        match self.ask(flags, command, offset, length, payload)? {
            (REPLY_NONE, _) => Ok(()),
            (kind, data) => Err(Error::other(format!("command {command}: reply of type {kind:#x}: {data:02x?}"))),
        }
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>> {
        match self.ask(CMD_FLAG_DF, CMD_READ, offset, length, &[])? {
            (REPLY_OFFSET_DATA, data) if be64(&data, 0) == offset => Ok(data[8..].to_vec()),
            (REPLY_OFFSET_HOLE, data) if be64(&data, 0) == offset => Ok(vec![0; be32(&data, 8) as usize]),
            (kind, data) => Err(Error::other(format!("a read is answered by type {kind:#x}: {data:02x?}"))),
        }
    }

    /// (length, flags) of the stretches.
    pub fn status(&mut self, flags: u16, offset: u64, length: u64) -> Result<Vec<(u64, u64)>> {
        let (kind, data) = if flags & CMD_FLAG_PAYLOAD_LEN != 0 {
            let payload = [&length.to_be_bytes()[..], &1u32.to_be_bytes()].concat();
            self.ask(flags, CMD_BLOCK_STATUS, offset, payload.len() as u64, &payload)?
        } else {
            self.ask(flags, CMD_BLOCK_STATUS, offset, length, &[])?
        };
        if kind != REPLY_BLOCK_STATUS_EXT || data.len() != 8 + 16 * be32(&data, 4) as usize {
            return Err(Error::other(format!("a block status is answered by type {kind:#x}: {data:02x?}")));
        }
        Ok(data[8..].chunks_exact(16).map(|one| (be64(one, 0), be64(one, 8))).collect())
    }
}
