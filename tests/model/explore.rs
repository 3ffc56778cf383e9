//! Every schedule within a bound, over copies of the real machines.
//!
//! By itself, what became possible first happens first, and time passes when nothing else can. A *departure* is
//! anything else: another event overtakes (messages of one connection keep their order, everything else may), a host
//! goes down (each once at the most: killed with what was on its way to its disk landing or not, or without power)
//! and comes back, or the DR site is promoted (once). All runs with at most so many departures, at whatever points, are
//! run to their end, where the primary is lost and the DR site promoted if it was not before. A state met before
//! with as many departures left is not gone on from again.
//!
//! The other way round, for fewer writes: every order of all that can happen until time passes for the first time, and
//! one crash or promotion at every point of each.
//!
//! What it does not cover: more departures; a deadline that comes while something else could happen; half of a write
//! (`tests/sim` draws those).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use farshore::core::modes::{Protect, Require};

use crate::world::{CRASHES, Crash, HOSTS, Host, World};

/// Ticks of a run while the primary lives, after the last departure or write.
const TICKS: usize = 12;
/// Ticks of a promotion: the lease is waited out, links are given up.
const PROMOTE_TICKS: usize = 400;
/// Events in a row without time passing: more is a livelock.
const EVENTS_MAX: usize = 20_000;

/// A place where a run can depart from the schedule.
#[derive(Clone)]
struct Point {
    world: World,
    left: u32,
    crashed: [bool; 3],
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
        self.cut_short |= other.cut_short;
    }
}

pub struct Explorer {
    /// States gone on from, and with how many departures left.
    known: Mutex<HashMap<u64, u32>>,
    pub seen: Seen,
    until: Instant,
    /// To overtake is no departure until time passes for the first time: every order of all that can happen until then.
    any_order: bool,
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
        Explorer { known: Mutex::default(), seen: Seen::default(), until: Instant::now() + patience, any_order: false }
    }

    pub fn of_any_order(patience: Duration) -> Explorer {
        Explorer { any_order: true, ..Explorer::new(patience) }
    }

    /// All runs with at most `departures`, on all cores.
    pub fn explore(&mut self, require: Require, protect: Protect, writes: usize, departures: u32) {
        self.known.get_mut().expect("nothing panics while it is held").clear();
        let world = begin(require, protect, writes);
        let start = Point { world, left: departures, crashed: [false; 3], ticks: 0, events: 0, depth: 0 };
        let (mut seen, mut first) = (Seen::default(), Vec::new());
        self.run(start, &mut first, &mut seen);
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
            let shared = || shared.lock().expect("nothing panics while it is held").pop();
            let Some(point) = stack.pop().or_else(shared) else { return seen };
            if Instant::now() > self.until {
                seen.cut_short = true;
                return seen;
            }
            self.run(point, &mut stack, &mut seen);
        }
    }

    /// Whether a state was gone on from before, with as many departures left.
    fn met(&self, point: &Point) -> bool {
        let digest = point.world.digest() ^ digest_of(&point.crashed);
        let mut known = self.known.lock().expect("nothing panics while it is held");
        let left = known.entry(digest).or_insert(0);
        let met = *left >= point.left;
        *left = point.left.max(*left);
        met
    }

    /// Follows the schedule to the end; every departure from it goes onto the stack.
    fn run(&self, mut point: Point, stack: &mut Vec<Point>, seen: &mut Seen) {
        loop {
            if point.left > 0 {
                // With no departure left there is one way only: nothing to be merged with.
                if self.met(&point) {
                    seen.merged += 1;
                    return;
                }
                seen.states += 1;
                self.depart(&point, stack);
            }
            point.depth += 1;
            let enabled = point.world.enabled();
            match enabled.first() {
                Some(&at) => {
                    point.events += 1;
                    assert!(point.events < EVENTS_MAX, "a livelock");
                    guarded(&mut point.world, |world| world.happen(at));
                }
                None => {
                    point.events = 0;
                    point.ticks += 1;
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
    fn depart(&self, point: &Point, stack: &mut Vec<Point>) {
        let mut push = |world: World, crashed, left| {
            stack.push(Point { world, crashed, left, ticks: 0, events: 0, depth: point.depth + 1 });
        };
        let free = self.any_order && point.ticks == 0;
        for at in point.world.enabled().into_iter().skip(1).filter(|_| free || !self.any_order) {
            let mut world = point.world.clone();
            guarded(&mut world, |world| world.happen(at));
            push(world, point.crashed, point.left - u32::from(!free));
        }
        for host in HOSTS {
            if point.crashed[host as usize] || !point.world.up(host) {
                continue;
            }
            let mut crashed = point.crashed;
            crashed[host as usize] = true;
            for how in CRASHES {
                let mut world = point.world.clone();
                guarded(&mut world, |world| world.crash(host, how, true));
                push(world, crashed, point.left - 1);
            }
        }
        if !point.world.promoted && point.world.up(Host::Dr) && !point.world.asked {
            let mut world = point.world.clone();
            guarded(&mut world, |world| world.promote(false));
            push(world, point.crashed, point.left - 1);
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
    Duration::from_secs(number("MODEL_SECONDS", 120))
}

const MODES: [(Require, Protect); 3] =
    [(Require::Any, Protect::Order), (Require::Both, Protect::Order), (Require::Any, Protect::Near)];

#[test]
fn every_schedule_with_few_departures_keeps_the_invariants() {
    let mut explorer = Explorer::new(minutes());
    for (require, protect) in MODES {
        explorer.explore(require, protect, 3, 1);
        println!("one departure, {protect:?} require {require:?}: {:?}", explorer.seen);
        assert!(!explorer.seen.cut_short, "this bound is small enough to be seen whole");
        let Seen { all_acked, with_loss, .. } = explorer.seen;
        assert!(all_acked > 0 && with_loss > 0, "the runs come to something");
    }
}

#[test]
fn a_crash_or_a_promotion_at_any_point_of_any_order_of_a_write_keeps_the_invariants() {
    let mut explorer = Explorer::of_any_order(minutes());
    explorer.explore(Require::Any, Protect::Order, 1, 1);
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
        explorer.explore(require, protect, number("MODEL_WRITES", 2), 1);
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
    explorer.explore(Require::Any, Protect::Order, 3, departures);
    println!("{departures} departures: {:?}", explorer.seen);
    if explorer.seen.cut_short {
        println!("not seen whole: the time was over");
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
