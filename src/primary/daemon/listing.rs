//! Asks the backing stores what has storage, files and servers alike, and says how far that is.

use super::{HOLES_TICKET, LISTING_TICKET, Shell};
use crate::cluster::size::human_size;
use crate::cluster::status::ListingStatus;
use crate::core::allocation::Stretch;
use crate::core::ids::{Extent, Seq};
use crate::core::machine::IoFail;
use crate::core::sparing::Sparing;
use crate::io::Range;
use crate::limits::LISTING_STRETCHES_MAX;
use crate::primary::listing::Listing;
use crate::primary::machine::{File, Input};

/// Pause between two lines that say how far it is, nanoseconds.
const LINES_PAUSE_NS: u64 = 30_000_000_000;

/// Stretches that are told together of a range of a batch.
const HOLES_STRETCHES_MAX: usize = 4096;

/// A look under way.
pub struct Looking {
    listing: Listing,
    lines: Sparing,
}

impl Looking {
    pub fn status(&self) -> ListingStatus {
        let (listed_bytes, total_bytes) = self.listing.progress();
        ListingStatus { listed_bytes, total_bytes }
    }
}

impl Shell {
    /// Begins to look what the volumes have storage for.
    pub(super) fn list(&mut self) {
        if self.looking.is_none() {
            let listing = Listing::new(self.machine.volumes().iter().map(|(_, size)| *size).collect());
            self.looking = Some(Looking { listing, lines: Sparing::new(LINES_PAUSE_NS) });
            self.look();
        }
    }

    /// Asks for the next piece.
    fn look(&mut self) {
        let Some(next) = self.looking.as_ref().and_then(|looking| looking.listing.next()) else { return };
        let file = self.opened.file(File::Volume(next.volume));
        let length = next.length.min(self.opened.backings.extents_bytes_max(file));
        let range = Range { offset: next.offset, length, most: LISTING_STRETCHES_MAX };
        self.opened.backings.extents(&mut self.reactor, file, LISTING_TICKET, range);
    }

    /// Looks which parts of a range of a batch have no storage. One look after the other: the answers come in their order.
    pub(super) fn look_for_holes(&mut self, batch: Seq, extent: Extent) {
        let file = self.opened.file(File::Volume(extent.volume));
        let length = extent.length.min(self.opened.backings.extents_bytes_max(file));
        self.holes_asked.push_back((batch, extent));
        let range = Range { offset: extent.offset, length, most: HOLES_STRETCHES_MAX };
        self.opened.backings.extents(&mut self.reactor, file, HOLES_TICKET, range);
    }

    /// What cannot be told is read, and says then what is wrong with it.
    pub(super) fn holes_found(&mut self, result: Result<Vec<Stretch>, IoFail>) -> anyhow::Result<()> {
        let Some((batch, extent)) = self.holes_asked.pop_front() else { return Ok(()) };
        let stretches = result.unwrap_or_else(|_| vec![Stretch { length: extent.length, hole: false }]);
        self.step(Input::Stretches { batch, extent, stretches })
    }

    /// Takes a piece.
    pub(super) fn listed(&mut self, result: Result<Vec<Stretch>, IoFail>) -> anyhow::Result<()> {
        let Some(looking) = &mut self.looking else { return Ok(()) };
        looking.listing.found(&result?);
        let (listed, total) = looking.listing.progress();
        let over = looking.listing.next().is_none();
        if over || looking.lines.due(self.reactor.now().mono_ns).is_some() {
            let (listed, total) = (human_size(listed), human_size(total));
            tracing::info!("looking which parts of the volumes have storage: {listed} of {total}");
        }
        if !over {
            self.look();
            return Ok(());
        }
        let ranges = self.looking.take().map(|looking| looking.listing.finish()).unwrap_or_default();
        self.step(Input::Allocated { ranges })
    }
}
