//! Starts in directories that are new, were never completed, have lost something, or are not what the configuration says.

use super::run::options;
use super::scan::Memory;
use crate::core::ids::{Chain, Seq};
use crate::dr::api::Options;
use crate::dr::recovery::{Found, Recovered, recover};
use crate::format::spool::{SIZED_BYTES_MAX, nonce_bytes};
use crate::format::superblock::{BLANK, DIRECT, Role, SUPERBLOCK_BYTES, SYNCED, Superblock};
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};

const SEGMENT: usize = SEGMENT_BYTES as usize;

fn start(superblock: &[u8], journal: Vec<u8>, options: &Options) -> Result<Recovered, String> {
    let (journal, spool) = (Memory(journal), Memory(vec![0; 1 << 20]));
    let found = Found { superblock, journal: &journal, spool: &spool, blank: true, report: None };
    recover(found, options).map_err(|error| error.to_string())
}

fn empty_journal() -> Vec<u8> {
    vec![0; options(false).journal_bytes as usize]
}

#[test]
fn a_journal_has_two_whole_segments_and_a_spool_a_whole_number_of_mib() {
    for (bytes, fits) in [
        (0, false),
        (SEGMENT_BYTES, false),
        (2 * SEGMENT_BYTES, true),
        (2 * SEGMENT_BYTES + 512, false),
        (3 * SEGMENT_BYTES, true),
    ] {
        let found = start(&[], empty_journal(), &Options { journal_bytes: bytes, ..options(false) });
        assert_eq!(found.is_ok(), fits, "{bytes}");
        assert!(found.err().is_none_or(|text| text.contains("[dr] journal")));
    }
    let most = SIZED_BYTES_MAX;
    for (bytes, fits) in
        [(0, false), (1 << 20, true), ((1 << 20) + 512, false), (most - (1 << 20), true), (most, false)]
    {
        let found = start(&[], empty_journal(), &Options { spool_bytes: bytes, ..options(false) });
        assert_eq!(found.is_ok(), fits, "{bytes}");
        assert!(found.err().is_none_or(|text| text.contains("[dr] spool")));
    }
}

#[test]
fn a_new_directory_begins_with_nothing_and_is_its_groups() {
    for superblock in [&[][..], &[0; SUPERBLOCK_BYTES]] {
        let found = start(superblock, empty_journal(), &options(false)).expect("new");
        let (it, options) = (&found.superblock, options(false));
        assert!(found.fresh && it.has(BLANK) && !it.has(SYNCED) && !it.has(DIRECT));
        assert_eq!((it.role, &it.group_name, it.owner), (Role::Dr, &options.group_name, options.owner));
        assert_eq!((it.journal_bytes, nonce_bytes(it.nonce)), (options.journal_bytes, options.spool_bytes));
        assert_eq!((found.history.floor(), found.history.tail()), (Seq(0), Seq(0)));
        assert_eq!((found.journal.first, found.journal.segments), (1, options.journal_bytes / SEGMENT_BYTES));
    }
}

/// A journal that was written in a directory without a superblock: somebody was promised something here (I8).
#[test]
fn without_its_superblock_a_directory_with_a_journal_is_refused() {
    for at in [0, BLOCK_BYTES - 1, SEGMENT, SEGMENT + BLOCK_BYTES - 1] {
        let mut journal = empty_journal();
        journal[at] = 1;
        let text = start(&[0; SUPERBLOCK_BYTES], journal, &options(false)).err().expect("refused");
        assert!(text.contains("the superblock was lost"), "byte {at}: {text}");
    }
}

/// The first superblock goes to the second slot, and nothing is promised before it is durable.
#[test]
fn a_directory_is_begun_anew_only_where_its_first_superblock_was_never_completed() {
    let block = Superblock::new(Role::Dr).encode();
    for (first_slot, record, anew) in [(false, false, true), (false, true, false), (true, false, false)] {
        let (mut superblock, mut journal) = (vec![0; SUPERBLOCK_BYTES], empty_journal());
        superblock[BLOCK_BYTES..BLOCK_BYTES + 512].copy_from_slice(&block[..512]);
        superblock[0] = u8::from(first_slot);
        journal[SEGMENT] = u8::from(record);
        match start(&superblock, journal, &options(false)) {
            Ok(found) => {
                assert!(anew && found.fresh);
                assert!(found.news.iter().any(|(_, text)| text.contains("never completed")), "{:?}", found.news);
            }
            Err(text) => assert!(!anew && text.contains("cannot be trusted"), "{text}"),
        }
    }
}

#[test]
fn a_directory_is_refused_to_another_role_and_with_another_length_of_its_journal() {
    let found = start(&[], empty_journal(), &options(false)).expect("new");
    for (role, made, fits) in [
        (Role::Dr, options(false).journal_bytes, true),
        (Role::Dr, 0, true),
        (Role::Dr, options(false).journal_bytes + SEGMENT_BYTES, false),
        (Role::Primary, options(false).journal_bytes, false),
        (Role::Auxiliary, options(false).journal_bytes, false),
    ] {
        let superblock = Superblock { role, journal_bytes: made, ..found.superblock.clone() };
        let mut slots = vec![0; SUPERBLOCK_BYTES];
        slots[superblock.offset() as usize..][..BLOCK_BYTES].copy_from_slice(&superblock.encode());
        match start(&slots, empty_journal(), &options(false)) {
            Ok(found) => {
                assert!(fits && !found.fresh && found.history.tail_chain() == Chain(0));
                assert_eq!(found.superblock.journal_bytes, options(false).journal_bytes, "it is noted from now on");
            }
            Err(text) => {
                let named = if role == Role::Dr { "the journal" } else { "not of a dr" };
                assert!(!fits && text.contains(named), "{text}");
            }
        }
    }
}
