//! Owns the world: three hosts, their clocks, disks and processes, the network between them, and the one queue
//! of events that everything happens through.
//!
//! Nothing here knows what is right; `roles` carries out the effects of the machines (as their shells do),
//! `scenario` decides what happens to them, `checkers` judge.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;
use farshore::core::errno::Errno;
use farshore::core::ids::{Conn, Extent, Owner, Seq, Ticket, Volume};
use farshore::core::machine::Now;
use farshore::core::rope::Rope;
use farshore::format::spool::sized_nonce;
use farshore::format::superblock::{Superblock, newest};
use farshore::{auxiliary, dr, primary};
use xxhash_rust::xxh3::Xxh3;

use crate::checkers::{Outcome, Payloads, Records, Verdict, Violation};
use crate::disk::{Class, Disk, Settled};
use crate::growth::SpoolFile;
use crate::live::Live;
use crate::network::{Network, Node};
use crate::oracle::{Images, Oracle};
use crate::plain;
use crate::rng::Rng;
use crate::runner::Edit;
use crate::scenario::Director;
use crate::setup::{MS, Setup, US};
use crate::verify::Comparing;
use crate::workload::Client;
use crate::writer::IntentSeen;

/// What crosses between a client of the status table and the auxiliary.
#[derive(Clone, Debug)]
pub enum TableTalk {
    Open { export: String },
    Read { cookie: u64, offset: u64, length: u64 },
    Write { cookie: u64, offset: u64, data: Bytes, fua: bool },
    Granted { size: u64 },
    Refused { text: String, fenced: bool },
    Reply { cookie: u64, result: Result<Bytes, Errno> },
}

#[derive(Clone, Debug)]
pub enum Event {
    Disk {
        node: Node,
        run: u64,
        operation: u64,
    },
    Net {
        link: u64,
        side: usize,
    },
    Tick {
        node: Node,
        run: u64,
    },
    EndOfTurn {
        run: u64,
    },
    /// A client may ask again.
    Ask {
        client: usize,
        run: u64,
    },
    Start {
        node: Node,
    },
    Resume {
        node: Node,
    },
    /// The shell's answer to a question about files.
    Allocated {
        run: u64,
    },
    Holes {
        run: u64,
        batch: Seq,
        extent: Extent,
    },
    /// A store of DR was asked to grow.
    Grown {
        run: u64,
        volume: Volume,
        size: u64,
    },
    SpoolGrown {
        run: u64,
        bytes: u64,
    },
    ReportStored {
        run: u64,
        ticket: Ticket,
        report: Box<dr::promote::LossReport>,
    },
    /// The kernel has taken this much of what the primary gave to a stream.
    Taken {
        run: u64,
        conn: Conn,
        upto: u64,
    },
    /// What DR asked of a status table that is not open.
    Gone {
        run: u64,
        ticket: Ticket,
    },
    /// A status table may have been silent for too long.
    Silent {
        node: Node,
        conn: Conn,
    },
    /// A slow server under the status table comes to a request.
    Served {
        run: u64,
        number: u64,
    },
    Fault {
        index: usize,
    },
    Director,
}

/// An event and when it happens; those of one moment in the order they were scheduled.
struct Due {
    /// The time in the upper half, the order in the lower one: compared at once.
    key: u128,
    event: Event,
}

impl Due {
    fn new(at_ns: u64, order: u64, event: Event) -> Due {
        Due { key: u128::from(at_ns) << 64 | u128::from(order), event }
    }
}

impl Ord for Due {
    /// The next one is the greatest.
    fn cmp(&self, other: &Due) -> Ordering {
        other.key.cmp(&self.key)
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.key == other.key
    }
}

impl Eq for Due {}

