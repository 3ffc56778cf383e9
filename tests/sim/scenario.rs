//! Owns the story of a seed: its faults, its end (healing, or a disaster and a promotion), and what is checked
//! when.

use farshore::core::ids::{Seq, SeqRange, Ticket, Volume};
use farshore::core::modes::Overflow;
use farshore::core::op::Op;
use farshore::{auxiliary, dr, primary};

use crate::checkers::{self, Lost, Outcome, Verdict, Violation};
use crate::cluster::{Event, World};
use crate::network::Node;
use crate::setup::{AuxFate, Disaster, End, Fault, MS, Moment, Mood, PrimaryFate, SECOND, US};

/// How long after the last fault everything may take to be well again, simulated.
const PATIENCE_NS: u64 = 300 * SECOND;
/// The same where nothing was wrong but a volume without space: sooner than DR asks for the second time for what it has
/// not heard of for long, which in the end has anything copied.
const SOON_NS: u64 = 120 * SECOND;
/// How long the old primary is watched after a promotion.
const WATCH_NS: u64 = 12 * SECOND;
/// How long a process may take to end when asked.
const STOP_NS: u64 = 90 * SECOND;
const FOREVER_NS: u64 = 1 << 60;
/// After so many events what is in use is held against its bounds.
const BOUNDS_EVERY: u64 = 200;
/// How a report says that it was made without what the status table holds, or may have held.
const LEFT_OUT: &str = "the status table was left out";
const BLANK: &str = "the status table is blank";

/// Where the story stands.
#[derive(Default)]
pub struct Director {
    phase: Phase,
    deadline_ns: u64,
    ticket: Option<(Ticket, bool)>,
    tickets: u64,
    planned: bool,
    force: bool,
    interruptions: u64,
    attempts: u64,
    /// When the promotion or plan under way was asked for.
    asked_ns: u64,
    /// Highest order that DR knew then.
    asked_tail: Seq,
    /// What the status table held when a plan was asked for.
    asked_table: Vec<u8>,
    again: bool,
    /// What DR has to have while clients go on asking a little.
    trickle_goal: Option<Seq>,
    /// Asked for while another was under way.
    second: Option<Ticket>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    Healing,
    Comparing,
    Promoting,
    Watching,
    Over,
}

impl World {
    /// Runs the seed to its end.
    pub fn run(&mut self) -> Verdict {
        self.sharpen_disks();
        self.begin_clients();
        while self.director.phase != Phase::Over {
            let Some(event) = self.next_event() else {
                return self.fail("liveness", "nothing is due any more and the story is not over");
            };
            if self.events > self.events_max {
                let last: Vec<String> = (0..8).filter_map(|_| self.next_event()).map(|e| format!("{e:?}")).collect();
                return self.fail(
                    "liveness",
                    format!("{} events at {} ms, a livelock of {}", self.events_max, self.now_ns / MS, last.join(", ")),
                );
            }
            if self.events.is_multiple_of(BOUNDS_EVERY) {
                self.check_bounds()?;
            }
            match event {
                Event::Fault { index } => self.fault(index)?,
                Event::Director => self.direct()?,
                other => self.dispatch(other)?,
            }
        }
        Ok(())
    }

    fn begin_clients(&mut self) {
        // Clients come with every start of the primary; see `start_primary`.
        self.director.interruptions = match self.setup.end {
            End::Disaster(d) => d.interruptions,
            End::Heal => 0,
        };
        self.director.force = self.setup.force_first;
    }

    pub fn wake_clients(&mut self) {
        let run = self.host(Node::Primary).run;
        for client in 0..self.clients.len() {
            for _ in 0..self.clients[client].client.depth {
                let delay_ns = self.rng.scale(US, 500 * MS);
                self.after(delay_ns, Event::Ask { client, run });
            }
        }
    }

    /// As many more requests; who had nothing left to ask begins again.
    fn top_up(&mut self, requests: u64) {
        let idle = self.requests_left == 0;
        self.requests_left = self.requests_left.max(requests);
        if idle && self.host(Node::Primary).up {
            self.wake_clients();
        }
    }

    // ---- faults ----------------------------------------------------------------------------------

