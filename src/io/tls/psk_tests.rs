//! Shared keys: between a reactor and a client of OpenSSL, and between the engine and such a client without a socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openssl::ssl::{ErrorCode, Ssl, SslContext, SslMethod, SslStream, SslVersion};

use super::psk::{SSL_key_update, Wire};
use super::tests::{listening, pattern, turn};
use super::*;
use crate::io::Event;
use crate::limits::{TLS_HANDSHAKE_BYTES_MAX, TLS_HANDSHAKES_MAX};

const KEY: &str = "4f1d7f1a0b9c2e3d4c5b6a798897a6b5c4d3e2f101112131415161718191a1b1";
const OTHER: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A file of keys, of its own for each test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> File {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("farshore-psk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let file = File(std::env::temp_dir().join(name));
        file.write(text, 0o600);
        file
    }

    fn good() -> File {
        File::new(&format!("# clients of orders\n\nalice:{KEY}\r\nbob:{OTHER}\n"))
    }

    fn write(&self, text: &str, mode: u32) {
        std::fs::write(&self.0, text).expect("written");
        std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::with_keys(&self.0).expect("usable keys")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// A client of OpenSSL; without ciphers it speaks TLS 1.3, with them 1.2.
fn client(name: &str, key: &str, ciphers: Option<&str>) -> Ssl {
    let mut builder = SslContext::builder(SslMethod::tls_client()).expect("OpenSSL works");
    let version = if ciphers.is_some() { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 };
    builder.set_min_proto_version(Some(version)).expect("it has this version");
    builder.set_max_proto_version(Some(version)).expect("it has this version");
    if let Some(ciphers) = ciphers {
        builder.set_cipher_list(ciphers).expect("it has these ciphers");
    }
    let (name, key) = (name.to_owned(), bytes(key));
    if !name.is_empty() {
        builder.set_psk_client_callback(move |_, _, shown, room| {
            shown[..name.len()].copy_from_slice(name.as_bytes());
            shown[name.len()] = 0;
            room[..key.len()].copy_from_slice(&key);
            Ok(key.len())
        });
    }
    Ssl::new(&builder.build()).expect("a connection")
}

fn dial(address: &crate::core::address::Address) -> TcpStream {
    let stream = TcpStream::connect(address.to_string()).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("set");
    stream
}

/// Everything that passes between them, in memory.
struct Pair {
    here: Tls,
    there: SslStream<Wire>,
}

impl Pair {
    fn new(file: &File, client: Ssl) -> Pair {
        let here = file.acceptor().begin().expect("a connection");
        Pair { here, there: SslStream::new(client, Wire::default()).expect("a stream") }
    }

    /// Carries what is there, in pieces of so many bytes; what the server says, if it gives up.
    fn carry(&mut self, piece: usize) -> Result<(), String> {
        let sent = std::mem::take(&mut self.there.get_mut().outgoing);
        let mut driven = Ok(());
        for piece in sent.chunks(piece) {
            self.here.feed(piece);
            driven = driven.and_then(|()| self.here.drive());
        }
        let pending = self.here.pending().to_vec();
        self.here.advance(pending.len());
        self.there.get_mut().incoming.extend_from_slice(&pending);
        driven
    }

    /// Until the client is content; otherwise what the server says, and what the client hears (the number of the alert).
    fn handshake(&mut self, piece: usize) -> Result<(), (String, i32)> {
        for _ in 0..10 {
            let done = self.there.connect();
            let driven = self.carry(piece);
            if let Err(said) = driven {
                let heard = self.there.do_handshake().and_then(|()| self.there.ssl_read(&mut [0]).map(drop));
                let heard = heard.expect_err("it was told");
                let code = heard.ssl_error().and_then(|stack| stack.errors().first()).map_or(0, |e| e.reason_code());
                return Err((said, code));
            }
            if done.is_ok() && self.here.established() {
                return Ok(());
            }
        }
        panic!("neither done nor refused");
    }

    fn taken(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(front) = self.here.front().map(<[u8]>::to_vec) {
            self.here.consume(front.len());
            all.extend(front);
        }
        all
    }
}

#[test]
fn bytes_come_back_as_they_went_in_every_version_and_cipher_with_new_keys_on_the_way() {
    let ciphers = [
        None,
        Some("ECDHE-PSK-CHACHA20-POLY1305"),
        Some("DHE-PSK-CHACHA20-POLY1305"),
        Some("DHE-PSK-AES256-GCM-SHA384"),
        Some("DHE-PSK-AES128-GCM-SHA256"),
    ];
    for ciphers in ciphers {
        let file = File::good();
        let (mut reactor, address) = listening(Some(&file.acceptor()));
        // With AES-GCM 1.2 ends when its only key is used up, which comes early in tests.
        let whole = if ciphers.is_some_and(|ciphers| ciphers.contains("GCM")) { 1 << 19 } else { 6 << 20 };
        let stream = dial(&address);
        let thread = std::thread::spawn(move || {
            let mut client = SslStream::new(client("alice", KEY, ciphers), stream).expect("a stream");
            client.connect().expect("a handshake");
            let (want, mut got) = (pattern(7, whole), Vec::new());
            for (round, piece) in want.chunks(300_001).enumerate() {
                if ciphers.is_none() {
                    // SAFETY: the only reference to a connection that is up; 1 asks the peer for a new key as well.
                    let asked =
                        unsafe { SSL_key_update(std::ptr::from_ref(client.ssl()).cast_mut().cast(), (round % 2) as _) };
                    assert_eq!(asked, 1);
                }
                client.write_all(piece).expect("sent");
                let mut echo = vec![0; piece.len()];
                client.read_exact(&mut echo).expect("an echo");
                got.extend(echo);
            }
            assert!(got == want, "other bytes came back");
            client.shutdown().expect("a goodbye");
            assert_eq!(client.read(&mut [0]).expect("a close_notify"), 0);
        });
        turn(&mut [&mut reactor], |_, reactor, event| match event {
            Event::Accepted { peer, .. } => {
                assert!(peer.ends_with("(the shared key of \"alice\")"), "{peer}");
                false
            }
            Event::Received { conn } => {
                let waiting = reactor.rx(*conn).len();
                let part = reactor.rx(*conn).take(waiting);
                reactor.send(*conn, part);
                false
            }
            Event::Closed { reason, .. } => {
                assert_eq!(reason, "closed by the peer", "{ciphers:?}");
                true
            }
            _ => false,
        });
        thread.join().expect("the client is content");
    }
}

#[test]
fn an_unknown_name_and_a_wrong_key_are_one_to_the_client_and_two_in_the_log() {
    for ciphers in [None, Some("ECDHE-PSK-CHACHA20-POLY1305"), Some("DHE-PSK-AES128-GCM-SHA256")] {
        let file = File::good();
        let refused = |name: &str, key: &str| {
            Pair::new(&file, client(name, key, ciphers)).handshake(usize::MAX).expect_err("refused")
        };
        let (unknown, heard_unknown) = refused("mallory", KEY);
        let (wrong, heard_wrong) = refused("alice", OTHER);
        assert_eq!(heard_unknown, heard_wrong);
        assert!(heard_unknown > 1000, "an alert");
        let path = file.0.display().to_string();
        assert!(unknown.contains("\"mallory\", which has no key in") && unknown.contains(&path), "{unknown}");
        assert!(wrong.contains("\"alice\", and its key is not the one in") && wrong.contains(&path), "{wrong}");
        for text in [unknown, wrong] {
            assert!(!text.contains("4f1d") && !text.contains("0001"), "no part of a key is told: {text}");
        }
        let (strange, _) = refused("a\n\u{1b}[2J", KEY);
        assert!(strange.contains(r#""a\n\x1b[2J""#), "{strange}");
        Pair::new(&file, client("bob", OTHER, ciphers)).handshake(usize::MAX).expect("let in");
    }
}

#[test]
fn no_key_and_no_forward_secrecy_are_refused_in_words() {
    let file = File::good();
    let refused = |client: Ssl| Pair::new(&file, client).handshake(usize::MAX).expect_err("refused").0;
    let texts = [
        refused(client("", KEY, None)),
        refused(client("", KEY, Some("ECDHE-RSA-AES128-GCM-SHA256"))),
        refused(client("alice", KEY, Some("PSK-AES128-GCM-SHA256"))),
        refused(client("alice", KEY, Some("RSA-PSK-AES128-GCM-SHA256"))),
        refused(client("alice", KEY, Some("ECDHE-PSK-AES128-CBC-SHA256"))),
    ];
    for text in texts {
        assert!(text.contains("shows no shared key") && text.contains("TLS 1.3"), "{text}");
    }
}

#[test]
fn a_handshake_in_single_bytes_works_and_one_that_is_too_long_ends() {
    let file = File::good();
    for ciphers in [None, Some("ECDHE-PSK-CHACHA20-POLY1305")] {
        let mut pair = Pair::new(&file, client("alice", KEY, ciphers));
        pair.handshake(1).expect("let in");
        pair.there.write_all(&pattern(3, 50_000)).expect("encrypted");
        pair.carry(1).expect("read");
        assert!(pair.taken() == pattern(3, 50_000));
    }
    // A ClientHello that goes on and on, in whole records.
    let mut here = file.acceptor().begin().expect("a connection");
    let mut fed = 0;
    let text = loop {
        let length = 4000u16;
        let mut record = vec![22, 3, 1];
        record.extend(length.to_be_bytes());
        let head: &[u8] = if fed == 0 { &[1, 1, 0, 0] } else { &[0; 4] };
        record.extend(head);
        record.resize(5 + usize::from(length), 0);
        here.feed(&record);
        fed += record.len();
        if let Err(text) = here.drive() {
            break text;
        }
        assert!(fed <= TLS_HANDSHAKE_BYTES_MAX, "no more than that is taken");
    };
    assert!(text.contains("TLS"), "{text}");
}

#[test]
fn garbage_and_silence_are_nobodys_and_hold_up_nobody() {
    let file = File::good();
    let (mut here, address) = listening(Some(&file.acceptor()));
    let mut garbage = dial(&address);
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let thread = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = garbage.read_to_end(&mut answer);
        answer
    });
    while !thread.is_finished() {
        let (mut events, soon) = (Vec::new(), here.now().mono_ns + 2_000_000);
        here.turn(Some(soon), &mut events).expect("the ring works");
        assert!(events.is_empty(), "nobody is told of it: {events:?}");
    }
    assert!(thread.join().expect("read").len() <= 7, "an alert at the most, and then the end");
    let half = dial(&address);
    (&half).write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]).expect("the beginning of a ClientHello");
    let silent: Vec<TcpStream> = (0..TLS_HANDSHAKES_MAX + 10).map(|_| dial(&address)).collect();
    let stream = dial(&address);
    let thread = std::thread::spawn(move || {
        let mut client = SslStream::new(client("alice", KEY, None), stream).expect("a stream");
        client.connect().expect("a handshake");
        client
    });
    turn(&mut [&mut here], |_, _, event| match event {
        Event::Accepted { peer, .. } => peer.contains("alice"),
        event => panic!("nobody else is told of: {event:?}"),
    });
    drop((silent, thread.join()));
    let mut here = file.acceptor().begin().expect("a connection");
    here.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let text = here.drive().expect_err("no TLS");
    assert!(text.starts_with("TLS was expected, and what came is none"), "{text}");
}

