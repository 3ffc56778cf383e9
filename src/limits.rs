//! Every bound, in one place, asserted against each other at compile time (I9).

/// Bytes of an order record.
pub const RECORD_BYTES: usize = 64;
/// Block in which logs are written and formats are laid out, bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Order records in one block of a log.
pub const RECORDS_PER_BLOCK: usize = BLOCK_BYTES / RECORD_BYTES;
/// Longest payload of one NBD request, and of one order record that is accepted, bytes (NBD: the customary 32 MiB).
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// A longer payload of a client is written, or read, in pieces of at most this, bytes; so nothing longer is replicated
/// from here on. What earlier versions wrote is still read.
pub const PAYLOAD_PIECE_BYTES_MAX: u64 = 4 << 20;
/// Longest range that a TRIM or WRITE_ZEROES order record covers, bytes.
pub const RANGE_BYTES_MAX: u64 = u32::MAX as u64;
/// A longer TRIM or WRITE_ZEROES of a client becomes several order records, each up to a multiple of this, bytes.
pub const PIECE_BYTES_MAX: u64 = 1 << 31;
/// Volumes in a group.
pub const VOLUMES_MAX: usize = 64;
/// Largest volume, bytes (offsets stay positive as i64).
pub const VOLUME_BYTES_MAX: u64 = 1 << 62;
/// Sizes of volumes are multiples of this, bytes.
pub const SECTOR_BYTES: u64 = 512;
/// Longest name of a group or volume, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Order records in one group commit (one message, one table write).
pub const COMMIT_RECORDS_MAX: usize = 1024;
/// Group commits in flight to one peer.
pub const COMMITS_INFLIGHT_MAX: usize = 64;
/// Longest body of a link frame other than payload data, bytes.
pub const FRAME_BODY_BYTES_MAX: usize = 1 << 20;
/// Ranges of what is to be copied that are told apart, of all volumes of a group together.
pub const COVER_RANGES_MAX: usize = 32 << 10;
/// Stretches that are looked at together while what has storage is listed.
pub const LISTING_STRETCHES_MAX: usize = 64 << 10;
/// Bytes of one piece of a batch.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// Bytes of frames in one packed frame, and of what they are packed to.
pub const PACKED_BYTES_MAX: usize = 4 << 20;
/// In a range of a batch that is as long as this holes are looked for before it is read, bytes.
pub const BATCH_LOOK_BYTES: u64 = 4 << 20;
/// A range that is compared at once, bytes; and parts of it with a digest each, which a word has a bit for.
pub const COMPARE_BYTES_MAX: u64 = 256 << 10;
pub const COMPARE_PARTS_MAX: usize = 64;
/// Parts of a piece of a batch, which a word has a bit for.
pub const PATCH_PARTS_MAX: usize = 64;
/// The slowest scrub, bytes a second.
pub const SCRUB_RATE_MIN: u64 = 64 << 10;
/// Ranges or indexes in one message of the link; longer lists go out as several messages.
pub const LIST_ITEMS_MAX: usize = 16 << 10;
/// Longest text of a refusal, bytes.
pub const REFUSE_TEXT_BYTES_MAX: usize = 1024;
/// Segment of the journal, bytes.
pub const SEGMENT_BYTES: u64 = 1 << 20;
/// Alignment of the entries of a spool or FIFO log, bytes.
pub const ENTRY_ALIGN_BYTES: u64 = 512;
/// Payload streams of one link.
pub const STREAMS_MAX: usize = 32;
/// Granularity of the intent map, bytes of volume for one bit.
pub const INTENT_EXTENT_BYTES: u64 = 64 << 10;
/// Extents of the intent map that are set together while it says little: 1 MiB.
pub const INTENT_NEIGHBOURS: u64 = 16;
/// Extents set together at the most, when writes touch one unmarked place after another: 16 MiB.
pub const INTENT_NEIGHBOURS_MAX: u64 = 256;
/// Extents of the intent map up to which neighbours are set: 2 GiB.
pub const INTENT_EAGER_EXTENTS: u64 = (2 << 30) / INTENT_EXTENT_BYTES;
/// Pages of the intent map in one round of writes, beside those that writes wait for: 1 MiB.
pub const INTENT_ROUND_PAGES: usize = 256;
/// Seqs reserved ahead in the superblock at the most, whatever the table.
pub const SEQ_RESERVE_MAX: u64 = 1 << 20;
/// Seqs reserved ahead in the superblock beside a status table of `slots`: what an unclean restart after power loss skips at
/// the most. The slots of those stay empty while the table is needed for what came before, so they are a small part of it.
/// Without a table 0 slots.
#[must_use]
pub const fn seq_reserve(slots: u64) -> u64 {
    if slots == 0 || slots / 4 > SEQ_RESERVE_MAX { SEQ_RESERVE_MAX } else { slots / 4 }
}
/// Slots of a status table when nothing else is configured.
pub const TABLE_SLOTS_DEFAULT: u64 = 1 << 17;
/// Smallest and largest number of slots.
pub const TABLE_SLOTS_MIN: u64 = 1 << 10;
pub const TABLE_SLOTS_MAX: u64 = 1 << 24;
/// How long a link may be silent before it is taken for dead, nanoseconds.
pub const LINK_SILENCE_NS: u64 = 3_000_000_000;
/// How often an idle link is probed, nanoseconds.
pub const PING_EVERY_NS: u64 = 500_000_000;
/// How long contact with a peer entitles the writer to acknowledge (I7, fencing by lease), nanoseconds.
pub const LEASE_NS: u64 = 1_500_000_000;
/// How much longer than the lease a promotion waits, nanoseconds.
pub const LEASE_MARGIN_NS: u64 = 500_000_000;
/// Writes in flight from NBD clients of one group.
pub const REQUESTS_INFLIGHT_MAX: usize = 16 << 10;
/// Requests in flight on one NBD connection; more wait in the socket.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Payload bytes, both ways, of the requests in flight on one NBD connection.
pub const CONNECTION_PAYLOAD_BYTES_MAX: u64 = 16 << 20;
/// Replies of one NBD connection not yet taken by its client, bytes; above it no more requests are parsed.
pub const CONNECTION_QUEUE_BYTES_MAX: usize = 8 << 20;
/// Replies without data beside them: above it neither requests nor options are parsed. As much as one connection may have, and
/// all of a server together, in equal parts; a single answer that is longer passes. They take no room from reads.
pub const CONNECTION_REPLIES_BYTES_MAX: u64 = 64 << 10;
pub const SERVER_REPLIES_BYTES_MAX: u64 = 2 << 20;
/// NBD connections of one server; those of one peer (an address, or unix sockets); and how many of them are kept for unix
/// sockets. Who gives way when they run out: `nbd::places`.
pub const CONNECTIONS_MAX: usize = 256;
pub const CONNECTIONS_PEER_MAX: usize = 192;
pub const CONNECTIONS_KEPT_UNIX: usize = 32;
/// All NBD connections of one server together, bytes: reads in flight and replies that were not taken; writes in flight,
/// from their head on; long requests of each way, of those in pieces the pieces; what is received ahead of what has begun.
/// What carries no payload counts as a page of what comes in.
pub const SERVER_READ_BYTES_MAX: u64 = 4 << 20;
pub const SERVER_WRITE_BYTES_MAX: u64 = 8 << 20;
pub const SERVER_LONG_BYTES_MAX: u64 = 8 << 20;
pub const SERVER_AHEAD_BYTES_MAX: usize = 4 << 20;
/// Piece of a long request, bytes: one goes out, or is written, while another is read, or arrives.
pub const SERVER_LONG_PIECE_BYTES: u64 = 2 << 20;
/// From so much on that others hold of the long requests of one way, pieces are small, bytes.
pub const SERVER_CROWDED_BYTES: u64 = 2 << 20;
/// Payload of the longest request that is a small one, bytes: it takes room once it has arrived, and of what comes in a
/// part is kept for such.
pub const SMALL_BYTES: u64 = 64 << 10;
pub const SERVER_SMALL_KEPT_BYTES: u64 = 2 << 20;
/// Of a longer one so much has to have arrived before it takes room where others hold many that have not, bytes.
pub const FIRST_BYTES: u64 = 16 << 10;
/// How many: of short writes that belong to others.
pub const SERVER_MANY_BYTES: u64 = 1536 << 10;
/// Payload of the longest request that is not a long one, bytes.
pub const LONG_BYTES: u64 = 1 << 20;
/// How long a client waits for room before the others begin one request at a time, of so many bytes, nanoseconds.
pub const PATIENCE_NS: u64 = 1_000_000_000;
pub const PATIENCE_BYTES: u64 = 64 << 10;
/// How long a client that holds up others may be slow, nanoseconds, how slow that is, and what it holds at the least.
pub const SLOW_NS: u64 = 5_000_000_000;
pub const SLOW_BYTES: u64 = 320 << 10;
/// In this time it has to get through one part in so many of what it holds, too.
pub const SLOW_PART: u64 = 4;
pub const SLOW_HOLDS_BYTES_MIN: u64 = 16 << 10;
/// What a process takes beside its queue, bytes: the promise that `benches/memory` holds the figures against.
pub const MEMORY_BESIDE_FIFO_BYTES: u64 = 64 << 20;
/// Longest request of a metrics client, bytes, and its connections.
pub const HTTP_REQUEST_BYTES_MAX: usize = 8 << 10;
pub const HTTP_CONNECTIONS_MAX: usize = 32;
/// Longest request line of a control socket, bytes, newline included; longer ones end the connection.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 4096;
/// Connections of a control socket, and how long one may take over a request before it is ended, nanoseconds. Who gives way
/// when there are more: `io::control`.
pub const CONTROL_CONNECTIONS_MAX: usize = 64;
pub const CONTROL_REQUEST_NS: u64 = 10_000_000_000;
/// What an answer of a control socket is cut into, and what is queued of it at most beside the piece that fills it up.
pub const CONTROL_PIECE_BYTES: usize = 64 << 10;
/// Longest answer of a control socket that is held as a whole by who asked; a loss report is read as it comes.
pub const CONTROL_ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Longest rest of a loss report beside the list of its missing writes, bytes: a million ranges of unknown seqs.
pub const REPORT_REST_BYTES_MAX: u64 = 64 << 20;
/// Longest entry of that list, bytes.
pub const REPORT_ENTRY_BYTES_MAX: u64 = 4096;
/// How long an NBD client may take over its handshake, nanoseconds.
pub const HANDSHAKE_NS: u64 = 10_000_000_000;
/// How long a TLS handshake may take, nanoseconds, and what is kept of it before the peer is known, bytes.
pub const TLS_HANDSHAKE_NS: u64 = 10_000_000_000;
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 32 << 10;
/// Connections of links that are in their TLS handshake; beyond it the oldest is ended.
pub const TLS_HANDSHAKES_MAX: usize = 64;
/// Longest data of an NBD option that is looked at, bytes: a name of 4096 and every information type, or two queries of
/// metadata contexts as long as a name may be.
pub const NBD_OPTION_BYTES_MAX: usize = 16 << 10;
/// Stretches in one answer to a block status: a client that wants more asks again from there on.
pub const STATUS_STRETCHES_MAX: usize = 4096;