/// One host and the process on it.
pub struct Host {
    pub up: bool,
    /// Counts the processes that ran here: an event of an earlier one is void.
    pub run: u64,
    pub boot: u64,
    /// While the process is stopped: what waits for it.
    pub paused: Option<Vec<Event>>,
    pub tick_at_ns: Option<u64>,
    /// The host's clocks against the world's.
    pub mono_offset_ns: u64,
    pub wall_offset_ns: u64,
    /// Never to be started again.
    pub lost: bool,
    /// The process dies after this many further effects, with or without the host.
    pub doom: Option<(u64, bool, u64)>,
    /// Asked to end at this time, to be started again this long after it has.
    pub stopping: Option<(u64, u64)>,
    /// It dies at its next write of a superblock: with the host's power or without, and for how long.
    pub doom_at_superblock: Option<(bool, u64)>,
    /// DR dies when it completes a batch, for so long.
    pub doom_at_commit: Option<u64>,
    /// The primary dies while it reads what a refused write has left, for so long.
    pub doom_at_mending: Option<u64>,
    /// Its disk completes nothing before this; the same of its volumes alone.
    pub disk_stalled_until_ns: u64,
    pub volumes_stalled_until_ns: u64,
    /// An operation has failed: it ends, or did not start, and that is right.
    pub excused: bool,
    /// A bit flips before the next start.
    pub rots: bool,
    /// It does so in a payload of the spool from before this batch.
    pub rots_before: Seq,
}

/// Who serves the status table.
pub enum Table {
    Own(Box<auxiliary::machine::Auxiliary>),
    Plain(plain::Server),
}

/// A client's connection to the status table, on the primary or on DR.
#[derive(Default)]
pub struct TableLine {
    pub conn: Option<Conn>,
    pub export: String,
    pub granted: bool,
    /// Answers that are due, and when anything was heard last.
    pub due: u64,
    pub heard_ns: u64,
}

pub struct ClientState {
    pub client: Client,
    pub in_flight: u64,
}

/// What a request of the primary is answered to.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub client: usize,
    pub number: usize,
}

pub struct World {
    pub setup: Setup,
    pub rng: Rng,
    pub now_ns: u64,
    queue: BinaryHeap<Due>,
    order: u64,
    pub hosts: [Host; 3],
    pub net: Network<TableTalk>,
    pub oracle: Oracle,

    pub primary: Option<primary::machine::Machine>,
    pub primary_disk: Disk<primary::machine::File>,
    pub primary_table: TableLine,
    pub intent_seen: IntentSeen,
    pub aux: Option<Table>,
    pub aux_disk: Disk<auxiliary::machine::File>,
    pub dr: Option<dr::machine::Machine>,
    pub dr_disk: Disk<dr::machine::File>,
    pub dr_table: TableLine,
    pub dr_report: Option<dr::promote::LossReport>,
    pub dr_blank: bool,
    /// Until when the store of each volume of DR does not grow.
    pub dr_small_until_ns: Vec<u64>,
    /// Of what is in stores that have grown.
    pub noise: Rng,
    pub ropes: BTreeMap<(Node, Conn), Rope>,
    /// What the primary gave to each stream, bytes.
    pub given: BTreeMap<Conn, u64>,
    pub next_conn: u64,

    pub clients: Vec<ClientState>,
    pub asked: BTreeMap<u64, Asked>,
    pub requests_left: u64,
    pub end_of_turn_due: bool,

