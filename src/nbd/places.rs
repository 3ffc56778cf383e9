//! Who has a place among the connections of a server, and who gives way when places run out (I9). Pure.
//!
//! Of the places some are kept for unix sockets, and no peer has all: a peer is whoever connects from one address (of
//! IPv6 from one network of 64 bits), or by unix sockets.
//!
//! | the newcomer | gets |
//! |---|---|
//! | there is a place for it | that |
//! | its own peer has as many as one may have | that of one of its peer: one that has not asked for anything yet, else the one that has been stuck for longest, else the idle one that has asked for least, once it has been idle for [`IDLE_NS`] |
//! | [`CROWD`] or more have not asked for anything yet, of whatever peers | that of one of them |
//! | others have the places | one of the peer that has most, chosen as above, unless its peer then had fewer than the newcomer's; else that of one that has not asked for anything yet |
//! | nobody can give way | nothing |
//!
//! So whoever has asked for something keeps its place against any number of strangers, by however many addresses they come, as long
//! as all who have asked leave [`CROWD`] places: one peer alone always does.
//!
//! Those that have not asked for anything yet are silent, or have begun their handshake, or are through with it: of the kind
//! that are most one gives way. So no crowd of one kind drives out those of another. Of that kind it is one of the peer that has
//! most of them (up to [`SEVERAL`] count as one, for that is how clients with several connections begin): of the silent ones
//! the oldest, of others anyone, by chance. So a crowd gains nothing by what it says, and how often.
//!
//! Newcomers have time to begin: where places have run out the others wait to be accepted ([`Pace`]), so that each one of as
//! many as there are that have not asked for anything yet is there for [`GRACE_NS`] before it gives way (but for the few that are
//! accepted at once), on the average where that is left to chance. No more than [`CROWD`] are waited for so; nor is anybody for the
//! sake of those of a peer that has all that it may have: of these, where all but n keep their places, each of the n is there
//! for n parts of that time. So whoever comes by the same listener from elsewhere does not wait for long, however few may give
//! way, whatever they say, and by however many addresses they come.
//!
//! Of those that are idle the one gives way that has asked for least (powers of two), of equals the one that has been idle
//! for longest. To its own peer no other one does instead while that one has not been idle for [`IDLE_NS`]: the newcomer is
//! refused. So whoever comes with any number of connections, and little use for them, drives out its own, however often each
//! of them asks: one that has asked for much is safe as long as another idle one of its peer has asked for less.
//!
//! Whoever has a request in flight keeps its place, unless it is stuck: what is waited for is the client, who goes on
//! neither with the rest of it nor with taking the answer. What has arrived counts as said, or asked, also before it is read.

use ::core::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use crate::core::ids::Conn;
use crate::limits::{CONNECTIONS_KEPT_UNIX, CONNECTIONS_MAX, CONNECTIONS_PEER_MAX};

/// Who is at the other end of connections that share places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    Unix,
    Address(IpAddr),
    #[default]
    Unknown,
}

/// What a connection does with its place, from the one that gives way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has said nothing yet; since when it is there, monotonic nanoseconds.
    Silent {
        since_ns: u64,
    },
    /// It is in its handshake.
    Begun,
    /// It is through with its handshake, or at least with that of TLS, and has not asked for anything yet.
    Ready,
    /// It does not go on with a request; since when, monotonic nanoseconds.
    Stuck {
        since_ns: u64,
    },
    /// It has no request in flight; since when, monotonic nanoseconds, and how many requests it has made so far.
    Idle {
        since_ns: u64,
        asked: u64,
    },
    Busy,
}

impl Standing {
    /// Which kind of those that have not asked for anything yet.
    fn unasked(self) -> Option<usize> {
        match self {
            Standing::Silent { .. } => Some(0),
            Standing::Begun => Some(1),
            Standing::Ready => Some(2),
            Standing::Stuck { .. } | Standing::Idle { .. } | Standing::Busy => None,
        }
    }
}

/// A connection and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub conn: Conn,
    pub peer: Peer,
    pub standing: Standing,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    /// That of this connection, which is ended.
    Of(Conn),
    None,
}

