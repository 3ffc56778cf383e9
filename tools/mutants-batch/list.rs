//! The mutants as `cargo mutants --list --json` names them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One change to one place of the sources.
pub struct Mutant {
    /// As cargo-mutants names it, with line and column.
    pub name: String,
    /// File, what is replaced with what in which function, and the ordinal among those that read the same: no lines.
    pub key: String,
    pub file: String,
    pub genre: String,
    pub replacement: String,
    /// Line and column, both from 1.
    pub start: (usize, usize),
}

/// Why a mutant is not in the build.
#[derive(Clone, Debug)]
pub enum Out {
    /// The replacement does not compile, whoever builds it.
    Unviable(String),
    /// It may compile, but not behind a switch.
    Unswitchable(String),
}

impl Out {
    pub fn unviable(why: &str) -> Out {
        Out::Unviable(why.into())
    }

    pub fn unswitchable(why: &str) -> Out {
        Out::Unswitchable(why.into())
    }
}

/// Reads lists, one after the other, of which the first are to be run first.
pub fn read(text: &str) -> Result<Vec<Mutant>, String> {
    let (mut mutants, mut files) = (Vec::new(), BTreeSet::new());
    for list in serde_json::Deserializer::from_str(text).into_iter::<Vec<Value>>() {
        let list = list.map_err(|error| format!("the list of mutants: {error}"))?;
        let mut more = list.iter().map(mutant).collect::<Option<Vec<_>>>().ok_or("a mutant lacks a field")?;
        more.retain(|mutant| !files.contains(&mutant.file));
        more.sort_by(|a, b| (&a.file, a.start).cmp(&(&b.file, b.start)));
        files.extend(more.iter().map(|mutant| mutant.file.clone()));
        mutants.append(&mut more);
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for mutant in &mut mutants {
        let count = seen.entry(mutant.key.clone()).or_default();
        *count += 1;
        if *count > 1 {
            mutant.key = format!("{} #{count}", mutant.key);
        }
    }
    Ok(mutants)
}

fn mutant(value: &Value) -> Option<Mutant> {
    let text = |value: &Value| Some(value.as_str()?.to_owned());
    let start = value.get("span")?.get("start")?;
    let number = |name: &str| usize::try_from(start.get(name)?.as_u64()?).ok();
    let (name, file) = (text(value.get("name")?)?, text(value.get("file")?)?);
    let what = name.strip_prefix(&file)?.splitn(4, ':').nth(3)?.trim();
    Some(Mutant {
        key: format!("{file}: {what}"),
        genre: text(value.get("genre")?)?,
        replacement: text(value.get("replacement")?)?,
        start: (number("line")?, number("column")?),
        name,
        file,
    })
}
