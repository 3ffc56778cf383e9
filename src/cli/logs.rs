//! Log lines of a role on standard error: level, group and role in every one.
//!
//! Under systemd the line starts with the `<N>` of sd-daemon(3) in place of a time, which the journal keeps itself.
//! `FARSHORE_LOG` filters as in `tracing_subscriber::EnvFilter`, for example `debug`.

use std::fmt;
use std::os::linux::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::failure::Failure;

/// Sends the log of this process to standard error.
///
/// # Errors
/// `FARSHORE_LOG` is not a filter.
pub fn start(group: &str, role: &str) -> Result<(), Failure> {
    let filter = match std::env::var("FARSHORE_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::usage(format!("FARSHORE_LOG={text}: {error}; write for example \"debug\"")))?,
        Err(_) => EnvFilter::new("info"),
    };
    let line = Line { group: group.into(), role: role.into(), journal: standard_error_is_the_journal() };
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).event_format(line).finish();
    // A second role in the same process (a promoted DR that goes on as primary) keeps the first one's lines.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| tracing::error!("internal error, please report it: {panic}")));
    Ok(())
}

/// Whether `JOURNAL_STREAM` names the very stream that standard error is (systemd.exec(5)).
fn standard_error_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stream) = std::fs::metadata("/proc/self/fd/2") else { return false };
    named == format!("{}:{}", stream.st_dev(), stream.st_ino())
}

/// Names of the spans that say which role is at work.
const ROLES: [&str; 3] = ["primary", "dr", "aux"];

struct Line {
    group: String,
    role: String,
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(out, "<{}>", priority(level))?;
        } else {
            write!(out, "{:.3} ", jiff::Timestamp::now())?;
        }
        // A DR that was promoted goes on as primary, in a span of that name.
        let span = ctx.lookup_current().map(|span| span.name());
        let role = span.filter(|name| ROLES.contains(name)).unwrap_or(&self.role);
        write!(out, "{level:<5} group={} role={role} ", self.group)?;
        ctx.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no writer panicked").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_says_level_group_and_role() {
        for (journal, start) in [(true, "<4>WARN  group=orders role=dr "), (false, "20")] {
            let kept = Kept::default();
            let writer = kept.clone();
            let line = Line { group: "orders".into(), role: "dr".into(), journal };
            let subscriber = tracing_subscriber::fmt()
                .with_writer(move || writer.clone())
                .with_ansi(false)
                .event_format(line)
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(peer = "a", "link down");
                tracing::info_span!("primary").in_scope(|| tracing::info!("serving"));
            });
            let text = String::from_utf8(kept.0.lock().expect("no writer panicked").clone()).expect("text");
            assert!(text.starts_with(start), "{text}");
            assert!(text.contains("WARN  group=orders role=dr link down peer=\"a\"\n"), "{text}");
            assert!(text.ends_with("INFO  group=orders role=primary serving\n"), "{text}");
        }
    }
}
