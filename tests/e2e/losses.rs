//! A promotion that loses very many writes: the report has every one of them, exactly, and nobody needs memory for the
//! text of all of them, whoever reads it and however slowly.
//!
//! `FARSHORE_LOSSES` says how many writes there are, for measurements; what each process needed is printed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::{Ask, Client};
use farshore::cli::demo::oracle;
use farshore::cli::demo::site::Role;
use farshore::cli::relay::line::Settings;
use farshore::cluster::status::{PromoteReport, rfc3339};

use crate::harness::{Group, LONG, MIB};

/// The order gets across, nearly nothing of the data does.
const NARROW: Settings = Settings { delay: Duration::from_millis(1), bytes_per_second: 0.4e6 };
const WRITES: u64 = 30_000;
const CONNECTIONS: u64 = 4;
const DEPTH: u64 = 32;
const SECTOR: u64 = 512;
/// What a process may need for each missing write, beside what it needs anyway: the records as they were found in the
/// status table, in order, what is known of each, and the list of the report.
const DR_BYTES_PER_WRITE: u64 = 512;

fn writes() -> u64 {
    std::env::var("FARSHORE_LOSSES").ok().and_then(|count| count.parse().ok()).unwrap_or(WRITES)
}

/// Most memory that a process has had so far, bytes.
fn peak(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// One of many writers; writes, zeroes and trims, all acknowledged.
fn write(address: &farshore::core::address::Address, count: u64, seed: u64) -> Result<()> {
    let mut client = Client::connect(address, if seed.is_multiple_of(2) { "db" } else { "log" })?;
    client.timeout(Some(LONG))?;
    let sectors = client.size() / SECTOR;
    let data = [seed as u8; SECTOR as usize];
    let mut waiting = 0;
    for at in 0..count {
        let offset = (at * 7 + seed) % sectors * SECTOR;
        let ask = match at % 50 {
            17 => Ask::Trim { offset, length: SECTOR as u32, fua: false },
            33 => Ask::Zeroes { offset, length: SECTOR as u32, fua: false, no_hole: false },
            _ => Ask::Write { offset, data: &data, fua: false },
        };
        client.send(at, ask)?;
        waiting += 1;
        while waiting == DEPTH || at + 1 == count && waiting > 0 {
            client.receive()?;
            waiting -= 1;
        }
    }
    Ok(())
}

/// A group whose primary died before the data of most of its writes had crossed.
fn orphaned(count: u64) -> Result<Group> {
    let slots = (count * 2).next_power_of_two();
    let settings = vec![
        ("group", "protect = \"near\"".into()),
        ("primary", format!("fifo = {{ memory = {}, disk = {} }}", 256 * MIB + count * 2048, 64 * MIB)),
        ("aux", format!("slots = {slots}")),
        ("dr", format!("journal = {}\nspool = \"192MiB\"", (8 * MIB + slots * 144).next_multiple_of(MIB))),
    ];
    let mut group = Group::with(NARROW, settings)?;
    group.site.start_all()?;
    let address = group.site.export(Role::Primary);
    let writer = |seed| {
        let address = address.clone();
        std::thread::spawn(move || write(&address, count / CONNECTIONS, seed))
    };
    let writers: Vec<_> = (0..CONNECTIONS).map(writer).collect();
    for writer in writers {
        writer.join().expect("no panic")?;
    }
    group.site.kill(Role::Primary)?;
    // What is still on the line would arrive between a plan and its promotion.
    group.site.line.reset();
    // Nor may what has come just now be on its way to the disk of DR.
    let mut missing = None;
    while missing != Some(group.site.dr()?.missing_writes) {
        missing = Some(group.site.dr()?.missing_writes);
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(group)
}

/// Every missing write of the report is the one that the logs have, and there are no others.
fn check(group: &Group, report: &PromoteReport) -> Result<()> {
    let history = oracle::history(&group.site.plan.dir, true)?;
    let lost = history.values().filter(|record| record.epoch < report.epoch && record.seq > report.cut_seq);
    let mut lost = lost.filter(|record| record.changes_volume());
    let (mut bytes, mut listed) = (0, 0);
    for write in report.missing.iter() {
        let record = lost.next().with_context(|| format!("{write:?} is not lost"))?;
        let place = (record.seq, record.op.word(), record.offset, record.length, rfc3339(record.time_ns));
        let told = (write.seq, write.op.as_str(), write.offset, write.length, write.time.clone());
        ensure!(place == told, "{write:?} is {record:?}");
        ensure!(write.volume == group.site.plan.volumes[usize::from(record.volume.0)].0, "{write:?} is {record:?}");
        ensure!(["queued", "sent", "unknown", "held"].contains(&write.state.as_str()), "{write:?}");
        (bytes, listed) = (bytes + write.length, listed + 1);
    }
    ensure!(lost.next().is_none(), "more is lost than the report says");
    ensure!((listed, bytes) == (report.missing.len(), report.missing_bytes), "{listed} writes, {bytes} bytes");
    Ok(())
}

/// A verb of the program, its output not read yet.
fn ask(group: &Group, words: &[&str]) -> Result<Child> {
    let mut command = Command::new(crate::harness::program());
    command.arg(words[0]).arg("--config").arg(group.site.config()).args(&words[1..]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?)
}

/// All that a verb prints, and the most memory it has had.
fn told(mut child: Child) -> Result<(Vec<u8>, u64)> {
    let (mut out, mut most) = (Vec::new(), 0);
    let mut stdout = child.stdout.take().context("it is a pipe")?;
    let mut piece = vec![0; 32 << 10];
    loop {
        most = peak(child.id()).unwrap_or(0).max(most);
        match stdout.read(&mut piece)? {
            0 => break,
            count => out.extend_from_slice(&piece[..count]),
        }
    }
    ensure!(child.wait()?.success(), "it failed");
    Ok((out, most))
}

#[test]
fn a_promotion_with_very_many_missing_writes_reports_each_and_holds_none_of_the_text() -> Result<()> {
    let count = writes();
    let mut group = orphaned(count)?;
    let pid = group.site.pid(Role::Dr).context("it runs")?;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let at_rest = peak(pid).context("it runs")?;
    let (plan, plan_cli) = told(ask(&group, &["promote", "--plan", "--json"])?)?;
    let planned = peak(pid).context("it runs")?;
    let plan: PromoteReport = serde_json::from_slice(&plan)?;
    check(&group, &plan)?;
    ensure!(plan.missing.len() as u64 > count / 2, "only {} of {count} are missing", plan.missing.len());

    // It dies somewhere in the middle, once.
    let mut first = ask(&group, &["promote", "--json"])?;
    std::thread::sleep(Duration::from_millis(2500));
    group.site.kill(Role::Dr)?;
    first.kill()?;
    first.wait()?;
    group.site.start(Role::Dr)?;
    let pid = group.site.pid(Role::Dr).context("it runs")?;
    let started = peak(pid).context("it runs")?;
    let begun = Instant::now();
    let (report, promote_cli) = told(ask(&group, &["promote", "--json"])?)?;
    let took = begun.elapsed();
    let promoted = peak(pid).context("it runs")?;
    let text = report;
    let report: PromoteReport = serde_json::from_slice(&text)?;
    check(&group, &report)?;
    if report.missing != plan.missing || report.cut_seq != plan.cut_seq {
        let other = plan.missing.iter().zip(report.missing.iter()).find(|(planned, found)| planned != found);
        let (planned, found) = ((plan.cut_seq, plan.missing.len()), (report.cut_seq, report.missing.len()));
        anyhow::bail!("the plan said otherwise: cut and count {planned:?}, then {found:?}; first {other:?}");
    }
    let lost = report.missing.len() as u64;

    let (people, people_cli) = told(ask(&group, &["loss"])?)?;
    ensure!(String::from_utf8(people)?.contains(&format!("lost             {lost} writes")), "told to people");
    let (again, loss_cli) = told(ask(&group, &["loss", "--json"])?)?;
    ensure!(serde_json::from_slice::<PromoteReport>(&again)?.missing == report.missing, "told again");
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    let pid = group.site.pid(Role::Dr).context("it runs")?;
    let (again, _) = told(ask(&group, &["loss", "--json"])?)?;
    ensure!(serde_json::from_slice::<PromoteReport>(&again)?.missing == report.missing, "told after a restart");
    let restarted = peak(pid).context("it runs")?;
    println!(
        "{lost} missing of {count}, {:.1} MiB of JSON, promoted in {took:?}; peaks in MiB: dr at rest {:.1}, after a plan {:.1}, \
         started {:.1}, promoted {:.1}, restarted {:.1}; plan {:.1}, promote {:.1}, loss --json {:.1}, loss {:.1}",
        mib(text.len() as u64),
        mib(at_rest),
        mib(planned),
        mib(started),
        mib(promoted),
        mib(restarted),
        mib(plan_cli),
        mib(promote_cli),
        mib(loss_cli),
        mib(people_cli),
    );
    let most = at_rest + lost * DR_BYTES_PER_WRITE + 8 * MIB;
    ensure!(planned <= most, "a plan takes {:.1} MiB, at most {:.1}", mib(planned), mib(most));
    let most = started + lost * DR_BYTES_PER_WRITE + 8 * MIB;
    ensure!(promoted <= most, "a promotion takes {:.1} MiB, at most {:.1}", mib(promoted), mib(most));
    let most = [plan_cli, promote_cli, loss_cli, people_cli].into_iter().max().unwrap_or(0);
    ensure!(most < 32 * MIB, "a verb takes {:.1} MiB", mib(most));
    Ok(())
}

/// Asks for a report, then for the status, and reads no more than the beginning.
fn stuck(group: &Group, request: &str) -> Result<(UnixStream, Vec<u8>)> {
    let mut stream = UnixStream::connect(group.site.path("dr.ctl"))?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut begin = vec![0; 64];
    stream.read_exact(&mut begin)?;
    stream.write_all(b"{\"verb\":\"status\"}\n")?;
    Ok((stream, begin))
}

#[test]
fn who_reads_a_report_slowly_or_dies_over_it_holds_up_nobody() -> Result<()> {
    let group = orphaned(WRITES)?;
    // One after the other: there is one promotion or plan at a time.
    let plan = r#"{"verb":"promote","plan":true,"force":false}"#;
    let planned: Vec<_> = (0..3).map(|_| stuck(&group, plan)).collect::<Result<Vec<_>>>()?;
    let report = group.site.promote(&[])?;
    check(&group, &report)?;
    let pid = group.site.pid(Role::Dr).context("it runs")?;
    let before = peak(pid).context("it runs")?;
    let mut slow: Vec<_> = (0..20).map(|_| stuck(&group, r#"{"verb":"loss"}"#)).collect::<Result<Vec<_>>>()?;
    // Some die in the middle, some are programs that do.
    slow.truncate(15);
    for _ in 0..5 {
        let mut child = ask(&group, &["loss", "--json"])?;
        child.stdout.take().context("a pipe")?.read_exact(&mut [0; 100])?;
        child.kill()?;
        child.wait()?;
    }
    for at in 0..20 {
        let begun = Instant::now();
        group.site.status(Role::Dr)?;
        group.write(Role::Dr, "db", at * 4096, 9)?;
        ensure!(begun.elapsed() < Duration::from_secs(2), "it was held up: {:?}", begun.elapsed());
    }
    let readers: Vec<Child> = (0..4).map(|_| ask(&group, &["loss", "--json"])).collect::<Result<_>>()?;
    for reader in readers {
        let told: PromoteReport = serde_json::from_slice(&told(reader)?.0)?;
        ensure!(told == report, "another report");
    }
    let grown = peak(pid).context("it runs")? - before;
    // Twenty times the text would be some 90 MiB.
    ensure!(grown < 24 * MIB, "what nobody reads takes {} bytes", grown);
    // Who was slow gets all of it in the end, and then what was asked next.
    for (mut stream, mut text) in slow.into_iter().chain(planned) {
        let mut piece = vec![0; 64 << 10];
        while text.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "the connection ended after {} bytes", text.len());
            text.extend_from_slice(&piece[..count]);
        }
        let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        let told = lines[0].strip_prefix(b"{\"ok\":").and_then(|line| line.strip_suffix(b"}"));
        let told: PromoteReport = serde_json::from_slice(told.context("not an answer")?)?;
        ensure!(told.missing == report.missing, "another report");
        ensure!(lines[1].starts_with(b"{\"ok\":{\"role\":\"primary\""), "the answers are out of order");
    }
    Ok(())
}
