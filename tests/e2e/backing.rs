//! Volumes on NBD servers of others: nbdkit with memory, qemu-nbd with qcow2, under primary and DR. Connections are cut,
//! servers are killed and come back, and nothing is lost, nobody hears an error, and both sides end equal.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::certs;
use farshore::cli::demo::load::{Load, Log, content};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::{Role, Scratch, find_program};
use farshore::cli::relay::line::Relay;
use farshore::cluster::status::{PromoteReport, Status};
use farshore::core::address::Address;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::{FAST, Group, LONG, MIB, SLOW, small};
use crate::listens::listens;

const WHILE: Duration = Duration::from_millis(500);

/// An NBD server of others, killed at the end.
struct Server {
    command: Vec<String>,
    socket: PathBuf,
    child: Option<Child>,
}

impl Server {
    /// `None`, with a line that says why, where a program is missing.
    fn start(command: Vec<String>, socket: PathBuf) -> Result<Option<Server>> {
        let Some(program) = find_program(&command[0]) else {
            eprintln!("skipped: {} is not installed", command[0]);
            return Ok(None);
        };
        let mut command = command;
        command[0] = program.display().to_string();
        let mut server = Server { command, socket, child: None };
        server.again()?;
        Ok(Some(server))
    }

    /// nbdkit with so many bytes of memory.
    fn nbdkit(group: &Group, name: &str, bytes: u64, more: &[&str]) -> Result<Option<Server>> {
        let socket = group.site.path(&format!("{name}.sock"));
        // One thread: nbdkit 1.32 with more of them may fail an assertion of its own (raw_send_socket) when a connection
        // ends while it answers, and takes the memory with it.
        let mut words: Vec<String> = ["nbdkit", "-f", "-t", "1", "-U"].map(String::from).into();
        words.push(socket.display().to_string());
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words.extend(["memory".to_owned(), bytes.to_string()]);
        Server::start(words, socket)
    }

    /// qemu-nbd with a qcow2 file, which is made; it may be looked at beside the role.
    fn qcow2(group: &Group, name: &str, bytes: u64, more: &[&str]) -> Result<Option<Server>> {
        let Some(tool) = find_program("qemu-img") else {
            eprintln!("skipped: qemu-img is not installed");
            return Ok(None);
        };
        let file = group.site.path(&format!("{name}.qcow2"));
        let made =
            Command::new(tool).args(["create", "-q", "-f", "qcow2"]).arg(&file).arg(bytes.to_string()).status()?;
        ensure!(made.success(), "qemu-img made nothing");
        let socket = group.site.path(&format!("{name}.sock"));
        let mut words: Vec<String> = ["qemu-nbd", "-f", "qcow2", "--persistent", "--shared=4"].map(String::from).into();
        words.extend(["--discard=unmap".into(), "-k".into(), socket.display().to_string()]);
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words.push(file.display().to_string());
        Server::start(words, socket)
    }

