//! Owns what the shells (`daemon`) own in production: starting each machine from its files, giving it inputs,
//! carrying out its effects on the simulated disks and links, and showing every effect to the checkers.

use bytes::Bytes;
use farshore::core::allocation::Stretch;
use farshore::core::ids::{Conn, Extent, GroupId, Seq, Volume};
use farshore::core::machine::{DiskKind, IoFail, Level, Machine as _};
use farshore::core::planted::{Bug, planted};
use farshore::core::rope::Rope;
use farshore::format::record::OrderRecord;
use farshore::format::superblock;
use farshore::format::wire::{self, Message};
use farshore::limits::RECORD_BYTES;
use farshore::{auxiliary, dr, primary};

use crate::checkers::{Verdict, Violation};
use crate::cluster::{DR_NONCE, Event, Table, TableTalk, World};
use crate::describe;
use crate::live::Read;
use crate::network::{Delivery, Node, Packet};
use crate::plain;
use crate::rng::Rng;

pub const GROUP: &str = "sim";
/// How soon a process that cannot start is started again.
const START_AGAIN_NS: u64 = 200_000_000;
/// How late a shell that is busy says what the kernel has taken.
const TOLD_LATE_NS: u64 = 700_000_000;
/// No volume is ever made as large as this: who believes what is damaged may say so, bytes.
const VOLUME_BYTES_MAX: u64 = 1 << 30;

impl World {
    // ---- events --------------------------------------------------------------------------------

    /// Gives an event to whom it concerns; waits with it while that process is stopped.
    pub fn dispatch(&mut self, event: Event) -> Verdict {
        let node = match &event {
            Event::Disk { node, .. } | Event::Tick { node, .. } => Some(*node),
            Event::EndOfTurn { .. }
            | Event::Ask { .. }
            | Event::Allocated { .. }
            | Event::Holes { .. }
            | Event::Taken { .. } => Some(Node::Primary),
            Event::Silent { node, .. } => Some(*node),
            Event::Served { .. } => Some(Node::Aux),
            Event::ReportStored { .. } | Event::Grown { .. } | Event::SpoolGrown { .. } | Event::Gone { .. } => {
                Some(Node::Dr)
            }
            _ => None,
        };
        if let Some(waiting) = node.and_then(|n| self.host_mut(n).paused.as_mut()) {
            waiting.push(event);
            return Ok(());
        }
        match event {
            Event::Disk { node, run, operation } => self.disk_event(node, run, operation),
            Event::Net { link, side } => self.net_event(link, side),
            Event::Tick { node, run } if self.is_running(node, run) => {
                self.host_mut(node).tick_at_ns = None;
                match node {
                    Node::Primary => self.primary_step(primary::machine::Input::Tick),
                    Node::Aux => self.aux_step(auxiliary::machine::Input::Tick),
                    Node::Dr => self.dr_step(dr::machine::Input::Tick),
                }
            }
            Event::EndOfTurn { run } if self.is_running(Node::Primary, run) => {
                self.end_of_turn_due = false;
                self.primary_step(primary::machine::Input::EndOfTurn)
            }
            Event::Ask { client, run } if self.is_running(Node::Primary, run) => self.client_asks(client),
            Event::Allocated { run } if self.is_running(Node::Primary, run) => self.answer_allocated(),
            Event::Holes { run, batch, extent } if self.is_running(Node::Primary, run) => {
                self.answer_holes(batch, extent)
            }
            Event::ReportStored { run, ticket, report } if self.is_running(Node::Dr, run) => {
                let fails = self.setup.fresh && self.dr_disk.fails_writes(self.now_ns);
                // What cannot be made durable may be there all the same.
                if !fails || self.noise.chance(50) {
                    self.dr_report = Some(*report);
                }
                let result = if fails { Err(IoFail::Other("simulated".into())) } else { Ok(()) };
                self.dr_step(dr::machine::Input::ReportStored { ticket, result })
            }
            Event::Taken { run, conn, upto } if self.is_running(Node::Primary, run) => {
                let Some(given) = self.given.get(&conn) else { return Ok(()) };
                let left = given - upto;
                self.primary_step(primary::machine::Input::DrTaken { conn, left })
            }
            Event::Silent { node, conn } => self.silent(node, conn),
            Event::Served { run, number } if self.is_running(Node::Aux, run) => self.served(number),
            Event::Gone { run, ticket } if self.is_running(Node::Dr, run) => {
                let result = Err(IoFail::Other("the status table is not open any more".into()));
                self.dr_step(dr::machine::Input::AuxDone { ticket, result })
            }
            Event::Grown { run, volume, size } if self.is_running(Node::Dr, run) => self.grown(volume, size),
            Event::SpoolGrown { run, bytes } if self.is_running(Node::Dr, run) => self.spool_grown(bytes),
            Event::Start { node } => self.start(node),
            Event::Resume { node } => self.resume(node),
            _ => Ok(()),
        }
    }

