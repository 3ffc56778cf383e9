//! The copy of the sources with the switch in it, and its build: the compiler says which mutants have to stay out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::list::{Mutant, Out};
use crate::rewrite::{Place, rewrite};

/// Builds that may fail before the tool gives up: each takes out what the compiler complains of.
const ATTEMPTS: u32 = 30;

/// The switch makes much code: it is compiled more than it is run.
const FASTER: [&str; 4] = ["--config", "profile.sim.opt-level=1", "--config", "profile.sim.package.\"*\".opt-level=3"];

const SWITCH: &str = include_str!("switch.rs");

/// A build with every mutant in it that can be.
pub struct Build {
    pub tree: PathBuf,
    /// Test binaries by name: `lib`, `format`, `model`, `sim`.
    pub binaries: BTreeMap<String, PathBuf>,
    /// Why a mutant is not in it.
    pub out: BTreeMap<u32, Out>,
    /// Of everything that a run depends on.
    pub digest: u64,
    /// Of that, and of what the numbers of mutants mean.
    pub numbers: u64,
    /// Of each file with mutants, as it stands in the project.
    pub digests: BTreeMap<String, u64>,
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// Writes only what is not so already: the build goes by times.
fn put(path: &Path, content: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let written = fs::create_dir_all(path.parent().unwrap_or(path)).and_then(|()| fs::write(path, content));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

/// Files of the project, but for what git ignores.
fn project_files() -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .map_err(|error| format!("git: {error}"))?;
    let text = String::from_utf8(output.stdout).map_err(|_| "git names a file that is not UTF-8")?;
    Ok(text.split('\0').filter(|name| Path::new(name).is_file()).map(String::from).collect())
}

/// What is in the copy and no more in the project.
fn remove_others(tree: &Path, kept: &BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(tree) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            remove_others(&path, kept);
        } else if path.extension() == Some(OsStr::new("rs")) && !kept.contains(&path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Copies, rewrites and builds until it compiles.
pub fn build(work: &Path, mutants: &[Mutant], targets: &[&str]) -> Result<Build, String> {
    let tree = work.join("tree");
    let files = project_files()?;
    let mut sources = BTreeMap::new();
    let mut all = DefaultHasher::new();
    for name in &files {
        let content = fs::read(name).map_err(|error| format!("{name}: {error}"))?;
        if ["src/", "tests/", "Cargo."].iter().any(|what| name.starts_with(what)) {
            (name, &content).hash(&mut all);
        }
        sources.insert(name.clone(), content);
    }
    let chosen: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.file.as_str()).collect();
    let mut kept: BTreeSet<PathBuf> = files.iter().map(|name| tree.join(name)).collect();
    kept.insert(tree.join("src/mutant_switch.rs"));
    remove_others(&tree, &kept);
    for (name, content) in &sources {
        if name == "src/lib.rs" {
            let with = [content, b"\n#[doc(hidden)]\npub mod mutant_switch;\n".as_slice()].concat();
            put(&tree.join(name), &with)?;
        } else if !chosen.contains(name.as_str()) {
            put(&tree.join(name), content)?;
        }
    }
    put(&tree.join("src/mutant_switch.rs"), SWITCH.as_bytes())?;

    let digests = chosen.iter().filter_map(|&name| Some((name.to_owned(), digest(sources.get(name)?)))).collect();
    let everything = all.finish();
    SWITCH.hash(&mut all);
    mutants.iter().for_each(|mutant| mutant.key.hash(&mut all));
    let mut build = Build {
        tree,
        binaries: BTreeMap::new(),
        out: BTreeMap::new(),
        digest: everything,
        numbers: all.finish(),
        digests,
    };
    // What a build with the same sources left out before is left out at once.
    let remembered = work.join("left-out");
    let keys: HashMap<&str, u32> =
        (1u32..).zip(mutants).map(|(number, mutant)| (mutant.key.as_str(), number)).collect();
    build.recall(&remembered, &keys);
    for _ in 0..ATTEMPTS {
        let places = build.write(&sources, mutants)?;
        let errors = build.cargo(work, &["build", "--lib"])?;
        let before = build.out.len();
        for error in &errors {
            build.blame(error, &places);
        }
        eprintln!("{} errors; {} mutants are out", errors.len(), build.out.len());
        build.remember(&remembered, mutants)?;
        if errors.is_empty() {
            let rest = build.cargo(work, &[&["test", "--no-run"], targets].concat())?;
            return rest.first().map_or(Ok(build), |error| Err(rendered(error)));
        }
        if build.out.len() == before {
            return Err(format!("no mutant is to blame for:\n{}", rendered(&errors[0])));
        }
    }
    Err("the copy does not compile, whatever is taken out".into())
}

fn rendered(error: &Value) -> String {
    error["rendered"].as_str().unwrap_or("an error without words").to_owned()
}

impl Build {
    /// Rewrites every file with the mutants that are still in.
    fn write(
        &mut self,
        sources: &BTreeMap<String, Vec<u8>>,
        mutants: &[Mutant],
    ) -> Result<HashMap<String, Vec<Place>>, String> {
        let mut of_file: BTreeMap<&str, Vec<(u32, &Mutant)>> = BTreeMap::new();
        for (number, mutant) in (1u32..).zip(mutants) {
            let here = of_file.entry(&mutant.file).or_default();
            if !self.out.contains_key(&number) {
                here.push((number, mutant));
            }
        }
        let (mut places, mut left) = (HashMap::new(), Vec::new());
        for (name, mutants) in of_file {
            let source = sources.get(name).and_then(|content| std::str::from_utf8(content).ok());
            let source = source.ok_or(format!("{name}: not a file of the project"))?;
            let rewritten = rewrite(source, &mutants, &mut left).map_err(|error| format!("{name}: {error}"))?;
            put(&self.tree.join(name), rewritten.text.as_bytes())?;
            places.insert(name.to_owned(), rewritten.places);
        }
        self.out.extend(left);
        Ok(places)
    }