    fn fault(&mut self, index: usize) -> Verdict {
        let (at, fault) = self.setup.faults[index];
        let disturbs = self.setup.fresh && at > self.setup.horizon_ns;
        match self.director.phase {
            Phase::Running => {}
            Phase::Promoting if disturbs => {}
            // A promoted DR has its loss of power before it.
            Phase::Watching if disturbs && !fault.strikes(Node::Dr) => {}
            _ => return Ok(()),
        }
        self.landmark(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Kill { node, down_ns } => self.strike(node, false, down_ns),
            Fault::PowerLoss { node, down_ns } => self.strike(node, true, down_ns),
            Fault::Stop { node, down_ns } => {
                if self.host(node).up && self.host(node).paused.is_none() && self.host(node).stopping.is_none() {
                    self.host_mut(node).stopping = Some((self.now_ns, down_ns));
                    self.stop(node)?;
                }
            }
            Fault::Pause { node, for_ns } => self.pause(node, for_ns),
            Fault::Cut { a, b } => self.net.cut(self.now_ns, a, b),
            Fault::Resize { volume, bytes, small_for_ns } => self.resize(volume, bytes, small_for_ns)?,
            Fault::Verify { repair } => self.ask_verify(repair)?,
            Fault::Recopy => self.ask_recopy()?,
            Fault::Stall { from, to, for_ns } => self.net.stall(from, to, self.now_ns + for_ns),
            Fault::Partition { a, b, for_ns } => {
                if self.setup.mood == Mood::Outage {
                    self.top_up(1600);
                }
                self.partition(a, b, for_ns);
            }
            hazard => {
                let at_commit = matches!(hazard, Fault::Spoil { moment: Moment::Naming | Moment::Applying, .. });
                if matches!(hazard, Fault::KillAtCommit { .. }) || at_commit && self.setup.mood == Mood::Hollow {
                    self.top_up(900);
                }
                if let Fault::VolumesFull { percent, .. } = hazard {
                    self.top_up(if percent < 100 { 400 } else { 150 });
                }
                self.hazard(hazard);
            }
        }
        self.check_bounds()
    }

    /// What an operator does: the stores get room, then the primary is asked. DR's may be too small for a while.
    fn resize(&mut self, volume: Volume, bytes: u64, small_for_ns: u64) -> Verdict {
        let host = self.host(Node::Primary);
        if !host.up || host.paused.is_some() {
            return Ok(());
        }
        let Some(machine) = &self.primary else { return Ok(()) };
        if machine.may_resize(volume, bytes) != Ok(false) {
            return Ok(());
        }
        self.dr_small_until_ns[volume.0 as usize] = self.now_ns + small_for_ns;
        let file = primary::machine::File::Volume(volume);
        let device = self.noise.chance(50);
        self.primary_disk.grow(file, bytes, Some(&mut self.noise).filter(|_| device));
        self.oracle.resize_asked(volume, bytes);
        // Some clients use the new range before they are told that they may.
        for at in (0..self.clients.len()).filter(|at| at.is_multiple_of(2)) {
            self.hears_of(at, volume, bytes);
        }
        self.primary_step(primary::machine::Input::Resize { volume, size: bytes })
    }

    pub fn hears_of(&mut self, client: usize, volume: Volume, bytes: u64) {
        let client = &mut self.clients[client].client;
        if client.volume == volume {
            client.hears_of(bytes);
        }
    }

    /// Kills at once, or in the middle of carrying out what a later step decided.
    fn strike(&mut self, node: Node, power: bool, down_ns: u64) {
        if !self.host(node).up {
            return;
        }
        if self.rng.chance(50) {
            let effects = self.rng.scale(1, 40);
            self.host_mut(node).doom = Some((effects, power, down_ns));
        } else {
            self.crash(node, power);
            self.after(down_ns, Event::Start { node });
        }
    }

    fn stop(&mut self, node: Node) -> Verdict {
        match node {
            Node::Primary => self.primary_step(primary::machine::Input::Stop),
            Node::Aux => self.aux_step(auxiliary::machine::Input::Stop),
            Node::Dr => self.dr_step(dr::machine::Input::Stop),
        }
    }

    fn pause(&mut self, node: Node, for_ns: u64) {
        if self.host(node).up && self.host(node).paused.is_none() {
            self.host_mut(node).paused = Some(Vec::new());
            self.after(for_ns, Event::Resume { node });
        }
    }

    fn partition(&mut self, a: Node, b: Node, for_ns: u64) {
        let until = self.now_ns.saturating_add(for_ns);
        self.net.stall(a, b, until);
        self.net.stall(b, a, until);
        if self.rng.chance(50) {
            self.net.cut(self.now_ns, a, b);
        }
    }

