//! Owns what the keenest seeds draw beyond all others: sectors that a loss of power tears inside, trims and zeroes as long as a
//! volume, the longest requests there are, and comparisons that nobody has asked for. And how far every promotion has to go.

use farshore::core::modes::Scrub;
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{Kind, sized_nonce};
use farshore::limits::{ENTRY_ALIGN_BYTES, PAYLOAD_PIECE_BYTES_MAX};
use farshore::{auxiliary, dr, primary};

use crate::checkers::{Outcome, Verdict, whole_entry};
use crate::cluster::{DR_NONCE, World};
use crate::rng::Rng;
use crate::setup::{MS, Mood, Setup};

impl Setup {
    pub fn sharpen(&mut self, rng: &mut Rng) {
        self.tears_sectors = rng.chance(50);
        self.long_ranges = rng.chance(30);
        if rng.chance(15) {
            let rate = rng.pick(&[0, 64 << 10, 4 << 20]);
            self.scrub = Some(Scrub { every_ns: rng.scale(20, 2000) * MS, rate });
        }
        if self.mood == Mood::Plain && rng.chance(1) {
            self.huge(rng);
        }
    }

    /// Requests as long as they come, one of which fills much of the queue.
    fn huge(&mut self, rng: &mut Rng) {
        self.large(rng);
        self.volume_bytes[0] = rng.range(8, 10) << 20;
        self.request_bytes_max = PAYLOAD_PIECE_BYTES_MAX;
        self.requests = rng.range(6, 20);
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(32 << 20);
        self.spool_bytes = (self.volume_bytes[0] * 5 / 4).next_multiple_of(1 << 20) + (16 << 20);
    }
}

impl World {
    /// What a loss of power may leave of a sector. Disks write one whole or not at all, and nothing but DR's journal relies on it:
    /// a record that is torn there, with others behind it, is damage to a start, which wants `--force`. What a volume of the
    /// primary has is looked at sector by sector when it is back.
    pub fn sharpen_disks(&mut self) {
        if self.setup.tears_sectors {
            self.primary_disk.tears = |file| !matches!(file, primary::machine::File::Volume(_));
            self.aux_disk.tears = |_: auxiliary::machine::File| true;
            self.dr_disk.tears = |file| file != dr::machine::File::Journal;
        }
    }

    /// I5: a promotion goes as far as the payloads that it can reach allow: what comes next was not to be had.
    pub fn check_highest(&self, plan: bool, outcome: &Outcome) -> Verdict {
        // A plan is made while the primary goes on, and one that is done has its report: what came to the table since is late.
        // What damage has taken, or a resize without room has stopped, is told of.
        if plan || self.outcome.is_some() || self.damaged || self.astray || self.stopped_before_resize(outcome) {
            return Ok(());
        }
        let Some(next) = self.oracle.record(outcome.cut.next()) else { return Ok(()) };
        let in_table = outcome.aux_read && self.holds_at_aux(next) && !self.came_late.contains(&next.seq);
        let known = self.holds_at_dr(next) || in_table;
        // What it has not heard of it does not look for: whether it had to is for the report.
        if next.seq > outcome.tail || !known || !matches!(next.op, Op::Write | Op::WriteZeroes | Op::Trim) {
            return Ok(());
        }
        let place = match self.spool_place(next) {
            _ if next.payload_bytes() == 0 => "it has no payload".into(),
            Some(pos) => format!("its payload is at position {pos} of the spool"),
            None if outcome.aux_read && self.ring_holds(next.seq) => "its payload is in the ring".into(),
            None => return Ok(()),
        };
        self.fail("I5", format!("promoted at seq {}, and {place}: {next:?}", outcome.cut))
    }

    /// Position in DR's spool at which the payload of this order stands, whole.
    fn spool_place(&self, record: &OrderRecord) -> Option<u64> {
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        let bytes = self.dr_disk.file(dr::machine::File::Spool).cache();
        (0..bytes.len()).step_by(ENTRY_ALIGN_BYTES as usize).find_map(|at| {
            let header = whole_entry(bytes, at, nonce)?;
            (header.kind == Kind::Payload && header.record == *record).then_some(header.pos)
        })
    }
}

#[test]
fn a_keen_seed_draws_all_of_it_now_and_then() {
    let drawn: Vec<Setup> = (0..400).map(|n| Setup::draw(crate::setup::KEEN_SEEDS + n, &mut Rng::new(n))).collect();
    let count = |of: fn(&Setup) -> bool| drawn.iter().filter(|it| of(it)).count();
    assert!(count(|it| it.tears_sectors) > 100 && count(|it| it.long_ranges) > 50);
    assert!(count(|it| it.scrub.is_some()) > 20);
    assert!(count(|it| it.request_bytes_max == PAYLOAD_PIECE_BYTES_MAX) > 0);
}