/// Writes up to here do not wait for room behind longer ones, bytes.
pub const WAITING_SHORT_BYTES: u64 = 64 << 10;
/// Smallest memory part of a FIFO, bytes.
pub const FIFO_MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Of the memory part long payloads that wait leave one in so many to ordinary ones.
pub const FIFO_ORDINARY_PART: u64 = 8;
/// Smallest disk part of a FIFO, bytes, when there is one.
pub const FIFO_DISK_BYTES_MIN: u64 = 64 << 20;
/// Smallest payload ring of an auxiliary, bytes, when there is one.
pub const AUX_PAYLOAD_BYTES_MIN: u64 = 64 << 20;
/// Smallest journal of a DR site, bytes.
pub const JOURNAL_BYTES_MIN: u64 = 4 << 20;
/// Smallest spool of a DR site, bytes.
pub const SPOOL_BYTES_MIN: u64 = 192 << 20;
/// A spool of this size holds any batch of volumes of `volume_bytes` together: each block at most once, the headers
/// of pieces of ordinary length, and what is written while it crosses. Bytes.
#[must_use]
pub const fn spool_for_any_batch(volume_bytes: u64) -> u64 {
    (volume_bytes + volume_bytes / 16 + BATCH_WRITES_BYTES_MAX + SPOOL_BYTES_MIN / 4).next_multiple_of(1 << 20)
}
/// What may be written while a batch crosses before it is closed, bytes: several windows.
const BATCH_WRITES_BYTES_MAX: u64 = 128 << 20;
/// Records of DR's journal that writes leave free: those of a status table of `slots`, which a promotion finds there or a
/// writer has when its link comes back, and more for what begins and ends batches.
#[must_use]
pub const fn journal_kept_records(slots: u64) -> u64 {
    slots + slots / 8
}
/// Smallest journal beside a status table of `slots`: writes have as much of it as they leave free. Bytes.
#[must_use]
pub const fn journal_beside_table(slots: u64) -> u64 {
    let segment_records = (SEGMENT_BYTES - BLOCK_BYTES as u64) / RECORD_BYTES as u64;
    let segments = (2 * journal_kept_records(slots)).div_ceil(segment_records);
    if segments * SEGMENT_BYTES > JOURNAL_BYTES_MIN { segments * SEGMENT_BYTES } else { JOURNAL_BYTES_MIN }
}
/// Writes to DR's journal in flight.
pub const DR_APPENDS_INFLIGHT_MAX: usize = 4;
/// Blocks of records in one of them.
pub const DR_APPEND_BLOCKS_MAX: usize = 16;
/// Bytes of payload DR keeps in memory between receipt and apply; the rest is read back from the spool.
pub const DR_CACHE_BYTES_MAX: u64 = 8 << 20;
/// The same where volumes stand on NBD servers, which take memory of their own.
pub const DR_CACHE_BESIDE_SERVERS_BYTES_MAX: u64 = 2 << 20;
/// Largest window of unacknowledged payload a DR site grants, bytes: a line of 1 Gbit/s and 190 ms holds as much.
pub const DR_WINDOW_BYTES_MAX: u64 = 24 << 20;
/// Writes to volumes in flight while DR applies, and their bytes (of the last one up to a piece more).
pub const DR_APPLY_INFLIGHT_MAX: usize = 256;
pub const DR_APPLY_BYTES_MAX: u64 = 8 << 20;
/// Bytes on their way to DR's disks above which its streams are not received from, and below which they are again.
pub const DR_WRITING_BYTES_HIGH: u64 = 24 << 20;
pub const DR_WRITING_BYTES_LOW: u64 = 16 << 20;
/// What a write on its way takes beside its bytes: who asked for it, its record, its place.
pub const DR_WRITE_OVERHEAD_BYTES: u64 = 1 << 10;
/// Bytes of payload that a promotion fetches from the auxiliary's ring before the first of them are in the spool.
pub const DR_FETCH_BYTES_MAX: u64 = 8 << 20;
/// What a DR site takes beside the records of its journal, bytes: `benches/memory` holds the figures against it.
pub const DR_MEMORY_BYTES: u64 = 64 << 20;
/// What each record of its journal that is not applied yet takes on top: in operation, in a promotion, in a plan of one.
/// Measured with 760,000 of them, bytes.
pub const DR_RECORD_MEMORY_BYTES: [u64; 3] = [130, 230, 350];
/// Applied bytes after which DR makes a checkpoint, and the longest time between two while it applies.
pub const DR_CHECKPOINT_BYTES: u64 = 64 << 20;
pub const DR_CHECKPOINT_NS: u64 = 2_000_000_000;
/// Longest time between an acknowledgement of orders and the superblock that says how far the journal reached.
pub const DR_PROMISE_NS: u64 = 20_000_000;
/// Least time between two progress messages, nanoseconds.
pub const PROGRESS_EVERY_NS: u64 = 100_000_000;
/// The same while the primary may wait for room in DR's journal.
pub const PROGRESS_SHORT_NS: u64 = 5_000_000;
/// How long a payload stream may be silent: one payload of the longest kind crosses even a slow link.
pub const STREAM_SILENCE_NS: u64 = 300_000_000_000;
/// How often a stream with nothing on it is probed, nanoseconds.
pub const STREAM_IDLE_PING_NS: u64 = 5_000_000_000;
/// How long a stream may be silent before the primary sends what is on it again on another, nanoseconds, and the
/// slowest a single stream may be; DR may hold its streams back for a while when it has no room.
pub const STREAM_STALL_NS: u64 = 30_000_000_000;
pub const STREAM_BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// How long DR waits for a payload that is due, while none comes at all, before it asks, nanoseconds.
pub const NEED_AFTER_NS: u64 = 60_000_000_000;
/// How long it waits while others come, before it asks whether that one is still on its way.
pub const PASSED_AFTER_NS: u64 = 10_000_000_000;
/// Bytes of one read of the status table at a promotion, and how many of them are in flight.
pub const TABLE_READ_BYTES: u64 = 256 << 10;
pub const TABLE_READS_INFLIGHT_MAX: usize = 8;
/// Longest path of a Unix socket, bytes (`sun_path` holds 108 with the closing zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Longest piece of one operation on the status table as an NBD request, bytes.
pub const REGION_PIECE_BYTES: u32 = 8 << 20;
/// Longest payload of one request to the server of a volume, bytes, and the longest range of one without.
pub const BACKING_PIECE_BYTES: u32 = 4 << 20;
pub const BACKING_RANGE_BYTES: u64 = 1 << 30;
/// The longest range that it is asked about what has storage, bytes, and the first one, and the shortest where there is much to
/// tell; and its answer: a stretch is 8 bytes, and servers tell at most 2^20 of them.
pub const BACKING_STATUS_BYTES: u64 = 256 << 20;
pub const BACKING_STATUS_BYTES_MIN: u64 = 256 << 10;
pub const BACKING_STATUS_ANSWER_BYTES_MAX: u32 = 4 + (8 << 20);
/// Requests on the wire to the server of a volume, and their payload, both ways, from which on the next one waits, bytes.
pub const BACKING_REQUESTS_MAX: usize = 64;
pub const BACKING_WIRE_BYTES_MAX: u64 = 8 << 20;
/// Bytes of changes on NBD servers that no flush covers, of all volumes of a group on the primary and on DR; of one, at the
/// least.
pub const BACKING_KEPT_BYTES_MAX: u64 = 16 << 20;
pub const DR_BACKING_KEPT_BYTES_MAX: u64 = 8 << 20;
pub const BACKING_KEPT_BYTES_MIN: u64 = 256 << 10;

