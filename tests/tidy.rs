//! The rules of the house, as tests: which room may know which, what is pure, how a file looks.
//!
//! A rule that is only written down is forgotten; each of these fails with the file and line that breaks it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longest file, lines.
const FILE_LINES_MAX: usize = 800;

/// A file of the repository.
struct Source {
    /// Relative to the repository, with forward slashes.
    path: String,
    text: String,
    /// No code in it but that of tests.
    test: bool,
}

impl Source {
    /// `primary` for `src/primary/machine.rs`, `main` for `src/main.rs`.
    fn room(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split(['/', '.']).next().unwrap_or(inside)
    }

    /// `machine` for `src/primary/machine.rs`.
    fn stem(&self) -> &str {
        Path::new(&self.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or("")
    }

    /// Paths, without extension, of the modules that it declares for tests only.
    fn test_modules(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let inside = path.strip_suffix("/mod").or(path.strip_suffix("/lib")).unwrap_or(path);
        let lines: Vec<&str> = self.text.lines().collect();
        let declared = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]");
        let name = |pair: &[&str]| Some(pair[1].trim().strip_prefix("mod ")?.strip_suffix(';')?.to_owned());
        declared.filter_map(name).map(|name| format!("{inside}/{name}")).collect()
    }

    /// Lines of code with their numbers: without comments, and without what stands behind `#[cfg(test)] mod … {`.
    fn code(&self) -> Vec<(usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
        let lines = &lines[..tests.unwrap_or(lines.len())];
        lines
            .iter()
            .enumerate()
            .map(|(at, line)| (at + 1, without_comment(line)))
            .filter(|(_, line)| !line.is_empty())
            .collect()
    }
}

/// Good enough for this repository: no string of it contains two slashes outside a URI.
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//") {
        let at = from + at;
        if !line[..at].ends_with(':') {
            return line[..at].trim();
        }
        from = at + 2;
    }
    line.trim()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `directory` whose name `wanted` likes.
fn files(directory: &str, wanted: impl Fn(&Path) -> bool + Copy) -> Vec<Source> {
    fn walk(directory: &Path, wanted: impl Fn(&Path) -> bool + Copy, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                walk(&path, wanted, found);
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(directory), wanted, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        let path = path.strip_prefix(root()).expect("found under it").to_string_lossy().replace('\\', "/");
        Some(Source { path, text, test: false })
    };
    found.into_iter().filter_map(read).collect()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn sources() -> Vec<Source> {
    let mut found = files("src", is_rust);
    assert!(found.len() > 30, "the sources are where they are expected");
    let tests: Vec<String> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        let path = source.path.trim_end_matches(".rs");
        source.test =
            path.ends_with("_tests") || tests.iter().any(|test| path == test || path.starts_with(&format!("{test}/")));
    }
    found
}

/// Fails with everything that breaks one rule.
fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

/// Whether `word` stands in `line` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// Planted bugs, which no binary that is shipped has: the choice of one is kept for each thread.
const PLANTED: &str = "src/core/planted.rs";

/// The files that carry out effects: the only ones with a clock, a socket, a file or a log.
fn is_shell(source: &Source) -> bool {
    matches!(source.room(), "io" | "cli" | "main")
        || ["daemon", "server", "region", "backing"].contains(&source.stem())
        || source.path.contains("/daemon/")
}

#[test]
fn pure_files_have_no_clock_randomness_socket_file_lock_or_log() {
    let forbidden = [
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "std::os",
        "UnixStream",
        "Instant",
        "SystemTime",
        "Mutex",
        "RwLock",
        "OnceLock",
        "LazyLock",
        "atomic",
        "thread_local",
        "rand",
        "getrandom",
        "tracing",
        "println",
        "eprintln",
        "nix",
        "libc",
        "io_uring",
        "crate::io",
    ];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !is_shell(source) && !source.test && source.path != PLANTED) {
        for (line, code) in source.code() {
            for word in forbidden.iter().filter(|word| has_word(code, word)) {
                broken.push(format!("{}:{line}: {word}: {code}", source.path));
            }
        }
    }
    assert_none(
        "time and input go in, effects come out; only daemon, server, region, backing, io and cli touch the world",
        &broken,
    );
}

