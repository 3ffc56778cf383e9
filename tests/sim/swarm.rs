//! Owns what the newest seeds draw: each has a mood that brings about what chance would show too seldom, and
//! small bounds, so that a seed is over soon and there are many of them (swarm testing).
//!
//! | mood | brings about |
//! |---|---|
//! | outage | the status table is full while DR is away; records that only the table knows |
//! | brim | a journal that is full of what is not applied |
//! | ring | a payload ring that is full of what has not crossed |
//! | late | a primary that is answered after its lease |
//! | rot | damage at rest in what the next start needs |
//! | hollow | a batch that is taken over when payloads from before it are damaged |
//! | torn | gaps in the journal of a DR that loses its power |
//! | failing | failing, full and stalled disks, clocks that jump |

use farshore::core::ids::Volume;
use farshore::core::modes::{Ack, Overflow, Protect, Require};

use crate::network::Node;
use crate::rng::Rng;
use crate::setup::{AuxFate, Disaster, End, Failing, Fault, MS, Moment, Mood, PrimaryFate, SECOND, Setup};

const NODES: [Node; 3] = [Node::Primary, Node::Aux, Node::Dr];

impl Setup {
    /// What the newest seeds draw beyond all others.
    pub fn swarm(&mut self, rng: &mut Rng) {
        self.shorten(rng);
        self.lively = true;
        self.force_first = rng.chance(8);
        self.asks_twice = rng.chance(15);
        let moods = [
            (Mood::Plain, 430),
            (Mood::Outage, 120),
            (Mood::Brim, 6),
            (Mood::Ring, 80),
            (Mood::Late, 60),
            (Mood::Rot, 130),
            (Mood::Hollow, 60),
            (Mood::Torn, 90),
            (Mood::Failing, 84),
        ];
        let mut draw = rng.below(moods.iter().map(|(_, weight)| weight).sum());
        for (mood, weight) in moods {
            if draw < weight {
                self.mood = mood;
                break;
            }
            draw -= weight;
        }
        match self.mood {
            Mood::Plain => {}
            Mood::Outage => self.outage(rng),
            Mood::Brim => self.brim(rng),
            Mood::Ring => self.ring(rng),
            Mood::Late => self.late(rng),
            Mood::Rot => self.rot(rng),
            Mood::Hollow => self.hollow(rng),
            Mood::Torn => self.torn(rng),
            Mood::Failing => self.failing(rng),
        }
        if self.protect == Protect::Bunker && self.table_payload_bytes == 0 {
            self.table_payload_bytes = 1 << 20;
        }
        if self.mood != Mood::Brim && rng.chance(12) {
            self.hazards(rng);
        }
        self.fit_spool(rng);
        if self.mood == Mood::Plain && rng.chance(12) {
            self.long_writes(rng);
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// Less of everything: a seed is worth what happens in it, not how long it takes.
    fn shorten(&mut self, rng: &mut Rng) {
        for bytes in &mut self.volume_bytes {
            *bytes = (*bytes).min(rng.scale(16, 128) * 4096);
        }
        self.request_bytes_max = self.request_bytes_max.min(64 << 10);
        self.requests = self.requests.min(rng.scale(30, 400));
        let horizon_ns = self.horizon_ns.min(rng.scale(200, 4000) * MS);
        // What was to happen later happens sooner.
        for (at, _) in &mut self.faults {
            *at = (u128::from(*at) * u128::from(horizon_ns) / u128::from(self.horizon_ns)) as u64;
        }
        self.horizon_ns = horizon_ns;
        self.journal_bytes = 2 << 20;
        self.table_slots = 1024;
        self.whole_pieces = rng.chance(80);
        self.damage_seed = 0;
    }

    /// As in a real configuration: a spool takes the longest batch, and its window the longest piece of one.
    fn fit_spool(&mut self, rng: &mut Rng) {
        let volumes_bytes: u64 = self.volume_bytes.iter().sum();
        self.spool_bytes = (volumes_bytes * rng.pick(&[5, 8]) / 4).next_multiple_of(1 << 20).max(5 << 20);
    }

    /// More bytes than the spool has: it goes round.
    fn long_writes(&mut self, rng: &mut Rng) {
        self.requests = rng.range(500, 1000);
        self.request_bytes_max = 64 << 10;
        self.tiny_bytes = 0;
        self.discard_percent = 3;
        self.think_ns_max = 5 * MS;
        self.planted_percent = 0;
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(32 << 20);
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.fifo_memory_bytes = self.fifo_memory_bytes.max(1 << 20);
    }

    fn disaster(&mut self, primary: PrimaryFate, aux: AuxFate) {
        let (dr_power_loss, plan_first, interruptions) = (false, false, 0);
        self.end = End::Disaster(Disaster { primary, aux, dr_power_loss, plan_first, interruptions });
    }

    /// Many small writes, little to think about.
    fn hurry(&mut self, rng: &mut Rng, requests: u64) {
        self.requests = requests;
        self.clients = rng.range(3, 5);
        self.think_ns_max = MS;
        self.tiny_bytes = rng.pick(&[512, 1024, 4096]);
        self.discard_percent = rng.pick(&[20, 60, 90]);
        for disk in &mut self.disks {
            disk.min_ns = disk.min_ns.min(50_000);
            disk.max_ns = disk.max_ns.min(500_000);
        }
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.wan.jitter_ns = self.wan.jitter_ns.min(5 * MS);
    }

    fn outage(&mut self, rng: &mut Rng) {
        self.hurry(rng, 1500);
        self.think_ns_max = rng.pick(&[5, 50, 200]) * MS;
        self.plain_table = rng.chance(20);
        self.planted_percent = 0;
        self.require = rng.pick(&[Require::Any, Require::Any, Require::None]);
        self.protect = rng.pick(&[Protect::Async, Protect::Near, Protect::Order, Protect::Order, Protect::Sync]);
        self.overflow = rng.pick(&[Overflow::Coalesce, Overflow::Pace, Overflow::Refuse]);
        self.fifo_disk_bytes = 4 << 20;
        self.horizon_ns = rng.range(2500, 6000) * MS;
        let at = rng.range(400, 2000) * MS;
        self.faults.retain(|(_, fault)| matches!(fault, Fault::Kill { .. } | Fault::Pause { .. }) && rng.chance(20));
        let for_ns = if rng.chance(70) { self.horizon_ns } else { rng.range(1000, 3000) * MS };
        self.faults.push((at, Fault::Partition { a: Node::Primary, b: Node::Dr, for_ns }));
        if rng.chance(75) {
            self.disaster(
                PrimaryFate::Killed,
                rng.pick(&[AuxFate::Reachable, AuxFate::Reachable, AuxFate::PowerCycled]),
            );
        }
    }

    fn brim(&mut self, rng: &mut Rng) {
        self.hurry(rng, 30_000);
        self.clients = 5;
        self.tiny_bytes = 512;
        self.discard_percent = 97;
        self.volume_bytes.truncate(1);
        self.plain_table = false;
        self.protect = rng.pick(&[Protect::Near, Protect::Order]);
        self.ack = Ack::Write;
        self.overflow = Overflow::Coalesce;
        self.wan.bytes_per_second = 64 << 20;
        self.wan.delay_ns = MS;
        self.horizon_ns = 16 * SECOND;
        self.faults.clear();
        let stall = Fault::DiskStalls { node: Node::Dr, volumes_only: true, for_ns: rng.range(10, 15) * SECOND };
        self.faults.push((rng.range(300, 500) * MS, stall));
        let down_ns = 300 * MS;
        self.faults.push((rng.range(4000, 15_000) * MS, Fault::PowerLoss { node: Node::Dr, down_ns }));
        self.disaster(PrimaryFate::Killed, AuxFate::Reachable);
    }

    fn ring(&mut self, rng: &mut Rng) {
        self.protect = Protect::Bunker;
        self.table_payload_bytes = rng.pick(&[256, 512, 1024]) << 10;
        self.ack = Ack::Write;
        self.plain_table = rng.chance(20);
        self.overflow = rng.pick(&[Overflow::Coalesce, Overflow::Coalesce, Overflow::Pace, Overflow::Refuse]);
        self.requests = rng.range(300, 900);
        self.clients = rng.range(2, 5);
        self.think_ns_max = 40 * MS;
        self.request_bytes_max = rng.pick(&[8 << 10, 32 << 10]);
        self.discard_percent = 5;
        // A first sync that is over soon; what follows it is more than the line takes.
        self.planted_percent = 0;
        self.volume_bytes.truncate(1);
        self.wan.bytes_per_second = rng.scale(512 << 10, 2 << 20);
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.horizon_ns = rng.range(1500, 4000) * MS;
        self.fifo_memory_bytes = rng.scale(1 << 20, 4 << 20);
        if rng.chance(75) {
            self.disaster(
                PrimaryFate::Killed,
                rng.pick(&[AuxFate::Reachable, AuxFate::Reachable, AuxFate::PowerCycled]),
            );
        }
    }

    fn late(&mut self, rng: &mut Rng) {
        self.isolated_continue = false;
        self.require = rng.pick(&[Require::Any, Require::Any, Require::Both]);
        let modes = [Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync, Protect::Async, Protect::Async];
        self.protect = rng.pick(&modes);
        self.planted_percent = 0;
        self.requests = rng.range(400, 900);
        self.think_ns_max = 50 * MS;
        self.wan.bytes_per_second = 64 << 20;
        self.wan.delay_ns = rng.range(1, 40) * MS;
        self.horizon_ns = rng.range(800, 2000) * MS;
        self.plain_table = rng.chance(40);
        self.faults.retain(|_| rng.chance(15));
        let primary = rng.pick(&[PrimaryFate::Late, PrimaryFate::Late, PrimaryFate::Paused]);
        self.disaster(primary, AuxFate::Reachable);
    }

    fn rot(&mut self, rng: &mut Rng) {
        self.requests = rng.range(150, 600);
        self.think_ns_max = rng.pick(&[20, 100, 200]) * MS;
        self.horizon_ns = rng.range(1200, 4000) * MS;
        self.planted_percent = 0;
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.protect = rng.pick(&[Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync]);
        if rng.chance(60) {
            // Payloads wait in spool and FIFO for what crosses slowly.
            // All connections share one queue here: a piece of a batch must not keep the order link silent.
            self.wan.bytes_per_second = rng.scale(128 << 10, 2 << 20).max(512 << 10);
            self.streams = rng.pick(&[2, 4, 8]);
            self.fifo_memory_bytes = rng.scale(64 << 10, 512 << 10);
        }
        let node = rng.pick(&[Node::Dr, Node::Dr, Node::Dr, Node::Aux, Node::Primary]);
        if node == Node::Aux && rng.chance(60) {
            // Only the table knows what comes now.
            let at = rng.range(self.horizon_ns / 3, self.horizon_ns);
            self.faults.push((at, Fault::Partition { a: Node::Primary, b: Node::Dr, for_ns: self.horizon_ns }));
        }
        for _ in 0..rng.range(1, 3) {
            let at = rng.range(self.horizon_ns / 3, self.horizon_ns);
            self.faults.push((at, Fault::Rot { node, down_ns: rng.scale(10, 1000) * MS }));
        }
        for _ in 0..rng.below(3) {
            let at = rng.below(self.horizon_ns);
            self.faults.push((at, sudden(rng, Node::Dr)));
        }
        // So that what is damaged is needed: it happens as everything ends.
        if let End::Disaster(disaster) = &mut self.end
            && rng.chance(60)
        {
            disaster.primary = PrimaryFate::Killed;
            disaster.aux = AuxFate::Reachable;
            let at = self.horizon_ns - rng.below(30 * MS);
            self.faults.push((at, Fault::Rot { node, down_ns: rng.scale(10, 2000) * MS }));
        }
    }

    fn hollow(&mut self, rng: &mut Rng) {
        self.overflow = Overflow::Coalesce;
        self.planted_percent = 0;
        self.volume_bytes.truncate(1);
        self.volume_bytes[0] = rng.range(64, 128) * 4096;
        // A few before the first sync; the rest comes when the kill is waited for.
        self.requests = rng.range(50, 150);
        self.clients = 4;
        self.request_bytes_max = rng.pick(&[8 << 10, 16 << 10]);
        self.discard_percent = 2;
        self.think_ns_max = rng.pick(&[20, 60]) * MS;
        self.fifo_memory_bytes = rng.scale(64 << 10, 128 << 10);
        self.fifo_disk_bytes = 0;
        self.streams = rng.pick(&[1, 2, 4]);
        self.wan.bytes_per_second = rng.scale(512 << 10, 4 << 20);
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.horizon_ns = rng.range(4000, 7000) * MS;
        self.faults.clear();
        let at = rng.range(1200, 2500) * MS;
        self.faults.push((at, Fault::KillAtCommit { down_ns: rng.scale(10, 500) * MS }));
        self.disaster(PrimaryFate::Killed, AuxFate::Reachable);
    }

    fn torn(&mut self, rng: &mut Rng) {
        let requests = rng.range(300, 900);
        self.hurry(rng, requests);
        self.discard_percent = rng.pick(&[5, 30]);
        self.think_ns_max = rng.pick(&[5, 50, 200]) * MS;
        self.planted_percent = 0;
        self.protect = rng.pick(&[Protect::Async, Protect::Near, Protect::Order, Protect::Sync]);
        self.disks[Node::Dr as usize].min_ns = rng.range(1, 4) * MS;
        self.disks[Node::Dr as usize].max_ns = rng.range(8, 40) * MS;
        self.horizon_ns = rng.range(1000, 3000) * MS;
        for _ in 0..rng.range(2, 6) {
            let at = rng.range(self.horizon_ns / 8, self.horizon_ns);
            let down_ns = rng.scale(5, 300) * MS;
            let fault = match rng.below(4) {
                0 => Fault::Kill { node: Node::Dr, down_ns },
                1 => sudden(rng, Node::Dr),
                _ => Fault::PowerLoss { node: Node::Dr, down_ns },
            };
            self.faults.push((at, fault));
        }
    }

    fn failing(&mut self, rng: &mut Rng) {
        self.requests = rng.range(60, 500);
        self.think_ns_max = self.think_ns_max.min(20 * MS);
        for _ in 0..rng.range(1, 6) {
            let at = rng.below(self.horizon_ns);
            let node = rng.pick(&NODES);
            let fault = match rng.below(4) {
                0 => Fault::DiskStalls { node, volumes_only: rng.chance(50), for_ns: rng.scale(100, 8000) * MS },
                1 => Fault::Clock { node, by_ns: rng.range(1, 1 << 44) as i64 * rng.pick(&[-1, 1]) },
                _ => {
                    let how = rng.pick(&Failing::ALL);
                    Fault::DiskFails { node, how, for_ns: rng.scale(1, 2000) * MS }
                }
            };
            self.faults.push((at, fault));
        }
    }

    /// A journal that is soon full, in most moods; often of a first sync that takes long.
    pub fn short_journal(&mut self, rng: &mut Rng) {
        if self.mood == Mood::Brim || !rng.chance(10) {
            return;
        }
        self.segment_bytes = rng.pick(&[32, 32, 64]) << 10;
        self.table_slots = 1024;
        let records = 2 * farshore::limits::journal_kept_records(self.table_slots);
        let segments = records.div_ceil((self.segment_bytes / 4096 - 1) * 64);
        self.journal_bytes = self.segment_bytes * (segments + rng.range(0, 4));
        self.requests = self.requests.max(rng.scale(400, 4000));
        self.think_ns_max = self.think_ns_max.min(rng.pick(&[1, 5, 20]) * MS);
        self.tiny_bytes = rng.pick(&[512, 1024, 4096]);
        if rng.chance(60) {
            self.planted_percent = 100;
            self.wan.bytes_per_second = self.wan.bytes_per_second.min(rng.scale(512 << 10, 2 << 20));
        }
    }

    /// Holes of volumes are looked for before a batch reads them, however short they are.
    pub fn look_for_holes(&mut self, rng: &mut Rng) {
        if rng.chance(30) {
            self.look_bytes = rng.pick(&[4096, 16 << 10, 256 << 10]);
        }
    }

    /// Volumes that grow, in any mood; and what comes in between.
    pub fn resize(&mut self, rng: &mut Rng) {
        if self.mood == Mood::Brim || !rng.chance(10) {
            return;
        }
        let mut sizes = self.volume_bytes.clone();
        let mut times: Vec<u64> = (0..rng.range(1, 4)).map(|_| rng.below(self.horizon_ns)).collect();
        times.sort_unstable();
        for at in times {
            let volume = rng.below(sizes.len() as u64);
            let grown = if rng.chance(50) { rng.scale(1, 64) * 4096 } else { rng.scale(1, 512) * 512 };
            sizes[volume as usize] += grown;
            let small_for_ns = if rng.chance(25) { rng.scale(10, 3000) * MS } else { 0 };
            let (volume, bytes) = (Volume(volume as u16), sizes[volume as usize]);
            self.faults.push((at, Fault::Resize { volume, bytes, small_for_ns }));
            let node = rng.pick(&[Node::Primary, Node::Primary, Node::Dr]);
            let (power, down_ns) = (rng.chance(50), rng.scale(10, 1000) * MS);
            match rng.below(4) {
                // The superblock that announces it, or one after.
                0 => {
                    let at = at.saturating_sub(1) + rng.pick(&[0, rng.clone().scale(10_000, 30 * MS)]);
                    self.faults.push((at, Fault::KillAtSuperblock { node, power, down_ns }));
                }
                1 => {
                    let fault = if power { Fault::PowerLoss { node, down_ns } } else { Fault::Kill { node, down_ns } };
                    self.faults.push((at + rng.scale(10_000, 300 * MS), fault));
                }
                _ => {}
            }
        }
        let volumes_bytes: u64 = sizes.iter().sum();
        self.spool_bytes = self.spool_bytes.max((volumes_bytes * 5 / 4).next_multiple_of(1 << 20));
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// Volumes of the primary that are full for a while, in most moods.
    pub fn fill_volumes(&mut self, rng: &mut Rng) {
        if matches!(self.mood, Mood::Brim | Mood::Hollow) || !rng.chance(6) {
            return;
        }
        // After a first sync that is over soon, and with little else that would have everything copied anew.
        self.planted_percent = 0;
        self.wan.delay_ns = self.wan.delay_ns.min(20 * MS);
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(4 << 20);
        self.horizon_ns = self.horizon_ns.max(rng.range(1500, 3000) * MS);
        self.faults.retain(|_| rng.chance(20));
        for _ in 0..rng.range(1, 3) {
            let at = rng.range(self.horizon_ns / 2, self.horizon_ns);
            self.faults.push((at, Fault::VolumesFull { percent: 100, for_ns: rng.scale(1, 300) * MS }));
        }
        self.go_on_filling(&mut Rng::new(self.horizon_ns));
        self.faults.sort_by_key(|(at, _)| *at);
        // What is never copied any more shows in the end.
        if rng.chance(60) {
            self.end = End::Heal;
        }
    }

    /// Some writes are refused for long, while others go on; now and then until a process dies.
    fn go_on_filling(&mut self, rng: &mut Rng) {
        if !rng.chance(60) {
            return;
        }
        let at = rng.range(self.horizon_ns / 3, self.horizon_ns);
        let for_ns = rng.range(300, 4000) * MS;
        self.faults.push((at, Fault::VolumesFull { percent: rng.range(1, 60), for_ns }));
        self.horizon_ns = self.horizon_ns.max(at + for_ns);
        if rng.chance(30) {
            self.faults.push((at, Fault::KillAtMending { down_ns: rng.scale(1, 500) * MS }));
        } else if rng.chance(40) {
            let (at, down_ns) = (at + rng.range(1, for_ns / MS) * MS, rng.scale(1, 500) * MS);
            let fault = match rng.chance(70) {
                true => Fault::Kill { node: Node::Primary, down_ns },
                false => Fault::PowerLoss { node: Node::Primary, down_ns },
            };
            self.faults.push((at, fault));
        }
    }

    /// Damage under a running role, in any mood.
    pub fn spoil(&mut self, rng: &mut Rng) {
        if self.mood == Mood::Brim || !rng.chance(8) {
            return;
        }
        // What DR has in memory it does not read back.
        self.dr_cache_bytes = rng.pick(&[0, 0, 32 << 10, self.dr_cache_bytes]);
        let hollow = self.mood == Mood::Hollow && rng.chance(70);
        if hollow {
            self.faults.retain(|(_, fault)| !matches!(fault, Fault::KillAtCommit { .. }));
        }
        for _ in 0..rng.range(1, 3) {
            let early = if rng.chance(50) { 4 } else { 1 };
            let at = rng.below(self.horizon_ns / early);
            let node = rng.pick(&[Node::Dr, Node::Dr, Node::Dr, Node::Dr, Node::Aux, Node::Primary]);
            let moments: &[Moment] = match node {
                _ if hollow => &[Moment::Naming, Moment::Applying],
                Node::Dr if rng.chance(20) => &[Moment::Promoting, Moment::Start],
                Node::Dr => &[Moment::Rest, Moment::Read, Moment::Read, Moment::Naming, Moment::Applying],
                Node::Aux => &[Moment::Rest, Moment::Read, Moment::Promoting],
                Node::Primary => &[Moment::Rest, Moment::Read, Moment::Read, Moment::Start],
            };
            let (moment, kept, seed) = (rng.pick(moments), rng.chance(60), rng.u64());
            let node = if hollow { Node::Dr } else { node };
            let at = if hollow { self.horizon_ns / 5 + at / 4 } else { at };
            self.faults.push((at, Fault::Spoil { node, moment, kept, seed }));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// As [`Setup::hollow`], but one burst of small writes in large volumes, and then quiet: most of what spoils beside the
    /// batch is not in the batch, and nothing comes that would make it good.
    pub fn burst(&mut self, rng: &mut Rng) {
        if self.mood == Mood::Brim || !rng.chance(4) {
            return;
        }
        self.mood = Mood::Hollow;
        self.hollow(rng);
        self.volume_bytes[0] = rng.range(512, 2048) * 4096;
        self.fit_spool(rng);
        self.request_bytes_max = 8 << 10;
        self.think_ns_max = rng.pick(&[2, 5, 10]) * MS;
        self.dr_cache_bytes = 0;
        // Killed, it reads all of the batch and what is before it at once; else what it reads hangs until it names the batch.
        let killed = rng.chance(50);
        let (at, _) = self.faults[0];
        self.faults.retain(|_| killed);
        for _ in 0..rng.range(1, 3) {
            let moment = if killed { Moment::Applying } else { Moment::Naming };
            let (kept, seed) = (rng.chance(60), rng.u64());
            self.faults.push((at, Fault::Spoil { node: Node::Dr, moment, kept, seed }));
        }
    }

    /// One or two of everything else, in any mood.
    fn hazards(&mut self, rng: &mut Rng) {
        for _ in 0..rng.range(1, 2) {
            let at = rng.below(self.horizon_ns);
            let node = rng.pick(&NODES);
            let fault = match rng.below(5) {
                0 => Fault::Misdirect { node },
                1 | 2 => Fault::Garble { a: Node::Primary, b: Node::Dr },
                3 => sudden(rng, node),
                _ => {
                    // Two hosts at once, as in one rack.
                    self.faults.push((at, Fault::PowerLoss { node: rng.pick(&NODES), down_ns: 50 * MS }));
                    Fault::PowerLoss { node, down_ns: rng.scale(10, 2000) * MS }
                }
            };
            self.faults.push((at, fault));
        }
    }
}

fn sudden(rng: &mut Rng, node: Node) -> Fault {
    let (power, down_ns) = (rng.chance(70), rng.scale(5, 500) * MS);
    Fault::KillAtSuperblock { node, power, down_ns }
}
