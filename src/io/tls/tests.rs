//! TLS between reactors, and between a reactor and a client that has nothing of ours but the library.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::{ClientConnection, StreamOwned};

use super::*;
use crate::cli::certs::{self, Plan, own_files};
use crate::core::address::Address;
use crate::core::ids::Conn;
use crate::core::machine::Lease;
use crate::core::peer::Role;
use crate::io::{Event, Reactor, ReactorOptions};

/// Certificates of the groups `orders` and `other`, by one CA.
struct Site(PathBuf);

impl Site {
    fn new() -> Site {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("farshore-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let plan = |group: &str, ca| Plan { group: group.into(), dir: dir.join(group), days: 2, ca, hosts: vec![] };
        certs::make(&plan("orders", None)).expect("a CA");
        certs::make(&plan("other", Some(dir.join("orders")))).expect("signed by it");
        Site(dir)
    }

    fn of(&self, group: &str, role: Role) -> Paths {
        let dir = self.0.join(group).join(role.word());
        Paths { ca: dir.join("ca-cert.pem"), own: Some(own_files(&dir, role)) }
    }

    /// A primary whose certificate is valid for these seconds from now on.
    fn primary_valid(&self, from: i64, to: i64) -> Paths {
        let both = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.made(Role::Primary, (from, to), &both)
    }

    /// A role whose certificate is valid for these seconds from now on, at the ends that its extended key usage says.
    fn made(&self, role: Role, (from, to): (i64, i64), usages: &[ExtendedKeyUsagePurpose]) -> Paths {
        let ca = self.0.join("orders");
        let key = std::fs::read_to_string(ca.join("ca-key.pem")).expect("a key");
        let key = KeyPair::from_pem(&key).expect("a key");
        let issuer = Issuer::new(certs::ca_params(1, &key), key);
        let mut params = CertificateParams::default();
        let at = |seconds: i64| {
            let distance = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
        };
        (params.not_before, params.not_after) = (at(from).into(), at(to).into());
        params.subject_alt_names = vec![SanType::URI(name(role).to_string().try_into().expect("ASCII"))];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &issuer).expect("a certificate");
        let own = (self.0.join(format!("{from}.pem")), self.0.join(format!("{from}-key.pem")));
        std::fs::write(&own.0, cert.pem()).expect("written");
        std::fs::write(&own.1, key.serialize_pem()).expect("written");
        Paths { ca: ca.join("ca-cert.pem"), own: Some(own) }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn name(role: Role) -> PeerName {
    PeerName::new("orders", role)
}

fn dr(site: &Site) -> Acceptor {
    dr_with(&site.of("orders", Role::Dr))
}

fn dr_with(paths: &Paths) -> Acceptor {
    let clients = Clients::Named(vec![name(Role::Primary)]);
    Acceptor::new(paths, Some(&name(Role::Dr)), clients, Versions::Newest).expect("certificates")
}

fn to_dr(paths: &Paths) -> Connector {
    Connector::new(paths, None, Server::Named(name(Role::Dr)), Versions::Newest).expect("certificates")
}

fn reactor() -> Reactor {
    Reactor::new(ReactorOptions { arena_bytes: 32 << 20, ..ReactorOptions::default() }).expect("a reactor")
}

pub fn listening(acceptor: Option<&Acceptor>) -> (Reactor, Address) {
    let mut reactor = reactor();
    let listener = reactor.listen_with(&Address::Tcp("127.0.0.1:0".into()), acceptor).expect("a free port");
    let address = reactor.listen_address(listener).expect("it listens").clone();
    (reactor, address)
}

/// Turns both, or one, until `done`; at most ten seconds.
pub fn turn(reactors: &mut [&mut Reactor], mut done: impl FnMut(usize, &mut Reactor, &Event) -> bool) {
    let begun = std::time::Instant::now();
    let mut finished = false;
    while !finished {
        assert!(begun.elapsed() < Duration::from_secs(15), "nothing happened in time");
        for (index, reactor) in reactors.iter_mut().enumerate() {
            let (mut events, soon) = (Vec::new(), reactor.now().mono_ns + 2_000_000);
            reactor.turn(Some(soon), &mut events).expect("the ring works");
            for event in &events {
                finished |= done(index, reactor, event);
            }
        }
    }
}

pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * seed) >> 29) as u8).collect()
}