impl Peer {
    /// By the name that the reactor gives it.
    #[must_use]
    pub fn of(name: &str) -> Peer {
        if name.starts_with("unix") {
            return Peer::Unix;
        }
        match name.parse::<SocketAddr>().map(|address| address.ip().to_canonical()) {
            Ok(IpAddr::V6(address)) if !address.is_loopback() => {
                let network = address.to_bits() >> 64 << 64;
                Peer::Address(IpAddr::V6(Ipv6Addr::from_bits(network)))
            }
            Ok(address) => Peer::Address(address),
            Err(_) => Peer::Unknown,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix => f.write_str("unix sockets"),
            Peer::Address(IpAddr::V6(address)) if !address.is_loopback() => write!(f, "{address}/64"),
            Peer::Address(address) => write!(f, "{address}"),
            Peer::Unknown => f.write_str("an unknown address"),
        }
    }
}

/// How many places each peer has.
#[derive(Debug)]
pub struct Census {
    of: HashMap<Peer, usize>,
    all: usize,
}

impl Census {
    #[must_use]
    pub fn take(peers: impl Iterator<Item = Peer>) -> Census {
        let (mut of, mut all) = (HashMap::new(), 0);
        for peer in peers {
            *of.entry(peer).or_insert(0) += 1;
            all += 1;
        }
        Census { of, all }
    }

    /// Whether one of its peer gives way to one more of `peer`, if any.
    #[must_use]
    pub fn is_full(&self, peer: Peer) -> bool {
        self.has(peer) >= CONNECTIONS_PEER_MAX
    }

    fn has(&self, peer: Peer) -> usize {
        self.of.get(&peer).copied().unwrap_or(0)
    }

    /// Whether those that do not come by unix sockets have all that they may have.
    fn outside_is_full(&self) -> bool {
        self.all - self.has(Peer::Unix) >= CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX
    }

    /// Whether one more of `peer` finds a place that is free.
    #[must_use]
    pub fn has_room(&self, peer: Peer) -> bool {
        let outside = peer != Peer::Unix && self.outside_is_full();
        self.all < CONNECTIONS_MAX && !self.is_full(peer) && !outside
    }

    /// Who has most of the places, when they run out for anybody, and what to say of it.
    #[must_use]
    pub fn run_out(&self) -> Option<String> {
        // Of equals always the same one.
        let (most, count) = self.of.iter().map(|(peer, count)| (*peer, *count)).max_by_key(|it| (it.1, it.0))?;
        let out = self.all >= CONNECTIONS_MAX || self.outside_is_full() || count >= CONNECTIONS_PEER_MAX;
        out.then(|| {
            format!(
                "places for NBD clients run out: {} of {CONNECTIONS_MAX} are taken, {count} of them by {most} (one peer may \
                 have {CONNECTIONS_PEER_MAX}, {CONNECTIONS_KEPT_UNIX} are kept for unix sockets)",
                self.all
            )
        })
    }
}

/// Where so many are there that have not asked for anything yet one of them gives way rather than one that has: what all
/// peers together have beside what one may have.
pub const CROWD: usize = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX - CONNECTIONS_PEER_MAX;
/// So many connections of one peer that have not asked for anything yet are no more than one.
pub const SEVERAL: usize = 4;

/// How long a newcomer has, where places have run out, nanoseconds.
pub const GRACE_NS: u64 = 50_000_000;
/// How long who has asked for something keeps its place in any case against newcomers of its own peer, nanoseconds.
pub const IDLE_NS: u64 = 1_000_000_000;

/// How fast newcomers are accepted where places have run out.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the next one may come then, monotonic nanoseconds.
    next_ns: u64,
}

impl Pace {
    /// One more has come, and has a place; so many are there now that may give way before they have asked for anything.
    pub fn step(&mut self, now_ns: u64, unasked: usize) {
        let wait_ns = GRACE_NS / unasked.clamp(CROWD, CONNECTIONS_PEER_MAX) as u64;
        self.next_ns = self.next_ns.max(now_ns).saturating_add(wait_ns).min(now_ns.saturating_add(GRACE_NS));
    }

    /// Until when others wait to be accepted, now that no place is left.
    #[must_use]
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }
}

/// Finds a place for one more connection of `peer`; `seats` in the order in which they were taken, `chance` any number.
#[must_use]
pub fn place(seats: &[Seat], peer: Peer, now_ns: u64, chance: u64) -> Place {
    let census = Census::take(seats.iter().map(|seat| seat.peer));
    if census.has_room(peer) {
        return Place::Free;
    }
    gives_way(seats, peer, &census, now_ns, chance).map_or(Place::None, |seat| Place::Of(seat.conn))
}

