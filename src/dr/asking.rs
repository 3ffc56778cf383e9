//! Payloads that are due and do not come, because the writer believes that they are here: when they are asked for.
//!
//! | what comes | a payload that is due is asked for |
//! |---|---|
//! | nothing | after [`NEED_AFTER_NS`] |
//! | payloads of later orders | after [`PASSED_AFTER_NS`], once every stream has answered a ping that was sent since: the writer sends payloads in the order of their seqs, each on one of its streams, so that it has passed what has not come |
//! | | not as long as a stream still brings what was sent before; a slow line has its time |
//!
//! What is asked for twice on one connection the writer leaves to a batch. So the second time is after two minutes, in which
//! it has found room on a stream for what it sends again, and each further time after twice as long.

use std::collections::BTreeSet;

use super::api::Effect;
use super::machine::Machine;
use crate::core::ids::{Conn, Seq};
use crate::core::machine::{Level, Now};
use crate::format::wire::Message;
use crate::limits::{LIST_ITEMS_MAX, NEED_AFTER_NS, PASSED_AFTER_NS};

#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// When a payload last came in, was asked for, or became due where none was; monotonic ns.
    fed_ns: u64,
    /// How long is waited before asking where nothing comes, and where others come.
    after_ns: u64,
    passed_after_ns: u64,
    /// First payload that is due, and since when it is, or nothing that was sent before it can be lost any more.
    due: Option<(Seq, u64)>,
    /// It is to have its time once more.
    anew: bool,
    /// Highest payload that came on the streams of this writer.
    highest: Seq,
    sounding: Option<Sounding>,
    /// Of the last pings, which belong to no other.
    nonce: u64,
}

/// Every stream is asked for a sign that what was sent on it before has come.
#[derive(Clone, Debug)]
struct Sounding {
    waiting: BTreeSet<Conn>,
    /// What was sent before this one has been sent.
    below: Seq,
}

impl Default for Asking {
    fn default() -> Asking {
        Asking {
            fed_ns: 0,
            after_ns: NEED_AFTER_NS,
            passed_after_ns: PASSED_AFTER_NS,
            due: None,
            anew: false,
            highest: Seq(0),
            sounding: None,
            nonce: 0,
        }
    }
}

impl Asking {
    /// A writer has connected: whatever is missing here may come from now on.
    pub fn begin(&mut self, now: Now) {
        *self = Asking { fed_ns: now.mono_ns, nonce: self.nonce, ..Asking::default() };
    }

    /// Something came that shows that the link feeds this site.
    pub fn fed(&mut self, now: Now) {
        self.fed_ns = now.mono_ns;
    }

    pub fn came(&mut self, now: Now, seq: Seq) {
        self.fed(now);
        self.highest = self.highest.max(seq);
    }

    /// A stream is gone: what was on its way there is sent again, after what came meanwhile.
    pub fn stream_gone(&mut self, conn: Conn) {
        (self.highest, self.anew) = (Seq(0), true);
        if self.sounding.as_ref().is_some_and(|it| it.waiting.contains(&conn)) {
            self.sounding = None;
        }
    }

    fn note_due(&mut self, now: Now, first: Option<Seq>) {
        if self.due.map(|(seq, _)| seq) != first {
            self.due = first.map(|seq| (seq, now.mono_ns));
            (self.after_ns, self.passed_after_ns) = (NEED_AFTER_NS, PASSED_AFTER_NS);
            self.sounding = None;
        } else if self.anew {
            self.wait_anew(now);
        }
        self.anew = false;
    }

    /// What is due has its time from now on.
    fn wait_anew(&mut self, now: Now) {
        self.due = self.due.map(|(seq, _)| (seq, now.mono_ns));
    }

    /// When something is to be done about it.
    fn due_ns(&self) -> Option<u64> {
        let (seq, since_ns) = self.due?;
        let silent = self.fed_ns + self.after_ns;
        let passed = seq < self.highest && self.sounding.is_none();
        Some(if passed { silent.min(since_ns + self.passed_after_ns) } else { silent })
    }
}

impl Machine {
    /// When a payload that is due is asked for, or whether it is still on its way. What waits for room behind it keeps
    /// nobody from asking; it may be what has taken the window.
    pub(super) fn ask_due_ns(&self) -> Option<u64> {
        self.links.order?;
        let (due, _) = self.asking.due?;
        (!self.waits_here(due)).then(|| self.asking.due_ns()).flatten()
    }

    /// Whether a payload, or one that is due before it, has come and waits for room.
    fn waits_here(&self, seq: Seq) -> bool {
        self.intake.first_waiting().is_some_and(|record| record.seq <= seq)
    }

    pub(super) fn ask_again(&mut self, now: Now, fx: &mut Vec<Effect>) {
        self.asking.note_due(now, self.history.first_missing_above(self.due_above()));
        if self.ask_due_ns().is_none_or(|due| now.mono_ns < due) {
            return;
        }
        let Some((seq, _)) = self.asking.due else { return };
        if now.mono_ns < self.asking.fed_ns + self.asking.after_ns {
            return self.sound(now, fx);
        }
        let text = format!("nothing has come for long, and the payloads from seq {seq} on are due: asked for");
        fx.push(Effect::Log { level: Level::Info, text });
        self.ask_below(now, Seq(u64::MAX), fx);
    }

    /// Asks every stream for an answer.
    fn sound(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let waiting: BTreeSet<Conn> = self.links.streams().into_iter().collect();
        if waiting.is_empty() {
            return self.asking.wait_anew(now);
        }
        self.asking.nonce += 1;
        let (nonce, below) = (self.asking.nonce, self.asking.highest);
        for &conn in &waiting {
            fx.push(Effect::Send { conn, message: Message::Ping { nonce } });
        }
        self.asking.sounding = Some(Sounding { waiting, below });
    }

    /// A stream has answered: when all have, what is still missing does not come.
    pub(super) fn sounded(&mut self, now: Now, conn: Conn, nonce: u64, fx: &mut Vec<Effect>) {
        let current = self.asking.nonce == nonce;
        let Some(sounding) = self.asking.sounding.as_mut().filter(|_| current) else { return };
        sounding.waiting.remove(&conn);
        if !sounding.waiting.is_empty() {
            return;
        }
        let below = sounding.below;
        let Some((seq, _)) = self.asking.due else { return };
        if self.waits_here(seq) || !self.history.is_missing(seq) {
            self.asking.sounding = None;
            return;
        }
        let text = format!("the payload of seq {seq} is due, and what was sent after it has come: asked for");
        fx.push(Effect::Log { level: Level::Info, text });
        self.ask_below(now, below, fx);
    }

    /// Asks for every payload below `below` that is missing.
    fn ask_below(&mut self, now: Now, below: Seq, fx: &mut Vec<Effect>) {
        let mut ranges = self.history.missing_ranges_above(self.due_above(), LIST_ITEMS_MAX);
        ranges.retain(|range| range.first < below);
        if let Some(last) = ranges.last_mut() {
            last.last = last.last.min(below.prev());
        }
        let it = &mut self.asking;
        it.fed(now);
        it.wait_anew(now);
        it.sounding = None;
        it.after_ns *= 2;
        it.passed_after_ns = it.after_ns;
        self.need(ranges, fx);
    }
}