/// A client of the library alone, with a certificate.
fn stranger(site: &Site, address: &Address, role: Role) -> StreamOwned<ClientConnection, TcpStream> {
    let (_, loaded) = files::load(&site.of("orders", role)).expect("certificates");
    let config = client_config(loaded, &Server::Named(name(Role::Dr)), Versions::Wide, &Said::default());
    let connection =
        ClientConnection::new(Arc::new(config.expect("usable")), ServerName::try_from("x").expect("a name"));
    let stream = TcpStream::connect(address.to_string()).expect("it listens");
    StreamOwned::new(connection.expect("a connection"), stream)
}

#[test]
fn bytes_come_back_as_they_went_with_every_kind_of_hint_and_part() {
    let site = Site::new();
    for hint in [(0, 0), (28, 4096), (28, 100_000), (64, 1 << 20), (0, 1 << 20)] {
        let (mut reactor, address) = listening(Some(&dr(&site)));
        let mut client = stranger(&site, &address, Role::Primary);
        let sent = pattern(7, 3 << 20);
        let want = sent.clone();
        let thread = std::thread::spawn(move || {
            let mut got = vec![0; want.len()];
            let mut at = 0;
            for (round, piece) in want.chunks(300_001).enumerate() {
                client.write_all(piece).expect("sent");
                if round % 2 == 1 {
                    client.read_exact(&mut got[at..at + 300_001]).expect("an echo");
                    at += 300_001;
                }
            }
            client.read_exact(&mut got[at..]).expect("the rest");
            client.conn.send_close_notify();
            client.flush().expect("a goodbye");
            assert!(got == want, "other bytes came back");
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).expect("a close_notify, and not a stream that was cut off");
        });
        let mut echoed = 0;
        turn(&mut [&mut reactor], |_, reactor, event| match event {
            Event::Accepted { conn, peer, .. } => {
                assert!(peer.ends_with("(farshore://orders/primary)"), "{peer}");
                reactor.hint(*conn, hint.0, hint.1);
                false
            }
            Event::Received { conn } => {
                // Parts of every length, some longer than a record.
                let waiting = reactor.rx(*conn).len();
                let mut left = waiting;
                while left > 0 {
                    let bytes = left.min(1 + (echoed * 7919) % 50_000);
                    let part = reactor.rx(*conn).take(bytes);
                    reactor.send(*conn, part);
                    (left, echoed) = (left - bytes, echoed + bytes);
                }
                false
            }
            Event::Closed { reason, .. } => {
                assert_eq!(reason, "closed by the peer");
                true
            }
            _ => false,
        });
        thread.join().expect("the client is content");
        assert_eq!(echoed, 3 << 20);
    }
}

#[test]
fn two_of_ours_talk_both_ways_and_a_long_queue_counts_until_it_is_gone() {
    let site = Site::new();
    let (mut here, address) = listening(Some(&dr(&site)));
    let mut there = reactor();
    let conn = there.next_conn();
    there.connect_with(conn, &address, Some(&to_dr(&site.of("orders", Role::Primary))));
    let sent = Bytes::from(pattern(3, 8 << 20));
    // What is sent before it is connected goes out once it is.
    there.send(conn, sent.slice(..100));
    let mut got = Vec::new();
    turn(&mut [&mut here, &mut there], |index, reactor, event| match (index, event) {
        (1, Event::Connected { conn }) => {
            reactor.send(*conn, sent.slice(100..));
            assert_eq!(reactor.queued_bytes(*conn), sent.len());
            false
        }
        (0, Event::Received { conn }) => {
            let rx = reactor.rx(*conn);
            got.extend_from_slice(&rx.take(rx.len()));
            got.len() == sent.len()
        }
        (_, Event::Closed { reason, .. }) => panic!("{reason}"),
        _ => false,
    });
    assert!(got == sent);
    assert_eq!(there.queued_bytes(conn), 0);
    there.close(conn, "done");
    let mut ends = Vec::new();
    turn(&mut [&mut here, &mut there], |_, _, event| {
        if let Event::Closed { reason, .. } = event {
            ends.push(reason.clone());
        }
        ends.len() == 2
    });
    ends.sort();
    assert_eq!(ends, ["closed by the peer", "done"]);
}

