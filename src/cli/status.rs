//! `farshore status`: asks the roles of this host where they stand.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::arguments::{RoleName, Status as Options};
use super::client;
use super::failure::Failure;
use super::files;
use super::view;
use crate::cluster::config::Config;
use crate::cluster::control::Request;
use crate::cluster::status::Status;

/// A role answers from memory; longer than this means that it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Prints the status once, or again and again.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<(), Failure> {
    let sockets = match &options.control {
        Some(path) => vec![path.clone()],
        None => sockets(&files::load(&options.config.config)?, options.role)?,
    };
    if !options.watch {
        return once(&sockets, options, out);
    }
    let clear = !options.json && std::io::stdout().is_terminal();
    loop {
        if clear {
            // Home and clear to the end, as `watch` does.
            write!(out, "\x1b[H\x1b[J")?;
        }
        // A role that restarts is no reason to stop watching.
        match once(&sockets, options, out) {
            Err(failure) if failure.exit == 0 => return Err(failure),
            Err(failure) if options.json => eprintln!("farshore: {}", failure.text),
            Err(failure) => writeln!(out, "{}", failure.text)?,
            Ok(()) => {}
        }
        out.flush()?;
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Control sockets of the roles that are configured, primary first.
pub fn sockets(config: &Config, role: Option<RoleName>) -> Result<Vec<PathBuf>, Failure> {
    let of = |one: RoleName| match one {
        RoleName::Primary => config.primary.as_ref().map(|primary| primary.control.clone()),
        RoleName::Dr => config.dr.as_ref().map(|dr| dr.control.clone()),
        RoleName::Aux => config.aux.as_ref().and_then(|aux| aux.own.as_ref()).map(|own| own.control.clone()),
    };
    let found: Vec<PathBuf> =
        RoleName::ALL.into_iter().filter(|one| role.is_none_or(|role| role == *one)).filter_map(of).collect();
    match (found.is_empty(), role) {
        (true, Some(role)) => Err(Failure::usage(format!("{} describes no {} to ask", config.path, role.word()))),
        _ => Ok(found),
    }
}

fn once(sockets: &[PathBuf], options: &Options, out: &mut dyn Write) -> Result<(), Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut answered = 0;
    for socket in sockets {
        let answer = match client::ask(socket, &Request::Status, Some(ANSWER_WITHIN)) {
            Ok(answer) => answer,
            Err(failure) => {
                failures.push(failure);
                continue;
            }
        };
        if options.json {
            // As it came: a newer role may say more than this program knows.
            return Ok(writeln!(out, "{answer}")?);
        }
        if answered > 0 {
            writeln!(out)?;
        }
        answered += 1;
        match serde_json::from_value::<Status>(answer.clone()) {
            Ok(status) => view::status(&status, out)?,
            Err(_) => writeln!(out, "{answer:#}")?,
        }
    }
    if answered > 0 {
        return Ok(());
    }
    let reasons: Vec<String> = failures.into_iter().map(|failure| failure.text).collect();
    Err(Failure::failed(format!("no role answers on this host\n  {}", reasons.join("\n  "))))
}