    fn disk_event(&mut self, node: Node, run: u64, operation: u64) -> Verdict {
        if !self.is_running(node, run) {
            return Ok(());
        }
        let once = match self.live_read(node, run, operation) {
            Read::Whole => None,
            Read::Damaged(once) => once,
            Read::Later => return Ok(()),
        };
        let now_ns = self.now_ns;
        match node {
            Node::Primary => {
                let volume = matches!(self.primary_disk.file_of(operation), Some(primary::machine::File::Volume(_)));
                // What cannot be read to be compared is said, and no more comes of it.
                let compared = volume && self.primary_disk.is_read(operation);
                let Some((ticket, result)) = self.primary_disk.complete(operation, now_ns) else { return Ok(()) };
                once.into_iter().for_each(|once| self.live_over(once));
                self.primary_disk.take_settled();
                // A volume without space refuses the write, and no more comes of it; unless it was to grow.
                self.volume_refused = volume && matches!(result, Err(IoFail::NoSpace(_)));
                self.host_mut(node).excused |= self.volume_refused;
                let failed = !self.volume_refused && self.failed(node, &result);
                self.volume_failed = failed;
                let stepped = self.primary_step(primary::machine::Input::Disk { ticket, result });
                let refused = std::mem::take(&mut self.volume_refused);
                self.host_mut(node).excused &= !refused;
                stepped?;
                self.check_ended(node, run, failed && !compared)
            }
            Node::Aux => {
                let Some((ticket, result)) = self.aux_disk.complete(operation, now_ns) else { return Ok(()) };
                once.into_iter().for_each(|once| self.live_over(once));
                let settled = self.aux_disk.take_settled();
                self.settled_aux(&settled);
                // A read that fails is answered so, as is everything by another server than our own; whoever asked
                // gives the connection up.
                let failed = self.failed(node, &result) && !self.aux_disk.fails_reads() && !self.setup.plain_table;
                self.aux_step(auxiliary::machine::Input::Disk { ticket, result })?;
                self.check_ended(node, run, failed)
            }
            Node::Dr => {
                let volume = matches!(self.dr_disk.file_of(operation), Some(dr::machine::File::Volume(_)));
                let compared = volume && self.dr_disk.is_read(operation);
                let Some((ticket, result)) = self.dr_disk.complete(operation, now_ns) else { return Ok(()) };
                if result.is_ok() {
                    self.spool_synced(operation);
                }
                self.comparing.unread |= compared && result.is_err();
                once.into_iter().for_each(|once| self.live_over(once));
                let settled = self.dr_disk.take_settled();
                self.settled_dr(&settled);
                self.check_dr_superblock(&settled)?;
                let failed = self.failed(node, &result);
                self.dr_step(dr::machine::Input::Disk { ticket, result })?;
                self.check_ended(node, run, failed && !compared)
            }
        }
    }

    fn net_event(&mut self, link: u64, side: usize) -> Verdict {
        let to = self.net.destination(link, side);
        if to.is_some_and(|n| self.host(n).paused.is_some()) {
            let node = to.expect("just seen");
            self.host_mut(node).paused.as_mut().expect("just seen").push(Event::Net { link, side });
            return Ok(());
        }
        let Some((node, conn, delivery)) = self.net.deliver(self.now_ns, link, side) else { return Ok(()) };
        if !self.host(node).up {
            return Ok(());
        }
        match node {
            Node::Primary if self.primary_table.conn == Some(conn) => self.table_answer(node, delivery),
            Node::Dr if self.dr_table.conn == Some(conn) => self.table_answer(node, delivery),
            Node::Primary | Node::Dr => self.link_event(node, conn, delivery),
            Node::Aux => self.aux_event(conn, delivery),
        }
    }