/// Rooms that each room may know. `limits` is known to all.
const KNOWS: [(&str, &[&str]); 9] = [
    ("core", &[]),
    ("format", &["core"]),
    ("io", &["core"]),
    ("cluster", &["core", "format"]),
    ("nbd", &["core", "io"]),
    ("auxiliary", &["core", "format", "cluster", "nbd", "io"]),
    ("primary", &["core", "format", "cluster", "nbd", "io"]),
    ("dr", &["core", "format", "cluster", "nbd", "io"]),
    ("cli", &["core", "format", "cluster", "nbd", "io", "auxiliary", "primary", "dr"]),
];

/// The rooms that a line names: `core` in `crate::core::ids`, both in `crate::{core, format::wire}`.
fn rooms_named(code: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(list) => rooms.extend(list.split(',').map(word).filter(|room| !room.is_empty())),
            None => rooms.push(word(rest)),
        }
    }
    rooms
}

#[test]
fn dependencies_point_down_never_sideways_never_up() {
    let mut broken = Vec::new();
    for source in sources() {
        let room = source.room().to_owned();
        let Some((_, allowed)) = KNOWS.iter().find(|(name, _)| *name == room) else {
            let known = ["lib", "main", "limits"].contains(&room.as_str());
            assert!(known, "{}: a room that tests/tidy.rs does not know; decide what it may know", source.path);
            continue;
        };
        for (line, code) in source.code() {
            for other in rooms_named(code) {
                let fine = other == room || other == "limits" || allowed.contains(&other.as_str());
                // Test code in a room may borrow from anywhere.
                if !fine && !source.test {
                    broken.push(format!("{}:{line}: {room} must not know {other}: {code}", source.path));
                }
            }
        }
    }
    assert_none("roles meet in format::wire; core knows nothing above it", &broken);
}

#[test]
fn unsafe_code_is_only_in_io() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.room() != "io") {
        for (line, code) in source.code() {
            if has_word(code, "unsafe") || code.contains("allow(unsafe_code)") {
                broken.push(format!("{}:{line}: {code}", source.path));
            }
        }
    }
    assert_none("unsafe is for src/io", &broken);
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.room() == "io") {
        let lines: Vec<&str> = source.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            if !has_word(without_comment(line), "unsafe") || line.contains("unsafe_code") || line.contains("unsafe fn")
            {
                continue;
            }
            let above = lines[at.saturating_sub(8)..=at].iter().any(|line| line.contains("SAFETY"));
            if !above {
                broken.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    assert_none("a SAFETY comment names the invariant and who upholds it", &broken);
}

#[test]
fn every_file_says_what_it_owns_and_stays_short() {
    let mut broken = Vec::new();
    for source in sources()
        .iter()
        .chain(&files("tests", is_rust))
        .chain(&files("benches", is_rust))
        .chain(&files("tools", is_rust))
    {
        if !source.text.starts_with("//! ") {
            broken.push(format!("{}: does not open with what it owns (`//! …`)", source.path));
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path));
        }
    }
    assert_none("a file opens with its purpose and can be read in one sitting", &broken);
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here so that this file does not find itself.
    let forbidden =
        [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["//! Being ", "written"], ["unimplemented", "!"], ["to", "do!"]];
    let mut broken = Vec::new();
    for source in sources().iter().chain(&files("tests", is_rust)).chain(&scripts()) {
        for (at, line) in source.text.lines().enumerate() {
            for [a, b] in forbidden {
                if line.contains(&format!("{a}{b}")) {
                    broken.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
                }
            }
        }
    }
    assert_none("what is not done is an issue, not a comment", &broken);
}

