//! A store against our own server's session over a disk with a volatile cache, that loses connections, forgets, and
//! refuses what it is asked.

use proptest::prelude::*;

use super::*;
use crate::core::rope::Rope;
use crate::nbd::session::{self, Kind, Session};

const SIZE: u64 = 64 << 10;

/// What the server offers.
#[derive(Clone, Copy, Debug)]
struct Terms {
    fua: bool,
    zeroes: bool,
    allocation: bool,
}

const ALL: Terms = Terms { fua: true, zeroes: true, allocation: true };

/// A disk with a cache: what is not flushed may be gone after `crash`, any part of it.
#[derive(Debug)]
struct Disk {
    durable: Vec<u8>,
    cached: Vec<(u64, Vec<u8>, bool)>,
}

impl Disk {
    fn write(&mut self, offset: u64, data: &[u8], fua: bool) {
        self.cached.push((offset, data.to_vec(), fua));
    }

    /// With those of the cached writes that a flush or FUA covers, and others that are `kept`.
    fn image(&self, mut kept: impl FnMut() -> bool) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (offset, data, fua) in &self.cached {
            if *fua || kept() {
                image[*offset as usize..][..data.len()].copy_from_slice(data);
            }
        }
        image
    }

    fn flush(&mut self) {
        self.durable = self.image(|| true);
        self.cached.clear();
    }

    fn crash(&mut self, kept: impl FnMut() -> bool) {
        self.durable = self.image(kept);
        self.cached.clear();
    }
}

/// A server with one connection.
struct Server {
    disk: Disk,
    terms: Terms,
    session: Session,
    rx: Rope,
    out: Outbox,
    asked: Vec<session::Request>,
    /// Requests that changed something or flushed, as they were carried out.
    log: Vec<String>,
}

impl Server {
    fn new(terms: Terms) -> Server {
        let disk = Disk { durable: vec![0; SIZE as usize], cached: Vec::new() };
        let (session, rx, out) = (Session::new(), Rope::new(), Outbox::new());
        Server { disk, terms, session, rx, out, asked: Vec::new(), log: Vec::new() }
    }

    fn connect(&mut self, store: &mut Store) {
        (self.session, self.rx, self.out) = (Session::new(), Rope::new(), Outbox::new());
        self.asked.clear();
        self.session.greet(&mut self.out);
        store.connect(0, "db", false);
    }

    fn export(&self, name: &str) -> session::Export {
        session::Export {
            name: name.to_owned(),
            description: String::new(),
            size: SIZE,
            read_only: false,
            block_min: 1,
            block_preferred: 4096,
            block_max: 32 << 20,
            multi_conn: true,
            trim: false,
            zeroes: self.terms.zeroes,
            fast_zero: false,
            cache: false,
            allocation: self.terms.allocation,
            fua: self.terms.fua,
            flush: true,
        }
    }

    fn carry_out(&mut self, request: session::Request) {
        self.carry_out_and_say(request, None);
    }

    /// Answers with an error; a change may have been made, or not.
    fn refuse(&mut self, request: session::Request, errno: Errno, made: bool) {
        if made && !matches!(request.kind, Kind::Status { .. } | Kind::Flush) {
            self.carry_out_and_say(request, Some(errno));
        } else {
            self.session.reply(request.cookie, Err(errno), &mut self.out);
        }
    }

