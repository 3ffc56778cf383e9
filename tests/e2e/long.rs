//! The longest requests, which are carried out in pieces: both sides get every byte, an order record covers no more than a
//! piece, and what a crash leaves of one is its beginning.

use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::oracle;
use farshore::cli::demo::site::Role;
use farshore::core::op::Op;
use farshore::limits::SERVER_LONG_PIECE_BYTES;

use crate::harness::{FAST, Group, LONG, MIB, SLOW};

const LONGEST: usize = 32 << 20;
const DB_BYTES: u64 = 96 * MIB;

fn group(line: farshore::cli::relay::line::Settings, fifo: &str, words: &str) -> Result<Group> {
    let settings = vec![
        ("primary", format!("fifo = {fifo}")),
        ("aux", "slots = 16384".into()),
        ("dr", "journal = \"8MiB\"\nspool = \"256MiB\"".into()),
        ("group", words.into()),
    ];
    let mut group = Group::of(line, settings, &[("db", DB_BYTES)])?;
    group.site.start_all()?;
    Ok(group)
}

/// Bytes that differ from place to place, and from seed to seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).map(|at| (at ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

/// Writes of the longest kind, next to each other, over each other and at odd places, are at DR after the primary is gone.
fn written_and_promoted(fifo: &str) -> Result<()> {
    let mut group = group(FAST, fifo, "protect = \"order\"")?;
    let mut image = vec![0; DB_BYTES as usize];
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    for (seed, offset, fua) in
        [(1, 0, false), (2, 40 * MIB + 1234, true), (3, 20 * MIB + 512, false), (4, 64 * MIB, false)]
    {
        let data = noise(seed, LONGEST);
        client.call(Ask::Write { offset, data: &data, fua })?;
        image[offset as usize..][..LONGEST].copy_from_slice(&data);
        ensure!(client.call(Ask::Read { offset, length: LONGEST as u32 })? == data, "what is read was not written");
    }
    client.call(Ask::Flush)?;
    // Several at a time, and reads between them.
    for cookie in 0..3 {
        client
            .send(cookie, Ask::Write { offset: cookie * 32 * MIB, data: &noise(10 + cookie, LONGEST), fua: false })?;
        client.send(100 + cookie, Ask::Read { offset: 0, length: 4096 })?;
        image[(cookie * 32 * MIB) as usize..][..LONGEST].copy_from_slice(&noise(10 + cookie, LONGEST));
    }
    for _ in 0..6 {
        ensure!(client.receive()?.result.is_ok(), "a request failed");
    }
    client.call(Ask::Flush)?;
    group.site.settle(LONG)?;
    let longest = oracle::history(&group.site.plan.dir, true)?.into_values().filter(|record| record.op == Op::Write);
    let longest = longest.map(|record| record.length).max();
    ensure!(longest == Some(SERVER_LONG_PIECE_BYTES), "a record covers {longest:?} bytes");
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{:?}", report.missing);
    ensure!(group.site.client(Role::Dr, "db")?.read_all()? == image, "the promoted image differs");
    Ok(())
}

#[test]
fn the_longest_writes_are_replicated_and_promoted_byte_for_byte() -> Result<()> {
    written_and_promoted("{ memory = \"64MiB\", disk = \"256MiB\" }")
}

#[test]
fn the_longest_writes_pass_a_fifo_that_is_smaller_than_a_piece_of_them() -> Result<()> {
    written_and_promoted("{ memory = \"1MiB\", disk = 0 }")
}

#[test]
fn a_crash_in_the_middle_of_a_long_write_leaves_its_beginning() -> Result<()> {
    let mut group = group(SLOW, "{ memory = \"64MiB\", disk = \"256MiB\" }", "protect = \"order\"")?;
    let mut client = group.site.client(Role::Primary, "db")?;
    let piece = SERVER_LONG_PIECE_BYTES as usize;
    std::thread::scope(|scope| {
        // It is never answered: the primary is gone before.
        scope.spawn(move || client.call(Ask::Write { offset: 0, data: &[0xaa; LONGEST], fua: false }));
        std::thread::sleep(Duration::from_millis(900));
        group.site.kill(Role::Primary)
    })?;
    group.site.promote(&[])?;
    let image = group.site.client(Role::Dr, "db")?.read_all()?;
    let written = image.iter().take_while(|byte| **byte == 0xaa).count();
    ensure!(written.is_multiple_of(piece), "{written} bytes are no whole pieces");
    ensure!(image[written..].iter().all(|byte| *byte == 0), "behind its beginning something of it was written");
    Ok(())
}
