//! Every byte from outside is hostile: each reader of such bytes, against inputs that coverage-guided fuzzing found.
//!
//! Owns the replay of the kept inputs (`corpus/TARGET.hex`, one input a line) and a short run of random mutations of
//! them. The targets are in `targets`, shared with the fuzzer itself (`driver`, run by `tools/fuzz`). What once failed
//! stays in the corpus.

mod targets;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use targets::{Reached, TARGETS};

/// How long each target is run on mutated inputs; `FUZZ_MILLISECONDS` says otherwise.
const MUTATE: Duration = Duration::from_millis(400);
/// Longest input that mutation makes, bytes.
const INPUT_BYTES_MAX: usize = 2048;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/corpus/{target}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digit = |line: &str, at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("hex digits");
    text.lines().map(|line| (0..line.len()).step_by(2).map(|at| digit(line, at)).collect()).collect()
}

/// A small generator: the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }
}

/// One to four changes: of a bit, a byte, a run, or a splice with another input.
fn mutate(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                let to = at + random.below(bytes.len() - at + 1);
                bytes.drain(at..to);
            }
            5 => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len() + 1);
                let to = from + random.below(other.len() - from + 1);
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let to = (at + random.below(16)).min(bytes.len());
                let run = bytes[at..to].to_vec();
                bytes.splice(at..at, run);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Runs one input and says which one it was if it fails.
fn run(name: &str, target: fn(&[u8], &mut Reached), input: &[u8], reached: &mut Reached) {
    let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| target(input, reached))) {
        eprintln!("target {name} fails with input {hex}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_fuzzing_found_is_still_handled() {
    let mut lacking = Vec::new();
    for (name, target, wanted) in TARGETS {
        let (inputs, mut reached) = (corpus(name), Reached::default());
        assert!(!inputs.is_empty(), "{name} has no corpus");
        inputs.iter().for_each(|input| run(name, target, input, &mut reached));
        run(name, target, &[], &mut reached);
        println!("{name}: {} inputs, {reached:?}", inputs.len());
        lacking.extend(reached.lacks(wanted).into_iter().map(|text| format!("{name}: {text}")));
    }
    // Bytes of a version that is not the one in force would all be refused, and nothing behind that be looked at.
    assert!(lacking.is_empty(), "the kept inputs do not reach what they are kept for\n  {}", lacking.join("\n  "));
}

#[test]
fn a_target_that_refuses_everything_is_noticed() {
    for (name, _, wanted) in TARGETS {
        assert_eq!(Reached::default().lacks(wanted).len(), wanted.len(), "{name}: each is wanted more than never");
        assert!(!wanted.is_empty(), "{name} may refuse everything");
    }
}

/// Mutations of a run that is not asked for by `FUZZ_MILLISECONDS`: the same ones on every machine that is fast enough.
const MUTATIONS_MAX: u64 = 2_000;

#[test]
fn mutations_of_it_are_handled() {
    let milliseconds = std::env::var("FUZZ_MILLISECONDS").ok().and_then(|text| text.parse().ok());
    let length = milliseconds.map_or(MUTATE, Duration::from_millis);
    for (name, target, _) in TARGETS {
        let (inputs, mut reached) = (corpus(name), Reached::default());
        let (mut random, mut runs, start) = (Random(0x005e_ed0f_fa25_u64), 0u64, Instant::now());
        while start.elapsed() < length && (milliseconds.is_some() || runs < MUTATIONS_MAX) {
            run(name, target, &mutate(&mut random, &inputs), &mut reached);
            runs += 1;
        }
        println!("{name}: {runs} mutated inputs");
    }
}