    // ---- the end ---------------------------------------------------------------------------------

    fn direct(&mut self) -> Verdict {
        for node in [Node::Primary, Node::Aux, Node::Dr] {
            let host = self.host(node);
            let since = host.stopping.filter(|_| host.up && host.paused.is_none()).map(|(at, _)| at);
            if since.is_some_and(|at| self.now_ns > at + STOP_NS) {
                return self
                    .fail("liveness", format!("{node:?} does not end {} s after it was asked", STOP_NS / SECOND));
            }
        }
        self.check_mode_word()?;
        match self.director.phase {
            Phase::Running => match self.setup.end {
                End::Heal => self.begin_healing()?,
                End::Disaster(disaster) => self.begin_disaster(disaster)?,
            },
            Phase::Healing => self.look_healed()?,
            Phase::Comparing if self.comparing.over => {
                self.director.phase = Phase::Healing;
                self.director.deadline_ns = self.now_ns + PATIENCE_NS;
            }
            Phase::Comparing if self.now_ns > self.director.deadline_ns => {
                return self.fail("liveness", "what was damaged is not found and repaired");
            }
            Phase::Comparing => self.look_compared()?,
            Phase::Promoting => self.ask_promotion()?,
            Phase::Watching => self.watched()?,
            Phase::Over => {}
        }
        if self.director.phase != Phase::Over && self.director.phase != Phase::Watching {
            self.after(100 * MS, Event::Director);
        }
        Ok(())
    }

    fn begin_healing(&mut self) -> Verdict {
        self.landmark(|| "the faults are over".into());
        self.director.phase = Phase::Healing;
        self.director.deadline_ns = self.now_ns + PATIENCE_NS;
        self.net.heal();
        self.end_troubles();
        Ok(())
    }

    /// Nobody is stopped, doomed or left lying any more.
    fn end_troubles(&mut self) {
        for node in [Node::Primary, Node::Aux, Node::Dr] {
            self.calm(node);
            let host = self.host_mut(node);
            host.doom = None;
            if host.paused.is_some() {
                self.after(0, Event::Resume { node });
            }
            self.after(SECOND, Event::Start { node });
        }
    }

    fn look_healed(&mut self) -> Verdict {
        if self.now_ns > self.director.deadline_ns - PATIENCE_NS + 20 * SECOND {
            self.requests_left = 0;
        }
        if self.trickles() {
            return self.not_healed("what was written before it has not reached DR while little is written");
        }
        let waiting = self.asked.len();
        let (primary_now, dr_now) = (self.clock(Node::Primary), self.clock(Node::Dr));
        let (Some(primary), Some(dr)) = (&self.primary, &self.dr) else { return self.not_healed("a process is down") };
        let (p, d) = (primary.status(primary_now), dr.status(dr_now));
        let tail = primary.tail();
        // A trim that a volume had no room for is no lag: what has to be copied for it may wait for its batch.
        let level = p.cut_seq == tail
            && d.cut_seq == tail
            && d.applied_seq == tail
            && d.synced
            && !p.overflow
            && p.degraded.iter().all(|it| it.what.contains("paced") || it.what.contains("were compared"))
            && !primary.mends();
        // The last resize may have crossed before the primary's own directory says that it is done.
        let grown = self.oracle.sizes_after(tail) == self.primary_sizes();
        if self.requests_left > 0 || waiting > 0 || !level || !grown {
            return self.not_healed(&format!(
                "{} requests unanswered; tail {tail}, cut {} (as DR says {}, applied {}, synced {}), frozen {:?}, batch \
                 {:?}, degraded {:?}",
                waiting, p.cut_seq, d.cut_seq, d.applied_seq, d.synced, p.frozen, p.batch, p.degraded
            ));
        }
        self.landmark(|| format!("healed at seq {tail}"));
        let images = self.primary_images(&self.primary_sizes());
        let views: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let prefix = checkers::Prefix::of(&self.oracle, tail);
        prefix.check(&views).map_err(|v| Violation::new("I1", format!("the primary's own volume: {}", v.text)))?;
        prefix.check(&self.dr_images())?;
        if self.dr_images() != views {
            return self.fail("I2", "both sides are level, and their volumes differ");
        }
        if self.compares() {
            if self.verify_runs() {
                return Ok(());
            }
            self.damage_volumes();
            self.director.phase = Phase::Comparing;
            self.director.deadline_ns = self.now_ns + PATIENCE_NS;
            return Ok(());
        }
        self.director.phase = Phase::Over;
        Ok(())
    }