    /// Starts it, or starts it again.
    fn again(&mut self) -> Result<()> {
        let _ = std::fs::remove_file(&self.socket);
        let mut command = Command::new(&self.command[0]);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.socket.with_extension("log"))?;
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("starting {:?}", self.command))?);
        let until = Instant::now() + LONG;
        while !listens(&self.socket) {
            ensure!(Instant::now() < until, "{:?} does not listen", self.command);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// SIGKILL.
    fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("it runs")?;
        Ok(nix::sys::signal::kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    fn address(&self) -> Address {
        Address::Unix(self.socket.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ends a load of which nothing may have failed.
fn finish(load: Load) -> Result<Log> {
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    let failed = log.submissions.iter().find(|one| one.acked.is_none());
    ensure!(failed.is_none(), "a request failed: {failed:?}");
    ensure!(log.acked() > 20, "only {} requests were answered", log.acked());
    Ok(log)
}

/// A group with `db` of the primary on nbdkit, behind a line that can be cut, and `db` of DR on qcow2.
fn on_servers() -> Result<Option<(Group, Relay, Server, Server)>> {
    let mut group = Group::new(SLOW, "protect = \"order\"")?;
    let Some(memory) = Server::nbdkit(&group, "memory", 16 * MIB, &[])? else { return Ok(None) };
    let Some(qcow2) = Server::qcow2(&group, "qcow2", 16 * MIB, &[])? else { return Ok(None) };
    let line = Relay::start(&Address::Tcp("127.0.0.1:0".into()), &memory.address(), FAST)?;
    let at = line.address().clone();
    group.put_on(Role::Primary, "db", &at, &memory.address())?;
    group.put_on(Role::Dr, "db", &qcow2.address(), &qcow2.address())?;
    Ok(Some((group, line, memory, qcow2)))
}

#[test]
fn connections_are_cut_and_servers_killed_under_load_and_both_sides_end_equal() -> Result<()> {
    let Some((mut group, line, _memory, mut qcow2)) = on_servers()? else { return Ok(()) };
    group.site.start_all()?;
    let load = group.load(71)?;
    for round in 0..4 {
        std::thread::sleep(WHILE);
        line.reset();
        if round % 2 == 1 {
            qcow2.kill()?;
            std::thread::sleep(WHILE);
            qcow2.again()?;
        }
    }
    std::thread::sleep(WHILE);
    let mut log = finish(load)?;
    group.settle_and_compare(&log)?;
    ensure!(group.site.log(Role::Primary).contains("connected after"), "the line was never cut");
    // What stands on a server can be promoted as well, and serves from there.
    let load = group.load(72)?;
    std::thread::sleep(WHILE);
    qcow2.kill()?;
    std::thread::sleep(WHILE);
    group.site.kill(Role::Primary)?;
    log.merge(load.finish());
    qcow2.again()?;
    let report = group.site.promote(&[])?;
    group.check(&log, &report, Promise::Acknowledged)?;
    group.write(Role::Dr, "db", MIB, 7)?;
    group.site.kill(Role::Dr)?;
    qcow2.kill()?;
    qcow2.again()?;
    group.site.start(Role::Dr)?;
    let until = Instant::now() + LONG;
    let mut served = loop {
        match group.site.client(Role::Dr, "db") {
            Ok(client) => break client,
            Err(error) => ensure!(Instant::now() < until, "{error:#}\n{}", group.site.log(Role::Dr)),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(served.read_all()?[MIB as usize..][..4096] == [7; 4096], "what was acknowledged is not there");
    Ok(())
}

#[test]
fn a_server_that_is_away_is_a_pause_that_status_shows() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some(mut qcow2) = Server::qcow2(&group, "qcow2", 16 * MIB, &[])? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &qcow2.address(), &qcow2.address())?;
    group.site.start_all()?;
    let load = group.load(73)?;
    std::thread::sleep(WHILE);
    qcow2.kill()?;
    std::thread::sleep(4 * WHILE);
    let status = group.site.primary()?;
    let told = status.degraded.iter().any(|one| one.what.contains("volume db: nbd+unix") && one.what.contains("wait"));
    ensure!(told, "status does not say so: {:?}", status.degraded);
    let before = load.acked();
    std::thread::sleep(2 * WHILE);
    qcow2.again()?;
    let until = Instant::now() + LONG;
    while load.acked() < before + 200 {
        ensure!(Instant::now() < until, "nothing goes on\n{}", group.site.log(Role::Primary));
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = finish(load)?;
    group.settle_and_compare(&log)?;
    ensure!(group.site.primary()?.degraded.is_empty(), "still: {:?}", group.site.primary()?.degraded);
    let status = group.site.stop(Role::Primary)?;
    ensure!(status.success(), "it ended with {status}\n{}", group.site.log(Role::Primary));
    group.site.start(Role::Primary)?;
    let log = group.load_for(74, WHILE)?;
    ensure!(log.acked() > 0);
    group.site.settle(LONG)?;
    group.compare_files()
}

#[test]
fn roles_are_killed_together_with_the_servers_of_their_volumes() -> Result<()> {
    let mut group = Group::new(SLOW, "protect = \"order\"")?;
    let Some(mut here) = Server::qcow2(&group, "here", 16 * MIB, &[])? else { return Ok(()) };
    let Some(mut there) = Server::qcow2(&group, "there", 16 * MIB, &[])? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &here.address(), &here.address())?;
    group.put_on(Role::Dr, "db", &there.address(), &there.address())?;
    group.site.start_all()?;
    for round in 0..3 {
        let load = group.load(80 + round)?;
        std::thread::sleep(WHILE);
        // What the server had not flushed is gone with it, and the role cannot tell.
        for server in [&mut here, &mut there] {
            server.kill()?;
        }
        group.site.kill(Role::Primary)?;
        group.site.kill(Role::Dr)?;
        ensure!(load.finish().acked() > 20, "hardly anything was answered");
        for server in [&mut here, &mut there] {
            server.again()?;
        }
        group.site.start(Role::Dr)?;
        group.site.start(Role::Primary)?;
        let said = group.site.log(Role::Primary);
        ensure!(said.contains("the NBD server of a volume may have been started again since"), "{said}");
        ensure!(!said.contains("the machine lost power or was restarted"), "nobody saw that: {said}");
    }
    // Seqs leave a gap, as after a loss of power: the two sides say it all.
    group.site.settle(LONG)?;
    group.compare_files()
}

/// Servers go away, and the roles over them are told to stop: they end in time and say why, and what was flushed is there
/// afterwards.
fn roles_stop_without_their_servers(away: Away) -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some(here) = Server::qcow2(&group, "here", 16 * MIB, &[])? else { return Ok(()) };
    let Some(there) = Server::qcow2(&group, "there", 16 * MIB, &[])? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &here.address(), &here.address())?;
    group.put_on(Role::Dr, "db", &there.address(), &there.address())?;
    let mut servers = [here, there];
    group.site.start_all()?;
    let mut plan = group.load_plan(85);
    plan.volumes.iter_mut().for_each(|(_, _, bytes)| *bytes = 4 * MIB);
    let load = Load::start(&plan, &group.origin)?;
    std::thread::sleep(WHILE);
    // Flushed: what only the cache of a server has goes with it, when the role ends as well.
    let mut client = group.site.client(Role::Primary, "db")?;
    client.call(Ask::Write { offset: 12 * MIB, data: &[7; 4096], fua: true })?;
    client.close();
    servers.iter_mut().try_for_each(|server| away.goes(server))?;
    std::thread::sleep(WHILE);
    let roles = [Role::Primary, Role::Dr];
    let begun = Instant::now();
    roles.iter().try_for_each(|role| group.site.terminate(*role))?;
    for role in roles {
        let status = group.site.ended(role)?;
        let log = group.site.log(role);
        let told = log.contains("stopping waits for the server of volume db: nbd+unix")
            && log.contains("stopping without the server of volume db: nbd+unix")
            && log.contains(away.words());
        ensure!(status.code() == Some(1) && told, "{status}\n{log}");
    }
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    ensure!(load.finish().acked() > 20, "hardly anything was answered");
    servers.iter_mut().try_for_each(|server| away.returns(server))?;
    roles.iter().try_for_each(|role| group.site.start(*role))?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    let image = group.image(Role::Dr, "db")?;
    ensure!(image[12 * MIB as usize..][..4096] == [7; 4096], "what was flushed is not there");

    servers.iter_mut().try_for_each(|server| away.goes(server))?;
    group.site.terminate(Role::Primary)?;
    std::thread::sleep(WHILE);
    ensure!(group.site.runs(Role::Primary), "it did not wait\n{}", group.site.log(Role::Primary));
    let begun = Instant::now();
    let status = group.site.stop(Role::Primary)?;
    let log = group.site.log(Role::Primary);
    ensure!(status.code() == Some(1) && log.contains("told to stop a second time"), "{status}\n{log}");
    ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    Ok(())
}

#[derive(Clone, Copy)]
enum Away {
    Gone,
    Silent,
}

impl Away {
    fn goes(self, server: &mut Server) -> Result<()> {
        match self {
            Away::Gone => server.kill(),
            Away::Silent => server.signal(Signal::SIGSTOP),
        }
    }

    fn returns(self, server: &mut Server) -> Result<()> {
        match self {
            Away::Gone => server.again(),
            Away::Silent => server.signal(Signal::SIGCONT),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Away::Gone => "which is out of reach",
            Away::Silent => "which does not answer",
        }
    }
}

#[test]
fn roles_whose_servers_are_gone_end_in_time_when_they_are_told_to_stop() -> Result<()> {
    roles_stop_without_their_servers(Away::Gone)
}

#[test]
fn roles_whose_servers_are_silent_end_in_time_when_they_are_told_to_stop() -> Result<()> {
    roles_stop_without_their_servers(Away::Silent)
}

#[test]
fn servers_without_fua_and_zeroes_are_made_up_for() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let less = ["--filter=fua", "--filter=nozero", "--filter=noextents", "--filter=blocksize-policy"];
    let Some(memory) = Server::nbdkit(&group, "memory", 16 * MIB, &less)? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &memory.address(), &memory.address())?;
    group.site.start_all()?;
    ensure!(
        group.site.log(Role::Primary).contains("WRITE_ZEROES (zeroes are written)"),
        "it is not said:\n{}",
        group.site.log(Role::Primary)
    );
    let log = group.load_for(75, WHILE)?;
    group.settle_and_compare(&log)
}

