//! Owns what a seed draws: the group's configuration, the sizes of every bound, the speed of disks and links,
//! and the mix of faults (swarm testing: each seed has its own).

use farshore::core::modes::{Ack, Overflow, Protect, Require};

use crate::network::Node;
use crate::rng::Rng;

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// Everything that is drawn before the first event.
#[derive(Clone, Debug)]
pub struct Setup {
    pub protect: Protect,
    pub ack: Ack,
    pub require: Require,
    pub overflow: Overflow,
    pub isolated_continue: bool,
    pub freeze_timeout_ns: u64,
    pub volume_bytes: Vec<u64>,
    /// How much of each volume has data before the first start, per cent.
    pub planted_percent: u64,
    pub fifo_memory_bytes: u64,
    pub fifo_disk_bytes: u64,
    pub table_slots: u64,
    pub intent_neighbours: u64,
    pub table_payload_bytes: u64,
    /// The table stands on a server that fences nobody.
    pub plain_table: bool,
    pub journal_bytes: u64,
    pub spool_bytes: u64,
    pub streams: usize,
    pub volumes_direct: bool,
    pub clients: u64,
    pub requests: u64,
    /// The faults happen within this time, then the seed's end begins.
    pub horizon_ns: u64,
    pub wan: Line,
    pub lan: Line,
    pub disks: [Speed; 3],
    pub faults: Vec<(u64, Fault)>,
    pub end: End,
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
            isolated_continue: rng.chance(10),
            freeze_timeout_ns: rng.pick(&[0, 0, 2 * SECOND]),
            volume_bytes: (0..volumes).map(|_| rng.range(64, 512) * 4096).collect(),
            planted_percent: rng.pick(&[0, 0, 30, 100]),
            fifo_memory_bytes: rng.scale(64 << 10, 8 << 20),
            fifo_disk_bytes: rng.pick(&[0, 512 << 10, 1 << 20, 4 << 20]),
            // Not drawn: what the other seeds draw stays as it was.
            intent_neighbours: if seed.is_multiple_of(3) { 16 } else { 1 },
            table_slots: rng.pick(&[1024, 1024, 2048, 8192]),
            table_payload_bytes: 0,
            plain_table: rng.chance(20),
            journal_bytes: rng.pick(&[2, 2, 3, 8]) << 20,
            spool_bytes: 0,
            streams: rng.pick(&[1, 2, 4, 8]),
            volumes_direct: rng.chance(60),
            clients: rng.range(1, 4),
            requests: rng.scale(50, 3000),
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
        };
        if protect == Protect::Bunker || rng.chance(10) {
            setup.table_payload_bytes = rng.pick(&[1, 2, 8]) << 20;
        }
        // As in a real configuration: a spool takes the longest batch, and its window the longest piece of one.
        let volumes_bytes: u64 = setup.volume_bytes.iter().sum();
        setup.spool_bytes = (volumes_bytes * rng.pick(&[5, 8, 16]) / 4).next_multiple_of(1 << 20).max(6 << 20);
        setup.faults = draw_faults(rng, horizon_ns);
        setup.end = if rng.chance(35) { End::Heal } else { End::Disaster(Disaster::draw(rng)) };
        setup
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
