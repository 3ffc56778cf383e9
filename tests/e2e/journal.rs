//! More orders than DR's journal holds while a batch is under way: the batch comes to its end, and nobody waits for ever.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::Role;
use farshore::cli::relay::line::Settings;

use crate::harness::{Group, LONG, MIB};

/// Orders that a journal of 4 MiB has room for.
const JOURNAL_RECORDS: u64 = 65_280;
const DATA_BYTES: u64 = 40 * MIB;
const LINE: Settings = Settings { delay: Duration::from_millis(2), bytes_per_second: 4e6 };
const DEPTH: u64 = 64;

fn group() -> Result<Group> {
    let settings = vec![
        ("primary", "fifo = { memory = \"1MiB\", disk = 0 }".into()),
        ("aux", "slots = 1024".into()),
        ("dr", "journal = \"4MiB\"\nspool = \"192MiB\"".into()),
        ("group", "protect = \"near\"".into()),
    ];
    Group::of(LINE, settings, &[("db", 64 * MIB)])
}

fn noise(seed: u64) -> Vec<u8> {
    let words = (0..DATA_BYTES / 8).map(|at| (at ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Orders without payload, more than the journal holds, all answered.
fn flood(group: &Group) -> Result<()> {
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    let (mut sent, mut answered) = (0, 0);
    while answered < JOURNAL_RECORDS + 10_000 {
        while sent < answered + DEPTH {
            client.send(sent, Ask::Zeroes { offset: sent % 4096 * 4096, length: 512, fua: false, no_hole: false })?;
            sent += 1;
        }
        ensure!(client.receive()?.result.is_ok(), "a request failed");
        answered += 1;
    }
    while answered < sent {
        ensure!(client.receive()?.result.is_ok(), "a request failed");
        answered += 1;
    }
    Ok(())
}

#[test]
fn a_first_sync_is_complete_however_many_orders_are_given_meanwhile() -> Result<()> {
    let mut group = group()?;
    let file = std::fs::File::create(group.site.backing(Role::Primary, "db"))?;
    file.write_all_at(&noise(1), 0)?;
    file.set_len(64 * MIB)?;
    for role in [Role::Aux, Role::Dr, Role::Primary] {
        group.site.start(role)?;
    }
    flood(&group)?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    let log = group.site.log(Role::Primary);
    ensure!(log.contains("is carried on by batch"), "the journal never was half full: {log}");
    Ok(())
}

#[test]
fn orders_wait_so_that_the_journal_lasts_until_a_batch_is_complete() -> Result<()> {
    let mut group = group()?;
    group.site.start_all()?;
    group.site.settle(LONG)?;
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    for (piece, data) in noise(2).chunks(MIB as usize).enumerate() {
        client.call(Ask::Write { offset: piece as u64 * MIB, data, fua: false })?;
    }
    flood(&group)?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    let log = group.site.log(Role::Primary);
    ensure!(log.contains("writes are paced: DR's journal has to hold all orders"), "nobody waited: {log}");
    Ok(())
}
