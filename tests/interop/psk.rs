//! TLS with shared keys, by the programs of others: libnbd, QEMU and openssl as clients, and those who mean harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use farshore::core::modes::{NO_SHARED_KEYS, TlsMode};
use farshore::io::tls::Acceptor;
use farshore::nbd::region::{RegionEvent, TableTarget};

use super::harness::{Driver, MEMORY_BYTES, MemoryServer, Process, Scratch, noise, run, tool, wait_for};
use super::region::exercise;
use super::tls::{dial, fails, granted, port, write_and_read};

const KEY: &str = "4f1d7f1a0b9c2e3d4c5b6a798897a6b5c4d3e2f101112131415161718191a1b1";
const OTHER: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Files of keys: the server's, and those that clients have.
struct Site(Scratch);

impl Site {
    /// `None` with a reason where this build has no shared keys.
    fn new() -> Option<Site> {
        if let Some(why) = NO_SHARED_KEYS {
            eprintln!("skipped: {why}");
            return None;
        }
        let site = Site(Scratch::new());
        site.server_keys(&format!("alice:{KEY}\nbob:{OTHER}\n"));
        Some(site)
    }

    fn server_keys(&self, text: &str) {
        write(&self.0.path("server.psk"), text);
    }

    fn server(&self, mode: TlsMode) -> MemoryServer {
        let acceptor = Acceptor::with_keys(&self.0.path("server.psk")).expect("usable keys");
        MemoryServer::start_with(mode, Some(acceptor))
    }

