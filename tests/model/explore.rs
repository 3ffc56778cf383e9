//! Every schedule within a bound, over copies of the real machines.
//!
//! By itself, what became possible first happens first, and time passes when nothing else can. A *departure* is
//! anything else: another event overtakes (messages of one connection keep their order, everything else may), or a *strike*: a host
//! goes down (each once at the most: killed with what was on its way to its disk landing or not, or without power)
//! and comes back, or the DR site is promoted (once). All runs with at most so many departures, at whatever points, are
//! run to their end, where the primary is lost and the DR site promoted if it was not before. A state met before
//! with as many departures left is not gone on from again.
//!
//! Strikes are counted apart from overtakings: four are all that there are, one crash of each host and the promotion, in every
//! order. Of two points between which nothing has happened to a host (no message, no operation of its disks, no time)
//! its crash is tried at the first one only: its disks, what it sent and what is lost with it are the same at the other,
//! and only the order differs in which the others hear of it and of each other, which is an overtaking.
//!
//! The other way round, for fewer writes: every order of all that can happen until time passes for the first time, and
//! one crash or promotion at every point of each.
//!
//! What it does not cover: more departures; a deadline that comes while something else could happen; half of a write
//! (`tests/sim` draws those).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use farshore::core::ids::Seq;
use farshore::core::modes::{Protect, Require};

use crate::reach::Survivors;
use crate::truth::STOPS_EARLY;
use crate::world::{CRASHES, Crash, HOSTS, Host, World};

/// Ticks of a run while the primary lives, after the last departure or write.
const TICKS: usize = 12;
/// Ticks of a promotion: the lease is waited out, links are given up.
const PROMOTE_TICKS: usize = 400;
/// Events in a row without time passing: more is a livelock.
const EVENTS_MAX: usize = 20_000;

/// What may still happen beside the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of all kinds together.
    departures: u32,
    overtakes: u32,
    /// Crashes, of each host one, and the promotion.
    strikes: u32,
}

impl Left {
    /// So many departures of whatever kind.
    pub fn departures(departures: u32) -> Left {
        Left { departures, overtakes: departures, strikes: departures }
    }

    /// So many overtakings and so many crashes and promotions.
    pub fn apart(overtakes: u32, strikes: u32) -> Left {
        Left { departures: overtakes + strikes, overtakes, strikes }
    }

    fn none(self) -> bool {
        self.departures == 0
    }

    fn overtakes(self) -> Option<Left> {
        let (departures, overtakes) = (self.departures.checked_sub(1)?, self.overtakes.checked_sub(1)?);
        Some(Left { departures, overtakes, ..self })
    }

    fn strikes(self) -> Option<Left> {
        let (departures, strikes) = (self.departures.checked_sub(1)?, self.strikes.checked_sub(1)?);
        Some(Left { departures, strikes, ..self })
    }

    fn covers(self, other: Left) -> bool {
        self.departures >= other.departures && self.overtakes >= other.overtakes && self.strikes >= other.strikes
    }
}

/// A place where a run can depart from the schedule.
#[derive(Clone)]
struct Point {
    world: World,
    left: Left,
    crashed: [bool; 3],
    /// Hosts to which something has happened since their crash was last tried: of the others a crash is the same as then.
    stirred: [bool; 3],
    ticks: usize,
    events: usize,
    depth: usize,
}

#[derive(Default, Debug)]
pub struct Seen {
    pub states: u64,
    pub merged: u64,
    pub runs: u64,
    pub depth: usize,
    /// Runs that ended with every write acknowledged, with none, and with a loss to report.
    pub all_acked: u64,
    pub none_acked: u64,
    pub with_loss: u64,
    /// First departures, and how many of them were followed to all that comes of them.
    pub firsts: u64,
    pub followed: u64,
    /// The time was over before everything was seen.
    pub cut_short: bool,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.states += other.states;
        self.merged += other.merged;
        self.runs += other.runs;
        self.depth = self.depth.max(other.depth);
        self.all_acked += other.all_acked;
        self.none_acked += other.none_acked;
        self.with_loss += other.with_loss;
        self.firsts += other.firsts;
        self.followed += other.followed;
        self.cut_short |= other.cut_short;
    }
}