#[test]
fn a_server_is_reached_over_tls_and_must_be_who_it_is_said_to_be() -> Result<()> {
    let scratch = Scratch::new("nbds")?;
    let plan =
        certs::Plan { group: "demo".into(), dir: scratch.path.join("pki"), days: 2, ca: None, hosts: Vec::new() };
    certs::make(&plan).map_err(|failure| anyhow::anyhow!("{}", failure.text))?;
    let dir = scratch.path.join("server");
    std::fs::create_dir(&dir)?;
    let files =
        [("dr/ca-cert.pem", "ca-cert.pem"), ("dr/cert.pem", "server-cert.pem"), ("dr/key.pem", "server-key.pem")];
    for (from, to) in files {
        std::fs::copy(plan.dir.join(from), dir.join(to))?;
    }
    let certificates = format!("--tls-certificates={}", dir.display());
    // Optional, so that it can be looked at beside the role.
    let words = ["--tls=on", certificates.as_str(), "--tls-verify-peer"];
    for (host, fits) in [("elsewhere.example", false), ("localhost", true)] {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let Some(memory) = Server::nbdkit(&group, "memory", 16 * MIB, &words)? else { return Ok(()) };
        let uri = format!(
            "nbds+unix:///?socket={}&tls-certificates={}&tls-hostname={host}",
            memory.socket.display(),
            plan.dir.join("client").display()
        );
        group.put_at(Role::Primary, "db", &uri, &memory.address())?;
        let begun = Instant::now();
        let checked = group.site.verb(&["check", "--role", "primary"])?;
        ensure!((checked.exit == 0) == fits, "check: {}{}", checked.out, checked.errors);
        ensure!(begun.elapsed() < Duration::from_secs(4), "nothing is tried again: {:?}", begun.elapsed());
        if fits {
            group.site.start_all()?;
            let log = group.load_for(76, WHILE)?;
            group.settle_and_compare(&log)?;
        } else {
            ensure!(checked.out.contains("valid for other names"), "check: {}", checked.out);
            ensure!(!checked.out.contains("Is the server running"), "check: {}", checked.out);
        }
    }
    Ok(())
}

