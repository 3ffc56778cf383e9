//! `farshore relay`: a slow line in user space, to stand for the WAN in the demo, in tests and in benchmarks.
//!
//! Owns the control socket: one command a line, one line of answer.
//!
//! ```text
//! cut            nothing passes any more, connections stay open (as when a cable is pulled)
//! heal           what was held back arrives, then everything after it
//! reset          ends every connection
//! delay MS       one-way delay from now on
//! rate MBIT      rate of each direction from now on
//! stats          {"forward_bytes":…,"backward_bytes":…,"connections":…,"late_max_ns":…}
//! ```

pub mod line;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::arguments::Relay as Options;
use super::failure::Failure;
use line::{Relay, Settings};

/// Relays until the process is ended.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<(), Failure> {
    let settings = Settings {
        delay: Duration::from_secs_f64(options.delay_ms / 1e3),
        bytes_per_second: bytes_per_second(options.rate_mbit),
    };
    let shown = |error: std::io::Error| Failure::failed(format!("{}: {error}", options.listen));
    let relay = Relay::start(&options.listen, &options.to, settings).map_err(shown)?;
    writeln!(
        out,
        "{} relays to {}: {} ms each way, {} Mbit/s",
        relay.address(),
        options.to,
        options.delay_ms,
        options.rate_mbit
    )?;
    out.flush()?;
    let Some(path) = &options.control else {
        loop {
            std::thread::park();
        }
    };
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    if path.exists() && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    for stream in listener.incoming().flatten() {
        // One operator at a time; one that goes away in mid-sentence is no reason to stop.
        let _ = serve(&stream, &relay);
    }
    Ok(())
}

fn serve(stream: &UnixStream, relay: &Relay) -> std::io::Result<()> {
    let mut writer = stream;
    for line in BufReader::new(stream).lines() {
        writeln!(writer, "{}", obey(&line?, relay))?;
    }
    Ok(())
}

/// Carries out one command and says what came of it.
fn obey(command: &str, relay: &Relay) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = words.get(1).and_then(|word| word.parse::<f64>().ok()).filter(|n| (0.0..1e6).contains(n));
    match (words.as_slice(), number) {
        (["cut"], _) => relay.cut(),
        (["heal"], _) => relay.heal(),
        (["reset"], _) => relay.reset(),
        (["delay", _], Some(ms)) => relay.set(|s| s.delay = Duration::from_secs_f64(ms / 1e3)),
        (["rate", _], Some(mbit)) => relay.set(|s| s.bytes_per_second = bytes_per_second(mbit)),
        (["stats"], _) => {
            let stats = relay.stats();
            return serde_json::json!({
                "forward_bytes": stats.bytes[0], "backward_bytes": stats.bytes[1],
                "connections": stats.connections, "late_max_ns": stats.late_max_ns,
            })
            .to_string();
        }
        _ => return "error: expected cut, heal, reset, delay MS, rate MBIT or stats".into(),
    }
    "ok".into()
}

/// 0 stands for no limit.
fn bytes_per_second(mbit: f64) -> f64 {
    if mbit > 0.0 { mbit * 1e6 / 8.0 } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::address::Address;

    #[test]
    fn commands_are_obeyed_and_others_are_refused_in_words() {
        let scratch = std::env::temp_dir().join(format!("farshore-relay-{}.sock", std::process::id()));
        let target = UnixListener::bind(&scratch).expect("a socket");
        let settings = Settings { delay: Duration::ZERO, bytes_per_second: f64::INFINITY };
        let relay = Relay::start(&Address::Tcp("127.0.0.1:0".into()), &Address::Unix(scratch.clone()), settings)
            .expect("a relay");
        for command in ["cut", "heal", "reset", "delay 3.5", "rate 100"] {
            assert_eq!(obey(command, &relay), "ok");
        }
        assert!(obey("stats", &relay).contains("\"forward_bytes\":0"));
        for command in ["", "delay", "delay -1", "rate x", "stop"] {
            assert!(obey(command, &relay).starts_with("error"), "{command}");
        }
        drop((relay, target));
        let _ = std::fs::remove_file(scratch);
    }
}