    fn carry_out_and_say(&mut self, request: session::Request, errno: Option<Errno>) {
        let session::Request { cookie, kind } = request;
        let result = match kind {
            Kind::Read { offset, length } => {
                Ok(Bytes::copy_from_slice(&self.disk.image(|| true)[offset as usize..][..length as usize]))
            }
            Kind::Write { offset, data, fua } => {
                self.log.push(format!("write {offset} {}", data.len()));
                self.disk.write(offset, &data, fua);
                Ok(Bytes::new())
            }
            Kind::Zeroes { offset, length, fua, .. } => {
                self.log.push(format!("zero {offset} {length}"));
                self.disk.write(offset, &vec![0; length as usize], fua);
                Ok(Bytes::new())
            }
            Kind::Flush => {
                self.log.push("flush".into());
                self.disk.flush();
                Ok(Bytes::new())
            }
            Kind::Status { offset, length, one } => {
                self.log.push(format!("status {offset} {length}{}", if one { " one" } else { "" }));
                let half = Stretch { length: length / 2, hole: true };
                let rest = Stretch { length: length - length / 2, hole: false };
                return self.session.status(cookie, &[half, rest], &mut self.out);
            }
            other => unreachable!("not offered: {other:?}"),
        };
        let result = errno.map_or(result, Err);
        self.session.reply(cookie, result, &mut self.out);
    }

    /// Carries bytes both ways until both are silent; requests wait in `asked`. False when the store is broken.
    fn converse(&mut self, store: &mut Store) -> bool {
        let mut down = Rope::new();
        loop {
            let up: Vec<Bytes> = store.out().map(|out| out.drain().collect()).unwrap_or_default();
            let quiet = up.is_empty() && self.out.is_empty();
            up.into_iter().for_each(|part| self.rx.push(part));
            let mut events = Vec::new();
            self.session.advance(&mut self.rx, &mut events, &mut self.out).expect("our client keeps the protocol");
            for event in events {
                match event {
                    session::Event::Resolve { name, .. } => {
                        let export = self.export(&name);
                        self.session.resolved(Ok(export), &mut self.out);
                    }
                    session::Event::Request(request) => self.asked.push(request),
                    other => unreachable!("{other:?}"),
                }
            }
            self.out.drain().for_each(|part| down.push(part));
            let heard = store.received(0, &mut down);
            if store.broken().is_some() {
                return false;
            }
            assert!(matches!(heard, Heard::Nothing | Heard::Ready), "{heard:?}");
            if quiet {
                return true;
            }
        }
    }

    /// Carries out everything that is asked, until nothing more is.
    fn run(&mut self, store: &mut Store) {
        self.converse(store);
        while let Some(request) = self.asked.pop() {
            self.carry_out(request);
            self.converse(store);
        }
    }
}

fn store() -> Store {
    Store::new("nbd://x".into(), SIZE, 8 << 10)
}

fn write(offset: u64, byte: u8, length: usize, durable: bool) -> DiskKind {
    DiskKind::Write { offset, parts: vec![Bytes::from(vec![byte; length])], durable }
}

fn done(store: &mut Store) -> Vec<u64> {
    let ticket = |said| match said {
        Said::Done { ticket, result } => {
            assert!(result.is_ok(), "{result:?}");
            ticket.0
        }
        other => panic!("{other:?}"),
    };
    store.said().map(ticket).collect()
}

#[test]
fn what_was_acknowledged_and_not_flushed_is_sent_again_in_order_before_anything_else() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    for (ticket, byte) in [(1, 1), (2, 2)] {
        store.begin(0, Ticket(ticket), write(0, byte, 100, false));
        server.run(&mut store);
    }
    store.begin(0, Ticket(3), write(50, 3, 100, false));
    server.run(&mut store);
    assert_eq!(done(&mut store), [1, 2, 3]);
    // Asked, and not answered any more.
    store.begin(0, Ticket(4), write(4096, 4, 10, false));
    store.begin(0, Ticket(5), DiskKind::Sync);
    store.lost();
    server.disk.crash(|| false);
    server.log.clear();
    store.begin(0, Ticket(6), DiskKind::Read { offset: 0, length: 150 });
    server.connect(&mut store);
    server.run(&mut store);
    assert_eq!(server.log.len(), 5, "{:?}", server.log);
    let at = |what: &str| server.log.iter().position(|line| line == what).expect("it was done");
    assert!(server.log.iter().take(at("flush")).filter(|line| line.starts_with("write 0")).count() == 2);
    assert!(at("write 0 100") < at("write 50 100") && at("write 50 100") < at("flush"));
    let mut want = vec![2; 50];
    want.extend([3; 100]);
    let mut answered = Vec::new();
    for said in store.said() {
        let Said::Done { ticket, result } = said else { panic!("{said:?}") };
        if ticket == Ticket(6) {
            assert_eq!(result.as_deref(), Ok(&want[..]), "a read sees what was acknowledged before it");
        }
        answered.push(ticket.0);
    }
    answered.sort_unstable();
    assert_eq!(answered, [4, 5, 6]);
    server.disk.crash(|| false);
    assert_eq!(server.disk.durable[..150], want[..], "and it is durable");
}

