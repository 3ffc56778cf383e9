//! The real input of the demo: a filesystem made of files that this machine has, and the real programs that carry it
//! in and out. Where a program is missing, the built-in stand-in is used and said.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::content;
use super::nbd::Ask;
use super::run_program;
use super::site::{Role, Site, find_program};
use crate::cluster::size::human_size;

/// Where files are taken from, and how many at the most.
const SOURCE: &str = "/usr/share";
const FILES_BYTES: u64 = 56 << 20;
const FILE_BYTES_MAX: u64 = 4 << 20;
const FILES_MAX: usize = 6000;
/// Bytes of the stand-in where no filesystem can be made.
const STAND_IN_BYTES: u64 = 32 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// The image that is going to be written.
pub struct Input {
    image: PathBuf,
    files: usize,
    bytes: u64,
    /// Whether there is a filesystem in it.
    filesystem: bool,
}

impl Input {
    /// Makes an image of `size` bytes in `dir`.
    pub fn build(dir: &Path, size: u64) -> Result<Input> {
        let image = dir.join("input.img");
        let tree = dir.join("input");
        let (files, bytes) = copy_files(Path::new(SOURCE), &tree)?;
        if find_program("mke2fs").is_none() || files == 0 {
            let mut bytes = content(1, STAND_IN_BYTES);
            bytes.resize(size as usize, 0);
            std::fs::write(&image, bytes).context("writing the stand-in for a filesystem")?;
            return Ok(Input { image, files: 0, bytes: STAND_IN_BYTES, filesystem: false });
        }
        let file = std::fs::File::create(&image).context("making the image")?;
        file.set_len(size)?;
        run_program("mke2fs", |command| {
            command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "farshore", "-d"]).arg(&tree).arg(&image);
        })?;
        std::fs::remove_dir_all(&tree).context("removing the copies of the files")?;
        Ok(Input { image, files, bytes, filesystem: true })
    }

    pub fn told(&self) -> String {
        if self.filesystem {
            return format!("ext4 with {} files of {SOURCE}, {}", self.files, human_size(self.bytes));
        }
        format!("mke2fs is not installed: {} of built-in bytes instead of a filesystem", human_size(self.bytes))
    }

    pub fn facts(&self) -> Value {
        json!({ "filesystem": self.filesystem, "files": self.files, "bytes": self.bytes })
    }

    /// Writes the image to a volume of the primary; which program did.
    pub fn copy_in(&self, site: &Site, volume: &str) -> Result<&'static str> {
        let uri = site.uri(Role::Primary, volume);
        if find_program("nbdcopy").is_some() {
            run_program("nbdcopy", |command| {
                command.args(["--destination-is-zero", "--flush"]).arg(&self.image).arg(&uri);
            })?;
            return Ok("nbdcopy");
        }
        if find_program("qemu-img").is_some() {
            run_program("qemu-img", |command| {
                command.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&self.image).arg(&uri);
            })?;
            return Ok("qemu-img");
        }
        let mut client = site.client(Role::Primary, volume)?;
        for (at, piece) in std::fs::read(&self.image)?.chunks(PIECE_BYTES).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                client.call(Ask::Write { offset: (at * PIECE_BYTES) as u64, data: piece, fua: false })?;
            }
        }
        client.call(Ask::Flush)?;
        client.close();
        Ok("the built-in client (neither nbdcopy nor qemu-img is installed)")
    }

    /// Reads the promoted volume and holds it against the image; who read it, and what e2fsck says.
    pub fn check_out(&self, site: &Site, volume: &str) -> Result<(&'static str, String)> {
        let copy = site.path("promoted.img");
        let by = if find_program("nbdcopy").is_some() {
            std::fs::File::create(&copy)?;
            run_program("nbdcopy", |command| {
                command.arg(site.uri(Role::Dr, volume)).arg(&copy);
            })?;
            "nbdcopy"
        } else {
            std::fs::write(&copy, site.client(Role::Dr, volume)?.read_all()?)?;
            "the built-in client"
        };
        let (want, got) = (std::fs::read(&self.image)?, std::fs::read(&copy)?);
        ensure!(want.len() == got.len(), "{volume}: {} bytes were promoted, not {}", got.len(), want.len());
        if let Some(at) = want.iter().zip(&got).position(|(a, b)| a != b) {
            anyhow::bail!("I5: {volume} differs from what was written and settled, at byte {at}");
        }
        if !self.filesystem {
            return Ok((by, "no filesystem to check".into()));
        }
        if find_program("e2fsck").is_none() {
            return Ok((by, "e2fsck is not installed".into()));
        }
        run_program("e2fsck", |command| {
            command.arg("-fn").arg(&copy);
        })?;
        Ok((by, "e2fsck finds it clean".into()))
    }
}

/// Copies small regular files below `from` until there are enough; how many, and their bytes.
fn copy_files(from: &Path, to: &Path) -> Result<(usize, u64)> {
    let (mut count, mut bytes) = (0, 0);
    let mut left = vec![from.to_path_buf()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            let Ok(found) = path.symlink_metadata() else { continue };
            if found.is_dir() {
                left.push(path);
                continue;
            }
            if !found.is_file() || found.len() == 0 || found.len() > FILE_BYTES_MAX {
                continue;
            }
            let Ok(relative) = path.strip_prefix(from) else { continue };
            let target = to.join(relative);
            std::fs::create_dir_all(target.parent().context("a file stands in a directory")?)?;
            if std::fs::copy(&path, &target).is_ok() {
                (count, bytes) = (count + 1, bytes + found.len());
            }
            if bytes >= FILES_BYTES || count >= FILES_MAX {
                return Ok((count, bytes));
            }
        }
    }
    Ok((count, bytes))
}