    /// The stream between primary and DR: whole messages are taken off as they become complete.
    fn link_event(&mut self, node: Node, conn: Conn, delivery: Delivery<TableTalk>) -> Verdict {
        match delivery {
            Delivery::Up => {
                self.ropes.insert((node, conn), Rope::new());
                match node {
                    Node::Primary => self.primary_step(primary::machine::Input::DrUp { conn }),
                    _ => self.dr_step(dr::machine::Input::Opened { conn }),
                }
            }
            Delivery::Closed { reason, .. } => {
                self.ropes.remove(&(node, conn));
                self.link_closed(node, conn, reason)
            }
            Delivery::Packet(Packet::Bytes(bytes)) => {
                let Some(rope) = self.ropes.get_mut(&(node, conn)) else { return Ok(()) };
                rope.push(bytes);
                let run = self.host(node).run;
                while let Some(rope) = self.ropes.get_mut(&(node, conn)) {
                    let message = match wire::decode(rope) {
                        Ok(Some(message)) => message,
                        Ok(None) => break,
                        // What a shell does: it closes the connection.
                        Err(_) if self.net.was_garbled(node, conn) => return self.close_link(node, conn),
                        Err(error) => return self.fail("I8", format!("own bytes are not understood: {error}")),
                    };
                    match node {
                        Node::Primary => self.primary_step(primary::machine::Input::DrMessage { conn, message })?,
                        _ => self.dr_step(dr::machine::Input::Message { conn, message })?,
                    }
                    if !self.is_running(node, run) {
                        return Ok(());
                    }
                }
                if node == Node::Dr { self.dr_step(dr::machine::Input::EndOfTurn) } else { Ok(()) }
            }
            Delivery::Packet(Packet::Message(talk)) => panic!("table talk on a replication link: {talk:?}"),
        }
    }

    fn link_closed(&mut self, node: Node, conn: Conn, reason: &str) -> Verdict {
        match node {
            Node::Primary => self.primary_step(primary::machine::Input::DrClosed { conn, reason: reason.to_string() }),
            _ => self.dr_step(dr::machine::Input::Closed { conn }),
        }
    }

    fn aux_event(&mut self, conn: Conn, delivery: Delivery<TableTalk>) -> Verdict {
        use auxiliary::machine::{Input, Kind};
        let input = match delivery {
            Delivery::Up => return Ok(()),
            Delivery::Closed { .. } => Input::Closed { conn },
            Delivery::Packet(Packet::Message(TableTalk::Open { export })) => {
                let epoch = export.split('/').nth(1).and_then(|epoch| epoch.parse().ok());
                self.aux_writers.extend(epoch.map(|epoch| (conn, epoch)));
                Input::Open { conn, export, peer: "sim".into() }
            }
            Delivery::Packet(Packet::Message(TableTalk::Read { cookie, offset, length })) => {
                Input::Request { conn, cookie, kind: Kind::Read { offset, length } }
            }
            Delivery::Packet(Packet::Message(TableTalk::Write { cookie, offset, data, fua })) => {
                Input::Request { conn, cookie, kind: Kind::Write { offset, data, fua } }
            }
            Delivery::Packet(other) => panic!("not a request to a table: {other:?}"),
        };
        match (&mut self.aux, self.setup.slow_table, &input) {
            (Some(Table::Plain(server)), _, Input::Closed { .. }) => {
                for held in server.take_held_of(conn) {
                    self.serve_late(held)?;
                }
                self.aux_step(input)
            }
            (Some(Table::Plain(server)), Some((percent, longest_ns)), Input::Request { .. })
                if self.rng.chance(percent) =>
            {
                let number = server.hold(conn, input);
                let wait_ns = self.rng.scale(1000, longest_ns);
                let run = self.host(Node::Aux).run;
                self.after(wait_ns, Event::Served { run, number });
                Ok(())
            }
            _ => self.aux_step(input),
        }
    }

    /// The server comes to a request that it had left for later.
    fn served(&mut self, number: u64) -> Verdict {
        let Some(Table::Plain(server)) = &mut self.aux else { return Ok(()) };
        server.take_held(number).map_or(Ok(()), |held| self.serve_late(held))
    }

    fn serve_late(&mut self, held: auxiliary::machine::Input) -> Verdict {
        use auxiliary::machine::{Input, Kind};
        if let (Input::Request { kind: Kind::Write { data, .. }, .. }, true) = (&held, self.is_promoting()) {
            // Nobody was told that it is there.
            let records = data.chunks_exact(RECORD_BYTES).filter_map(|slot| OrderRecord::decode(slot).ok());
            self.came_late.extend(records.map(|record| record.seq));
        }
        self.aux_step(held)
    }

    /// The process of a host goes on after a stop: everything that waited comes at once, and it is late.
    pub fn resume(&mut self, node: Node) -> Verdict {
        let Some(waiting) = self.host_mut(node).paused.take() else { return Ok(()) };
        self.landmark(|| format!("{node:?} goes on"));
        for event in waiting {
            self.at(self.now_ns, event);
        }
        Ok(())
    }

