//! Owns the simulated network: connections between hosts as pairs of ordered pipes with delay, bandwidth,
//! stalls, and cuts at any byte.
//!
//! What is modelled:
//! - A connection keeps its order; connections overtake one another. Byte streams arrive in pieces of any size.
//! - Each direction between two hosts has one bandwidth that all its connections share, a delay and a jitter.
//! - A cut loses what is under way from any byte on; each side learns of it at its own time, or never (half-open).
//! - A direction can stall for a time and then deliver everything (one-way partitions, slow routes).
//! - A bit may flip in what a stream carries.
//! - A killed process closes its connections; a host that lost power says nothing, and resets what reaches it
//!   once it is back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use farshore::core::ids::Conn;

use crate::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Primary,
    Aux,
    Dr,
}

/// What travels: bytes of a stream that may be split anywhere, or whole messages `M`.
#[derive(Clone, Debug)]
pub enum Packet<M> {
    Bytes(Bytes),
    Message(M),
}

/// What a host is told about one of its connections.
#[derive(Clone, Debug)]
pub enum Delivery<M> {
    /// The connection stands: accepted on the side that listens, connected on the other.
    Up,
    Packet(Packet<M>),
    Closed {
        reason: &'static str,
        /// Found out by this side itself: no stall of the network delays it.
        alone: bool,
    },
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub delay_ns: u64,
    pub jitter_ns: u64,
    pub bytes_per_second: u64,
    busy_until_ns: u64,
    stalled_until_ns: u64,
}

pub struct Network<M> {
    rng: Rng,
    routes: BTreeMap<(Node, Node), Route>,
    links: BTreeMap<u64, Link<M>>,
    ends: BTreeMap<(Node, Conn), (u64, usize)>,
    next_link: u64,
    next_conn: u64,
    wakes: Vec<(u64, u64, usize)>,
    /// Streams arrive in long pieces.
    pub whole_pieces: bool,
    /// A bit flips in the next bytes between these two; and the connections on which one has.
    garbles: Option<(Node, Node, Rng)>,
    garbled: BTreeSet<u64>,
}

struct Link<M> {
    ends: [End; 2],
    /// `pipes[i]` carries to `ends[i]`.
    pipes: [Pipe<M>; 2],
}

struct End {
    node: Node,
    conn: Conn,
    /// The process there knows of the connection and has not been told that it is over.
    open: bool,
    /// `Up` has been delivered here.
    told: bool,
    /// The host died with it: what arrives is answered by a reset once the host is back.
    forgotten: bool,
}

struct Pipe<M> {
    queue: VecDeque<(u64, Delivery<M>)>,
    last_arrival_ns: u64,
    /// Nothing more gets through (cut, or the sender is gone).
    cut: bool,
}

const TIMED_OUT: &str = "timed out";
const MS: u64 = 1_000_000;
const PIECE_BYTES_MAX: u64 = 64 << 10;

impl<M> Network<M> {
    pub fn new(mut rng: Rng) -> Network<M> {
        Network {
            rng: rng.fork(),
            routes: BTreeMap::new(),
            links: BTreeMap::new(),
            ends: BTreeMap::new(),
            next_link: 1,
            next_conn: 1 << 40,
            wakes: Vec::new(),
            whole_pieces: false,
            garbles: None,
            garbled: BTreeSet::new(),
        }
    }

    /// A bit flips in the next bytes of a stream between the two, in either direction.
    pub fn garble(&mut self, a: Node, b: Node, rng: Rng) {
        self.garbles = Some((a, b, rng));
    }

    /// Whether a bit has flipped on this connection.
    pub fn was_garbled(&self, node: Node, conn: Conn) -> bool {
        self.ends.get(&(node, conn)).is_some_and(|(id, _)| self.garbled.contains(id))
    }

    /// What would be drawn next.
    pub fn draw(&mut self) -> u64 {
        self.rng.u64()
    }

