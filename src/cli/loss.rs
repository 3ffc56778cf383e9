//! `farshore loss`: the durable loss report of the last promotion, again.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::arguments::Loss;
use super::client;
use super::failure::Failure;
use super::promote::{Tally, control, summary};
use crate::cluster::control::Request;
use crate::cluster::status::Status;

const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A volume that the group does not have lost nothing, which is not what was to be known.
fn known(control: &Path, volume: &str) -> Result<(), Failure> {
    let status = client::ask(control, &Request::Status, Some(ANSWER_WITHIN))?;
    let names: Vec<String> = match serde_json::from_value(status) {
        Ok(Status::Primary(status)) => status.volumes.into_iter().map(|volume| volume.name).collect(),
        Ok(Status::Dr(status)) => status.volumes.into_iter().map(|volume| volume.name).collect(),
        // What answers has no volumes, and says what it is when it is asked for the report.
        _ => return Ok(()),
    };
    if names.iter().any(|name| name == volume) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--volume {volume}: there is no such volume in the group; there is {}",
        names.join(", ")
    )))
}

/// Asks DR for the report and prints it.
pub fn run(options: &Loss, out: &mut dyn Write) -> Result<(), Failure> {
    let control = control(options.control.as_deref(), &options.config.config)?;
    if let Some(volume) = &options.volume {
        known(&control, volume)?;
    }
    let report = |tally: &mut Tally, print: Option<&mut dyn Write>| {
        client::report(&control, &Request::Loss, Some(ANSWER_WITHIN), &mut |write| tally.add(write), print)
    };
    let mut tally = Tally::of(options.volume.as_deref());
    if options.json {
        return report(&mut tally, Some(out)).map(drop);
    }
    let report = report(&mut tally, None)?;
    writeln!(out, "{}: loss report of the promotion to epoch {}", report.group, report.epoch)?;
    Ok(summary(&report, &tally, out)?)
}
