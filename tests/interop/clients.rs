//! Every client there is, with every feature it has, against a whole group: a primary with its auxiliary and DR.
//!
//! Prints a table: `cargo test --test interop clients -- --nocapture`. A client that is not installed is in it, with
//! that reason.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore::cli::certs;
use farshore::cli::demo::site::{self, Plan, Role, Site};
use farshore::cli::relay::line::Settings;
use farshore::nbd::protocol::*;
use serde_json::Value;

use super::harness::{noise, python_with_libnbd, tool};
use super::raw::Raw;

const MIB: u64 = 1 << 20;
/// Longer than 32 bits can say.
const LARGE_BYTES: u64 = 6 << 30;
const DB_BYTES: u64 = 64 * MIB;

/// A group whose volumes are sparse files: `db`, and `large` for lengths of 64 bits.
pub struct Group {
    pub site: Site,
    scratch: site::Scratch,
}

impl Group {
    pub fn start() -> Result<Group> {
        Group::of(&[("db", DB_BYTES), ("large", LARGE_BYTES)])
    }

    /// As `start`, with certificates in the directory: its clients may ask for TLS on the unix socket.
    pub fn secured() -> Result<Group> {
        let scratch = site::Scratch::new("clients")?;
        let dir = scratch.path.join("tls");
        let certificates =
            certs::Plan { group: "demo".into(), dir: dir.clone(), days: 90, ca: None, hosts: Vec::new() };
        certs::make(&certificates).map_err(|failure| anyhow::anyhow!("{}", failure.text))?;
        let path = |name: &str| format!("\"{}/{{role}}/{name}\"", dir.display());
        let (ca, cert, key) = (path("ca-cert.pem"), path("cert.pem"), path("key.pem"));
        Group::with(scratch, &[("db", DB_BYTES)], &format!("\n[tls]\nca = {ca}\ncert = {cert}\nkey = {key}"))
    }

    /// The directory of the CA's certificate, for clients.
    pub fn ca_only(&self) -> Result<std::path::PathBuf> {
        let dir = self.scratch.path.join("ca");
        std::fs::create_dir_all(&dir)?;
        std::fs::copy(self.scratch.path.join("tls/primary/ca-cert.pem"), dir.join("ca-cert.pem"))?;
        Ok(dir)
    }

    fn of(volumes: &[(&str, u64)]) -> Result<Group> {
        Group::with(site::Scratch::new("clients")?, volumes, "")
    }

    /// `more`: lines behind those of the primary.
    fn with(scratch: site::Scratch, volumes: &[(&str, u64)], more: &str) -> Result<Group> {
        let plan = Plan {
            program: env!("CARGO_BIN_EXE_farshore").into(),
            dir: scratch.path.clone(),
            volumes: volumes.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
            line: Settings { delay: Duration::ZERO, bytes_per_second: f64::INFINITY },
            settings: vec![
                ("primary", format!("fifo = {{ memory = \"64MiB\", disk = \"256MiB\" }}{more}")),
                ("aux", "slots = 16384".into()),
                ("dr", "journal = \"8MiB\"\nspool = \"256MiB\"".into()),
            ],
        };
        let mut site = Site::new(plan)?;
        site.start_all()?;
        Ok(Group { site, scratch })
    }

    fn uri(&self, volume: &str) -> String {
        self.site.uri(Role::Primary, volume)
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.site.path("nbd.sock")
    }

    /// Bytes of storage that a volume takes at the primary.
    fn allocated(&self, volume: &str) -> Result<u64> {
        Ok(std::fs::metadata(self.site.backing(Role::Primary, volume))?.blocks() * 512)
    }

    /// A volume whose second quarter is noise, and nothing else has storage.
    fn known_holes(&self, volume: &str) -> Result<()> {
        let mut raw = Raw::extended(&self.socket(), volume)?;
        raw.done(0, CMD_TRIM, 0, DB_BYTES, &[])?;
        let data = noise(7, 16 << 20);
        raw.done(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, 16 * MIB, 16 * MIB, &data)?;
        raw.done(0, CMD_FLUSH, 0, 0, &[])?;
        Ok(())
    }
}

