//! The two slots of a superblock, and tears at every byte.

use farshore::core::ids::{Epoch, Owner, Seq};
use farshore::format::FormatError;
use farshore::format::superblock::{Role, Superblock, newest, read_slots, slot_offset};
use farshore::format::table::Fence;

fn generation(generation: u64) -> Superblock {
    let volumes = (0..64).map(|v| (v, generation)).collect();
    Superblock { generation, seq: Seq(generation * 3), volumes, ..Superblock::new(Role::Dr) }
}

/// Both slots, each a block or what else stands there.
fn slots(even: &[u8], odd: &[u8]) -> Vec<u8> {
    [even, odd].concat()
}

#[test]
fn every_state_of_two_slots_has_its_meaning() {
    let zero = [0; 4096];
    let (even, odd, later) = (generation(6).encode(), generation(7).encode(), generation(8).encode());
    let mut torn = odd;
    torn[100] ^= 1;
    let mut newer_program = odd;
    newer_program[8] = 5;
    let crc = crc32fast::hash(&newer_program[..4092]);
    newer_program[4092..].copy_from_slice(&crc.to_le_bytes());
    let seen = |even: &[u8], odd: &[u8]| {
        let found = newest(&slots(even, odd));
        found.map(|found| found.map_or(0, |block| block.generation))
    };
    assert_eq!([6, 7].map(|number| generation(number).offset()), [0, 4096], "one is written beside the other");
    assert_eq!(seen(&zero, &zero), Ok(0), "new");
    assert_eq!(seen(&even, &zero), Ok(6));
    assert_eq!(seen(&zero, &odd), Ok(7));
    assert_eq!(seen(&even, &odd), Ok(7));
    assert_eq!(seen(&later, &odd), Ok(8));
    assert_eq!(seen(&even, &torn), Ok(6), "what tore was never promised");
    assert_eq!(seen(&zero, &torn), Err(FormatError::Checksum { what: "superblock" }));
    assert_eq!(seen(&torn, &torn), Err(FormatError::Checksum { what: "superblock" }));
    assert_eq!(seen(&even, &[1; 4096]), Ok(6));
    assert_eq!(seen(&[1; 4096], &zero), Err(FormatError::Magic { what: "superblock" }));
    assert_eq!(seen(&even, &newer_program), Err(FormatError::Version { what: "superblock", got: 5, want: 4 }));
    assert!(seen(&odd, &zero).is_err(), "an odd generation in the even slot");
    assert!(newest(&even).is_err(), "half a file");
    assert!(read_slots(&slots(&even, &torn)).expect("readable").damaged.is_some(), "damage is told");
    assert!(read_slots(&slots(&even, &odd)).expect("readable").damaged.is_none());
}

#[test]
fn a_write_torn_anywhere_leaves_one_of_two_generations() {
    let (old, current, next) = (generation(5).encode(), generation(6).encode(), generation(7).encode());
    assert_eq!((slot_offset(5), slot_offset(6)), (4096, 0));
    for cut in 0..=4096 {
        let torn = [&next[..cut], &old[cut..]].concat();
        let found = newest(&slots(&current, &torn)).expect("always readable").expect("never new again");
        assert!(found == generation(6) || found == generation(7), "torn at {cut}: {found:?}");
    }
    for sector in 0..8 {
        let mut torn = old;
        torn[sector * 512..][..512].copy_from_slice(&next[sector * 512..][..512]);
        let found = newest(&slots(&current, &torn)).expect("always readable").expect("never new again");
        assert!(found == generation(6), "one sector of the new one: {found:?}");
    }
}

#[test]
fn what_is_rewritten_in_place_lies_within_one_sector() {
    let old = Fence { epoch: Epoch(1), owner: Owner(u64::MAX) }.encode();
    let new = Fence { epoch: Epoch(u32::MAX), owner: Owner(1) }.encode();
    assert!(old[512..] == new[512..] && old[..512] != new[..512]);
}

#[test]
fn the_fence_in_force_is_that_of_the_highest_epoch_wherever_it_stands() {
    let mut head = vec![0; 16384];
    assert!(Fence::in_force(&head).is_err() && Fence::in_force(&[]).is_err());
    for epoch in 1..6 {
        let fence = Fence { epoch: Epoch(epoch), owner: Owner(7) };
        let at = Fence::place(fence.epoch) as usize;
        assert_eq!(at, if epoch % 2 == 0 { 4096 } else { 12288 });
        head[at..at + 4096].copy_from_slice(&fence.encode());
        assert_eq!(Fence::in_force(&head), Ok(fence));
    }
    // That of epoch 4 still stands beside that of 5, until something is wrong with it as well.
    head[12288 + 24] ^= 1;
    assert_eq!(Fence::in_force(&head).map(|fence| fence.epoch), Ok(Epoch(4)));
    head[4096 + 24] ^= 1;
    assert!(matches!(Fence::in_force(&head), Err(FormatError::Checksum { .. })));
}