pub struct Explorer {
    /// States gone on from, and with what left.
    known: Mutex<HashMap<u64, Left>>,
    pub seen: Seen,
    until: Instant,
    /// To overtake is no departure until time passes for the first time: every order of all that can happen until then.
    any_order: bool,
    /// A host crashes at every point, not only where something has happened to it.
    every_point: bool,
}

/// Brings the group up to its first recovery point, with so many writes to come.
fn begin(require: Require, protect: Protect, writes: usize) -> World {
    let mut world = World::new(require, protect);
    for _ in 0..EVENTS_MAX {
        match world.enabled().first() {
            Some(&at) => world.happen(at),
            None if world.synced() => {
                world.submit(writes);
                return world;
            }
            None => assert!(world.tick(), "nothing is due and the group is not in sync"),
        }
    }
    panic!("the group does not come up: {:?}", world.trace.last(30));
}

impl Explorer {
    pub fn new(patience: Duration) -> Explorer {
        let (known, seen, until) = (Mutex::default(), Seen::default(), Instant::now() + patience);
        Explorer { known, seen, until, any_order: false, every_point: true }
    }

    pub fn of_any_order(patience: Duration) -> Explorer {
        Explorer { any_order: true, ..Explorer::new(patience) }
    }

    /// All runs with at most `left` departures, on all cores.
    pub fn explore(&mut self, require: Require, protect: Protect, writes: usize, left: Left) {
        self.known.get_mut().expect("nothing panics while it is held").clear();
        let world = begin(require, protect, writes);
        let start = Point { world, left, crashed: [false; 3], stirred: [true; 3], ticks: 0, events: 0, depth: 0 };
        let (mut seen, mut first) = (Seen::default(), Vec::new());
        self.run(start, &mut first, &mut seen);
        seen.firsts = first.len() as u64;
        let (shared, found) = (Mutex::new(first), Mutex::new(seen));
        let this = &*self;
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    let seen = this.work(&shared);
                    found.lock().expect("nothing panics while it is held").add(&seen);
                });
            }
        });
        self.seen.add(&found.into_inner().expect("nothing panics while it is held"));
    }

    /// Takes one first departure after another, and follows everything that comes of it.
    fn work(&self, shared: &Mutex<Vec<Point>>) -> Seen {
        let (mut seen, mut stack) = (Seen::default(), Vec::new());
        loop {
            let Some(first) = shared.lock().expect("nothing panics while it is held").pop() else { return seen };
            stack.push(first);
            while let Some(point) = stack.pop() {
                if Instant::now() > self.until {
                    seen.cut_short = true;
                    return seen;
                }
                self.run(point, &mut stack, &mut seen);
            }
            seen.followed += 1;
        }
    }

    /// Whether a state was gone on from before, with as much left.
    fn met(&self, point: &Point) -> bool {
        let digest = point.world.digest() ^ digest_of(&point.crashed) ^ digest_of(&point.stirred).rotate_left(32);
        let mut known = self.known.lock().expect("nothing panics while it is held");
        match known.entry(digest) {
            Entry::Occupied(mut entry) => {
                let met = entry.get().covers(point.left);
                if point.left.covers(*entry.get()) {
                    entry.insert(point.left);
                }
                met
            }
            Entry::Vacant(entry) => {
                entry.insert(point.left);
                false
            }
        }
    }

    /// Follows the schedule to the end; every departure from it goes onto the stack.
    fn run(&self, mut point: Point, stack: &mut Vec<Point>, seen: &mut Seen) {
        let mut looked = false;
        loop {
            // With nothing left there is one way only: it is enough to look now and then whether it was gone before.
            if !point.left.none() || !looked && (point.ticks == 0 || point.ticks.is_power_of_two()) {
                looked = true;
                if self.met(&point) {
                    seen.merged += 1;
                    return;
                }
            }
            if !point.left.none() {
                seen.states += 1;
                self.depart(&mut point, stack);
            }
            point.depth += 1;
            let enabled = point.world.enabled();
            match enabled.first() {
                Some(&at) => {
                    point.events += 1;
                    assert!(point.events < EVENTS_MAX, "a livelock");
                    point.stirred[point.world.whose(at) as usize] = true;
                    guarded(&mut point.world, |world| world.happen(at));
                }
                None => {
                    looked = false;
                    point.events = 0;
                    point.ticks += 1;
                    point.stirred = [true; 3];
                    let mut due = true;
                    guarded(&mut point.world, |world| due = world.tick());
                    if !due || point.ticks > TICKS {
                        break;
                    }
                }
            }
        }
        seen.runs += 1;
        seen.depth = seen.depth.max(point.depth);
        if !point.world.promoted {
            guarded(&mut point.world, disaster);
        }
        let truth = &point.world.truth;
        seen.all_acked += u64::from(truth.acked.len() == truth.writes.len());
        seen.none_acked += u64::from(truth.acked.is_empty());
        seen.with_loss += u64::from(truth.lost > 0);
    }

    /// Everything else that could happen here.
    fn depart(&self, point: &mut Point, stack: &mut Vec<Point>) {
        let (crashed, depth) = (point.crashed, point.depth + 1);
        let mut push = |world: World, crashed, left| {
            stack.push(Point { world, crashed, left, stirred: [true; 3], ticks: 0, events: 0, depth });
        };
        let free = self.any_order && point.ticks == 0;
        let left = if free { Some(point.left) } else { point.left.overtakes() };
        for (at, left) in point.world.enabled().into_iter().skip(1).filter_map(|at| Some((at, left?))) {
            let mut world = point.world.clone();
            guarded(&mut world, |world| world.happen(at));
            push(world, crashed, left);
        }
        let Some(left) = point.left.strikes() else { return };
        for host in HOSTS {
            let stirred = std::mem::take(&mut point.stirred[host as usize]) || self.every_point;
            if crashed[host as usize] || !point.world.up(host) || !stirred {
                continue;
            }
            let mut crashed = crashed;
            crashed[host as usize] = true;
            for how in CRASHES {
                let mut world = point.world.clone();
                guarded(&mut world, |world| world.crash(host, how, true));
                push(world, crashed, left);
            }
        }
        if !point.world.promoted && point.world.up(Host::Dr) && !point.world.asked {
            let mut world = point.world.clone();
            guarded(&mut world, |world| world.promote(false));
            push(world, crashed, left);
        }
    }
}

