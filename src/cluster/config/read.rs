//! From TOML to [`Config`]: which keys there are, their defaults, and how they must agree with each other.
//!
//! Every error is collected, so that an operator mends a file in one go. Pure.

use std::path::PathBuf;

use super::{
    AuxConfig, Backing, Config, ConfigError, Direct, DrConfig, Fifo, Group, OnIsolated, OwnAux, PrimaryConfig,
    TablePlace, Tls, VolumeConfig, link, places, tls,
};
use crate::cluster::size::exact_size;
use crate::cluster::toml::{Reader, Section};
use crate::core::address::{Address, NbdUri};
use crate::core::modes::{Ack, Compress, LagMax, Overflow, Protect, Require, Scrub};
use crate::limits;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const PROTECT: [(&str, Protect); 5] = [
    ("async", Protect::Async),
    ("near", Protect::Near),
    ("order", Protect::Order),
    ("bunker", Protect::Bunker),
    ("sync", Protect::Sync),
];
const ACK: [(&str, Ack); 2] = [("write", Ack::Write), ("flush", Ack::Flush)];
const REQUIRE: [(&str, Require); 3] = [("both", Require::Both), ("any", Require::Any), ("none", Require::None)];
const ON_ISOLATED: [(&str, OnIsolated); 2] = [("freeze", OnIsolated::Freeze), ("continue", OnIsolated::Continue)];
const OVERFLOW: [(&str, Overflow); 3] =
    [("coalesce", Overflow::Coalesce), ("pace", Overflow::Pace), ("refuse", Overflow::Refuse)];
const COMPRESS: [(&str, Compress); 3] =
    [("auto", Compress::Auto), ("always", Compress::Always), ("off", Compress::Off)];
const DIRECT: [(&str, Direct); 2] = [("auto", Direct::Auto), ("never", Direct::Never)];

/// Reads a whole file.
pub(super) fn config(text: &str, path: &str) -> Result<Config, Vec<ConfigError>> {
    let document = crate::cluster::toml::document(text, path).map_err(|error| vec![error])?;
    let mut r = Reader::new(text, path);
    let root = r.section(document.get_ref(), "", &["tls", "group", "volume", "primary", "aux", "dr"]);
    let (tls, psk) = tls::read(&mut r, &root);
    let group = group(&mut r, &root);
    let volumes = volumes(&mut r, &root);
    let primary =
        r.child(&root, "primary", PRIMARY_KEYS).and_then(|s| primary(&mut r, &s, &volumes, &tls, psk.is_some()));
    let protect = group.as_ref().map_or(Protect::default(), |group| group.protect);
    let aux = r.child(&root, "aux", AUX_KEYS).and_then(|s| aux(&mut r, &s, protect));
    let slots = aux.as_ref().map_or(0, |aux| aux.slots);
    let dr = r.child(&root, "dr", DR_KEYS).and_then(|s| dr(&mut r, &s, &volumes, &tls, psk.is_some(), slots));
    link::check(&mut r, text, primary.as_ref(), dr.as_ref());
    tls::check_links(&mut r, &root, &tls, aux.as_ref(), dr.as_ref());
    tls::check_open(&mut r, &root, (primary.as_ref(), aux.as_ref(), dr.as_ref()), psk.is_some());
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    places::check(&mut r, text, primary.as_ref(), aux.as_ref(), dr.as_ref(), &names);
    if !["primary", "aux", "dr"].iter().any(|name| root.has(name)) {
        r.error_at(0, "", "no role is described: add [primary], [aux] and [dr] (`farshore init` shows how)");
    }
    let (errors, warnings) = r.finish();
    match (group, errors.is_empty()) {
        (Some(group), true) => Ok(Config { path: path.into(), group, volumes, primary, aux, dr, tls, psk, warnings }),
        _ => Err(errors),
    }
}