/// What a client is asked to do; `None`: it is not installed.
type Attempt = fn(&Group) -> Result<Option<()>>;

/// Client, feature, and how it is tried.
const ROWS: [(&str, &str, Attempt); 21] = [
    ("nbdinfo", "list of exports, default export refused", nbdinfo_list),
    ("nbdinfo", "the only volume is the default export", nbdinfo_default),
    ("nbdinfo", "size, flags, block sizes (--json)", nbdinfo_json),
    ("nbdinfo", "--can of every feature", nbdinfo_can),
    ("nbdinfo", "--map of a file with known holes", nbdinfo_map),
    ("nbdcopy", "in, four connections, sparse stays sparse", nbdcopy_in),
    ("nbdcopy", "out, holes stay holes", nbdcopy_out),
    ("nbdsh", "every flag and command, structured replies", nbdsh_structured),
    ("nbdsh", "every flag and command, simple replies", nbdsh_simple),
    ("qemu-img", "map of a file with known holes", qemu_map),
    ("qemu-img", "map over 4 GiB (extended headers)", qemu_map_large),
    ("qemu-img", "convert in and out, compare", qemu_convert),
    ("qemu-img", "bench, reads and writes", qemu_bench),
    ("qemu-io", "write -z -u -f, discard, reads", qemu_io),
    ("qemu-io", "discard and write -z -u of gigabytes", qemu_io_large),
    ("nbdkit nbd", "plugin in front: map, copy through it", nbdkit_plugin),
    ("nbd-client", "-l, its list of exports", nbd_client_list),
    ("fio", "random writes at depth, verified, trims", fio_verify),
    ("our own", "extended headers, every command", raw_extended),
    ("our own", "a 6 GiB trim and zero in one request", raw_long),
    ("our own", "EXPORT_NAME after extended headers", raw_export_name),
];

#[test]
fn clients_and_features() {
    let group = Group::start().expect("a group starts");
    let mut failed = Vec::new();
    println!("{:<11} {:<46} outcome", "client", "feature");
    for (client, feature, attempt) in ROWS {
        let outcome = match attempt(&group) {
            Ok(Some(())) => "passed".to_owned(),
            Ok(None) => "not tried: the client is not installed".to_owned(),
            Err(error) => {
                failed.push(format!("{client}, {feature}: {error:#}"));
                format!("FAILED: {error:#}")
            }
        };
        println!("{client:<11} {feature:<46} {outcome}");
    }
    let ended = group.site.primary().expect("the primary still answers");
    assert!(ended.degraded.is_empty(), "{:?}", ended.degraded);
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), group.site.log(Role::Primary));
}

/// Runs a client and returns what it printed; an error carries everything it said.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}{errors}", output.status);
    Ok(said)
}

