//! Reading TOML with the line of everything: sections, unknown keys, words with suggestions. Pure.
//!
//! Nothing here knows the keys of farshore; `config` does.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cluster::config::ConfigError;
use crate::cluster::size::{exact_size, parse_size};

/// Collects what is wrong with one file.
pub(super) struct Reader<'a> {
    text: &'a str,
    path: &'a str,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

/// A table with its dotted name.
pub(super) struct Section<'a> {
    name: String,
    table: &'a DeTable<'a>,
    line: usize,
}

/// Parses the text itself.
///
/// # Errors
/// The first place where it is not TOML.
pub(super) fn document<'a>(text: &'a str, path: &str) -> Result<Spanned<DeTable<'a>>, ConfigError> {
    DeTable::parse(text).map_err(|error| ConfigError {
        path: path.into(),
        line: error.span().map_or(0, |span| line_at(text, span.start)),
        key: String::new(),
        text: error.message().replace('\n', ", "),
    })
}

fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

/// The line of the key at the end of `keys`, or of the deepest of them that is there; 0 when none is.
pub(super) fn line_of(text: &str, keys: &[&str]) -> usize {
    let Ok(document) = DeTable::parse(text) else { return 0 };
    let mut table = document.get_ref();
    let mut line = 0;
    for key in keys {
        let Some((found, value)) = table.get_key_value(*key) else { break };
        line = line_at(text, found.span().start);
        match value.get_ref().as_table() {
            Some(inner) => table = inner,
            None => break,
        }
    }
    line
}