    pub journal: Records,
    pub table: Records,
    pub spool: Payloads,
    pub ring: Payloads,
    pub table_reach: (u64, u64),
    pub group_id: u64,
    /// Orders that a slow server put into the table while DR was being promoted.
    pub came_late: BTreeSet<Seq>,
    pub met: crate::bounds::Met,
    pub comparing: Comparing,
    /// Highest seq that DR called durable in its journal.
    pub journal_told: Seq,
    /// Of those, what DR was led past before it had told of them.
    pub passed_untold: BTreeSet<Seq>,
    /// DR's superblock in force, by its stable bytes.
    pub dr_superblock: Option<Superblock>,
    /// What its process has promised so far, and was found durable.
    pub promise_checked: Seq,
    /// Epochs that writers asked for at the auxiliary, and the highest that was granted.
    pub aux_writers: BTreeMap<Conn, u32>,
    pub aux_epoch: u32,
    /// Bits of DR's files have flipped.
    pub damaged: bool,
    /// Seqs whose record, and those whose payload was damaged there; the latter with when the start was that has to have
    /// noticed, if one was: what is asked of the primary after it relies on no such payload.
    pub dr_rotten: BTreeSet<Seq>,
    pub dr_rotten_payloads: BTreeMap<Seq, u64>,
    /// Those of `dr_rotten` since whose damage the primary has heard that DR's journal lacks orders.
    pub dr_rotten_heard: BTreeSet<Seq>,
    /// Of the auxiliary: seqs whose record or payload was damaged there, or all of them.
    pub aux_rotten: BTreeSet<Seq>,
    pub aux_astray: bool,
    /// A write to DR's spool has landed elsewhere: on another payload, maybe.
    pub dr_spool_astray: bool,
    pub spool_file: SpoolFile,
    /// A write to the table, to the journal or to the spool has landed elsewhere.
    pub astray: bool,
    /// Payloads in the ring: seq, offset in the table, bytes.
    pub ring_places: Vec<(Seq, u64, u64)>,
    /// Boot in which the primary last started; 0 before its first start.
    pub primary_boot: u64,
    /// Highest cut DR ever told, and whether it ever said that it has a recovery point.
    pub cut_told: Seq,
    pub synced_told: bool,
    pub promoted_at_ns: Option<u64>,
    pub outcome: Option<Outcome>,
    pub serving: bool,
    /// Whether the lag has been within its bound since DR has a copy.
    pub lag_bound: bool,
    pub promise_full: bool,
    /// Whether the mode was in full force when the primary's last turn ended.
    pub full_at_turn: bool,
    /// Since `bunker` was last in force, something other than a full ring has kept data out of it.
    pub ring_excused: bool,
    /// A write to a volume of the primary is being refused for want of space.
    pub volume_refused: bool,
    /// A disk operation of the primary has failed otherwise: it is about to end.
    pub volume_failed: bool,
    /// This process of the primary has been told of a higher epoch.
    pub fence_heard: bool,

    pub recording: bool,
    /// Of all that happened, while recording.
    happened: Xxh3,
    pub history: VecDeque<String>,
    pub landmarks: VecDeque<String>,
    pub events: u64,
    pub events_max: u64,
    pub director: Director,
    pub live: Live,
}

thread_local! {
    /// `SIM_LIVE=1`: say everything at once, for a run that never comes to an end.
    static LIVE: bool = std::env::var_os("SIM_LIVE").is_some();
}

pub const EVENTS_MAX: u64 = 3_000_000;
const HISTORY_LINES: usize = 2000;

