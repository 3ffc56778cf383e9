//! A light NBD client that reads at random: fio's nbd engine is at its own limit before the server is.
//!
//! ```text
//!   cargo bench --bench reader -- --socket PATH --export NAME --size BYTES [--depth 32] [--seconds 3]
//!                                 [--style simple|structured|extended]
//! ```
//!
//! Keeps `depth` reads of 4 KiB in flight on one connection: what has been answered is asked anew in one call.
//! Prints the reads per second. Fails when a reply is not the answer to a request of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const BLOCK: usize = 4096;

/// The heads that are negotiated ("Simple reply message" and those that follow it).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    /// Bytes of a reply to a read.
    fn reply(self) -> usize {
        BLOCK
            + match self {
                Style::Simple => 16,
                Style::Structured => 28,
                Style::Extended => 40,
            }
    }

    /// What a reply to a read begins with: no error, and the last chunk.
    fn begins(self) -> [u8; 8] {
        match self {
            Style::Simple => [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0],
            Style::Structured => [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1],
            Style::Extended => [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1],
        }
    }
}

struct Options {
    socket: String,
    export: String,
    size: u64,
    depth: usize,
    seconds: u64,
    style: Style,
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let mut stream =
        UnixStream::connect(&options.socket).with_context(|| format!("cannot connect to {}", options.socket))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    attach(&mut stream, &options)?;
    println!("{:.0}", run(&mut stream, &options)?);
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let (socket, export) = (String::new(), "v".into());
    let mut found = Options { socket, export, size: 256 << 20, depth: 32, seconds: 3, style: Style::Simple };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--socket" => found.socket = value,
            "--export" => found.export = value,
            "--size" => found.size = value.parse()?,
            "--depth" => found.depth = value.parse()?,
            "--seconds" => found.seconds = value.parse()?,
            "--style" => {
                found.style = match value.as_str() {
                    "simple" => Style::Simple,
                    "structured" => Style::Structured,
                    "extended" => Style::Extended,
                    other => bail!("unknown style {other}"),
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    ensure!(!found.socket.is_empty(), "--socket is missing");
    ensure!(found.size >= BLOCK as u64 && found.depth > 0, "nothing to read");
    Ok(found)
}

/// Fixed newstyle, by EXPORT_NAME without the zeroes, or by GO where extended headers demand it (NBD protocol, "Fixed
/// newstyle negotiation").
fn attach(stream: &mut UnixStream, options: &Options) -> anyhow::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(&greeting[..8] == b"NBDMAGIC" && &greeting[8..16] == b"IHAVEOPT", "not an NBD server");
    stream.write_all(&3u32.to_be_bytes())?;
    let mut option = |number: u32, data: &[u8]| -> anyhow::Result<()> {
        let length = u32::try_from(data.len())?.to_be_bytes();
        Ok(stream.write_all(&[&b"IHAVEOPT"[..], &number.to_be_bytes(), &length, data].concat())?)
    };
    let name = options.export.as_bytes();
    let mut answers = match options.style {
        Style::Simple => 0,
        Style::Structured => {
            option(8, &[])?;
            20
        }
        Style::Extended => {
            option(11, &[])?;
            20
        }
    };
    if options.style == Style::Extended {
        option(7, &[&u32::try_from(name.len())?.to_be_bytes()[..], name, &[0, 0]].concat())?;
        // Size and flags, and the end.
        answers += 20 + 12 + 20;
    } else {
        option(1, name)?;
        answers += 10;
    }
    stream.read_exact(&mut vec![0; answers]).context("the server refuses the export, or the style")?;
    Ok(())
}

fn run(stream: &mut UnixStream, options: &Options) -> anyhow::Result<f64> {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut outstanding = vec![false; options.depth];
    let mut ask = |cookie: usize, outstanding: &mut [bool], out: &mut Vec<u8>| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let offset = random % (options.size / BLOCK as u64) * BLOCK as u64;
        let extended = options.style == Style::Extended;
        out.extend_from_slice(&if extended { 0x21e4_1c71u32 } else { 0x2560_9513 }.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&(cookie as u64).to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        let length = (BLOCK as u64).to_be_bytes();
        out.extend_from_slice(if extended { &length } else { &length[4..] });
        outstanding[cookie] = true;
    };
    let mut out = Vec::new();
    (0..options.depth).for_each(|cookie| ask(cookie, &mut outstanding, &mut out));
    stream.write_all(&out)?;
    let (size, begins) = (options.style.reply(), options.style.begins());
    let (mut buffer, mut have, mut done) = (vec![0; options.depth * size], 0, 0u64);
    let start = Instant::now();
    let length = Duration::from_secs(options.seconds);
    while start.elapsed() < length {
        let got = stream.read(&mut buffer[have..])?;
        ensure!(got > 0, "the server closed the connection");
        have += got;
        let whole = have / size * size;
        out.clear();
        for reply in buffer[..whole].chunks_exact(size) {
            ensure!(reply[..8] == begins, "not a reply without an error");
            let cookie = usize::try_from(u64::from_be_bytes(reply[8..16].try_into()?))?;
            ensure!(outstanding.get(cookie) == Some(&true), "a reply to nothing that was asked");
            ask(cookie, &mut outstanding, &mut out);
            done += 1;
        }
        buffer.copy_within(whole..have, 0);
        have -= whole;
        stream.write_all(&out)?;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}
