//! Owns what the freshest seeds draw beyond all others: what goes wrong while DR is being promoted, single operations that
//! fail, and long requests in large volumes while anything else goes wrong.

use crate::network::Node;
use crate::rng::Rng;
use crate::setup::{End, Failing, Fault, MS, Mood, Setup};

impl Setup {
    pub fn freshen(&mut self, rng: &mut Rng) {
        self.fresh = true;
        self.kernel_takes = rng.chance(50);
        if self.mood != Mood::Brim && rng.chance(20) {
            self.single_failures(rng);
        }
        if self.mood == Mood::Plain && rng.chance(6) {
            self.large(rng);
        }
        if matches!(self.mood, Mood::Plain | Mood::Late | Mood::Failing) && rng.chance(25) {
            self.table_slots = rng.pick(&[1024, 2048, 4096]);
            self.journal_bytes = rng.pick(&[2, 3, 4]) << 20;
        }
        if matches!(self.end, End::Disaster(_)) && rng.chance(60) {
            self.disturb_promotion(rng);
        }
        if self.plain_table && rng.chance(60) {
            // Longer than a lease lasts, some of them, and never as long as a table may be silent.
            let longest_ns = rng.pick(&[2, 20, 200, 2900]) * MS;
            self.slow_table = Some((rng.scale(1, 60), longest_ns));
            if rng.chance(15) {
                self.laps();
            }
        }
        self.compares = rng.chance(40);
        while rng.chance(25) {
            let at = rng.below(self.horizon_ns);
            self.faults.push((at, Fault::Verify { repair: rng.chance(50) }));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// The next operation of a kind fails, and none after it.
    fn single_failures(&mut self, rng: &mut Rng) {
        for _ in 0..rng.range(1, 3) {
            let at = rng.below(self.horizon_ns);
            self.faults.push((at, fails_once(rng)));
        }
    }

    /// Several rounds of the table, and a DR that is ahead of it.
    fn laps(&mut self) {
        self.table_slots = 1024;
        (self.requests, self.request_bytes_max, self.clients) = (4000, 1024, 4);
        self.think_ns_max = MS / 2;
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(64 << 20);
        self.horizon_ns = self.horizon_ns.max(4000 * MS);
    }

    /// Requests as long as the shell hands them over, volumes that hold many of them, and a line on which they are over some time.
    pub fn large(&mut self, rng: &mut Rng) {
        self.volume_bytes.truncate(1);
        self.volume_bytes[0] = rng.range(6, 24) << 20;
        self.request_bytes_max = rng.pick(&[1, 2]) << 20;
        self.tiny_bytes = 0;
        if self.table_payload_bytes > 0 {
            // As in a real configuration: the longest payload fits the ring.
            self.table_payload_bytes = rng.pick(&[8, 16]) << 20;
        }
        self.requests = rng.range(10, 60);
        self.clients = rng.range(1, 2);
        self.planted_percent = 0;
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(16 << 20);
        self.fifo_memory_bytes = rng.pick(&[4, 8, 16]) << 20;
        self.fifo_disk_bytes = rng.pick(&[0, 4, 16]) << 20;
        let volumes_bytes: u64 = self.volume_bytes.iter().sum();
        self.spool_bytes = (volumes_bytes * 5 / 4).next_multiple_of(1 << 20) + (rng.pick(&[4, 8, 16]) << 20);
    }

    /// After the disaster, while the operator asks until DR has been promoted. What it does to DR once it has is left to the
    /// loss of power that every promoted DR goes through.
    fn disturb_promotion(&mut self, rng: &mut Rng) {
        for _ in 0..rng.range(1, 4) {
            let longest_ms = if rng.chance(70) { 1500 } else { 12_000 };
            let at = self.horizon_ns + rng.scale(1, longest_ms) * MS;
            let node = rng.pick(&[Node::Dr, Node::Dr, Node::Aux, Node::Aux, Node::Primary]);
            let (a, b) = rng.pick(&[
                (Node::Dr, Node::Aux),
                (Node::Dr, Node::Aux),
                (Node::Primary, Node::Dr),
                (Node::Primary, Node::Aux),
            ]);
            let (from, to) = if rng.chance(50) { (a, b) } else { (b, a) };
            let for_ns = rng.scale(10, 6000) * MS;
            let fault = match rng.below(13) {
                0 => Fault::Kill { node, down_ns: for_ns },
                1 => Fault::PowerLoss { node, down_ns: for_ns },
                2 => Fault::Stop { node, down_ns: for_ns },
                3 => Fault::Pause { node, for_ns },
                4 | 5 => Fault::Cut { a, b },
                // Longer than a table may be silent, more often than not.
                6 | 7 => Fault::Stall { from, to, for_ns: rng.range(200, 9000) * MS },
                8 => fails_once(rng),
                9 => {
                    let how = rng.pick(&Failing::ALL);
                    Fault::DiskFails { node, how, for_ns: rng.scale(1, 1500) * MS }
                }
                10 => Fault::DiskStalls { node, volumes_only: rng.chance(50), for_ns },
                11 => Fault::KillAtSuperblock { node, power: rng.chance(70), down_ns: rng.scale(5, 500) * MS },
                _ => Fault::Garble { a: Node::Primary, b: Node::Dr },
            };
            self.faults.push((at, fault));
        }
    }
}

fn fails_once(rng: &mut Rng) -> Fault {
    let node = rng.pick(&[Node::Primary, Node::Aux, Node::Dr, Node::Dr]);
    let how = rng.pick(&Failing::ALL);
    Fault::FailsOnce { node, how }
}
