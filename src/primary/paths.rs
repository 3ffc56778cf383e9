//! The ways to one DR: connections are spread over those that work, and one that does not is left out until it does.
//!
//! Owns what is known of each way: how many connections are on it, and whether it is out of order. Knows no socket: the shell
//! says what became of connections, tries a way that is to be looked at, and moves a stream when it is told to.
//!
//! | a connection | its way |
//! |---|---|
//! | is established, also one that only looks | works |
//! | cannot be established, or was silent when it was given up | is looked at after a pause, which doubles each time |
//! | ends otherwise | the same: DR may have been restarted, or cut off by something on the way |
//!
//! Where no way works all of them are tried, in turn: it is the connections themselves that find out.

use crate::cluster::status::PathStatus;
use crate::core::address::Address;
use crate::format::wire::Purpose;

/// How long a way is not used, nanoseconds: at first, and at the most.
const PAUSE_NS_MIN: u64 = 1_000_000_000;
const PAUSE_NS_MAX: u64 = 30_000_000_000;
/// From one stream that is moved to the next, nanoseconds.
const MOVE_EVERY_NS: u64 = 1_000_000_000;
/// A failure so long ago says nothing of the next one, nanoseconds.
const FORGOTTEN_NS: u64 = 300_000_000_000;

#[derive(Clone, Debug)]
struct Path {
    address: Address,
    /// Left out; then it is looked at.
    down_until_ns: Option<u64>,
    /// When it failed last, and the pause since.
    failed_ns: u64,
    pause_ns: u64,
    looking: bool,
    looked_ns: u64,
    streams: u64,
    /// The number of its last choice for order records.
    chosen: u64,
}

/// All ways to DR.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    paths: Vec<Path>,
    choices: u64,
    moved_ns: u64,
}

/// How a connection ended, or an attempt to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was not established, or nothing was heard on it any more.
    Dead,
    Closed,
    /// By us, and its way has nothing to do with it.
    Ours,
}

