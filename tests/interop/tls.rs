//! TLS with the programs of others: libnbd and QEMU as clients, nbdkit as the server, openssl and raw bytes as those who
//! mean harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use farshore::cli::certs::{self, Plan, own_files};
use farshore::core::modes::TlsMode;
use farshore::core::peer::{Paths, PeerName, Role};
use farshore::io::tls::{Acceptor, Clients, Versions};
use farshore::nbd::protocol::*;
use farshore::nbd::region::{RegionEvent, TableTarget};

use super::harness::{Driver, MEMORY_BYTES, MemoryServer, Process, Scratch, noise, run, tool, wait_for};
use super::region::exercise;

/// Certificates of a group, and of another one by the same CA.
pub struct Site {
    scratch: Scratch,
}

impl Site {
    pub fn new() -> Site {
        let scratch = Scratch::new();
        let plan =
            |group: &str, ca| Plan { group: group.into(), dir: scratch.path(group), days: 2, ca, hosts: Vec::new() };
        certs::make(&plan("orders", None)).expect("a CA");
        certs::make(&plan("other", Some(scratch.path("orders")))).expect("signed by it");
        Site { scratch }
    }

    fn dir(&self, group: &str, role: Role) -> PathBuf {
        self.scratch.path(group).join(role.word())
    }

    fn acceptor(&self, clients: Clients) -> Acceptor {
        let dir = self.dir("orders", Role::Primary);
        let paths = Paths { ca: dir.join("ca-cert.pem"), own: Some(own_files(&dir, Role::Primary)) };
        let own = PeerName::new("orders", Role::Primary);
        Acceptor::new(&paths, Some(&own), clients, Versions::Wide).expect("certificates")
    }

    fn server(&self, mode: TlsMode, clients: Clients) -> MemoryServer {
        MemoryServer::start_with(mode, Some(self.acceptor(clients)))
    }

    /// A directory with certificates by the names that nbdkit looks for.
    pub fn of_nbdkit(&self) -> PathBuf {
        let dir = self.scratch.path("nbdkit");
        let _ = std::fs::create_dir(&dir);
        let of = self.dir("orders", Role::Dr);
        let (cert, key) = own_files(&of, Role::Dr);
        for (from, to) in [(of.join("ca-cert.pem"), "ca-cert.pem"), (cert, "server-cert.pem"), (key, "server-key.pem")]
        {
            std::fs::copy(from, dir.join(to)).expect("a copy");
        }
        dir
    }

    /// A directory with the CA alone, as a client has it that nobody asks for a certificate.
    fn ca_only(&self) -> PathBuf {
        let dir = self.scratch.path("ca-only");
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::copy(self.scratch.path("orders").join("ca-cert.pem"), dir.join("ca-cert.pem")).expect("a copy");
        dir
    }
}

pub fn port(server: &MemoryServer) -> &str {
    server.tcp.rsplit_once(':').expect("a port").1
}

fn secure_uri(server: &MemoryServer, certificates: &Path) -> String {
    format!("nbds://localhost:{}/db?tls-certificates={}", port(server), certificates.display())
}

pub fn fails(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("it was found");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(!status.success(), "{command:?} succeeds\n{text}");
    text
}

