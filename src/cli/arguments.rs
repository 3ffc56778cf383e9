//! The verbs and their arguments. Parsing has no side effects.

use std::num::NonZeroU8;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::core::address::Address;

/// Disaster-recovery replication of block volumes: the order crosses first, the data follows.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = EXITS)]
pub struct Arguments {
    #[command(subcommand)]
    pub verb: Verb,
}

const EXITS: &str = "Exit status: 0 done, 1 failed, 2 usage or configuration, 3 refused for safety.";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a commented configuration for a new group
    #[command(after_help = "Example:\n  farshore init orders --volume db=100GiB --volume log=10GiB \\\n    \
        --aux-host b.example --dr-host c.example --output farshore.toml")]
    Init(Init),
    /// Validate a configuration: keys, sizes, addresses, permissions, space, ports
    #[command(after_help = "Example:\n  farshore check --config farshore.toml --role dr\n\n\
        Without --role, the roles whose addresses belong to this host are checked. Exit status: 0 good, 2 something
        is wrong, 3 a role would refuse to start for safety (the exit status that it would have).")]
    Check(Check),
    /// Make a private CA, and a certificate for each role of a group
    #[command(
        after_help = "Example:\n  farshore certs orders --dir certs --host aux=b.example --host dr=c.example\n  \
        farshore certs orders --ca certs --dir certs-2027    # renew: hosts keep the CA they know"
    )]
    Certs(Certs),
    /// Run the auxiliary in the foreground
    #[command(after_help = "Example:\n  farshore aux --config farshore.toml")]
    Aux(Role),
    /// Run the DR site in the foreground
    #[command(after_help = "Example:\n  farshore dr --config farshore.toml")]
    Dr(Role),
    /// Run the primary in the foreground
    #[command(after_help = "Example:\n  farshore primary --config farshore.toml")]
    Primary(Role),
    /// Show where a running role stands: lag, links, queues, what is degraded and since when
    #[command(after_help = "Example:\n  farshore status --config farshore.toml --watch\n\n\
        Without --role and --control, every role that answers on this host is shown; with --json as well, the first \
        of primary, dr, aux that answers.")]
    Status(Status),
    /// On the DR host: fence the old primary, replay what is pending, serve the volumes
    #[command(after_help = "Example:\n  farshore promote --config farshore.toml --plan\n  \
        farshore promote --config farshore.toml")]
    Promote(Promote),
    /// On the primary's host: make a volume larger, at both sites, while it is used
    #[command(after_help = "Example:\n  farshore resize db 200GiB\n  farshore resize orders/db 200GiB --json\n\n\
        A backing file grows by itself; a block device, or what an NBD server exports, has to be grown first, at both \
        sites. What is added reads as zeroes. Returns when a start would know the new size and the order of it is where \
        the protection mode wants it. Then say the new size in the configuration of each host. A volume never gets smaller. \
        Exit status 3: refused, and why.")]
    Resize(Resize),
    /// On the primary's host: compare both sides, while they are used
    #[command(after_help = "Example:\n  farshore verify --config farshore.toml\n  \
        farshore verify --config farshore.toml --repair --rate 50MiB --json\n\n\
        Each range is compared as of one place in the order on both sides, so that nothing is called different that is only \
        on its way. Goes on if this command is interrupted (--stop gives it up); asked again meanwhile, it is done once more \
        behind that. With --repair what differs is read from the primary and sent to DR, and compared once more. Exit \
        status 0: both sides are equal. 1: they differ, or part of them cannot be read. 3: refused, and why.")]
    Verify(Verify),
    /// On DR's host: give up the recovery point, so that a batch that does not fit the spool goes into the volumes
    #[command(after_help = "Example:\n  farshore recopy --config farshore.toml\n  \
        farshore recopy --config farshore.toml --give-up-recovery-point\n\n\
        A batch after an outage waits in DR's spool as a whole, so that DR can be promoted meanwhile at the point before it. Where \
        there is no room for that, and none can be made, this is the way on: DR's volumes are copied anew, in place (of them what \
        differs crosses), and until that is complete nothing there can be promoted. Without --give-up-recovery-point nothing is \
        done. Exit status 3: refused, and why.")]
    Recopy(Recopy),
    /// Print the loss report of the last promotion again
    #[command(after_help = "Example:\n  farshore loss --config farshore.toml --volume db")]
    Loss(Loss),
    /// Make a volume a device of the kernel, and keep it connected while its server is restarted
    #[command(
        after_help = "Example:\n  farshore attach /dev/nbd0 db\n  mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /srv\n\n\
        Needs the kernel's nbd driver (modprobe nbd) and root. While the server is away, requests wait; after --wait \
        seconds they fail."
    )]
    Attach(Attach),
    /// Take a device away that nobody uses any more
    #[command(after_help = "Example:\n  umount /srv && farshore detach /dev/nbd0\n\n\
        Writes out what is in memory first. Exit status 3: it is in use.")]
    Detach(Detach),
    /// Print what is on disk; opens read-only and never modifies
    #[command(after_help = "Example:\n  farshore inspect journal /var/lib/farshore/dr/journal | less\n\n\
        Damage is printed with its offset and does not end the listing; the exit status is 1 when there was any.")]
    Inspect(Inspect),
    /// The whole story on one machine: replicate, kill the primary in mid-write, promote, check every byte
    #[command(after_help = "Example:\n  farshore demo --keep --dir farshore-demo")]
    Demo(Demo),
    /// Relay connections over a slow line: stands for the WAN in tests and demonstrations
    #[command(hide = true)]
    #[command(
        after_help = "Example:\n  farshore relay --listen 127.0.0.1:10840 --to 127.0.0.1:10830 --delay-ms 10 \\\n    \
        --rate-mbit 100 --control wan.sock"
    )]
    Relay(Relay),
}