/// Who gives its place to one more of `peer`.
fn gives_way<'a>(seats: &'a [Seat], peer: Peer, census: &Census, now_ns: u64, chance: u64) -> Option<&'a Seat> {
    let own = census.has(peer);
    if census.is_full(peer) {
        return of_peer(seats, peer, chance).filter(|seat| !keeps(seat, now_ns));
    }
    // A place that is kept is of no use to others.
    let of_use = |seat: &&Seat| seat.peer == peer || seat.peer != Peer::Unix || !census.outside_is_full();
    let crowd = || seats.iter().filter(of_use);
    if crowd().filter(|seat| seat.standing.unasked().is_some()).count() >= CROWD {
        return of_unasked(crowd(), chance);
    }
    // Its peer has no fewer than the newcomer's afterwards.
    let fair = |seat: &&Seat| seat.peer == peer || census.has(seat.peer) > own + 1;
    let some = crowd().filter(fair).filter(|seat| seat.standing != Standing::Busy);
    let most = some.min_by_key(|seat| (Reverse(census.has(seat.peer)), seat.peer));
    let found = most.and_then(|seat| of_peer(seats, seat.peer, chance));
    found.filter(|seat| seat.peer != peer || !keeps(seat, now_ns)).or_else(|| of_unasked(crowd(), chance))
}

/// Who gives its place to others of its peer: the idle one that asked for least, or none, not another one because that one has
/// just asked.
fn keeps(seat: &Seat, now_ns: u64) -> bool {
    matches!(seat.standing, Standing::Idle { since_ns, .. } if now_ns < since_ns.saturating_add(IDLE_NS))
}

/// Who of this peer gives way first.
fn of_peer(seats: &[Seat], peer: Peer, chance: u64) -> Option<&Seat> {
    let all = || seats.iter().filter(|seat| seat.peer == peer);
    let turn = |seat: &&Seat| match seat.standing {
        Standing::Stuck { since_ns } => Some((0, 0, since_ns)),
        Standing::Idle { since_ns, asked } => Some((1, asked.checked_ilog2().unwrap_or(0), since_ns)),
        _ => None,
    };
    of_unasked(all(), chance).or_else(|| all().filter(|seat| turn(seat).is_some()).min_by_key(turn))
}