fn group(r: &mut Reader<'_>, root: &Section<'_>) -> Option<Group> {
    let keys = ["name", "protect", "ack", "require", "on_isolated", "freeze_timeout_seconds"];
    if !root.has("group") {
        r.error_at(0, "group", "there is no [group] section; add one with the group's name");
        return None;
    }
    let s = r.child(root, "group", &keys)?;
    let name = r.required(&s, "name", "the name of the group").and_then(|text| name(r, &s, "name", text));
    let group = Group {
        name: name.unwrap_or_default(),
        protect: r.word(&s, "protect", &PROTECT),
        ack: r.word(&s, "ack", &ACK),
        require: r.word(&s, "require", &REQUIRE),
        on_isolated: r.word(&s, "on_isolated", &ON_ISOLATED),
        freeze_timeout_seconds: r.integer(&s, "freeze_timeout_seconds", 0..=86_400, 0),
    };
    Some(group)
}

/// A name that can stand in an export name and in a path without quoting.
fn name(r: &mut Reader<'_>, s: &Section<'_>, key: &str, text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let problem = if text.is_empty() {
        "is empty".into()
    } else if text.len() > limits::NAME_BYTES_MAX {
        format!("has {} bytes, at most {} are possible", text.len(), limits::NAME_BYTES_MAX)
    } else if !text.chars().all(plain) || text.starts_with(['.', '-']) {
        format!("{text:?} cannot be a name; use letters, digits, `-`, `_` and `.`, starting with a letter or digit")
    } else {
        return Some(text.into());
    };
    r.error(s, key, problem);
    None
}

fn volumes(r: &mut Reader<'_>, root: &Section<'_>) -> Vec<VolumeConfig> {
    let sections = r.children(root, "volume", &["name", "size"]);
    if sections.is_empty() && !root.has("volume") {
        r.error_at(0, "volume", "there is no volume; add [[volume]] with `name` and `size`");
    }
    if sections.len() > limits::VOLUMES_MAX {
        r.error(root, "volume", format!("{} volumes, at most {} in a group", sections.len(), limits::VOLUMES_MAX));
    }
    let mut volumes: Vec<VolumeConfig> = Vec::new();
    for s in &sections {
        let name = r.required(s, "name", "the volume's name").and_then(|text| name(r, s, "name", text));
        let size = r.size(s, "size", 512..=limits::VOLUME_BYTES_MAX, None);
        if let Some(size) = size
            && !size.is_multiple_of(limits::SECTOR_BYTES)
        {
            r.error(s, "size", format!("{size} bytes are not a whole number of 512-byte sectors"));
        }
        if let Some(name) = &name
            && volumes.iter().any(|volume| volume.name == *name)
        {
            r.error(s, "name", format!("{name:?} is the name of an earlier volume too; names are unique in a group"));
        }
        // An unusable one keeps its place and its name, so that its backing is not called unknown as well.
        let name = name.unwrap_or_else(|| as_written(s));
        volumes.push(VolumeConfig { name, size: size.unwrap_or(0) });
    }
    volumes
}

/// The name of a volume, usable or not; empty when there is none.
fn as_written(s: &Section<'_>) -> String {
    s.text("name").unwrap_or_default().to_owned()
}

const PRIMARY_KEYS: &[&str] = &[
    "dir",
    "backing",
    "listen",
    "control",
    "fifo",
    "overflow",
    "lag_max",
    "scrub",
    "link",
    "compress",
    "direct",
    "metrics",
    "tls",
    "client_certificates",
];

fn primary(
    r: &mut Reader<'_>,
    s: &Section<'_>,
    volumes: &[VolumeConfig],
    tls: &Tls,
    psk: bool,
) -> Option<PrimaryConfig> {
    let dir = directory(r, s, "the directory of the intent log, the FIFO and the superblock");
    let backing = backing(r, s, volumes, tls);
    let listen = addresses(r, s, "listen", "where NBD clients connect");
    let fifo = fifo(r, s);
    let control = control(r, s, dir.as_deref());
    let overflow = r.word(s, "overflow", &OVERFLOW);
    let lag_max = lag_max(r, s, overflow);
    let scrub = scrub(r, s);
    let link = link::read(r, s);
    let compress = r.word(s, "compress", &COMPRESS);
    let direct = r.word(s, "direct", &DIRECT);
    let metrics = metrics(r, s);
    let (tls, client_certificates) = tls::of_clients(r, s, tls, psk);
    Some(PrimaryConfig {
        dir: dir?,
        backing: backing?,
        listen: listen?,
        control: control?,
        fifo,
        overflow,
        lag_max,
        scrub,
        link,
        compress,
        direct,
        metrics,
        tls,
        client_certificates,
    })
}

