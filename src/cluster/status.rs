//! What a role says of itself: the objects behind `farshore status --json` and `farshore promote --json`.
//!
//! Field names are a promise to scripts: add, never rename. Sizes are bytes, durations `_seconds`, instants RFC 3339.
//! Pure: the machines fill these in from their own state and the `now` they are given.

use serde::{Deserialize, Serialize};

use crate::cluster::losses::MissingWrites;
use crate::core::ids::{Epoch, Seq, SeqRange};
use crate::core::modes::LagMax;

/// Whatever role answers: told apart by `role`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Status {
    Primary(Box<PrimaryStatus>),
    Dr(Box<DrStatus>),
    Aux(Box<AuxStatus>),
}

/// Status of a primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryStatus {
    /// Always `"primary"`.
    pub role: PrimaryRole,
    pub group: String,
    pub epoch: Epoch,
    pub volumes: Vec<VolumeStatus>,
    /// Highest seq given to a write.
    pub tail_seq: Seq,
    /// Highest seq below which everything is at DR, as DR last said.
    pub cut_seq: Seq,
    /// Highest seq below which every write has been acknowledged to its client.
    pub acked_seq: Seq,
    /// Writes, bytes and age of what is not yet at DR.
    pub lag_writes: u64,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    /// The mode asked for: `async`, `near`, `order`, `bunker`, `sync`.
    pub protect: String,
    /// The mode in force: `protect`, or what is left of it while a peer is out of reach.
    pub mode: String,
    pub ack: String,
    pub require: String,
    /// What happens when the FIFO is full: `coalesce`, `pace`, `refuse`.
    pub policy: String,
    /// Whether the FIFO is at its bound and `policy` acts.
    pub overflow: bool,
    /// Why writes wait, while they do.
    pub frozen: Option<String>,
    /// What the resize that is under way waits for.
    #[serde(default)]
    pub resizing: Option<String>,
    /// What writes wait for room in, while `overflow = "pace"` makes them.
    pub paced: Option<String>,
    /// Set when a higher epoch was met: this writer is out of office (I7).
    pub fenced: Option<String>,
    /// Payloads not yet copied, in memory and on disk together.
    pub fifo_bytes: u64,
    pub fifo_memory_bytes: u64,
    pub fifo_disk_bytes: u64,
    pub fifo_memory_limit_bytes: u64,
    pub fifo_disk_limit_bytes: u64,
    /// How long it will hold at the present rate; null while it does not fill up.
    #[serde(default)]
    pub fifo_full_in_seconds: Option<f64>,
    /// The bound on the lag, where there is one.
    #[serde(default)]
    pub lag_max: Option<LagMax>,
    /// Writes that wait for something before they are acknowledged.
    pub inflight_writes: u64,
    /// Status table: slots in use and in all.
    pub table_slots_used: u64,
    pub table_slots: u64,
    /// A copy of ranges under way (first sync, catch-up after an outage).
    pub batch: Option<BatchStatus>,
    /// A comparison of both sides: under way, and the last one.
    #[serde(default)]
    pub verify: Option<VerifyStatus>,
    /// A look which parts of the volumes have storage, before a batch of all of them.
    #[serde(default)]
    pub listing: Option<ListingStatus>,
    /// A size for which DR says that it has no room.
    #[serde(default)]
    pub dr_holds_back: Option<HoldsBack>,
    pub degraded: Vec<Degraded>,
    pub links: Vec<LinkStatus>,
    /// The certificate that this host shows others, where it has one.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
    /// Since this process started.
    pub acknowledged_writes: u64,
    pub acknowledged_bytes: u64,
}

/// Status of a DR site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrStatus {
    /// Always `"dr"`.
    pub role: DrRole,
    pub group: String,
    pub epoch: Epoch,
    pub volumes: Vec<VolumeStatus>,
    /// Highest seq known here.
    pub tail_seq: Seq,
    /// The recovery point.
    pub cut_seq: Seq,
    /// Highest seq durable in the journal without a gap.
    pub journal_seq: Seq,
    /// Highest seq applied to the volumes.
    pub applied_seq: Seq,
    /// Highest seq of the last durable checkpoint.
    pub checkpoint_seq: Seq,
    pub lag_writes: u64,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    /// Payloads above the cut: arrived early.
    pub pending_writes: u64,
    /// Orders known above the cut whose payload is not here.
    pub missing_writes: u64,
    pub spool_bytes: u64,
    pub spool_limit_bytes: u64,
    pub journal_bytes: u64,
    pub journal_limit_bytes: u64,
    /// Whether there has been a complete first sync, that is, whether there is a recovery point to promote.
    pub synced: bool,
    pub batch: Option<BatchStatus>,
    /// A promotion under way: the step it is at.
    pub promotion: Option<String>,
    /// The server of a volume that is away, and that whatever is under way waits for.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// A size for which the store here has no room.
    #[serde(default)]
    pub holds_back: Option<HoldsBack>,
    pub degraded: Vec<Degraded>,
    pub links: Vec<LinkStatus>,
    /// The certificate that this host shows others, where it has one.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
}

