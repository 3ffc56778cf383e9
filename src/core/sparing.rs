//! Log lines that a stranger can cause: one in a while, and how many were left out.

/// Lets one through each time the pause is over.
#[derive(Clone, Copy, Debug)]
pub struct Sparing {
    pause_ns: u64,
    next_ns: u64,
    left_out: u64,
}

impl Sparing {
    #[must_use]
    pub fn new(pause_ns: u64) -> Sparing {
        Sparing { pause_ns, next_ns: 0, left_out: 0 }
    }

    /// Whether to speak at `now_ns` (monotonic), and how often there was silence before.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        if now_ns < self.next_ns {
            self.left_out += 1;
            return None;
        }
        self.next_ns = now_ns.saturating_add(self.pause_ns);
        Some(std::mem::take(&mut self.left_out))
    }

    /// The end of a line for what `due` gave.
    #[must_use]
    pub fn and_more(left_out: u64) -> String {
        if left_out == 0 { String::new() } else { format!(" (and {left_out} more like it since the last such line)") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_pause_and_none_of_it_is_forgotten() {
        let mut sparing = Sparing::new(10);
        assert_eq!(sparing.due(5), Some(0));
        assert_eq!([sparing.due(6), sparing.due(14)], [None, None]);
        assert_eq!(sparing.due(15), Some(2));
        assert_eq!(sparing.due(100), Some(0));
        assert!(Sparing::and_more(0).is_empty() && Sparing::and_more(2).contains("2 more"));
    }
}