fn fifo(r: &mut Reader<'_>, s: &Section<'_>) -> Fifo {
    let (memory, disk) = (256 * MIB, 8 * GIB);
    let Some(t) = r.child(s, "fifo", &["memory", "disk"]) else { return Fifo { memory, disk } };
    let memory = r.size(&t, "memory", limits::FIFO_MEMORY_BYTES_MIN..=1 << 40, Some(memory)).unwrap_or(memory);
    let disk = r.size(&t, "disk", 0..=1 << 50, Some(disk)).unwrap_or(disk);
    if disk != 0 && disk < limits::FIFO_DISK_BYTES_MIN {
        let least = exact_size(limits::FIFO_DISK_BYTES_MIN);
        r.error(&t, "disk", format!("{disk} bytes are too few: at least \"{least}\", or 0 for no disk FIFO"));
    }
    Fifo { memory, disk }
}

fn lag_max(r: &mut Reader<'_>, s: &Section<'_>, overflow: Overflow) -> Option<LagMax> {
    let t = r.child(s, "lag_max", &["writes", "bytes", "seconds"])?;
    if overflow != Overflow::Pace {
        r.error(s, "lag_max", "is kept by making writes wait: set overflow = \"pace\" as well, or remove it");
    }
    let writes = t.has("writes").then(|| r.integer(&t, "writes", 1..=u64::MAX >> 1, 1));
    let bytes = if t.has("bytes") { r.size(&t, "bytes", limits::SECTOR_BYTES..=1 << 60, None) } else { None };
    let seconds = t.has("seconds").then(|| r.integer(&t, "seconds", 1..=86_400 * 365, 1));
    let lag_max = LagMax { writes, bytes, seconds };
    if lag_max == LagMax::default() {
        r.error(s, "lag_max", "names no bound: for example { writes = 10000, bytes = \"1GiB\", seconds = 30 }");
        return None;
    }
    Some(lag_max)
}

fn scrub(r: &mut Reader<'_>, s: &Section<'_>) -> Option<Scrub> {
    let t = r.child(s, "scrub", &["every_hours", "rate"])?;
    let hours = r.integer(&t, "every_hours", 1..=24 * 366, 24 * 7);
    let rate = r.size(&t, "rate", limits::SCRUB_RATE_MIN..=1 << 40, Some(20 * MIB)).unwrap_or(20 * MIB);
    Some(Scrub { every_ns: hours * 3600 * 1_000_000_000, rate })
}

const AUX_KEYS: &[&str] = &["dir", "listen", "address", "control", "slots", "payload", "table", "metrics"];

fn aux(r: &mut Reader<'_>, s: &Section<'_>, protect: Protect) -> Option<AuxConfig> {
    let payload_default = if protect == Protect::Bunker { GIB } else { 0 };
    let slots = r.integer(s, "slots", limits::TABLE_SLOTS_MIN..=limits::TABLE_SLOTS_MAX, limits::TABLE_SLOTS_DEFAULT);
    let payload = r.size(s, "payload", 0..=1 << 50, Some(payload_default)).unwrap_or(payload_default);
    if payload != 0 && payload < limits::AUX_PAYLOAD_BYTES_MIN {
        let least = exact_size(limits::AUX_PAYLOAD_BYTES_MIN);
        r.error(s, "payload", format!("{payload} bytes are too few: at least \"{least}\", or 0 for no payload ring"));
    } else if payload == 0 && protect == Protect::Bunker {
        r.error(
            s,
            "payload",
            "0 leaves no room for payloads, which protect = \"bunker\" keeps here; for example \"1GiB\"",
        );
    }
    let metrics = metrics(r, s);
    if s.has("table") && !s.has("listen") {
        let table = r.required(s, "table", "where the status table is").and_then(|text| table(r, s, text))?;
        if metrics.is_some() {
            r.warn(s, "metrics", "is not served by anyone: with `table` and without `dir` no auxiliary of ours runs");
        }
        return Some(AuxConfig { own: None, slots, payload, table, metrics });
    }
    let dir = directory(r, s, "the directory of the status table");
    let listen = r.required(s, "listen", "where primary and DR connect").and_then(|text| address(r, s, "listen", text));
    let control = control(r, s, dir.as_deref());
    let reached = reached(r, s, listen.as_ref());
    let table = match r.string(s, "table") {
        Some(text) => table(r, s, text)?,
        None => TablePlace::Own(reached?),
    };
    Some(AuxConfig {
        own: Some(OwnAux { dir: dir?, listen: listen?, control: control? }),
        slots,
        payload,
        table,
        metrics,
    })
}

