//! The command line: one file a verb. Owns arguments, what is printed, and exit statuses; decides nothing about data.
//!
//! ```text
//!   main ──► parse ──► aux, dr, primary   run a role in the foreground
//!                  ├─► status, promote, resize, verify, recopy   ask a running role over its control socket
//!                  ├─► init, certs, check a configuration and its certificates, before anything runs
//!                  ├─► inspect, loss      what is on disk, read-only
//!                  ├─► attach, detach     a device of the kernel
//!                  └─► demo, relay        the whole story on one machine, and the slow line in it
//! ```
//!
//! Reports go to standard output, everything else to standard error.

mod answer;
mod arguments;
mod attach;
pub mod certs;
mod check;
mod client;
pub mod demo;
mod failure;
mod files;
mod hosts;
mod init;
mod inspect;
mod logs;
mod loss;
mod promote;
mod recopy;
pub mod relay;
mod resize;
mod role;
mod status;
mod strangers;
mod verify;
mod view;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Verb};
use failure::Failure;

/// Parses the command line, runs its verb, prints what went wrong, and says how to exit.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let result = dispatch(arguments.verb, &mut out).and_then(|()| out.flush().map_err(Failure::from));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before the failure belongs to the report.
            let _ = out.flush();
            if !failure.text.is_empty() {
                eprintln!("farshore: {}", failure.text);
            }
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(verb: Verb, out: &mut dyn Write) -> Result<(), Failure> {
    match verb {
        Verb::Init(options) => init::run(&options, out),
        Verb::Certs(options) => certs::run(&options, out),
        Verb::Check(options) => check::run(&options, out),
        Verb::Aux(options) => role::aux(&options),
        Verb::Dr(options) => role::dr(&options),
        Verb::Primary(options) => role::primary(&options),
        Verb::Status(options) => status::run(&options, out),
        Verb::Promote(options) => promote::run(&options, out),
        Verb::Resize(options) => resize::run(&options, out),
        Verb::Verify(options) => verify::run(&options, out),
        Verb::Recopy(options) => recopy::run(&options, out),
        Verb::Loss(options) => loss::run(&options, out),
        Verb::Inspect(options) => inspect::run(&options, out),
        Verb::Demo(options) => demo::run(&options, out),
        Verb::Relay(options) => relay::run(&options, out),
        Verb::Attach(options) => attach::attach(&options, out),
        Verb::Detach(options) => attach::detach(&options, out),
    }
}
