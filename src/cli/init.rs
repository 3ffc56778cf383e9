//! `farshore init`: a commented configuration that `farshore check` accepts.

use std::fmt::Write as _;
use std::io::Write;

use super::arguments::Init;
use super::failure::Failure;
use crate::cluster::config::parse;
use crate::cluster::size::{exact_size, parse_size};
use crate::core::address::Address;
use crate::limits;

/// Writes the configuration to `--output` or to `out`.
pub fn run(options: &Init, out: &mut dyn Write) -> Result<(), Failure> {
    let text = configuration(options)?;
    let Some(path) = &options.output else { return Ok(out.write_all(text.as_bytes())?) };
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::refused(format!(
                "{} exists and is not overwritten; remove it first or choose another --output",
                path.display()
            )),
            std::io::ErrorKind::NotFound => Failure::failed(format!(
                "{}: the directory that the file is to be written to does not exist: make it first (mkdir -p), or choose another \
                 --output",
                path.display()
            )),
            _ => Failure::failed(format!("{}: {error}", path.display())),
        })?;
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    writeln!(out, "{} written; next: farshore check --config {}", path.display(), path.display())?;
    Ok(())
}

/// The text, read back once so that nothing is handed out that `check` would refuse.
fn configuration(options: &Init) -> Result<String, Failure> {
    let volumes = volumes(&options.volumes)?;
    let mut text = group(options, &volumes);
    for section in [primary(options, &volumes), aux(options), dr(options, &volumes)] {
        text.push('\n');
        text.push_str(&section);
    }
    match parse(&text, "the new configuration") {
        Ok(_) => Ok(text),
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.key, error.text)).collect();
            Err(Failure::usage(lines.join("\n")))
        }
    }
}