    /// Clients go on asking a little, until DR has all that they asked before the last fault. Whether it has not yet.
    fn trickles(&mut self) -> bool {
        let Some(primary) = self.primary.as_ref().filter(|_| self.setup.trickles) else { return self.setup.trickles };
        let goal = *self.director.trickle_goal.get_or_insert(primary.tail());
        self.setup.trickles = primary.status(self.clock(Node::Primary)).cut_seq < goal;
        let ticks = (self.now_ns - (self.director.deadline_ns - PATIENCE_NS)) / (100 * MS);
        if self.setup.trickles && ticks.is_multiple_of(5) {
            self.top_up(1);
        }
        self.setup.trickles
    }

    fn not_healed(&mut self, why: &str) -> Verdict {
        // Nothing in the region shows that it is ours, for its first write went elsewhere: it is left to the operator, who is told
        // what to do.
        if self.aux_astray && why.contains("the region holds no status table of this group") {
            self.director.phase = Phase::Over;
            return Ok(());
        }
        let full = self.setup.faults.iter().any(|(_, fault)| matches!(fault, Fault::VolumesFull { .. }));
        let patience_ns = if full { SOON_NS } else { PATIENCE_NS };
        if self.now_ns <= self.director.deadline_ns - PATIENCE_NS + patience_ns {
            return Ok(());
        }
        self.fail("liveness", format!("{} s after the last fault: {why}", patience_ns / SECOND))
    }

    /// Whether DR is being promoted, or was.
    pub fn is_promoting(&self) -> bool {
        matches!(self.director.phase, Phase::Promoting | Phase::Watching | Phase::Over)
    }

    fn begin_disaster(&mut self, disaster: Disaster) -> Verdict {
        self.landmark(|| format!("disaster: {disaster:?}"));
        self.director.phase = Phase::Promoting;
        self.director.deadline_ns = self.now_ns + PATIENCE_NS;
        if self.setup.lively {
            self.top_up(300);
        } else {
            self.requests_left = self.requests_left.max(300);
        }
        self.net.heal();
        for node in [Node::Aux, Node::Dr] {
            self.calm(node);
            self.host_mut(node).doom = None;
            self.after(0, Event::Resume { node });
            self.after(SECOND, Event::Start { node });
        }
        match disaster.primary {
            PrimaryFate::Killed | PrimaryFate::KilledAndBack => {
                let power = self.rng.chance(50);
                self.crash(Node::Primary, power);
                self.host_mut(Node::Primary).lost = true;
            }
            PrimaryFate::Paused => {
                let for_ns = self.rng.scale(100, 25_000) * MS;
                self.pause(Node::Primary, for_ns);
            }
            PrimaryFate::CutFromDr => self.partition(Node::Primary, Node::Dr, FOREVER_NS),
            PrimaryFate::CutFromBoth => {
                self.partition(Node::Primary, Node::Dr, FOREVER_NS);
                self.partition(Node::Primary, Node::Aux, FOREVER_NS);
            }
            PrimaryFate::Alive => {}
            PrimaryFate::Late => {
                for from in [Node::Aux, Node::Dr] {
                    let late_ns = match self.setup.mood {
                        // Longer than a promotion takes, and not as long as a silent link is believed in.
                        Mood::Late => self.rng.range(1900, 3100) * MS,
                        _ => self.rng.scale(500, 8000) * MS,
                    };
                    self.net.stall(from, Node::Primary, self.now_ns + late_ns);
                }
            }
        }
        match disaster.aux {
            AuxFate::Reachable => {}
            AuxFate::PowerCycled => self.crash(Node::Aux, true),
            AuxFate::Lost => {
                self.crash(Node::Aux, true);
                self.host_mut(Node::Aux).lost = true;
            }
            AuxFate::CutFromDr => self.partition(Node::Dr, Node::Aux, FOREVER_NS),
        }
        if disaster.dr_power_loss {
            self.crash(Node::Dr, true);
        }
        Ok(())
    }

    fn disaster(&self) -> Disaster {
        match self.setup.end {
            End::Disaster(disaster) => disaster,
            End::Heal => unreachable!("only a disaster leads to a promotion"),
        }
    }