impl World {
    pub fn new(seed: u64, edit: &Edit, recording: bool) -> World {
        let mut rng = Rng::new(seed);
        let mut setup = Setup::draw(seed, &mut rng);
        #[cfg(feature = "planted")]
        farshore::core::planted::segments_of(setup.segment_bytes);
        edit.apply(&mut setup);
        let mut net = Network::new(rng.fork());
        net.whole_pieces = setup.whole_pieces;
        let (wan, lan) = (setup.wan, setup.lan);
        net.route(Node::Primary, Node::Dr, wan.delay_ns, wan.jitter_ns, wan.bytes_per_second);
        net.route(Node::Dr, Node::Aux, wan.delay_ns, wan.jitter_ns, wan.bytes_per_second);
        net.route(Node::Primary, Node::Aux, lan.delay_ns, lan.jitter_ns, lan.bytes_per_second);
        let images = plant_images(&setup, &mut rng);
        let clients = (0..setup.clients)
            .map(|_| {
                let volume = rng.below(setup.volume_bytes.len() as u64);
                let bytes = setup.volume_bytes[volume as usize];
                let max = (setup.request_bytes_max, setup.think_ns_max);
                let mut client = Client::draw(&mut rng, Volume(volume as u16), bytes, max);
                client.restrain(setup.tiny_bytes, setup.discard_percent, setup.long_ranges);
                ClientState { client, in_flight: 0 }
            })
            .collect();
        let hosts = [0, 1, 2].map(|_| Host {
            up: false,
            run: 0,
            boot: 1 + rng.below(1 << 32),
            paused: None,
            tick_at_ns: None,
            mono_offset_ns: rng.range(1, 1 << 50),
            wall_offset_ns: (1 << 60) + rng.below(1 << 35),
            lost: false,
            doom: None,
            stopping: None,
            doom_at_superblock: None,
            doom_at_commit: None,
            doom_at_mending: None,
            disk_stalled_until_ns: 0,
            volumes_stalled_until_ns: 0,
            excused: false,
            rots: false,
            rots_before: Seq(0),
        });
        let mut world = World {
            now_ns: 0,
            queue: BinaryHeap::new(),
            order: 0,
            hosts,
            net,
            oracle: Oracle::new(images.clone()),
            primary: None,
            primary_disk: Disk::new(),
            primary_table: TableLine::default(),
            intent_seen: IntentSeen::default(),
            aux: None,
            aux_disk: Disk::new(),
            dr: None,
            dr_disk: Disk::new(),
            dr_table: TableLine::default(),
            dr_report: None,
            dr_blank: rng.chance(80),
            dr_small_until_ns: vec![0; setup.volume_bytes.len()],
            noise: Rng::new(seed ^ 0x0001_5e00),
            ropes: BTreeMap::new(),
            given: BTreeMap::new(),
            next_conn: 1 << 50,
            clients,
            asked: BTreeMap::new(),
            requests_left: setup.requests,
            end_of_turn_due: false,
            journal: Records::default(),
            table: Records::default(),
            spool: Payloads::default(),
            ring: Payloads::default(),
            table_reach: (0, 0),
            group_id: 0,
            journal_told: Seq(0),
            came_late: BTreeSet::new(),
            met: crate::bounds::Met::default(),
            comparing: Comparing::default(),
            passed_untold: BTreeSet::new(),
            dr_superblock: None,
            promise_checked: Seq(0),
            aux_writers: BTreeMap::new(),
            aux_epoch: 0,
            damaged: false,
            dr_rotten: BTreeSet::new(),
            dr_rotten_payloads: BTreeMap::new(),
            dr_rotten_heard: BTreeSet::new(),
            aux_rotten: BTreeSet::new(),
            aux_astray: false,
            dr_spool_astray: false,
            spool_file: SpoolFile::default(),
            astray: false,
            ring_places: Vec::new(),
            primary_boot: 0,
            cut_told: Seq(0),
            synced_told: false,
            lag_bound: false,
            promoted_at_ns: None,
            outcome: None,
            serving: false,
            promise_full: false,
            full_at_turn: false,
            ring_excused: true,
            volume_refused: false,
            volume_failed: false,
            fence_heard: false,
            recording,
            happened: Xxh3::new(),
            history: VecDeque::new(),
            landmarks: VecDeque::new(),
            events: 0,
            events_max: EVENTS_MAX,
            director: Director::default(),
            live: Live::default(),
            setup,
            rng,
        };
        world.make_files(&images);
        for node in [Node::Primary, Node::Aux, Node::Dr] {
            let at = world.rng.below(200 * MS);
            world.at(at, Event::Start { node });
        }
        let faults: Vec<u64> = world.setup.faults.iter().map(|(at, _)| *at).collect();
        for (index, at) in faults.into_iter().enumerate() {
            world.at(at, Event::Fault { index });
        }
        world.at(world.setup.horizon_ns, Event::Director);
        world
    }

    /// Schedules an event; never earlier than now.
    pub fn at(&mut self, at_ns: u64, event: Event) {
        self.order += 1;
        self.queue.push(Due::new(at_ns.max(self.now_ns), self.order, event));
    }

    pub fn after(&mut self, delay_ns: u64, event: Event) {
        self.at(self.now_ns + delay_ns, event);
    }

    pub fn next_event(&mut self) -> Option<Event> {
        for (at_ns, link, side) in self.net.take_wakes() {
            self.order += 1;
            let at_ns = at_ns.max(self.now_ns);
            self.queue.push(Due::new(at_ns, self.order, Event::Net { link, side }));
        }
        let Due { key, event } = self.queue.pop()?;
        let (at_ns, order) = ((key >> 64) as u64, key as u64);
        self.now_ns = at_ns;
        self.events += 1;
        if self.recording {
            self.happened.update(format!("{at_ns} {order} {event:?}").as_bytes());
        }
        Some(event)
    }