/// Name and bytes of each `--volume`.
fn volumes(words: &[String]) -> Result<Vec<(String, u64)>, Failure> {
    if words.is_empty() {
        return Ok(vec![("data".into(), 1 << 30)]);
    }
    let read = |word: &String| {
        let (name, size) = word
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--volume {word}: write NAME=SIZE, as db=1GiB")))?;
        let size = parse_size(size).map_err(|text| Failure::usage(format!("--volume {word}: {text}")))?;
        Ok((name.to_owned(), size))
    };
    let volumes: Vec<(String, u64)> = words.iter().map(read).collect::<Result<_, Failure>>()?;
    for (at, (name, _)) in volumes.iter().enumerate() {
        if volumes[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(Failure::usage(format!("--volume {name}: is the name of an earlier volume too")));
        }
    }
    Ok(volumes)
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn group(options: &Init, volumes: &[(String, u64)]) -> String {
    let mut text = format!(
        r#"# farshore: configuration of one consistency group. The same file serves all three hosts: each role reads its
# own section, and from the others where to reach them. Check it on each host: farshore check --config FILE
# Sizes have their unit ("8GiB", "500MB"); a plain number is bytes.

[group]
name    = {}
protect = "order"   # what is durable elsewhere before a write is acknowledged:
                    #   async   nothing; near: its order record at the auxiliary;
                    #   order   its order record at the auxiliary and in DR's journal;
                    #   bunker  order record and data at the auxiliary; sync: as order, and the data at DR
ack     = "write"   # write: at each write | flush: at FLUSH and FUA only
require = "any"     # while a peer is out of reach: both | any | none must hold the order before the acknowledgement
# on_isolated = "freeze"        # cut off from both peers: freeze (writes wait) | continue (two writers are possible!)
# freeze_timeout_seconds = 0    # frozen writes fail after this time; 0: they wait
"#,
        quoted(&options.group)
    );
    text.push_str(&tls(options));
    for (name, size) in volumes {
        let _ = write!(text, "\n[[volume]]          # exported by NBD under this name\nname = {}\n", quoted(name));
        let _ = writeln!(text, "size = \"{}\"", exact_size(*size));
    }
    text
}

/// Links that leave their host are secure.
fn tls(options: &Init) -> String {
    let local = [&options.aux_host, &options.dr_host]
        .into_iter()
        .all(|host| format!("{host}:1").parse::<Address>().is_ok_and(|address| address.is_local()));
    let mark = if local { "# " } else { "" };
    format!(
        r#"
{mark}[tls]                 # links between hosts are secure and known by name: `farshore certs {}` makes what is needed
{mark}ca   = "/etc/farshore/tls/ca-cert.pem"
{mark}cert = "/etc/farshore/tls/cert.pem"   # of this host's role; each host has its own under the same name
{mark}key  = "/etc/farshore/tls/key.pem"
"#,
        options.group
    )
}

/// `{ db = "…/db.img" }`, with `suffix` after the volume's name.
fn backing(options: &Init, volumes: &[(String, u64)], suffix: &str) -> String {
    let one = |(name, _): &(String, u64)| {
        let path = options.dir.join(format!("{name}{suffix}.img"));
        format!("{} = {}", quoted(name), quoted(&path.to_string_lossy()))
    };
    format!("{{ {} }}", volumes.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn under(options: &Init, name: &str) -> String {
    quoted(&options.dir.join(name).to_string_lossy())
}

/// A Unix socket beside the data.
fn socket(options: &Init, name: &str) -> String {
    quoted(&format!("unix:{}", options.dir.join(name).to_string_lossy()))
}

fn primary(options: &Init, volumes: &[(String, u64)]) -> String {
    format!(
        r#"[primary]
dir     = {}   # intent log, FIFO, superblock; on a disk that survives a power cut
backing = {}   # file, block device or nbd:// URI of each volume
# NBD clients connect here; over TCP they need TLS as soon as there is [tls]: tls = "required" | "optional" | "off";
# client_certificates = "yes", with tls = "required", lets in over TCP only who has a certificate of the CA
listen  = [{}, {}]
control = {}   # farshore status asks here
fifo    = {{ memory = "256MiB", disk = "8GiB" }}   # writes not yet at DR: how much may wait
overflow = "coalesce"   # when the FIFO is full: coalesce (remember ranges, copy them later) | pace | refuse
# scrub = {{ every_hours = 168, rate = "20MiB" }}   # compare both sides once a week; `farshore verify` does it at once
# lag_max = {{ writes = 100000, bytes = "1GiB", seconds = 30 }}   # with pace: writes wait rather than let DR lag further
# link = {{ bytes_per_second = "50MiB", hours = [{{ from = "08:00", to = "18:00", bytes_per_second = "5MiB" }}] }}
# compress = "auto"     # always | off: compress what crosses only where the network holds it up, always, or never
# direct = "auto"       # never: open volumes buffered, not O_DIRECT
"#,
        under(options, "primary"),
        backing(options, volumes, ""),
        socket(options, &format!("{}.sock", options.group)),
        quoted("127.0.0.1:10809"),
        under(options, "primary.ctl"),
    )
}

fn aux(options: &Init) -> String {
    format!(
        r#"[aux]                   # near the primary, but not on the same host
dir     = {}
listen  = {}   # primary and DR connect here
control = {}
# address = "host:port"     # where they connect, when it is not what `listen` says
# slots   = 131072          # writes that may be known here and not yet be at DR
# payload = "1GiB"          # ring of payloads; used with protect = "bunker"
# table   = "nbd://…"       # instead of dir and listen: the table on any NBD server, or a path on shared storage
"#,
        under(options, "aux"),
        quoted(&format!("{}:10820", options.aux_host)),
        under(options, "aux.ctl"),
    )
}

fn dr(options: &Init, volumes: &[(String, u64)]) -> String {
    format!(
        r#"[dr]                    # the far site
dir     = {}   # journal, spool, superblock
backing = {}
listen  = {}   # the primary connects here
export  = [{}, {}]   # NBD clients connect here after a promotion
control = {}   # farshore promote and status ask here
streams = 4             # connections that carry payloads
# address = "host:port"     # where the primary connects, when it is not what `listen` says
# paths   = ["host:port"]   # other ways to the same DR, over other networks: all that work are used together
# journal = "64MiB"         # order records not yet applied: one million writes
spool   = {}   # payloads received and not yet applied; a batch after a long outage waits in it as a whole
"#,
        under(options, "dr"),
        backing(options, volumes, "-dr"),
        quoted(&format!("{}:10830", options.dr_host)),
        socket(options, &format!("{}-dr.sock", options.group)),
        quoted("127.0.0.1:10831"),
        under(options, "dr.ctl"),
        quoted(&format!("{}MiB", spool(volumes) >> 20)),
    )
}

/// Room for any batch, unless that is very much.
fn spool(volumes: &[(String, u64)]) -> u64 {
    let bytes = volumes.iter().map(|(_, size)| size).sum();
    limits::spool_for_any_batch(bytes).clamp(1 << 30, 32 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(group: &str, volumes: &[&str]) -> Init {
        Init {
            group: group.into(),
            volumes: volumes.iter().map(|word| (*word).to_owned()).collect(),
            dir: "/srv/far \"shore\"".into(),
            aux_host: "b.example".into(),
            dr_host: "c.example".into(),
            output: None,
        }
    }

    #[test]
    fn what_is_written_reads_back_as_asked() {
        let text = configuration(&options("orders", &["db=3GiB", "wal.1=512MB"])).expect("a configuration");
        let config = parse(&text, "f").expect("its own output");
        let volumes: Vec<(String, u64)> = config.volumes.iter().map(|v| (v.name.clone(), v.size)).collect();
        assert_eq!(volumes, [("db".into(), 3 << 30), ("wal.1".into(), 512_000_000)]);
        assert!(matches!(config.tls, crate::cluster::config::Tls::Certificates(_)));
        assert_eq!(config.dr.expect("dr").address.to_string(), "c.example:10830");
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn wrong_arguments_are_told_as_usage() {
        for (group, volumes, part) in [
            ("a/b", vec![], "group.name"),
            ("g", vec!["db"], "write NAME=SIZE"),
            ("g", vec!["db=1G"], "ambiguous"),
            ("g", vec!["db=1GiB", "db=1GiB"], "earlier volume"),
            ("g", vec!["d b=1GiB"], "cannot be a name"),
        ] {
            let failure = configuration(&options(group, &volumes)).expect_err(part);
            assert_eq!(failure.exit, 2);
            assert!(failure.text.contains(part), "{}", failure.text);
        }
    }
}
