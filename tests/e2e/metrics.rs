//! The metrics of every role: the numbers of status, within bounds, and after a promotion too.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::site::{Role, Site};

use crate::harness::{FAST, Group, LONG, small};

/// Sends bytes and reads the answer to its end: head and body.
fn ask(site: &Site, role: Role, request: &[u8]) -> Result<(String, String)> {
    let mut stream = UnixStream::connect(site.path(&format!("{}.metrics", role.word())))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // A refused request may end before all of it is sent.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no head: {answer:?}"))?;
    Ok((head.into(), body.into()))
}

fn get(site: &Site, role: Role, path: &str) -> Result<(String, String)> {
    ask(site, role, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
}

/// The value of the one sample that begins so.
fn sample(body: &str, begin: &str) -> Result<String> {
    let line = body.lines().find(|line| line.starts_with(begin)).with_context(|| format!("no {begin}:\n{body}"))?;
    Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
}

fn group() -> Result<Group> {
    let mut group = Group::with(FAST, small())?;
    for role in Role::ALL {
        let socket = group.site.path(&format!("{}.metrics", role.word()));
        let line = format!("metrics = \"unix:{}\"", socket.display());
        group.site.plan.settings.push((role.word(), line));
    }
    group.site.configure()?;
    group.site.start_all()?;
    Ok(group)
}

#[test]
fn every_role_serves_the_numbers_of_its_status() -> Result<()> {
    let mut group = group()?;
    group.load_for(1, Duration::from_millis(300))?;
    group.site.settle(LONG)?;
    for role in Role::ALL {
        let (head, body) = get(&group.site, role, "/metrics")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text;"), "{head}");
        ensure!(head.contains(&format!("Content-Length: {}", body.len())) && body.ends_with("\n# EOF\n"), "{head}");
        let (head, body) = get(&group.site, role, "/")?;
        ensure!(
            head.contains("text/html") && body.contains(&format!("\"role\": \"{}\"", role.word())),
            "{head}\n{body}"
        );
    }
    let (primary, dr, aux) = (group.site.primary()?, group.site.dr()?, group.site.aux()?);
    let page = get(&group.site, Role::Primary, "/metrics")?.1;
    ensure!(sample(&page, "farshore_tail_seq{")? == primary.tail_seq.to_string());
    ensure!(sample(&page, "farshore_acknowledged_writes_total{")? == primary.acknowledged_writes.to_string());
    ensure!(sample(&page, "farshore_acknowledged_bytes_total{")? == primary.acknowledged_bytes.to_string());
    ensure!(sample(&page, "farshore_fifo_memory_limit_bytes{")? == (64 << 20).to_string());
    ensure!(sample(&page, "farshore_link_up{group=\"demo\",role=\"primary\",peer=\"dr\"}")? == "1");
    let page = get(&group.site, Role::Dr, "/metrics")?.1;
    ensure!(sample(&page, "farshore_journal_seq{")? == dr.journal_seq.to_string());
    ensure!(sample(&page, "farshore_spool_limit_bytes{")? == dr.spool_limit_bytes.to_string());
    let page = get(&group.site, Role::Aux, "/metrics")?.1;
    ensure!(sample(&page, "farshore_table_bytes{")? == aux.table_bytes.to_string());
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    let page = get(&group.site, Role::Dr, "/metrics")?.1;
    ensure!(sample(&page, "farshore_epoch{group=\"demo\",role=\"primary\"}")? == "2", "{page}");
    Ok(())
}

#[test]
fn requests_and_connections_are_bounded_and_disturb_nobody() -> Result<()> {
    let mut group = group()?;
    let load = group.load(2)?;
    for role in Role::ALL {
        let silent: Vec<UnixStream> = (0..100)
            .map(|_| UnixStream::connect(group.site.path(&format!("{}.metrics", role.word()))))
            .collect::<std::io::Result<_>>()?;
        ensure!(get(&group.site, role, "/metrics")?.0.contains(" 200 "), "behind 100 who say nothing");
        drop(silent);
        ensure!(get(&group.site, role, "/other")?.0.contains(" 404 "));
        ensure!(ask(&group.site, role, b"POST /metrics HTTP/1.1\r\n\r\n")?.0.contains(" 405 "));
        ensure!(ask(&group.site, role, b"nonsense\r\n\r\n")?.0.contains(" 400 "));
        let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 9 << 10]].concat();
        ensure!(ask(&group.site, role, &long)?.0.contains(" 431 "));
        let (head, body) = ask(&group.site, role, b"HEAD /metrics HTTP/1.1\r\n\r\n")?;
        ensure!(head.contains(" 200 ") && body.is_empty(), "{head}");
    }
    std::thread::sleep(Duration::from_millis(300));
    let log = load.finish();
    ensure!(log.ends.is_empty(), "clients were disturbed: {:?}", log.ends);
    group.settle_and_compare(&log)
}
