//! Clients that hold places and memory, and files that somebody else touched while a role was stopped.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::Role;
use farshore::core::address::Address;
use farshore::nbd::protocol::*;
use nix::sys::signal::Signal;

use super::harness::{FAST, Group, LONG};

/// A group whose primary listens on a port of loopback as well; which one.
fn with_port() -> Result<(Group, String)> {
    let mut group = Group::new(FAST, "")?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let Address::Unix(socket) = group.site.export(Role::Primary) else { anyhow::bail!("a unix socket is expected") };
    let config = group.site.config();
    let text = std::fs::read_to_string(&config)?;
    let before = format!("listen = [\"unix:{}\"", socket.display());
    ensure!(text.contains(&before), "{before} is not in {text}");
    // As a URI, too.
    std::fs::write(
        &config,
        text.replace(&before, &format!("listen = [\"nbd://{free}\", \"unix:{}\"", socket.display())),
    )?;
    group.site.start_all()?;
    Ok((group, free))
}

/// Past the handshake, by the shortest way there is.
fn transmitting(place: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(place)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x02db"].concat())?;
    stream.read_exact(&mut [0; GREETING_BYTES + EXPORT_NAME_REPLY_BYTES])?;
    Ok(stream)
}

#[test]
fn idle_clients_of_one_peer_lock_nobody_out() -> Result<()> {
    let (group, place) = with_port()?;
    let idle = (0..256).map(|_| transmitting(&place)).collect::<Result<Vec<_>>>()?;
    group.write(Role::Primary, "db", 0, 1).context("by the unix socket")?;
    let mut late = transmitting(&place).context("of the same peer, which has connections that asked for nothing")?;
    late.write_all(&RequestHead::encode(0, CMD_READ, 1, 0, 4096))?;
    late.read_exact(&mut [0; REPLY_BYTES + 4096])?;
    let degraded = group.site.primary()?.degraded;
    let says = |it: &str| it.contains("places for NBD clients run out") && it.contains("192 of them by 127.0.0.1");
    ensure!(degraded.iter().any(|it| says(&it.what)), "{degraded:?}");
    drop(idle);
    Ok(())
}

/// Who has asked for something once, and only holds its place since, is no obstacle for ever; who made use of it stays.
#[test]
fn idle_clients_that_asked_for_something_lock_nobody_of_their_address_out() -> Result<()> {
    let (group, place) = with_port()?;
    let read = |stream: &mut TcpStream| -> Result<()> {
        stream.write_all(&RequestHead::encode(0, CMD_READ, 1, 0, 512))?;
        Ok(stream.read_exact(&mut [0; REPLY_BYTES + 512])?)
    };
    let mut guest = transmitting(&place)?;
    (0..20).try_for_each(|_| read(&mut guest))?;
    let mut hogs = (0..191).map(|_| transmitting(&place)).collect::<Result<Vec<_>>>()?;
    let served = Instant::now();
    hogs.iter_mut().try_for_each(read)?;
    let early = transmitting(&place);
    let just = served.elapsed() < Duration::from_secs(1);
    ensure!(!just || early.is_err(), "they have all places that one peer may have, and have just been served");
    let end = Instant::now() + Duration::from_secs(6);
    let mut late = loop {
        match transmitting(&place) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(error).context("a newcomer after six seconds"),
        }
    };
    read(&mut late).context("of the newcomer")?;
    for _ in 0..20 {
        read(&mut transmitting(&place)?).context("of one more")?;
    }
    read(&mut guest).context("of who was here before, idle for as long, and had made use of its place")?;
    let degraded = group.site.primary()?.degraded;
    let says = |it: &str| it.contains("since then ") && it.contains(" were ended for newer ones, and ");
    ensure!(degraded.iter().any(|it| says(&it.what)), "{degraded:?}");
    Ok(())
}

/// Whose first request has arrived is not one that has asked for nothing, also while nobody has read it.
#[test]
fn a_request_that_has_arrived_is_carried_out_however_many_come() -> Result<()> {
    let (group, place) = with_port()?;
    let signal = |signal| -> Result<()> {
        let pid = group.site.pid(Role::Primary).context("it runs")?;
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), signal)?)
    };
    let mut clients = (0..192).map(|_| transmitting(&place)).collect::<Result<Vec<_>>>()?;
    signal(Signal::SIGSTOP)?;
    // They wait to be accepted, and what is asked comes behind them.
    let late = (0..40).map(|_| TcpStream::connect(&place)).collect::<Result<Vec<_>, _>>();
    let asked = clients.iter_mut().try_for_each(|it| it.write_all(&RequestHead::encode(0, CMD_READ, 1, 0, 512)));
    signal(Signal::SIGCONT)?;
    asked?;
    let _late = late?;
    for (at, client) in clients.iter_mut().enumerate() {
        client.read_exact(&mut [0; REPLY_BYTES + 512]).with_context(|| format!("the answer to client {at}"))?;
    }
    Ok(())
}

