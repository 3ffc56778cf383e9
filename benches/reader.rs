//! A light NBD client that reads at random: fio's nbd engine is at its own limit before the server is.
//!
//! ```text
//!   cargo bench --bench reader -- --socket PATH --export NAME --size BYTES [--depth 32] [--seconds 3]
//! ```
//!
//! Keeps `depth` reads of 4 KiB in flight on one connection: what has been answered is asked anew in one call.
//! Prints the reads per second. Fails when a reply is not the answer to a request of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const BLOCK: usize = 4096;
const REPLY: usize = 16 + BLOCK;

struct Options {
    socket: String,
    export: String,
    size: u64,
    depth: usize,
    seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let mut stream =
        UnixStream::connect(&options.socket).with_context(|| format!("cannot connect to {}", options.socket))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    attach(&mut stream, &options.export)?;
    println!("{:.0}", run(&mut stream, &options)?);
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let mut found = Options { socket: String::new(), export: "v".into(), size: 256 << 20, depth: 32, seconds: 3 };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--socket" => found.socket = value,
            "--export" => found.export = value,
            "--size" => found.size = value.parse()?,
            "--depth" => found.depth = value.parse()?,
            "--seconds" => found.seconds = value.parse()?,
            other => bail!("unknown option {other}"),
        }
    }
    ensure!(!found.socket.is_empty(), "--socket is missing");
    ensure!(found.size >= BLOCK as u64 && found.depth > 0, "nothing to read");
    Ok(found)
}

/// Fixed newstyle by EXPORT_NAME, without the zeroes (NBD protocol, "Fixed newstyle negotiation").
fn attach(stream: &mut UnixStream, export: &str) -> anyhow::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(&greeting[..8] == b"NBDMAGIC" && &greeting[8..16] == b"IHAVEOPT", "not an NBD server");
    let mut out = 3u32.to_be_bytes().to_vec();
    out.extend_from_slice(b"IHAVEOPT");
    out.extend_from_slice(&1u32.to_be_bytes());
    out.extend_from_slice(&u32::try_from(export.len())?.to_be_bytes());
    out.extend_from_slice(export.as_bytes());
    stream.write_all(&out)?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).context("the server refuses the export")?;
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
        out.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(&(cookie as u64).to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&(BLOCK as u32).to_be_bytes());
        outstanding[cookie] = true;
    };
    let mut out = Vec::new();
    (0..options.depth).for_each(|cookie| ask(cookie, &mut outstanding, &mut out));
    stream.write_all(&out)?;
    let (mut buffer, mut have, mut done) = (vec![0; options.depth * REPLY], 0, 0u64);
    let start = Instant::now();
    let length = Duration::from_secs(options.seconds);
    while start.elapsed() < length {
        let got = stream.read(&mut buffer[have..])?;
        ensure!(got > 0, "the server closed the connection");
        have += got;
        let whole = have / REPLY * REPLY;
        out.clear();
        for reply in buffer[..whole].chunks_exact(REPLY) {
            ensure!(reply[..8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "not a simple reply without an error");
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