fn digest_of(crashed: &[bool; 3]) -> u64 {
    crashed.iter().enumerate().map(|(at, &it)| u64::from(it) << (at * 7)).sum()
}

/// The primary's site is lost; the promotion has to succeed, by itself.
fn disaster(world: &mut World) {
    if world.up(Host::Primary) {
        world.crash(Host::Primary, Crash::Power, false);
    }
    world.lost = true;
    let mut waiting = false;
    for _ in 0..PROMOTE_TICKS {
        let mut events = 0;
        while let Some(&at) = world.enabled().first() {
            world.happen(at);
            events += 1;
            assert!(events < EVENTS_MAX, "a livelock");
        }
        match world.take_answer() {
            Some(true) => return,
            Some(false) => {
                // Refused for now: the auxiliary is coming back, or one that was asked for before is under way.
                waiting = false;
                world.tick();
                continue;
            }
            None => {}
        }
        if world.promoted {
            return;
        }
        if !waiting {
            world.promote(false);
            waiting = true;
            continue;
        }
        world.tick();
    }
    panic!("I6: the promotion does not end");
}

/// Does something; a breach is told with the way that led to it.
fn guarded(world: &mut World, act: impl FnOnce(&mut World)) {
    if let Err(breach) = catch_unwind(AssertUnwindSafe(|| act(world))) {
        eprintln!("how it came to it:\n  {}", world.trace.last(150).join("\n  "));
        std::panic::resume_unwind(breach);
    }
}

fn number<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn minutes() -> Duration {
    Duration::from_secs(number("MODEL_SECONDS", 1200))
}

const MODES: [(Require, Protect); 3] =
    [(Require::Any, Protect::Order), (Require::Both, Protect::Order), (Require::Any, Protect::Near)];