    // ---- starting --------------------------------------------------------------------------------

    pub fn start(&mut self, node: Node) -> Verdict {
        if self.host(node).up || self.host(node).lost {
            return Ok(());
        }
        if self.disk_fails(node) {
            // Its files cannot be opened or read: it is started again and again.
            self.after(START_AGAIN_NS, Event::Start { node });
            return Ok(());
        }
        self.landmark(|| format!("{node:?} starts"));
        self.host_mut(node).up = true;
        self.host_mut(node).run += 1;
        if node == Node::Dr {
            self.damage_dr();
        }
        if std::mem::take(&mut self.host_mut(node).rots) {
            self.rot(node);
        }
        match self.live_start(node) {
            Some(mut rng) => self.start_misreads(node, &mut rng),
            None => self.start_process(node),
        }
    }

    /// What a start reads is damaged this once.
    fn start_misreads(&mut self, node: Node, rng: &mut Rng) -> Verdict {
        self.sync_before(node);
        let flips = (self.primary_disk.flips(), self.dr_disk.flips());
        self.rots_at_rest(node, rng);
        let verdict = self.start_process(node);
        self.primary_disk.unflip(flips.0, |_| true);
        self.dr_disk.unflip(flips.1, |_| true);
        verdict
    }

    fn start_process(&mut self, node: Node) -> Verdict {
        if !planted(Bug::UnsyncedTrusted) {
            self.sync_before(node);
        }
        match node {
            Node::Primary => self.start_primary(),
            Node::Aux => self.start_aux(),
            Node::Dr => self.start_dr(),
        }
    }

    /// A shell opens its files and makes durable what is in them before it is trusted.
    fn sync_before(&mut self, node: Node) {
        match node {
            Node::Primary => {
                self.primary_disk.sync_all();
                self.primary_disk.take_settled();
            }
            Node::Aux => {
                self.aux_disk.sync_all();
                let settled = self.aux_disk.take_settled();
                self.settled_aux(&settled);
            }
            Node::Dr => {
                self.dr_disk.sync_all();
                let settled = self.dr_disk.take_settled();
                self.settled_dr(&settled);
            }
        }
    }

    fn start_primary(&mut self) -> Verdict {
        use primary::machine::File;
        use primary::recovery::{Expect, Files, Place, recover};
        let boot = self.host(Node::Primary).boot;
        let power_lost = self.primary_boot != 0 && self.primary_boot != boot;
        // A host is without power for longer than a server keeps a request waiting.
        if let (true, Some(Table::Plain(server))) = (power_lost, &mut self.aux) {
            server.take_all_held().into_iter().try_for_each(|held| self.serve_late(held))?;
        }
        let expect = Expect {
            group_name: GROUP.into(),
            volumes: self.volume_list(),
            boot_id: u128::from(boot).to_le_bytes(),
            fifo_disk_bytes: self.setup.fifo_disk_bytes,
            log_slots: self.setup.table_slots,
            fresh_group: GroupId(self.rng.u64() | 1),
            fresh_owner: World::owner(Node::Primary),
            fresh_nonce: self.rng.u64(),
        };
        let (log, fifo) = (self.primary_disk.lend(File::IntentLog), self.primary_disk.lend(File::Fifo));
        let disk = &self.primary_disk;
        let files =
            Files { superblock: disk.file(File::Superblock), map: disk.file(File::IntentMap), log: &log, fifo: &fifo };
        let recovered = recover(&expect, &files);
        self.primary_disk.give_back(File::IntentLog, log);
        self.primary_disk.give_back(File::Fifo, fifo);
        let recovered = recovered.map_err(|e| Violation::new("I8", format!("the primary does not start: {e}")))?;
        self.landmark(|| format!("primary recovers: tail {} lost {:?}", recovered.tail, recovered.notes));
        for (place, offset, block) in &recovered.format {
            let file = if *place == Place::Map { File::IntentMap } else { File::IntentLog };
            self.primary_disk.plant(file, *offset, block);
        }
        self.group_id = recovered.superblock.group.0;
        if self.primary_boot != 0 {
            let sizes: Vec<u64> = recovered.superblock.volumes.iter().map(|(_, size)| *size).collect();
            let images = self.primary_images(&sizes);
            self.oracle.restarted(images, power_lost)?;
        }
        self.primary_boot = boot;
        let options = primary::machine::Options {
            group_name: GROUP.into(),
            volumes: self.volume_list(),
            protect: self.setup.protect,
            ack: self.setup.ack,
            require: self.setup.require,
            isolated_continue: self.setup.isolated_continue,
            freeze_timeout_ns: self.setup.freeze_timeout_ns,
            overflow: self.setup.overflow,
            lag_max: self.setup.lag_max,
            fifo_memory_bytes: self.setup.fifo_memory_bytes,
            fifo_disk_bytes: self.setup.fifo_disk_bytes,
            streams: self.setup.streams,
            spool_bytes: self.setup.spool_bytes,
            table_slots: self.setup.table_slots,
            table_payload_bytes: self.setup.table_payload_bytes,
            standalone: false,
            intent_neighbours: self.setup.intent_neighbours,
            look_bytes: self.setup.look_bytes,
            asks: self.setup.asks,
            ask_room: self.setup.ask_room,
            scrub: self.setup.scrub,
            incarnation: self.rng.u64(),
        };
        let now = self.clock(Node::Primary);
        let mut effects = Vec::new();
        (self.fence_heard, self.volume_failed) = (false, false);
        self.primary = Some(primary::machine::Machine::new(options, recovered, now, &mut effects));
        self.wake_clients();
        self.primary_effects(effects)
    }