#[test]
fn libnbd_copies_both_ways_over_tls_and_is_refused_without_it() {
    let Some(mut info) = tool("nbdinfo").filter(|_| tool("nbdcopy").is_some()) else { return };
    let site = Site::new();
    let server = site.server(TlsMode::Required, Clients::Anybody);
    let uri = secure_uri(&server, &site.ca_only());
    let said = run(info.args(["--json", &uri]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("\"TLS\": true"), "{said}");
    let (image, copied) = (site.scratch.path("image"), site.scratch.path("copied"));
    for (seed, bytes) in [(4, "--request-size=262144"), (5, "--request-size=33554432")] {
        let nbdcopy = || tool("nbdcopy").expect("found above");
        std::fs::write(&image, noise(seed, MEMORY_BYTES)).expect("an image");
        run(nbdcopy().args(["--flush", bytes]).arg(&image).arg(&uri));
        run(nbdcopy().arg(bytes).arg(&uri).arg(&copied));
        assert!(std::fs::read(&image).expect("read") == std::fs::read(&copied).expect("read"));
    }
    let said = fails(tool("nbdinfo").expect("found above").arg(format!("nbd://localhost:{}/db", port(&server))));
    assert!(said.to_lowercase().contains("tls"), "{said}");
    // A unix socket is guarded by the permissions of its file: TLS is offered there, and not required.
    run(tool("nbdinfo").expect("found above").arg(server.uri("db")));
    let unix = format!(
        "nbds+unix:///db?socket={}&tls-certificates={}&tls-hostname=localhost",
        server.socket.display(),
        site.ca_only().display()
    );
    let said = run(tool("nbdinfo").expect("found above").args(["--json", &unix]));
    assert!(String::from_utf8_lossy(&said.stdout).contains("\"TLS\": true"));
}

#[test]
fn a_client_that_does_not_know_the_ca_goes_away_and_one_that_insists_is_refused_where_tls_is_off() {
    if tool("nbdinfo").is_none() {
        return;
    }
    let (site, elsewhere) = (Site::new(), Site::new());
    let server = site.server(TlsMode::Optional, Clients::Anybody);
    fails(tool("nbdinfo").expect("found").arg(secure_uri(&server, &elsewhere.ca_only())));
    run(tool("nbdinfo").expect("found").arg(format!("nbd://localhost:{}/db", port(&server))));
    run(tool("nbdinfo").expect("found").arg(secure_uri(&server, &site.ca_only())));
    let plain = MemoryServer::start();
    fails(tool("nbdinfo").expect("found").arg(secure_uri(&plain, &site.ca_only())));
}

#[test]
fn clients_have_to_show_a_certificate_of_the_group_where_that_is_asked_for() {
    if tool("nbdinfo").is_none() {
        return;
    }
    let site = Site::new();
    let server = site.server(TlsMode::Required, Clients::OfGroup("orders".into()));
    run(tool("nbdinfo").expect("found").arg(secure_uri(&server, &site.dir("orders", Role::Client))));
    fails(tool("nbdinfo").expect("found").arg(secure_uri(&server, &site.ca_only())));
    fails(tool("nbdinfo").expect("found").arg(secure_uri(&server, &site.dir("other", Role::Client))));
}

/// Has qemu-io write at an odd place of an image, and read that and what is before it.
pub fn write_and_read(io: &mut Command) {
    for command in ["write -P 0x5a 4097 300001", "flush", "read -P 0x5a 4097 300001", "read -P 0 0 4097"] {
        io.args(["-c", command]);
    }
    run(io);
}

#[test]
fn qemu_writes_and_reads_over_tls() {
    let (Some(mut io), Some(mut convert)) = (tool("qemu-io"), tool("qemu-img")) else { return };
    let site = Site::new();
    let server = site.server(TlsMode::Required, Clients::OfGroup("orders".into()));
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={}",
        site.dir("orders", Role::Client).display()
    );
    let image =
        format!("driver=nbd,host=localhost,port={},export=db,tls-creds=tls0,tls-hostname=localhost", port(&server));
    write_and_read(io.args(["--object", &credentials, "--image-opts", &image]));
    let copied = site.scratch.path("copied");
    run(convert.args(["convert", "--object", &credentials, "--image-opts", "-O", "raw", &image]).arg(&copied));
    let copied = std::fs::read(copied).expect("read");
    assert_eq!((copied.len(), copied[4096], copied[4097], copied[304_097]), (MEMORY_BYTES, 0, 0x5a, 0x5a));
    assert_eq!(copied[304_098], 0);
}

/// A plain connection past the greeting.
pub fn dial(server: &MemoryServer) -> TcpStream {
    let mut stream = TcpStream::connect(&server.tcp).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).expect("a greeting");
    stream.write_all(&3u32.to_be_bytes()).expect("sent");
    stream
}

/// A connection to which TLS was granted.
pub fn granted(server: &MemoryServer) -> TcpStream {
    let mut stream = dial(server);
    grant(&mut stream).expect("an answer");
    stream
}

/// Has TLS granted to a connection past the greeting.
pub fn grant(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    stream.write_all(&OptionHead::encode(OPT_STARTTLS, 0))?;
    let mut raw = [0; OPTION_REPLY_BYTES];
    stream.read_exact(&mut raw)?;
    assert_eq!(OptionReplyHead::decode(&raw).reply, REP_ACK);
    Ok(())
}