#[test]
fn existing_data_on_a_server_crosses_as_far_as_it_is_allocated() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some(qcow2) = Server::qcow2(&group, "qcow2", 16 * MIB, &[])? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &qcow2.address(), &qcow2.address())?;
    let mut client = farshore::cli::demo::nbd::Client::connect(&qcow2.address(), "")?;
    for offset in [0, 5 * MIB, 16 * MIB - 65536] {
        let data = content(offset, 65536);
        client.call(farshore::cli::demo::nbd::Ask::Write { offset, data: &data, fua: true })?;
    }
    client.close();
    group.site.start_all()?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    let crossed = group.site.line.stats().bytes[0];
    ensure!(crossed < MIB, "{crossed} bytes crossed for 192 KiB of data");
    Ok(())
}

/// 8 KiB here and there of 64 GiB: some two million stretches.
#[test]
fn the_storage_of_a_fragmented_volume_is_listed_in_bounded_memory() -> Result<()> {
    let bytes = 64 << 30;
    let mut group = Group::of(FAST, small(), &[("db", bytes)])?;
    let socket = group.site.path("fragments.sock");
    let mut words: Vec<String> = ["nbdkit", "-f", "-t", "1", "-U"].map(String::from).into();
    words.push(socket.display().to_string());
    words.extend(["sparse-random", "size=64G", "percent=25", "runlength=8192"].map(String::from));
    let Some(server) = Server::start(words, socket)? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &server.address(), &server.address())?;
    for role in Role::ALL {
        group.site.launch(role)?;
    }
    let listing = |status: &Status| matches!(status, Status::Primary(p) if p.listing.is_some() || p.batch.is_some());
    group.site.wait(Role::Primary, "look for what has storage", listing)?;
    let batch = |status: &Status| matches!(status, Status::Primary(p) if p.batch.is_some());
    let Status::Primary(status) = group.site.wait_for(Role::Primary, 3 * LONG, "batch", batch)? else { return Ok(()) };
    let total = status.batch.map_or(0, |batch| batch.total_bytes);
    ensure!((bytes / 8..=bytes).contains(&total), "{total} bytes of a quarter of {bytes} in pieces");
    let pid = group.site.pid(Role::Primary).context("it runs")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel tells the peak")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    ensure!(peak < (64 + 64) << 10, "{peak} KiB, with a FIFO of 64 MiB");
    Ok(())
}