    /// Every block that is not all zeroes, as a backing store would say.
    pub fn answer_allocated(&mut self) -> Verdict {
        let mut ranges = farshore::core::ranges::Cover::new();
        for (index, image) in self.primary_images(&self.primary_sizes()).iter().enumerate() {
            for (at, block) in image.chunks(4096).enumerate().filter(|(_, b)| b.iter().any(|&x| x != 0)) {
                let (offset, length) = (at as u64 * 4096, block.len() as u64);
                ranges.insert(Extent { volume: Volume(index as u16), offset, length });
            }
        }
        self.primary_step(primary::machine::Input::Allocated { ranges })
    }

    /// What of a range of the primary's volume holds nothing but zeroes, in whole blocks.
    pub fn answer_holes(&mut self, batch: Seq, extent: Extent) -> Verdict {
        // What a resize has ordered is there, whether or not it is done.
        let image = self.primary_disk.file(primary::machine::File::Volume(extent.volume)).cache();
        let (from, to) = (extent.offset as usize, (extent.offset + extent.length) as usize);
        let bytes = &image[from..to];
        let mut stretches: Vec<Stretch> = Vec::new();
        for block in bytes.chunks(4096) {
            let (length, hole) = (block.len() as u64, block.iter().all(|byte| *byte == 0));
            match stretches.last_mut().filter(|last| last.hole == hole) {
                Some(last) => last.length += length,
                None => stretches.push(Stretch { length, hole }),
            }
        }
        // Only so much is told together.
        stretches.truncate(3);
        self.primary_step(primary::machine::Input::Stretches { batch, extent, stretches })
    }

    fn start_aux(&mut self) -> Verdict {
        use auxiliary::machine::File;
        let size = self.aux_disk.file(File::Table).cache().len() as u64;
        if self.setup.plain_table {
            self.aux = Some(Table::Plain(plain::Server::new(size)));
            return Ok(());
        }
        let superblock = self.aux_disk.file(File::Superblock).cache().to_vec();
        let head = self.aux_disk.file(File::Table).cache()[..4096].to_vec();
        let recovered = auxiliary::recovery::recover(&superblock, &head, GROUP, World::owner(Node::Aux))
            .map_err(|e| Violation::new("I8", format!("the auxiliary does not start: {e}")))?;
        for (offset, block) in recovered.creation() {
            self.aux_disk.plant(File::Superblock, offset, &block);
        }
        self.aux = Some(Table::Own(Box::new(auxiliary::machine::Auxiliary::new(recovered, size))));
        Ok(())
    }