#[test]
fn a_change_that_was_answered_and_is_refused_when_it_is_sent_again_ends_the_trust_in_the_store() {
    let zero = |durable| DiskKind::Zero { offset: 4096, length: 100, unmap: true, durable };
    let changes = [write(4096, 1, 100, false), write(4096, 1, 100, true), zero(false), zero(true)];
    for (change, errno) in changes.into_iter().zip([Errno::Io, Errno::NoSpc, Errno::Inval, Errno::Perm]) {
        let (mut server, mut store) = (Server::new(ALL), store());
        server.connect(&mut store);
        server.run(&mut store);
        store.begin(0, Ticket(1), change);
        server.run(&mut store);
        assert_eq!(done(&mut store), [1]);
        store.lost();
        server.disk.crash(|| false);
        store.begin(0, Ticket(2), DiskKind::Read { offset: 4096, length: 100 });
        store.begin(0, Ticket(3), write(0, 3, 100, true));
        store.begin(0, Ticket(4), DiskKind::Sync);
        store.extents(0, Ticket(5), 0, 4096, 4);
        server.connect(&mut store);
        server.converse(&mut store);
        let first = server.asked.remove(0);
        server.refuse(first, errno, false);
        assert!(!server.converse(&mut store), "nothing goes on");
        store.begin(0, Ticket(6), DiskKind::Sync);
        store.begin(0, Ticket(7), write(0, 3, 100, false));
        store.begin(0, Ticket(8), DiskKind::Read { offset: 0, length: 100 });
        let mut answered = Vec::new();
        for said in store.said() {
            match said {
                Said::Extents { ticket, .. } => answered.push(ticket.0),
                Said::Done { ticket, result: Err(IoFail::Other(text)) } => {
                    let named = text.contains("nbd://x: ") && text.contains(" of 100 bytes at 4096: ");
                    assert!(named && text.contains(&errno.to_string()), "{text}");
                    answered.push(ticket.0);
                }
                other => panic!("{other:?}"),
            }
        }
        answered.sort_unstable();
        assert_eq!(answered, [2, 3, 4, 5, 6, 7, 8]);
        assert!(store.broken().is_some() && store.out().is_none());
    }
}

#[test]
fn zeroes_that_were_answered_are_written_where_the_next_server_does_not_make_them() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.disk.durable.fill(7);
    server.connect(&mut store);
    server.run(&mut store);
    store.begin(0, Ticket(1), DiskKind::Zero { offset: 4096, length: 100, unmap: true, durable: false });
    server.run(&mut store);
    store.lost();
    server.disk.crash(|| false);
    server.connect(&mut store);
    server.converse(&mut store);
    let first = server.asked.remove(0);
    server.refuse(first, Errno::NotSup, false);
    store.begin(0, Ticket(2), DiskKind::Sync);
    server.run(&mut store);
    assert_eq!(done(&mut store), [1, 2]);
    assert!(server.disk.durable[4096..4196] == [0; 100], "{:?}", server.log);
}

#[test]
fn a_failed_flush_ends_the_trust_in_the_store_for_syncs_that_came_after_it_as_well() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    store.begin(0, Ticket(1), write(0, 1, 100, false));
    server.run(&mut store);
    store.begin(0, Ticket(2), DiskKind::Sync);
    server.converse(&mut store);
    store.begin(0, Ticket(3), DiskKind::Sync);
    let flush = server.asked.remove(0);
    server.refuse(flush, Errno::NoSpc, false);
    server.run(&mut store);
    let failed = |said| matches!(said, Said::Done { result: Err(IoFail::Other(_)), .. });
    assert_eq!(store.said().map(failed).collect::<Vec<bool>>(), [false, true, true]);
}

