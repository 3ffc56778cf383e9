//! A volume on a server that is slow with one request and asked to leave meanwhile: what it was asked on a connection that
//! we end is over before anything comes on the next one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farshore::core::ids::Ticket;
use farshore::core::machine::{DiskKind, DiskResult};
use farshore::io::{Event, FileId, Reactor, ReactorOptions};
use farshore::nbd::backing::{Backings, Opening};

use super::harness::Scratch;

const SIZE: usize = 1 << 20;
const ESHUTDOWN: u32 = 108;
/// How long the disk of the server takes for the slow write, after the end of the connection.
const SLOW: Duration = Duration::from_millis(700);

/// A request: its type, cookie, offset and length.
struct Asked(u16, [u8; 8], usize, usize);

/// Reads a request and its payload; `None` at the end of the stream.
fn request(stream: &mut UnixStream) -> Option<(Asked, Vec<u8>)> {
    let mut head = [0; 28];
    stream.read_exact(&mut head).ok()?;
    let kind = u16::from_be_bytes([head[6], head[7]]);
    let cookie = head[8..16].try_into().expect("8 bytes");
    let offset = u64::from_be_bytes(head[16..24].try_into().expect("8 bytes")) as usize;
    let length = u32::from_be_bytes(head[24..28].try_into().expect("4 bytes")) as usize;
    let mut payload = vec![0; if kind == 1 { length } else { 0 }];
    stream.read_exact(&mut payload).ok()?;
    Some((Asked(kind, cookie, offset, length), payload))
}

fn reply(stream: &mut UnixStream, cookie: [u8; 8], error: u32, data: &[u8]) {
    let head = [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat();
    // Who has left reads no answers.
    let _ = stream.write_all(&[&head, data].concat());
}

/// Negotiates, with no option but GO.
fn shake_hands(stream: &mut UnixStream) {
    stream.write_all(&[&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat()).expect("a greeting");
    stream.read_exact(&mut [0; 4]).expect("flags");
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).expect("an option");
        let option = u32::from_be_bytes(head[8..12].try_into().expect("4 bytes"));
        let length = u32::from_be_bytes(head[12..16].try_into().expect("4 bytes"));
        stream.read_exact(&mut vec![0; length as usize]).expect("its data");
        let mut say = |kind: u32, data: &[u8]| {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            let head = [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
            stream.write_all(&[&head.concat(), data].concat()).expect("an answer");
        };
        if option == 7 {
            let flags: u16 = 1 | 4 | 8 | 64;
            say(3, &[&[0, 0][..], &(SIZE as u64).to_be_bytes(), &flags.to_be_bytes()].concat());
            say(1, &[]);
            return;
        }
        say(0x8000_0001, &[]);
    }
}

/// Takes a write and a read on the first connection, says to the read that it is leaving, and makes the write once the
/// connection has ended, before it ends its side; then serves a second connection. Gives how often it was wrong.
fn serve(listener: &UnixListener, memory: &Mutex<Vec<u8>>) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let (mut first, _) = listener.accept().expect("a connection");
    shake_hands(&mut first);
    let (Asked(_, _, offset, _), slow) = request(&mut first).expect("a write");
    let (Asked(_, cookie, ..), _) = request(&mut first).expect("a read");
    reply(&mut first, cookie, ESHUTDOWN, &[]);
    while request(&mut first).is_some() {}
    std::thread::sleep(SLOW);
    listener.set_nonblocking(true).expect("a flag");
    if listener.accept().err().map(|error| error.kind()) != Some(ErrorKind::WouldBlock) {
        wrong.push("another connection before the end of this one");
    }
    listener.set_nonblocking(false).expect("a flag");
    memory.lock().expect("memory")[offset..][..slow.len()].copy_from_slice(&slow);
    drop(first);
    let (mut second, _) = listener.accept().expect("another connection");
    shake_hands(&mut second);
    while let Some((Asked(kind, cookie, offset, length), payload)) = request(&mut second) {
        let mut memory = memory.lock().expect("memory");
        memory[offset..][..payload.len()].copy_from_slice(&payload);
        let read = memory[offset..][..if kind == 0 { length } else { 0 }].to_vec();
        reply(&mut second, cookie, 0, &read);
    }
    wrong
}

struct Client {
    reactor: Reactor,
    backings: Backings,
    file: FileId,
    degraded: Vec<String>,
}

impl Client {
    fn ask(&mut self, ticket: u64, kind: DiskKind) {
        self.backings.disk(&mut self.reactor, self.file, Ticket(ticket), kind);
    }

    /// Waits for an answer.
    fn answer(&mut self, ticket: u64) -> DiskResult {
        let until = Instant::now() + Duration::from_secs(30);
        let mut events = Vec::new();
        loop {
            assert!(Instant::now() < until, "no answer");
            self.degraded.extend(self.backings.degraded(self.reactor.now()).into_iter().map(|(text, _)| text));
            self.backings.completed(&mut events);
            for event in events.drain(..) {
                if let Event::Disk { ticket: Ticket(of), result, .. } = event
                    && of == ticket
                {
                    return result;
                }
            }
            let due = self.backings.deadline_ns();
            self.reactor.turn(due, &mut events).expect("a ring");
            let happened: Vec<Event> = std::mem::take(&mut events);
            for event in happened {
                self.backings.on_event(&mut self.reactor, &event);
            }
            self.backings.tick(&mut self.reactor);
        }
    }
}

fn write(byte: u8) -> DiskKind {
    DiskKind::Write { offset: 0, parts: vec![Bytes::from(vec![byte; 4096])], durable: false }
}

#[test]
fn a_connection_that_we_end_is_over_at_the_server_before_there_is_another() {
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let memory = Arc::new(Mutex::new(vec![0; SIZE]));
    let server = std::thread::spawn({
        let memory = memory.clone();
        move || serve(&listener, &memory)
    });
    let mut reactor =
        Reactor::new(ReactorOptions { arena_bytes: 8 << 20, ..ReactorOptions::default() }).expect("a ring");
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().expect("a URI");
    let opening = Opening { volume: "v", size: SIZE as u64, uri: &uri, connector: None };
    let mut backings = Backings::new(farshore::limits::BACKING_KEPT_BYTES_MAX);
    let file = backings.open(&mut reactor, 1, opening).expect("it is there");
    let mut client = Client { reactor, backings, file, degraded: Vec::new() };
    client.ask(1, write(1));
    client.ask(2, DiskKind::Read { offset: 8192, length: 4096 });
    let begun = Instant::now();
    client.answer(1).expect("the write is made, by the next server");
    assert!(begun.elapsed() >= SLOW, "the old connection was not waited for");
    let told = client.degraded.iter().any(|text| text.contains("until the server has ended the old connection"));
    assert!(told, "status does not say so: {:?}", client.degraded);
    client.ask(3, write(2));
    client.answer(3).expect("the second write");
    client.ask(4, DiskKind::Sync);
    client.answer(4).expect("a flush");
    std::thread::sleep(SLOW);
    client.ask(5, DiskKind::Read { offset: 0, length: 4096 });
    assert!(client.answer(5).expect("a read") == [2; 4096][..], "an older write has come after a newer one");
    client.backings.close(&mut client.reactor);
    drop(client);
    assert_eq!(server.join().expect("the server"), Vec::<&str>::new());
    assert!(memory.lock().expect("memory")[..4096] == [2; 4096]);
}