#[test]
fn what_comes_from_outside_is_not_unwrapped() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.test) {
        for (line, code) in source.code() {
            if code.contains(".unwrap()") || code.contains(".expect(\"\")") {
                broken.push(format!("{}:{line}: {code}", source.path));
            }
        }
    }
    assert_none("a Result is handled, or `expect` says why it cannot fail", &broken);
}

/// Everything that is text and ours, beside the sources.
fn scripts() -> Vec<Source> {
    // Cargo.lock is cargo's.
    let mut found = files("tools", |path| !path.ends_with("Cargo.lock"));
    found.extend(files(".ci", |_| true));
    found.extend(files("systemd", |_| true));
    found
}

#[test]
fn no_path_of_a_machine_and_no_registry_is_named() {
    let forbidden = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
        ["/tmp/", "h/"],
        ["crates", ".io"],
        ["pypi", ".org"],
        ["deb.", "debian.org"],
    ];
    let mut all = sources();
    all.extend(files("tests", is_rust));
    all.extend(files("benches", is_rust));
    all.extend(scripts());
    for name in ["README.md", "CHANGELOG.md", "Cargo.toml", "deny.toml", "clippy.toml", "rustfmt.toml"] {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        all.push(Source { path: name.into(), text, test: false });
    }
    let mut broken = Vec::new();
    for source in &all {
        for (at, line) in source.text.lines().enumerate() {
            for [a, b] in forbidden {
                if line.contains(&format!("{a}{b}")) {
                    broken.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
                }
            }
        }
    }
    assert_none("the repository stands on its own", &broken);
}

#[test]
fn every_invariant_is_named_where_it_is_upheld() {
    let sources = sources();
    for invariant in 1..=9 {
        let word = format!("I{invariant}");
        let named = sources.iter().any(|source| source.room() != "lib" && has_word(&source.text, &word));
        assert!(named, "no source names the invariant {word}");
    }
}

#[test]
fn every_dependency_has_its_reason_in_the_readme() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let mut names = BTreeSet::new();
    for section in ["dependencies", "dev-dependencies"] {
        names.extend(manifest[section].as_table().expect("a table").keys().cloned());
    }
    for name in ["nbd", "io-uring", "tokio-uring", "memmap2", "crc32fast", "nix", "bincode", "clap"] {
        names.insert(name.into());
    }
    let missing: Vec<String> = names.into_iter().filter(|name| !readme.contains(&format!("| `{name}` |"))).collect();
    assert_none("the table of dependencies has a row for each, and for each that was asked for", &missing);
}

#[test]
fn the_readme_names_the_least_sizes_that_a_configuration_may_say() {
    use farshore::limits::*;
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let mib = |bytes: u64| format!("`{}MiB`", bytes >> 20);
    let missing: Vec<String> = [
        ("`primary.fifo`", format!("`memory` at least {}", mib(FIFO_MEMORY_BYTES_MIN))),
        ("`primary.fifo`", format!("`disk` at least {}", mib(FIFO_DISK_BYTES_MIN))),
        ("`aux.slots`", format!("at least {TABLE_SLOTS_MIN};")),
        ("`aux.payload`", format!("at least {}", mib(AUX_PAYLOAD_BYTES_MIN))),
        ("`dr.streams`", format!("1 to {STREAMS_MAX};")),
        ("`dr.journal`, `dr.spool`", format!("at least {} and {}", mib(JOURNAL_BYTES_MIN), mib(SPOOL_BYTES_MIN))),
    ]
    .into_iter()
    .filter(|(key, words)| !readme.lines().any(|line| line.starts_with(&format!("| {key} |")) && line.contains(words)))
    .map(|(key, words)| format!("{key}: {words}"))
    .collect();
    assert_none("the README names each least size in the row of its key", &missing);
}

/// Whether an SPDX expression can be satisfied by the allowed licences; `/` is the `OR` of old manifests.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    any(&mut words.as_slice(), allowed)
}

