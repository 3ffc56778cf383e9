//! The files that roles keep in their directories, by name: what daemons open, what a configuration must not name for anything
//! else, and what `farshore check` looks at.

use super::peer::Role;

pub const SUPERBLOCK: &str = "superblock";
pub const INTENT_MAP: &str = "intent.map";
pub const INTENT_LOG: &str = "intent.log";
pub const FIFO: &str = "fifo";
/// A FIFO of another size that takes its place.
pub const FIFO_NEW: &str = "fifo.new";
pub const TABLE: &str = "table";
pub const JOURNAL: &str = "journal";
pub const SPOOL: &str = "spool";
/// A spool of another size that takes its place.
pub const SPOOL_NEW: &str = "spool.new";
pub const REPORT: &str = "loss-report.json";
pub const REPORT_NEW: &str = "loss-report.json.new";
pub const REPORT_DAMAGED: &str = "loss-report.json.damaged";
/// Before the names of a primary: what a promoted DR keeps for its new life beside its own files.
pub const PROMOTED: &str = "promoted.";

/// What every start opens or makes, in this order.
#[must_use]
pub fn opened(role: Role) -> &'static [&'static str] {
    match role {
        Role::Primary => &[SUPERBLOCK, INTENT_MAP, INTENT_LOG, FIFO],
        Role::Aux => &[SUPERBLOCK, TABLE],
        Role::Dr => &[SUPERBLOCK, JOURNAL, SPOOL],
        Role::Client => &[],
    }
}

/// What a role may find or make beside that, and opens as a file of its own.
#[must_use]
pub fn beside(role: Role) -> Vec<String> {
    match role {
        Role::Primary => vec![FIFO_NEW.into()],
        Role::Dr => {
            let promoted = opened(Role::Primary).iter().chain(&[FIFO_NEW]);
            std::iter::once(SPOOL_NEW.into()).chain(promoted.map(|name| format!("{PROMOTED}{name}"))).collect()
        }
        Role::Aux | Role::Client => Vec::new(),
    }
}

/// All names that a role keeps to itself in its directory.
#[must_use]
pub fn own_files(role: Role) -> Vec<String> {
    let reports: &[&str] = if role == Role::Dr { &[REPORT, REPORT_NEW, REPORT_DAMAGED] } else { &[] };
    opened(role).iter().chain(reports).map(|name| (*name).to_owned()).chain(beside(role)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_the_directory_and_none_is_there_twice() {
        for role in [Role::Primary, Role::Aux, Role::Dr] {
            let names = own_files(role);
            assert!(names.len() >= opened(role).len() && names[0] == SUPERBLOCK);
            for (at, name) in names.iter().enumerate() {
                assert!(!name.contains('/') && !names[..at].contains(name), "{name}");
            }
        }
        assert!(own_files(Role::Dr).contains(&"promoted.intent.log".to_owned()));
    }
}