#[test]
fn fua_over_a_change_that_no_flush_covers_is_answered_when_neither_has_to_be_sent_again() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    store.begin(0, Ticket(1), write(0, 1, 100, false));
    store.begin(0, Ticket(2), write(4096, 1, 100, true));
    server.run(&mut store);
    assert!(!server.log.contains(&"flush".to_owned()), "what overwrites nothing needs none: {:?}", server.log);
    store.begin(0, Ticket(3), write(50, 3, 100, true));
    server.run(&mut store);
    let mut answered = done(&mut store);
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3]);
    assert!(server.log.contains(&"flush".to_owned()) && store.ops.is_empty(), "{:?}", server.log);
}

#[test]
fn what_is_remembered_has_a_bound() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    for ticket in 0..40 {
        store.begin(0, Ticket(ticket), write(ticket * 1024, 1, 1024, false));
        assert!(store.line.as_ref().expect("connected").kept_bytes <= 8 << 10);
    }
    server.run(&mut store);
    assert_eq!(done(&mut store).len(), 40, "nothing waits for a sync that nobody asks for");
    assert!(server.log.iter().filter(|line| *line == "flush").count() >= 5, "{:?}", server.log);
    assert!(store.ops.len() <= 8);
}

#[test]
fn fua_and_zeroes_are_made_by_other_means_where_there_are_none() {
    let terms = Terms { fua: false, zeroes: false, allocation: false };
    let (mut server, mut store) = (Server::new(terms), store());
    server.connect(&mut store);
    server.run(&mut store);
    store.begin(0, Ticket(1), write(0, 1, 100, true));
    store.begin(0, Ticket(2), DiskKind::Zero { offset: 4096, length: 5000, unmap: true, durable: false });
    server.run(&mut store);
    assert_eq!(server.disk.durable[..100], [1; 100], "answered when it is durable");
    let mut answered = done(&mut store);
    answered.sort_unstable();
    assert_eq!(answered, [1, 2]);
    assert!(server.log.contains(&"write 4096 5000".to_owned()), "{:?}", server.log);
    store.extents(0, Ticket(3), 100, 200, 5);
    let said: Vec<Said> = store.said().collect();
    let whole = |length| vec![Stretch { length, hole: false }];
    assert_eq!(said, [Said::Extents { ticket: Ticket(3), stretches: whole(200) }], "nobody knows better");
}

#[test]
fn holes_are_listed_where_the_server_knows_them() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    store.extents(0, Ticket(3), 0, SIZE, 5);
    server.run(&mut store);
    let said: Vec<Said> = store.said().collect();
    let stretches = [true, false].map(|hole| Stretch { length: SIZE / 2, hole }).into();
    assert_eq!(said, [Said::Extents { ticket: Ticket(3), stretches }]);
    // Who wants only the first one makes the server list no more.
    store.extents(0, Ticket(4), 512, 2048, 1);
    server.run(&mut store);
    let said: Vec<Said> = store.said().collect();
    let first = vec![Stretch { length: 1024, hole: true }];
    assert_eq!(said, [Said::Extents { ticket: Ticket(4), stretches: first }]);
    assert_eq!(server.log, [format!("status 0 {SIZE}"), "status 512 2048 one".into()]);
}

