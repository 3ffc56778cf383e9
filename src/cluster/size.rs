//! Sizes as operators write them: `"1GiB"`, `"500MB"`, `4096`. Pure.
//!
//! One letter alone (`"1G"`) is refused, because half of the tools mean 1000³ by it and the other half 1024³.

/// Factor of each unit. Binary units end in `iB`, decimal ones in `B`.
const UNITS: [(&str, u64); 14] = [
    ("EiB", 1 << 60),
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("kiB", 1 << 10),
    ("EB", 1_000_000_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Bytes of a size in words.
///
/// # Errors
/// A text for the operator that says what is wrong and how to write it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() {
        return Err(format!("{text:?} is not a size; write for example \"1GiB\""));
    }
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is more than can be counted in bytes"))?;
    let factor = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(unknown_unit(text, &number.to_string(), unit)),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is more than can be counted in bytes"))
}

fn unknown_unit(text: &str, number: &str, unit: &str) -> String {
    if let Some(letter) = unit.chars().next().map(|c| c.to_ascii_uppercase())
        && "KMGTPE".contains(letter)
        && unit.len() <= 3
    {
        let decimal = if letter == 'K' { 'k' } else { letter };
        return format!("{text:?} is ambiguous; write \"{number}{letter}iB\" (1024) or \"{number}{decimal}B\" (1000)");
    }
    if unit.starts_with('.') {
        return format!("{text:?} has a fraction; write whole units, for example \"1536MiB\" for 1.5 GiB");
    }
    format!("{text:?} has an unknown unit; use B, KiB, MiB, GiB, TiB, PiB, EiB, kB, MB, GB, TB, PB or EB")
}

/// The shortest exact way to write `bytes` in a configuration: `1GiB`, `1000B`.
#[must_use]
pub fn exact_size(bytes: u64) -> String {
    for (unit, factor) in &UNITS[..6] {
        if bytes != 0 && bytes.is_multiple_of(*factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// A size for people to read, three digits or so: `1.5 GiB`, `37 KiB`, `812 B`.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    for (unit, factor) in &UNITS[..6] {
        if bytes >= *factor {
            // Lossy on purpose: shown with at most one decimal.
            let value = bytes as f64 / *factor as f64;
            return if value >= 99.95 || bytes.is_multiple_of(*factor) {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("1KiB", 1024),
            ("256MiB", 256 << 20),
            ("1GiB", 1 << 30),
            (" 8 GiB ", 8 << 30),
            ("2TiB", 2 << 40),
            ("3PiB", 3 << 50),
            ("4EiB", 4 << 60),
            ("1EB", 1_000_000_000_000_000_000),
            ("1GB", 1_000_000_000),
            ("1kB", 1000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_to_write() {
        for (text, part) in [
            ("1G", "\"1GiB\" (1024) or \"1GB\" (1000)"),
            ("10k", "\"10KiB\" (1024) or \"10kB\""),
            ("1gib", "\"1GiB\""),
            ("", "is not a size"),
            ("GiB", "is not a size"),
            ("-1GiB", "is not a size"),
            ("1.5GiB", "1536MiB"),
            ("3 parsecs", "unknown unit"),
            ("99999999999999999999", "more than can be counted"),
            ("99999999999PiB", "more than can be counted"),
        ] {
            let error = parse_size(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn people_see_three_digits() {
        for (bytes, text) in [(0, "0 B"), (812, "812 B"), (1024, "1 KiB"), (36864, "36 KiB"), (1610612736, "1.5 GiB")] {
            assert_eq!(human_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn an_exact_size_reads_back(bytes: u64) {
            prop_assert_eq!(parse_size(&exact_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_size(&text);
        }
    }
}