impl Paths {
    /// One for each of these addresses of it, in order.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = Address>) -> Paths {
        let path = |address| Path {
            address,
            down_until_ns: None,
            failed_ns: 0,
            pause_ns: 0,
            looking: false,
            looked_ns: 0,
            streams: 0,
            chosen: 0,
        };
        Paths { paths: addresses.into_iter().map(path).collect(), choices: 0, moved_ns: 0 }
    }

    /// Where it leads, if there is such a way.
    #[must_use]
    pub fn address(&self, path: usize) -> Option<&Address> {
        self.paths.get(path).map(|path| &path.address)
    }

    /// Which way the next connection takes: streams the one with the fewest, order records the first that works. Of those that
    /// do not work, if none does, the one that was tried the longest ago.
    ///
    /// # Panics
    /// When there is no way at all.
    pub fn choose(&mut self, purpose: Purpose) -> usize {
        let none_works = self.paths.iter().all(|path| path.down_until_ns.is_some());
        let usable = self.paths.iter().enumerate().filter(|(_, path)| none_works || path.down_until_ns.is_none());
        let chosen = match purpose {
            _ if none_works => usable.min_by_key(|(_, path)| path.chosen),
            Purpose::Order => usable.min_by_key(|(at, _)| *at),
            Purpose::Stream => usable.min_by_key(|(at, path)| (path.streams, *at)),
        };
        let (at, _) = chosen.expect("there is a way to DR");
        if purpose == Purpose::Order {
            self.choices += 1;
            self.paths[at].chosen = self.choices;
        }
        self.paths[at].streams += u64::from(purpose == Purpose::Stream);
        at
    }

    /// A connection on it is established.
    pub fn works(&mut self, path: usize) {
        let path = &mut self.paths[path];
        (path.down_until_ns, path.looking) = (None, false);
    }

    /// A connection on it has ended.
    pub fn ended(&mut self, path: usize, purpose: Purpose, end: End, now_ns: u64) {
        let it = &mut self.paths[path];
        it.streams -= u64::from(purpose == Purpose::Stream);
        self.failed(path, end, now_ns);
    }

    fn failed(&mut self, path: usize, end: End, now_ns: u64) {
        // With one way only there is nothing to choose.
        if self.paths.len() < 2 {
            return;
        }
        let it = &mut self.paths[path];
        // What several connections find out at once is one failure.
        if end == End::Ours || it.down_until_ns.is_some_and(|until_ns| end == End::Closed || now_ns < until_ns) {
            return;
        }
        let again = it.pause_ns > 0 && now_ns < it.failed_ns + FORGOTTEN_NS;
        it.pause_ns = if again { (2 * it.pause_ns).min(PAUSE_NS_MAX) } else { PAUSE_NS_MIN };
        (it.failed_ns, it.down_until_ns) = (now_ns, Some(now_ns + it.pause_ns));
    }

    /// A way that is to be looked at now, while others work: `works` or `found_dead` is to follow.
    pub fn look(&mut self, now_ns: u64) -> Option<usize> {
        if self.paths.iter().all(|path| path.down_until_ns.is_some()) {
            return None;
        }
        // Of one that nothing is on nobody would know.
        let unused = |path: &Path| path.streams == 0 && path.looked_ns + PAUSE_NS_MAX <= now_ns;
        let due = |path: &Path| path.down_until_ns.map_or_else(|| unused(path), |until_ns| until_ns <= now_ns);
        let many = self.paths.len() > 1;
        let at = self.paths.iter().position(|path| many && !path.looking && due(path))?;
        (self.paths[at].looking, self.paths[at].looked_ns) = (true, now_ns);
        Some(at)
    }

    /// What looked at it could not be established.
    pub fn found_dead(&mut self, path: usize, now_ns: u64) {
        self.paths[path].looking = false;
        self.failed(path, End::Dead, now_ns);
    }

    /// A way of which one stream is to be moved, because another has at least two fewer.
    pub fn crowded(&mut self, now_ns: u64) -> Option<usize> {
        let working = || self.paths.iter().enumerate().filter(|(_, path)| path.down_until_ns.is_none());
        let fewest = working().map(|(_, path)| path.streams).min()?;
        let (at, most) = working().max_by_key(|(_, path)| path.streams)?;
        if most.streams < fewest + 2 || now_ns < self.moved_ns + MOVE_EVERY_NS {
            return None;
        }
        self.moved_ns = now_ns;
        Some(at)
    }

    /// Each way, where there are several.
    #[must_use]
    pub fn status(&self) -> Vec<PathStatus> {
        let status = |path: &Path| PathStatus {
            address: path.address.to_string(),
            state: if path.down_until_ns.is_some() { "down" } else { "up" }.into(),
            streams: path.streams,
        };
        if self.paths.len() > 1 { self.paths.iter().map(status).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn paths(count: u16) -> Paths {
        Paths::new((0..count).map(|at| format!("10.0.{at}.1:10830").parse().expect("an address")))
    }

    fn streams(paths: &mut Paths, count: usize) -> Vec<usize> {
        (0..count).map(|_| paths.choose(Purpose::Stream)).collect()
    }

    fn told(paths: &Paths) -> Vec<(&'static str, u64)> {
        let word = |path: &PathStatus| (if path.state == "up" { "up" } else { "down" }, path.streams);
        paths.status().iter().map(word).collect()
    }

    #[test]
    fn streams_are_spread_and_a_way_that_is_dead_is_left_out_until_it_works() {
        let mut paths = paths(2);
        assert_eq!(paths.choose(Purpose::Order), 0);
        assert_eq!(streams(&mut paths, 4), [0, 1, 0, 1]);
        for _ in 0..2 {
            paths.ended(1, Purpose::Stream, End::Dead, 0);
        }
        assert_eq!(streams(&mut paths, 2), [0, 0], "all on the one that works");
        assert_eq!(told(&paths), [("up", 4), ("down", 0)]);
        assert_eq!((paths.look(SECOND - 1), paths.look(SECOND), paths.look(SECOND)), (None, Some(1), None), "once");
        paths.found_dead(1, 2 * SECOND);
        assert_eq!((paths.look(4 * SECOND - 1), paths.look(4 * SECOND)), (None, Some(1)), "the pause has doubled");
        assert_eq!(paths.crowded(4 * SECOND), None);
        paths.works(1);
        // One stream after another goes back.
        let mut moved = Vec::new();
        for at in 60..100 {
            if let Some(from) = paths.crowded(at * SECOND / 10) {
                paths.ended(from, Purpose::Stream, End::Ours, at * SECOND / 10);
                moved.push((at, from, paths.choose(Purpose::Stream)));
            }
        }
        assert_eq!(moved, [(60, 0, 1), (70, 0, 1)]);
        assert_eq!(told(&paths), [("up", 2), ("up", 2)]);
    }

    #[test]
    fn a_way_that_nothing_is_on_is_looked_at_in_its_time_and_a_look_that_fails_then_is_another_failure() {
        let mut paths = paths(2);
        assert_eq!(paths.address(1).map(ToString::to_string).as_deref(), Some("10.0.1.1:10830"));
        assert_eq!(paths.address(2), None);
        assert_eq!(streams(&mut paths, 1), [0]);
        assert_eq!((paths.look(PAUSE_NS_MAX - 1), paths.look(PAUSE_NS_MAX)), (None, Some(1)));
        paths.found_dead(1, PAUSE_NS_MAX);
        let due_ns = PAUSE_NS_MAX + SECOND;
        assert_eq!(paths.look(due_ns), Some(1));
        paths.found_dead(1, due_ns);
        assert_eq!((paths.look(due_ns + 2 * SECOND - 1), paths.look(due_ns + 2 * SECOND)), (None, Some(1)));
    }

    #[test]
    fn where_no_way_works_all_are_tried_in_turn() {
        let mut paths = paths(3);
        for _ in 0..3 {
            let at = paths.choose(Purpose::Order);
            paths.ended(at, Purpose::Order, End::Dead, 0);
        }
        assert_eq!(paths.look(99 * SECOND), None, "the connections find out");
        let mut tried = Vec::new();
        for _ in 0..6 {
            tried.push(paths.choose(Purpose::Order));
            paths.ended(*tried.last().expect("one"), Purpose::Order, End::Dead, 0);
        }
        assert_eq!(tried, [0, 1, 2, 0, 1, 2]);
        paths.works(1);
        assert_eq!((paths.choose(Purpose::Order), streams(&mut paths, 2)), (1, vec![1, 1]));
    }

    #[test]
    fn the_pause_has_an_end_and_the_only_way_is_never_left_out() {
        let mut two = paths(2);
        two.works(0);
        assert_eq!((two.look(PAUSE_NS_MAX), two.look(PAUSE_NS_MAX)), (Some(0), Some(1)), "nothing is on them");
        two.works(0);
        two.works(1);
        assert_eq!(two.choose(Purpose::Stream), 0);
        two.choose(Purpose::Stream);
        // One that only seems to work is not tried more often for that.
        let mut now_ns = 0;
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            two.works(1);
            two.ended(1, Purpose::Order, End::Closed, now_ns);
            two.ended(1, Purpose::Order, End::Dead, now_ns);
            now_ns += pause * SECOND;
            assert_eq!((two.look(now_ns - 1), two.look(now_ns)), (None, Some(1)), "{pause}");
        }
        two.works(1);
        let long_ns = now_ns - 30 * SECOND + FORGOTTEN_NS;
        two.ended(1, Purpose::Order, End::Dead, long_ns);
        assert_eq!(two.look(long_ns + SECOND), Some(1), "that was long ago");
        two.ended(0, Purpose::Order, End::Ours, 0);
        assert_eq!(two.choose(Purpose::Order), 0, "ended by us");
        let mut one = paths(1);
        for _ in 0..3 {
            assert_eq!(one.choose(Purpose::Stream), 0);
            one.ended(0, Purpose::Stream, End::Dead, 0);
        }
        assert_eq!((one.look(99 * SECOND), one.crowded(99 * SECOND), one.status()), (None, None, vec![]));
    }
}