/// Runs a client by its name and arguments; `None` when it is not installed.
fn client(name: &str, arguments: &[&str]) -> Result<Option<String>> {
    let Some(mut command) = tool(name) else { return Ok(None) };
    output(command.args(arguments)).map(Some)
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

fn nbdinfo_list(group: &Group) -> Result<Option<()>> {
    let Some(said) = client("nbdinfo", &["--list", "--json", &group.uri("")])? else { return Ok(None) };
    let list = json(&said)?;
    let names: Vec<&str> =
        list["exports"].as_array().into_iter().flatten().filter_map(|e| e["export-name"].as_str()).collect();
    ensure!(names == ["db", "large"], "{said}");
    // A group of several volumes has no default export, and says which there are (nbdinfo does not pass it on).
    let refused = tool("nbdinfo").context("found above")?.arg(group.uri("")).output()?;
    ensure!(!refused.status.success());
    let (code, words) = Raw::connect(&group.socket())?.option(OPT_GO, &[0; 6])?.remove(0);
    ensure!(code == REP_ERR_UNKNOWN && String::from_utf8_lossy(&words).contains("db, large"), "{words:?}");
    Ok(Some(()))
}

fn nbdinfo_default(_: &Group) -> Result<Option<()>> {
    let group = Group::of(&[("single", DB_BYTES)])?;
    let mut raw = Raw::connect(&group.socket())?;
    let asked = [&[0, 0, 0, 0, 0, 1][..], &INFO_NAME.to_be_bytes()].concat();
    let name = [&INFO_NAME.to_be_bytes()[..], b"single"].concat();
    ensure!(raw.option(OPT_INFO, &asked)?.contains(&(REP_INFO, name)), "its own name is told");
    let Some(said) = client("nbdinfo", &["--size", &group.uri("")])? else { return Ok(None) };
    ensure!(said.trim() == DB_BYTES.to_string(), "{said}");
    Ok(Some(()))
}

fn nbdinfo_json(group: &Group) -> Result<Option<()>> {
    let Some(said) = client("nbdinfo", &["--json", &group.uri("db")])? else { return Ok(None) };
    let export = &json(&said)?["exports"][0];
    ensure!(export["export-size"] == DB_BYTES && export["is_read_only"] == false, "{said}");
    ensure!(export["description"].as_str().is_some_and(|text| text.contains("farshore")), "{said}");
    ensure!(export["block_size_minimum"] == 1 && export["block_size_maximum"] == 32 << 20, "{said}");
    ensure!(export["contexts"][0] == "base:allocation", "{said}");
    Ok(Some(()))
}

fn nbdinfo_can(group: &Group) -> Result<Option<()>> {
    let features =
        ["connect", "write", "structured", "df", "flush", "fua", "multi-conn", "trim", "zero", "fast-zero", "cache"];
    for feature in features {
        if client("nbdinfo", &["--can", feature, &group.uri("db")]).context(feature)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

/// The map of known holes, as nbdinfo prints it: offset, length, type.
fn is_known_map(said: &str) -> Result<()> {
    let map: Vec<(u64, u64, bool)> = json(said)?
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["offset"].as_u64()?, one["length"].as_u64()?, one["type"].as_u64()? == 3)))
        .collect();
    let known = [(0, 16 * MIB, true), (16 * MIB, 16 * MIB, false), (32 * MIB, 32 * MIB, true)];
    ensure!(map == known, "{said}");
    Ok(())
}

fn nbdinfo_map(group: &Group) -> Result<Option<()>> {
    group.known_holes("db")?;
    let Some(said) = client("nbdinfo", &["--map", "--json", &group.uri("db")])? else { return Ok(None) };
    is_known_map(&said)?;
    Ok(Some(()))
}

/// A sparse file of the size of `db`, with 8 MiB of noise in it.
fn sparse(path: &Path) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path)?;
    file.set_len(DB_BYTES)?;
    file.write_all_at(&noise(3, 8 << 20), 24 * MIB)?;
    Ok(std::fs::read(path)?)
}

fn nbdcopy_in(group: &Group) -> Result<Option<()>> {
    let image = group.scratch.path.join("sparse.img");
    let bytes = sparse(&image)?;
    let arguments = ["--connections=4", "--flush", "--destination-is-zero"];
    group.known_holes("db")?;
    let image = image.to_string_lossy().into_owned();
    // Without the promise that the destination is empty, holes are zeroed there.
    let Some(_) = client("nbdcopy", &[&arguments[..2], &[&image, &group.uri("db")]].concat())? else { return Ok(None) };
    let mut raw = Raw::extended(&group.socket(), "db")?;
    for at in (0..DB_BYTES).step_by(16 << 20) {
        ensure!(raw.read(at, 16 * MIB)? == bytes[at as usize..][..16 << 20], "the copy differs near {at}");
    }
    let allocated = group.allocated("db")?;
    ensure!(allocated <= 9 * MIB, "{allocated} bytes are allocated for 8 MiB of data");
    Ok(Some(()))
}