/// Status of an auxiliary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuxStatus {
    /// Always `"aux"`.
    pub role: AuxRole,
    pub group: String,
    /// The epoch in force; writers of older ones are refused.
    pub epoch: Epoch,
    /// Size of the exported region.
    pub table_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Connections and opens refused since this process started because of a newer epoch.
    pub fenced: u64,
    pub degraded: Vec<Degraded>,
    pub links: Vec<LinkStatus>,
    /// The certificate that this host shows others, where it has one.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
}

/// Words that can only be themselves, so that an untagged [`Status`] is read back as the right role.
macro_rules! role {
    ($name:ident, $word:literal) => {
        #[doc = concat!("The word `", $word, "`.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            #[default]
            #[serde(rename = $word)]
            Here,
        }
    };
}
role!(PrimaryRole, "primary");
role!(DrRole, "dr");
role!(AuxRole, "aux");

/// One volume of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub name: String,
    pub size_bytes: u64,
    /// Clients connected to its export.
    pub clients: u64,
}

/// A connection to a peer (or a set of them that serves one purpose).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `"dr"`, `"aux"`, `"primary"`, `"reader"`.
    pub peer: String,
    pub address: String,
    /// `"up"`, `"connecting"`, `"down"`, `"refused"`.
    pub state: String,
    /// Why it is not up, in words.
    pub reason: Option<String>,
    /// `null` until it has been measured.
    pub rtt_seconds: Option<f64>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Bytes both ways of what a write waits for: order records and their acknowledgements.
    pub order_bytes: u64,
    /// Payload streams that are up, for a link that has any.
    pub streams: u64,
    /// Bytes that did not have to be sent, because what the streams carry is compressed.
    #[serde(default)]
    pub compression_saved_bytes: u64,
    /// Bytes a second that they may send together at present; `null`: as fast as it goes.
    pub limit_bytes_per_second: Option<u64>,
    /// Each way to the peer, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathStatus>,
    /// How long it has been in this state.
    pub seconds: f64,
}

/// One of several ways to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    pub address: String,
    /// `"up"`, `"down"`: left out until it works.
    pub state: String,
    /// Payload streams on it.
    pub streams: u64,
}

/// A certificate, and how long its chain is good.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub path: String,
    /// RFC 3339.
    pub expires: String,
    /// Negative once it has expired.
    pub remaining_seconds: f64,
}

/// A certificate in use: its file, the last second in which it is valid, since the Unix epoch, and why a newer one does not
/// replace it and since when, nanoseconds since then.
pub type Held = (String, u64, Option<(String, u64)>);

impl CertificateStatus {
    /// Fills in a certificate, and what there is to say about it.
    pub fn fill(
        certificate: Option<Held>,
        now_wall_ns: u64,
        status: &mut Option<CertificateStatus>,
        degraded: &mut Vec<Degraded>,
    ) {
        let Some((path, not_after_s, refused)) = certificate else { return };
        degraded.extend(refused.map(|(text, since_ns)| Degraded::new(text, since_ns, now_wall_ns)));
        let until_ns = not_after_s.saturating_mul(1_000_000_000);
        let (expires, since_ns) = (rfc3339(until_ns), until_ns.saturating_sub(EXPIRES_SOON_NS));
        if since_ns <= now_wall_ns {
            let ends = if until_ns < now_wall_ns { "has expired at" } else { "expires at" };
            let what = format!("the certificate {path} {ends} {expires}: make new ones (`farshore certs`)");
            degraded.push(Degraded::new(what, since_ns, now_wall_ns));
        }
        let remaining_seconds = not_after_s as f64 - seconds(now_wall_ns);
        *status = Some(CertificateStatus { path, expires, remaining_seconds });
    }
}

/// A certificate that has less than this left is worth a warning: 30 days.
const EXPIRES_SOON_NS: u64 = 30 * 24 * 3600 * 1_000_000_000;

/// A copy of ranges under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// The seq that names it.
    pub seq: Seq,
    /// Its size; at DR what has come of it, until its end has.
    pub total_bytes: u64,
    /// What has yet to come; DR does not know before its end has.
    pub remaining_bytes: Option<u64>,
    /// What it is: `"first sync"`, `"catch-up"`; at DR `"first sync"`, `"resync"`, `"waiting for room in a store"`,
    /// `"applying"`.
    pub reason: String,
    /// How long until both sides are consistent at a later seq again, at the rate of late; `null` where nothing crosses, or
    /// not enough has yet, and at DR.
    pub remaining_seconds: Option<f64>,
    /// What of it did not have to cross, as DR had the same; `null` at DR.
    pub spared_bytes: Option<u64>,
}