/// Why a client does not get through, at both ends: what the client hears, and that nobody was told of it here.
fn refusal(acceptor: &Acceptor, connector: &Connector) -> String {
    let (mut here, address) = listening(Some(acceptor));
    let mut there = reactor();
    let conn = there.next_conn();
    there.connect_with(conn, &address, Some(connector));
    let mut heard = String::new();
    turn(&mut [&mut here, &mut there], |index, _, event| match (index, event) {
        (0, event) => panic!("nobody is told of it: {event:?}"),
        (_, Event::Closed { reason, .. }) => {
            heard.clone_from(reason);
            true
        }
        _ => false,
    });
    heard
}

#[test]
fn a_valid_certificate_of_another_role_or_group_is_refused_at_either_end() {
    let site = Site::new();
    for (group, role) in [("orders", Role::Aux), ("orders", Role::Client), ("other", Role::Primary)] {
        let heard = refusal(&dr(&site), &to_dr(&site.of(group, role)));
        assert!(heard.contains("another role or group"), "{heard}");
    }
    let paths = site.of("other", Role::Dr);
    let clients = Clients::Named(vec![name(Role::Primary)]);
    let other = Acceptor::new(&paths, None, clients, Versions::Newest).expect("certificates");
    let heard = refusal(&other, &to_dr(&site.of("orders", Role::Primary)));
    assert!(heard.contains("farshore://other/dr") && heard.contains("farshore://orders/dr"), "{heard}");
}

#[test]
fn expired_early_foreign_and_missing_certificates_are_refused_in_words() {
    let site = Site::new();
    let heard = refusal(&dr(&site), &to_dr(&site.primary_valid(-7200, -3600)));
    assert!(heard.contains("has expired") && heard.contains("-7200.pem"), "{heard}");
    let heard = refusal(&dr(&site), &to_dr(&site.primary_valid(3600, 7200)));
    assert!(heard.contains("or is not valid yet") && heard.contains("look at the clocks"), "{heard}");
    let elsewhere = Site::new();
    let mut foreign = elsewhere.of("orders", Role::Primary);
    let heard = refusal(&dr(&site), &to_dr(&foreign));
    assert!(heard.contains("not signed by the CA in") && heard.contains("ca-cert.pem"), "{heard}");
    // It believes the server, and shows a certificate of another CA.
    foreign.ca = site.of("orders", Role::Primary).ca;
    let heard = refusal(&dr(&site), &to_dr(&foreign));
    assert!(heard.contains("does not know the CA"), "{heard}");
    let bare = Paths { own: None, ..site.of("orders", Role::Primary) };
    let heard = refusal(&dr(&site), &to_dr(&bare));
    assert!(heard.contains("wants a certificate of this host (none is configured)"), "{heard}");
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let site = Site::new();
    let good = site.of("orders", Role::Dr);
    let (cert, key) = good.own.clone().expect("both");
    let with = |ca: &Path, cert: &Path, key: &Path| {
        let paths = Paths { ca: ca.into(), own: Some((cert.into(), key.into())) };
        check(&paths, Some(&name(Role::Dr)), &[End::Server]).expect_err("unusable").to_string()
    };
    let other_key = site.of("orders", Role::Aux).own.expect("both").1;
    let text = with(&good.ca, &cert, &other_key);
    assert!(text.contains("is not the key of the certificate in"), "{text}");
    let text = with(&good.ca, &cert, &cert);
    assert!(text.contains("holds no private key"), "{text}");
    let text = with(&key, &cert, &key);
    assert!(text.contains("holds no certificate"), "{text}");
    let text = with(&good.ca, &site.0.join("absent.pem"), &key);
    assert!(text.contains("absent.pem") && text.contains("farshore certs"), "{text}");
    let text = with(&site.of("orders", Role::Dr).ca, &site.of("orders", Role::Aux).own.expect("both").0, &other_key);
    assert!(text.contains("farshore://orders/aux") && text.contains("has to be farshore://orders/dr"), "{text}");
    for text in [with(&good.ca, &cert, &other_key), with(&good.ca, &cert, &cert)] {
        assert!(!text.contains("MIG"), "no part of a key is told: {text}");
    }
}