    fn start_dr(&mut self) -> Verdict {
        use dr::machine::File;
        self.spool_stands()?;
        let options = dr::machine::Options {
            group_name: GROUP.into(),
            volumes: self.volume_list(),
            journal_bytes: self.setup.journal_bytes,
            table_slots: self.setup.table_slots,
            spool_bytes: self.setup.spool_bytes,
            spool_bytes_max: self.setup.spool_bytes_max,
            cache_bytes: self.setup.dr_cache_bytes,
            protect: self.setup.protect,
            ack: self.setup.ack,
            require: self.setup.require,
            auxiliary: true,
            owner: World::owner(Node::Dr),
            nonce: DR_NONCE,
        };
        let (journal, spool) = (self.dr_disk.lend(File::Journal), self.dr_disk.lend(File::Spool));
        let found = dr::recovery::Found {
            superblock: self.dr_disk.file(File::Superblock).cache(),
            journal: &journal,
            spool: &spool,
            blank: self.dr_blank,
            report: self.dr_report.clone(),
        };
        let recovered = dr::recovery::recover(found, &options);
        self.dr_disk.give_back(File::Journal, journal);
        self.dr_disk.give_back(File::Spool, spool);
        let recovered = recovered.map_err(|e| Violation::new("I8", format!("DR does not start: {e}")))?;
        // The shell opens stores as large as the superblock says.
        for (at, (_, size)) in (0..).zip(&recovered.superblock().volumes) {
            if *size > VOLUME_BYTES_MAX {
                return self.fail("I8", format!("DR's superblock says that volume {at} has {size} bytes"));
            }
            self.dr_disk.grow(File::Volume(Volume(at)), *size, None);
        }
        self.dr = Some(dr::machine::Machine::new(recovered, options));
        self.serving = false;
        self.dr_step(dr::machine::Input::Tick)
    }

    // ---- auxiliary -------------------------------------------------------------------------------

    pub fn aux_step(&mut self, input: auxiliary::machine::Input) -> Verdict {
        let now = self.clock(Node::Aux);
        let quiet = describe::aux_is_quiet(&input);
        let words = self.recording.then(|| describe::aux_input(&input));
        let Some(machine) = self.aux.as_mut() else { return Ok(()) };
        let mut effects = Vec::new();
        match machine {
            Table::Own(machine) => machine.step(now, input, &mut effects),
            Table::Plain(server) => server.step(input, &mut effects),
        }
        self.note_input("aux    ", words, quiet && effects.is_empty());
        let run = self.host(Node::Aux).run;
        for effect in effects {
            if !self.still_alive(Node::Aux, run) {
                return Ok(());
            }
            self.note(|| format!("aux     -> {}", describe::aux_effect(&effect)));
            self.aux_effect(effect)?;
        }
        let deadline = match &self.aux {
            Some(Table::Own(machine)) => machine.deadline_ns(),
            _ => None,
        };
        self.set_tick(Node::Aux, deadline);
        Ok(())
    }

    fn aux_effect(&mut self, effect: auxiliary::machine::Effect) -> Verdict {
        use auxiliary::machine::Effect;
        let now_ns = self.now_ns;
        let answer = |world: &mut World, conn, talk| world.net.send(now_ns, Node::Aux, conn, Packet::Message(talk));
        match effect {
            Effect::Granted { conn, size, .. } => {
                self.check_grant(conn)?;
                answer(self, conn, TableTalk::Granted { size });
            }
            Effect::Refused { conn, text, fenced } => answer(self, conn, TableTalk::Refused { text, fenced }),
            Effect::Reply { conn, cookie, result } => {
                let epoch = self.aux_writers.get(&conn).copied().unwrap_or(u32::MAX);
                if epoch < self.aux_epoch && result.is_ok() && !self.setup.plain_table {
                    let text = format!("the auxiliary answers a writer of epoch {epoch}, granted {}", self.aux_epoch);
                    return self.fail("I7", text);
                }
                answer(self, conn, TableTalk::Reply { cookie, result });
            }
            Effect::Close { conn, .. } => {
                if self.net.close(now_ns, Node::Aux, conn) {
                    return self.aux_step(auxiliary::machine::Input::Closed { conn });
                }
            }
            Effect::Disk(op) => {
                let superblock = op.file == auxiliary::machine::File::Superblock;
                let operation = self.aux_disk.submit(op, &mut self.rng);
                self.schedule_disk(Node::Aux, operation, false);
                self.went_astray();
                self.writes_superblock(Node::Aux, superblock);
            }
            Effect::Log { level, text } => self.log(Node::Aux, level, &text),
            Effect::Fatal { text } => return self.ended(Node::Aux, &text),
            Effect::Stopped => self.stopped(Node::Aux),
        }
        Ok(())
    }

    /// I7 at our own auxiliary: epochs are granted in ascending order, and durable when they are.
    fn check_grant(&mut self, conn: Conn) -> Verdict {
        let Some(&epoch) = self.aux_writers.get(&conn).filter(|_| !self.setup.plain_table) else { return Ok(()) };
        if epoch < self.aux_epoch {
            return self.fail("I7", format!("the auxiliary grants epoch {epoch} after epoch {}", self.aux_epoch));
        }
        self.aux_epoch = epoch;
        let stable = self.aux_disk.file(auxiliary::machine::File::Superblock).stable();
        match superblock::newest(stable) {
            Ok(Some(it)) if it.epoch.0 >= epoch => Ok(()),
            _ => self.fail("I7", format!("the auxiliary grants epoch {epoch}, which is not durable there")),
        }
    }

