//! `farshore resize`: asks the primary of this host to make a volume larger.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::arguments::Resize;
use super::client;
use super::failure::Failure;
use super::files;
use crate::cluster::config::Config;
use crate::cluster::control::Request;
use crate::cluster::size::{exact_size, human_size};
use crate::cluster::status::{Resized, Status};

/// Asks, waits, and says what came of it.
pub fn run(options: &Resize, out: &mut dyn Write) -> Result<(), Failure> {
    let (group, volume) = named(&options.volume);
    let control = match &options.control {
        Some(control) => control.clone(),
        None => of_configuration(&options.config.config, group)?,
    };
    let request = Request::Resize { volume: volume.to_owned(), size: options.size };
    // However long it takes, unless somebody says otherwise: writes that wait for a peer are before it in the order.
    let timeout = (options.timeout > 0).then(|| Duration::from_secs(options.timeout));
    let answer = waiting(&control, timeout, || client::ask(&control, &request, timeout))?;
    let strange = |error: serde_json::Error| Failure::failed(format!("{}: {error}", control.display()));
    let done: Resized = serde_json::from_value(answer).map_err(strange)?;
    if options.json {
        let text = serde_json::to_string(&done).map_err(strange)?;
        return Ok(writeln!(out, "{text}")?);
    }
    let name = format!("{}/{}", done.group, done.volume);
    let (old, new) = (human_size(done.old_size_bytes), human_size(done.size_bytes));
    if done.old_size_bytes == done.size_bytes {
        return Ok(writeln!(out, "{name} has {new} already")?);
    }
    // A site that was promoted has none.
    let follows = done.seq.filter(|_| done.dr_asked.is_some());
    let follows = follows.map_or(String::new(), |seq| format!("; DR follows with seq {seq}"));
    writeln!(out, "{name} has {new} now, and had {old}{follows}")?;
    if done.dr_asked == Some(false) {
        writeln!(
            out,
            "DR was out of reach and was not asked whether its store has room for that: if it has not, it holds back all that \
             follows until it has, and `status` says so"
        )?;
    }
    let size = exact_size(done.size_bytes);
    Ok(writeln!(
        out,
        "Say size = \"{size}\" in the configuration of each host. Devices made by `farshore attach` follow within seconds; \
         QEMU is told by block_resize; other clients see the new size when they connect again"
    )?)
}

/// Says on standard error what is waited for, once that has taken more than a moment.
fn waiting<T>(
    control: &Path,
    timeout: Option<Duration>,
    ask: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let began = Instant::now();
    let (done, ended) = channel::<()>();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(SAYS_AFTER) == Err(RecvTimeoutError::Timeout) {
                eprintln!("farshore: still waiting: {}", what_for(control));
            }
        });
        let answer = ask();
        drop(done);
        answer
    });
    answer.map_err(|failure| match timeout {
        Some(timeout) if began.elapsed() >= timeout => Failure::failed(format!(
            "not done within {} seconds: {}. What was begun goes on by itself; ask again to wait for it",
            timeout.as_secs(),
            what_for(control)
        )),
        _ => failure,
    })
}

/// What the primary says that it waits for.
fn what_for(control: &Path) -> String {
    let status = client::ask(control, &Request::Status, Some(SAYS_AFTER)).ok();
    let Some(Status::Primary(status)) = status.and_then(|status| serde_json::from_value(status).ok()) else {
        return "the primary does not say for what".into();
    };
    // What is degraded may be why, and need not be: a DR that was promoted always says that it serves alone.
    let why = status.frozen.clone().into_iter().chain(status.degraded.iter().map(|it| it.what.clone()));
    let why: Vec<String> = why.collect();
    let what = status.resizing.unwrap_or_else(|| "the store of the volume gets room".into());
    if why.is_empty() { what } else { format!("{what} ({})", why.join("; ")) }
}

/// After this much of waiting it is said for what.
const SAYS_AFTER: Duration = Duration::from_secs(1);
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// The group, if one is named, and the volume.
fn named(text: &str) -> (Option<&str>, &str) {
    text.split_once('/').map_or((None, text), |(group, volume)| (Some(group), volume))
}

/// The control socket of whoever serves the volumes here: the primary, or a DR that was promoted.
fn of_configuration(path: &Path, group: Option<&str>) -> Result<PathBuf, Failure> {
    let config = files::load(path)?;
    if let Some(group) = group.filter(|group| *group != config.group.name) {
        let (here, there) = (&config.group.name, config.path.clone());
        return Err(Failure::usage(format!("{there} is about group {here}, not about {group}")));
    }
    let controls = controls(&config);
    // A DR that was not promoted answers, too, and serves none: then it is the primary that does not run.
    let answers = controls.iter().find(|control| serves(control));
    let missing = || Failure::usage(format!("{}: neither [primary] nor [dr] is there", config.path));
    answers.or(controls.first()).cloned().ok_or_else(missing)
}

fn serves(control: &Path) -> bool {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN));
    answer.is_ok_and(|answer| matches!(serde_json::from_value(answer), Ok(Status::Primary(_))))
}

fn controls(config: &Config) -> Vec<PathBuf> {
    let primary = config.primary.as_ref().map(|primary| primary.control.clone());
    primary.into_iter().chain(config.dr.as_ref().map(|dr| dr.control.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_with_its_group_or_without() {
        assert_eq!(named("orders/db"), (Some("orders"), "db"));
        assert_eq!(named("db"), (None, "db"));
    }
}
