//! The page of metrics: the numbers of `farshore status --json`, in the text format of OpenMetrics 1.0, which
//! Prometheus reads. Pure; who listens is the daemon.
//!
//! Each number of a status is one metric; the tables here give its name, kind and meaning, and a test holds that none
//! is left out. Names and units are a promise to dashboards: add, never rename.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::cluster::status::Status;

/// A page as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub code: u16,
    pub kind: &'static str,
    pub body: String,
}

/// What a path is answered with: `/metrics`, and `/` for people.
#[must_use]
pub fn page(path: &str, status: &Status) -> Page {
    match path {
        "/metrics" => Page {
            code: 200,
            kind: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body: openmetrics(status),
        },
        "/" => Page { code: 200, kind: "text/html; charset=utf-8", body: html(status) },
        _ => {
            Page { code: 404, kind: "text/plain; charset=utf-8", body: "there is /metrics, and / for people\n".into() }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    /// Its samples end in `_total`.
    Counter,
}
use Kind::{Counter, Gauge};

/// Field of the status, name without `farshore_`, kind, meaning.
type Row = (&'static str, &'static str, Kind, &'static str);

const FIELDS: &[Row] = &[
    ("epoch", "epoch", Gauge, "Epoch of the writer"),
    ("tail_seq", "tail_seq", Gauge, "Highest seq known"),
    ("cut_seq", "cut_seq", Gauge, "The recovery point: DR has everything up to this seq"),
    ("acked_seq", "acked_seq", Gauge, "Every write up to this seq has been acknowledged"),
    ("journal_seq", "journal_seq", Gauge, "Highest seq durable in the journal without a gap"),
    ("applied_seq", "applied_seq", Gauge, "Highest seq applied to the volumes"),
    ("checkpoint_seq", "checkpoint_seq", Gauge, "Highest seq of the last durable checkpoint"),
    ("lag_writes", "lag_writes", Gauge, "Writes not yet at DR"),
    ("lag_bytes", "lag_bytes", Gauge, "Bytes not yet at DR"),
    ("lag_seconds", "lag_seconds", Gauge, "Age of the oldest write not yet at DR"),
    ("overflow", "overflow", Gauge, "1 while the FIFO is at its bound and its policy acts"),
    ("frozen", "frozen", Gauge, "1 while writes wait because no peer may be relied on"),
    ("paced", "paced", Gauge, "1 while writes wait for room in a queue"),
    ("fifo_bytes", "fifo_bytes", Gauge, "Payloads not yet copied, in memory and on disk"),
    ("fifo_memory_bytes", "fifo_memory_bytes", Gauge, "Payloads not yet copied, in memory"),
    ("fifo_disk_bytes", "fifo_disk_bytes", Gauge, "Payloads not yet copied, on disk"),
    ("fifo_memory_limit_bytes", "fifo_memory_limit_bytes", Gauge, "Bound of the FIFO in memory"),
    ("fifo_disk_limit_bytes", "fifo_disk_limit_bytes", Gauge, "Bound of the FIFO on disk"),
    ("fifo_full_in_seconds", "fifo_full_in_seconds", Gauge, "How long the FIFO holds at the present rate"),
    ("inflight_writes", "inflight_writes", Gauge, "Writes that wait for something before they are acknowledged"),
    ("table_slots_used", "table_slots_used", Gauge, "Slots of the status table in use"),
    ("table_slots", "table_slots", Gauge, "Slots of the status table"),
    ("acknowledged_writes", "acknowledged_writes", Counter, "Writes acknowledged since the process started"),
    ("acknowledged_bytes", "acknowledged_bytes", Counter, "Bytes acknowledged since the process started"),
    ("pending_writes", "pending_writes", Gauge, "Payloads that arrived early and are held back by the order"),
    ("missing_writes", "missing_writes", Gauge, "Writes known above the recovery point whose payload is not here"),
    ("spool_bytes", "spool_bytes", Gauge, "Payloads in the spool"),
    ("spool_limit_bytes", "spool_limit_bytes", Gauge, "Size of the spool"),
    ("journal_bytes", "journal_bytes", Gauge, "Bytes of the journal in use"),
    ("journal_limit_bytes", "journal_limit_bytes", Gauge, "Size of the journal"),
    ("synced", "synced", Gauge, "1 once there is a recovery point to promote"),
    ("table_bytes", "table_bytes", Gauge, "Size of the exported status table"),
    ("reads", "table_reads", Counter, "Reads of the status table since the process started"),
    ("writes", "table_writes", Counter, "Writes to the status table since the process started"),
    ("written_bytes", "table_written_bytes", Counter, "Bytes written to the status table since the process started"),
];

/// `fenced` says why on a primary, and how often on an auxiliary.
const FENCED: Row = ("fenced", "fenced", Gauge, "1 once a higher epoch was met: this writer is out of office");
const REFUSED: Row = ("fenced", "fenced_requests", Counter, "Connections and opens refused because of a newer epoch");

const BATCH: &[Row] = &[
    ("total_bytes", "batch_total_bytes", Gauge, "Size of the batch under way"),
    ("remaining_bytes", "batch_remaining_bytes", Gauge, "Bytes of the batch under way that are not copied yet"),
    ("remaining_seconds", "batch_remaining_seconds", Gauge, "Time until both sides are consistent again, about"),
    ("spared_bytes", "batch_spared_bytes", Gauge, "Bytes of the batch under way that did not have to cross"),
    ("seq", "batch_seq", Gauge, "The seq that names the batch under way"),
];

const LISTING: &[Row] = &[
    ("listed_bytes", "listing_listed_bytes", Gauge, "Bytes of volumes looked at for what has storage"),
    ("total_bytes", "listing_total_bytes", Gauge, "Bytes of volumes to be looked at for what has storage"),
];

const VOLUME: &[Row] = &[
    ("size_bytes", "volume_size_bytes", Gauge, "Size of the volume"),
    ("clients", "volume_clients", Gauge, "Clients connected to the volume"),
];

const LINK: &[Row] = &[
    ("rtt_seconds", "link_rtt_seconds", Gauge, "Round trip to the peer"),
    ("sent_bytes", "link_sent_bytes", Counter, "Bytes sent to the peer"),
    ("received_bytes", "link_received_bytes", Counter, "Bytes received from the peer"),
    (
        "compression_saved_bytes",
        "link_compression_saved_bytes",
        Counter,
        "Bytes that did not have to be sent, being compressed",
    ),
    ("order_bytes", "link_order_bytes", Counter, "Bytes of what a write waits for, both ways"),
    ("streams", "link_streams", Gauge, "Payload streams that are up"),
    ("limit_bytes_per_second", "link_limit_bytes_per_second", Gauge, "What the payload streams may send together"),
    ("seconds", "link_state_seconds", Gauge, "How long the link has been in its state"),
];

const CERTIFICATE: &[Row] = &[(
    "remaining_seconds",
    "certificate_remaining_seconds",
    Gauge,
    "Time until the certificate that this host shows others expires, negative once it has",
)];

/// All samples of one name, with what is said of it once.
#[derive(Default)]
struct Families {
    order: Vec<&'static str>,
    found: BTreeMap<&'static str, (Kind, &'static str, Vec<String>)>,
}

impl Families {
    fn sample(&mut self, row: &Row, labels: &str, value: &str) {
        let (_, name, kind, help) = *row;
        let order = &mut self.order;
        let (_, _, lines) = self.found.entry(name).or_insert_with(|| {
            order.push(name);
            (kind, help, Vec::new())
        });
        let total = if kind == Counter { "_total" } else { "" };
        lines.push(format!("farshore_{name}{total}{{{labels}}} {value}\n"));
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for name in &self.order {
            let (kind, help, lines) = &self.found[name];
            let kind = if *kind == Counter { "counter" } else { "gauge" };
            let _ = writeln!(out, "# TYPE farshore_{name} {kind}");
            if let Some(unit) = ["bytes", "seconds"].into_iter().find(|unit| name.ends_with(&format!("_{unit}"))) {
                let _ = writeln!(out, "# UNIT farshore_{name} {unit}");
            }
            let _ = writeln!(out, "# HELP farshore_{name} {help}.");
            lines.iter().for_each(|line| out.push_str(line));
        }
        out.push_str("# EOF\n");
        out
    }
}

fn openmetrics(status: &Status) -> String {
    let value = serde_json::to_value(status).unwrap_or_default();
    let Value::Object(fields) = value else { return "# EOF\n".into() };
    let text = |key: &str| escaped(fields.get(key).and_then(Value::as_str).unwrap_or_default());
    let labels = format!("group=\"{}\",role=\"{}\"", text("group"), text("role"));
    let mut families = Families::default();
    rows(&mut families, FIELDS, &fields, &labels);
    let fenced = if matches!(status, Status::Aux(_)) { REFUSED } else { FENCED };
    rows(&mut families, &[fenced], &fields, &labels);
    if let (Some(mode), Some(protect)) = (fields.get("mode"), fields.get("protect")) {
        let row = ("mode", "protection_reduced", Gauge, "1 while less than the mode asked for is in force");
        families.sample(&row, &labels, if mode == protect { "0" } else { "1" });
    }
    let degraded = fields.get("degraded").and_then(Value::as_array).map_or(0, Vec::len);
    let row = ("degraded", "degraded", Gauge, "How many things are less than what was asked for; status names them");
    families.sample(&row, &labels, &degraded.to_string());
    if let Some(Value::Object(batch)) = fields.get("batch") {
        rows(&mut families, BATCH, batch, &labels);
    }
    if let Some(Value::Object(listing)) = fields.get("listing") {
        rows(&mut families, LISTING, listing, &labels);
    }
    if let Some(Value::Object(certificate)) = fields.get("certificate") {
        rows(&mut families, CERTIFICATE, certificate, &labels);
    }
    for (volume, name) in named(&fields, "volumes", "name") {
        rows(&mut families, VOLUME, volume, &format!("{labels},volume=\"{name}\""));
    }
    links(&mut families, &fields, &labels);
    families.text()
}

/// One sample for each field of the table that the object has as a number, a truth, or words that may be missing.
fn rows(families: &mut Families, table: &[Row], fields: &Map<String, Value>, labels: &str) {
    for row in table {
        match fields.get(row.0) {
            Some(Value::Number(number)) => families.sample(row, labels, &number.to_string()),
            Some(Value::Bool(truth)) => families.sample(row, labels, if *truth { "1" } else { "0" }),
            Some(Value::String(_)) => families.sample(row, labels, "1"),
            Some(Value::Null) if ["frozen", "paced", "fenced"].contains(&row.0) => families.sample(row, labels, "0"),
            _ => {}
        }
    }
}

/// Links by peer. Several to one kind of peer (readers of a table) have one sample, of the first.
fn links(families: &mut Families, fields: &Map<String, Value>, labels: &str) {
    let mut seen = Vec::new();
    for (link, peer) in named(fields, "links", "peer") {
        if seen.contains(&peer) {
            continue;
        }
        let labels = format!("{labels},peer=\"{peer}\"");
        let up = link.get("state").and_then(Value::as_str) == Some("up");
        let row = ("state", "link_up", Gauge, "1 while the link is up");
        families.sample(&row, &labels, if up { "1" } else { "0" });
        rows(families, LINK, link, &labels);
        seen.push(peer);
    }
}

/// The objects of a list with their names.
fn named<'a>(fields: &'a Map<String, Value>, list: &str, key: &str) -> Vec<(&'a Map<String, Value>, String)> {
    let list = fields.get(list).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object);
    list.map(|one| (one, escaped(one.get(key).and_then(Value::as_str).unwrap_or_default()))).collect()
}