/// A place that its client does nothing with, in the middle of a request, is one for others some time.
#[test]
fn who_does_not_go_on_with_a_request_locks_nobody_of_his_address_out() -> Result<()> {
    let (_group, place) = with_port()?;
    let mut stuck = Vec::new();
    for cookie in 0..192u64 {
        let mut stream = transmitting(&place)?;
        let (command, length, payload) = match cookie % 3 {
            0 => (CMD_WRITE, 32 << 20, 1000),
            1 => (CMD_WRITE, 4096, 1000),
            // More than sockets hold, and never taken.
            _ => (CMD_READ, 32 << 20, 0),
        };
        // One has asked for something before.
        stream.write_all(&RequestHead::encode(0, CMD_READ, cookie, 0, 512))?;
        stream.read_exact(&mut [0; REPLY_BYTES + 512])?;
        stream.write_all(&RequestHead::encode(0, command, cookie, 0, length))?;
        stream.write_all(&vec![7; payload])?;
        stuck.push(stream);
    }
    let begun = Instant::now();
    loop {
        let late = transmitting(&place);
        if let Ok(mut late) = late {
            late.write_all(&RequestHead::encode(0, CMD_READ, 1, 0, 4096))?;
            late.read_exact(&mut [0; REPLY_BYTES + 4096])?;
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(15), "it is locked out: {late:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(stuck);
    Ok(())
}

#[test]
fn writes_that_trickle_keep_no_other_one_waiting() -> Result<()> {
    let (group, place) = with_port()?;
    let mut trickles = Vec::new();
    for (cookie, length) in (0..120u64).zip([512 << 10, 64 << 10, 128 << 10].into_iter().cycle()) {
        let mut stream = transmitting(&place)?;
        stream.write_all(&RequestHead::encode(0, CMD_WRITE, cookie, 1 << 20, length))?;
        stream.write_all(&[7; 1000])?;
        trickles.push(stream);
    }
    let begun = Instant::now();
    let mut worst = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(3) {
        let before = Instant::now();
        group.write(Role::Primary, "db", 4096, 2)?;
        let mut client = group.site.client(Role::Primary, "db")?;
        for length in [128 << 10, 1 << 20] {
            client.call(Ask::Write { offset: 1 << 20, data: &vec![3; length], fua: false })?;
        }
        client.close();
        worst = worst.max(before.elapsed());
    }
    ensure!(worst < Duration::from_secs(1), "a write took {worst:?}");
    Ok(())
}

#[test]
fn a_file_that_was_written_to_between_a_stop_and_a_start_is_told() -> Result<()> {
    let mut group = Group::started(FAST, "")?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.settle(LONG)?;
    let told = |group: &Group| -> Result<bool> {
        Ok(group.site.primary()?.degraded.iter().any(|it| it.what.contains("written to by somebody else")))
    };
    let db = group.site.backing(Role::Primary, "db");
    if rustix::fs::getxattr(&db, "user.farshore.volume", &mut [0u8; 256][..]).is_err() {
        println!("skipped: no attributes on this file system");
        return Ok(());
    }
    ensure!(std::fs::metadata(&db)?.permissions().mode() & 0o027 == 0, "it is for its owner, and its group to read");
    group.site.stop(Role::Primary)?;
    group.site.start(Role::Primary)?;
    ensure!(!told(&group)?, "nobody has");
    group.site.kill(Role::Primary)?;
    touch(&db)?;
    group.site.start(Role::Primary)?;
    ensure!(!told(&group)?, "after a crash nobody knows");
    group.site.stop(Role::Primary)?;
    touch(&db)?;
    for _ in 0..2 {
        let check = group.site.verb(&["check", "--role", "primary"])?;
        let said = check.out;
        ensure!(said.contains("written to by somebody else since this role stopped: it is used as it is"), "{said}");
    }
    group.site.start(Role::Primary)?;
    ensure!(told(&group)?);
    Ok(())
}

#[test]
fn halves_of_requests_on_the_control_socket_stop_nobody() -> Result<()> {
    let mut group = Group::started(FAST, "")?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.settle(LONG)?;
    for role in Role::ALL {
        let control = group.site.path(&format!("{}.ctl", role.word()));
        let halves = (0..1500).map(|_| {
            let mut half = UnixStream::connect(&control)?;
            // Whoever has given way hears of it here.
            let _ = half.write_all(b"{\"");
            Ok(half)
        });
        let mut halves = halves.collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        let status = group.site.verb(&["status", "--json"])?;
        ensure!(
            status.exit == 0 && begun.elapsed() < Duration::from_secs(4),
            "{} {:?}",
            status.errors,
            begun.elapsed()
        );
        group.write(Role::Primary, "db", 0, 2)?;
        // The last of them kept its place until it took too long.
        let mut last = halves.pop().expect("there are many");
        last.set_read_timeout(Some(Duration::from_secs(20)))?;
        ensure!(last.read(&mut [0])? == 0 && begun.elapsed() > Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    Ok(())
}

/// Its first byte, anew.
fn touch(path: &Path) -> Result<()> {
    std::fs::File::options().write(true).open(path)?.write_all(&[1])?;
    Ok(())
}

#[test]
fn a_directory_below_one_that_is_missing_is_not_made() -> Result<()> {
    let mut group = Group::new(FAST, "")?;
    let config = group.site.config();
    let text = std::fs::read_to_string(&config)?;
    let dir = group.site.plan.dir.join("dr");
    let below = group.site.plan.dir.join("mount/of/dr");
    let (old, new) = (format!("dir = \"{}\"", dir.display()), format!("dir = \"{}\"", below.display()));
    ensure!(text.contains(&old), "{old} is not in {text}");
    std::fs::write(&config, text.replace(&old, &new))?;
    ensure!(group.site.start(Role::Dr).is_err(), "it starts");
    let log = group.site.log(Role::Dr);
    ensure!(log.contains("mount the file system"), "{log}");
    ensure!(!group.site.plan.dir.join("mount").exists());
    Ok(())
}