    pub fn host(&self, node: Node) -> &Host {
        &self.hosts[node as usize]
    }

    pub fn host_mut(&mut self, node: Node) -> &mut Host {
        &mut self.hosts[node as usize]
    }

    /// What the clocks of a host say.
    pub fn clock(&self, node: Node) -> Now {
        let host = self.host(node);
        Now { mono_ns: self.now_ns + host.mono_offset_ns, wall_ns: self.now_ns + host.wall_offset_ns }
    }

    pub fn is_running(&self, node: Node, run: u64) -> bool {
        self.host(node).up && self.host(node).run == run
    }

    /// Sets the `Tick` that a machine asks for.
    pub fn set_tick(&mut self, node: Node, deadline_ns: Option<u64>) {
        let Some(deadline_ns) = deadline_ns else { return };
        let now_ns = self.now_ns;
        let host = self.host_mut(node);
        let at = deadline_ns.saturating_sub(host.mono_offset_ns).max(now_ns + US);
        if host.tick_at_ns.is_some_and(|t| t <= at && t > now_ns) {
            return;
        }
        host.tick_at_ns = Some(at);
        let run = host.run;
        self.at(at, Event::Tick { node, run });
    }

    /// When a disk operation of a host completes.
    pub fn disk_time(&mut self, node: Node) -> u64 {
        let speed = self.setup.speed(node);
        self.now_ns.max(self.host(node).disk_stalled_until_ns) + self.rng.range(speed.min_ns, speed.max_ns)
    }

    /// The process on a host dies, with its host's power or without.
    pub fn crash(&mut self, node: Node, power: bool) {
        self.landmark(|| format!("{node:?} {}", if power { "loses its power" } else { "is killed" }));
        let host = self.host_mut(node);
        if !host.up && !power {
            return;
        }
        host.up = false;
        host.run += 1;
        host.paused = None;
        host.tick_at_ns = None;
        host.doom = None;
        host.doom_at_superblock = None;
        host.stopping = None;
        host.boot += u64::from(power);
        self.net.node_down(self.now_ns, node, !power);
        self.ropes.retain(|(n, _), _| *n != node);
        match node {
            Node::Primary => {
                self.primary = None;
                self.forget_comparison();
                self.primary_table = TableLine::default();
                self.asked.clear();
                self.clients.iter_mut().for_each(|c| c.in_flight = 0);
                self.end_of_turn_due = false;
                lose(&mut self.primary_disk, power, &mut self.rng);
            }
            Node::Aux => {
                self.aux = None;
                lose(&mut self.aux_disk, power, &mut self.rng);
            }
            Node::Dr => {
                self.dr = None;
                self.dr_table = TableLine::default();
                self.promise_checked = Seq(0);
                self.forget_promotion();
                lose(&mut self.dr_disk, power, &mut self.rng);
                self.spool_left(power);
            }
        }
        self.spare_superblock(node);
        if power {
            self.look_again(node);
        }
    }

    /// After a loss of power: what happened to reach the disk is durable too.
    fn look_again(&mut self, node: Node) {
        let whole = |length: usize| (0, length as u64);
        match node {
            Node::Primary => {}
            Node::Aux => {
                let (offset, length) = whole(self.aux_disk.file(auxiliary::machine::File::Table).stable().len());
                self.settled_aux(&[Settled { file: auxiliary::machine::File::Table, offset, length }]);
            }
            Node::Dr => {
                let files = [dr::machine::File::Superblock, dr::machine::File::Journal, dr::machine::File::Spool];
                for file in files {
                    let (offset, length) = whole(self.dr_disk.file(file).stable().len());
                    self.settled_dr(&[Settled { file, offset, length }]);
                }
            }
        }
    }