#[test]
fn garbage_and_half_a_handshake_end_and_hold_up_nobody() {
    let site = Site::new();
    let server = site.server(TlsMode::Required, Clients::Anybody);
    let mut rest = Vec::new();
    let mut garbage = granted(&server);
    garbage.write_all(&noise(9, 100_000)).expect("sent");
    let _ = garbage.read_to_end(&mut rest);
    assert!(rest.len() < 100, "an alert at the most: {rest:02x?}");
    let mut half = granted(&server);
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7]).expect("the beginning of a ClientHello");
    let begun = Instant::now();
    if let Some(mut info) = tool("nbdinfo") {
        run(info.arg(secure_uri(&server, &site.ca_only())));
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for it");
    }
    rest.clear();
    let _ = half.read_to_end(&mut rest);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(15), "it is ended in time: {took:?}");
    assert!(rest.is_empty());
    // A client of TLS from the first byte on, which NBD does not have.
    if let Some(mut openssl) = tool("openssl") {
        let said = fails(openssl.args(["s_client", "-connect", &server.tcp]));
        assert!(!said.contains("BEGIN CERTIFICATE"), "{said}");
        let mut info = tool("nbdinfo").expect("libnbd is installed where openssl is tried");
        run(info.arg(secure_uri(&server, &site.ca_only())));
    }
}

#[test]
fn an_export_that_is_named_without_tls_is_not_answered() {
    let site = Site::new();
    let server = site.server(TlsMode::Required, Clients::Anybody);
    let mut stream = dial(&server);
    stream.write_all(&OptionHead::encode(OPT_EXPORT_NAME, 2)).expect("sent");
    stream.write_all(b"db").expect("sent");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:02x?}");
}

/// nbdkit with certificates of ours, on a unix socket.
fn nbdkit(site: &Site, socket: &Path, tls: &str) -> Option<Process> {
    let mut nbdkit = tool("nbdkit")?;
    let dir = site.of_nbdkit();
    nbdkit.arg("-f").arg("-U").arg(socket).arg(format!("--tls={tls}"));
    nbdkit.arg(format!("--tls-certificates={}", dir.display())).arg("--tls-verify-peer").args(["memory", "32M"]);
    let process = Process(nbdkit.spawn().expect("nbdkit"));
    wait_for(socket);
    Some(process)
}

#[test]
fn nbdkit_with_tls_carries_the_table() {
    let (site, scratch) = (Site::new(), Scratch::new());
    let socket = scratch.path("s");
    let Some(_server) = nbdkit(&site, &socket, "require") else { return };
    let uri = |dir: &Path, host: &str| {
        let text =
            format!("nbds+unix:///?socket={}&tls-certificates={}&tls-hostname={host}", socket.display(), dir.display());
        TableTarget::Nbd(text.parse().expect("a URI"))
    };
    let client = site.dir("orders", Role::Client);
    exercise(&uri(&client, "localhost"));
    let refused = |target: &TableTarget| match Driver::open(target, 1, 7).event() {
        RegionEvent::Failed { text, .. } => text,
        other => panic!("{other:?}"),
    };
    let text = refused(&uri(&client, "elsewhere.example"));
    assert!(text.contains("valid for other names"), "{text}");
    let text = refused(&uri(&Site::new().dir("orders", Role::Client), "localhost"));
    assert!(text.contains("not signed by the CA in"), "{text}");
    let plain = format!("nbd+unix:///?socket={}", socket.display());
    let text = refused(&TableTarget::Nbd(plain.parse().expect("a URI")));
    assert!(text.contains("TLS") || text.contains("tls"), "{text}");
}

#[test]
fn a_server_without_tls_is_not_used_by_who_wants_it() {
    let site = Site::new();
    let plain = MemoryServer::start();
    let uri = secure_uri(&plain, &site.dir("orders", Role::Client));
    let target = TableTarget::Nbd(uri.parse().expect("a URI"));
    let RegionEvent::Failed { text, .. } = Driver::open(&target, 1, 7).event() else { panic!("it is refused") };
    assert!(text.contains("offers no TLS"), "{text}");
    let server = site.server(TlsMode::Required, Clients::OfGroup("orders".into()));
    let uri = secure_uri(&server, &site.dir("orders", Role::Client));
    exercise(&TableTarget::Nbd(uri.parse().expect("a URI")));
}
