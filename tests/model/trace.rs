//! How a state came to be, and what it prints as: the first for a reader, the second to tell states apart.

use std::collections::HashMap;
use std::sync::Arc;

use crate::world::IDS;

/// How a state came to be, one line for each step; copies share what they have in common.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<(String, Trace)>>);

impl Trace {
    pub fn push(&mut self, line: String) {
        let before = std::mem::take(self);
        self.0 = Some(Arc::new((line, before)));
    }

    /// The last lines, the oldest first.
    pub fn last(&self, count: usize) -> Vec<String> {
        let mut at = self;
        let mut lines: Vec<String> = std::iter::from_fn(|| {
            let (line, before) = &**at.0.as_ref()?;
            at = before;
            Some(line.clone())
        })
        .take(count)
        .collect();
        lines.reverse();
        lines
    }
}

/// Text to be hashed, in which numbers of [`IDS`] are told by the how manieth of them they are.
#[derive(Default)]
pub struct Printed {
    pub text: Vec<u8>,
    met: HashMap<u64, usize>,
}

impl std::fmt::Write for Printed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // A number is printed at once.
        let digits = text.len() == 13 && text.bytes().all(|it| it.is_ascii_digit());
        match digits.then(|| text.parse().ok()).flatten().filter(|id| IDS.contains(id)) {
            Some(id) => {
                let next = self.met.len();
                let place = *self.met.entry(id).or_insert(next);
                self.text.extend_from_slice(&place.to_le_bytes());
            }
            None => self.text.extend_from_slice(text.as_bytes()),
        }
        Ok(())
    }
}