    pub fn settled_aux(&mut self, settled: &[Settled<auxiliary::machine::File>]) {
        let (records_end, payload_at) = self.table_reach;
        for s in settled.iter().filter(|s| s.file == auxiliary::machine::File::Table) {
            let stable = self.aux_disk.file(s.file).stable();
            if s.offset < records_end {
                let length = s.length.min(records_end - s.offset);
                self.table.settled(stable, s.offset, length);
            }
            let end = s.offset + s.length;
            if end > payload_at && self.setup.table_payload_bytes > 0 {
                let from = s.offset.max(payload_at);
                self.ring.settled(stable, self.group_id, from, end - from);
            }
        }
    }

    pub fn settled_dr(&mut self, settled: &[Settled<dr::machine::File>]) {
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        for s in settled {
            let stable = self.dr_disk.file(s.file).stable();
            match s.file {
                dr::machine::File::Journal => self.journal.settled(stable, s.offset, s.length),
                dr::machine::File::Spool => self.spool.settled(stable, nonce, s.offset, s.length),
                dr::machine::File::Superblock => self.dr_superblock = newest(stable).ok().flatten(),
                dr::machine::File::Volume(_) => {}
            }
        }
    }

    /// The volumes of DR as a reader sees them, as long as DR says that they are at its recovery point.
    pub fn dr_images(&self) -> Vec<&[u8]> {
        let image = |v| self.dr_disk.file(dr::machine::File::Volume(v)).cache();
        self.volumes().zip(self.dr_sizes()).map(|(v, size)| begin(image(v), size)).collect()
    }

    pub fn dr_stable_images(&self) -> Vec<&[u8]> {
        let image = |v| self.dr_disk.file(dr::machine::File::Volume(v)).stable();
        self.volumes().zip(self.dr_sizes()).map(|(v, size)| begin(image(v), size)).collect()
    }

    fn dr_sizes(&self) -> Vec<usize> {
        let Some(machine) = &self.dr else { return vec![0; self.setup.volume_bytes.len()] };
        let status = machine.status(self.clock(Node::Dr));
        if status.promotion.as_ref().is_some_and(|text| text.starts_with("promoted")) {
            // What is served.
            return machine.volumes().into_iter().map(|(_, size)| size as usize).collect();
        }
        status.volumes.into_iter().map(|volume| volume.size_bytes as usize).collect()
    }

    /// The volumes of the primary, of so many bytes each.
    pub fn primary_images(&self, sizes: &[u64]) -> Images {
        let image = |v| self.primary_disk.file(primary::machine::File::Volume(v)).cache();
        self.volumes().zip(sizes).map(|(v, size)| image(v)[..*size as usize].to_vec()).collect()
    }

    /// Size of each volume, as the primary says.
    pub fn primary_sizes(&self) -> Vec<u64> {
        self.primary.iter().flat_map(|machine| machine.volumes()).map(|(_, size)| *size).collect()
    }

    pub fn volumes(&self) -> impl Iterator<Item = Volume> + use<> {
        (0..self.setup.volume_bytes.len() as u16).map(Volume)
    }

    /// Name and size of each volume, as a configuration has them.
    pub fn volume_list(&self) -> Vec<(String, u64)> {
        self.setup.volume_bytes.iter().enumerate().map(|(i, &b)| (format!("v{i}"), b)).collect()
    }

    pub fn owner(node: Node) -> Owner {
        Owner(0x1000 + node as u64)
    }