#[test]
fn every_schedule_with_few_departures_keeps_the_invariants() {
    let mut explorer = Explorer::new(minutes());
    for (require, protect) in MODES {
        explorer.explore(require, protect, 3, Left::departures(1));
        println!("one departure, {protect:?} require {require:?}: {:?}", explorer.seen);
        assert!(!explorer.seen.cut_short, "this bound is small enough to be seen whole");
        let Seen { all_acked, with_loss, .. } = explorer.seen;
        assert!(all_acked > 0 && with_loss > 0, "the runs come to something");
    }
}

#[test]
fn a_crash_or_a_promotion_at_any_point_of_any_order_of_a_write_keeps_the_invariants() {
    let mut explorer = Explorer::of_any_order(minutes());
    explorer.explore(Require::Any, Protect::Order, 1, Left::apart(0, 1));
    println!("any order of one write: {:?}", explorer.seen);
    assert!(!explorer.seen.cut_short, "this bound is small enough to be seen whole");
    let Seen { all_acked, none_acked, .. } = explorer.seen;
    assert!(all_acked > 0 && none_acked > 0, "the runs come to something");
}

/// `tools/model --writes N`: as the one before, of more writes.
#[test]
#[ignore = "takes as long as it is given: tools/model"]
fn a_crash_or_a_promotion_at_any_point_of_any_order_of_more_writes() {
    for (require, protect) in MODES {
        let mut explorer = Explorer::of_any_order(minutes());
        explorer.explore(require, protect, number("MODEL_WRITES", 2), Left::apart(0, 1));
        println!("any order, {protect:?} require {require:?}: {:?}", explorer.seen);
        if explorer.seen.cut_short {
            println!("not seen whole: the time was over");
        }
    }
}

/// `tools/model`: as many departures as `MODEL_DEPARTURES` says, for as long as `MODEL_SECONDS` says.
#[test]
#[ignore = "takes as long as it is given: tools/model"]
fn every_schedule_with_more_departures_keeps_the_invariants() {
    let departures = number("MODEL_DEPARTURES", 2);
    let mut explorer = Explorer::new(minutes());
    explorer.explore(Require::Any, Protect::Order, 3, Left::departures(departures));
    println!("{departures} departures: {:?}", explorer.seen);
    if explorer.seen.cut_short {
        println!("not seen whole: the time was over");
    }
}

const PROTECTS: [Protect; 5] = [Protect::Async, Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync];

/// All of three writes with at most so many strikes and overtakings in between; whether all of it was seen.
fn strikes(protect: Protect, writes: usize, left: Left, every_point: bool) -> Seen {
    let mut explorer = Explorer { every_point, ..Explorer::new(minutes()) };
    explorer.explore(Require::Any, protect, writes, left);
    println!("{writes} writes, {protect:?}, {left:?}: {:?}", explorer.seen);
    let Seen { runs, all_acked, cut_short, .. } = explorer.seen;
    assert!(cut_short || all_acked > 0 && runs > all_acked, "the runs come to something");
    explorer.seen
}

#[test]
fn a_crash_or_a_promotion_at_every_point_keeps_the_invariants_in_every_mode() {
    for protect in PROTECTS {
        let seen = strikes(protect, 3, Left::apart(0, 1), true);
        assert!(!seen.cut_short, "this bound is small enough to be seen whole");
    }
}

/// The other modes take as long: tools/model. In `bunker` it found that the payload ring gave a promotion a write that the primary had
/// not begun when it lost its power, and that was applied beside the batch of the next start, which had never had it.
#[test]
fn two_crashes_or_a_crash_and_a_promotion_keep_the_invariants() {
    for protect in [Protect::Order, Protect::Bunker] {
        let seen = strikes(protect, 3, Left::apart(0, 2), false);
        assert!(!seen.cut_short, "this bound is small enough to be seen whole");
    }
}

/// `tools/model --strikes N`: as many strikes as `MODEL_STRIKES` says and overtakings as `MODEL_OVERTAKES` does, in
/// `MODEL_MODE` or in every mode, for as long as `MODEL_SECONDS` says for each.
#[test]
#[ignore = "takes as long as it is given: tools/model"]
fn more_crashes_and_a_promotion_keep_the_invariants() {
    let left = Left::apart(number("MODEL_OVERTAKES", 0), number("MODEL_STRIKES", 4));
    let mode = std::env::var("MODEL_MODE").unwrap_or_default();
    for protect in PROTECTS {
        if !mode.is_empty() && mode != format!("{protect:?}").to_lowercase() {
            continue;
        }
        let began = Instant::now();
        let seen = strikes(protect, 3, left, number("MODEL_EVERY_POINT", 0) == 1);
        let (followed, firsts) = (seen.followed, seen.firsts);
        let whole = if seen.cut_short { "not seen whole: the time was over" } else { "all there are" };
        println!("{whole}, {followed} of {firsts} first departures, {:.0} s", began.elapsed().as_secs_f64());
    }
}