#[test]
fn a_changed_certificate_counts_from_the_next_handshake_on_and_a_damaged_one_does_not() {
    let site = Site::new();
    let paths = site.primary_valid(-7200, -3600);
    let (cert, key) = paths.own.clone().expect("both");
    let acceptor = dr(&site);
    let connector = to_dr(&paths);
    assert!(refusal(&acceptor, &connector).contains("expired"));
    let (good_cert, good_key) = site.of("orders", Role::Primary).own.expect("both");
    std::fs::copy(good_cert, &cert).expect("copied");
    // Half of the change: cert and key do not match, and the old pair goes on being shown.
    assert!(refusal(&acceptor, &connector).contains("expired"));
    std::fs::copy(good_key, &key).expect("copied");
    works(&acceptor, &connector);
    std::fs::write(&cert, "damaged").expect("written");
    works(&acceptor, &connector);
}

fn works(acceptor: &Acceptor, connector: &Connector) {
    let (mut here, address) = listening(Some(acceptor));
    let mut there = reactor();
    let conn = there.next_conn();
    there.connect_with(conn, &address, Some(connector));
    turn(&mut [&mut here, &mut there], |_, _, event| {
        assert!(!matches!(event, Event::Closed { .. }), "{event:?}");
        matches!(event, Event::Accepted { .. })
    });
}

#[test]
fn a_certificate_serves_at_the_ends_that_its_usage_names_and_check_says_the_same() {
    let site = Site::new();
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    for usages in [vec![], vec![client.clone()], vec![server.clone()], vec![client.clone(), server.clone()]] {
        let lacks = |usage| !usages.is_empty() && !usages.contains(usage);
        let (primary, replica) = (Role::Primary, Role::Dr);
        let (dials, answers) = (site.made(primary, (-100, 1000), &usages), site.made(replica, (-99, 1000), &usages));
        let (good, cases) =
            (site.of("orders", primary), [(&dials, primary, End::Client), (&answers, replica, End::Server)]);
        for (paths, role, end) in cases {
            let (acceptor, connector, lacks, usage) = match end {
                End::Client => (dr(&site), to_dr(paths), lacks(&client), "clientAuth"),
                End::Server => (dr_with(paths), to_dr(&good), lacks(&server), "serverAuth"),
            };
            let checked = check(paths, Some(&name(role)), &[end]);
            assert_eq!(checked.is_err(), lacks, "{usages:?}: {checked:?}");
            assert!(acceptor.validity().is_some() && connector.validity().is_some(), "{usages:?}");
            if !lacks {
                works(&acceptor, &connector);
                continue;
            }
            let heard = refusal(&acceptor, &connector);
            assert!(heard.contains(&format!("lacks {usage}")) && is_of_certificates(&heard), "{heard}");
            let cert = paths.own.as_ref().expect("both").0.display().to_string();
            assert!(end == End::Server || heard.contains(&cert), "ours is named: {heard}");
            let told = checked.expect_err("told").to_string();
            assert!(told.contains(&cert) && told.contains(&format!("lacks {usage}")), "{told}");
        }
    }
}

#[test]
fn garbage_and_silence_are_nobodys_and_hold_up_nobody() {
    let site = Site::new();
    let (mut here, address) = listening(Some(&dr(&site)));
    let mut garbage = TcpStream::connect(address.to_string()).expect("it listens");
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    garbage.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
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
    assert_eq!(thread.join().expect("read").first(), Some(&21), "an alert, and then the end");
    let half = TcpStream::connect(address.to_string()).expect("it listens");
    (&half).write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]).expect("the beginning of a ClientHello");
    let silent: Vec<TcpStream> =
        (0..TLS_MANY).map(|_| TcpStream::connect(address.to_string()).expect("it listens")).collect();
    let mut there = reactor();
    let conn = there.next_conn();
    there.connect_with(conn, &address, Some(&to_dr(&site.of("orders", Role::Primary))));
    turn(&mut [&mut here, &mut there], |index, _, event| match (index, event) {
        (0, Event::Accepted { peer, .. }) => {
            assert!(peer.contains("farshore://orders/primary"));
            true
        }
        (0, event) => panic!("nobody else is told of: {event:?}"),
        (_, Event::Closed { reason, .. }) => panic!("{reason}"),
        _ => false,
    });
    drop(silent);
}