    /// Sets what both directions between two hosts are like.
    pub fn route(&mut self, a: Node, b: Node, delay_ns: u64, jitter_ns: u64, bytes_per_second: u64) {
        let route = Route { delay_ns, jitter_ns, bytes_per_second, busy_until_ns: 0, stalled_until_ns: 0 };
        self.routes.insert((a, b), route);
        self.routes.insert((b, a), route);
    }

    /// Deliveries to schedule: (time, link, side); each is given back by [`Network::deliver`].
    pub fn take_wakes(&mut self) -> std::vec::Drain<'_, (u64, u64, usize)> {
        self.wakes.drain(..)
    }

    /// Nothing crosses from `from` to `to` until then; what is sent meanwhile arrives later.
    pub fn stall(&mut self, from: Node, to: Node, until_ns: u64) {
        let route = self.routes.get_mut(&(from, to)).expect("routes are set when the world is made");
        route.stalled_until_ns = route.stalled_until_ns.max(until_ns);
    }

    /// Ends every stall: the faults are over.
    pub fn heal(&mut self) {
        for route in self.routes.values_mut() {
            route.stalled_until_ns = 0;
        }
    }

    /// `from` connects to `to`, where somebody listens or not.
    pub fn connect(&mut self, now_ns: u64, from: (Node, Conn), to: Node, listening: bool) {
        let id = self.next_link;
        self.next_link += 1;
        let conn = Conn(self.next_conn);
        self.next_conn += 1;
        let end = |node, conn, open| End { node, conn, open, told: false, forgotten: false };
        let pipe = || Pipe { queue: VecDeque::new(), last_arrival_ns: 0, cut: false };
        let link = Link { ends: [end(from.0, from.1, true), end(to, conn, true)], pipes: [pipe(), pipe()] };
        self.links.insert(id, link);
        let old = self.ends.insert(from, (id, 0));
        assert!(old.is_none(), "the connection number {from:?} is in use");
        self.ends.insert((to, conn), (id, 1));
        let there = self.routes[&(from.0, to)];
        let back = self.routes[&(to, from.0)];
        let arrives = now_ns.max(there.stalled_until_ns) + self.latency(&there);
        let returns = arrives.max(back.stalled_until_ns) + self.latency(&back);
        let patience_ns = self.rng.range(2000, 5000) * MS;
        if returns > now_ns + patience_ns {
            self.refuse(id, now_ns + patience_ns, TIMED_OUT);
        } else if listening {
            self.enqueue(id, 1, arrives, Delivery::Up);
            self.enqueue(id, 0, returns, Delivery::Up);
        } else {
            self.refuse(id, returns, "connection refused");
        }
    }

    fn refuse(&mut self, id: u64, at_ns: u64, reason: &'static str) {
        self.drop_end(id, 1);
        let alone = reason == TIMED_OUT;
        self.enqueue(id, 0, at_ns, Delivery::Closed { reason, alone });
    }

    /// When the last of what was sent on a connection has left the host; never, where nobody takes it any more.
    pub fn leaves_at(&self, now_ns: u64, node: Node, conn: Conn) -> Option<u64> {
        let &(id, side) = self.ends.get(&(node, conn))?;
        let (link, other) = (&self.links[&id], 1 - side);
        let route = self.routes[&(node, link.ends[other].node)];
        (!link.pipes[other].cut).then(|| now_ns.max(route.busy_until_ns).max(route.stalled_until_ns))
    }

    /// Sends on a connection; nothing happens when it is gone.
    pub fn send(&mut self, now_ns: u64, node: Node, conn: Conn, packet: Packet<M>) {
        let Some(&(id, side)) = self.ends.get(&(node, conn)) else { return };
        let link = &self.links[&id];
        let other = 1 - side;
        let key = (node, link.ends[other].node);
        if link.ends[other].forgotten && !link.pipes[side].cut {
            let back = self.routes[&(key.1, key.0)];
            let at = now_ns.max(back.stalled_until_ns) + 2 * self.latency(&back);
            self.enqueue(id, side, at, Delivery::Closed { reason: "connection reset", alone: false });
            self.links.get_mut(&id).expect("just seen").pipes[side].cut = true;
            return;
        }
        if link.pipes[other].cut {
            return;
        }
        match packet {
            Packet::Message(_) => self.transmit(now_ns, id, other, key, 512, packet),
            Packet::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let piece = if self.whole_pieces { PIECE_BYTES_MAX } else { self.rng.scale(1, PIECE_BYTES_MAX) };
                    let length = piece.min(bytes.len() as u64);
                    let piece = bytes.split_to(length as usize);
                    self.transmit(now_ns, id, other, key, length, Packet::Bytes(piece));
                }
            }
        }
    }

    fn transmit(&mut self, now_ns: u64, id: u64, to: usize, key: (Node, Node), length: u64, packet: Packet<M>) {
        let packet = self.spoil(id, key, packet);
        let route = self.routes.get_mut(&key).expect("routes are set when the world is made");
        let start = route.busy_until_ns.max(now_ns);
        route.busy_until_ns = start + length * 1_000_000_000 / route.bytes_per_second;
        let route = *route;
        let at = route.busy_until_ns + self.latency(&route);
        self.enqueue(id, to, at, Delivery::Packet(packet));
    }

    fn spoil(&mut self, id: u64, key: (Node, Node), packet: Packet<M>) -> Packet<M> {
        let between = |(a, b, _): &(Node, Node, Rng)| key == (*a, *b) || key == (*b, *a);
        match packet {
            Packet::Bytes(bytes) if !bytes.is_empty() && self.garbles.as_ref().is_some_and(between) => {
                let Some((_, _, mut rng)) = self.garbles.take() else { return Packet::Bytes(bytes) };
                let mut spoiled = bytes.to_vec();
                spoiled[rng.below(bytes.len() as u64) as usize] ^= 1 << rng.below(8);
                self.garbled.insert(id);
                Packet::Bytes(spoiled.into())
            }
            packet => packet,
        }
    }

    /// One side closes: it hears `Closed` itself at once from its shell; the other side after what was sent.
    pub fn close(&mut self, now_ns: u64, node: Node, conn: Conn) -> bool {
        let Some(&(id, side)) = self.ends.get(&(node, conn)) else { return false };
        self.drop_end(id, side);
        let other = 1 - side;
        if !self.links[&id].pipes[other].cut {
            let route = self.routes[&(node, self.links[&id].ends[other].node)];
            let at = now_ns + self.latency(&route);
            self.enqueue(id, other, at, Delivery::Closed { reason: "closed by the peer", alone: false });
        }
        self.tidy(id);
        true
    }

    /// Cuts every connection between two hosts at any byte; each side is told later or (silent) not at all.
    pub fn cut(&mut self, now_ns: u64, a: Node, b: Node) {
        let between = |l: &Link<M>| {
            let nodes = (l.ends[0].node, l.ends[1].node);
            nodes == (a, b) || nodes == (b, a)
        };
        let ids: Vec<u64> = self.links.iter().filter(|(_, l)| between(l)).map(|(&id, _)| id).collect();
        for id in ids {
            if self.rng.chance(80) {
                self.cut_link(now_ns, id);
            }
        }
    }

    fn cut_link(&mut self, now_ns: u64, id: u64) {
        for side in 0..2 {
            self.truncate(id, side);
            if self.rng.chance(75) {
                let at = now_ns + self.rng.scale(1, 2000) * MS;
                self.enqueue(id, side, at, Delivery::Closed { reason: "connection reset", alone: true });
            }
            self.links.get_mut(&id).expect("listed").pipes[side].cut = true;
        }
    }

    /// A process died. `polite`: its kernel closes the connections; otherwise the host is silent.
    pub fn node_down(&mut self, now_ns: u64, node: Node, polite: bool) {
        let mine: Vec<(u64, usize)> = self
            .links
            .iter()
            .flat_map(|(&id, l)| (0..2).filter(|&s| l.ends[s].node == node && l.ends[s].open).map(move |s| (id, s)))
            .collect();
        for (id, side) in mine {
            self.truncate(id, 1 - side);
            if polite {
                self.close(now_ns, node, self.links[&id].ends[side].conn);
            } else {
                self.drop_end(id, side);
                let link = self.links.get_mut(&id).expect("listed");
                link.ends[side].forgotten = true;
                self.tidy(id);
            }
        }
    }

    /// Whom a scheduled delivery is for.
    pub fn destination(&self, id: u64, side: usize) -> Option<Node> {
        self.links.get(&id).map(|l| l.ends[side].node)
    }

    /// Takes the delivery that is due; `None` when it is gone or has to wait (then it is scheduled again).
    pub fn deliver(&mut self, now_ns: u64, id: u64, side: usize) -> Option<(Node, Conn, Delivery<M>)> {
        let link = self.links.get_mut(&id)?;
        let (from, to) = (link.ends[1 - side].node, link.ends[side].node);
        let (arrival_ns, next) = link.pipes[side].queue.front()?;
        let stalled_until_ns = match next {
            Delivery::Closed { alone: true, .. } => 0,
            _ => self.routes[&(from, to)].stalled_until_ns,
        };
        let due_ns = (*arrival_ns).max(stalled_until_ns);
        if due_ns > now_ns {
            self.wakes.push((due_ns, id, side));
            return None;
        }
        let (_, delivery) = link.pipes[side].queue.pop_front()?;
        let (node, conn) = (link.ends[side].node, link.ends[side].conn);
        if !link.ends[side].open {
            return None;
        }
        let accepted_unseen = side == 1 && !link.ends[1].told;
        match delivery {
            Delivery::Up => link.ends[side].told = true,
            Delivery::Packet(_) => {}
            Delivery::Closed { .. } => {
                self.drop_end(id, side);
                self.tidy(id);
                if accepted_unseen {
                    return None;
                }
            }
        }
        Some((node, conn, delivery))
    }

    /// Loses what is under way on one pipe from any byte on.
    fn truncate(&mut self, id: u64, side: usize) {
        let link = self.links.get_mut(&id).expect("listed");
        let queue = &mut link.pipes[side].queue;
        if queue.is_empty() {
            return;
        }
        let keep = self.rng.below(queue.len() as u64 + 1) as usize;
        let torn = queue.drain(keep..).next();
        if let Some((at, Delivery::Packet(Packet::Bytes(bytes)))) = torn {
            let length = self.rng.below(bytes.len() as u64 + 1) as usize;
            queue.push_back((at, Delivery::Packet(Packet::Bytes(bytes.slice(..length)))));
        }
    }

    fn enqueue(&mut self, id: u64, side: usize, at_ns: u64, delivery: Delivery<M>) {
        let pipe = &mut self.links.get_mut(&id).expect("an open link").pipes[side];
        let at_ns = at_ns.max(pipe.last_arrival_ns + 1);
        pipe.last_arrival_ns = at_ns;
        pipe.queue.push_back((at_ns, delivery));
        self.wakes.push((at_ns, id, side));
    }

    fn drop_end(&mut self, id: u64, side: usize) {
        let link = self.links.get_mut(&id).expect("an open link");
        link.ends[side].open = false;
        link.pipes[side].queue.clear();
        link.pipes[side].cut = true;
        let key = (link.ends[side].node, link.ends[side].conn);
        if self.ends.get(&key) == Some(&(id, side)) {
            self.ends.remove(&key);
        }
    }

    fn tidy(&mut self, id: u64) {
        if self.links[&id].ends.iter().all(|e| !e.open) {
            self.links.remove(&id);
        }
    }

    fn latency(&mut self, route: &Route) -> u64 {
        route.delay_ns + self.rng.below(route.jitter_ns + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(seed: u64) -> Network<u32> {
        let mut network = Network::new(Rng::new(seed));
        network.route(Node::Primary, Node::Dr, 10 * MS, 5 * MS, 1 << 20);
        network
    }

    /// Runs all deliveries in order of time; what each node heard, by node.
    fn run(network: &mut Network<u32>) -> Vec<(Node, Conn, Delivery<u32>)> {
        let mut heap = std::collections::BinaryHeap::new();
        let mut heard = Vec::new();
        loop {
            heap.extend(network.take_wakes().map(std::cmp::Reverse));
            let Some(std::cmp::Reverse((at, id, side))) = heap.pop() else { return heard };
            heard.extend(network.deliver(at, id, side));
        }
    }

    fn bytes_at(heard: &[(Node, Conn, Delivery<u32>)], node: Node) -> Vec<u8> {
        let mut out = Vec::new();
        for (n, _, delivery) in heard {
            if let (true, Delivery::Packet(Packet::Bytes(bytes))) = (*n == node, delivery) {
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    #[test]
    fn stream_arrives_whole_and_in_order() {
        let mut network = network(1);
        network.connect(0, (Node::Primary, Conn(1)), Node::Dr, true);
        let data: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        for chunk in data.chunks(7000) {
            network.send(1, Node::Primary, Conn(1), Packet::Bytes(Bytes::copy_from_slice(chunk)));
        }
        network.close(2, Node::Primary, Conn(1));
        let heard = run(&mut network);
        assert_eq!(bytes_at(&heard, Node::Dr), data);
        assert!(matches!(heard.last(), Some((Node::Dr, _, Delivery::Closed { .. }))));
        assert!(network.links.is_empty() && network.ends.is_empty());
    }

    #[test]
    fn cut_delivers_a_prefix_that_ends_at_any_byte() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut network = network(seed);
            network.connect(0, (Node::Primary, Conn(1)), Node::Dr, true);
            let data: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
            network.send(1, Node::Primary, Conn(1), Packet::Bytes(data.clone().into()));
            network.cut(2, Node::Primary, Node::Dr);
            network.send(3, Node::Primary, Conn(1), Packet::Bytes(data.clone().into()));
            let got = bytes_at(&run(&mut network), Node::Dr);
            assert!(got.len() == 20_000 || data.starts_with(&got));
            lengths.insert(got.len());
        }
        assert!(lengths.len() > 20, "{lengths:?}");
    }

    #[test]
    fn silent_host_resets_only_what_is_sent_to_it_afterwards() {
        let mut network = network(3);
        network.connect(0, (Node::Primary, Conn(1)), Node::Dr, true);
        run(&mut network);
        network.node_down(100 * MS, Node::Dr, false);
        assert!(run(&mut network).is_empty(), "a host without power says nothing");
        network.send(200 * MS, Node::Primary, Conn(1), Packet::Message(1));
        let heard = run(&mut network);
        assert!(matches!(heard[..], [(Node::Primary, Conn(1), Delivery::Closed { .. })]), "{heard:?}");
    }

    #[test]
    fn stalled_direction_delivers_everything_later_and_the_other_is_unharmed() {
        let mut network = network(4);
        network.connect(0, (Node::Primary, Conn(1)), Node::Dr, true);
        let dr = run(&mut network).iter().find(|(n, ..)| *n == Node::Dr).map(|(_, c, _)| *c).expect("accepted");
        network.stall(Node::Primary, Node::Dr, 5000 * MS);
        network.send(100 * MS, Node::Primary, Conn(1), Packet::Message(1));
        network.send(100 * MS, Node::Dr, dr, Packet::Message(2));
        let heard = run(&mut network);
        assert!(matches!(heard[0], (Node::Primary, _, Delivery::Packet(Packet::Message(2)))));
        assert!(matches!(heard[1], (Node::Dr, _, Delivery::Packet(Packet::Message(1)))));
    }
}
