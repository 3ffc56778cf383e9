//! Which slots of the table may be taken.

use super::*;
use crate::core::ids::{Chain, Conn, Epoch, Owner, Volume};
use crate::core::modes::Require;
use crate::core::op::Op;
use crate::format::table::{HEADER_AT, HEARTBEAT_AT, RECORDS_AT};
use crate::limits::LEASE_NS;
use crate::primary::batch::Mode;
use crate::primary::link::tests::{fresh, primary};
use crate::primary::window::{Entry, Local, Payload, Window};

/// Seed 419546: a primary lost its power with a full table that DR had not caught up with. DR's journal took the start that
/// followed, and the begin of a batch went over the first record that only the table had.
#[test]
fn what_only_the_table_may_have_from_before_a_loss_of_power_keeps_its_slot_until_the_cut_has_passed_the_gap() {
    for (synced, cut, began, known) in [
        (true, 50, 1, 200),
        (true, 50, 51, 200),
        (true, 50, 120, 50),
        (true, 119, 120, 200),
        // Without a copy to promote the table's records serve nobody.
        (false, 0, 120, 200),
    ] {
        let mut machine = primary();
        machine.options.overflow = Overflow::Pace;
        // Nothing is on its way.
        (machine.aux.layout, machine.aux.next) = (Some(TableLayout::new(1024, 0)), Seq(u64::MAX));
        machine.log_began = Seq(began);
        (machine.dr.synced, machine.dr.cut, machine.dr.journal) = (synced, Seq(cut), Seq(200));
        assert_eq!(machine.slots_until(), Seq(known + 1024), "synced {synced}, cut {cut}, began {began}");
        machine.options.overflow = Overflow::Coalesce;
        assert_eq!(machine.slots_until(), Seq(u64::MAX), "the policy gives it up");
    }
}

/// Seeds 623047 and 618025: the ring was full, or the table had been out of reach, and what came after took the slots by which a
/// promotion finds what the ring has.
#[test]
fn what_the_ring_has_and_dr_has_not_keeps_its_slot_whatever_the_policy() {
    let everything = Seq(u64::MAX);
    for (in_ring, began, coalesce, pace) in [
        (Some(150), 1, Seq(100 + 1024), Seq(100 + 1024)),
        (Some(100), 1, everything, Seq(200 + 1024)),
        (None, 1, everything, Seq(200 + 1024)),
        // From before a loss of power: a promotion has no place for it in DR's history.
        (Some(50), 51, everything, Seq(200 + 1024)),
    ] {
        let (mut machine, _) = fresh(Protect::Bunker, Require::Any, false);
        let layout = TableLayout::new(1024, 1 << 20);
        (machine.aux.layout, machine.aux.phase, machine.aux.caught_up) = (Some(layout), Phase::Ready, true);
        (machine.aux.ring_full, machine.aux.next) = (true, Seq(u64::MAX));
        machine.aux.ring_live.extend(in_ring.map(|seq| (Seq(seq), 0)));
        (machine.log_began, machine.tail) = (Seq(began), Seq(100 + 1024));
        (machine.dr.synced, machine.dr.cut, machine.dr.journal) = (true, Seq(100), Seq(200));
        machine.options.overflow = Overflow::Coalesce;
        let kept = in_ring == Some(150);
        assert_eq!((machine.slots_until(), machine.ring_needs_slots()), (coalesce, kept), "{in_ring:?}");
        machine.options.overflow = Overflow::Pace;
        assert_eq!(machine.slots_until(), pace, "{in_ring:?}");
        // Out of reach it keeps nobody waiting; its slots are kept all the same.
        machine.aux.phase = Phase::Idle { retry_ns: 0 };
        assert_eq!((machine.slots_until(), machine.ring_needs_slots()), (pace, false), "{in_ring:?}");
    }
}