/// A server may take long over a block status, and answer nothing else on the connection meanwhile.
#[test]
fn one_block_status_is_asked_for_at_a_time_and_others_go_ahead_of_the_rest() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    for ticket in 1..=5 {
        store.extents(0, Ticket(ticket), 0, SIZE, 5);
    }
    store.begin(0, Ticket(6), DiskKind::Read { offset: 0, length: 512 });
    server.converse(&mut store);
    let mut ends = Vec::new();
    while !server.asked.is_empty() {
        let statuses = server.asked.iter().filter(|it| matches!(it.kind, Kind::Status { .. })).count();
        assert!(statuses <= 1, "{:?}", server.asked);
        // The read is there with the first of them.
        assert!(ends.len() > 1 || server.asked.len() == 2 - ends.len());
        let request = server.asked.pop().expect("not empty");
        server.carry_out(request);
        server.converse(&mut store);
        ends.extend(store.said().map(|said| match said {
            Said::Extents { ticket, .. } | Said::Done { ticket, .. } => ticket.0,
        }));
    }
    ends.sort_unstable();
    assert_eq!(ends, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_server_that_says_it_is_leaving_is_given_the_same_again() {
    let (mut server, mut store) = (Server::new(ALL), store());
    server.connect(&mut store);
    server.run(&mut store);
    store.begin(0, Ticket(1), write(0, 1, 100, false));
    server.converse(&mut store);
    let request = server.asked.pop().expect("it was asked");
    server.session.reply(request.cookie, Err(Errno::Shutdown), &mut server.out);
    let mut down = Rope::new();
    server.out.drain().for_each(|part| down.push(part));
    assert!(matches!(store.received(0, &mut down), Heard::Useless { for_good: false, .. }));
    assert_eq!(store.said().count(), 0, "no verdict");
    store.lost();
    server.connect(&mut store);
    server.run(&mut store);
    assert_eq!(done(&mut store), [1]);
}

#[test]
fn an_export_that_cannot_be_a_volume_is_refused_in_words() {
    let info = |size, flags, block_min| ExportInfo { size, flags, block_min, block_max: 1 << 20 };
    for (info, words) in [
        (info(SIZE, SEND_FLUSH, 1), None),
        (info(2 * SIZE, SEND_FLUSH | SEND_FUA, 1), None),
        (info(SIZE - 1, SEND_FLUSH, 1), Some("grow it, or correct the size")),
        (info(SIZE, SEND_FLUSH | READ_ONLY, 1), Some("read-only")),
        (info(SIZE, SEND_FUA, 1), Some("no FLUSH")),
        (info(SIZE, SEND_FLUSH, 512), Some("whole blocks of 512")),
    ] {
        let text = unfit(&info, SIZE);
        assert_eq!(text.is_some(), words.is_some(), "{info:?}");
        assert!(text.is_none_or(|text| text.contains(words.unwrap_or_default())), "{info:?}");
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    Write { block: u64, length: u64, byte: u8, durable: bool },
    Zero { block: u64, length: u64, durable: bool },
    Read { block: u64, length: u64 },
    Sync,
    Answer(usize),
    Refuse(usize, Errno, bool),
    Cut,
    Crash(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let range = || (0..14u64, 1..=2 * 4096u64);
    let errno = prop::sample::select(vec![Errno::NoSpc, Errno::NoSpc, Errno::NotSup, Errno::NotSup, Errno::Io]);
    prop_oneof![
        10 => (range(), any::<u8>(), prop::bool::weighted(0.2))
            .prop_map(|((block, length), byte, durable)| Happens::Write { block, length, byte, durable }),
        2 => (range(), any::<bool>()).prop_map(|((block, length), durable)| Happens::Zero { block, length, durable }),
        4 => range().prop_map(|(block, length)| Happens::Read { block, length }),
        2 => Just(Happens::Sync),
        16 => any::<usize>().prop_map(Happens::Answer),
        1 => (any::<usize>(), errno, any::<bool>())
            .prop_map(|(which, errno, made)| Happens::Refuse(which, errno, made)),
        2 => Just(Happens::Cut),
        2 => any::<u64>().prop_map(Happens::Crash),
    ]
}

/// A role that uses a store as roles do: overlapping ranges are never in flight together, a failed change that is not for
/// want of room ends it, and after one that is, it reads back what is there.
#[derive(Default)]
struct Role {
    next: u64,
    open: Vec<(u64, u64, u64, Option<u8>)>,
    /// What each covers; `None` where something was asked since.
    syncs: Vec<(u64, Vec<Option<u8>>)>,
    /// What it was told that is there; `None` where it does not know.
    image: Vec<Option<u8>>,
    /// What it was told that is durable, as long as nothing else was asked.
    promised: Vec<Option<u8>>,
    fua: Vec<u64>,
    ended: bool,
}

impl Role {
    fn new() -> Role {
        let image = vec![Some(0); SIZE as usize];
        Role { promised: image.clone(), image, ..Role::default() }
    }

    fn free(&self, offset: u64, length: u64) -> bool {
        self.open.iter().all(|(_, from, bytes, _)| offset + length <= *from || from + bytes <= offset)
    }

    fn ask(&mut self, store: &mut Store, kind: DiskKind, offset: u64, length: u64, byte: Option<u8>) {
        if self.free(offset, length) {
            if byte.is_some() {
                let range = offset as usize..(offset + length) as usize;
                self.syncs.iter_mut().for_each(|(_, covered)| covered[range.clone()].fill(None));
                self.promised[range].fill(None);
            }
            if let DiskKind::Write { durable: true, .. } | DiskKind::Zero { durable: true, .. } = kind {
                self.fua.push(self.next);
            }
            self.open.push((self.next, offset, length, byte));
            store.begin(0, Ticket(self.next), kind);
            self.next += 1;
        }
    }

    fn sync(&mut self, store: &mut Store) {
        let mut covered = self.image.clone();
        for (_, offset, length, _) in self.open.iter().filter(|(.., byte)| byte.is_some()) {
            covered[*offset as usize..(offset + length) as usize].fill(None);
        }
        self.syncs.push((self.next, covered));
        store.begin(0, Ticket(self.next), DiskKind::Sync);
        self.next += 1;
    }

    fn hear(&mut self, store: &mut Store, disk: &Disk) {
        for said in store.said() {
            let Said::Done { ticket, result } = said else { panic!("{said:?}") };
            if let Some(at) = self.syncs.iter().position(|(number, _)| *number == ticket.0) {
                let (_, covered) = self.syncs.remove(at);
                self.ended |= result.is_err();
                if result.is_ok() {
                    let promised = self.promised.iter_mut().zip(covered);
                    promised.for_each(|(promised, covered)| *promised = covered.or(*promised));
                }
                continue;
            }
            let at = self.open.iter().position(|(number, ..)| *number == ticket.0).expect("answered once");
            let (number, offset, length, byte) = self.open.remove(at);
            let range = offset as usize..(offset + length) as usize;
            match (byte, result) {
                (Some(byte), Ok(_)) => {
                    self.image[range.clone()].fill(Some(byte));
                    if self.fua.contains(&number) {
                        self.promised[range].fill(Some(byte));
                    }
                }
                (Some(_), Err(fail)) => {
                    self.image[range].fill(None);
                    self.ended |= matches!(fail, IoFail::Other(_));
                }
                (None, Ok(bytes)) => {
                    for (known, got) in self.image[range].iter_mut().zip(bytes) {
                        assert_eq!(*known.get_or_insert(got), got, "a read sees what was acknowledged");
                    }
                }
                (None, Err(_)) => {}
            }
        }
        self.check(disk);
    }

    /// Whatever the server forgets now, and whatever it does not: what is durable is there.
    fn check(&self, disk: &Disk) {
        let wrong = |bytes: &[u8], at: usize| {
            let promised = self.promised[at..].iter().zip(bytes);
            promised.into_iter().position(|(want, got)| want.is_some_and(|want| want != *got))
        };
        assert_eq!(wrong(&disk.image(|| false), 0), None, "a byte that is promised is not durable");
        for (offset, data, _) in &disk.cached {
            let found = wrong(data, *offset as usize);
            assert_eq!(found, None, "a byte that is promised may become an older one again");
        }
    }
}

proptest! {
    #[test]
    fn whatever_connections_and_caches_lose_and_servers_refuse_a_volume_keeps_what_it_was_told(
        steps in prop::collection::vec(happens(), 1..150),
        terms in (any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(fua, zeroes, allocation)| Terms { fua, zeroes, allocation }),
    ) {
        let (mut server, mut store) = (Server::new(terms), store());
        let mut role = Role::new();
        server.connect(&mut store);
        for step in steps {
            match step {
                Happens::Write { block, length, byte, durable } => {
                    let kind = write(block * 4096, byte, length as usize, durable);
                    role.ask(&mut store, kind, block * 4096, length, Some(byte));
                }
                Happens::Zero { block, length, durable } => {
                    let kind = DiskKind::Zero { offset: block * 4096, length, unmap: true, durable };
                    role.ask(&mut store, kind, block * 4096, length, Some(0));
                }
                Happens::Read { block, length } => {
                    role.ask(&mut store, DiskKind::Read { offset: block * 4096, length }, block * 4096, length, None);
                }
                Happens::Sync => role.sync(&mut store),
                Happens::Answer(which) if !server.asked.is_empty() => {
                    let which = which % server.asked.len();
                    let request = server.asked.remove(which);
                    server.carry_out(request);
                }
                Happens::Refuse(which, errno, made) if !server.asked.is_empty() => {
                    let which = which % server.asked.len();
                    let request = server.asked.remove(which);
                    server.refuse(request, errno, made);
                }
                Happens::Answer(_) | Happens::Refuse(..) => {}
                Happens::Cut | Happens::Crash(_) => {
                    store.lost();
                    if let Happens::Crash(mut seed) = step {
                        server.disk.crash(|| {
                            seed = seed.rotate_left(1);
                            seed & 1 == 1
                        });
                    }
                    server.connect(&mut store);
                }
            }
            server.converse(&mut store);
            role.hear(&mut store, &server.disk);
            if role.ended || store.broken().is_some() {
                role.sync(&mut store);
                server.run(&mut store);
                role.hear(&mut store, &server.disk);
                return Ok(());
            }
        }
        server.run(&mut store);
        role.hear(&mut store, &server.disk);
        prop_assert!(role.open.is_empty() && role.syncs.is_empty(), "everything is answered");
        role.sync(&mut store);
        server.run(&mut store);
        role.hear(&mut store, &server.disk);
        server.disk.crash(|| false);
        let wrong = role.image.iter().zip(&server.disk.durable).position(|(want, got)| want.is_some_and(|want| want != *got));
        prop_assert!(wrong.is_none() && !role.ended, "the volume is another one at {wrong:?}");
        prop_assert!(store.ops.is_empty());
    }

    #[test]
    fn chunks_of_any_kind_are_answers_or_the_end_of_the_connection(
        chunks in prop::collection::vec(
            (0..9u16, any::<bool>(), 0..4u64, prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 1..20),
    ) {
        let (mut server, mut store) = (Server::new(ALL), store());
        server.connect(&mut store);
        server.run(&mut store);
        store.begin(0, Ticket(1), DiskKind::Read { offset: 0, length: 16 });
        store.extents(0, Ticket(2), 0, 4096, 4);
        store.begin(0, Ticket(3), write(4096, 1, 10, false));
        server.converse(&mut store);
        let mut answered = 0;
        for (kind, done, cookie, mut data, real) in chunks {
            let kind = [0, 1, 2, 5, 6, 0x8001, 0x8002, 77, 1][usize::from(kind)];
            if real && kind == REPLY_OFFSET_DATA {
                data = [&[0; 8][..], &[7; 16][..]].concat();
            }
            let head = ChunkHead::encode(u16::from(done), kind, cookie, data.len() as u32);
            let mut rx = Rope::new();
            rx.push(Bytes::from([&head[..], &data[..]].concat()));
            let heard = store.received(0, &mut rx);
            answered += store.said().count();
            if heard != Heard::Nothing {
                break;
            }
        }
        prop_assert!(answered <= 3);
        store.lost();
        server.connect(&mut store);
        server.run(&mut store);
        prop_assert_eq!(answered + store.said().count(), 3, "each is answered once, sooner or later");
    }
}