fn nbdcopy_out(group: &Group) -> Result<Option<()>> {
    group.known_holes("db")?;
    let back = group.scratch.path.join("back.img");
    let Some(_) = client("nbdcopy", &["--connections=4", &group.uri("db"), &back.to_string_lossy()])? else {
        return Ok(None);
    };
    let bytes = std::fs::read(&back)?;
    ensure!(bytes.len() as u64 == DB_BYTES && bytes[16 << 20..32 << 20] == noise(7, 16 << 20), "the copy differs");
    let allocated = std::fs::metadata(&back)?.blocks() * 512;
    ensure!(allocated <= 17 * MIB, "{allocated} bytes are allocated for 16 MiB of data");
    Ok(Some(()))
}

fn nbdsh(group: &Group, style: &str) -> Result<Option<()>> {
    let Some(mut python) = python_with_libnbd() else { return Ok(None) };
    let script = include_str!("features.py");
    let said = output(python.args(["-c", script, &group.uri("db"), style, &DB_BYTES.to_string()]))?;
    ensure!(said.trim() == "held", "{said}");
    Ok(Some(()))
}

fn nbdsh_structured(group: &Group) -> Result<Option<()>> {
    nbdsh(group, "structured")
}

fn nbdsh_simple(group: &Group) -> Result<Option<()>> {
    nbdsh(group, "simple")
}

fn qemu_map(group: &Group) -> Result<Option<()>> {
    group.known_holes("db")?;
    let Some(said) = client("qemu-img", &["map", "-f", "raw", "--output=json", &group.uri("db")])? else {
        return Ok(None);
    };
    let map: Vec<(u64, bool)> = json(&said)?
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["length"].as_u64()?, one["zero"].as_bool()? && !one["data"].as_bool()?)))
        .collect();
    ensure!(map == [(16 * MIB, true), (16 * MIB, false), (32 * MIB, true)], "{said}");
    Ok(Some(()))
}

fn qemu_map_large(group: &Group) -> Result<Option<()>> {
    let arguments = ["--trace", "nbd_*", "map", "-f", "raw", "--output=json"];
    let Some(mut command) = tool("qemu-img") else { return Ok(None) };
    let done = command.args(arguments).arg(group.uri("large")).stdin(Stdio::null()).output()?;
    let (said, trace) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{trace}");
    ensure!(json(&said)?[0]["length"] == LARGE_BYTES, "one stretch: {said}");
    // Where this QEMU traces, it says whether it has negotiated them.
    ensure!(trace.is_empty() || trace.contains("extended"), "no extended headers in {trace}");
    Ok(Some(()))
}

fn qemu_convert(group: &Group) -> Result<Option<()>> {
    let (image, back) = (group.scratch.path.join("sparse.img"), group.scratch.path.join("qemu.img"));
    sparse(&image)?;
    let (image, back) = (image.to_string_lossy().into_owned(), back.to_string_lossy().into_owned());
    let there = ["convert", "-n", "-W", "-f", "raw", "-O", "raw", &image, &group.uri("db")];
    let Some(_) = client("qemu-img", &there)? else { return Ok(None) };
    client("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &group.uri("db")])?;
    client("qemu-img", &["convert", "-f", "raw", "-O", "raw", &group.uri("db"), &back])?;
    ensure!(std::fs::read(&image)? == std::fs::read(&back)?, "what came back differs");
    let allocated = std::fs::metadata(&back)?.blocks() * 512;
    ensure!(allocated <= 9 * MIB, "{allocated} bytes are allocated for 8 MiB of data");
    Ok(Some(()))
}

fn qemu_bench(group: &Group) -> Result<Option<()>> {
    let uri = group.uri("db");
    let Some(_) = client("qemu-img", &["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", &uri])? else {
        return Ok(None);
    };
    let writes = ["bench", "-w", "-f", "raw", "-c", "500", "-d", "32", "-s", "4096", "--flush-interval=100", &uri];
    client("qemu-img", &writes)?;
    Ok(Some(()))
}

fn qemu_io(group: &Group) -> Result<Option<()>> {
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 4k 512",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "write -z -u -f 192k 64k",
        "discard 512k 128k",
        "aio_write -P 7 2M 4M",
        "aio_flush",
        "flush",
        "read -P 0x5a 0 4k",
        "read -P 0xa5 4k 512",
        "read -P 0x5a 4608 1k",
        "read -P 0 64k 192k",
        "read -P 0 512k 128k",
        "read -P 7 2M 4M",
    ];
    let flags: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let Some(said) = client("qemu-io", &[&flags[..], &["-f", "raw", &group.uri("db")]].concat())? else {
        return Ok(None);
    };
    ensure!(!said.contains("fail") && !said.contains("error"), "{said}");
    Ok(Some(()))
}