/// A size for which DR's store has no room: nothing from the resize on is applied there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldsBack {
    pub volume: String,
    pub size_bytes: u64,
    pub has_bytes: u64,
    pub lacking_bytes: u64,
    /// What is too small, where, and what to do.
    pub what: String,
}

/// A look which parts of the volumes have storage, under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListingStatus {
    /// Bytes of volumes that have been looked at, and in all.
    pub listed_bytes: u64,
    pub total_bytes: u64,
}

/// Something that is less than what was asked for, and since when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Degraded {
    pub what: String,
    /// RFC 3339.
    pub since: String,
    pub seconds: f64,
}

impl Degraded {
    /// `what` holds since `since_wall_ns`; both times are wall clock, nanoseconds since the Unix epoch.
    #[must_use]
    pub fn new(what: impl Into<String>, since_wall_ns: u64, now_wall_ns: u64) -> Degraded {
        Degraded {
            what: what.into(),
            since: rfc3339(since_wall_ns),
            seconds: seconds(now_wall_ns.saturating_sub(since_wall_ns)),
        }
    }
}

/// Comparisons of both sides (`farshore verify`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyStatus {
    pub running: Option<VerifyProgress>,
    /// Its result, without the ranges.
    pub last: Option<VerifyReport>,
    pub last_age_seconds: Option<f64>,
}

/// One that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// `"comparing"`, `"repairing"`, `"comparing what was repaired"`.
    pub phase: String,
    pub checked_bytes: u64,
    pub total_bytes: u64,
    /// So far.
    pub different_bytes: u64,
    pub seconds: f64,
    /// What it waits for, while it does.
    pub waits_for: Option<String>,
}

/// What `farshore verify` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyReport {
    pub group: String,
    pub checked_bytes: u64,
    /// Before any repair, in whole blocks; what cannot be read is among them.
    pub different_bytes: u64,
    pub ranges: Vec<VerifyRange>,
    /// Ranges that are not listed, for there are too many.
    pub ranges_left_out: u64,
    /// Nothing between what differs is part of a range; otherwise neighbours were joined, for there are too many.
    pub ranges_exact: bool,
    pub repaired_bytes: u64,
    /// Both sides are equal, as of the last comparison of each range.
    pub equal: bool,
    /// The place in the order that the last range was compared at.
    pub as_of_seq: Seq,
    /// RFC 3339.
    pub ended: String,
    pub duration_seconds: f64,
}

/// A range that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRange {
    pub volume: String,
    pub offset: u64,
    pub length: u64,
    /// Which side cannot read it, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// What `farshore resize` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resized {
    pub group: String,
    pub volume: String,
    pub old_size_bytes: u64,
    pub size_bytes: u64,
    /// Place of it in the group's order: a promotion before that serves the old size. `null` where the volume had that size
    /// already.
    pub seq: Option<Seq>,
    /// Whether DR was asked for room before; `null` where there is no DR, or nothing was to be done.
    pub dr_asked: Option<bool>,
}

/// What `farshore recopy` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GivenUp {
    pub group: String,
    /// The recovery point that there was.
    pub cut_seq: Seq,
}

/// What a promotion did, or with `plan` would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromoteReport {
    pub group: String,
    /// The epoch of the new writer.
    pub epoch: Epoch,
    pub cut_seq: Seq,
    pub tail_seq: Seq,
    /// Writes applied to the volumes by this promotion.
    pub replayed: u64,
    /// Payloads that DR did not have and the auxiliary's ring did; of the last attempt, when an earlier one was killed:
    /// what that had fetched already is DR's own by then.
    pub fetched_from_aux: u64,
    pub missing: MissingWrites,
    pub missing_bytes: u64,
    /// `"read"`: the status table was read; `"unreachable"`: it was not, and `--force` went on without it.
    pub aux: String,
    /// From the request until it was known what is lost: the replay that follows is not in it, for the report is stored
    /// before and stays as it was stored.
    pub duration_seconds: f64,
    /// Why writes are missing whose data the auxiliary had kept: which entry of its payload ring is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// What this report cannot vouch for: the directory was damaged and the promotion forced, or `unknown` is not
    /// empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// Writes that existed and of which nothing else is known: they are lost, too. Seqs, inclusive; some of them may
    /// never have been given out, when a primary lost power in between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<SeqRange>,
    /// Set where writes may have been acknowledged whose orders reached nobody who could be asked: what was acknowledged after
    /// this order is lost, and not all of it is known and listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_until: Option<KnownUntil>,
    /// Of a plan: why the promotion would be refused as things stand, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Of a plan: what the promotion would wait for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// The order behind which a report may not know of every write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUntil {
    pub seq: Seq,
    /// When the primary took it in, RFC 3339; not known where nothing came after DR's last checkpoint and its record is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