#[derive(Debug, Args)]
pub struct Config {
    /// Configuration file of the group
    #[arg(short, long, value_name = "FILE", default_value = "/etc/farshore/farshore.toml")]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Role {
    #[command(flatten)]
    pub config: Config,
}

/// A role of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    Primary,
    Dr,
    Aux,
}

impl RoleName {
    pub const ALL: [RoleName; 3] = [RoleName::Primary, RoleName::Dr, RoleName::Aux];

    /// The word of the CLI and of the configuration's sections.
    pub fn word(self) -> &'static str {
        match self {
            RoleName::Primary => "primary",
            RoleName::Dr => "dr",
            RoleName::Aux => "aux",
        }
    }
}

#[derive(Debug, Args)]
pub struct Init {
    /// Name of the group
    pub group: String,
    /// A volume and its size; may be given several times [default: data=1GiB]
    #[arg(long = "volume", value_name = "NAME=SIZE")]
    pub volumes: Vec<String>,
    /// Directory under which every role keeps its files
    #[arg(long, value_name = "DIR", default_value = "/var/lib/farshore")]
    pub dir: PathBuf,
    /// Host of the auxiliary, as primary and DR reach it
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub aux_host: String,
    /// Host of the DR site, as the primary reaches it
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub dr_host: String,
    /// Write to this file instead of standard output; an existing file is never overwritten
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Certs {
    /// Name of the group [default: that of the configuration]
    pub group: Option<String>,
    /// New directory for the files
    #[arg(long, value_name = "DIR", default_value = "farshore-certs")]
    pub dir: PathBuf,
    /// How long the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Sign with the CA that an earlier run has left in this directory
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
    /// Configuration of the group, for the names of its hosts
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A name or address by which NBD clients reach a role; may be given several times
    #[arg(long = "host", value_name = "ROLE=NAME")]
    pub hosts: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub config: Config,
    /// Check this role as of this host
    #[arg(long)]
    pub role: Option<RoleName>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub config: Config,
    /// Control socket to ask, instead of those of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Ask this role only
    #[arg(long)]
    pub role: Option<RoleName>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Repeat every second until interrupted
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Promote {
    #[command(flatten)]
    pub config: Config,
    /// Control socket of the DR daemon, instead of that of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Say what would be done and lost; change nothing
    #[arg(long)]
    pub plan: bool,
    /// Go on without the auxiliary: only when the old primary certainly does not run any more
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Resize {
    /// The volume, with its group or without
    #[arg(value_name = "[GROUP/]VOLUME")]
    pub volume: String,
    /// The size that it is to have, such as 200GiB
    #[arg(value_name = "SIZE", value_parser = crate::cluster::size::parse_size)]
    pub size: u64,
    #[command(flatten)]
    pub config: Config,
    /// Control socket of the primary, instead of that of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Give up after so many seconds; the primary goes on with what it has begun. 0: wait as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub timeout: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    pub config: Config,
    /// Control socket of the primary, instead of that of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Send to DR what differs
    #[arg(long)]
    pub repair: bool,
    /// Give up the comparison that is under way
    #[arg(long, conflicts_with_all = ["repair", "rate", "json"])]
    pub stop: bool,
    /// Compare, and repair, at most so many bytes a second, such as 50MiB
    #[arg(long, value_name = "BYTES", value_parser = crate::cluster::size::parse_size)]
    pub rate: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Recopy {
    #[command(flatten)]
    pub config: Config,
    /// Control socket of the DR daemon, instead of that of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Really: nothing can be promoted there until the volumes are copied anew
    #[arg(long)]
    pub give_up_recovery_point: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Loss {
    #[command(flatten)]
    pub config: Config,
    /// Control socket of the DR daemon, instead of that of the configuration
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Only writes of this volume
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Print the whole report as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Device, such as /dev/nbd0
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// Volume of the group, or the NBD URI of any export
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    #[command(flatten)]
    pub config: Config,
    /// The export of a promoted DR site ([dr] export) instead of the primary's
    #[arg(long)]
    pub dr: bool,
    /// Connections, if the server keeps several consistent
    #[arg(long, value_name = "N", default_value = "4")]
    pub connections: NonZeroU8,
    /// How long requests wait for a server that is away before they fail, seconds
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(u64).range(1..=86400 * 365))]
    pub wait: u64,
    /// After how long a request is sent again whose connection has died, seconds; a server that is slower than that is
    /// asked twice
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Nothing may be written
    #[arg(long)]
    pub read_only: bool,
    /// Logical block of the device, bytes
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = block_size)]
    pub block_size: u32,
    /// Stay in the foreground until the device is detached (for systemd)
    #[arg(long)]
    pub foreground: bool,
    /// This process is the keeper of an `attach` that returns
    #[arg(long, hide = true, requires = "foreground")]
    pub background_of_another: bool,
}

/// The kernel takes powers of two from a sector to a page.
fn block_size(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bytes @ (512 | 1024 | 2048 | 4096)) => Ok(bytes),
        _ => Err("the kernel takes 512, 1024, 2048 and 4096".into()),
    }
}