#[test]
fn a_server_that_does_not_fit_is_refused_with_what_to_do() -> Result<()> {
    let cases: [(u64, &[&str], &str); 3] = [
        (8 * MIB, &[], "has 8388608 bytes, the configuration says 16777216"),
        (16 * MIB, &["-r"], "read-only"),
        (16 * MIB, &["-x", "other"], "not present"),
    ];
    for (bytes, more, words) in cases {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let made = if more.first() == Some(&"-x") {
            Server::qcow2(&group, "server", bytes, more)?
        } else {
            Server::nbdkit(&group, "server", bytes, more)?
        };
        let Some(server) = made else { return Ok(()) };
        group.put_on(Role::Primary, "db", &server.address(), &server.address())?;
        let checked = group.site.verb(&["check", "--role", "primary"])?;
        ensure!(checked.exit == 3 && checked.out.contains(words), "check: {}{}", checked.out, checked.errors);
        group.site.launch(Role::Primary)?;
        let status = group.site.ended(Role::Primary)?;
        let log = group.site.log(Role::Primary);
        ensure!(status.code() == Some(3) && log.contains(words), "{status}\n{log}");
    }
    Ok(())
}

/// nbdkit with 16 MiB of memory behind a filter, with what that is told.
fn filtered(group: &Group, filter: &str, told: &[&str]) -> Result<Option<Server>> {
    if let Some(tool) = find_program("nbdkit")
        && !Command::new(tool).args(["--dump-plugin", filter, "memory"]).output()?.status.success()
    {
        eprintln!("skipped: nbdkit has no {filter}");
        return Ok(None);
    }
    let socket = group.site.path("filtered.sock");
    let mut words: Vec<String> = ["nbdkit", "-f", "-t", "1", "-U"].map(String::from).into();
    words.push(socket.display().to_string());
    words.extend([filter, "memory", "16M"].map(String::from));
    words.extend(told.iter().map(|word| (*word).to_owned()));
    Server::start(words, socket)
}