#[test]
fn who_asks_for_new_keys_and_reads_nothing_is_ended() {
    let file = File::good();
    let mut pair = Pair::new(&file, client("alice", KEY, None));
    pair.handshake(usize::MAX).expect("let in");
    for _ in 0..100_000 {
        // SAFETY: the only reference to a connection that is up.
        assert_eq!(unsafe { SSL_key_update(std::ptr::from_ref(pair.there.ssl()).cast_mut().cast(), 1) }, 1);
        pair.there.do_handshake().expect("asked");
        let sent = std::mem::take(&mut pair.there.get_mut().outgoing);
        pair.here.feed(&sent);
        if let Err(text) = pair.here.drive() {
            assert!(text.contains("asks for new keys again and again"), "{text}");
            assert!(pair.here.pending().len() < 200 << 10);
            return;
        }
    }
    panic!("{} bytes of answers wait", pair.here.pending().len());
}

#[test]
fn a_record_that_was_changed_and_a_stream_that_was_cut_off_are_noticed() {
    let file = File::good();
    let mut pair = Pair::new(&file, client("alice", KEY, None));
    assert!(pair.here.cut_off().contains("during the TLS handshake"));
    pair.handshake(usize::MAX).expect("let in");
    assert!(pair.here.cut_off().contains("without a TLS close_notify"));
    pair.there.write_all(b"whole").expect("encrypted");
    *pair.there.get_mut().outgoing.last_mut().expect("a record") ^= 1;
    let text = pair.carry(usize::MAX).expect_err("noticed");
    assert!(text.contains("a record was changed on its way"), "{text}");
    assert!(pair.taken().is_empty());
    let mut pair = Pair::new(&file, client("alice", KEY, None));
    pair.handshake(usize::MAX).expect("let in");
    let mut queue = std::collections::VecDeque::from([Bytes::from_static(b"last")]);
    assert_eq!(pair.here.encrypt(&mut queue, &mut Vec::new()).expect("encrypted"), 4);
    pair.here.close();
    pair.there.shutdown().expect("a goodbye");
    pair.carry(usize::MAX).expect("both have ended");
    assert!(pair.here.peer_closed());
    let mut last = [0; 5];
    assert_eq!(pair.there.ssl_read(&mut last).expect("read"), 4);
    assert_eq!(pair.there.ssl_read(&mut last).expect_err("the end").code(), ErrorCode::ZERO_RETURN);
}

