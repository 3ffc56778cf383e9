//! Reading the configuration from its file, with what is wrong printed line by line.

use std::path::Path;

use super::failure::{EXIT_USAGE, Failure};
use crate::cluster::config::{Config, parse};

/// Longest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The configuration at `path`; warnings and mistakes go to standard error.
///
/// # Errors
/// Exit status 2: it cannot be read, or something in it is wrong (which has been printed).
pub fn load(path: &Path) -> Result<Config, Failure> {
    let text = read(path)?;
    match parse(&text, &path.display().to_string()) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("farshore: warning: {warning}");
            }
            Ok(config)
        }
        Err(errors) => {
            for error in &errors {
                eprintln!("{error}");
            }
            let mistakes = if errors.len() == 1 { "mistake" } else { "mistakes" };
            let text = format!("{} {mistakes} in {}; nothing was done", errors.len(), path.display());
            Err(Failure { exit: EXIT_USAGE, text })
        }
    }
}

/// The text of a configuration file.
///
/// # Errors
/// Exit status 2, with what to do.
pub fn read(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let bytes = std::fs::metadata(path).and_then(|found| {
        if found.len() > FILE_BYTES_MAX {
            return Err(std::io::Error::other(format!("{} bytes are too many for a configuration", found.len())));
        }
        std::fs::read(path)
    });
    let bytes = bytes.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!(
            "{shown}: there is no such file; name one with --config, or write one with `farshore init`"
        )),
        std::io::ErrorKind::PermissionDenied => {
            Failure::usage(format!("{shown}: cannot read the configuration: {error}; {}", crate::io::open::denied()))
        }
        _ => Failure::usage(format!("{shown}: cannot read the configuration: {error}")),
    })?;
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{shown}: is not UTF-8 text")))
}
