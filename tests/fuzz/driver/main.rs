//! The fuzzer: one program for all targets of `tests/fuzz`, `FUZZ_TARGET` names the one to run.
//!
//! Owns the way from libFuzzer to a target; `FUZZ_CORPUS`, when set, is a directory that is filled with the kept
//! inputs before the run. Built and called by `tools/fuzz`.
#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8], &mut targets::Reached)> = OnceLock::new();

fn start() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some((_, target, _)) = targets::TARGETS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = targets::TARGETS.iter().map(|(known, ..)| *known).collect();
        eprintln!("no target {name:?}; there are: {}", known.join(" "));
        std::process::exit(2);
    };
    TARGET.get_or_init(|| *target);
    if let Ok(directory) = std::env::var("FUZZ_CORPUS") {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../corpus/{name}.hex"));
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        for (index, line) in text.lines().enumerate() {
            let bytes: Vec<u8> =
                (0..line.len()).step_by(2).filter_map(|at| u8::from_str_radix(&line[at..at + 2], 16).ok()).collect();
            let path = Path::new(&directory).join(format!("kept-{index}"));
            std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fuzz_target!(init: start(), |data: &[u8]| {
    TARGET.get().expect("set by start")(data, &mut targets::Reached::default());
});