#[test]
fn changed_keys_count_from_the_next_handshake_on_and_damaged_ones_do_not() {
    let file = File::good();
    let acceptor = file.acceptor();
    let works = |name: &str, key: &str| {
        let here = acceptor.begin().expect("a connection");
        let there = SslStream::new(client(name, key, None), Wire::default()).expect("a stream");
        Pair { here, there }.handshake(usize::MAX).is_ok()
    };
    assert!(works("alice", KEY) && !works("carol", KEY));
    file.write(&format!("alice:{OTHER}\ncarol:{KEY}\n"), 0o600);
    assert!(works("alice", OTHER) && works("carol", KEY) && !works("alice", KEY) && !works("bob", OTHER));
    file.write("damaged", 0o600);
    assert!(works("carol", KEY));
    file.write(&format!("dave:{KEY}\n"), 0o644);
    assert!(works("carol", KEY) && !works("dave", KEY));
    std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o600)).expect("set");
    assert!(works("dave", KEY) && !works("carol", KEY), "permissions that were mended are seen");
    std::fs::remove_file(&file.0).expect("removed");
    assert!(works("dave", KEY));
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do_and_no_key_is_told() {
    for (text, part) in [
        (String::new(), "holds no key"),
        ("# alice:00\n\n".into(), "holds no key"),
        ("alice\n".into(), ":1: is no line of the form name:key"),
        (format!("\n:{KEY}\n"), ":2: a name has 1 to 128 bytes"),
        (format!("{}:{KEY}\n", "n".repeat(129)), "this one has 129"),
        (format!("alice:{KEY}f\n"), ":1: the key of \"alice\" is no even number of hexadecimal digits"),
        ("alice:4f1d4f1d4f1d4f1d4f1d4f1d4f1d4f1g".into(), "is no even number of hexadecimal digits"),
        ("alice:4f1d4f1d".into(), "has 4 bytes: from 16 to 256 are possible"),
        (format!("a:{}", "4f".repeat(257)), "has 257 bytes"),
        (format!("alice:{KEY}\nbob:{KEY}\nalice:{KEY}"), ":3: \"alice\" has a key on an earlier line"),
        ("a".repeat(300 << 10), "is too long for shared keys"),
    ] {
        let file = File::new(&text);
        let told = check_keys(&file.0).expect_err("unusable").to_string();
        assert!(told.contains(part) && told.contains(file.0.to_str().expect("UTF-8")), "{told}");
        assert!(!told.contains("4f1d"), "{told}");
    }
    let file = File::good();
    assert_eq!(check_keys(&file.0), Ok(2));
    Connector::with_key(&file.0, "bob").expect("a key of this name");
    let told = Connector::with_key(&file.0, "mallory").expect_err("no key of this name").to_string();
    assert!(told.contains("has no key of \"mallory\", which is to be shown"), "{told}");
    assert!(!format!("{:?}{:?}", file.acceptor(), super::keys::Keys::load(&file.0)).contains("4f1d"));
    for mode in [0o644, 0o640, 0o602] {
        file.write("whatever", mode);
        let told = check_keys(&file.0).expect_err("open to others").to_string();
        assert!(told.contains("open to others (mode 06") && told.contains("chmod 600"), "{told}");
    }
    let told = check_keys(Path::new("/nonexistent/keys.psk")).expect_err("absent").to_string();
    assert!(told.contains("/nonexistent/keys.psk") && told.contains("psktool"), "{told}");
}