    /// A directory with `keys.psk`, as QEMU wants it.
    fn client(&self, name: &str, key: &str) -> PathBuf {
        let dir = self.0.path(&format!("{name}-{}", &key[..4]));
        std::fs::create_dir_all(&dir).expect("a directory");
        write(&dir.join("keys.psk"), &format!("{name}:{key}\n"));
        dir
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("set");
}

fn uri(server: &MemoryServer, name: &str, client: &Path) -> String {
    format!("nbds://{name}@localhost:{}/db?tls-psk-file={}", port(server), client.join("keys.psk").display())
}

fn info() -> Command {
    tool("nbdinfo").expect("found before")
}

#[test]
fn libnbd_copies_both_ways_with_a_shared_key_and_is_refused_without_it() {
    let (Some(site), Some(_), Some(_)) = (Site::new(), tool("nbdinfo"), tool("nbdcopy")) else { return };
    let server = site.server(TlsMode::Required);
    let uri = uri(&server, "alice", &site.client("alice", KEY));
    let said = run(info().args(["--json", &uri]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("\"TLS\": true"), "{said}");
    let (image, copied) = (site.0.path("image"), site.0.path("copied"));
    for (seed, bytes) in [(4, "--request-size=262144"), (5, "--request-size=33554432")] {
        let nbdcopy = || tool("nbdcopy").expect("found above");
        std::fs::write(&image, noise(seed, MEMORY_BYTES)).expect("an image");
        run(nbdcopy().args(["--flush", bytes]).arg(&image).arg(&uri));
        run(nbdcopy().arg(bytes).arg(&uri).arg(&copied));
        assert!(std::fs::read(&image).expect("read") == std::fs::read(&copied).expect("read"));
    }
    let said = fails(info().arg(format!("nbd://localhost:{}/db", port(&server))));
    assert!(said.to_lowercase().contains("tls"), "{said}");
    // A unix socket is guarded by the permissions of its file: TLS is offered there, and not required.
    run(info().arg(server.uri("db")));
    let keys = site.client("alice", KEY).join("keys.psk");
    let unix = format!("nbds+unix://alice@/db?socket={}&tls-psk-file={}", server.socket.display(), keys.display());
    let said = run(info().args(["--json", &unix]));
    assert!(String::from_utf8_lossy(&said.stdout).contains("\"TLS\": true"));
}

#[test]
fn who_has_another_key_or_no_name_is_refused_and_hears_the_same() {
    let (Some(site), Some(_)) = (Site::new(), tool("nbdinfo")) else { return };
    for mode in [TlsMode::Optional, TlsMode::Required] {
        let server = site.server(mode);
        let heard = |name: &str, key: &str| {
            let said = fails(info().arg(uri(&server, name, &site.client(name, key))));
            said.replace(name, "NAME").replace(&key[..4], "KEY")
        };
        let (wrong, unknown) = (heard("alice", OTHER), heard("mallory", KEY));
        assert_eq!(wrong, unknown);
        run(info().arg(uri(&server, "bob", &site.client("bob", OTHER))));
        // Who shows certificates, and nothing else, has no key.
        let plain = format!("nbds://localhost:{}/db", port(&server));
        fails(info().arg(&plain));
        let plain = info().arg(plain.replace("nbds", "nbd")).output().expect("it was found");
        assert_eq!(plain.status.success(), mode == TlsMode::Optional, "TLS is asked of everybody, or offered");
    }
    let off = MemoryServer::start();
    fails(info().arg(uri(&off, "alice", &site.client("alice", KEY))));
}

#[test]
fn keys_change_while_the_server_runs() {
    let (Some(site), Some(_)) = (Site::new(), tool("nbdinfo")) else { return };
    let server = site.server(TlsMode::Required);
    let (old, new) = (site.client("alice", KEY), site.client("carol", OTHER));
    run(info().arg(uri(&server, "alice", &old)));
    fails(info().arg(uri(&server, "carol", &new)));
    site.server_keys(&format!("carol:{OTHER}\n"));
    run(info().arg(uri(&server, "carol", &new)));
    fails(info().arg(uri(&server, "alice", &old)));
    site.server_keys("damaged\n");
    run(info().arg(uri(&server, "carol", &new)));
}

#[test]
fn qemu_writes_and_reads_with_a_shared_key() {
    let (Some(site), Some(mut io), Some(_)) = (Site::new(), tool("qemu-io"), tool("qemu-img")) else { return };
    let server = site.server(TlsMode::Required);
    let credentials = |name: &str, key: &str| {
        let dir = site.client(name, key);
        format!("tls-creds-psk,id=tls0,endpoint=client,username={name},dir={}", dir.display())
    };
    let image = format!("driver=nbd,host=localhost,port={},export=db,tls-creds=tls0", port(&server));
    let good = credentials("alice", KEY);
    write_and_read(io.args(["--object", &good, "--image-opts", &image]));
    let (from, copied) = (site.0.path("from"), site.0.path("copied"));
    std::fs::write(&from, noise(6, MEMORY_BYTES)).expect("an image");
    let img = || tool("qemu-img").expect("found above");
    let convert = |from: &str, to: &str| {
        run(img().args(["convert", "-n", "--object", &good, "--image-opts", "--target-image-opts"]).args([from, to]));
    };
    let file = |path: &Path| format!("driver=raw,file.driver=file,file.filename={}", path.display());
    convert(&file(&from), &format!("driver=raw,file.driver=nbd,{}", of_file(&image)));
    std::fs::write(&copied, vec![0; MEMORY_BYTES]).expect("room");
    convert(&image, &file(&copied));
    assert!(std::fs::read(&from).expect("read") == std::fs::read(&copied).expect("read"));
    for bad in [credentials("alice", OTHER), credentials("mallory", KEY)] {
        fails(img().args(["info", "--object", &bad, "--image-opts", &image]));
    }
}

/// Options of a driver as those of the file below another one.
fn of_file(options: &str) -> String {
    options.split(',').skip(1).map(|option| format!("file.{option}")).collect::<Vec<_>>().join(",")
}

#[test]
fn garbage_and_half_a_handshake_end_and_hold_up_nobody() {
    let Some(site) = Site::new() else { return };
    let server = site.server(TlsMode::Required);
    let works = || {
        if tool("nbdinfo").is_some() {
            run(info().arg(uri(&server, "alice", &site.client("alice", KEY))));
        }
    };
    let mut rest = Vec::new();
    let mut garbage = granted(&server);
    garbage.write_all(&noise(9, 100_000)).expect("sent");
    let _ = garbage.read_to_end(&mut rest);
    assert!(rest.len() < 100, "an alert at the most: {rest:02x?}");
    // Slowly, and without an end.
    let mut slow = granted(&server);
    let hello = [22u8, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7];
    let begun = Instant::now();
    for byte in hello {
        slow.write_all(&[byte]).expect("sent");
    }
    works();
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for it");
    while begun.elapsed() < Duration::from_secs(20) && slow.write_all(&[7]).is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(15), "it is ended in time: {took:?}");
    works();
}

#[test]
fn openssl_itself_gets_through_starttls_with_1_3_and_1_2_and_not_without_forward_secrecy() {
    let (Some(site), Some(_)) = (Site::new(), tool("openssl")) else { return };
    let server = site.server(TlsMode::Required);
    let works = |arguments: &[&str]| {
        let stream = granted(&server);
        let carried = Carried::start(stream);
        let mut openssl = tool("openssl").expect("found above");
        openssl.args(["s_client", "-connect", &carried.address, "-psk_identity", "alice", "-psk", KEY]);
        let output = openssl.args(arguments).stdin(std::process::Stdio::null()).output().expect("it was found");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("Cipher is ") && !said.contains("Cipher is (NONE)")
    };
    assert!(works(&["-tls1_3"]));
    assert!(works(&["-tls1_2", "-cipher", "ECDHE-PSK-CHACHA20-POLY1305"]));
    assert!(works(&["-tls1_2", "-cipher", "DHE-PSK-AES256-GCM-SHA384"]));
    for weak in ["PSK-AES256-GCM-SHA384", "RSA-PSK-AES256-GCM-SHA384", "ECDHE-PSK-AES256-CBC-SHA384"] {
        assert!(!works(&["-tls1_2", "-cipher", weak]), "{weak}");
    }
    assert!(!works(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]));
}

