//! The connections of one writer: an order connection and its streams.
//!
//! Owns who is connected and as what. The decision about a hello is a pure function ([`judge`]); that what
//! it adopts is durable before the welcome is the machine's.
//!
//! | hello | this site | answer |
//! |---|---|---|
//! | other group or name | has one | refused: wrong group |
//! | other volumes | | refused: volumes |
//! | a volume smaller than here | has a recovery point | refused: volumes |
//! | any | promoted | refused: fenced |
//! | any | being promoted | refused: not now |
//! | lower epoch | | refused: fenced (I7) |
//! | same epoch, other owner | knows its writer | refused: second primary |
//! | history ends before the journal here | | refused: protocol (I8) |
//! | stream without its order connection | | refused: not now |
//! | higher epoch, or first writer | | adopted, durably, then welcomed |
//! | otherwise | | welcomed |

use std::collections::BTreeMap;

use crate::core::ids::{Conn, Epoch, Owner, Seq};
use crate::core::planted::{Bug, planted};
use crate::dr::api::Options;
use crate::format::superblock::{PROMOTED, PROMOTING, Superblock};
use crate::format::wire::{Hello, Purpose, Refuse, RefuseCode};

/// Who writes: one start of one primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    pub owner: Owner,
    pub incarnation: u64,
    pub epoch: Epoch,
}

impl Writer {
    #[must_use]
    pub fn of(hello: &Hello) -> Writer {
        Writer { owner: hello.owner, incarnation: hello.incarnation, epoch: hello.epoch }
    }
}

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Has not said hello yet.
    Stranger,
    /// Its hello is acceptable; what it adopts is not durable yet.
    Pending(Writer),
    Order,
    Stream,
}

#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub part: Part,
    pub heard_ns: u64,
    pub since_ns: u64,
}

/// Every connection.
#[derive(Clone, Debug, Default)]
pub struct Links {
    pub peers: BTreeMap<Conn, Peer>,
    pub order: Option<Conn>,
    pub writer: Option<Writer>,
    /// Why the primary wants nothing of this site, and since when (wall clock, nanoseconds); until it sends orders.
    pub turned_down: Option<(String, u64)>,
}

impl Links {
    #[must_use]
    pub fn part(&self, conn: Conn) -> Option<Part> {
        self.peers.get(&conn).map(|peer| peer.part)
    }

    #[must_use]
    pub fn streams(&self) -> Vec<Conn> {
        self.peers.iter().filter(|(_, peer)| peer.part == Part::Stream).map(|(&conn, _)| conn).collect()
    }

    /// Who has greeted, and is not welcome yet.
    #[must_use]
    pub fn pending(&self) -> Vec<Conn> {
        let pending = self.peers.iter().filter(|(_, peer)| matches!(peer.part, Part::Pending(_)));
        pending.map(|(&conn, _)| conn).collect()
    }

    /// Forgets a connection.
    pub fn remove(&mut self, conn: Conn) -> Option<Peer> {
        if self.order == Some(conn) {
            self.order = None;
            self.writer = None;
        }
        self.peers.remove(&conn)
    }
}

/// What `judge` has to know of this site.
pub struct Standing<'a> {
    pub superblock: &'a Superblock,
    pub options: &'a Options,
    /// Size of each volume that the order here has come to, bytes; none while there is no recovery point, which would be
    /// lost with what does not fit.
    pub sizes: Option<&'a [u64]>,
    /// Highest seq of the journal here.
    pub tail: Seq,
    /// The writer whose order connection is up.
    pub writer: Option<Writer>,
    /// First superblock and journal repairs are durable.
    pub ready: bool,
}

/// Whether a hello is acceptable; the table is in the module's doc.
pub fn judge(hello: &Hello, here: &Standing<'_>) -> Result<(), Refuse> {
    let it = here.superblock;
    let refuse = |code, text: String| Err(Refuse { code, epoch: it.epoch, text });
    if hello.group_name != here.options.group_name {
        let text = format!("this site belongs to group {:?}, not {:?}", here.options.group_name, hello.group_name);
        return refuse(RefuseCode::WrongGroup, text);
    }
    if it.group.0 != 0 && hello.group != it.group {
        let text = format!(
            "this site holds group {:?} {:016x}, not {:016x}: another group of the same name; \
             give it a directory of its own",
            it.group_name, it.group.0, hello.group.0
        );
        return refuse(RefuseCode::WrongGroup, text);
    }
    let names = |volumes: &[(String, u64)]| volumes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if names(&hello.volumes) != names(&here.options.volumes) {
        let text = format!(
            "volumes differ: here {}, there {}",
            volumes_text(&here.options.volumes),
            volumes_text(&hello.volumes)
        );
        return refuse(RefuseCode::Volumes, text);
    }
    let sizes = here.sizes.unwrap_or_default();
    if let Some(((name, there), here)) = hello.volumes.iter().zip(sizes).find(|((_, there), here)| there < here) {
        let text = format!(
            "volume {name} has {here} bytes here and {there} at the primary, which was put back to an older state: resize it \
             there to {here} bytes at least"
        );
        return refuse(RefuseCode::Volumes, text);
    }
    if planted(Bug::DrAcceptsStaleEpoch) {
        return Ok(());
    }
    if it.has(PROMOTED) {
        let text = format!("this site has been promoted: epoch {} is in force", it.epoch);
        return refuse(RefuseCode::Fenced, text);
    }
    if it.has(PROMOTING) {
        // Not final yet: the fence itself tells the writer when it is.
        let text = format!("this site is being promoted to epoch {}", it.target_epoch);
        return refuse(RefuseCode::NotNow, text);
    }
    if hello.epoch < it.epoch {
        let text = format!("fenced: epoch {} is in force here, the sender has {}", it.epoch, hello.epoch);
        return refuse(RefuseCode::Fenced, text);
    }
    if hello.epoch == it.epoch && it.peer.0 != 0 && hello.owner != it.peer {
        let text = format!(
            "second primary: epoch {} belongs to writer {:016x}, the sender is {:016x}",
            it.epoch, it.peer.0, hello.owner.0
        );
        return refuse(RefuseCode::SecondPrimary, text);
    }
    if !here.ready {
        return refuse(RefuseCode::NotNow, "this site is starting; try again".into());
    }
    match hello.purpose {
        Purpose::Stream if here.writer != Some(Writer::of(hello)) => {
            refuse(RefuseCode::NotNow, "a stream comes after the order connection of the same writer".into())
        }
        Purpose::Order if hello.tail < here.tail => {
            let text = format!(
                "the primary's history ends at seq {}, the journal here goes on to {}: the primary was put back to \
                 an older state, or another one has written",
                hello.tail, here.tail
            );
            refuse(RefuseCode::Protocol, text)
        }
        _ => Ok(()),
    }
}

fn volumes_text(volumes: &[(String, u64)]) -> String {
    let list: Vec<String> = volumes.iter().map(|(name, size)| format!("{name} ({size} bytes)")).collect();
    list.join(", ")
}
