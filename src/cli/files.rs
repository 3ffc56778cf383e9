//! Reading the configuration from its file, with what is wrong printed line by line.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
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
    let bytes = regular(path).map_err(|error| match error.kind() {
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

/// The bytes of a regular file. Anything else is not even opened: a pipe without a writer would be waited for, and a
/// device may do more than be read.
fn regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let problem = |text: String| Err(std::io::Error::other(text));
    let kind = |data: &Metadata| match data.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return problem(format!("it is {}, not a file", kind(&found)));
    }
    // Between the two another file may have taken its place.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return problem(format!("it is {}, not a file", kind(&found)));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return problem(format!("more than {FILE_BYTES_MAX} bytes are too many for a configuration"));
    }
    Ok(bytes)
}
