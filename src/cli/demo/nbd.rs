//! A blocking NBD client: one connection, any number of requests in flight. Shares no code with our server but the
//! numbers of the protocol, so that a mistake of one side does not hide in the other.

use std::collections::HashMap;
use std::io::{BufReader, Error, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::core::address::Address;
use crate::nbd::protocol::*;

/// One piece of a whole volume that is read, bytes.
const PIECE_BYTES: u32 = 1 << 20;
const PIECES_INFLIGHT: usize = 8;

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Flush,
    Trim { offset: u64, length: u32, fua: bool },
    Zeroes { offset: u64, length: u32, fua: bool, no_hole: bool },
}

/// An answered request.
#[derive(Debug)]
pub struct Answer {
    pub cookie: u64,
    /// The bytes of a read, or the error number of the protocol.
    pub result: std::result::Result<Vec<u8>, u32>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection to one export.
pub struct Client {
    input: BufReader<Stream>,
    reads: HashMap<u64, u32>,
    size: u64,
}

impl Client {
    /// Connects and asks for the export.
    ///
    /// # Errors
    /// Nobody listens, or the server refuses; then the text is the server's.
    pub fn connect(address: &Address, export: &str) -> Result<Client> {
        let stream = match address {
            Address::Tcp(text) => {
                let stream = TcpStream::connect(text)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        let mut client = Client { input: BufReader::with_capacity(256 << 10, stream), reads: HashMap::new(), size: 0 };
        client.timeout(Some(Duration::from_secs(20)))?;
        client.shake_hands(export)?;
        client.timeout(None)?;
        Ok(client)
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bounds each wait for bytes.
    pub fn timeout(&self, timeout: Option<Duration>) -> Result<()> {
        match self.input.get_ref() {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Sends a request without waiting for its answer.
    pub fn send(&mut self, cookie: u64, ask: Ask<'_>) -> Result<()> {
        let fua = |fua: bool| if fua { CMD_FLAG_FUA } else { 0 };
        let (flags, command, offset, length) = match ask {
            Ask::Read { offset, length } => {
                self.reads.insert(cookie, length);
                (0, CMD_READ, offset, length)
            }
            Ask::Write { offset, data, fua: now } => {
                (fua(now), CMD_WRITE, offset, u32::try_from(data.len()).expect("requests are short"))
            }
            Ask::Flush => (0, CMD_FLUSH, 0, 0),
            Ask::Trim { offset, length, fua: now } => (fua(now), CMD_TRIM, offset, length),
            Ask::Zeroes { offset, length, fua: now, no_hole } => {
                let hole = if no_hole { CMD_FLAG_NO_HOLE } else { 0 };
                (fua(now) | hole, CMD_WRITE_ZEROES, offset, length)
            }
        };
        let head = RequestHead::encode(flags, command, cookie, offset, length);
        let Ask::Write { data, .. } = ask else { return self.output(&head) };
        if data.len() > 16 << 10 {
            self.output(&head)?;
            return self.output(data);
        }
        let mut whole = head.to_vec();
        whole.extend_from_slice(data);
        self.output(&whole)
    }

    /// Waits for the next answer, of whichever request.
    pub fn receive(&mut self) -> Result<Answer> {
        let mut raw = [0; REPLY_BYTES];
        self.input.read_exact(&mut raw)?;
        let head = ReplyHead::decode(&raw);
        if head.magic != MAGIC_REPLY {
            return Err(Error::other(format!("{:#010x} is not the beginning of an NBD reply", head.magic)));
        }
        let length = self.reads.remove(&head.cookie).unwrap_or(0);
        if head.error != 0 {
            return Ok(Answer { cookie: head.cookie, result: Err(head.error) });
        }
        let mut data = vec![0; length as usize];
        self.input.read_exact(&mut data)?;
        Ok(Answer { cookie: head.cookie, result: Ok(data) })
    }

    /// One request and its answer, with nothing else in flight.
    pub fn call(&mut self, ask: Ask<'_>) -> Result<Vec<u8>> {
        self.send(u64::MAX, ask)?;
        let answer = self.receive()?;
        answer.result.map_err(|number| Error::from_raw_os_error(number as i32))
    }

    /// The whole export.
    pub fn read_all(&mut self) -> Result<Vec<u8>> {
        let mut image = vec![0; usize::try_from(self.size).expect("demo volumes fit memory")];
        let (mut sent, mut got) = (0, 0);
        while got < self.size {
            while sent < self.size && sent - got < PIECES_INFLIGHT as u64 * u64::from(PIECE_BYTES) {
                let length = (self.size - sent).min(u64::from(PIECE_BYTES));
                self.send(sent, Ask::Read { offset: sent, length: length as u32 })?;
                sent += length;
            }
            let answer = self.receive()?;
            let data = answer.result.map_err(|number| Error::from_raw_os_error(number as i32))?;
            image[answer.cookie as usize..][..data.len()].copy_from_slice(&data);
            got += data.len() as u64;
        }
        Ok(image)
    }

    /// Says goodbye.
    pub fn close(mut self) {
        let _ = self.output(&RequestHead::encode(0, CMD_DISC, 0, 0, 0));
        let _ = match self.input.get_ref() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn output(&mut self, bytes: &[u8]) -> Result<()> {
        match self.input.get_mut() {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    fn shake_hands(&mut self, export: &str) -> Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        self.input.read_exact(&mut greeting)?;
        if be64(&greeting, 0) != MAGIC_SERVER || be64(&greeting, 8) != MAGIC_OPTION {
            return Err(Error::other("this is not an NBD server of today"));
        }
        let mut hello = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes().to_vec();
        hello.extend_from_slice(&OptionHead::encode(OPT_GO, 4 + export.len() as u32 + 2));
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&0u16.to_be_bytes());
        self.output(&hello)?;
        loop {
            let mut raw = [0; OPTION_REPLY_BYTES];
            self.input.read_exact(&mut raw)?;
            let head = OptionReplyHead::decode(&raw);
            if head.magic != MAGIC_OPTION_REPLY || head.length > 64 << 10 {
                return Err(Error::other("the answer to an option is malformed"));
            }
            let mut data = vec![0; head.length as usize];
            self.input.read_exact(&mut data)?;
            match head.reply {
                REP_ACK => return Ok(()),
                REP_INFO if data.len() == 12 && be16(&data, 0) == INFO_EXPORT => self.size = be64(&data, 2),
                REP_INFO => {}
                _ => return Err(Error::other(String::from_utf8_lossy(&data).into_owned())),
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}