    /// The operator said that the auxiliary is gone, and it is not, or comes back: what `--force` warns of.
    pub fn forced_past_a_live_aux(&self) -> bool {
        matches!(self.setup.end, End::Disaster(Disaster { aux: AuxFate::CutFromDr, .. }))
            || self.outcome.as_ref().is_some_and(|outcome| !outcome.aux_read)
    }

    fn ask_promotion(&mut self) -> Verdict {
        if self.now_ns > self.director.deadline_ns {
            let text = format!("no promotion within {} s ({} asked)", PATIENCE_NS / SECOND, self.director.attempts);
            return self.fail("I6", text);
        }
        if self.host(Node::Dr).up && self.director.ticket.is_some() && self.setup.asks_twice && !self.director.again {
            self.setup.asks_twice = false;
            self.director.tickets += 1;
            let ticket = Ticket((1 << 48) + self.director.tickets);
            self.director.second = Some(ticket);
            let force = self.director.force;
            return self.dr_step(dr::machine::Input::Promote { ticket, plan: false, force });
        }
        if !self.host(Node::Dr).up || self.director.ticket.is_some() {
            return Ok(());
        }
        let plan = self.disaster().plan_first && !self.director.planned;
        if !plan && self.director.interruptions > 0 {
            self.director.interruptions -= 1;
            let (effects, power, down_ns) =
                (self.rng.scale(1, 200), self.rng.chance(50), self.rng.scale(10, 3000) * MS);
            self.host_mut(Node::Dr).doom = Some((effects, power, down_ns));
        }
        self.director.tickets += 1;
        self.director.attempts += 1;
        self.director.asked_ns = self.now_ns;
        let now = self.clock(Node::Dr);
        self.director.asked_tail = self.dr.as_ref().map_or(Seq(0), |machine| machine.status(now).tail_seq);
        let table = self.aux_disk.file(auxiliary::machine::File::Table).stable();
        self.director.asked_table = if plan { table.to_vec() } else { Vec::new() };
        let ticket = Ticket((1 << 48) + self.director.tickets);
        self.director.ticket = Some((ticket, plan));
        let force = self.director.force;
        self.live_moment(Moment::Promoting);
        self.dr_step(dr::machine::Input::Promote { ticket, plan, force })
    }

    /// The DR process died: what was asked of it is to be asked again.
    pub fn forget_promotion(&mut self) {
        self.director.ticket = None;
        self.director.second = None;
    }

