//! `farshore demo`: the whole story on one machine.

use std::io::Write;

use super::arguments::Demo;
use super::failure::Failure;

/// Runs the demo.
pub fn run(_options: &Demo, _out: &mut dyn Write) -> Result<(), Failure> {
    Err(Failure::failed("the demo is not part of this build"))
}