/// Seed 905473: the head of a blank table had been read before a promotion took it, and was answered after the promotion had
/// waited the lease out. The primary formatted over the fence, found its own block there, and acknowledged.
#[test]
fn a_fence_read_longer_ago_than_the_lease_is_read_again_before_ours_is_written() {
    let blank = |length: u64| Ok(Bytes::from(vec![0; usize::try_from(length).expect("a few blocks")]));
    for (fencing, waited_ns, writes) in
        [(false, LEASE_NS, true), (false, LEASE_NS + 1, false), (true, LEASE_NS + 1, true)]
    {
        for before_format in [false, true] {
            let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
            let mut fx = Vec::new();
            machine.aux_opened(1 << 20, fencing, &mut fx);
            if before_format {
                machine.aux.layout = Some(TableLayout::new(1024, 0));
                fx.clear();
                machine.read_fence_before_format(&mut fx);
            }
            let Some(Effect::AuxRead { ticket, offset, length }) = fx.pop() else { panic!("the fence is read") };
            machine.now.mono_ns += waited_ns;
            machine.aux_done(ticket, blank(length), &mut fx);
            let wrote = fx.iter().any(|effect| matches!(effect, Effect::AuxWrite { .. }));
            let reads_again = |effect: &Effect| matches!(effect, Effect::AuxRead { offset: at, .. } if *at == offset);
            let again = fx.iter().any(reads_again);
            assert_eq!((wrote, again), (writes, !writes), "{fencing} {waited_ns} {before_format}: {fx:?}");
        }
    }
}

