//! When a payload that does not come is asked for: never while it may still be on its way.

use super::named::{asked_for, greet, order, synced};
use super::run::Trial;
use crate::core::ids::{Chain, Conn, Seq, SeqRange};
use crate::core::op::Op;
use crate::dr::api::Input;
use crate::format::record::OrderRecord;
use crate::format::wire::{Hello, Message, Purpose};

const ORDER: Conn = Conn(1);
const STREAMS: [Conn; 2] = [Conn(2), Conn(3)];

/// A payload every two seconds on the first stream, of orders that begin after the one whose payload does not come.
struct Busy {
    trial: Trial,
    chain: Chain,
    withheld: OrderRecord,
    next: u64,
}

impl Busy {
    fn new(seed: u64) -> Busy {
        let (mut trial, chain) = synced(seed);
        greet(&mut trial, STREAMS[1], Purpose::Stream);
        let withheld = order(3, Op::Write, chain);
        trial.step(Input::Message { conn: ORDER, message: Message::Orders(vec![withheld]) });
        trial.drain_disk();
        Busy { trial, chain: withheld.chain, withheld, next: 4 }
    }

    fn payload(&mut self, record: OrderRecord) {
        let message = Message::Payload { record, data: vec![7; 4096].into() };
        self.trial.step(Input::Message { conn: STREAMS[0], message });
        self.trial.drain_disk();
    }

    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds / 2 {
            self.trial.now.mono_ns += 2_000_000_000;
            let record = order(self.next, Op::Write, self.chain);
            (self.chain, self.next) = (record.chain, self.next + 1);
            self.trial.step(Input::Message { conn: ORDER, message: Message::Orders(vec![record]) });
            self.trial.drain_disk();
            self.payload(record);
            for conn in [ORDER, STREAMS[1]] {
                self.trial.step(Input::Message { conn, message: Message::Ping { nonce: 7 } });
            }
            self.trial.step(Input::Tick);
        }
    }

    /// What a stream was pinged with last.
    fn pinged(&self, conn: Conn) -> Option<u64> {
        let pings = self.trial.sent(conn).into_iter().filter_map(|message| match message {
            Message::Ping { nonce } => Some(nonce),
            _ => None,
        });
        pings.last()
    }

    fn answer(&mut self, conn: Conn) {
        let nonce = self.pinged(conn).expect("was asked");
        self.trial.step(Input::Message { conn, message: Message::Pong { nonce } });
    }

    fn asked(&self) -> Vec<SeqRange> {
        asked_for(&self.trial, ORDER)
    }
}

/// Found by seed 7044756: any payload was taken for a sign that the one that DR lacked was on its way.
#[test]
fn a_payload_that_is_passed_by_others_is_asked_for_once_every_stream_has_brought_what_was_sent_before() {
    let mut busy = Busy::new(41);
    busy.seconds(8);
    assert_eq!((busy.pinged(STREAMS[0]), busy.asked()), (None, vec![]), "it has its time");
    busy.seconds(4);
    busy.seconds(100);
    assert_eq!(busy.asked(), [], "a slow stream may still bring it");
    busy.answer(STREAMS[0]);
    assert_eq!(busy.asked(), []);
    busy.answer(STREAMS[1]);
    let only = SeqRange { first: Seq(3), last: Seq(3) };
    assert_eq!(busy.asked(), [only], "others are not asked for");
    // The next time after two minutes.
    let nonce = busy.pinged(STREAMS[1]);
    busy.seconds(118);
    assert_eq!(busy.pinged(STREAMS[1]), nonce);
    busy.seconds(4);
    assert_ne!(busy.pinged(STREAMS[1]), nonce);
    // It comes after all: nothing is asked for.
    busy.payload(busy.withheld);
    STREAMS.into_iter().for_each(|conn| busy.answer(conn));
    busy.seconds(200);
    assert_eq!(busy.asked(), [only]);
}

#[test]
fn what_was_on_a_stream_that_is_gone_has_its_time_again() {
    for gone in [0, 1] {
        let mut busy = Busy::new(43);
        busy.seconds(12);
        assert!(busy.pinged(STREAMS[gone]).is_some());
        busy.answer(STREAMS[1 - gone]);
        busy.trial.step(Input::Closed { conn: STREAMS[gone] });
        if gone == 0 {
            // What came on it is no sign that the other has brought what was on it.
            busy.trial.now.mono_ns += 8_000_000_000;
            busy.trial.step(Input::Tick);
        } else {
            busy.seconds(8);
        }
        assert_eq!(busy.asked(), [], "{gone}");
        if gone == 1 {
            // Nobody waits for the answer of a stream that is gone.
            let before = busy.pinged(STREAMS[0]);
            busy.seconds(12);
            assert!(busy.pinged(STREAMS[0]) > before, "asked once more");
            busy.answer(STREAMS[0]);
            assert_eq!(busy.asked(), [SeqRange { first: Seq(3), last: Seq(3) }]);
        }
    }
}

/// Found by a review: in `sync` a writer that took it for copied acknowledged what came after it, for a minute.
#[test]
fn a_writer_that_connects_is_told_at_once_what_is_missing() {
    let mut busy = Busy::new(45);
    busy.seconds(6);
    let again = Conn(9);
    busy.trial.step(Input::Opened { conn: again });
    let Message::Hello(hello) = busy.trial.writer.hello(Purpose::Order) else { panic!("a hello") };
    let hello = Hello { tail: Seq(busy.next - 1), ..hello };
    busy.trial.step(Input::Message { conn: again, message: Message::Hello(hello) });
    busy.trial.drain_disk();
    assert_eq!(asked_for(&busy.trial, again), [SeqRange { first: Seq(3), last: Seq(3) }]);
}