/// Why our client does not get through.
fn refused(target: &str) -> String {
    match Driver::open(&TableTarget::Nbd(target.parse().expect("a URI")), 1, 7).event() {
        RegionEvent::Failed { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn our_own_client_shows_its_key_to_our_server() {
    let Some(site) = Site::new() else { return };
    let server = site.server(TlsMode::Required);
    exercise(&TableTarget::Nbd(uri(&server, "alice", &site.client("alice", KEY)).parse().expect("a URI")));
    for (name, key) in [("alice", OTHER), ("mallory", KEY)] {
        let text = refused(&uri(&server, name, &site.client(name, key)));
        assert!(text.contains("the server does not take the key of") && text.contains(name), "{text}");
    }
    let plain = MemoryServer::start();
    let text = refused(&uri(&plain, "alice", &site.client("alice", KEY)));
    assert!(text.contains("offers no TLS"), "{text}");
}

#[test]
fn nbdkit_with_shared_keys_carries_the_table_and_one_with_certificates_is_not_believed() {
    let (Some(site), Some(_)) = (Site::new(), tool("nbdkit")) else { return };
    let socket = |name: &str| site.0.path(name);
    let start = |name: &str, arguments: &[String]| {
        let mut nbdkit = tool("nbdkit").expect("found above");
        nbdkit.arg("-f").arg("-U").arg(socket(name)).arg("--tls=require").args(arguments).args(["memory", "32M"]);
        let process = Process(nbdkit.spawn().expect("nbdkit"));
        wait_for(&socket(name));
        process
    };
    let uri = |name: &str, user: &str, client: &Path| {
        let (socket, file) = (socket(name), client.join("keys.psk"));
        format!("nbds+unix://{user}@/?socket={}&tls-psk-file={}", socket.display(), file.display())
    };
    let _server = start("k", &[format!("--tls-psk={}", site.0.path("server.psk").display())]);
    exercise(&TableTarget::Nbd(uri("k", "alice", &site.client("alice", KEY)).parse().expect("a URI")));
    for (name, key) in [("alice", OTHER), ("mallory", KEY)] {
        // GnuTLS of some versions ends the connection without an alert.
        let text = refused(&uri("k", name, &site.client(name, key)));
        let told = ["the server does not take the key of", "does not have the shared key shown to it"];
        assert!(told.iter().any(|part| text.contains(part)) && text.contains(name), "{text}");
    }
    let certified = super::tls::Site::new();
    let _server = start("c", &[format!("--tls-certificates={}", certified.of_nbdkit().display())]);
    let text = refused(&uri("c", "alice", &site.client("alice", KEY)));
    assert!(text.contains("the server does not take the key of"), "{text}");
}

/// A port that leads to a connection on which TLS begins: openssl knows no STARTTLS of NBD.
struct Carried {
    address: String,
}

impl Carried {
    fn start(server: TcpStream) -> Carried {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens").to_string();
        std::thread::spawn(move || {
            let Ok((client, _)) = listener.accept() else { return };
            let (Ok(from_server), Ok(to_client)) = (server.try_clone(), client.try_clone()) else { return };
            let back = std::thread::spawn(move || copy(from_server, to_client));
            copy(client, server);
            let _ = back.join();
        });
        Carried { address }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_plain_client_hears_that_tls_is_required() {
    let Some(site) = Site::new() else { return };
    let server = site.server(TlsMode::Required);
    let mut stream = dial(&server);
    use farshore::nbd::protocol::*;
    stream.write_all(&OptionHead::encode(OPT_LIST, 0)).expect("sent");
    let mut raw = [0; OPTION_REPLY_BYTES];
    stream.read_exact(&mut raw).expect("an answer");
    assert_eq!(OptionReplyHead::decode(&raw).reply, REP_ERR_TLS_REQD);
}