fn qemu_io_large(group: &Group) -> Result<Option<()>> {
    // qemu-io itself takes no more than 2 GiB at a time.
    let commands = ["write -P 1 4G 1M", "discard 0 2147418112", "write -z -u 4G 1G", "read -P 0 4G 1M"];
    let flags: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let Some(said) = client("qemu-io", &[&flags[..], &["-f", "raw", &group.uri("large")]].concat())? else {
        return Ok(None);
    };
    ensure!(!said.contains("fail") && !said.contains("error"), "{said}");
    ensure!(group.allocated("large")? < MIB, "the zeroes give their space back");
    Ok(Some(()))
}

fn nbdkit_plugin(group: &Group) -> Result<Option<()>> {
    group.known_holes("db")?;
    let Some(mut nbdkit) = tool("nbdkit") else { return Ok(None) };
    if tool("nbdinfo").is_none() {
        return Ok(None);
    }
    let uri = format!("uri={}", group.uri("db"));
    let said = output(nbdkit.args(["-U", "-", "nbd", &uri, "--run", "nbdinfo --map --json \"$uri\""]))?;
    is_known_map(&said)?;
    let back = group.scratch.path.join("nbdkit.img");
    let run = format!("nbdcopy \"$uri\" {}", back.display());
    output(tool("nbdkit").context("found above")?.args(["-U", "-", "nbd", &uri, "shared=true", "--run", &run]))?;
    ensure!(std::fs::read(&back)?[16 << 20..32 << 20] == noise(7, 16 << 20), "the copy differs");
    Ok(Some(()))
}

fn nbd_client_list(group: &Group) -> Result<Option<()>> {
    let Some(mut command) = tool("nbd-client").or_else(|| {
        let path = Path::new("/usr/sbin/nbd-client");
        path.is_file().then(|| Command::new(path))
    }) else {
        return Ok(None);
    };
    let said = output(command.args(["-l", "-unix"]).arg(group.socket()))?;
    ensure!(said.contains("db") && said.contains("large"), "{said}");
    Ok(Some(()))
}

fn fio_verify(group: &Group) -> Result<Option<()>> {
    let Some(engines) = client("fio", &["--enghelp"])? else { return Ok(None) };
    if !engines.contains("nbd") {
        return Ok(None);
    }
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randtrimwrite",
        "--bs=4k-64k",
        "--iodepth=32",
        "--size=16m",
        "--verify=crc32c",
        "--fsync=100",
        "--randseed=7",
    ];
    let mut fio = tool("fio").context("found above")?;
    let said = output(fio.current_dir(&group.scratch.path).args(args).arg(format!("--uri={}", group.uri("db"))))?;
    ensure!(said.contains("err= 0"), "{said}");
    Ok(Some(()))
}