    // ---- DR --------------------------------------------------------------------------------------

    pub fn dr_step(&mut self, input: dr::machine::Input) -> Verdict {
        // Messages end their turn when all that came together were given.
        let ends = matches!(input, dr::machine::Input::Disk { .. });
        let run = self.host(Node::Dr).run;
        self.dr_step_only(input)?;
        if ends && self.is_running(Node::Dr, run) { self.dr_step_only(dr::machine::Input::EndOfTurn) } else { Ok(()) }
    }

    fn dr_step_only(&mut self, input: dr::machine::Input) -> Verdict {
        let now = self.clock(Node::Dr);
        let quiet = describe::dr_is_quiet(&input);
        let words = self.recording.then(|| describe::dr_input(&input));
        let Some(machine) = self.dr.as_mut() else { return Ok(()) };
        let mut effects = Vec::new();
        machine.step(now, input, &mut effects);
        self.note_input("dr     ", words, quiet && effects.is_empty());
        let run = self.host(Node::Dr).run;
        for effect in effects {
            if !self.still_alive(Node::Dr, run) {
                return Ok(());
            }
            self.note(|| format!("dr      -> {}", describe::dr_effect(&effect)));
            self.dr_effect(effect)?;
        }
        let deadline = self.dr.as_ref().and_then(|m| m.deadline_ns());
        self.set_tick(Node::Dr, deadline);
        Ok(())
    }

    fn dr_effect(&mut self, effect: dr::machine::Effect) -> Verdict {
        use dr::machine::Effect;
        match effect {
            Effect::Send { conn, message } => {
                self.saw_dr_message(&message)?;
                self.send_message(Node::Dr, conn, &message);
            }
            Effect::Close { conn, .. } => self.close_link(Node::Dr, conn)?,
            Effect::Disk(op) => {
                self.check_dr_write(&op)?;
                self.spool_asked(&op)?;
                let syncs = op.file == dr::machine::File::Spool && matches!(op.kind, DiskKind::Sync);
                let superblock = op.file == dr::machine::File::Superblock && !matches!(op.kind, DiskKind::Sync);
                let volume = matches!(op.file, dr::machine::File::Volume(_));
                let named = match &op.kind {
                    DiskKind::Write { parts, .. } if superblock && self.awaits_commit() => parts.clone(),
                    _ => Vec::new(),
                };
                let operation = self.dr_disk.submit(op, &mut self.rng);
                if syncs {
                    self.spool_syncs(operation);
                }
                self.schedule_disk(Node::Dr, operation, volume);
                self.went_astray();
                self.writes_superblock(Node::Dr, superblock);
                self.names_batch(&named);
            }
            Effect::Grow { volume, size } => {
                let at = self.disk_time(Node::Dr);
                let run = self.host(Node::Dr).run;
                self.at(at, Event::Grown { run, volume, size });
            }
            Effect::RecopyDone { result, .. } => self.landmark(|| format!("given up: {result:?}")),
            Effect::GrowSpool { bytes } => self.spool_grows(bytes)?,
            Effect::ShrinkSpool { bytes } => self.spool_shrinks(bytes),
            Effect::AuxOpen { epoch, owner } => self.open_table(Node::Dr, epoch, owner),
            Effect::AuxRead { ticket, offset, length } => {
                self.ask_table(Node::Dr, TableTalk::Read { cookie: ticket.0, offset, length });
            }
            Effect::AuxWrite { ticket, offset, parts, fua } => {
                let data: Bytes = parts.concat().into();
                self.ask_table(Node::Dr, TableTalk::Write { cookie: ticket.0, offset, data, fua });
            }
            Effect::AuxClose => self.close_table(Node::Dr),
            Effect::StoreReport { ticket, report } => {
                let at = self.disk_time(Node::Dr);
                let run = self.host(Node::Dr).run;
                self.at(at, Event::ReportStored { run, ticket, report: Box::new(report) });
            }
            Effect::PromoteDone { ticket, result } => return self.promote_done(ticket, result),
            Effect::Serve { .. } if self.dr_report.is_none() => {
                return self.fail("I4", "DR serves its volumes before its loss report is stored");
            }
            Effect::Serve { .. } => self.serving = true,
            Effect::Log { level, text } => {
                self.log(Node::Dr, level, &text);
                // What was dropped waits for a batch, and that for its pause.
                let now = self.clock(Node::Primary);
                let batch_follows = self.primary.as_ref().is_some_and(|machine| machine.status(now).overflow);
                if text.starts_with("nothing has come for long") && !self.damaged && !batch_follows {
                    return self.fail("liveness", format!("nobody would have sent it: {text}"));
                }
            }
            Effect::Fatal { text } => return self.ended(Node::Dr, &text),
            Effect::Stopped => self.stopped(Node::Dr),
        }
        Ok(())
    }

