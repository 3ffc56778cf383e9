//! `farshore recopy`: has DR give up its recovery point, so that what crosses goes into its volumes in place.

use std::io::Write;

use super::arguments::Recopy;
use super::client;
use super::failure::Failure;
use super::promote::control;
use crate::cluster::control::Request;
use crate::cluster::status::GivenUp;

/// Asks, waits, and says what was given up. Without the word that gives it up: refused, with what it would cost.
pub fn run(options: &Recopy, out: &mut dyn Write) -> Result<(), Failure> {
    let control = control(options.control.as_deref(), &options.config.config)?;
    let answer = client::ask(&control, &Request::Recopy { give_up: options.give_up_recovery_point }, None)?;
    let strange = |error: serde_json::Error| Failure::failed(format!("{}: {error}", control.display()));
    let done: GivenUp = serde_json::from_value(answer).map_err(strange)?;
    if options.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&done).map_err(strange)?)?);
    }
    let GivenUp { group, cut_seq } = done;
    Ok(writeln!(
        out,
        "{group}: the recovery point, seq {cut_seq}, is given up; the volumes are copied anew as soon as the primary connects, and \
         until that is complete there is none (farshore status)"
    )?)
}
