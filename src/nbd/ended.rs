//! Who is connected by NBD, and the log line about whoever was cut off: for garbage, for taking too long, for being
//! one too many. Ends that a client chose itself are not worth a line.

use std::collections::HashMap;

use crate::core::ids::Conn;
use crate::core::sparing::Sparing;

/// Pause between two lines, nanoseconds: anybody who reaches the port can cause them.
const PAUSE_NS: u64 = 1_000_000_000;

/// Connections by who is at their other end.
#[derive(Debug)]
pub struct Ended {
    peers: HashMap<Conn, String>,
    sparing: Sparing,
}

impl Default for Ended {
    fn default() -> Ended {
        Ended { peers: HashMap::new(), sparing: Sparing::new(PAUSE_NS) }
    }
}

impl Ended {
    /// A connection was accepted.
    pub fn add(&mut self, conn: Conn, peer: String) {
        self.peers.insert(conn, peer);
    }

    /// Who is at the other end of a connection.
    #[must_use]
    pub fn peer(&self, conn: Conn) -> &str {
        self.peers.get(&conn).map_or("", String::as_str)
    }

    /// The log says already why a connection is about to end.
    pub fn told(&mut self, conn: Conn) {
        self.peers.remove(&conn);
    }

    /// A connection has ended; what the log should say of it, if anything, at `now_ns` (monotonic).
    pub fn closed(&mut self, now_ns: u64, conn: Conn, reason: &str) -> Option<String> {
        let peer = self.peers.remove(&conn)?;
        if ordinary(reason) {
            return None;
        }
        let more = Sparing::and_more(self.sparing.due(now_ns)?);
        Some(format!("the NBD connection from {peer} was ended: {reason}{more}"))
    }
}

/// Whether the client went by itself, the line broke, or this role ends its connections and says so elsewhere.
fn ordinary(reason: &str) -> bool {
    let ours = ["closed by the peer", "receive failed: ", "send failed: ", "the client is done", "the lease ended"];
    reason.is_empty() || reason.ends_with(" stops") || ours.iter().any(|known| reason.starts_with(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_cut_off_is_named_once_and_who_leaves_is_not() {
        let mut ended = Ended::default();
        for conn in 1..=4 {
            ended.add(Conn(conn), format!("192.0.2.{conn}:9"));
        }
        assert_eq!(ended.closed(0, Conn(1), "closed by the peer"), None);
        let line = ended.closed(0, Conn(2), "not an option").expect("worth a line");
        assert!(line.contains("192.0.2.2:9") && line.contains("not an option"), "{line}");
        assert_eq!(ended.closed(1, Conn(3), "not an option"), None);
        assert_eq!(ended.closed(2, Conn(3), "not an option"), None, "once each");
        let line = ended.closed(PAUSE_NS, Conn(4), "too many NBD connections").expect("later");
        assert!(line.contains("1 more"), "{line}");
        assert_eq!(ended.closed(PAUSE_NS, Conn(9), "never accepted"), None);
    }
}
