//! How a verb ends when it does not succeed: an exit status and a text for the operator.

use std::io;

use crate::cluster::config::ConfigError;
use crate::cluster::control::{EXIT_FAILED, EXIT_REFUSED};

/// Exit status for a wrong command line or configuration.
pub use crate::cluster::control::EXIT_USAGE;

/// A verb that did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    /// Empty: everything has been said already.
    pub text: String,
}

impl Failure {
    /// It was tried and failed.
    pub fn failed(text: impl Into<String>) -> Failure {
        Failure { exit: EXIT_FAILED, text: text.into() }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { exit: EXIT_USAGE, text: text.into() }
    }

    /// It would not be safe; the text says what would make it so.
    pub fn refused(text: impl Into<String>) -> Failure {
        Failure { exit: EXIT_REFUSED, text: text.into() }
    }
}

impl From<io::Error> for Failure {
    /// Errors of printing: who closes our output early (`| head`) has seen enough.
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { exit: 0, text: String::new() };
        }
        Failure::failed(format!("cannot write the output: {error}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error.to_string())
    }
}
