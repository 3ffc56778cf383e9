//! Owns what a seed draws: the group's configuration, the sizes of every bound, the speed of disks and links,
//! and the mix of faults (swarm testing: each seed has its own).

use farshore::core::ids::Volume;
use farshore::core::modes::{Ack, LagMax, Overflow, Protect, Require, Scrub};

use crate::network::Node;
use crate::rng::Rng;

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// From this seed on more is drawn: earlier seeds, the named ones among them, stay as they were.
pub const LATER_SEEDS: u64 = 10_000;
/// From this seed on each has a mood of its own (see `swarm`), and nearly every fault there is.
pub const NEWEST_SEEDS: u64 = 100_000;
/// From this seed on promotions are disturbed, too (see `fresh`).
pub const FRESH_SEEDS: u64 = 3_000_000;
/// From this seed on DR is asked whether it has a piece of a batch before that crosses; those before it stay what they were.
pub const ASKING_SEEDS: u64 = 4_200_000;
/// From this seed on clients may go on asking a little after the last fault, until what they asked before is at DR.
pub const TRICKLE_SEEDS: u64 = 7_000_000;
/// From this seed on DR's spool may be smaller than a batch, and grows.
pub const GROWTH_SEEDS: u64 = 8_000_000;
/// From this seed on sectors are torn inside, and ranges are as long as volumes (see `keen`).
pub const KEEN_SEEDS: u64 = 9_000_000;

/// Of the generator that damage under running roles is drawn from. No seed that was named before draws any with it: they
/// show what they showed.
const SPOIL_SALT: u64 = 0xc201_1000;
/// Of the generator that short journals are drawn from; nor with it.
const SHORT_SALT: u64 = 0x10a6_00a7;
/// The same of the one that resizes are drawn from.
const RESIZE_SALT: u64 = 0x0002_e512_0546;
/// And of the one that says from what length on holes are looked for.
const HOLES_SALT: u64 = 0xb01e_5ee5;
/// And of the one that says whether DR is asked for room.
const ROOM_SALT: u64 = 0x0000_400a_5ced;
/// Mixed into the seed for what bounds the lag.
const LAG_SALT: u64 = 0x001a_6b0a_0d5e;
/// Mixed into the seed for volumes without space.
const FULL_SALT: u64 = 0x0000_f011_0d15;
/// Mixed into the seed for how small a spool is at first.
const GROWTH_SALT: u64 = 0x6600_11ad_5b00;
/// And for what the keenest seeds draw.
const KEEN_SALT: u64 = 0x0c33_5eed_0000;
/// Mixed into the seed for whether clients go on asking.
const TRICKLE_SALT: u64 = 0x7121_c41e_0000;
/// Of the generator that the freshest seeds draw the rest from.
const FRESH_SALT: u64 = 0xf2e5_4f2e_5400;
/// Of the generator that bursts are drawn from; nor with it, nor one that is known to catch a planted bug.
const BURST_SALT: u64 = 0x000b_0457_000e;