/// More than may be in their handshake.
const TLS_MANY: usize = crate::limits::TLS_HANDSHAKES_MAX + 10;

#[test]
fn a_stream_that_was_cut_off_is_told_from_one_that_ended() {
    let site = Site::new();
    let (mut here, address) = listening(Some(&dr(&site)));
    let mut client = stranger(&site, &address, Role::Primary);
    let thread = std::thread::spawn(move || {
        client.write_all(b"whole").expect("sent");
        // The connection ends as anybody on the way can end it: without a word of TLS.
        client.sock.shutdown(std::net::Shutdown::Write).expect("ended");
        client
    });
    let mut got = Vec::new();
    turn(&mut [&mut here], |_, reactor, event| match event {
        Event::Received { conn } => {
            let rx = reactor.rx(*conn);
            got.extend_from_slice(&rx.take(rx.len()));
            false
        }
        Event::Closed { reason, .. } => {
            assert!(reason.contains("without a TLS close_notify"), "{reason}");
            true
        }
        _ => false,
    });
    assert_eq!(got, b"whole");
    drop(thread.join());
}

#[test]
fn what_was_plain_before_tls_does_not_leak_into_it() {
    let site = Site::new();
    for injected in [true, false] {
        let (mut here, address) = listening(None);
        let mut plain = TcpStream::connect(address.to_string()).expect("it listens");
        plain.write_all(if injected { b"startforged".as_slice() } else { b"start" }).expect("sent");
        let acceptor = dr(&site);
        let (_, loaded) = files::load(&site.of("orders", Role::Primary)).expect("certificates");
        let thread = std::thread::spawn(move || {
            let mut answer = [0; 2];
            plain.read_exact(&mut answer).expect("a plain answer");
            assert_eq!(&answer, b"ok");
            let config = client_config(loaded, &Server::Named(name(Role::Dr)), Versions::Wide, &Said::default());
            let server = ServerName::try_from("x").expect("a name");
            let connection = ClientConnection::new(Arc::new(config.expect("usable")), server).expect("a connection");
            let mut stream = StreamOwned::new(connection, plain);
            stream.write_all(b"secret").expect("sent");
            let mut answer = [0; 6];
            stream.read_exact(&mut answer).expect("the echo");
            assert_eq!(&answer, b"secret");
        });
        let mut heard = Vec::new();
        let mut secured = false;
        turn(&mut [&mut here], |_, reactor, event| match event {
            Event::Received { conn } if !secured => {
                if reactor.rx(*conn).len() >= 5 {
                    assert_eq!(reactor.rx(*conn).take(5), "start");
                    reactor.send(*conn, Bytes::from_static(b"ok"));
                    reactor.secure_server(*conn, &acceptor);
                    secured = true;
                }
                false
            }
            Event::Secured { .. } => false,
            Event::Received { conn } => {
                let rx = reactor.rx(*conn);
                let bytes = rx.take(rx.len());
                heard.extend_from_slice(&bytes);
                reactor.send(*conn, bytes);
                false
            }
            Event::Closed { .. } => true,
            _ => false,
        });
        thread.join().expect("the client is content");
        assert_eq!(heard, b"secret", "what followed in the clear was thrown away");
    }
}

/// Connected, both ends.
fn pair(site: &Site) -> (Reactor, Conn, Reactor, Conn) {
    let (mut here, address) = listening(Some(&dr(site)));
    let mut there = reactor();
    let far = there.next_conn();
    there.connect_with(far, &address, Some(&to_dr(&site.of("orders", Role::Primary))));
    let mut near = None;
    turn(&mut [&mut here, &mut there], |_, _, event| {
        if let Event::Accepted { conn, .. } = event {
            near = Some(*conn);
        }
        near.is_some()
    });
    (here, near.expect("accepted"), there, far)
}

