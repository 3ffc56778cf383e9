//! Who may write the status table (I7): the names our auxiliary exports it by, and the rule that grants one.
//!
//! ```text
//!   orders                         read-only view
//!   orders/2/00c0ffee00c0ffee      writer: group / epoch / owner
//! ```
//!
//! Owns the text of the names and the decision; who stores the epoch and cuts connections is `auxiliary`,
//! who asks is `nbd::region`.

use std::fmt;

use crate::core::ids::{Epoch, Owner};

/// A writer as the fence knows it: the epoch it writes in and the directory it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    pub epoch: Epoch,
    pub owner: Owner,
}

/// What a client asks of the auxiliary, by the name of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableExport {
    pub group: String,
    /// `None`: only to read.
    pub writer: Option<Writer>,
}

/// Why a name is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("an export of this server is called GROUP (to read) or GROUP/EPOCH/OWNER (to write)")]
    Shape,
    #[error("the epoch in the export name is not a decimal number from 1 to 4294967295")]
    Epoch,
    #[error("the owner in the export name is not a number of 16 hex digits other than 0")]
    Owner,
}

impl fmt::Display for TableExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.group)?;
        self.writer.map_or(Ok(()), |writer| write!(f, "/{}/{:016x}", writer.epoch, writer.owner.0))
    }
}

impl std::str::FromStr for TableExport {
    type Err = NameError;

    /// Reads exactly what `Display` writes, so that one writer has one name.
    fn from_str(text: &str) -> Result<TableExport, NameError> {
        let mut parts = text.split('/');
        let group = parts.next().unwrap_or_default().to_owned();
        let (epoch, owner) = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => return Ok(TableExport { group, writer: None }),
            (Some(epoch), Some(owner), None) => (epoch, owner),
            _ => return Err(NameError::Shape),
        };
        let canonical = epoch.bytes().all(|b| b.is_ascii_digit()) && !epoch.starts_with('0');
        let epoch = epoch.parse().ok().filter(|_| canonical).map(Epoch).ok_or(NameError::Epoch)?;
        let hex = owner.len() == 16 && owner.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let owner = u64::from_str_radix(owner, 16).ok().filter(|raw| hex && *raw != 0);
        let owner = owner.map(Owner).ok_or(NameError::Owner)?;
        Ok(TableExport { group, writer: Some(Writer { epoch, owner }) })
    }
}

/// What the fence says to a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its epoch is new: make it durable, cut every other writer off, then let it in.
    Advance,
    /// It is the writer in force, come back: cut its earlier connections off, then let it in.
    Resume,
    /// A newer epoch is in force.
    Fenced,
    /// Somebody else has this very epoch.
    SecondPrimary,
}

/// The rule. `stored` is what was granted last; epoch 0 when nothing ever was.
///
/// ```text
///   asked epoch     owner same    owner differs
///   < stored        Fenced        Fenced
///   = stored        Resume        SecondPrimary
///   > stored        Advance       Advance
/// ```
#[must_use]
pub fn verdict(stored: Writer, asked: Writer) -> Verdict {
    match (asked.epoch.cmp(&stored.epoch), asked.owner == stored.owner) {
        (std::cmp::Ordering::Less, _) => Verdict::Fenced,
        (std::cmp::Ordering::Equal, true) => Verdict::Resume,
        (std::cmp::Ordering::Equal, false) => Verdict::SecondPrimary,
        (std::cmp::Ordering::Greater, _) => Verdict::Advance,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let writer = Writer { epoch: Epoch(2), owner: Owner(0x00c0_ffee_00c0_ffee) };
        let name = TableExport { group: "orders".into(), writer: Some(writer) };
        assert_eq!(name.to_string(), "orders/2/00c0ffee00c0ffee");
        assert_eq!(name.to_string().parse(), Ok(name));
        let view = TableExport { group: "orders".into(), writer: None };
        assert_eq!("orders".parse(), Ok(view));
    }

    #[test]
    fn one_writer_has_one_name() {
        for (text, error) in [
            ("g/1", NameError::Shape),
            ("g/1/0000000000000001/x", NameError::Shape),
            ("g/0/0000000000000001", NameError::Epoch),
            ("g/01/0000000000000001", NameError::Epoch),
            ("g/+1/0000000000000001", NameError::Epoch),
            ("g//0000000000000001", NameError::Epoch),
            ("g/4294967296/0000000000000001", NameError::Epoch),
            ("g/1/1", NameError::Owner),
            ("g/1/0000000000000000", NameError::Owner),
            ("g/1/000000000000000A", NameError::Owner),
            ("g/1/+00000000000000a", NameError::Owner),
        ] {
            assert_eq!(text.parse::<TableExport>(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_rule_over_all_its_inputs() {
        let writer = |epoch, owner| Writer { epoch: Epoch(epoch), owner: Owner(owner) };
        let stored = writer(5, 7);
        for (epoch, owner, expected) in [
            (4, 7, Verdict::Fenced),
            (4, 8, Verdict::Fenced),
            (5, 7, Verdict::Resume),
            (5, 8, Verdict::SecondPrimary),
            (6, 7, Verdict::Advance),
            (6, 8, Verdict::Advance),
        ] {
            assert_eq!(verdict(stored, writer(epoch, owner)), expected);
        }
        assert_eq!(verdict(Writer::default(), writer(1, 8)), Verdict::Advance, "a fresh fence takes anybody");
    }
}