/// `all OR all …`
fn any(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut fine = all(words, allowed);
    while words.first() == Some(&"OR") {
        *words = &words[1..];
        fine |= all(words, allowed);
    }
    fine
}

/// `one AND one …`, where one is a licence or something in brackets.
fn all(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut fine = true;
    loop {
        let Some((first, rest)) = words.split_first() else { return false };
        *words = rest;
        if *first == "(" {
            fine &= any(words, allowed);
            assert_eq!(words.first(), Some(&")"), "brackets are closed");
            *words = &words[1..];
        } else {
            fine &= allowed.contains(*first);
        }
        if words.first() != Some(&"AND") {
            return fine;
        }
        *words = &words[1..];
    }
}

#[test]
fn licence_expressions_are_read_as_they_are_meant() {
    let allowed: BTreeSet<String> = ["A", "B"].into_iter().map(String::from).collect();
    for (text, fine) in [
        ("A", true),
        ("C", false),
        ("C OR A", true),
        ("C/A", true),
        ("A AND C", false),
        ("A AND B", true),
        ("A AND (C OR B) AND (C OR D OR A)", true),
        ("A AND (C OR D)", false),
        ("(A OR C) AND B", true),
        ("C AND A OR B", true),
    ] {
        assert_eq!(satisfied(text, &allowed), fine, "{text}");
    }
}

#[test]
fn licences_and_duplicates_are_those_that_deny_toml_allows() {
    let rules: toml::Table =
        std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml").parse().expect("TOML");
    let words = |list: &toml::Value| -> BTreeSet<String> {
        let word = |item: &toml::Value| item.get("name").unwrap_or(item).as_str().map(String::from);
        list.as_array().into_iter().flatten().filter_map(word).collect()
    };
    let (allowed, skipped) = (words(&rules["licenses"]["allow"]), words(&rules["bans"]["skip"]));
    let denied = words(&rules["bans"]["deny"]);
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // Not `metadata`, which names packages that only a feature nobody asks for would need; and without the features that
    // this build does not have, whose packages may not be on this machine.
    let features = if cfg!(feature = "psk") { "planted,psk" } else { "planted" };
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--features", features, "--no-dedupe", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--format", "{p}|{l}", "--target", &target])
        .current_dir(root())
        .output()
        .expect("cargo runs, for it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: BTreeSet<(&str, &str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('|'))
        .filter_map(|(package, licence)| {
            let mut words = package.split(' ');
            Some((words.next()?, words.next()?, licence))
        })
        .collect();
    assert!(packages.len() > 30, "the packages are listed");
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, version, licence) in packages {
        if !satisfied(licence, &allowed) {
            broken.push(format!("{name} {version}: licence {licence}"));
        }
        if !seen.insert(name) && !skipped.contains(name) {
            broken.push(format!("{name} {version}: a second version of it"));
        }
        if denied.contains(name) {
            broken.push(format!("{name} {version}: is denied"));
        }
    }
    assert_none("dependencies keep to deny.toml", &broken);
}

#[test]
fn scripts_can_be_run_and_say_what_they_do() {
    use std::os::unix::fs::PermissionsExt;
    for name in [
        ".ci/run",
        "tools/test",
        "tools/demo",
        "tools/crash",
        "tools/sim",
        "tools/fuzz",
        "tools/model",
        "tools/mutants",
    ] {
        let path = root().join(name);
        let mode = std::fs::metadata(&path).unwrap_or_else(|error| panic!("{name}: {error}")).permissions().mode();
        assert!(mode & 0o111 != 0, "{name} is not executable");
        let text = std::fs::read_to_string(&path).expect("text");
        let second = text.lines().nth(1).unwrap_or("");
        assert!(text.starts_with("#!/bin/sh\n") && second.starts_with("# "), "{name} opens with what it does");
    }
}