/// Everything that is drawn before the first event.
#[derive(Clone, Debug)]
pub struct Setup {
    pub protect: Protect,
    pub ack: Ack,
    pub require: Require,
    pub overflow: Overflow,
    pub lag_max: Option<LagMax>,
    pub isolated_continue: bool,
    pub freeze_timeout_ns: u64,
    pub volume_bytes: Vec<u64>,
    /// How much of each volume has data before the first start, per cent.
    pub planted_percent: u64,
    pub fifo_memory_bytes: u64,
    pub fifo_disk_bytes: u64,
    pub table_slots: u64,
    pub intent_neighbours: u64,
    /// From what length on holes are looked for in a range of a batch.
    pub look_bytes: u64,
    /// Pieces of batches cross as digests first.
    pub asks: bool,
    /// DR is asked for room before a volume grows.
    pub ask_room: bool,
    pub table_payload_bytes: u64,
    /// The table stands on a server that fences nobody.
    pub plain_table: bool,
    pub journal_bytes: u64,
    /// Of a segment of the journal.
    pub segment_bytes: u64,
    pub spool_bytes: u64,
    /// That it may grow to.
    pub spool_bytes_max: u64,
    /// Payloads that DR keeps in memory until they are applied.
    pub dr_cache_bytes: u64,
    pub streams: usize,
    pub volumes_direct: bool,
    pub clients: u64,
    pub requests: u64,
    pub request_bytes_max: u64,
    pub think_ns_max: u64,
    pub spool_bytes_min: u64,
    /// Where bits flip while DR is down; 0: nowhere.
    pub damage_seed: u64,
    /// The network cuts streams into few pieces: less to do for each seed.
    pub whole_pieces: bool,
    /// The faults happen within this time, then the seed's end begins.
    pub horizon_ns: u64,
    pub wan: Line,
    pub lan: Line,
    pub disks: [Speed; 3],
    pub faults: Vec<(u64, Fault)>,
    pub end: End,
    /// What a newer seed brings about more often than chance would.
    pub mood: Mood,
    /// Longest request of most clients, and how many of a hundred are trims and zeroes; 0: as each client draws.
    pub tiny_bytes: u64,
    pub discard_percent: u64,
    /// Clients go on while DR is away and while the site is lost, however much they have asked before.
    pub lively: bool,
    /// The operator uses `--force` from the first.
    pub force_first: bool,
    /// The operator asks again while the first promotion is under way.
    pub asks_twice: bool,
    /// Faults after the horizon strike a promotion; a table that is silent is given up, as the shell does.
    pub fresh: bool,
    /// The primary is told at once what the kernel has taken of what it sends.
    pub kernel_takes: bool,
    /// Of a table on any other server: the share of requests that it comes to later, and how much later at most, percent and ns.
    pub slow_table: Option<(u64, u64)>,
    /// Both sides are compared once everything is well again, and something of DR's is damaged before.
    pub compares: bool,
    /// Clients go on asking a little after the last fault.
    pub trickles: bool,
    /// A loss of power tears sectors inside.
    pub tears_sectors: bool,
    /// Trims and zeroes may be as long as a volume.
    pub long_ranges: bool,
    /// Both sides are compared from time to time.
    pub scrub: Option<Scrub>,
}

#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub delay_ns: u64,
    pub jitter_ns: u64,
    pub bytes_per_second: u64,
}

/// How long a disk operation takes.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub min_ns: u64,
    pub max_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, possibly in the middle of carrying out the effects of one step; started again later.
    Kill {
        node: Node,
        down_ns: u64,
    },
    PowerLoss {
        node: Node,
        down_ns: u64,
    },
    /// SIGTERM, then started again.
    Stop {
        node: Node,
        down_ns: u64,
    },
    Pause {
        node: Node,
        for_ns: u64,
    },
    Cut {
        a: Node,
        b: Node,
    },
    Stall {
        from: Node,
        to: Node,
        for_ns: u64,
    },
    Partition {
        a: Node,
        b: Node,
        for_ns: u64,
    },
    /// Killed when it is about to write its superblock: the rarest moments of all.
    KillAtSuperblock {
        node: Node,
        power: bool,
        down_ns: u64,
    },
    /// DR is killed when its superblock is about to name a batch that is complete, cut off from the primary, and a
    /// payload from before that batch is damaged before the next start.
    KillAtCommit {
        down_ns: u64,
    },
    /// The primary is killed some time after it has begun to read what a refused write has left, and before it is read.
    KillAtMending {
        down_ns: u64,
    },
    /// A bit flips under a running role in what its formats promise to see damaged: for ever, or in what is read once.
    Spoil {
        node: Node,
        moment: Moment,
        kept: bool,
        seed: u64,
    },
    /// Operations on its files fail for a while.
    DiskFails {
        node: Node,
        how: Failing,
        for_ns: u64,
    },
    /// The next operation of that kind fails.
    FailsOnce {
        node: Node,
        how: Failing,
    },
    /// The volumes of the primary refuse so many of a hundred writes for want of space; everything else of its disk does not.
    VolumesFull {
        percent: u64,
        for_ns: u64,
    },
    /// No operation completes on its disk, or on its volumes, for a while.
    DiskStalls {
        node: Node,
        volumes_only: bool,
        for_ns: u64,
    },
    /// Killed, and a bit of what it wrote flips before the next start.
    Rot {
        node: Node,
        down_ns: u64,
    },
    /// The next write to one of its files lands in another place of that file.
    Misdirect {
        node: Node,
    },
    /// A bit flips in what the two send each other.
    Garble {
        a: Node,
        b: Node,
    },
    /// An operator has a volume grow; DR's store has no room for that for a while.
    Resize {
        volume: Volume,
        bytes: u64,
        small_for_ns: u64,
    },
    /// The operator has DR give up its recovery point: everything is copied anew, in place.
    Recopy,
    /// An operator has both sides compared.
    Verify {
        repair: bool,
    },
    /// The wall clock jumps.
    Clock {
        node: Node,
        by_ns: i64,
    },
}