fn table(r: &mut Reader<'_>, s: &Section<'_>, text: &str) -> Option<TablePlace> {
    if text.contains("://") {
        return match text.parse::<NbdUri>() {
            Ok(uri) => Some(TablePlace::Nbd(uri)),
            Err(error) => {
                r.error(s, "table", format!("{error}"));
                None
            }
        };
    }
    if text.is_empty() {
        r.error(s, "table", "is empty; write an nbd:// URI or the path of a file on storage that both hosts mount");
        return None;
    }
    if !text.starts_with('/') {
        let text = format!(
            "{text} is a relative path: each host would look for it in another place; write the whole path, from / on"
        );
        r.error(s, "table", text);
        return None;
    }
    Some(TablePlace::File(PathBuf::from(text)))
}

const DR_KEYS: &[&str] = &[
    "dir",
    "backing",
    "listen",
    "address",
    "paths",
    "export",
    "control",
    "streams",
    "journal",
    "spool",
    "spool_max",
    "direct",
    "metrics",
    "tls",
    "client_certificates",
];

fn dr(
    r: &mut Reader<'_>,
    s: &Section<'_>,
    volumes: &[VolumeConfig],
    tls: &Tls,
    psk: bool,
    slots: u64,
) -> Option<DrConfig> {
    let dir = directory(r, s, "the directory of the journal, the spool and the superblock");
    let backing = backing(r, s, volumes, tls);
    let listen = r.required(s, "listen", "where the primary connects").and_then(|text| address(r, s, "listen", text));
    let reached = reached(r, s, listen.as_ref());
    let paths = if s.has("paths") { paths(r, s, reached.as_ref()) } else { Some(Vec::new()) };
    let export = addresses(r, s, "export", "where NBD clients connect after a promotion");
    let control = control(r, s, dir.as_deref());
    let streams = r.integer(s, "streams", 1..=limits::STREAMS_MAX as u64, 4);
    let journal = r.size(s, "journal", limits::JOURNAL_BYTES_MIN..=1 << 40, Some(64 * MIB)).unwrap_or(64 * MIB);
    if !journal.is_multiple_of(MIB) {
        r.error(s, "journal", format!("{journal} bytes are not a whole number of MiB, of which its segments are made"));
    }
    let enough = limits::journal_beside_table(slots);
    if journal < enough {
        let text = format!(
            "{journal} bytes are too few for a status table of {slots} slots ([aux] slots): a promotion has to find room \
             for all of its orders; at least \"{}MiB\"",
            enough / MIB
        );
        r.error(s, "journal", text);
    }
    let spool = r.size(s, "spool", limits::SPOOL_BYTES_MIN..=1 << 50, Some(GIB)).unwrap_or(GIB);
    if !spool.is_multiple_of(MIB) {
        r.error(s, "spool", format!("{spool} bytes are not a whole number of MiB"));
    }
    let spool_max = spool_max(r, s, spool);
    let direct = r.word(s, "direct", &DIRECT);
    let metrics = metrics(r, s);
    let (tls, client_certificates) = tls::of_clients(r, s, tls, psk);
    Some(DrConfig {
        dir: dir?,
        backing: backing?,
        listen: listen?,
        address: reached?,
        paths: paths?,
        export: export?,
        control: control?,
        streams: streams as usize,
        journal,
        spool,
        spool_max,
        direct,
        metrics,
        tls,
        client_certificates,
    })
}

/// How far the spool may grow: a size, or `auto`.
fn spool_max(r: &mut Reader<'_>, s: &Section<'_>, spool: u64) -> Option<u64> {
    if !s.has("spool_max") || s.text("spool_max") == Some("auto") {
        return None;
    }
    let most = r.size(s, "spool_max", 0..=1 << 50, None)?;
    if most < spool {
        let text = format!("{most} bytes are less than the spool has ({spool}): as many, and it does not grow");
        r.error(s, "spool_max", text);
    }
    Some(most)
}

