//! `farshore loss`: the durable loss report of the last promotion, again.

use std::io::Write;
use std::time::Duration;

use super::arguments::Loss;
use super::client;
use super::failure::Failure;
use super::promote::{control, report, summary};
use crate::cluster::control::Request;

const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Asks DR for the report and prints it.
pub fn run(options: &Loss, out: &mut dyn Write) -> Result<(), Failure> {
    let control = control(options.control.as_deref(), &options.config.config)?;
    let answer = client::ask(&control, &Request::Loss, Some(ANSWER_WITHIN))?;
    if options.json {
        return Ok(writeln!(out, "{answer}")?);
    }
    let report = report(answer)?;
    writeln!(out, "{}: loss report of the promotion to epoch {}", report.group, report.epoch)?;
    Ok(summary(&report, options.volume.as_deref(), out)?)
}