const _: () = assert!(
    DR_WINDOW_BYTES_MAX + DR_CACHE_BYTES_MAX + DR_APPLY_BYTES_MAX + 2 * PAYLOAD_PIECE_BYTES_MAX
        <= DR_MEMORY_BYTES * 3 / 4,
    "what DR has not acknowledged, keeps and applies leaves a quarter of the bound"
);
const _: () = assert!(
    DR_BACKING_KEPT_BYTES_MAX <= DR_CACHE_BYTES_MAX
        && DR_CACHE_BESIDE_SERVERS_BYTES_MAX <= DR_CACHE_BYTES_MAX / 4
        && BACKING_KEPT_BYTES_MIN * VOLUMES_MAX as u64 <= BACKING_KEPT_BYTES_MAX,
    "volumes on servers take little more, however many they are"
);
const _: () = assert!(
    DR_APPLY_BYTES_MAX + PAYLOAD_PIECE_BYTES_MAX < DR_WRITING_BYTES_LOW && DR_WRITING_BYTES_LOW < DR_WRITING_BYTES_HIGH,
    "volumes that are slow hold back no stream while the spool has room"
);
const _: () = assert!(
    2 * DR_WINDOW_BYTES_MAX > PAYLOAD_BYTES_MAX as u64 + PAYLOAD_PIECE_BYTES_MAX,
    "the longest payload of an earlier version passes alone"
);
const _: () = assert!(COVER_RANGES_MAX > 16 * VOLUMES_MAX, "to halve the ranges of each volume halves them all, about");
const _: () = assert!(
    COVER_RANGES_MAX as u64 * 64 * 4 <= MEMORY_BESIDE_FIFO_BYTES / 4,
    "what is lost, what of a batch is to do, all of it and its holes are a small part of the bound"
);
const _: () = assert!(
    BACKING_STATUS_BYTES / 512 * (8 + 16 + 16) <= MEMORY_BESIDE_FIFO_BYTES / 2,
    "an answer about sectors, as it comes, as it is read and as it is handed on, is a part of the bound"
);
const _: () = assert!(
    SMALL_BYTES == PATIENCE_BYTES && SERVER_SMALL_KEPT_BYTES + 2 * LONG_BYTES <= SERVER_WRITE_BYTES_MAX,
    "beside what is kept for small writes there is room for others"
);
const _: () = assert!(
    CONNECTIONS_PEER_MAX + CONNECTIONS_KEPT_UNIX < CONNECTIONS_MAX,
    "beside the greediest peer there are places for others"
);
const _: () = assert!(BLOCK_BYTES.is_multiple_of(RECORD_BYTES), "records never straddle a block");
const _: () = assert!(PIECE_BYTES_MAX <= RANGE_BYTES_MAX, "a piece fits an order record");
const _: () = assert!(COMMIT_RECORDS_MAX * RECORD_BYTES <= FRAME_BODY_BYTES_MAX, "a commit fits a frame");
const _: () =
    assert!(COMMITS_INFLIGHT_MAX * COMMIT_RECORDS_MAX >= REQUESTS_INFLIGHT_MAX, "commits never hold requests back");