    /// A store of DR has grown, or is a device that somebody has yet to make larger.
    fn grown(&mut self, volume: Volume, size: u64) -> Verdict {
        if size > VOLUME_BYTES_MAX {
            return self.fail("I8", format!("DR makes volume {volume} {size} bytes large"));
        }
        let small = self.now_ns < self.dr_small_until_ns[volume.0 as usize];
        if !small {
            let device = self.noise.chance(50);
            self.dr_disk.grow(dr::machine::File::Volume(volume), size, Some(&mut self.noise).filter(|_| device));
        }
        let lacking = || dr::api::Lacking { has: size - 512, text: format!("volume {volume} is too small here") };
        let result = if small { Err(lacking()) } else { Ok(size) };
        self.dr_step(dr::machine::Input::Grown { volume, result })
    }

    // ---- primary ---------------------------------------------------------------------------------

    /// Whether the process that emitted an effect is there to carry it out; the doomed die here.
    pub fn still_alive(&mut self, node: Node, run: u64) -> bool {
        if let Some((left, power, down_ns)) = self.host_mut(node).doom {
            if left == 0 && self.is_running(node, run) {
                self.crash(node, power);
                self.after(down_ns, Event::Start { node });
            } else {
                self.host_mut(node).doom = Some((left.saturating_sub(1), power, down_ns));
            }
        }
        self.is_running(node, run)
    }

    /// A process that was asked to end has ended.
    pub fn stopped(&mut self, node: Node) {
        let down_ns = self.host(node).stopping.map_or(0, |(_, down_ns)| down_ns);
        self.crash(node, false);
        self.after(down_ns, Event::Start { node });
    }

    pub fn schedule_disk(&mut self, node: Node, operation: u64, volume: bool) {
        let mut at = self.disk_time(node);
        if volume {
            at = at.max(self.host(node).volumes_stalled_until_ns);
        }
        let run = self.host(node).run;
        self.at(at, Event::Disk { node, run, operation });
    }

    pub fn send_message(&mut self, node: Node, conn: Conn, message: &Message) {
        let mut parts = Vec::new();
        wire::encode(message, &mut parts);
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        for part in parts {
            self.net.send(self.now_ns, node, conn, Packet::Bytes(part));
        }
        if node == Node::Primary && self.setup.fresh {
            let given = self.given.entry(conn).or_default();
            *given += bytes;
            let (upto, run) = (*given, self.host(node).run);
            if let Some(at) = self.net.leaves_at(self.now_ns, node, conn) {
                let late_ns = if self.setup.kernel_takes { 0 } else { TOLD_LATE_NS };
                self.at(at + late_ns, Event::Taken { run, conn, upto });
            }
        }
    }

    /// A shell closes: its machine hears `Closed` too.
    pub fn close_link(&mut self, node: Node, conn: Conn) -> Verdict {
        self.ropes.remove(&(node, conn));
        if self.net.close(self.now_ns, node, conn) {
            return self.link_closed(node, conn, "closed here");
        }
        Ok(())
    }

    /// Clock ticks that change nothing are left out.
    pub fn note_input(&mut self, role: &str, words: Option<String>, boring: bool) {
        if let (Some(words), false) = (words, boring) {
            self.note(|| format!("{role} <- {words}"));
        }
    }

    pub fn log(&mut self, node: Node, level: Level, text: &str) {
        self.landmark(|| format!("{node:?} says {level:?}: {text}"));
    }
}

/// The range that an operation changes.
pub fn range_of(kind: &DiskKind) -> Option<(u64, u64)> {
    match kind {
        DiskKind::Write { offset, parts, .. } => Some((*offset, parts.iter().map(|p| p.len() as u64).sum())),
        DiskKind::Zero { offset, length, .. } => Some((*offset, *length)),
        DiskKind::Read { .. } | DiskKind::Sync => None,
    }
}