/// What each volume stands on, in their order.
fn backing(r: &mut Reader<'_>, s: &Section<'_>, volumes: &[VolumeConfig], tls: &Tls) -> Option<Vec<Backing>> {
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    if !s.has("backing") {
        r.error(
            s,
            "backing",
            "is missing: the file, block device or nbd:// URI of each volume, for example { db = \"/srv/db.img\" }",
        );
        return None;
    }
    // Which of them it has to name is not known before each volume has a name.
    if names.contains(&"") {
        return None;
    }
    let t = r.child(s, "backing", &names)?;
    let mut found: Vec<Backing> = Vec::new();
    for name in names {
        if !t.has(name) {
            r.error(s, "backing", format!("says nothing of volume {name:?}; add {name} = \"…\""));
            continue;
        }
        let Some(text) = r.string(&t, name) else { continue };
        let one = if text.is_empty() {
            Err("is empty; write the path of a file or block device, or an nbd:// URI".to_owned())
        } else if text.contains("://") {
            remote(r, &t, name, text, tls)
        } else if let Some(scheme) = scheme(text) {
            Err(format!(
                "{text:?} begins as a URI of {scheme:?} does: an NBD server is nbd://host[:port]/export or \
                 nbd+unix:///export?socket=/path, other servers are reached by way of one (README, \"Backing stores\"), and \
                 a file of that name is ./{text}"
            ))
        } else {
            Ok(Backing::File(PathBuf::from(text)))
        };
        match one {
            Ok(one) if found.iter().any(|other| other.is_same(&one)) => {
                r.error(&t, name, format!("{text} backs another volume of the group already"));
            }
            Ok(one) => found.push(one),
            Err(problem) => r.error(&t, name, problem),
        }
    }
    (found.len() == volumes.len()).then_some(found)
}

/// What stands before the first colon, if it could be the scheme of a URI (RFC 3986, section 3.1).
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(plain)).then_some(scheme)
}

/// A volume on an NBD server.
fn remote(r: &mut Reader<'_>, t: &Section<'_>, name: &str, text: &str, tls: &Tls) -> Result<Backing, String> {
    let uri = text.parse::<NbdUri>().map_err(|error| error.to_string())?;
    match &uri.tls {
        Some(secure)
            if secure.certificates.is_none() && secure.key.is_none() && !matches!(tls, Tls::Certificates(_)) =>
        {
            return Err(format!(
                "{text}: which CA is to be believed? Add ?tls-certificates=DIR (with ca-cert.pem in it) to the URI, or \
                 [tls] to this file"
            ));
        }
        None if !uri.address.is_local() => {
            r.warn(
                t,
                name,
                "is reached without TLS: anybody on the way can read and forge it (write nbds:// if it can)",
            );
        }
        _ => {}
    }
    Ok(Backing::Nbd(uri))
}

fn path(r: &mut Reader<'_>, s: &Section<'_>, key: &str, what: &str) -> Option<PathBuf> {
    let text = r.required(s, key, what)?;
    if text.is_empty() {
        r.error(s, key, format!("is empty; write {what}"));
        return None;
    }
    Some(PathBuf::from(text))
}

/// The directory of a role, which nothing else is in.
fn directory(r: &mut Reader<'_>, s: &Section<'_>, what: &str) -> Option<PathBuf> {
    let dir = path(r, s, "dir", what)?;
    if places::is_root(&dir) {
        let text = format!(
            "{} is the root of the whole system; give the role a directory of its own, for example /var/lib/farshore/primary",
            dir.display()
        );
        r.error(s, "dir", text);
        return None;
    }
    Some(dir)
}

/// The control socket; in `dir` unless said otherwise.
fn control(r: &mut Reader<'_>, s: &Section<'_>, dir: Option<&std::path::Path>) -> Option<PathBuf> {
    if !s.has("control") {
        return dir.map(|dir| dir.join("control"));
    }
    let path = path(r, s, "control", "the path of the control socket")?;
    if path.as_os_str().len() > limits::SOCKET_PATH_BYTES_MAX {
        let text = format!("the path of a unix socket has at most {} bytes", limits::SOCKET_PATH_BYTES_MAX);
        r.error(s, "control", text);
    }
    Some(path)
}