const _: () = assert!(CONNECTION_REQUESTS_MAX <= REQUESTS_INFLIGHT_MAX, "one connection never exceeds the group");
const _: () = assert!(
    SERVER_READ_BYTES_MAX + SERVER_WRITE_BYTES_MAX + 2 * SERVER_LONG_BYTES_MAX + SERVER_AHEAD_BYTES_MAX as u64
        <= MEMORY_BESIDE_FIFO_BYTES / 2,
    "what clients hold leaves half of the bound"
);
const _: () = assert!(
    4 * SERVER_REPLIES_BYTES_MAX <= MEMORY_BESIDE_FIFO_BYTES / 8,
    "replies without data are a small part of the bound, also where each took its part when it was larger"
);
const _: () = assert!(
    SERVER_REPLIES_BYTES_MAX / CONNECTIONS_MAX as u64 >= BLOCK_BYTES as u64,
    "however many clients there are, each has many requests in flight"
);
const _: () = assert!(
    2 * PAYLOAD_PIECE_BYTES_MAX <= SERVER_LONG_BYTES_MAX && PAYLOAD_PIECE_BYTES_MAX <= CONNECTION_PAYLOAD_BYTES_MAX,
    "a piece arrives while the one before it is carried out"
);
const _: () = assert!(
    PAYLOAD_PIECE_BYTES_MAX / 2 > LONG_BYTES + BLOCK_BYTES as u64,
    "also the shorter pieces of a payload are long requests"
);
const _: () = assert!(PAYLOAD_PIECE_BYTES_MAX <= PAYLOAD_BYTES_MAX as u64, "a piece fits an order record");
const _: () = assert!(
    FIFO_MEMORY_BYTES_MIN + MEMORY_BESIDE_FIFO_BYTES / 8 > PAYLOAD_PIECE_BYTES_MAX,
    "a piece that passes the smallest FIFO alone is little on top"
);
const _: () = assert!(
    LONG_BYTES * 2 <= SERVER_READ_BYTES_MAX && SERVER_READ_BYTES_MAX <= SERVER_WRITE_BYTES_MAX,
    "an ordinary request fits the share of a client that is alone"
);
const _: () = assert!(CHUNK_BYTES_MAX as u64 <= LONG_BYTES, "what we ask for ourselves is ordinary");
const _: () = assert!(
    TLS_HANDSHAKES_MAX * TLS_HANDSHAKE_BYTES_MAX <= MEMORY_BESIDE_FIFO_BYTES as usize / 16,
    "strangers hold next to nothing"
);
const _: () = assert!(
    BACKING_PIECE_BYTES <= PAYLOAD_BYTES_MAX && BACKING_RANGE_BYTES <= RANGE_BYTES_MAX,
    "any NBD server takes a piece"
);
const _: () = assert!(
    BACKING_KEPT_BYTES_MAX <= MEMORY_BESIDE_FIFO_BYTES / 4,
    "what is remembered of volumes on NBD servers leaves the rest of the bound"
);
const _: () = assert!(REGION_PIECE_BYTES <= PAYLOAD_BYTES_MAX, "any NBD server takes a piece");
const _: () = assert!(CHUNK_BYTES_MAX <= PAYLOAD_BYTES_MAX, "a chunk is stored as a payload is");
const _: () = assert!(PING_EVERY_NS * 2 < LEASE_NS, "one lost ping does not end a lease");
const _: () = assert!(TABLE_SLOTS_MIN as usize >= RECORDS_PER_BLOCK * 2, "a block is never the whole ring");
const _: () = assert!(FIFO_DISK_BYTES_MIN > PAYLOAD_BYTES_MAX as u64, "the longest payload fits the disk FIFO");
const _: () = assert!(AUX_PAYLOAD_BYTES_MIN > PAYLOAD_BYTES_MAX as u64, "the longest payload fits the ring");
const _: () =
    assert!(SPOOL_BYTES_MIN / 4 > PAYLOAD_BYTES_MAX as u64, "the longest payload fits a quarter of the spool");
