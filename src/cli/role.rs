//! `farshore aux`, `dr`, `primary`: one role in the foreground, from its configuration to its exit status.

use super::arguments::Role;
use super::failure::Failure;
use super::{files, logs};

/// Runs the auxiliary.
pub fn aux(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    config.need_aux()?;
    logs::start(&config.group.name, "aux")?;
    Err(Failure::failed("the auxiliary is not part of this build"))
}

/// Runs the DR site.
pub fn dr(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    config.need_dr()?;
    logs::start(&config.group.name, "dr")?;
    Err(Failure::failed("the DR site is not part of this build"))
}

/// Runs the primary.
pub fn primary(options: &Role) -> Result<(), Failure> {
    let config = files::load(&options.config.config)?;
    config.need_primary()?;
    logs::start(&config.group.name, "primary")?;
    Err(Failure::failed("the primary is not part of this build"))
}