fn raw_extended(group: &Group) -> Result<Option<()>> {
    group.known_holes("db")?;
    let mut raw = Raw::extended(&group.socket(), "db")?;
    let (hole, data) = (3, 0);
    let known = vec![(16 * MIB, hole), (16 * MIB, data), (32 * MIB, hole)];
    ensure!(raw.status(0, 0, DB_BYTES)? == known);
    ensure!(raw.status(CMD_FLAG_PAYLOAD_LEN, 0, DB_BYTES)? == known);
    ensure!(raw.status(CMD_FLAG_REQ_ONE, 17 * MIB, 40 * MIB)? == [(15 * MIB, data)]);
    let block = noise(9, 4096);
    raw.done(CMD_FLAG_PAYLOAD_LEN | CMD_FLAG_FUA, CMD_WRITE, 4096, 4096, &block)?;
    raw.done(CMD_FLAG_FUA, CMD_CACHE, 0, MIB, &[])?;
    ensure!(raw.read(4096, 4096)? == block);
    ensure!(raw.status(0, 0, 16384)?.contains(&(4096, data)), "what was written is no hole");
    raw.done(CMD_FLAG_NO_HOLE, CMD_WRITE_ZEROES, 4096, 4096, &[])?;
    ensure!(raw.read(4096, 4096)? == vec![0; 4096]);
    raw.done(CMD_FLAG_FUA, CMD_TRIM, 0, MIB, &[])?;
    let (kind, said) = raw.ask(0, CMD_READ, 0, (32 << 20) + 1, &[])?;
    ensure!(kind == REPLY_ERROR && be32(&said, 0) == 75, "EOVERFLOW: {said:02x?}");
    let (kind, said) = raw.ask(0, CMD_WRITE_ZEROES, DB_BYTES - 1, 2, &[])?;
    ensure!(kind == REPLY_ERROR_OFFSET && be32(&said, 0) == 28, "ENOSPC, and where: {said:02x?}");
    let (kind, _) = raw.ask(CMD_FLAG_PAYLOAD_LEN, CMD_TRIM, 0, 5000, &vec![1; 5000])?;
    ensure!(kind == REPLY_ERROR, "a payload that nobody wants");
    raw.done(0, CMD_FLUSH, 0, 0, &[])?;
    Ok(Some(()))
}

fn raw_long(group: &Group) -> Result<Option<()>> {
    let mut raw = Raw::extended(&group.socket(), "large")?;
    for at in [0, 3 << 30, LARGE_BYTES - 4096] {
        raw.done(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, at, 4096, &noise(at, 4096))?;
    }
    ensure!(group.allocated("large")? >= 12 << 10);
    raw.done(CMD_FLAG_FUA, CMD_TRIM, 0, LARGE_BYTES, &[])?;
    ensure!(group.allocated("large")? < MIB, "a trim gives space back");
    ensure!(raw.status(0, 0, LARGE_BYTES)? == [(LARGE_BYTES, 3)]);
    raw.done(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, 5 << 30, 4096, &noise(5, 4096))?;
    match raw.ask(CMD_FLAG_FAST_ZERO, CMD_WRITE_ZEROES, 0, LARGE_BYTES, &[])? {
        (REPLY_NONE, _) => ensure!(raw.read(5 << 30, 4096)? == vec![0; 4096]),
        (REPLY_ERROR | REPLY_ERROR_OFFSET, said) => ensure!(be32(&said, 0) == 95, "ENOTSUP: {said:02x?}"),
        other => anyhow::bail!("{other:02x?}"),
    }
    Ok(Some(()))
}

fn raw_export_name(group: &Group) -> Result<Option<()>> {
    let mut raw = Raw::connect(&group.socket())?;
    ensure!(raw.option(OPT_EXTENDED_HEADERS, &[])? == [(REP_ACK, vec![])]);
    ensure!(raw.option(OPT_EXPORT_NAME, b"db").is_err(), "it has no place for them: the connection ends");
    Ok(Some(()))
}
