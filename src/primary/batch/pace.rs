//! How fast a batch gets on, and so how long the rest takes. Pure.
//!
//! Reckoned over what has crossed of late: neither what came before a standstill counts, nor the standstill itself.

/// Over how long a rate is reckoned: between this and twice as long, nanoseconds.
const WINDOW_NS: u64 = 10_000_000_000;
/// Without a word for so long it stands still, nanoseconds; over a link so slow that words are further apart, longer.
const STILL_NS: u64 = 5_000_000_000;
/// Words further apart than that are not those of a slow link, nanoseconds.
const APART_NS_MAX: u64 = 60_000_000_000;

/// How many bytes had crossed, and when.
type Mark = (u64, u64);

/// The pace of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The rate is reckoned from here on; the next window begins at the second.
    from: Mark,
    next: Mark,
    last: Mark,
    /// How long it mostly takes from one word to the next, at most.
    apart_ns: u64,
}

impl Pace {
    /// Begins to count; nothing has crossed yet.
    #[must_use]
    pub fn from(now_ns: u64) -> Pace {
        Pace { from: (now_ns, 0), next: (now_ns, 0), last: (now_ns, 0), apart_ns: 0 }
    }

    /// So many bytes have crossed in all.
    pub fn crossed(&mut self, now_ns: u64, bytes: u64) {
        if self.stands_still(now_ns) {
            // What took so long is not known to have taken any of that time.
            (self.from, self.next) = ((now_ns, bytes), (now_ns, bytes));
        } else if now_ns - self.next.0 >= WINDOW_NS {
            (self.from, self.next) = (self.next, (now_ns, bytes));
        }
        let apart_ns = now_ns.saturating_sub(self.last.0).min(APART_NS_MAX);
        if apart_ns > 0 && self.last.1 > 0 {
            self.apart_ns = apart_ns.max(self.apart_ns / 8 * 7);
        }
        self.last = (now_ns, bytes);
    }

    /// How long `bytes` more take, seconds; `None` where nothing crosses, or not enough has yet.
    #[must_use]
    pub fn seconds_for(&self, now_ns: u64, bytes: u64) -> Option<f64> {
        let crossed = self.last.1.saturating_sub(self.from.1);
        let seconds = now_ns.saturating_sub(self.from.0) as f64 / 1e9;
        (crossed > 0 && !self.stands_still(now_ns)).then(|| bytes as f64 * seconds / crossed as f64)
    }

    fn stands_still(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.last.0) >= STILL_NS.max(4 * self.apart_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_rest_takes_as_long_as_what_crosses_of_late() {
        let mut pace = Pace::from(0);
        assert_eq!(pace.seconds_for(SECOND, 100), None, "nothing has crossed");
        (1..=60).for_each(|second| pace.crossed(second * SECOND, second * 100));
        assert_eq!(pace.seconds_for(60 * SECOND, 1000), Some(10.0));
        // Ten times as fast from here on.
        (61..=90).for_each(|second| pace.crossed(second * SECOND, 6000 + (second - 60) * 1000));
        assert_eq!(pace.seconds_for(90 * SECOND, 1000), Some(1.0));
    }

    #[test]
    fn of_what_stands_still_nobody_knows_how_long_it_takes() {
        let mut pace = Pace::from(0);
        (1..=20).for_each(|second| pace.crossed(second * SECOND, second * 100));
        assert!(pace.seconds_for(20 * SECOND + STILL_NS - 1, 100).is_some());
        assert_eq!(pace.seconds_for(20 * SECOND + STILL_NS, 100), None);
        assert_eq!(pace.seconds_for(3600 * SECOND, 100), None);
        // An hour later it goes on: neither the hour counts nor what was before.
        pace.crossed(3600 * SECOND, 2500);
        assert_eq!(pace.seconds_for(3600 * SECOND, 100), None, "one word is no rate");
        pace.crossed(3601 * SECOND, 2510);
        assert_eq!(pace.seconds_for(3601 * SECOND, 100), Some(10.0));
    }

    #[test]
    fn a_slow_link_does_not_stand_still_between_two_words() {
        let mut pace = Pace::from(0);
        (1..=5).for_each(|word| pace.crossed(word * 8 * SECOND, word * 800));
        assert_eq!(pace.seconds_for(40 * SECOND, 1000), Some(10.0));
        assert!(pace.seconds_for(47 * SECOND, 1000).is_some(), "the next word is due soon");
        assert_eq!(pace.seconds_for(73 * SECOND, 1000), None);
    }
}
