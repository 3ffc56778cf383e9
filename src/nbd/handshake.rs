//! The handshake of a server ("Handshake phase"), pure: options in, questions and answers out.
//!
//! ```text
//!   Flags ──► Options ──► Waiting (an export is looked up, or all of them are listed) ──► Options, or the end
//!                │  ▲  ▲
//!                ▼  │  └── Securing (STARTTLS was granted: nothing is parsed before the connection is secure)
//!              Skipping (the data of an option that is refused by its head)
//! ```
//!
//! Owns what has been negotiated: the style of replies, for which export `base:allocation` was selected, and whether the
//! connection is secure. A STARTTLS that succeeds forgets the first two ("STARTTLS": what was negotiated in the clear
//! may have been negotiated by anybody). A client waits for the grant before it says anything more: what has come behind its STARTTLS
//! is not of the client, and ends the connection.
//!
//! Invariants: I9 - an option's data is kept only up to a bound, the rest passes by; no option is looked at while the
//! answers to those before it are not taken (`Outbox::is_full`), and one answer more is all that comes on top; every option gets one final answer.

use crate::core::modes::TlsMode;
use crate::core::rope::Rope;
use crate::nbd::export::Export;
use crate::nbd::meta::{self, Queries};
use crate::nbd::options::{Infos, block_size, clip, describe, go_data, list_item, option_reply, refused_option, text};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::reply::Style;
use crate::nbd::session::{Event, Purpose, Refusal, SessionError, Step, skip};

#[derive(Debug, Default)]
pub struct Handshake {
    phase: Phase,
    no_zeroes: bool,
    style: Style,
    /// The export, by its own name, whose `base:allocation` was selected by the last `OPT_SET_META_CONTEXT`.
    allocation_of: Option<String>,
    /// Every further option is refused: the server is being shut down.
    shutdown: bool,
    tls: TlsMode,
    secured: bool,
    /// An option is there that waits until the client takes its answers.
    full: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Flags,
    Options,
    /// The data of an option is passing by; then it gets this answer.
    Skipping {
        left: u64,
        option: u32,
        code: u32,
        text: &'static str,
    },
    Resolving(Question),
    Listing,
    Securing,
    /// The client has said goodbye, or was turned away by an option that has no answer in words.
    Over,
}

/// What an export is looked up for.
#[derive(Debug)]
enum Question {
    Describe { option: u32, infos: Infos },
    ByName,
    Contexts { option: u32, queries: Queries },
}

/// What a looked-up export leads to.
#[derive(Debug)]
pub enum Outcome {
    /// The handshake goes on, or is over.
    Stays,
    /// Transmission begins. `allocation`: its block status may be asked for.
    Begins { export: Export, style: Style, allocation: bool },
}

impl Handshake {
    /// A handshake in which TLS has this part.
    #[must_use]
    pub fn new(tls: TlsMode) -> Handshake {
        Handshake { tls, ..Handshake::default() }
    }

    /// The connection is secure now: it begins anew, but for the client's flags.
    ///
    /// # Panics
    /// When nothing was granted.
    pub fn secured(&mut self) {
        assert!(matches!(self.phase, Phase::Securing), "a connection becomes secure after a STARTTLS that was granted");
        let Handshake { no_zeroes, shutdown, tls, .. } = *self;
        *self = Handshake { phase: Phase::Options, no_zeroes, shutdown, tls, secured: true, ..Handshake::default() };
    }