const _: () = assert!(LIST_ITEMS_MAX * 16 + 4096 <= FRAME_BODY_BYTES_MAX, "a full list and its header fit a frame");
const _: () = assert!(SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64), "a segment is made of blocks");
const _: () = assert!(VOLUMES_MAX * 16 + NAME_BYTES_MAX <= BLOCK_BYTES / 2, "a superblock names every volume");
const _: () =
    assert!(TABLE_SLOTS_MIN.is_multiple_of(BLOCK_BYTES as u64 / 32), "the states of a smallest table are whole blocks");
const _: () = assert!(
    DR_APPENDS_INFLIGHT_MAX * DR_APPEND_BLOCKS_MAX * BLOCK_BYTES < SEGMENT_BYTES as usize,
    "what a crash can tear at the end of the journal is less than a segment"
);
const _: () = assert!(
    NEED_AFTER_NS
        >= STREAM_STALL_NS + CHUNK_BYTES_MAX as u64 * 1_000_000_000 / STREAM_BYTES_PER_SECOND_MIN + LINK_SILENCE_NS,
    "what was on a dead stream is sent again before DR asks for it"
);
const _: () = assert!(STREAM_IDLE_PING_NS * 2 < STREAM_STALL_NS, "one lost ping does not end an idle stream");
const _: () = assert!(STREAM_SILENCE_NS > LINK_SILENCE_NS, "a stream is closed with its order connection, or later");
const _: () = assert!(
    REPORT_ENTRY_BYTES_MAX > 2 * 6 * NAME_BYTES_MAX as u64 + 512,
    "an entry names a volume, however its name has to be escaped"
);