#[derive(Debug, Args)]
pub struct Detach {
    /// Device, such as /dev/nbd0
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// Also if it is in use, or what is in memory cannot be written: that is lost
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// What the file is
    pub what: What,
    /// The file, or the directory of the role it belongs to
    pub path: PathBuf,
    /// Spool only: the log's number in hexadecimal, when the superblock beside it is lost
    #[arg(long, value_name = "HEX", value_parser = hexadecimal)]
    pub nonce: Option<u64>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|error| error.to_string())
}

/// A kind of file on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// DR's log of order records
    Journal,
    /// The auxiliary's status table
    Table,
    /// DR's store of payloads; the primary's disk FIFO has the same format
    Spool,
    /// The superblock of a role's directory
    Superblock,
}

#[derive(Debug, Args)]
pub struct Relay {
    /// Where clients connect: host:port or unix:/path; port 0 takes any free one and says which
    #[arg(long, value_name = "ADDR")]
    pub listen: Address,
    /// Where it relays to
    #[arg(long, value_name = "ADDR")]
    pub to: Address,
    /// One-way delay, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10.0, value_parser = positive)]
    pub delay_ms: f64,
    /// Rate of each direction, Mbit/s; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 100.0, value_parser = positive)]
    pub rate_mbit: f64,
    /// Unix socket that takes the commands cut, heal, reset, delay MS, rate MBIT, stats
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..1e6).contains(&number) { Ok(number) } else { Err(format!("{text} is not between 0 and a million")) }
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Directory for everything the demo makes [default: a new temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the files behind
    #[arg(long)]
    pub keep: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
