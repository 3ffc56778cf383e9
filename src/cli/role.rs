//! `farshore aux`, `dr`, `primary`: one role in the foreground, from its configuration to its exit status.

use std::io::ErrorKind;
use std::path::Path;

use super::arguments::Role;
use super::failure::{EXIT_USAGE, Failure};
use super::{files, logs, strangers};
use crate::auxiliary;
use crate::cluster::config::{Config, ConfigError};
use crate::cluster::control::{EXIT_FAILED, EXIT_REFUSED, Refused};
use crate::core::address::Address;
use crate::core::peer;
use crate::dr;
use crate::io::open::{denied as denied_advice, judge_dirs};
use crate::io::tls::TlsError;
use crate::primary;
use crate::primary::recovery::RecoveryError;

/// Runs the auxiliary.
pub fn aux(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    let (_, own) = config.need_aux()?;
    logs::start(&config.group.name, "aux")?;
    strangers(&config, peer::Role::Aux, &own.dir);
    let metrics = config.aux.as_ref().and_then(|aux| aux.metrics.as_ref());
    directories([own.control.as_path()], [&own.listen].into_iter().chain(metrics))?;
    ended(auxiliary::daemon::run(&config))
}

/// Runs the DR site.
pub fn dr(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    let (own, _) = config.need_dr()?;
    logs::start(&config.group.name, "dr")?;
    strangers(&config, peer::Role::Dr, &own.dir);
    directories([own.control.as_path()], own.export.iter().chain([&own.listen]).chain(&own.metrics))?;
    ended(run_dr(&config))
}

/// The DR site until it stops, or until it is promoted: then the same process is the primary of the new epoch.
fn run_dr(config: &Config) -> anyhow::Result<()> {
    let promoted = match dr::daemon::run(config)? {
        dr::daemon::Outcome::Stopped => return Ok(()),
        dr::daemon::Outcome::Promoted(promoted) => *promoted,
    };
    let promotion = primary::daemon::Promotion {
        reactor: promoted.reactor,
        group: promoted.group,
        owner: promoted.owner,
        epoch: promoted.epoch,
        tail: promoted.tail,
        chain: promoted.chain,
        controls: promoted.controls,
        http: promoted.http,
        replication: Some(promoted.replication),
        replies: promoted.replies,
        loss: promoted.loss,
        loss_missing: promoted.loss_missing,
        backings: promoted.backings,
        volumes: promoted.volumes,
    };
    primary::daemon::run_promoted(config, promotion)
}

/// Runs the primary.
pub fn primary(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    let (own, _, _) = config.need_primary()?;
    logs::start(&config.group.name, "primary")?;
    strangers(&config, peer::Role::Primary, &own.dir);
    directories([own.control.as_path()], own.listen.iter().chain(&own.metrics))?;
    ended(primary::daemon::run(&config))
}

/// Warns of files of somebody else in a directory that is to be a role's.
fn strangers(config: &Config, role: peer::Role, dir: &Path) {
    if let Some(text) = strangers::tell(config, role, dir) {
        tracing::warn!("{text}");
    }
}

/// Makes the directories in which sockets are going to stand.
fn directories<'a>(
    controls: impl IntoIterator<Item = &'a Path>,
    addresses: impl IntoIterator<Item = &'a Address>,
) -> Result<(), Failure> {
    let sockets = addresses.into_iter().filter_map(Address::path);
    for socket in controls.into_iter().chain(sockets) {
        let Some(parent) = socket.parent().filter(|parent| !parent.as_os_str().is_empty()) else { continue };
        judge_directory(socket).map_err(Failure::failed)?;
        std::fs::create_dir_all(parent).map_err(|error| Failure::failed(no_directory(parent, &error)))?;
    }
    Ok(())
}

/// Whether the directory in which a socket is going to stand is there or can be made; makes nothing.
///
/// # Errors
/// What a start says.
pub fn judge_directory(socket: &Path) -> Result<(), String> {
    let Some(parent) = socket.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    judge_dirs(parent).map_err(|error| no_directory(parent, &error))
}

fn no_directory(dir: &Path, error: &std::io::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied => format!("; {}, or make the directory for it", denied_advice()),
        _ => String::new(),
    };
    format!("{}: the directory of the socket cannot be made: {error}{advice}", dir.display())
}

/// The exit status of a role: what it refused or found wrong in the configuration is not a mere failure.
fn ended(result: anyhow::Result<()>) -> Result<(), Failure> {
    let Err(error) = result else { return Ok(()) };
    tracing::error!("{}", words(&error));
    let exit = exit_status(&error);
    // The log has said it, with group and role; a second line would only repeat it.
    Err(Failure { exit, text: String::new() })
}

/// What a role says of an error that ends it.
pub fn words(error: &anyhow::Error) -> String {
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    match error.chain().any(denied) {
        true => format!("{error:#}; {}", denied_advice()),
        false => format!("{error:#}"),
    }
}

/// The exit status that a role ends with for an error.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    error.chain().find_map(exit_of).unwrap_or(EXIT_FAILED)
}

/// The exit status that one cause of a failure asks for.
fn exit_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    let refused_start = matches!(
        cause.downcast_ref::<RecoveryError>(),
        Some(RecoveryError::Damaged { .. } | RecoveryError::Mismatch { .. })
    );
    if cause.is::<ConfigError>() || cause.is::<TlsError>() {
        Some(EXIT_USAGE)
    } else if refused_start || cause.is::<Refused>() {
        Some(EXIT_REFUSED)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_cause_decides_the_exit_status_however_deep_it_lies() {
        let refused = Err::<(), _>(Refused("another group's directory".into())).context("opening").context("starting");
        assert_eq!(ended(refused).expect_err("an error").exit, 3);
        let wrong = ConfigError { path: "f".into(), line: 1, key: "k".into(), text: "t".into() };
        assert_eq!(ended(Err(wrong.into())).expect_err("an error").exit, 2);
        assert_eq!(ended(Err(anyhow::anyhow!("disk full"))).expect_err("an error").exit, 1);
        assert!(ended(Ok(())).is_ok());
    }
}