impl PromoteReport {
    /// The JSON of this report in two parts: what stands before the entries of `missing`, and what stands behind them.
    #[must_use]
    pub fn around_missing(&self) -> (String, String) {
        const NONE: &str = "\"missing\":[]";
        let bare = PromoteReport { missing: MissingWrites::default(), ..self.clone() };
        let text = serde_json::to_string(&bare).expect("plain data without maps of odd keys becomes JSON");
        // Inside of a string its quotes would be escaped.
        let (before, behind) = text.split_once(NONE).expect("the report has the field, and it is empty");
        (format!("{before}{}", &NONE[..NONE.len() - 1]), format!("]{behind}"))
    }
}

/// The word that a mode or policy has in the configuration and in status.
#[must_use]
pub fn word(mode: &impl Serialize) -> String {
    match serde_json::to_value(mode) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("modes are serialised as words: {other:?}"),
    }
}

/// Nanoseconds since the Unix epoch as RFC 3339 in UTC with nine decimals.
#[must_use]
pub fn rfc3339(wall_ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(wall_ns)) {
        Ok(at) => format!("{at:.9}"),
        // Beyond the year 9999: a damaged record may say so, and is shown as it is.
        Err(_) => format!("{wall_ns}ns"),
    }
}

/// Nanoseconds as seconds.
#[must_use]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_reads_back_as_itself() {
        let all = [
            Status::Primary(Box::new(PrimaryStatus { group: "orders".into(), ..Default::default() })),
            Status::Dr(Box::new(DrStatus { synced: true, ..Default::default() })),
            Status::Aux(Box::new(AuxStatus { fenced: 3, ..Default::default() })),
        ];
        for status in all {
            let text = serde_json::to_string(&status).expect("plain data");
            assert_eq!(serde_json::from_str::<Status>(&text).expect(&text), status);
        }
    }

    #[test]
    fn the_names_that_scripts_know_are_there() {
        let primary = serde_json::to_value(PrimaryStatus { links: vec![LinkStatus::default()], ..Default::default() })
            .expect("plain data");
        for key in
            "role group epoch tail_seq cut_seq lag_writes lag_bytes lag_seconds degraded links fifo_bytes".split(' ')
        {
            assert!(primary.get(key).is_some(), "{key}");
        }
        for key in ["peer", "state", "rtt_seconds", "sent_bytes"] {
            assert!(primary["links"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(primary["role"], "primary");
        let dr = serde_json::to_value(DrStatus::default()).expect("plain data");
        for key in
            "role group epoch tail_seq cut_seq lag_writes lag_bytes lag_seconds degraded links journal_seq pending_writes \
             missing_writes applied_seq spool_bytes"
                .split_whitespace()
        {
            assert!(dr.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_promotion_reports_as_documented() {
        let text = r#"{"group":"orders","epoch":2,"cut_seq":4711,"tail_seq":4720,"replayed":120,"fetched_from_aux":0,
            "missing":[{"seq":4712,"volume":"db","op":"write","offset":8192,"length":4096,
            "time":"2026-11-22T10:00:00.123456789Z","state":"sent"}],
            "missing_bytes":36864,"aux":"read","duration_seconds":0.31}"#;
        let report: PromoteReport = serde_json::from_str(text).expect("the documented object");
        assert_eq!(report.cut_seq, Seq(4711));
        let again = serde_json::to_value(&report).expect("plain data");
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).expect("json"));
        let (before, behind) = report.around_missing();
        let one = serde_json::to_string(&report.missing.first().expect("one")).expect("plain data");
        assert_eq!(format!("{before}{one}{behind}"), serde_json::to_string(&report).expect("plain data"));
    }

    #[test]
    fn names_that_look_like_json_do_not_split_a_report() {
        let report =
            PromoteReport { group: r#"a","missing":[],"b"#.into(), aux: "\"missing\":[]".into(), ..Default::default() };
        let (before, behind) = report.around_missing();
        assert_eq!(serde_json::from_str::<PromoteReport>(&format!("{before}{behind}")).expect("one report"), report);
    }

    #[test]
    fn modes_have_the_words_of_the_configuration() {
        use crate::core::modes::{Ack, Overflow, Protect, Require};
        assert_eq!([word(&Protect::Async), word(&Protect::Bunker), word(&Ack::Flush)], ["async", "bunker", "flush"]);
        assert_eq!([word(&Require::Any), word(&Overflow::Coalesce)], ["any", "coalesce"]);
    }

    #[test]
    fn instants_are_rfc_3339() {
        assert_eq!(rfc3339(1_795_341_600_123_456_789), "2026-11-22T10:00:00.123456789Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert!(!rfc3339(u64::MAX).is_empty());
    }
}
