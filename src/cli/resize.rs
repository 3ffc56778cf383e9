//! `farshore resize`: asks the primary of this host to make a volume larger.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::arguments::Resize;
use super::client;
use super::failure::Failure;
use super::files;
use crate::cluster::config::Config;
use crate::cluster::control::Request;
use crate::cluster::size::{exact_size, human_size};
use crate::cluster::status::Resized;

/// Asks, waits, and says what came of it.
pub fn run(options: &Resize, out: &mut dyn Write) -> Result<(), Failure> {
    let (group, volume) = named(&options.volume);
    let control = match &options.control {
        Some(control) => control.clone(),
        None => of_configuration(&options.config.config, group)?,
    };
    let request = Request::Resize { volume: volume.to_owned(), size: options.size };
    // However long it takes: writes that wait for a peer are before it in the order.
    let answer = client::ask(&control, &request, None)?;
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
    writeln!(out, "{name} has {new} now, and had {old}; DR follows with seq {}", done.seq)?;
    let size = exact_size(done.size_bytes);
    Ok(writeln!(
        out,
        "Say size = \"{size}\" in the configuration of each host. Devices made by `farshore attach` follow within seconds; \
         QEMU is told by block_resize; other clients see the new size when they connect again"
    )?)
}

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
    let answers = controls.iter().find(|control| client::answers(control));
    let missing = || Failure::usage(format!("{}: neither [primary] nor [dr] is there", config.path));
    answers.or(controls.first()).cloned().ok_or_else(missing)
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
