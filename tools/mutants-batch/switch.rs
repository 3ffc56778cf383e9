//! Added to the copy of the sources that is built, as `crate::mutant_switch`: which mutant this run is.
//!
//! `MUTANT=17` runs mutant 17. `MUTANT_REACHED=FILE` runs none, and adds a line to FILE for each mutant whose place a
//! thread comes by for the first time: its number and the name of the thread, which is that of the test.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// No mutant has these numbers.
const NONE: u32 = u32::MAX - 2;
const RECORD: u32 = u32::MAX - 1;
const UNKNOWN: u32 = u32::MAX;

static NOW: AtomicU32 = AtomicU32::new(UNKNOWN);
static REACHED: Mutex<Option<File>> = Mutex::new(None);

thread_local! {
    /// A bit for each.
    static MET: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Whether this run is that of mutant `number`.
#[inline]
pub fn on(number: u32) -> bool {
    let now = NOW.load(Ordering::Relaxed);
    now == number || (now > NONE && slowly(now, number))
}

#[cold]
fn slowly(mut now: u32, number: u32) -> bool {
    if now == UNKNOWN {
        now = chosen();
        NOW.store(now, Ordering::Relaxed);
    }
    if now == RECORD {
        record(number);
    }
    now == number
}

fn chosen() -> u32 {
    if let Some(path) = std::env::var_os("MUTANT_REACHED") {
        let file = File::options().create(true).append(true).open(path).expect("MUTANT_REACHED can be written");
        *REACHED.lock().expect("nothing panics while it is held") = Some(file);
        return RECORD;
    }
    std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(NONE)
}

fn record(number: u32) {
    // A thread that ends has nowhere to remember it any more.
    let first = MET.try_with(|met| met_first(&mut met.borrow_mut(), number)).unwrap_or(true);
    if first && let Some(file) = &mut *REACHED.lock().expect("nothing panics while it is held") {
        let thread = std::thread::current();
        let line = format!("{number} {}\n", thread.name().unwrap_or("?"));
        file.write_all(line.as_bytes()).expect("MUTANT_REACHED can be written");
    }
}

fn met_first(met: &mut Vec<u64>, number: u32) -> bool {
    let (word, bit) = (number as usize / 64, 1 << (number % 64));
    if met.len() <= word {
        met.resize(word + 1, 0);
    }
    let before = met[word];
    met[word] |= bit;
    before & bit == 0
}