#[test]
fn a_server_that_insists_on_whole_blocks_is_refused_before_anything_is_written() -> Result<()> {
    for role in [Role::Primary, Role::Dr] {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let policy = ["blocksize-minimum=4096", "blocksize-error-policy=error"];
        let Some(server) = filtered(&group, "--filter=blocksize-policy", &policy)? else { return Ok(()) };
        group.put_on(role, "db", &server.address(), &server.address())?;
        let words = "insists on whole blocks of 4096 bytes";
        let checked = group.site.verb(&["check", "--role", role.word()])?;
        ensure!(checked.exit != 0 && checked.out.contains(words), "check: {}{}", checked.out, checked.errors);
        group.site.launch(role)?;
        let status = group.site.ended(role)?;
        let log = group.site.log(role);
        ensure!(status.code() == Some(3) && log.contains(words), "{status}\n{log}");
    }
    Ok(())
}

#[test]
fn block_sizes_that_a_server_can_be_used_with_are_kept_to() -> Result<()> {
    let policies: [&[&str]; 2] =
        [&["blocksize-minimum=4096"], &["blocksize-maximum=65536", "blocksize-error-policy=error"]];
    for policy in policies {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let Some(server) = filtered(&group, "--filter=blocksize-policy", policy)? else { return Ok(()) };
        group.put_on(Role::Primary, "db", &server.address(), &server.address())?;
        group.site.start_all()?;
        let mut client = group.site.client(Role::Primary, "db")?;
        client.timeout(Some(LONG))?;
        client.call(Ask::Write { offset: 512, data: &[1; 512], fua: false })?;
        client.call(Ask::Write { offset: MIB, data: &vec![2; MIB as usize], fua: true })?;
        group.site.settle(LONG)?;
        // The server itself would refuse to be read in pieces as long as those of the test.
        let (here, there) = (client.read_all()?, group.image(Role::Dr, "db")?);
        ensure!(here == there && here[512..1024] == [1; 512] && here[1 << 20..2 << 20].iter().all(|byte| *byte == 2));
        client.close();
    }
    Ok(())
}

#[test]
fn the_client_is_answered_the_error_of_its_write_before_the_role_ends() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let told = ["error-pwrite=EPERM", "error-pwrite-rate=100%"];
    let Some(server) = filtered(&group, "--filter=error", &told)? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &server.address(), &server.address())?;
    group.site.start_all()?;
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    let asked = client.call(Ask::Write { offset: 0, data: &[1; 4096], fua: false });
    let said = asked.err().map(|error| format!("{error:#}")).unwrap_or_default();
    let status = group.site.ended(Role::Primary)?;
    let log = group.site.log(Role::Primary);
    ensure!(said.contains("os error 5"), "{said:?}, {status}\n{log}");
    ensure!(status.code() == Some(1) && log.contains("mend the backing store"), "{status}\n{log}");
    Ok(())
}

/// nbdkit with a file and a cache that only a flush empties, which answers EIO to writes while there is a file `inject`.
fn forgetful(group: &Group, bytes: u64) -> Result<Option<Server>> {
    let path = |name: &str| group.site.path(name).display().to_string();
    std::fs::File::create(path("forgetful.img"))?.set_len(bytes)?;
    let socket = group.site.path("forgetful.sock");
    let mut words: Vec<String> = ["nbdkit", "-f", "-t", "1", "-U"].map(String::from).into();
    words.push(socket.display().to_string());
    words.extend(["--filter=error", "--filter=cache", "file"].map(String::from));
    words.push(path("forgetful.img"));
    words.extend(["cache=writeback", "error-pwrite=EIO", "error-pwrite-rate=100%"].map(String::from));
    words.push(format!("error-pwrite-file={}", path("inject")));
    Server::start(words, socket)
}