    /// The server speaks first.
    pub fn greet(out: &mut Outbox) {
        out.put(&MAGIC_SERVER.to_be_bytes());
        out.put(&MAGIC_OPTION.to_be_bytes());
        out.put(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    }

    /// Parses one step of what has arrived.
    ///
    /// # Errors
    /// What leaves the stream out of step.
    pub fn step(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, SessionError> {
        self.full = false;
        match &mut self.phase {
            Phase::Flags => self.client_flags(rx),
            Phase::Options => self.option(rx, events, out),
            Phase::Skipping { left, option, code, text } => {
                skip(rx, left);
                if *left > 0 {
                    return Ok(Step::Stop);
                }
                option_reply(out, *option, *code, text.as_bytes());
                let over = *option == OPT_ABORT;
                self.phase = if over { Phase::Over } else { Phase::Options };
                if over {
                    events.push(Event::Disconnect);
                }
                Ok(Step::Again)
            }
            Phase::Resolving(_) | Phase::Listing | Phase::Securing => Ok(Step::Stop),
            Phase::Over => {
                rx.skip(rx.len());
                Ok(Step::Stop)
            }
        }
    }

    /// Answers what was asked by a `Resolve`.
    ///
    /// # Panics
    /// When nothing was asked.
    pub fn resolved(&mut self, result: Result<Export, Refusal>, out: &mut Outbox) -> Outcome {
        let Phase::Resolving(question) = std::mem::replace(&mut self.phase, Phase::Options) else {
            panic!("an export was resolved that no client asked for");
        };
        match (result, question) {
            (Ok(export), Question::Describe { option, infos }) => return self.described(export, option, infos, out),
            (Ok(export), Question::ByName) => return self.named(export, out),
            (Ok(export), Question::Contexts { option, queries }) => {
                if queries.allocation && export.allocation {
                    meta::context(out, option);
                    if option == OPT_SET_META_CONTEXT {
                        self.allocation_of = Some(export.name);
                    }
                }
                option_reply(out, option, REP_ACK, b"");
            }
            // The old option has no answer in words: the specification has the server close the connection.
            (Err(_), Question::ByName) => self.phase = Phase::Over,
            (Err(refusal), Question::Describe { option, .. } | Question::Contexts { option, .. }) => {
                assert!(refusal.code & REP_ERROR_BIT != 0, "a refusal carries an error code");
                option_reply(out, option, refusal.code, clip(&refusal.text).as_bytes());
            }
        }
        Outcome::Stays
    }

    /// Answers a `List` with (name, description) of each export.
    ///
    /// # Panics
    /// When no list was asked for.
    pub fn listed(&mut self, exports: &[(String, String)], out: &mut Outbox) {
        assert!(matches!(self.phase, Phase::Listing), "a list was given that no client asked for");
        exports.iter().for_each(|(name, description)| list_item(out, name, description));
        option_reply(out, OPT_LIST, REP_ACK, b"");
        self.phase = Phase::Options;
    }

    /// Refuses every further option ("Termination of the session during option haggling").
    pub fn shut_down(&mut self) {
        self.shutdown = true;
    }

    /// Whether the connection is to be closed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether parsing stopped because answers are not taken, with an option left to be parsed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    fn client_flags(&mut self, rx: &mut Rope) -> Result<Step, SessionError> {
        let mut raw = [0; 4];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        rx.skip(raw.len());
        let flags = u32::from_be_bytes(raw);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(SessionError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options;
        Ok(Step::Again)
    }

    fn option(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, SessionError> {
        let mut raw = [0; OPTION_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        if out.is_full(0) {
            self.full = true;
            return Ok(Step::Stop);
        }
        let head = OptionHead::decode(&raw);
        if head.magic != MAGIC_OPTION {
            return Err(SessionError::OptionMagic(head.magic));
        }
        if head.option == OPT_EXPORT_NAME && self.tls == TlsMode::Required && !self.secured {
            return Err(SessionError::TlsRequired);
        }
        if head.option == OPT_EXPORT_NAME && self.style == Style::Extended {
            return Err(SessionError::NameExtended);
        }
        if head.option == OPT_EXPORT_NAME && head.length as usize > STRING_BYTES_MAX {
            return Err(SessionError::NameLength(head.length));
        }
        if head.option == OPT_SET_META_CONTEXT {
            // It replaces what was set before, also when it fails.
            self.allocation_of = None;
        }
        let left = u64::from(head.length);
        if head.option == OPT_ABORT {
            rx.skip(OPTION_BYTES);
            self.phase = Phase::Skipping { left, option: OPT_ABORT, code: REP_ACK, text: "" };
            return Ok(Step::Again);
        }
        if let Some((code, text)) = self.refused(&head) {
            rx.skip(OPTION_BYTES);
            self.phase = Phase::Skipping { left, option: head.option, code, text };
            return Ok(Step::Again);
        }
        let length = head.length as usize;
        if rx.len() < OPTION_BYTES + length {
            return Ok(Step::Stop);
        }
        rx.skip(OPTION_BYTES);
        let data = rx.take(length);
        if head.option == OPT_STARTTLS && !rx.is_empty() {
            return Err(SessionError::Injected(rx.len()));
        }
        if let Err(text) = self.take(head.option, &data, events, out)? {
            option_reply(out, head.option, REP_ERR_INVALID, text.as_bytes());
        }
        Ok(Step::Again)
    }

    fn refused(&self, head: &OptionHead) -> Option<(u32, &'static str)> {
        if self.shutdown && head.option != OPT_EXPORT_NAME {
            return Some((REP_ERR_SHUTDOWN, "the server is being shut down"));
        }
        if head.option == OPT_STARTTLS && head.length == 0 {
            return match (self.secured, self.tls) {
                (true, _) => Some((REP_ERR_INVALID, "this connection is secure already")),
                (false, TlsMode::Off) => Some((REP_ERR_POLICY, "this server has TLS switched off")),
                (false, TlsMode::Optional | TlsMode::Required) => None,
            };
        }
        if head.option != OPT_STARTTLS && self.tls == TlsMode::Required && !self.secured {
            return Some((REP_ERR_TLS_REQD, "this server insists on TLS: STARTTLS first"));
        }
        refused_option(head, self.style)
    }

    /// Carries out an option that is there as a whole; the inner error is what is malformed in it.
    fn take(
        &mut self,
        option: u32,
        data: &[u8],
        events: &mut Vec<Event>,
        out: &mut Outbox,
    ) -> Result<Result<(), &'static str>, SessionError> {
        match option {
            OPT_STARTTLS => {
                option_reply(out, option, REP_ACK, b"");
                self.phase = Phase::Securing;
                events.push(Event::Secure);
            }
            OPT_LIST => {
                self.phase = Phase::Listing;
                events.push(Event::List);
            }
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS => {
                let extended = option == OPT_EXTENDED_HEADERS;
                self.style = if extended { Style::Extended } else { Style::Structured };
                option_reply(out, option, REP_ACK, b"");
            }
            OPT_EXPORT_NAME if self.shutdown => self.phase = Phase::Over,
            OPT_EXPORT_NAME => {
                let name = text(data).map_err(SessionError::NameText)?.to_owned();
                self.ask(Question::ByName, name, Purpose::ExportName, events);
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => match meta::queries(option, data) {
                Ok(queries) => {
                    let name = queries.export.clone();
                    self.ask(Question::Contexts { option, queries }, name, Purpose::Info, events);
                }
                Err(text) => return Ok(Err(text)),
            },
            _ => match go_data(data) {
                Ok((name, infos)) => {
                    let purpose = if option == OPT_GO { Purpose::Go } else { Purpose::Info };
                    self.ask(Question::Describe { option, infos }, name, purpose, events);
                }
                Err(text) => return Ok(Err(text)),
            },
        }
        Ok(Ok(()))
    }

    fn ask(&mut self, question: Question, name: String, purpose: Purpose, events: &mut Vec<Event>) {
        self.phase = Phase::Resolving(question);
        events.push(Event::Resolve { name, purpose });
    }

    fn described(&mut self, export: Export, option: u32, infos: Infos, out: &mut Outbox) -> Outcome {
        let allocation = self.allocation_of.as_ref() == Some(&export.name);
        if option == OPT_GO && !infos.block_size && !export.has_default_sizes() {
            // Told at once, so that it can be obeyed in the next attempt.
            block_size(out, option, &export);
            let text = "this export has size constraints: ask for them (NBD_INFO_BLOCK_SIZE), and keep to them";
            option_reply(out, option, REP_ERR_BLOCK_SIZE_REQD, text.as_bytes());
            return Outcome::Stays;
        }
        describe(out, option, &export, export.flags(self.style, allocation), infos);
        option_reply(out, option, REP_ACK, b"");
        if option == OPT_GO { Outcome::Begins { export, style: self.style, allocation } } else { Outcome::Stays }
    }

    /// The answer to the option of before 2016, which says nothing of size constraints.
    fn named(&mut self, export: Export, out: &mut Outbox) -> Outcome {
        if !export.has_default_sizes() {
            self.phase = Phase::Over;
            return Outcome::Stays;
        }
        let allocation = self.allocation_of.as_ref() == Some(&export.name);
        out.put(&export.size.to_be_bytes());
        out.put(&export.flags(self.style, allocation).to_be_bytes());
        if !self.no_zeroes {
            out.put(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Outcome::Begins { export, style: self.style, allocation }
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