/// What comes by itself; false when it was that time passed.
fn step(world: &mut World) -> bool {
    match world.enabled().first() {
        Some(&at) => world.happen(at),
        None => {
            assert!(world.tick(), "nothing is due any more");
            return false;
        }
    }
    true
}

/// Once a promotion stored its report, a batch that records of the table had completed moved the cut on: the image was
/// a later state than the report said.
#[test]
fn a_promotion_at_any_point_after_a_crash_reports_the_image_it_made() {
    let mut world = begin(Require::Any, Protect::Order, 3);
    while world.truth.acked.len() < world.truth.writes.len() {
        step(&mut world);
    }
    // Everything is in DR's image before the crash: what a batch brings then is older where the power was lost.
    while world.cut() < world.truth.tail() || !world.enabled().is_empty() {
        step(&mut world);
    }
    for host in HOSTS {
        for how in CRASHES {
            let mut world = world.clone();
            world.crash(host, how, true);
            let mut ticks = 0;
            while ticks < TICKS {
                if world.up(Host::Dr) {
                    let mut other = world.clone();
                    guarded(&mut other, |world| world.promote(false));
                    guarded(&mut other, |world| {
                        let mut ticks = 0;
                        while ticks < TICKS && !world.promoted {
                            ticks += usize::from(!step(world));
                        }
                        if !world.promoted {
                            disaster(world);
                        }
                    });
                }
                guarded(&mut world, |world| ticks += usize::from(!step(world)));
            }
        }
    }
}

/// From whatever earlier recovery point what survives leads to the one that was reached: a promotion that reported that point
/// would be told that it stops early.
#[test]
fn a_promotion_that_stopped_earlier_would_be_noticed() {
    for protect in PROTECTS {
        let mut world = begin(Require::Any, protect, 3);
        while world.truth.acked.len() < 3 || world.cut() < world.truth.tail() || !world.enabled().is_empty() {
            step(&mut world);
        }
        disaster(&mut world);
        let (cut, mut survivors) = (world.cut(), Survivors::of(&world, true));
        assert_eq!((world.truth.lost, cut), (0, world.truth.tail()), "{protect:?}");
        let earlier: Vec<Seq> = world.truth.records().map(|record| record.seq).filter(|seq| *seq < cut).collect();
        assert!(earlier.len() > 3, "writes and what is before them");
        assert!(earlier.iter().all(|from| survivors.highest(*from) == cut), "{protect:?}");
        // Without its payload an order leads nowhere, but the ring has it as well.
        let last = world.truth.records().last().copied().expect("the last write");
        survivors.spooled.clear();
        let missed = survivors.highest(last.seq.prev());
        assert_eq!(missed, if protect == Protect::Bunker { cut } else { last.seq.prev() }, "{protect:?}");
    }
}

/// An auxiliary that gives something else than what its payload ring holds has the promotion stop early, and the model says so.
#[test]
fn a_promotion_that_stops_early_is_noticed() {
    let mut world = begin(Require::Any, Protect::Bunker, 3);
    let (mut noticed, mut whole) = (0, 0);
    while world.truth.acked.len() < 3 || world.cut() < world.truth.tail() || !world.enabled().is_empty() {
        let mut other = world.clone();
        other.misreads_ring = true;
        match catch_unwind(AssertUnwindSafe(|| disaster(&mut other))) {
            Ok(()) => whole += 1,
            Err(breach) => {
                let text = breach.downcast_ref::<String>().expect("an assertion");
                assert!(text.contains(STOPS_EARLY), "{text}");
                noticed += 1;
            }
        }
        step(&mut world);
    }
    assert!(noticed > 0 && whole > 0, "the ring is needed at {noticed} points, and not at {whole}");
}