#[test]
fn what_was_acknowledged_and_is_refused_when_it_is_sent_again_ends_the_role_which_recovers() -> Result<()> {
    for role in [Role::Primary, Role::Dr] {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let Some(mut server) = forgetful(&group, 16 * MIB)? else { return Ok(()) };
        group.put_on(role, "db", &server.address(), &server.address())?;
        group.site.start_all()?;
        group.load_for(77, WHILE)?;
        group.site.settle(LONG)?;
        group.write(Role::Primary, "db", 0, 7)?;
        group.site.settle(LONG)?;
        server.kill()?;
        std::fs::write(group.site.path("inject"), b"")?;
        server.again()?;
        let status = group.site.ended(role)?;
        let log = group.site.log(role);
        let named =
            log.contains("volume db: nbd+unix") && log.contains("the server answers EIO. It had been acknowledged");
        ensure!(status.code() == Some(1) && named, "{}: {status}\n{log}", role.word());
        std::fs::remove_file(group.site.path("inject"))?;
        group.site.start(role)?;
        group.write(Role::Primary, "db", MIB, 8)?;
        group.site.settle(LONG)?;
        group.compare_files()?;
        let there = group.image(role, "db")?;
        ensure!(role == Role::Primary || there[..4096] == [7; 4096], "DR has lost what it had applied");
    }
    Ok(())
}

#[test]
fn a_server_that_comes_back_too_small_is_named_in_the_log_at_once() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some(mut memory) = Server::nbdkit(&group, "memory", 16 * MIB, &[])? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &memory.address(), &memory.address())?;
    group.site.start_all()?;
    memory.kill()?;
    // Attempts that fail for another reason are told of, and then spared.
    std::thread::sleep(2 * WHILE);
    *memory.command.last_mut().context("a size")? = (8 * MIB).to_string();
    memory.again()?;
    let until = Instant::now() + Duration::from_secs(15);
    while !group.site.log(Role::Primary).contains("grow it, or correct the size") {
        ensure!(Instant::now() < until, "the log does not name it:\n{}", group.site.log(Role::Primary));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Killed and started again while its server hangs, or is gone: whoever promotes need not wait for it to fence.
#[test]
fn a_dr_without_its_server_starts_fences_the_old_primary_and_serves_once_the_server_is_back() -> Result<()> {
    for hangs in [true, false] {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let Some(mut qcow2) = Server::qcow2(&group, "qcow2", 16 * MIB, &[])? else { return Ok(()) };
        group.put_on(Role::Dr, "db", &qcow2.address(), &qcow2.address())?;
        group.site.start_all()?;
        group.write(Role::Primary, "db", 0, 1)?;
        group.site.settle(LONG)?;
        if hangs {
            qcow2.signal(Signal::SIGSTOP)?
        } else {
            qcow2.kill()?
        }
        let log = group.load_for(75, WHILE)?;
        let tail = group.site.primary()?.tail_seq;
        let here = |status: &Status| matches!(status, Status::Dr(it) if it.cut_seq >= tail);
        group.site.wait(Role::Dr, "all of it in its spool", here)?;
        group.site.kill(Role::Dr)?;
        group.site.start(Role::Dr)?;
        let plan = group.site.promote(&["--plan"])?;
        ensure!(plan.refused.is_none() && plan.tail_seq.0 > 20, "{plan:?}");
        let mut ask = Command::new(crate::harness::program());
        ask.args(["promote", "--json", "--config"]).arg(group.site.config());
        let asked = ask.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // The living primary is fenced, though nothing can be applied.
        let fenced = |status: &Status| matches!(status, Status::Primary(it) if it.fenced.is_some());
        group.site.wait(Role::Primary, "the end of its epoch", fenced)?;
        let waits = |status: &Status| matches!(status, Status::Dr(it) if it.waits_for.is_some());
        group.site.wait(Role::Dr, "what the promotion waits for", waits)?;
        if hangs {
            qcow2.signal(Signal::SIGCONT)?
        } else {
            qcow2.again()?
        }
        let told = asked.wait_with_output()?;
        ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let report: PromoteReport = serde_json::from_slice(&told.stdout)?;
        ensure!(report.missing.is_empty() && log.acked() > 0, "{} missing", report.missing.len());
        group.site.kill(Role::Primary)?;
        for (name, _) in &group.site.plan.volumes {
            let until = Instant::now() + LONG;
            let mut client = loop {
                match group.site.client(Role::Dr, name) {
                    Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                    client => break client?,
                }
            };
            client.timeout(Some(LONG))?;
            ensure!(client.read_all()? == group.image(Role::Primary, name)?, "{name} is another one");
        }
    }
    Ok(())
}