/// Seed 3322240: header, fence and heartbeat of a new table were one write. Where a loss of power left its last block alone, the
/// primary whose table it was did not know it.
#[test]
fn a_new_table_says_whose_it_is_before_anything_else_of_it_can_be_torn() {
    let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
    let mut fx = Vec::new();
    machine.aux_opened(1 << 20, false, &mut fx);
    let mut region = vec![0; 1 << 20];
    let mut written = Vec::new();
    for _ in 0..4 {
        let (ticket, result) = match fx.pop() {
            Some(Effect::AuxRead { ticket, offset, length }) => {
                (ticket, Bytes::copy_from_slice(&region[offset as usize..(offset + length) as usize]))
            }
            Some(Effect::AuxWrite { ticket, offset, parts, fua }) => {
                assert!(fua);
                let bytes = parts.concat();
                region[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                written.push((offset, bytes.len()));
                // Whatever is torn of the next ones: read again, this is known to be ours.
                let (mut again, mut said) = (fresh(Protect::Near, Require::Any, false).0, Vec::new());
                again.aux_opened(1 << 20, false, &mut said);
                let Some(Effect::AuxRead { ticket: read, length, .. }) = said.pop() else { panic!("{said:?}") };
                again.aux_done(read, Ok(Bytes::copy_from_slice(&region[..length as usize])), &mut said);
                let disowned = |it: &Effect| matches!(it, Effect::Log { text, .. } if text.contains("another region"));
                assert!(!said.iter().any(disowned), "{said:?}");
                (ticket, Bytes::new())
            }
            other => panic!("{other:?} after {written:?}"),
        };
        fx.clear();
        machine.aux_done(ticket, Ok(result), &mut fx);
    }
    assert_eq!(
        written,
        [(Fence::place(machine.superblock.epoch), BLOCK_BYTES), (HEARTBEAT_AT, BLOCK_BYTES), (HEADER_AT, BLOCK_BYTES)]
    );
}

/// A claim that a slow server carried out when a promotion had looked at its fence for the last time went over it, and two sites
/// acknowledged.
#[test]
fn whatever_of_an_old_writer_comes_late_a_takers_fence_stands() {
    let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
    let mine = machine.own_fence();
    let taker = Fence { epoch: Epoch(mine.epoch.0 + 1), owner: Owner(77) };
    let mut table = vec![0; RECORDS_AT as usize];
    let header = TableHeader::new(machine.group(), &TableLayout::new(1024, 0));
    table[..BLOCK_BYTES].copy_from_slice(&header.encode());
    let put = |head: &mut Vec<u8>, fence: &Fence| {
        head[Fence::place(fence.epoch) as usize..][..BLOCK_BYTES].copy_from_slice(&fence.encode());
    };
    let older = Fence { epoch: Epoch(mine.epoch.0 - 1), owner: Owner(78) };
    for before in [None, Some(older), Some(mine)] {
        let mut head = table.clone();
        before.iter().for_each(|fence| put(&mut head, fence));
        let mut fx = Vec::new();
        machine.aux_opened(1 << 20, false, &mut fx);
        let Some(Effect::AuxRead { ticket, .. }) = fx.pop() else { panic!("the head is read") };
        machine.aux_done(ticket, Ok(Bytes::copy_from_slice(&head)), &mut fx);
        // Now it is taken, and only then what was sent arrives.
        put(&mut head, &taker);
        let (mut claimed, mut headers) = (false, 0);
        while let Some(Effect::AuxWrite { ticket, offset, parts, .. }) = fx.pop() {
            let bytes = parts.concat();
            head[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
            claimed |= offset == Fence::place(mine.epoch);
            headers += usize::from(offset == HEADER_AT);
            machine.aux_done(ticket, Ok(Bytes::new()), &mut fx);
        }
        let said = (claimed, headers, machine.aux.phase);
        assert_eq!(
            said,
            (before != Some(mine), 1, Phase::Ready),
            "{before:?}: a header that was found is made durable"
        );
        assert_eq!(Fence::in_force(&head), Ok(taker), "{before:?}");
        machine.fence_read(&head.into(), machine.now.mono_ns, &mut fx);
        assert!(machine.fenced.take().is_some(), "{before:?}");
    }
}

/// A primary of `bunker` or another mode whose table is in use, as is DR's journal.
fn in_use(protect: Protect) -> Machine {
    let (mut machine, _) = fresh(protect, Require::Any, false);
    let layout = TableLayout::new(1024, 1 << 20);
    (machine.aux.layout, machine.aux.phase, machine.aux.caught_up) = (Some(layout), Phase::Ready, true);
    machine.dr.phase = crate::primary::link::Phase::Up { conn: Conn(1) };
    (machine.dr.caught_up, machine.dr.synced, machine.tail) = (true, true, Seq(200));
    machine
}

/// Where the queue overflowed, writes went past a ring that was full, and were acknowledged with their order only.
#[test]
fn writes_wait_for_room_in_the_ring_whatever_the_policy_once_it_protects_them() {
    for (overflow, passable, waits) in [
        (Overflow::Coalesce, true, true),
        (Overflow::Coalesce, false, false),
        (Overflow::Pace, true, true),
        (Overflow::Pace, false, true),
        (Overflow::Refuse, true, true),
    ] {
        let mut machine = in_use(Protect::Bunker);
        machine.options.overflow = overflow;
        machine.mode = if passable { Mode::Stream } else { Mode::Coalescing };
        machine.aux.ring_live.push_back((Seq(150), 0));
        machine.aux.ring_pos = (1 << 20) - 4096;
        assert_eq!(machine.ring_wait(4096), waits, "{overflow:?} {passable}");
        // Something is missing from it: what comes now is to be there all the same, or it would always be so.
        machine.aux.hole = Seq(150);
        assert_eq!(machine.ring_wait(4096), waits, "{overflow:?} {passable}");
        machine.aux.ring_live.clear();
        assert!(!machine.ring_wait(4096) && !machine.ring_wait((1 << 20) - 4096), "an empty ring takes what fits");
        machine.aux.ring_live.push_back((Seq(150), 0));
        machine.aux.phase = Phase::Idle { retry_ns: 0 };
        assert!(!machine.ring_wait(4096), "out of reach it keeps nobody waiting");
    }
}

/// Seed 5887317: writes that had waited for the table during the first copy were acknowledged without the ring right when it
/// began to protect them.
#[test]
fn a_record_waits_for_room_in_the_ring_unless_it_was_acknowledged_without_it() {
    const BYTES: u32 = 4096;
    let everything_free = (1 << 20) / 2;
    for (payload, in_memory, ring_pos, owed, settled, taken, hole) in [
        (Payload::Queued, true, everything_free, 0, true, 2, 0),
        (Payload::Queued, true, (1 << 20) - 8192, 0, true, 1, 0),
        (Payload::Queued, true, 1 << 20, 0, true, 0, 0),
        (Payload::Queued, true, 1 << 20, 202, true, 2, 202),
        (Payload::Queued, true, 1 << 20, 201, true, 1, 201),
        (Payload::Queued, true, 1 << 20, 0, false, 2, 202),
        (Payload::Spilled, false, everything_free, 0, true, 0, 0),
        (Payload::Spilled, false, everything_free, 202, true, 2, 202),
        // Nobody needs the ring for what DR has, and nobody has what was dropped.
        (Payload::Copied, false, 1 << 20, 0, true, 2, 0),
        (Payload::Dropped, false, everything_free, 0, true, 2, 202),
        (Payload::Dropped, true, 1 << 20, 0, true, 0, 0),
    ] {
        let mut machine = in_use(Protect::Bunker);
        (machine.settled_start, machine.aux.ring_pos, machine.allowed) = (settled, ring_pos, Seq(owed));
        machine.mode = if settled { Mode::Stream } else { Mode::Coalescing };
        machine.aux.ring_live.push_back((Seq(150), 0));
        machine.window = Window::new(Seq(201));
        let records = [201, 202].map(|seq| a_write(Seq(seq), BYTES));
        for record in records {
            let data = if in_memory { Bytes::from(vec![1; BYTES as usize]) } else { Bytes::new() };
            machine.window.push(Entry { record, data, req: None, local: Local::Done, payload });
        }
        let layout = machine.aux.layout.expect("set");
        let case = format!("{payload:?} {in_memory} {ring_pos} {owed} {settled}");
        assert_eq!(machine.commit_payloads(&records, layout, &mut Vec::new()), taken, "{case}");
        assert_eq!((machine.aux.ring_waits, machine.aux.hole), (taken < 2, Seq(hole)), "{case}");
        // DR has what stands there: the rest goes now, or has nothing that waits for the ring.
        machine.aux.ring_live.clear();
        if taken < records.len() {
            let rest = machine.commit_payloads(&records[taken..], layout, &mut Vec::new());
            assert_eq!(rest, if in_memory { 2 - taken } else { 0 }, "{case}");
        }
    }
}

fn a_write(seq: Seq, length: u32) -> OrderRecord {
    let (epoch, volume, op, flags) = (Epoch(1), Volume(0), Op::Write, 0);
    let (offset, length, time_ns, chain, payload_crc) = (0, u64::from(length), 0, Chain(0), 0);
    OrderRecord { seq, epoch, volume, op, flags, offset, length, time_ns, chain, payload_crc }
}

/// A server may carry out what it was asked for at the same time in any order: of two laps in flight the older could stand in the
/// slot in the end, and what `bunker` had acknowledged was nobody's.
#[test]
fn no_slot_and_no_room_in_the_ring_is_written_again_while_something_is_on_its_way_there() {
    for overflow in [Overflow::Coalesce, Overflow::Pace] {
        for protect in [Protect::Order, Protect::Bunker] {
            let mut machine = in_use(protect);
            machine.options.overflow = overflow;
            // DR has everything; the table is slow.
            (machine.dr.cut, machine.dr.journal, machine.tail) = (Seq(5000), Seq(5000), Seq(5000));
            // Passed over, for the intent log has them no more, while what came before is on its way.
            (machine.aux.durable, machine.aux.next) = (Seq(4000), Seq(4001));
            machine.aux.commits.push_back(Commit { first: Seq(3001), last: Seq(3050), left: 1, sent_ns: 0 });
            assert_eq!(machine.slots_until(), Seq(3000 + 1024), "{overflow:?} {protect:?}");
            machine.aux.states_out = StatesOut { left: 1, oldest: Seq(2900) };
            assert_eq!(machine.slots_until(), Seq(2899 + 1024), "{overflow:?} {protect:?}");
            machine.aux.ring_live.extend([(Seq(2999), 0), (Seq(3001), 4096)]);
            machine.release_ring();
            assert_eq!(machine.aux.ring_live, [(Seq(3001), 4096)]);
        }
    }
}

/// Seed 879: the ring held more than a promotion had room to fetch, and it was acknowledged for it.
#[test]
fn of_the_ring_no_more_is_used_than_a_promotion_has_room_to_fetch() {
    let mut machine = in_use(Protect::Bunker);
    machine.aux.ring_live.push_back((Seq(150), 0));
    machine.aux.ring_pos = 384 << 10;
    for (spool_bytes, waits) in [(0, false), (8 << 20, false), (512 << 10, true), (64 << 10, true)] {
        machine.dr.spool_bytes = spool_bytes;
        assert_eq!(machine.ring_wait(4096), waits, "{spool_bytes}");
        let layout = machine.aux.layout.expect("set");
        let left = machine.spool_left().unwrap_or(u64::MAX);
        assert_eq!(machine.ring_bound(layout), left.min(layout.payload_bytes));
    }
}

/// After an outage `sync` was said to be in force while thousands of writes, acknowledged with less, had yet to cross.
#[test]
fn a_mode_is_in_force_again_when_everything_acknowledged_below_it_is_covered() {
    for (protect, aux, journal, copied, full, mode) in [
        (Protect::Sync, 200, 200, 149, false, "order"),
        (Protect::Sync, 200, 149, 149, false, "near"),
        (Protect::Sync, 200, 200, 150, true, "sync"),
        (Protect::Order, 200, 149, 0, false, "near"),
        (Protect::Order, 149, 200, 0, false, "journal only"),
        (Protect::Order, 150, 150, 0, true, "order"),
        (Protect::Near, 149, 150, 0, false, "journal only"),
        (Protect::Near, 150, 0, 0, true, "near"),
        (Protect::Bunker, 149, 150, 0, false, "journal only"),
        (Protect::Bunker, 150, 0, 0, true, "bunker"),
    ] {
        let mut machine = in_use(protect);
        machine.allowed = Seq(150);
        (machine.aux.durable, machine.dr.journal, machine.copied) = (Seq(aux), Seq(journal), Seq(copied));
        let status = machine.status(Now::default());
        assert_eq!((machine.in_full(), status.mode.as_str()), (full, mode), "{protect:?} {aux} {journal} {copied}");
        assert_eq!(status.degraded.iter().any(|it| it.what.contains("is not in force")), !full, "{protect:?}");
        // What was acknowledged before this start counts as well, and what DR has needs no other place.
        (machine.allowed, machine.first) = (Seq(0), Seq(151));
        assert_eq!(machine.in_full(), full, "{protect:?} {aux} {journal} {copied}");
        machine.dr.cut = Seq(150);
        assert!(machine.in_full(), "{protect:?}");
    }
}

/// Status called `near` in force, while a promotion knew of thousands of writes nothing but their seqs.
#[test]
fn where_the_table_has_no_room_for_orders_that_dr_lacks_a_mode_that_tells_them_is_not_in_force() {
    for (protect, journal, mode) in [
        (Protect::Near, false, "async"),
        (Protect::Near, true, "journal only"),
        (Protect::Order, false, "async"),
        (Protect::Order, true, "journal only"),
        (Protect::Sync, false, "async"),
        (Protect::Async, false, "async"),
    ] {
        let mut machine = in_use(protect);
        let slots = machine.aux.layout.expect("it is in use").slots;
        machine.dr.caught_up = journal;
        machine.tail = Seq(machine.floor().0 + slots);
        machine.allowed = machine.tail;
        (machine.aux.durable, machine.dr.journal) = (machine.tail, machine.tail);
        let before = machine.mode_in_force();
        machine.tail = machine.tail.next();
        (machine.allowed, machine.aux.durable, machine.dr.journal) = (machine.tail, machine.tail, machine.tail);
        let status = machine.status(Now::default());
        assert_eq!(status.mode, mode, "{protect:?} {journal}, {before} as long as there is room");
        assert!(before != mode || protect == Protect::Async, "{protect:?} {journal}: {before}");
        let said = status.degraded.iter().any(|it| it.what.contains("is not in force, after a loss"));
        assert_eq!(said, !journal && protect != Protect::Async, "{protect:?} {journal}: {:?}", status.degraded);
    }
}