impl Fault {
    /// Whether it is about this host alone.
    pub fn strikes(self, host: Node) -> bool {
        match self {
            Fault::Kill { node, .. }
            | Fault::PowerLoss { node, .. }
            | Fault::Stop { node, .. }
            | Fault::Pause { node, .. }
            | Fault::KillAtSuperblock { node, .. }
            | Fault::DiskFails { node, .. }
            | Fault::FailsOnce { node, .. }
            | Fault::DiskStalls { node, .. } => node == host,
            _ => false,
        }
    }
}

/// When something is damaged under a running role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At once, at rest.
    Rest,
    /// As it is read.
    Read,
    /// As a payload is read back by DR, in a read that takes until DR names a batch.
    Naming,
    /// As it is read while DR applies the next batch.
    Applying,
    /// As it is read in a promotion.
    Promoting,
    /// As it is read by the next start, once.
    Start,
}

/// What fails on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    Reads,
    Writes,
    Syncs,
    /// Writes, for want of space.
    Full,
}

impl Failing {
    pub const ALL: [Failing; 4] = [Failing::Reads, Failing::Writes, Failing::Syncs, Failing::Full];
}

/// What a newer seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Plain,
    /// DR is out of reach while more is written than the status table has slots.
    Outage,
    /// DR applies nothing while its journal of two segments fills.
    Brim,
    /// A payload ring that is too small for what the line holds back.
    Ring,
    /// Answers reach the old primary late.
    Late,
    /// Bits flip.
    Rot,
    /// A batch is given up for another while payloads between them have crossed.
    Hollow,
    /// DR loses its power again and again while much is on its way to a slow disk.
    Torn,
    /// Disks fail, stall and are full; clocks jump.
    Failing,
}

/// How a seed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The faults stop; the two sides must become identical.
    Heal,
    Disaster(Disaster),
}

/// The site of the primary is lost, or thought to be, and DR is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disaster {
    pub primary: PrimaryFate,
    pub aux: AuxFate,
    /// DR loses its power just before.
    pub dr_power_loss: bool,
    pub plan_first: bool,
    /// DR dies this many times in the middle of the promotion, which is asked for again.
    pub interruptions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrimaryFate {
    Killed,
    /// Comes back when the promotion is done.
    KilledAndBack,
    Paused,
    CutFromDr,
    CutFromBoth,
    Alive,
    /// What is sent to it arrives late; later seeds only.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuxFate {
    Reachable,
    PowerCycled,
    Lost,
    CutFromDr,
}

const PAIRS: [(Node, Node); 3] = [(Node::Primary, Node::Dr), (Node::Primary, Node::Aux), (Node::Dr, Node::Aux)];
const NODES: [Node; 3] = [Node::Primary, Node::Aux, Node::Dr];

