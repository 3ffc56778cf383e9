//! `farshore check`: what the text of a configuration cannot tell: does this host have what it asks for?
//!
//! Opens and binds, and closes again; creates and changes nothing. What is in the way of a start is found by what the start
//! itself asks, in its order, so that both say the same and end with the same status. Beside that, `check` counts as errors
//! ([`EXIT_USAGE`]) what a role starts with and cannot do its work with: a promoted DR without its ports, a table too small for
//! anything.

use std::io::Write;

use serde::Serialize;
use serde_json::json;

use super::arguments::{Check, RoleName};
use super::failure::{EXIT_USAGE, Failure};
use super::files;
use super::hosts::Host;
use super::role::{exit_status, words};
use crate::cluster::config::{Config, ConfigError, line_of, parse};
use crate::cluster::status::word;

/// How a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub level: Weight,
    pub file: String,
    /// 0: the file as a whole, or something about this host.
    pub line: usize,
    pub key: String,
    pub text: String,
}

/// Where findings come together.
pub struct Findings<'a> {
    pub list: Vec<Finding>,
    /// What a role would end with, of those that would not start; and what one does for what it has been looked at so far.
    worst: u8,
    first: Option<u8>,
    text: &'a str,
    path: String,
}

impl Findings<'_> {
    /// Notes what was found about the key that `keys` lead to.
    pub fn note(&mut self, level: Weight, keys: &[&str], text: impl Into<String>) {
        let line = line_of(self.text, keys);
        self.list.push(Finding { level, file: self.path.clone(), line, key: keys.join("."), text: text.into() });
    }

    /// Notes an error, and the status that a start ends with if it comes that far.
    pub fn fail(&mut self, exit: u8, keys: &[&str], text: impl Into<String>) {
        self.first.get_or_insert(exit);
        self.note(Weight::Error, keys, text);
    }

    /// Notes what a start ends with, with its words; of the key that `keys` lead to, if the error does not know better.
    pub fn ends(&mut self, keys: &[&str], error: impl Into<anyhow::Error>) {
        let error = error.into();
        match error.downcast_ref::<ConfigError>() {
            Some(wrong) => {
                let keys: Vec<&str> = wrong.key.splitn(3, '.').collect();
                self.fail(exit_status(&error), &keys, &wrong.text);
            }
            None => self.fail(exit_status(&error), keys, words(&error)),
        }
    }

    /// What follows is of another role: each ends with what it stumbles over first, and of several the gravest counts.
    pub fn next_role(&mut self) {
        self.worst = self.worst.max(self.first.take().unwrap_or(0));
    }

    fn take(&mut self, level: Weight, errors: &[ConfigError]) {
        for error in errors {
            let (file, line, key, text) = (error.path.clone(), error.line, error.key.clone(), error.text.clone());
            self.list.push(Finding { level, file, line, key, text });
            if level == Weight::Error {
                self.first.get_or_insert(EXIT_USAGE);
            }
        }
    }

    fn errors(&self) -> usize {
        self.list.iter().filter(|finding| finding.level == Weight::Error).count()
    }
}

/// Checks the file and, for the roles of this host, what it asks of the host.
pub fn run(options: &Check, out: &mut dyn Write) -> Result<(), Failure> {
    let text = files::read(&options.config.config)?;
    let path = options.config.config.display().to_string();
    let mut findings = Findings { list: Vec::new(), worst: 0, first: None, text: &text, path: path.clone() };
    let config = match parse(&text, &path) {
        Ok(config) => {
            findings.take(Weight::Warning, &config.warnings);
            check_host(&config, options.role, &mut findings);
            Some(config)
        }
        Err(errors) => {
            findings.take(Weight::Error, &errors);
            None
        }
    };
    if options.json {
        print_json(config.as_ref(), &findings, out)?;
    } else {
        print(config.as_ref(), &findings, out)?;
    }
    findings.next_role();
    match findings.worst {
        0 => Ok(()),
        // The report has been printed; a second voice on standard error would only repeat it.
        exit => Err(Failure { exit, text: String::new() }),
    }
}

fn check_host(config: &Config, role: Option<RoleName>, findings: &mut Findings<'_>) {
    let mut host = Host::new(config, findings);
    host.kernel();
    for one in RoleName::ALL {
        match role {
            Some(wanted) if wanted != one => {}
            Some(_) => host.role(one, true),
            None => host.role(one, false),
        }
    }
    host.space();
}

fn print_json(config: Option<&Config>, findings: &Findings<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let group = config.map(|config| config.group.name.as_str());
    let object = json!({ "ok": findings.errors() == 0, "group": group, "findings": findings.list });
    Ok(writeln!(out, "{object}")?)
}

fn print(config: Option<&Config>, findings: &Findings<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    for finding in &findings.list {
        match finding.level {
            Weight::Ok => writeln!(out, "ok       {}: {}", finding.key, finding.text)?,
            level => {
                let Finding { file: path, line, key, text, .. } = finding.clone();
                let place = ConfigError { path, line, key, text };
                writeln!(out, "{:<8} {place}", if level == Weight::Error { "error" } else { "warning" })?;
            }
        }
    }
    match (config, findings.errors()) {
        (Some(config), 0) => {
            let volumes = config.volumes.len();
            let plural = if volumes == 1 { "" } else { "s" };
            let (group, protect) = (&config.group.name, word(&config.group.protect));
            writeln!(out, "{}: group {group}, {volumes} volume{plural}, protect {protect}: good", findings.path)?;
        }
        (_, errors) => {
            let plural = if errors == 1 { "" } else { "s" };
            writeln!(out, "{}: {errors} error{plural}", findings.path)?;
        }
    }
    Ok(())
}
