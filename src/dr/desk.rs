//! Tickets: which operation on which file an answer belongs to.

use std::collections::HashMap;

use crate::core::ids::Ticket;
use crate::core::machine::{DiskKind, DiskOp};
use crate::dr::api::{Effect, File};

/// Gives out tickets and remembers what is under way. Never iterated, so that a run is reproducible.
#[derive(Clone, Debug, Default)]
pub struct Desk {
    last: u64,
    disk: HashMap<Ticket, File>,
}

impl Desk {
    /// A ticket for something that is not a disk operation.
    pub fn ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    /// The ticket the next operation will get.
    #[must_use]
    pub fn next(&self) -> Ticket {
        Ticket(self.last + 1)
    }

    /// Emits a disk operation.
    pub fn disk(&mut self, fx: &mut Vec<Effect>, file: File, kind: DiskKind) -> Ticket {
        let ticket = self.ticket();
        self.disk.insert(ticket, file);
        fx.push(Effect::Disk(DiskOp { ticket, file, kind }));
        ticket
    }

    /// An operation ended: the file it was for.
    pub fn ended(&mut self, ticket: Ticket) -> Option<File> {
        self.disk.remove(&ticket)
    }

    /// No disk operation is under way.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.disk.is_empty()
    }
}