/// Who of those that have not asked for anything yet gives way first.
fn of_unasked<'a>(seats: impl Iterator<Item = &'a Seat>, chance: u64) -> Option<&'a Seat> {
    let unasked: Vec<_> = seats.filter_map(|seat| Some((seat, seat.standing.unasked()?))).collect();
    let (mut kinds, mut peers) = ([0usize; 3], HashMap::new());
    for (seat, kind) in &unasked {
        kinds[*kind] += 1;
        *peers.entry((seat.peer, *kind)).or_insert(0) += 1;
    }
    let most = (0..kinds.len()).min_by_key(|kind| Reverse(kinds[*kind]))?;
    let has = |seat: &Seat| peers[&(seat.peer, most)].max(SEVERAL);
    let of_kind = || unasked.iter().filter(|(_, kind)| *kind == most).map(|(seat, _)| *seat);
    let crowd = of_kind().map(has).max()?;
    let may: Vec<_> = of_kind().filter(|seat| has(seat) == crowd).collect();
    let since = |seat: &&Seat| if let Standing::Silent { since_ns } = seat.standing { since_ns } else { 0 };
    match may.first()?.standing {
        Standing::Silent { .. } => may.into_iter().min_by_key(since),
        _ => Some(may[usize::try_from(chance % may.len() as u64).expect("fewer than there are places")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Peer = Peer::Address(IpAddr::V6(Ipv6Addr::LOCALHOST));

    /// Nobody has been idle for long, where a test does not say so.
    const NOW: u64 = IDLE_NS;

    fn far(host: u8) -> Peer {
        Peer::of(&format!("192.0.2.{host}:1000"))
    }

    /// Where chance has no part, or any will do.
    fn place(seats: &[Seat], peer: Peer, now_ns: u64) -> Place {
        super::place(seats, peer, now_ns, now_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20)
    }

    /// One of any number.
    fn network(at: u64) -> Peer {
        Peer::of(&format!("[2001:db8:{:x}:{:x}::1]:7", 1 + at / 65536, at % 65536))
    }

    /// So many of each, in this order.
    fn seats(of: &[(usize, Peer, Standing)]) -> Vec<Seat> {
        let each = of.iter().flat_map(|(count, peer, standing)| std::iter::repeat_n((*peer, *standing), *count));
        each.zip(1..).map(|((peer, standing), conn)| Seat { conn: Conn(conn), peer, standing }).collect()
    }

    #[test]
    fn a_peer_is_an_address_a_network_or_the_unix_sockets() {
        assert_eq!(Peer::of("unix pid 7"), Peer::of("unix"));
        assert_eq!(Peer::of("192.0.2.1:1"), Peer::of("[::ffff:192.0.2.1]:2"));
        assert_ne!(far(1), far(2));
        assert_eq!(Peer::of("[2001:db8::1]:1"), Peer::of("[2001:db8::ffff:2]:9"));
        assert_ne!(Peer::of("[2001:db8::1]:1"), Peer::of("[2001:db8:0:1::1]:1"));
        assert_eq!((Peer::of("[::1]:4"), Peer::of("what?")), (HERE, Peer::Unknown));
        let named = ["[2001:db8::1]:1", "[::1]:4", "192.0.2.1:1", "unix pid 7", "what?"];
        let names = ["2001:db8::/64", "::1", "192.0.2.1", "unix sockets", "an unknown address"];
        assert_eq!(named.map(|name| Peer::of(name).to_string()), names);
    }

    #[test]
    fn one_peer_never_has_all_places_and_some_are_kept() {
        for peer in [far(1), Peer::Unix, HERE] {
            let all = seats(&[(CONNECTIONS_PEER_MAX, peer, Standing::Busy)]);
            assert_eq!(place(&all[1..], peer, NOW), Place::Free);
            assert_eq!(place(&all, peer, NOW), Place::None);
            for other in [far(2), Peer::Unix].into_iter().filter(|other| *other != peer) {
                assert_eq!(place(&all, other, NOW), Place::Free, "{peer} {other}");
            }
        }
        let outside = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX;
        let all: Vec<_> = (0..outside).map(|at| (1, far(at as u8), Standing::Busy)).collect();
        let all = seats(&all);
        assert_eq!((place(&all, far(250), NOW), place(&all, Peer::Unix, NOW)), (Place::None, Place::Free));
    }

    /// At the bound, not one before and not one beyond; and it is said then, of whoever has most.
    #[test]
    fn no_more_have_places_than_there_are_and_it_is_said_when_they_run_out() {
        let outside = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX;
        let near = CONNECTIONS_PEER_MAX - 1;
        for (unix, first, second, wanted) in [
            (0, near, 0, None),
            (0, near + 1, 0, Some(far(1))),
            (near, 0, 0, None),
            (near + 1, 0, 0, Some(Peer::Unix)),
            (0, near, outside - near - 1, None),
            (0, near, outside - near, Some(far(1))),
            (CONNECTIONS_KEPT_UNIX, near, outside - near - 1, None),
            (CONNECTIONS_KEPT_UNIX + 1, near, outside - near - 1, Some(far(1))),
            (near, 1, CONNECTIONS_MAX - near - 2, None),
            (near, 1, CONNECTIONS_MAX - near - 1, Some(Peer::Unix)),
        ] {
            let busy = Standing::Busy;
            let taken = seats(&[(unix, Peer::Unix, busy), (first, far(1), busy), (second, far(2), busy)]);
            let what = format!("{unix} {first} {second}");
            let census = Census::take(taken.iter().map(|seat| seat.peer));
            let said = census.run_out();
            assert_eq!(said.is_some(), wanted.is_some(), "{what}: {said:?}");
            if let (Some(text), Some(most)) = (said, wanted) {
                assert!(text.contains(&format!(" {} of {CONNECTIONS_MAX} are taken", taken.len())), "{text}");
                assert!(text.contains(&format!(" {} of them by {most} (", census.has(most))), "{text}");
            }
            let free = |peer| place(&taken, peer, NOW) == Place::Free;
            assert_eq!(free(Peer::Unix), taken.len() < CONNECTIONS_MAX && unix <= near, "{what}");
            let room = taken.len() < CONNECTIONS_MAX && first + second < outside;
            assert_eq!(free(far(3)), room, "{what}");
        }
        assert_eq!(Census::take(std::iter::empty()).run_out(), None);
    }

    #[test]
    fn who_has_most_gives_way_to_another_and_never_with_a_request_in_flight() {
        let idle = |since_ns| Standing::Idle { since_ns, asked: 1 };
        let silent = Standing::Silent { since_ns: 0 };
        let most = CONNECTIONS_PEER_MAX;
        let rest = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX - most;
        let full = |standing| {
            seats(&[
                (1, far(1), idle(9)),
                (1, far(1), standing),
                (most - 2, far(1), Standing::Busy),
                (CROWD - 1, far(2), silent),
                (rest + 1 - CROWD, far(2), Standing::Busy),
            ])
        };
        assert_eq!(place(&full(idle(8)), far(3), NOW), Place::Of(Conn(2)), "idle for longest");
        assert_eq!(place(&full(silent), far(3), NOW), Place::Of(Conn(most as u64 + 1)), "or the oldest of a crowd");
        assert_eq!(place(&full(Standing::Busy), far(3), NOW), Place::Of(Conn(1)));
        assert_eq!(place(&full(idle(8)), far(1), NOW), Place::None, "its own have begun, and one peer has no more");
        assert_eq!(place(&full(silent), far(1), NOW), Place::Of(Conn(2)));
        let stuck = Standing::Stuck { since_ns: 10 };
        assert_eq!(place(&full(stuck), far(1), NOW), Place::Of(Conn(2)), "who is waited for in vain");
        assert_eq!(place(&full(stuck), far(3), NOW), Place::Of(Conn(2)), "also before who is idle");
        let mut busy = full(Standing::Busy);
        busy[0].standing = Standing::Busy;
        assert_eq!(place(&busy, far(3), NOW), Place::Of(Conn(most as u64 + 1)), "of the next one");
        let two = seats(&[(2, far(1), idle(1)), (most, far(2), Standing::Busy), (rest - 2, far(4), Standing::Busy)]);
        assert_eq!(place(&two, far(3), NOW), Place::Of(Conn(1)));
        assert_eq!(place(&two[1..], far(3), NOW), Place::Free);
        let mut one = two;
        one[1].peer = far(5);
        assert_eq!(place(&one, far(3), NOW), Place::None, "equals are left alone");
    }

    #[test]
    fn of_its_own_peer_who_is_idle_gives_way_in_time_and_first_who_asked_for_least() {
        let idle = |since_ns, asked| Standing::Idle { since_ns, asked };
        let rest = CONNECTIONS_PEER_MAX - 4;
        let of =
            |a, b, c, d| seats(&[(1, HERE, a), (1, HERE, b), (1, HERE, c), (1, HERE, d), (rest, HERE, Standing::Busy)]);
        let (guest, hogs) = (idle(1, 5000), (idle(6, 2), idle(5, 3), idle(4, 4)));
        let taken = of(guest, hogs.0, hogs.1, hogs.2);
        for (now_ns, gives_way) in [
            (0, None),
            (IDLE_NS + 1, None),
            (IDLE_NS + 4, None),
            (IDLE_NS + 5, Some(3)),
            (IDLE_NS + 6, Some(3)),
            (u64::MAX, Some(3)),
        ] {
            let expected = gives_way.map_or(Place::None, |conn| Place::Of(Conn(conn)));
            assert_eq!(place(&taken, HERE, now_ns), expected, "{now_ns}");
        }
        let older = of(guest, idle(4, 3), idle(5, 3), Standing::Busy);
        assert_eq!(place(&older, HERE, u64::MAX), Place::Of(Conn(2)), "of equals who has been so for longest");
        let stuck = of(guest, hogs.0, hogs.1, Standing::Stuck { since_ns: 9 });
        assert_eq!(place(&stuck, HERE, u64::MAX), Place::Of(Conn(4)));
    }

    /// However many newcomers there are, and however often others ask: one that works goes on, those that have worked stay
    /// while others did less, and newcomers get in.
    #[test]
    fn a_crowd_that_asks_for_little_drives_out_its_own() {
        let second = 1_000_000_000u64;
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = |count: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % count
        };
        let ends = [(1, second / 2), (1, 20 * second), (1000, second / 2), (1000, 20 * second)];
        let drawn: Vec<_> = (0..16)
            .map(|_| {
                let most = 1 << draw(11);
                (1 + draw(most).min(999), second / 2 + draw(39 * second / 2))
            })
            .collect();
        for (rate, every_ns) in ends.into_iter().chain(drawn) {
            let worked = |asked| Standing::Idle { since_ns: 0, asked };
            let hogs = CONNECTIONS_PEER_MAX - 4;
            let mut taken = seats(&[
                (1, HERE, Standing::Busy),
                (1, HERE, worked(5000)),
                (1, HERE, worked(3000)),
                (hogs, HERE, worked(1)),
            ]);
            let (mut entered, seconds) = (0, 25);
            for at in 0..rate * seconds {
                let now_ns = at * second / rate;
                // Hogs ask one after the other, each once in that time.
                for seat in taken.iter_mut().filter(|seat| (4..4 + hogs as u64).contains(&seat.conn.0)) {
                    let ahead_ns = every_ns / hogs as u64 * (seat.conn.0 - 4);
                    let times = (now_ns + ahead_ns) / every_ns;
                    let since_ns = (times * every_ns).saturating_sub(ahead_ns);
                    seat.standing = Standing::Idle { since_ns, asked: 1 + times };
                }
                match place(&taken, HERE, now_ns) {
                    Place::Free => {}
                    Place::Of(conn) => taken.retain(|seat| seat.conn != conn),
                    Place::None => continue,
                }
                entered += 1;
                let standing = Standing::Idle { since_ns: now_ns, asked: 1 };
                taken.push(Seat { conn: Conn(1000 + at), peer: HERE, standing });
            }
            let stayed: Vec<_> = taken.iter().take(3).map(|seat| seat.conn.0).collect();
            assert_eq!((stayed, taken.len()), (vec![1, 2, 3], CONNECTIONS_PEER_MAX), "{rate} {every_ns}");
            assert!(entered >= seconds - 1, "{rate} {every_ns}: {entered}");
        }
    }

    /// However they come, by any number of addresses, a newcomer of a peer that has none gets in while most have no request.
    #[test]
    fn a_flood_of_any_number_of_peers_locks_nobody_out() {
        for peers in [1, 2, 7, 60, 110] {
            let mut taken: Vec<Seat> = Vec::new();
            for at in 0..2000u64 {
                let peer = far((at % peers) as u8);
                match place(&taken, peer, NOW) {
                    Place::Free => {}
                    Place::Of(conn) => taken.retain(|seat| seat.conn != conn),
                    Place::None => continue,
                }
                taken.push(Seat { conn: Conn(at), peer, standing: Standing::Idle { since_ns: at, asked: 1 } });
                assert!(taken.len() <= CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX);
            }
            assert!(place(&taken, far(200), NOW) != Place::None, "{peers}");
            assert_eq!(place(&taken, Peer::Unix, NOW), Place::Free, "{peers}");
            assert!(Census::take(taken.iter().map(|seat| seat.peer)).run_out().is_some(), "{peers}");
        }
    }

    /// By however many addresses strangers come, however far they go without asking for anything, and whatever they say:
    /// nobody who has asked for something is driven out as long as those leave room for a crowd, and a client gets in with each
    /// of its four connections, each of which takes its time, after a few attempts.
    #[test]
    fn strangers_of_any_number_of_addresses_drive_out_nobody_who_asked_and_keep_nobody_out() {
        const STEP_NS: u64 = 12_000_000;
        let mut most_attempts = 0;
        for addresses in [1, 3, 31, 110, 224, 300, 5000] {
            for said in [|since_ns| Standing::Silent { since_ns }, |_| Standing::Begun, |_| Standing::Ready] {
                for established in [0, 2, 30, 150, CONNECTIONS_PEER_MAX - 4] {
                    let what = format!("{addresses} {established} {:?}", said(0));
                    let asked = Standing::Idle { since_ns: 0, asked: 1 };
                    let mut taken = seats(&[(established, far(1), asked)]);
                    let (mut pace, mut now_ns, mut conn) = (Pace::default(), NOW, 1000);
                    let mut come = |taken: &mut Vec<Seat>, peer: Option<Peer>| {
                        conn += 1;
                        now_ns = pace.next_ns().max(now_ns);
                        let standing =
                            if peer.is_some() { Standing::Silent { since_ns: now_ns } } else { said(now_ns) };
                        let peer = peer.unwrap_or_else(|| network(conn % addresses));
                        match place(taken, peer, now_ns) {
                            Place::Free => {}
                            Place::Of(other) => {
                                assert!(other.0 > 1000, "{what}: {other:?} has asked");
                                taken.retain(|seat| seat.conn != other);
                            }
                            Place::None => panic!("{what}: {peer} is kept out"),
                        }
                        taken.push(Seat { conn: Conn(conn), peer, standing });
                        let full = Census::take(taken.iter().map(|seat| seat.peer)).is_full(peer);
                        let unasked = taken.iter().filter(|seat| seat.standing.unasked().is_some()).count();
                        pace.step(now_ns, if full { CONNECTIONS_PEER_MAX } else { unasked });
                        (Conn(conn), now_ns)
                    };
                    for _ in 0..500 {
                        come(&mut taken, None);
                    }
                    let (mut in_place, mut attempts) = (0, 0);
                    while in_place < 4 {
                        attempts += 1;
                        let (own, mut since_ns) = come(&mut taken, Some(far(1)));
                        for next in [Standing::Begun, Standing::Begun, Standing::Ready, asked] {
                            while come(&mut taken, None).1 < since_ns + STEP_NS {}
                            since_ns += STEP_NS;
                            taken.iter_mut().filter(|seat| seat.conn == own).for_each(|seat| seat.standing = next);
                        }
                        if taken.iter().any(|seat| seat.conn == own) {
                            in_place += 1;
                            // As whoever was there before.
                            taken.retain(|seat| seat.conn != own);
                            taken.insert(0, Seat { conn: Conn(900 + in_place), peer: far(1), standing: asked });
                        }
                        assert!(attempts < 100, "{what}: only {in_place} are in place");
                    }
                    most_attempts = most_attempts.max(attempts);
                    assert_eq!(taken.iter().filter(|seat| seat.conn.0 <= 1000).count(), established + 4, "{what}");
                }
            }
        }
        assert!(most_attempts <= 60, "{most_attempts}");
    }

    /// Beyond what leaves room for a crowd those give way of which one peer has most, for somebody to get in at all; where
    /// each peer has one, none of them does.
    #[test]
    fn a_server_full_of_clients_that_asked_keeps_a_crowd_of_places_for_newcomers() {
        let outside = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX;
        for (peers, stay) in [(1, CONNECTIONS_PEER_MAX), (2, outside - CROWD), (7, outside - CROWD), (outside, outside)]
        {
            let asked =
                |at| (1, far((at % peers) as u8), Standing::Idle { since_ns: 0, asked: 1u64 << ((at / peers) % 60) });
            let mut taken = seats(&(0..outside.min(peers * CONNECTIONS_PEER_MAX)).map(asked).collect::<Vec<_>>());
            let (count, mut refused) = (taken.len(), 0);
            for at in 0..1000u64 {
                let peer = network(at);
                match place(&taken, peer, NOW + at) {
                    Place::Free => {}
                    Place::Of(other) => taken.retain(|seat| seat.conn != other),
                    Place::None => refused += 1,
                }
                if refused == 0 {
                    taken.push(Seat { conn: Conn(1000 + at), peer, standing: Standing::Silent { since_ns: NOW + at } });
                }
            }
            let stayed = taken.iter().filter(|seat| seat.conn.0 < 1000).count();
            assert_eq!((stayed, refused > 0), (stay, stay == count && peers > 1), "{peers}");
        }
    }

    /// Lets so many come, in batches as they are accepted; how long they waited for that, and for how long the one of them
    /// was there that gave way soonest.
    fn flood(taken: &mut Vec<Seat>, peers: &[Peer], count: u64, said: fn(u64) -> Standing) -> (u64, u64) {
        let (mut pace, mut now_ns, mut soonest_ns) = (Pace::default(), NOW, u64::MAX);
        let mut came = HashMap::new();
        for batch in 0..count / 16 {
            let mut rest_ns = now_ns;
            for at in batch * 16..batch * 16 + 16 {
                let peer = peers[at as usize % peers.len()];
                if let Place::Of(conn) = place(taken, peer, now_ns + at) {
                    taken.retain(|seat| seat.conn != conn);
                    soonest_ns = soonest_ns.min(came.remove(&conn).map_or(u64::MAX, |came_ns| now_ns - came_ns));
                }
                came.insert(Conn(1000 + at), now_ns);
                taken.push(Seat { conn: Conn(1000 + at), peer, standing: said(now_ns) });
                let census = Census::take(taken.iter().map(|seat| seat.peer));
                let unasked = taken.iter().filter(|seat| seat.standing.unasked().is_some()).count();
                pace.step(now_ns, if census.is_full(peer) { CONNECTIONS_PEER_MAX } else { unasked });
                if !census.has_room(peer) {
                    rest_ns = pace.next_ns();
                }
            }
            now_ns = rest_ns;
        }
        (now_ns - NOW, soonest_ns)
    }

    /// However few of a peer may give way, by however many addresses they come and whatever they say: who comes from elsewhere
    /// does not wait for long until it is accepted; and of many that say nothing each has time to begin.
    #[test]
    fn newcomers_are_accepted_by_thousands_a_second_however_few_may_give_way() {
        let (begun, silent) = (|_| Standing::Begun, |since_ns| Standing::Silent { since_ns });
        let outside = CONNECTIONS_MAX - CONNECTIONS_KEPT_UNIX;
        let each_ns = |places: usize| GRACE_NS / places as u64;
        for peers in [1, 2, 3, 16, 112] {
            let most = CONNECTIONS_PEER_MAX.min(outside / peers);
            let addresses: Vec<Peer> = (0..peers).map(|at| far(at as u8)).collect();
            for few in [1, 2, 15, 16, 17, 40, 96, 190, 192].into_iter().filter(|few| *few <= most) {
                for (first, said) in
                    [(silent as fn(u64) -> Standing, silent as fn(u64) -> Standing), (begun, silent), (begun, begun)]
                {
                    let each =
                        addresses.iter().flat_map(|peer| [(most - few, *peer, Standing::Busy), (few, *peer, first(0))]);
                    let mut taken = seats(&each.collect::<Vec<_>>());
                    let count = 1600;
                    let (waited_ns, soonest_ns) = flood(&mut taken, &addresses, count, said);
                    let what = format!("{peers} peers, {few} of each: {waited_ns} {soonest_ns}");
                    // One peer that has all that it may have, or several.
                    let wait_ns = if peers == 1 { each_ns(CONNECTIONS_PEER_MAX) } else { each_ns(CROWD) };
                    assert!(waited_ns <= count * wait_ns, "{what}");
                    // But for those that are accepted at once.
                    if first(0) == silent(0) && (peers == 1 || few * peers > CROWD) {
                        let places = if peers == 1 { CONNECTIONS_PEER_MAX } else { few * peers };
                        assert!(
                            soonest_ns >= (few * peers).saturating_sub(16) as u64 * each_ns(places) * 9 / 10,
                            "{what}"
                        );
                    }
                }
            }
        }
        // Also where they come all at once.
        let (waited_ns, soonest_ns) = flood(&mut Vec::new(), &[HERE], 1600, silent);
        let each = each_ns(CONNECTIONS_PEER_MAX);
        assert!(
            waited_ns <= 1600 * each + GRACE_NS && soonest_ns >= (CONNECTIONS_PEER_MAX as u64 - 16) * each,
            "{soonest_ns}"
        );
        assert!(1_000_000_000 / each >= 3000 && 1_000_000_000 / each_ns(CROWD) >= 600);
    }

    /// Whoever has begun its handshake is not driven out by any number that say nothing, nor the other way round.
    #[test]
    fn those_who_say_nothing_and_those_who_say_something_leave_each_other_half() {
        let begun = |_| Standing::Begun;
        let silent = |since_ns| Standing::Silent { since_ns };
        for newcomer in [begun as fn(u64) -> Standing, silent] {
            let others = if newcomer(0) == begun(0) { silent } else { begun };
            let mut taken = seats(&[(1, Peer::Unix, others(7)), (CONNECTIONS_PEER_MAX - 1, Peer::Unix, newcomer(3))]);
            for at in 0..1000u64 {
                let Place::Of(conn) = place(&taken, Peer::Unix, NOW) else { panic!("{at}: one of them gives way") };
                assert_ne!(conn, Conn(1), "{at}");
                taken.retain(|seat| seat.conn != conn);
                taken.push(Seat { conn: Conn(1000 + at), peer: Peer::Unix, standing: newcomer(10 + at) });
            }
            // As many of each: then the oldest of one kind gives way, and nobody has more than half for long.
            let half = CONNECTIONS_PEER_MAX / 2;
            let even = seats(&[(half, Peer::Unix, begun(1)), (half, Peer::Unix, silent(9))]);
            assert_eq!(place(&even, Peer::Unix, NOW), Place::Of(Conn(half as u64 + 1)));
            assert_eq!(place(&even[1..], Peer::Unix, NOW), Place::Free);
        }
    }
}