#[test]
fn leased_bytes_wait_for_the_lease_under_tls_too_and_go_out_in_order() {
    let site = Site::new();
    let (mut here, near, mut there, far) = pair(&site);
    let now = here.now().mono_ns;
    here.lease(Lease::Until(now + 40_000_000)).expect("a timer");
    here.send_leased(near, Bytes::from_static(b"in time "));
    let mut got = Vec::new();
    let mut read = |here: &mut Reactor, there: &mut Reactor, for_ms: u64| {
        let until = std::time::Instant::now() + Duration::from_millis(for_ms);
        let mut ends = Vec::new();
        while std::time::Instant::now() < until {
            for (index, reactor) in [&mut *here, &mut *there].into_iter().enumerate() {
                let (mut events, soon) = (Vec::new(), reactor.now().mono_ns + 2_000_000);
                reactor.turn(Some(soon), &mut events).expect("the ring works");
                ends.extend(events.into_iter().filter_map(|event| match event {
                    Event::Closed { reason, .. } => Some((index, reason)),
                    _ => None,
                }));
            }
            let rx = there.rx(far);
            got.extend_from_slice(&rx.take(rx.len()));
        }
        (got.clone(), ends)
    };
    assert_eq!(read(&mut here, &mut there, 30).0, b"in time ");
    std::thread::sleep(Duration::from_millis(30));
    here.send(near, Bytes::from_static(b"free "));
    here.send_leased(near, Bytes::from_static(b"late "));
    here.send(near, Bytes::from_static(b"behind "));
    assert_eq!(read(&mut here, &mut there, 60).0, b"in time ", "the lease has ended: nothing goes out");
    assert_eq!(here.queued_bytes(near), b"free late behind ".len());
    let now = here.now().mono_ns;
    here.lease(Lease::Until(now + 500_000_000)).expect("a timer");
    assert_eq!(read(&mut here, &mut there, 100).0, b"in time free late behind ");
    std::thread::sleep(Duration::from_millis(500));
    here.send_leased(near, Bytes::from(vec![1; 100_000]));
    read(&mut here, &mut there, 30);
    here.lease(Lease::Over).expect("over");
    let (got, ends) = read(&mut here, &mut there, 100);
    assert_eq!(got, b"in time free late behind ", "once it is over, never");
    assert!(ends.iter().any(|(index, reason)| *index == 0 && reason.contains("newer epoch")), "{ends:?}");
}

#[test]
fn records_that_were_made_and_not_taken_wait_for_the_lease_as_well() {
    let site = Site::new();
    let (mut here, near, mut there, far) = pair(&site);
    there.pause(far, true);
    let now = here.now().mono_ns;
    here.lease(Lease::Until(now + 300_000_000)).expect("a timer");
    let sent = Bytes::from(pattern(5, 32 << 20));
    here.send_leased(near, sent.clone());
    // Far more than sockets hold: part of it is encrypted, and finds no room.
    let until = std::time::Instant::now() + Duration::from_millis(350);
    while std::time::Instant::now() < until {
        let soon = here.now().mono_ns + 2_000_000;
        here.turn(Some(soon), &mut Vec::new()).expect("the ring works");
    }
    let queued = here.queued_bytes(near);
    assert!(queued > 1 << 20, "{queued}");
    there.pause(far, false);
    let mut got = Vec::new();
    let mut renewed = false;
    let mut quiet_since = std::time::Instant::now();
    turn_all(&mut here, &mut there, |here, there| {
        let rx = there.rx(far);
        if !rx.is_empty() {
            quiet_since = std::time::Instant::now();
        }
        got.extend_from_slice(&rx.take(rx.len()));
        if !renewed && quiet_since.elapsed() > Duration::from_millis(100) {
            assert!(got.len() < sent.len(), "what was not handed over in time waits");
            assert_eq!(here.queued_bytes(near), queued);
            let now = here.now().mono_ns;
            here.lease(Lease::Until(now + 20_000_000_000)).expect("a timer");
            renewed = true;
        }
        got.len() == sent.len()
    });
    assert!(got == sent && renewed);
}