impl Setup {
    pub fn draw(seed: u64, rng: &mut Rng) -> Setup {
        let protect = rng.pick(&[Protect::Async, Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync]);
        let volumes = rng.pick(&[1, 1, 2, 3]);
        let horizon_ns = rng.scale(2, 40) * SECOND;
        let long_wan = rng.chance(60);
        let mut setup = Setup {
            protect,
            ack: rng.pick(&[Ack::Write, Ack::Write, Ack::Flush]),
            require: rng.pick(&[Require::Any, Require::Any, Require::Both, Require::None]),
            overflow: rng.pick(&[Overflow::Coalesce, Overflow::Coalesce, Overflow::Pace, Overflow::Refuse]),
            lag_max: None,
            isolated_continue: rng.chance(10),
            freeze_timeout_ns: rng.pick(&[0, 0, 2 * SECOND]),
            volume_bytes: (0..volumes).map(|_| rng.range(64, 512) * 4096).collect(),
            planted_percent: rng.pick(&[0, 0, 30, 100]),
            fifo_memory_bytes: rng.scale(64 << 10, 8 << 20),
            fifo_disk_bytes: rng.pick(&[0, 512 << 10, 1 << 20, 4 << 20]),
            // Not drawn: what the other seeds draw stays as it was.
            look_bytes: u64::MAX,
            asks: seed >= ASKING_SEEDS,
            ask_room: false,
            intent_neighbours: if seed.is_multiple_of(3) { 16 } else { 1 },
            table_slots: rng.pick(&[1024, 1024, 2048, 8192]),
            table_payload_bytes: 0,
            plain_table: rng.chance(20),
            journal_bytes: rng.pick(&[2, 2, 3, 8]) << 20,
            segment_bytes: farshore::limits::SEGMENT_BYTES,
            spool_bytes: 0,
            spool_bytes_max: 0,
            dr_cache_bytes: farshore::limits::DR_CACHE_BYTES_MAX,
            streams: rng.pick(&[1, 2, 4, 8]),
            volumes_direct: rng.chance(60),
            clients: rng.range(1, 4),
            requests: rng.scale(50, 3000),
            request_bytes_max: 256 << 10,
            think_ns_max: 200 * MS,
            spool_bytes_min: 6 << 20,
            damage_seed: 0,
            whole_pieces: false,
            horizon_ns,
            wan: Line {
                delay_ns: if long_wan { rng.scale(1, 80) * MS } else { rng.scale(20, 500) * US },
                jitter_ns: rng.scale(10, 20_000) * US,
                bytes_per_second: rng.scale(512 << 10, 256 << 20),
            },
            lan: Line {
                delay_ns: rng.scale(20, 500) * US,
                jitter_ns: rng.scale(5, 500) * US,
                bytes_per_second: 1 << 30,
            },
            disks: [Speed::draw(rng), Speed::draw(rng), Speed::draw(rng)],
            faults: Vec::new(),
            end: End::Heal,
            mood: Mood::Plain,
            tiny_bytes: 0,
            discard_percent: 0,
            lively: false,
            force_first: false,
            asks_twice: false,
            fresh: false,
            kernel_takes: false,
            slow_table: None,
            compares: false,
            trickles: seed >= TRICKLE_SEEDS && Rng::new(seed ^ TRICKLE_SALT).chance(60),
            tears_sectors: false,
            long_ranges: false,
            scrub: None,
        };
        if seed >= LATER_SEEDS {
            setup.draw_later(&mut Rng::new(!seed));
        }
        if protect == Protect::Bunker || rng.chance(10) {
            setup.table_payload_bytes = rng.pick(&[1, 2, 8]) << 20;
        }
        // As in a real configuration: a spool takes the longest batch, and its window the longest piece of one.
        let volumes_bytes: u64 = setup.volume_bytes.iter().sum();
        setup.spool_bytes =
            (volumes_bytes * rng.pick(&[5, 8, 16]) / 4).next_multiple_of(1 << 20).max(setup.spool_bytes_min);
        setup.faults = draw_faults(rng, setup.horizon_ns);
        setup.end = if rng.chance(35) { End::Heal } else { End::Disaster(Disaster::draw(rng)) };
        if seed >= LATER_SEEDS {
            setup.worsen(&mut Rng::new(!seed).fork());
        }
        if seed >= NEWEST_SEEDS {
            setup.swarm(&mut Rng::new(seed ^ 0x5eed_5eed));
            setup.spoil(&mut Rng::new(seed ^ SPOIL_SALT));
            setup.burst(&mut Rng::new(seed ^ BURST_SALT));
            if cfg!(feature = "planted") {
                setup.short_journal(&mut Rng::new(seed ^ SHORT_SALT));
            }
            setup.resize(&mut Rng::new(seed ^ RESIZE_SALT));
            setup.look_for_holes(&mut Rng::new(seed ^ HOLES_SALT));
            setup.ask_room = Rng::new(seed ^ ROOM_SALT).chance(50);
            setup.bound_lag(&mut Rng::new(seed ^ LAG_SALT));
            setup.fill_volumes(&mut Rng::new(seed ^ FULL_SALT));
        }
        if seed >= FRESH_SEEDS {
            setup.freshen(&mut Rng::new(seed ^ FRESH_SALT));
        }
        if seed >= KEEN_SEEDS {
            setup.sharpen(&mut Rng::new(seed ^ KEEN_SALT));
        }
        setup.spool_bytes_max = setup.spool_bytes;
        if seed >= GROWTH_SEEDS {
            setup.let_grow(&mut Rng::new(seed ^ GROWTH_SALT));
        }
        setup
    }

