//! `farshore inspect`: what is on disk, read-only.

use std::io::Write;

use super::arguments::Inspect;
use super::failure::Failure;

/// Prints one file.
pub fn run(options: &Inspect, _out: &mut dyn Write) -> Result<(), Failure> {
    Err(Failure::failed(format!("{}: no decoder of this file is in this build", options.path.display())))
}
