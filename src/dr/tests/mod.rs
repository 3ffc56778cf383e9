//! The DR machine on trial: random histories, random links, a disk that forgets and tears.
//!
//! `disk` completes operations in random order, loses what was not synced at a crash and tears writes at
//! sectors. `writer` is a model of a primary with an oracle of every prefix of its history. `run` drives both
//! from one seed and checks what was promised (I3), the promoted image (I5) and its report (I4). `damage` does
//! harm to the files between a stop and a start (I8), `flips` to single bits and lengths of them.
//! In `mended` a promotion says why orders were missing in the journal.
//! `foresee` holds a plan against the promotion that follows, `look` a refusal against what it left untouched; in `room` a store
//! is too small for what a volume grows to; `asking` is of payloads that do not come; `admitted` holds a report against what
//! it cannot know; in `growth` a batch is larger than the spool; in `starts` a directory is new, or not what its configuration says;
//! `every_start` is the table of recovery over all its inputs.

mod admitted;
mod asking;
mod batches;
mod damage;
mod disk;
mod every_start;
mod flips;
mod foresee;
mod growth;
mod look;
mod mended;
mod named;
mod orphans;
mod patched;
mod room;
mod run;
mod scan;
mod scenarios;
mod staged;
mod starts;
mod writer;