    pub fn promote_done(
        &mut self,
        ticket: Ticket,
        result: Result<farshore::cluster::status::PromoteReport, dr::machine::PromoteError>,
    ) -> Verdict {
        if self.director.second.take_if(|second| *second == ticket).is_some() {
            return match result {
                Ok(_) if self.outcome.is_none() => self.fail("I6", "a second promotion is done before the first"),
                Err(error) if error.text.contains("missing") => self.fail("I6", error.text),
                _ => Ok(()),
            };
        }
        let Some((_, plan)) = self.director.ticket.take_if(|(t, _)| *t == ticket) else {
            return self.fail("I6", format!("a promotion is answered that nobody asked for: {ticket}"));
        };
        // A promotion that was asked for while a plan was made has waited for it, and is the one to wait for from now on.
        if plan {
            self.director.ticket = self.director.second.take().map(|second| (second, false));
        }
        let report = match result {
            Ok(report) => report,
            Err(error) => return self.promotion_refused(plan, &error),
        };
        let aux_gone = matches!(self.disaster().aux, AuxFate::Lost | AuxFate::CutFromDr);
        if aux_gone && !plan && !self.director.force && self.outcome.is_none() {
            return self.fail("I7", "promoted without the auxiliary and without --force");
        }
        let outcome = self.outcome_of(&report)?;
        // A damaged site that says so may be promoted by force: it claims nothing of what it does not know.
        // A table that says nothing is no damage here: the promotion goes on, and all else in the report holds.
        let of_table = |text: &String| {
            let slots = text.split_once(" slots of the status table are damaged: ");
            text.starts_with(BLANK)
                || text.starts_with(LEFT_OUT)
                || text.starts_with("up to ")
                || slots.is_some_and(|(count, _)| count.parse::<u64>().is_ok())
        };
        let table = report.incomplete.as_ref().is_some_and(of_table);
        let vouched = report.incomplete.is_none() || table || !self.damaged;
        if !vouched && !plan && !self.director.force && self.outcome.is_none() {
            return self.fail("I8", "promoted in a damaged state without --force");
        }
        if vouched {
            self.check_report(plan, &outcome)?;
            self.check_highest(plan, &outcome)?;
        }
        checkers::check_admitted(self.setup.protect, self.setup.ack, self.setup.require, &outcome)?;
        checkers::check_listed(&self.oracle, &outcome)?;
        if plan {
            self.director.planned = true;
            return Ok(());
        }
        self.landmark(|| format!("promoted: cut {}, tail {}", outcome.cut, outcome.tail));
        // The recovery point goes back before a payload that is damaged under it, and what follows is listed.
        let went_back = self.dr_rotten_payloads.contains_key(&outcome.cut.next());
        let stopped = self.stopped_before_resize(&outcome);
        if outcome.cut < self.cut_told && vouched && !went_back && !stopped {
            let text = format!("promoted at seq {}, and the cut had been {}", outcome.cut, self.cut_told);
            return self.fail("I5", text);
        }
        if vouched || self.setup.fresh {
            let prefix = checkers::Prefix::of(&self.oracle, outcome.cut).but_for(outcome.in_part);
            prefix.check(&self.dr_images())?;
            prefix
                .check(&self.dr_stable_images())
                .map_err(|v| Violation::new("I5", format!("in stable bytes: {}", v.text)))?;
        }
        if let Some(before) = &self.outcome
            && *before != outcome
        {
            let text = format!("promoted again, the report differs: {before:?} then {outcome:?}");
            return self.fail("I4", text);
        }
        if self.director.again {
            self.director.phase = Phase::Over;
            return Ok(());
        }
        self.outcome = Some(outcome);
        self.host_mut(Node::Dr).doom = None;
        self.host_mut(Node::Dr).doom_at_superblock = None;
        self.promoted_at_ns = Some(self.now_ns);
        self.director.phase = Phase::Watching;
        self.after(WATCH_NS, Event::Director);
        if self.disaster().primary == PrimaryFate::KilledAndBack {
            self.host_mut(Node::Primary).lost = false;
            self.after(SECOND, Event::Start { node: Node::Primary });
        }
        Ok(())
    }

    /// By force it may stop before a resize for which there is no room, and what follows is listed: without force it had
    /// said so, and waited (I4). The operator has chosen between the two, whatever the mode.
    pub fn stopped_before_resize(&self, outcome: &Outcome) -> bool {
        self.director.force && outcome.missing.first().is_some_and(|first| first.op == Op::Resize.word())
    }

    fn check_report(&self, plan: bool, outcome: &Outcome) -> Verdict {
        let slots = self.setup.table_slots;
        let reach = checkers::Reach {
            until_ns: if plan { self.director.asked_ns } else { u64::MAX },
            knowable: &|record| {
                // What came while a plan was made, it need not know: nor what its writer, who goes on, mended in the table.
                let asked = &self.director;
                let at_dr = self.holds_at_dr(record) && (!plan || record.seq <= asked.asked_tail);
                let at_aux = self.holds_at_aux(record) && (!plan || self.had_at_aux(&asked.asked_table, record));
                at_dr || outcome.aux_read && at_aux && !self.came_late.contains(&record.seq)
            },
            rotten: &|seq| self.rotten_at_aux(seq) || self.came_late.contains(&seq),
            rotten_payload: &|seq, asked_ns| {
                self.dr_spool_astray || self.dr_rotten_payloads.get(&seq).is_some_and(|until_ns| asked_ns <= *until_ns)
            },
            in_ring: &|seq| self.ring_holds(seq),
            given_up: &|seq| self.setup.overflow == Overflow::Coalesce && seq.0 + slots <= self.oracle.tail().0,
            stopped: self.stopped_before_resize(outcome),
        };
        checkers::check_report(&self.oracle, self.setup.protect, outcome, &reach)?;
        let bound = self.lag_bound && !self.damaged && !reach.stopped;
        match self.setup.lag_max.filter(|_| bound) {
            Some(most) if !plan => checkers::check_lag(&self.oracle, outcome.cut, most),
            _ => Ok(()),
        }
    }