fn address(r: &mut Reader<'_>, s: &Section<'_>, key: &str, text: &str) -> Option<Address> {
    if text.contains("://") {
        r.error(s, key, format!("{text} is a URI: write host:port, or unix:/path"));
        return None;
    }
    match text.parse::<Address>() {
        Ok(address) => Some(address),
        Err(error) => {
            r.error(s, key, format!("{error}"));
            None
        }
    }
}

/// Where NBD is served: an address, or as a URI with no export, for every volume is one.
fn served(r: &mut Reader<'_>, s: &Section<'_>, key: &str, text: &str) -> Option<Address> {
    if !text.contains("://") {
        return address(r, s, key, text);
    }
    match text.parse::<NbdUri>() {
        Ok(NbdUri { address, export, tls: None }) if export.is_empty() => return Some(address),
        Ok(NbdUri { tls: Some(_), .. }) => {
            r.error(
                s,
                key,
                format!("{text}: TLS is said by `tls` and [tls], not by the URI: write nbd:// or nbd+unix://"),
            );
        }
        Ok(NbdUri { address, .. }) => {
            let text = format!("{text} names an export, and all volumes are served at one place: write \"{address}\"");
            r.error(s, key, text);
        }
        Err(error) => r.error(s, key, format!("{error}")),
    }
    None
}

fn addresses(r: &mut Reader<'_>, s: &Section<'_>, key: &str, what: &str) -> Option<Vec<Address>> {
    let empty = format!("is empty: {what}, for example [\"unix:/run/farshore/nbd.sock\"]");
    listed(r, s, key, (what, &empty), |r, text| served(r, s, key, text))
}

/// At least one address, each listed once; `what` they are, and what is said where there is `none`.
fn listed(
    r: &mut Reader<'_>,
    s: &Section<'_>,
    key: &str,
    (what, none): (&str, &str),
    mut one: impl FnMut(&mut Reader<'_>, &str) -> Option<Address>,
) -> Option<Vec<Address>> {
    let texts = r.strings(s, key, what)?;
    let mut found: Vec<Address> = Vec::new();
    for text in &texts {
        match one(r, text) {
            Some(one) if found.contains(&one) => r.error(s, key, format!("{text} is listed twice")),
            Some(one) => found.push(one),
            None => {}
        }
    }
    if texts.is_empty() {
        r.error(s, key, none);
    }
    (found.len() == texts.len() && !found.is_empty()).then_some(found)
}

/// Other ways to DR than the address: over TCP, and at least one.
fn paths(r: &mut Reader<'_>, s: &Section<'_>, reached: Option<&Address>) -> Option<Vec<Address>> {
    let what = "other addresses of the same DR, over other networks";
    let none = "is empty: other addresses of the same DR, for example [\"10.1.0.7:10830\"], or leave it out";
    listed(r, s, "paths", (what, none), |r, text| {
        let why = match address(r, s, "paths", text)? {
            Address::Unix(_) => ": a way to another host is host:port",
            one if Some(&one) == reached => " is the address already",
            one => return Some(one),
        };
        r.error(s, "paths", format!("{text}{why}"));
        None
    })
}

/// Where others connect: `address`, or else `listen` when that is an address others can connect to.
fn reached(r: &mut Reader<'_>, s: &Section<'_>, listen: Option<&Address>) -> Option<Address> {
    if let Some(text) = r.string(s, "address") {
        return address(r, s, "address", text);
    }
    let listen = listen?;
    if let Address::Tcp(text) = listen
        && ["0.0.0.0:", "[::]:", "*:"].iter().any(|any| text.starts_with(any))
    {
        let text = format!("{text} is every address of this host; add `address = \"host:port\"` for those who connect");
        r.error(s, "listen", text);
        return None;
    }
    Some(listen.clone())
}

fn metrics(r: &mut Reader<'_>, s: &Section<'_>) -> Option<Address> {
    r.string(s, "metrics").and_then(|text| address(r, s, "metrics", text))
}
