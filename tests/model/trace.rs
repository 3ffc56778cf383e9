//! How a state came to be, and what it prints as: the first for a reader, the second to tell states apart.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Default;

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

/// What is printed is hashed.
pub struct Printed<'a>(pub &'a mut Xxh3Default);

impl std::fmt::Write for Printed<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}