impl Section<'_> {
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A string, without a complaint about what is none.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key)?.get_ref().as_str()
    }

    fn dotted(&self, key: &str) -> String {
        if self.name.is_empty() { key.into() } else { format!("{}.{key}", self.name) }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, path: &'a str) -> Reader<'a> {
        Reader { text, path, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Errors and warnings, in the order of the file.
    pub(super) fn finish(mut self) -> (Vec<ConfigError>, Vec<ConfigError>) {
        self.errors.sort_by_key(|error| error.line);
        (self.errors, self.warnings)
    }

    /// Takes a table and complains of the keys that are not in `known`.
    pub(super) fn section<'t>(&mut self, table: &'t DeTable<'t>, name: &str, known: &[&str]) -> Section<'t> {
        let section = Section { name: name.into(), table, line: 0 };
        for key in table.keys() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let text = match closest(key.get_ref(), known) {
                Some(near) => format!("unknown key; did you mean `{near}`?"),
                None if known.is_empty() => "unknown key".into(),
                None => format!("unknown key; there are {}", list(known)),
            };
            let line = line_at(self.text, key.span().start);
            self.error_at(line, &section.dotted(key.get_ref()), text);
        }
        section
    }

    /// The table `key` of a section; `None` when it is absent or no table.
    pub(super) fn child<'t>(&mut self, s: &Section<'t>, key: &str, known: &[&str]) -> Option<Section<'t>> {
        let value = s.table.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let kind = value.get_ref().type_str();
            let shape = if s.name.is_empty() { format!("[{key}]") } else { format!("{key} = {{ … }}") };
            self.error(s, key, format!("is {} {kind}, but must be a table: {shape}", article(kind)));
            return None;
        };
        let name = s.dotted(key);
        let mut child = self.section(table, &name, known);
        child.line = self.line_of(value.span());
        Some(child)
    }

    /// The array of tables `key`.
    pub(super) fn children<'t>(&mut self, s: &Section<'t>, key: &str, known: &[&str]) -> Vec<Section<'t>> {
        let Some(value) = s.table.get(key) else { return Vec::new() };
        let array = value.get_ref().as_array();
        let tables = array.map(|array| array.iter().map(|v| (v.span(), v.get_ref().as_table())).collect::<Vec<_>>());
        let Some(tables) = tables.filter(|tables| tables.iter().all(|(_, table)| table.is_some())) else {
            self.error(s, key, format!("must be written [[{key}]], once for each"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (span, table) in tables {
            let Some(table) = table else { continue };
            let mut section = self.section(table, key, known);
            section.line = self.line_of(span);
            sections.push(section);
        }
        sections
    }

    fn line_of(&self, span: Range<usize>) -> usize {
        line_at(self.text, span.start)
    }

    /// The line of a key, or of its section when the key is absent.
    fn line_in(&self, s: &Section<'_>, key: &str) -> usize {
        s.table.get_key_value(key).map_or(s.line, |(key, _)| self.line_of(key.span()))
    }

    pub(super) fn error_at(&mut self, line: usize, key: &str, text: impl Into<String>) {
        self.errors.push(ConfigError { path: self.path.into(), line, key: key.into(), text: text.into() });
    }

    pub(super) fn error(&mut self, s: &Section<'_>, key: &str, text: impl Into<String>) {
        self.error_at(self.line_in(s, key), &s.dotted(key), text);
    }

    pub(super) fn warn_at(&mut self, line: usize, key: &str, text: impl Into<String>) {
        self.warnings.push(ConfigError { path: self.path.into(), line, key: key.into(), text: text.into() });
    }

    pub(super) fn warn(&mut self, s: &Section<'_>, key: &str, text: impl Into<String>) {
        let line = self.line_in(s, key);
        self.warnings.push(ConfigError { path: self.path.into(), line, key: s.dotted(key), text: text.into() });
    }

    /// As `error`, for a key of a child of the section.
    pub(super) fn error_under(&mut self, s: &Section<'_>, child: &str, key: &str, text: impl Into<String>) {
        let line = line_of(self.text, &[child, key]);
        self.error_at(line, &format!("{}.{key}", s.dotted(child)), text);
    }

    /// As `warn`, for a key of a child of the section.
    pub(super) fn warn_under(&mut self, s: &Section<'_>, child: &str, key: &str, text: impl Into<String>) {
        let (line, key) = (line_of(self.text, &[child, key]), format!("{}.{key}", s.dotted(child)));
        self.warnings.push(ConfigError { path: self.path.into(), line, key, text: text.into() });
    }

    fn mistyped(&mut self, s: &Section<'_>, key: &str, value: &DeValue<'_>, wanted: &str) {
        let kind = value.type_str();
        self.error(s, key, format!("is {} {kind}, but must be {wanted}", article(kind)));
    }

    /// A string; `None` when absent or not a string.
    pub(super) fn string<'t>(&mut self, s: &Section<'t>, key: &str) -> Option<&'t str> {
        let value = s.table.get(key)?.get_ref();
        if value.as_str().is_none() {
            self.mistyped(s, key, value, "a string in double quotes");
        }
        value.as_str()
    }

    /// A string that must be there; `what` it is is said when it is not.
    pub(super) fn required<'t>(&mut self, s: &Section<'t>, key: &str, what: &str) -> Option<&'t str> {
        if !s.has(key) {
            self.error(s, key, format!("is missing: {what}"));
        }
        self.string(s, key)
    }

    /// A list of strings, or one string for a list of one.
    pub(super) fn strings(&mut self, s: &Section<'_>, key: &str, what: &str) -> Option<Vec<String>> {
        let Some(value) = s.table.get(key) else {
            self.error(s, key, format!("is missing: {what}"));
            return None;
        };
        let value = value.get_ref();
        if let Some(one) = value.as_str() {
            return Some(vec![one.into()]);
        }
        let all: Option<Vec<String>> =
            value.as_array().and_then(|array| array.iter().map(|v| v.get_ref().as_str().map(String::from)).collect());
        if all.is_none() {
            self.mistyped(s, key, value, "a list of strings");
        }
        all
    }

    /// One of a few words, or the default of its type.
    pub(super) fn word<T: Copy + Default>(&mut self, s: &Section<'_>, key: &str, words: &[(&str, T)]) -> T {
        let Some(text) = self.string(s, key) else { return T::default() };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = closest(text, &known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        self.error(s, key, format!("{text:?} is none of {}{hint}", list(&known)));
        T::default()
    }

    /// A whole number within bounds, or `default`.
    pub(super) fn integer(&mut self, s: &Section<'_>, key: &str, bounds: RangeInclusive<u64>, default: u64) -> u64 {
        let Some(value) = s.table.get(key) else { return default };
        let value = value.get_ref();
        let Some(integer) = value.as_integer() else {
            self.mistyped(s, key, value, "a whole number");
            return default;
        };
        match i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| u64::try_from(n).ok()) {
            Some(number) if bounds.contains(&number) => number,
            _ => {
                let text = format!("{} is not between {} and {}", integer.as_str(), bounds.start(), bounds.end());
                self.error(s, key, text);
                default
            }
        }
    }

    /// A size within bounds, in words or as a number of bytes; `default` when absent, `None` when unusable or
    /// (without a default) missing.
    pub(super) fn size(
        &mut self,
        s: &Section<'_>,
        key: &str,
        bounds: RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Option<u64> {
        let Some(value) = s.table.get(key) else {
            if default.is_none() {
                self.error(s, key, "is missing: a size, for example \"1GiB\"");
            }
            return default;
        };
        let parsed = match value.get_ref() {
            DeValue::String(text) => parse_size(text),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .and_then(|n| u64::try_from(n).ok())
                .ok_or_else(|| format!("{} is not a number of bytes", integer.as_str())),
            other => {
                self.mistyped(s, key, other, "a size, for example \"1GiB\"");
                return None;
            }
        };
        match parsed {
            Ok(bytes) if bounds.contains(&bytes) => Some(bytes),
            Ok(bytes) if bytes < *bounds.start() => {
                let least = exact_size(*bounds.start());
                self.error(s, key, format!("{} is too small: at least {least:?}", exact_size(bytes)));
                None
            }
            Ok(bytes) => {
                let most = exact_size(*bounds.end());
                self.error(s, key, format!("{} is too large: at most {most:?}", exact_size(bytes)));
                None
            }
            Err(text) => {
                self.error(s, key, text);
                None
            }
        }
    }
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The known word that `text` was probably meant to be.
fn closest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    let best = known.iter().map(|word| (distance(text, word), *word)).min()?;
    (best.0 <= 1 + best.1.len() / 4).then_some(best.1)
}

/// Edit distance in which exchanging two neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_suggested_and_a_far_one_is_not() {
        let known = ["listen", "control", "backing"];
        for (text, near) in [
            ("lsten", Some("listen")),
            ("lisetn", Some("listen")),
            ("controll", Some("control")),
            ("bakcing", Some("backing")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(closest(text, &known), near, "{text}");
        }
    }

    #[test]
    fn distances_are_those_of_the_textbook() {
        for (a, b, edits) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("ab", "ba", 1), ("abc", "abc", 0)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