    /// Runs cargo in the copy: its errors, and the test binaries that it made.
    fn cargo(&mut self, work: &Path, args: &[&str]) -> Result<Vec<Value>, String> {
        let output = Command::new("cargo")
            .args(&args[..1])
            .args(["--locked", "--profile", "sim", "--message-format", "json", "--quiet"])
            .args(FASTER)
            .args(&args[1..])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", work.join("build"))
            .env("RUSTFLAGS", "--cap-lints=allow")
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        let mut errors = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Ok(mut message) = serde_json::from_str::<Value>(line) else { continue };
            if message["reason"] == "compiler-message" && message["message"]["level"] == "error" {
                errors.push(message["message"].take());
            } else if let (Some(path), true) = (message["executable"].as_str(), message["profile"]["test"] == true) {
                let name = if message["target"]["kind"][0] == "lib" {
                    "lib"
                } else {
                    message["target"]["name"].as_str().unwrap_or("")
                };
                self.binaries.insert(name.into(), path.into());
            }
        }
        // The last one only counts them.
        errors.retain(|error| error["spans"].as_array().is_some_and(|spans| !spans.is_empty()));
        if !output.status.success() && errors.is_empty() {
            return Err("cargo failed, and no error of it has a place".into());
        }
        Ok(errors)
    }

    /// Takes out the mutants that an error is about.
    fn blame(&mut self, error: &Value, places: &HashMap<String, Vec<Place>>) {
        let spans = error["spans"].as_array().map_or(&[][..], Vec::as_slice);
        let code = error["code"]["code"].as_str().unwrap_or("error");
        let words = format!("{code}: {}", error["message"].as_str().unwrap_or("").lines().next().unwrap_or(""));
        let mut blamed = Vec::new();
        for span in spans {
            let Some((range, places)) = place_of(span, places) else { continue };
            let around = |place: &&Place| place.range.start <= range.start && range.end <= place.range.end;
            let smallest = places.iter().filter(around).min_by_key(|place| place.range.len());
            blamed.extend(smallest);
        }
        if blamed.is_empty() {
            // Nothing stands around them: whatever they are around.
            for span in spans {
                let Some((range, places)) = place_of(span, places) else { continue };
                blamed.extend(places.iter().filter(|at| range.start <= at.range.start && at.range.end <= range.end));
            }
        }
        let own: Vec<&Place> = blamed.iter().copied().filter(|place| place.own).collect();
        for place in if own.is_empty() { blamed } else { own } {
            let out = if place.own { Out::Unviable(words.clone()) } else { Out::Unswitchable(words.clone()) };
            for &number in &place.mutants {
                self.out.entry(number).or_insert_with(|| out.clone());
            }
        }
    }

    fn recall(&mut self, path: &Path, keys: &HashMap<&str, u32>) {
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            let mut fields = line.splitn(4, '\t');
            let (Some(key), Some(of), Some(kind), Some(why)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let file = key.split(": ").next().unwrap_or("");
            if let (Some(&number), true) =
                (keys.get(key), self.digests.get(file).is_some_and(|now| now.to_string() == of))
            {
                let out = if kind == "unviable" { Out::Unviable(why.into()) } else { Out::Unswitchable(why.into()) };
                self.out.insert(number, out);
            }
        }
    }

    /// Beside what is remembered of other files.
    fn remember(&self, path: &Path, mutants: &[Mutant]) -> Result<(), String> {
        let before = fs::read_to_string(path).unwrap_or_default();
        let other = |line: &&str| !self.digests.contains_key(line.split(": ").next().unwrap_or(""));
        let mut text: String = before.lines().filter(other).flat_map(|line| [line, "\n"]).collect();
        for (number, out) in &self.out {
            let mutant = &mutants[*number as usize - 1];
            let (kind, why) = match out {
                Out::Unviable(why) => ("unviable", why),
                Out::Unswitchable(why) => ("unswitchable", why),
            };
            text += &format!("{}\t{}\t{kind}\t{why}\n", mutant.key, self.digests[&mutant.file]);
        }
        put(path, text.as_bytes())
    }
}

/// The file's places, and where in it a span of an error is.
fn place_of<'a>(span: &Value, places: &'a HashMap<String, Vec<Place>>) -> Option<(Range<usize>, &'a [Place])> {
    let at = |name: &str| usize::try_from(span[name].as_u64()?).ok();
    let places = places.get(span["file_name"].as_str()?)?;
    Some((at("byte_start")?..at("byte_end")?, places))
}