    /// One line of the history of a failing run; costs nothing otherwise.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.recording {
            let line = line();
            self.happened.update(line.as_bytes());
            let text = self.stamped(&line);
            remember(&mut self.history, text);
        }
    }

    /// The same for what one wants to see of the whole run: faults, starts, what the roles log.
    pub fn landmark(&mut self, line: impl FnOnce() -> String) {
        if self.recording {
            let line = line();
            self.happened.update(line.as_bytes());
            let text = self.stamped(&line);
            remember(&mut self.landmarks, text.clone());
            remember(&mut self.history, text);
        }
    }

    fn stamped(&self, text: &str) -> String {
        let end = text.char_indices().nth(600).map_or(text.len(), |(at, _)| at);
        format!("{:>14.6} ms  {}", self.now_ns as f64 / 1e6, &text[..end])
    }

    /// Of every event, input, effect and landmark of a recorded run, and of what it left: disks, and what would be drawn
    /// next.
    pub fn digest(&mut self) -> Option<u64> {
        if !self.recording {
            return None;
        }
        let mut all = self.happened.clone();
        self.primary_disk.digest(&mut all);
        self.aux_disk.digest(&mut all);
        self.dr_disk.digest(&mut all);
        for word in [self.now_ns, self.events, self.rng.u64(), self.noise.u64(), self.net.draw()] {
            all.update(&word.to_le_bytes());
        }
        Some(all.digest())
    }

    pub fn fail(&self, invariant: &'static str, text: impl Into<String>) -> Verdict {
        Err(Violation::new(invariant, text))
    }

    fn make_files(&mut self, images: &Images) {
        use farshore::format::intent::{LogLayout, MapLayout};
        use farshore::format::superblock::SUPERBLOCK_BYTES;
        use farshore::format::table::TableLayout;
        let superblock = SUPERBLOCK_BYTES as u64;
        let setup = &self.setup;
        let table = TableLayout::new(setup.table_slots, setup.table_payload_bytes);
        self.table_reach = (table.states_at, table.payload_at);
        let disk = &mut self.primary_disk;
        use primary::machine::File as P;
        disk.create(P::Superblock, superblock, Class::Direct);
        disk.create(P::IntentMap, MapLayout::new(&setup.volume_bytes).total_bytes(), Class::Direct);
        disk.create(P::IntentLog, LogLayout { slots: setup.table_slots }.total_bytes(), Class::Buffered);
        disk.create(P::Fifo, setup.fifo_disk_bytes, Class::Buffered);
        use dr::machine::File as D;
        let volume_class = if setup.volumes_direct { Class::Direct } else { Class::Buffered };
        self.dr_disk.create(D::Superblock, superblock, Class::Direct);
        self.dr_disk.create(D::Journal, setup.journal_bytes, Class::Direct);
        self.dr_disk.create(D::Spool, setup.spool_bytes, Class::Buffered);
        use auxiliary::machine::File as A;
        self.aux_disk.create(A::Superblock, superblock, Class::Direct);
        self.aux_disk.create(A::Table, table.total_bytes(), Class::Buffered);
        for (index, image) in images.iter().enumerate() {
            let volume = Volume(index as u16);
            self.primary_disk.create(P::Volume(volume), image.len() as u64, volume_class);
            self.primary_disk.plant(P::Volume(volume), 0, image);
            self.dr_disk.create(D::Volume(volume), image.len() as u64, volume_class);
            if !self.dr_blank {
                let mut noise = vec![0; image.len()];
                self.rng.fill(&mut noise);
                self.dr_disk.plant(D::Volume(volume), 0, &noise);
            }
        }
    }
}

/// So many bytes of a store, if it has them.
fn begin(bytes: &[u8], size: usize) -> &[u8] {
    bytes.get(..size).unwrap_or(bytes)
}

/// The nonce of DR's spool in every run: recovery takes it from the options at the first start.
pub const DR_NONCE: u64 = 0x5eed;

fn remember(lines: &mut VecDeque<String>, line: String) {
    if LIVE.with(|live| *live) {
        println!("{line}");
    }
    if lines.len() == HISTORY_LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

fn lose<F: Copy + Eq + std::fmt::Debug>(disk: &mut Disk<F>, power: bool, rng: &mut Rng) {
    if power {
        disk.power_loss(rng);
    } else {
        disk.kill(rng);
    }
}

/// What the volumes hold before the first start.
fn plant_images(setup: &Setup, rng: &mut Rng) -> Images {
    let blocks = |bytes: u64| bytes / 4096;
    setup
        .volume_bytes
        .iter()
        .map(|&bytes| {
            let mut image = vec![0; bytes as usize];
            for block in 0..blocks(bytes) as usize {
                if rng.chance(setup.planted_percent) {
                    rng.fill(&mut image[block * 4096..(block + 1) * 4096]);
                }
            }
            image
        })
        .collect()
}
