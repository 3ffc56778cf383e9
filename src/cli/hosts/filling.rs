//! Whether DR would find its disk full as soon as it starts: what waits to be applied goes into holes of its volumes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::Host;
use crate::cluster::config::{Backing, DrConfig};
use crate::cluster::control::EXIT_FAILED;
use crate::cluster::size::human_size;
use crate::core::ids::Volume;
use crate::dr;
use crate::io::open::{free_bytes, to_read};

impl Host<'_, '_, '_> {
    /// Notes volumes whose file system has no room for what a start applies by itself. Nothing is read of a DR whose volumes
    /// could be filled as they are.
    pub(super) fn filling(&mut self, dr: &DrConfig) {
        let files = || dr.backing.iter().zip(0u16..).filter_map(|(backing, at)| Some((at, Backing::path(backing)?)));
        let tight = |(_, path): (u16, &Path)| {
            std::fs::metadata(path).is_ok_and(|found| found.is_file() && free_bytes(path) < unallocated(&found))
        };
        if !files().any(tight) {
            return;
        }
        let Ok(ranges) = dr::daemon::to_apply(self.config) else { return };
        let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
        for (at, path) in files() {
            let (Some(ranges), Ok(found)) = (ranges.volume(Volume(at)), std::fs::metadata(path)) else { continue };
            let bytes = match to_read(path) {
                Ok(file) if found.is_file() => ranges.iter().map(|(offset, length)| holes(&file, offset, length)).sum(),
                _ => 0,
            };
            *wanted.entry(found.dev()).or_default() += bytes;
            if wanted[&found.dev()] > free_bytes(path) {
                let text = format!(
                    "{} of data wait to be applied to {}, whose file system has {} free: DR would end as soon as it starts. Make \
                     room there, and start it then",
                    human_size(wanted[&found.dev()]),
                    path.display(),
                    human_size(free_bytes(path))
                );
                let name = self.config.volumes[usize::from(at)].name.clone();
                self.findings.fail(EXIT_FAILED, &["dr", "backing", &name], text);
            }
        }
    }
}

fn unallocated(found: &std::fs::Metadata) -> u64 {
    found.len().saturating_sub(found.blocks() * 512)
}

/// Bytes of a range that have no storage; none where that cannot be told.
fn holes(file: &File, offset: u64, length: u64) -> u64 {
    let (mut at, end, mut bytes) = (offset, offset + length, 0);
    let seek = |at: u64, whence| lseek(file, at.cast_signed(), whence).map(i64::cast_unsigned);
    while at < end {
        let data = match seek(at, Whence::SeekData) {
            Ok(data) => data.min(end),
            Err(Errno::ENXIO) => end,
            Err(_) => return bytes,
        };
        bytes += data - at;
        at = match seek(data, Whence::SeekHole) {
            Ok(hole) if data < end => hole,
            _ => end,
        };
    }
    bytes
}