    /// What later seeds draw otherwise: mostly small, so that there are many of them, and tight bounds are met.
    fn draw_later(&mut self, rng: &mut Rng) {
        for bytes in &mut self.volume_bytes {
            *bytes = rng.scale(16, 256) * 4096;
        }
        self.request_bytes_max = rng.pick(&[4 << 10, 16 << 10, 64 << 10, 64 << 10, 256 << 10]);
        self.whole_pieces = rng.chance(70);
        self.clients = rng.range(1, 5);
        self.requests = if rng.chance(75) { rng.scale(30, 500) } else { rng.scale(500, 3000) };
        self.think_ns_max = rng.pick(&[5 * MS, 20 * MS, 200 * MS]);
        if rng.chance(60) {
            self.horizon_ns = rng.scale(300, 8000) * MS;
        }
        self.fifo_memory_bytes = rng.scale(64 << 10, 2 << 20);
        self.spool_bytes_min = rng.pick(&[5, 6, 8]) << 20;
        if rng.chance(2) {
            // More orders than table and journal hold, on a line too slow for their payloads.
            self.requests = 24_000;
            self.request_bytes_max = 1024;
            self.think_ns_max = MS;
            self.wan.bytes_per_second = rng.scale(512 << 10, 2 << 20);
        }
    }

    /// A bound on the lag, for some that are paced.
    fn bound_lag(&mut self, rng: &mut Rng) {
        if self.overflow == Overflow::Pace && rng.chance(40) {
            let writes = rng.chance(70).then(|| rng.scale(1, 300));
            let bytes = rng.chance(30).then(|| rng.scale(4 << 10, 1 << 20));
            let seconds =
                if writes.is_none() && bytes.is_none() || rng.chance(20) { Some(rng.range(1, 3)) } else { None };
            self.lag_max = Some(LagMax { writes, bytes, seconds });
        }
    }

    /// Faults that follow from others, in later seeds.
    fn worsen(&mut self, rng: &mut Rng) {
        for (at, fault) in self.faults.clone() {
            if let Fault::Kill { node, down_ns } = fault
                && rng.chance(40)
            {
                // What a killed process left in flight, its successor must not trust.
                let at = at + down_ns + rng.scale(10 * US, 500 * MS);
                self.faults.push((at, Fault::PowerLoss { node, down_ns: rng.scale(10, 1000) * MS }));
            }
        }
        self.faults.sort_by_key(|(at, _)| *at);
        if rng.chance(12) {
            self.damage_seed = rng.u64() | 1;
        }
        if let End::Disaster(disaster) = &mut self.end
            && rng.chance(15)
        {
            disaster.primary = PrimaryFate::Late;
        }
    }

    pub fn speed(&self, node: Node) -> Speed {
        self.disks[node as usize]
    }
}

impl Speed {
    fn draw(rng: &mut Rng) -> Speed {
        let min_ns = rng.scale(5, 500) * US;
        Speed { min_ns, max_ns: min_ns * rng.pick(&[2, 10, 100]) }
    }
}

impl Disaster {
    fn draw(rng: &mut Rng) -> Disaster {
        use PrimaryFate::{Alive, CutFromBoth, CutFromDr, Killed, KilledAndBack, Paused};
        Disaster {
            primary: rng.pick(&[Killed, Killed, Killed, KilledAndBack, Paused, CutFromDr, CutFromBoth, Alive]),
            aux: rng.pick(&[
                AuxFate::Reachable,
                AuxFate::Reachable,
                AuxFate::Reachable,
                AuxFate::PowerCycled,
                AuxFate::Lost,
                AuxFate::CutFromDr,
            ]),
            dr_power_loss: rng.chance(30),
            plan_first: rng.chance(30),
            interruptions: if rng.chance(35) { rng.range(1, 3) } else { 0 },
        }
    }
}

fn draw_faults(rng: &mut Rng, horizon_ns: u64) -> Vec<(u64, Fault)> {
    let kinds: Vec<u64> = (0..7).filter(|_| rng.chance(40)).collect();
    let count = if rng.chance(15) || kinds.is_empty() { 0 } else { rng.scale(1, 24) };
    let mut faults: Vec<(u64, Fault)> = (0..count)
        .map(|_| {
            let node = rng.pick(&NODES);
            let (a, b) = rng.pick(&PAIRS);
            let down_ns = rng.scale(10, 8000) * MS;
            let fault = match rng.pick(&kinds) {
                0 => Fault::Kill { node, down_ns },
                1 => Fault::PowerLoss { node, down_ns },
                2 => Fault::Stop { node, down_ns },
                3 => Fault::Pause { node, for_ns: down_ns },
                4 => Fault::Cut { a, b },
                5 => {
                    let (from, to) = if rng.chance(50) { (a, b) } else { (b, a) };
                    Fault::Stall { from, to, for_ns: down_ns }
                }
                _ => Fault::Partition { a, b, for_ns: down_ns },
            };
            (rng.below(horizon_ns), fault)
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}