fn turn_all(here: &mut Reactor, there: &mut Reactor, mut done: impl FnMut(&mut Reactor, &mut Reactor) -> bool) {
    let begun = std::time::Instant::now();
    while !done(here, there) {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing happened in time");
        for reactor in [&mut *here, &mut *there] {
            let soon = reactor.now().mono_ns + 2_000_000;
            reactor.turn(Some(soon), &mut Vec::new()).expect("the ring works");
        }
    }
}

#[test]
fn a_paused_connection_gives_nothing_and_then_everything() {
    let site = Site::new();
    let (mut here, near, mut there, far) = pair(&site);
    here.pause(near, true);
    let sent = Bytes::from(pattern(9, 5 << 20));
    there.send(far, sent.clone());
    there.close(far, "done");
    let until = std::time::Instant::now() + Duration::from_millis(100);
    while std::time::Instant::now() < until {
        for reactor in [&mut here, &mut there] {
            let soon = reactor.now().mono_ns + 2_000_000;
            reactor.turn(Some(soon), &mut Vec::new()).expect("the ring works");
        }
    }
    assert!(here.rx(near).len() <= 128 << 10, "{}", here.rx(near).len());
    here.pause(near, false);
    let mut got = Vec::new();
    turn(&mut [&mut here, &mut there], |index, reactor, event| match (index, event) {
        (0, Event::Received { .. }) => {
            let rx = reactor.rx(near);
            got.extend_from_slice(&rx.take(rx.len()));
            false
        }
        (0, Event::Closed { reason, .. }) => {
            let rx = reactor.rx(near);
            got.extend_from_slice(&rx.take(rx.len()));
            assert_eq!(reason, "closed by the peer");
            true
        }
        _ => false,
    });
    assert!(got == sent, "{} of {}", got.len(), sent.len());
}

#[test]
fn a_certificate_tells_how_long_it_is_good_also_after_it_was_replaced() {
    let site = Site::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let (soon, later) = (site.primary_valid(-100, 1000), site.primary_valid(-200, 5000));
    let connector = to_dr(&soon);
    let of = |connector: &Connector| connector.validity().expect("a certificate of its own");
    let found = of(&connector);
    assert!(found.not_after_s.abs_diff(now + 1000) <= 5, "{found:?} at {now}");
    let ((cert, key), (new_cert, new_key)) = (soon.own.expect("its own"), later.own.expect("its own"));
    assert_eq!(found.cert, cert);
    std::fs::rename(new_key, key).expect("replaced");
    std::fs::rename(new_cert, cert).expect("replaced");
    let found = of(&connector);
    assert!(found.not_after_s.abs_diff(now + 5000) <= 5, "{found:?} at {now}");
    let expired = to_dr(&site.primary_valid(-300, -50));
    assert!(of(&expired).not_after_s.abs_diff(now - 50) <= 5, "also one that is not good any more");
}

#[test]
fn a_certificate_that_is_not_valid_yet_replaces_none_that_is() {
    let site = Site::new();
    for (from, to) in [(500, 5000), (500, -500), (-500, -100)] {
        let (good, bad) = (site.primary_valid(-100, 1000), site.primary_valid(from, to));
        let connector = to_dr(&good);
        let before = connector.validity().expect("a certificate of its own");
        assert_eq!(before.refused, None);
        let ((cert, key), (bad_cert, bad_key)) = (good.own.expect("its own"), bad.own.expect("its own"));
        std::fs::rename(bad_key, key).expect("replaced");
        std::fs::rename(bad_cert, cert).expect("replaced");
        let after = connector.validity().expect("the one from before");
        assert_eq!(after.not_after_s, before.not_after_s);
        let (text, since_ns) = after.refused.expect("it is told");
        assert!(text.contains("cannot be used") && since_ns > 0, "{text}");
        // Told once, with the time of the first refusal.
        assert_eq!(connector.validity().expect("still").refused, Some((text, since_ns)));
    }
}