/// A label's value between its quotation marks.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The status as JSON on a page that a browser shows.
fn html(status: &Status) -> String {
    let text = serde_json::to_string_pretty(status).unwrap_or_default();
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
         <title>farshore</title></head><body><p>farshore status; for machines: <a href=\"/metrics\">/metrics</a></p>\
         <pre>{text}</pre></body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::status::{
        AuxStatus, BatchStatus, Degraded, DrStatus, LinkStatus, ListingStatus, PrimaryStatus, VolumeStatus,
    };
    use crate::core::ids::Seq;

    fn primary() -> PrimaryStatus {
        PrimaryStatus {
            group: "a \"b\"\\".into(),
            tail_seq: Seq(u64::MAX),
            lag_seconds: 0.25,
            protect: "order".into(),
            mode: "near".into(),
            frozen: Some("both are away".into()),
            volumes: vec![VolumeStatus { name: "db".into(), size_bytes: 5, clients: 2 }],
            batch: Some(BatchStatus { remaining_seconds: Some(2.0), spared_bytes: Some(5), ..BatchStatus::default() }),
            listing: Some(ListingStatus { listed_bytes: 3, total_bytes: 5 }),
            degraded: vec![Degraded::default(), Degraded::default()],
            links: vec![
                LinkStatus { peer: "aux".into(), state: "up".into(), rtt_seconds: Some(0.5), ..LinkStatus::default() },
                LinkStatus { peer: "dr".into(), state: "down".into(), ..LinkStatus::default() },
            ],
            ..PrimaryStatus::default()
        }
    }

    #[test]
    fn a_page_has_the_numbers_of_the_status() {
        let page = page("/metrics", &Status::Primary(Box::new(primary())));
        assert_eq!(page.code, 200);
        let labels = "group=\"a \\\"b\\\"\\\\\",role=\"primary\"";
        for line in [
            &format!("farshore_tail_seq{{{labels}}} 18446744073709551615"),
            &format!("farshore_lag_seconds{{{labels}}} 0.25"),
            &format!("farshore_frozen{{{labels}}} 1"),
            &format!("farshore_paced{{{labels}}} 0"),
            &format!("farshore_listing_listed_bytes{{{labels}}} 3"),
            &format!("farshore_fenced{{{labels}}} 0"),
            &format!("farshore_protection_reduced{{{labels}}} 1"),
            &format!("farshore_degraded{{{labels}}} 2"),
            &format!("farshore_acknowledged_writes_total{{{labels}}} 0"),
            &format!("farshore_volume_clients{{{labels},volume=\"db\"}} 2"),
            &format!("farshore_link_up{{{labels},peer=\"aux\"}} 1"),
            &format!("farshore_link_up{{{labels},peer=\"dr\"}} 0"),
            &format!("farshore_link_rtt_seconds{{{labels},peer=\"aux\"}} 0.5"),
            "# UNIT farshore_lag_bytes bytes",
            "# TYPE farshore_acknowledged_bytes counter",
        ] {
            assert!(page.body.lines().any(|found| found == line), "{line}\n{}", page.body);
        }
        assert!(page.body.ends_with("\n# EOF\n"));
        assert!(!page.body.contains("link_rtt_seconds{group=\"a \\\"b\\\"\\\\\",role=\"primary\",peer=\"dr\"}"));
    }

    #[test]
    fn no_number_of_a_status_is_left_out() {
        let aux = AuxStatus { links: vec![LinkStatus::default()], ..AuxStatus::default() };
        let all = [Status::Primary(Box::new(primary())), Status::Dr(Box::default()), Status::Aux(Box::new(aux))];
        let known = |table: &[Row], key: &str| table.iter().any(|row| row.0 == key);
        let numbers = |value: &Value| -> Vec<String> {
            let fields = value.as_object().expect("an object");
            let number = |value: &&String| fields[*value].is_number() || fields[*value].is_boolean();
            fields.keys().filter(number).cloned().collect()
        };
        for status in &all {
            let value = serde_json::to_value(status).expect("plain data");
            for key in numbers(&value) {
                assert!(known(FIELDS, &key) || key == "fenced", "{key} of {}", value["role"]);
            }
        }
        let value = serde_json::to_value(primary()).expect("plain data");
        for (table, one) in [
            (BATCH, &value["batch"]),
            (LISTING, &value["listing"]),
            (VOLUME, &value["volumes"][0]),
            (LINK, &value["links"][0]),
        ] {
            for key in numbers(one) {
                assert!(known(table, &key), "{key}");
            }
        }
        let _ = DrStatus::default();
    }

    #[test]
    fn people_get_a_page_and_other_paths_are_not_found() {
        let mut status = primary();
        status.group = "<b>".into();
        let status = Status::Primary(Box::new(status));
        assert!(page("/", &status).body.contains("&lt;b&gt;"));
        assert_eq!(page("/metric", &status).code, 404);
    }
}