    fn promotion_refused(&mut self, plan: bool, error: &dr::machine::PromoteError) -> Verdict {
        self.landmark(|| format!("promotion refused: {error:?}"));
        if plan {
            self.director.planned = true;
        }
        if error.text.contains("no recovery point") || error.text.contains("never") {
            if self.synced_told && !self.damaged {
                return self.fail("I6", format!("a recovery point was there and is gone: {}", error.text));
            }
            if !plan {
                self.director.phase = Phase::Over;
            }
            return Ok(());
        }
        let aux_gone = matches!(self.disaster().aux, AuxFate::Lost | AuxFate::CutFromDr);
        if error.refused_for_safety && (aux_gone || self.damaged) {
            self.director.force = true;
            return Ok(());
        }
        if error.refused_for_safety && self.aux_spoiled() {
            self.director.force = true;
            return Ok(());
        }
        // Who has no room for a resize waits for it, or does not.
        if !plan && error.text.contains("; --force promotes") && self.noise.chance(30) {
            self.director.force = true;
            return Ok(());
        }
        // What a promotion needs was out of reach, or failed: it says so, and the operator asks once more.
        let passing = ["the loss report cannot be stored", "call promote again"];
        if self.setup.fresh && passing.iter().any(|words| error.text.contains(words)) {
            return Ok(());
        }
        if !error.refused_for_safety && !error.text.contains("try again") && !error.text.contains("stopping") {
            return self.fail("I6", format!("promotion failed: {}", error.text));
        }
        Ok(())
    }

    /// The old primary has had its time to do wrong. Now DR goes through a loss of power and says the same again.
    fn watched(&mut self) -> Verdict {
        if self.promoted_at_ns.is_some_and(|at| self.now_ns < at + WATCH_NS) {
            return Ok(());
        }
        // It may have been asked to end just before.
        if self.setup.fresh && !self.serving && self.now_ns < self.director.deadline_ns {
            self.after(SECOND, Event::Director);
            return Ok(());
        }
        self.director.phase = Phase::Promoting;
        self.director.again = true;
        self.director.deadline_ns = self.now_ns + PATIENCE_NS;
        self.director.interruptions = 0;
        if !self.serving {
            return self.fail("I6", "promoted, and not serving");
        }
        let power = self.rng.chance(70);
        self.crash(Node::Dr, power);
        self.after(SECOND, Event::Start { node: Node::Dr });
        Ok(())
    }

    fn outcome_of(&self, report: &farshore::cluster::status::PromoteReport) -> Result<Outcome, Violation> {
        let missing: Result<Vec<Lost>, Violation> = report
            .missing
            .iter()
            .map(|m| {
                let index = m.volume.strip_prefix('v').and_then(|n| n.parse().ok());
                let volume = index.ok_or_else(|| Violation::new("I4", format!("no such volume: {m:?}")))?;
                Ok(Lost { seq: m.seq, volume: Volume(volume), op: m.op.clone(), offset: m.offset, length: m.length })
            })
            .collect();
        let missing = missing?;
        let says = |what| report.incomplete.as_ref().is_some_and(|text| text.contains(what));
        let bytes: u64 = missing.iter().filter(|l| l.op != "resize").map(|l| l.length).sum();
        if bytes != report.missing_bytes {
            let text = format!("the report says {} bytes are missing and lists {bytes}", report.missing_bytes);
            return Err(Violation::new("I4", text));
        }
        Ok(Outcome {
            cut: report.cut_seq,
            tail: report.tail_seq,
            missing,
            aux_read: report.aux == "read",
            unknown: report.unknown.clone(),
            incomplete: report.incomplete.is_some(),
            without_table: says(LEFT_OUT),
            blank: says(BLANK),
            in_part: report.incomplete.as_deref().and_then(said_in_part),
            known_until: report.known_until.as_ref().map(|known| known.seq),
        })
    }

    pub fn summary(&self) -> String {
        let promoted = match &self.outcome {
            Some(o) => format!("promoted at {} of {}, {} missing", o.cut, o.tail, o.missing.len()),
            None => "not promoted".into(),
        };
        format!("{} events, {} ms, tail {}, {promoted}", self.events, self.now_ns / MS, self.oracle.tail())
    }
}

/// Seqs of which a report says that they cannot be replayed, and may be in the volumes in part.
fn said_in_part(text: &str) -> Option<SeqRange> {
    let (before, _) = text.split_once(", which cannot be replayed")?;
    let (_, seqs) = before.rsplit_once("writes of seqs ")?;
    let (first, last) = seqs.split_once(" to ")?;
    Some(SeqRange { first: Seq(first.parse().ok()?), last: Seq(last.parse().ok()?) })
}
