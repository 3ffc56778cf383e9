//! `farshore attach` and `detach`: an export as `/dev/nbdN`, through the kernel's own client.
//!
//! ```text
//!   attach ──► keeper (in the background, or with --foreground this process)
//!                │ handshake on N sockets ──► driver: connect            the kernel reads and writes from here on
//!                │ driver: a connection is dead ──► handshake again ──► driver: replace it
//!                └─ the device is disconnected: done
//! ```
//!
//! A volume that has grown is noticed by the keeper, which asks for its size now and then, and the driver is told.
//!
//! The kernel holds the sockets; the keeper only replaces those that die, for which requests wait `--wait` seconds. So a
//! restart of the server is a pause, and the death of the keeper changes nothing until then; another one takes over.

mod kernel;
mod server;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use super::arguments::{Attach, Detach};
use super::failure::Failure;
use super::{files, logs};
use crate::cluster::size::human_size;
use crate::core::address::{Address, NbdUri};
use crate::io::notify;
use crate::nbd::client::ExportInfo;
use crate::nbd::protocol::{CAN_MULTI_CONN, READ_ONLY};
use kernel::{DeadLinks, Device, Driver, KernelError, Shape};

/// Where keepers leave their locks and logs.
const RUN_DIR: &str = "/run/farshore";
/// The word by which the keeper in the background tells that the device is there.
const ATTACHED: &str = "attached";
/// A longer log is begun anew at the next attach, bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// How often the keeper looks whether the device is still connected, when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it asks whether the export has grown.
const SIZE_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause between two attempts to reach the server.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Pause between two lines about a server that cannot be reached.
const SAY_EVERY: Duration = Duration::from_secs(30);

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Failure {
        match error {
            KernelError::Busy(_) | KernelError::Another { .. } => Failure::refused(error.to_string()),
            error => Failure::failed(error.to_string()),
        }
    }
}

/// Attaches, and keeps the device connected.
pub fn attach(options: &Attach, out: &mut dyn Write) -> Result<(), Failure> {
    let device = device(&options.device)?;
    let (uri, backend) = target(options)?;
    if options.foreground {
        return keep(options, &device, &uri, &backend, out);
    }
    std::fs::create_dir_all(RUN_DIR).map_err(|error| unusable(Path::new(RUN_DIR), &error))?;
    let log = PathBuf::from(RUN_DIR).join(format!("attach-{}.log", device.name()));
    let unusable = |error: std::io::Error| unusable(&log, &error);
    let file = own_file().append(true).open(&log).map_err(unusable)?;
    if file.metadata().map_err(unusable)?.len() > LOG_BYTES_MAX {
        file.set_len(0).map_err(unusable)?;
    }
    let before = usize::try_from(file.metadata().map_err(unusable)?.len()).unwrap_or(0);
    let program = std::env::current_exe().map_err(|error| Failure::failed(format!("cannot find itself: {error}")))?;
    let mut keeper = Command::new(program)
        .args(std::env::args_os().skip(1))
        .args(["--foreground", "--background-of-another"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .map_err(|error| Failure::failed(format!("cannot start the keeper: {error}")))?;
    let mut word = String::new();
    let answers = keeper.stdout.take().expect("it is piped");
    let _ = BufReader::new(answers).read_line(&mut word);
    if let Some(text) = word.strip_prefix(ATTACHED) {
        return Ok(writeln!(out, "{}", text.trim())?);
    }
    let exit = keeper.wait().ok().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let text = said.get(before..).unwrap_or_default().lines().last().unwrap_or("the keeper ended without a word");
    Err(Failure { exit: exit.unwrap_or(1), text: text.strip_prefix("farshore: ").unwrap_or(text).into() })
}

/// Disconnects a device that nobody uses.
pub fn detach(options: &Detach, out: &mut dyn Write) -> Result<(), Failure> {
    let device = device(&options.device)?;
    let path = device.path.display();
    let (driver, _) = Driver::open(&device)?;
    if !device.connected() {
        return Err(Failure::failed(format!("{path} is not attached")));
    }
    let users = device.users();
    if !users.is_empty() && !options.force {
        return Err(Failure::refused(format!(
            "{path} is in use ({}): end that first; --force takes it away all the same, and what was not written is lost",
            users.join(", ")
        )));
    }
    // What is in the page cache goes to the server first. Opened exclusively, for a mount in a namespace that this process
    // does not see holds the device, too.
    let exclusive = if options.force { 0 } else { libc::O_EXCL };
    let opened = OpenOptions::new().read(true).custom_flags(exclusive).open(&device.path);
    let synced = opened.and_then(|file| file.sync_all());
    if let Err(error) = synced.as_ref()
        && !options.force
    {
        if error.kind() == ErrorKind::ResourceBusy {
            return Err(Failure::refused(format!(
                "{path} is in use by what cannot be seen from here (a mount of a container or of a service): end that \
                 first (grep {} /proc/*/mountinfo); --force takes it away all the same, and what was not written is lost",
                device.name()
            )));
        }
        return Err(Failure::failed(format!(
            "{path}: cannot write out what is in memory: {error}; --force detaches all the same, and that is lost"
        )));
    }
    driver.disconnect(&device)?;
    Ok(writeln!(out, "{path} is detached")?)
}

fn device(path: &Path) -> Result<Device, Failure> {
    let wrong = || format!("{}: not a device of the nbd driver; such as /dev/nbd0", path.display());
    Device::named(path).ok_or_else(|| Failure::usage(wrong()))
}

/// The export to attach, and what the driver is told about who is behind the device.
fn target(options: &Attach) -> Result<(NbdUri, String), Failure> {
    if options.volume.contains("://") {
        let uri: NbdUri = options.volume.parse().map_err(|error| Failure::usage(format!("{error}")))?;
        if uri.tls.is_some() {
            return Err(Failure::usage(format!(
                "{uri}: the kernel's client speaks no TLS; attach a unix socket, or run nbdfuse"
            )));
        }
        let uri = from_root(uri)?;
        let backend = format!("farshore {uri}");
        return Ok((uri, backend));
    }
    let config = files::load(&options.config.config)?;
    let name = &options.volume;
    if !config.volumes.iter().any(|volume| volume.name == *name) {
        let names: Vec<&str> = config.volumes.iter().map(|volume| volume.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "there is no volume {name:?} in {}; there is {}",
            config.path,
            names.join(", ")
        )));
    }
    let (section, key, listen) = if options.dr {
        ("dr", "export", config.dr.as_ref().map(|dr| &dr.export))
    } else {
        ("primary", "listen", config.primary.as_ref().map(|primary| &primary.listen))
    };
    let address = listen.and_then(|addresses| addresses.first().cloned()).ok_or_else(|| {
        Failure::usage(format!("{}: [{section}] has no {key}: there is nothing to attach", config.path))
    })?;
    let uri = from_root(NbdUri { address, export: name.clone(), tls: None })?;
    Ok((uri, format!("farshore {}/{name}", config.group.name)))
}

/// The same with the whole path of its socket: who keeps the device connects again from another directory.
fn from_root(mut uri: NbdUri) -> Result<NbdUri, Failure> {
    if let Address::Unix(path) = &uri.address {
        let whole =
            std::path::absolute(path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        uri.address = Address::Unix(whole);
    }
    Ok(uri)
}

/// Connects the device and replaces connections that die, until it is disconnected.
fn keep(options: &Attach, device: &Device, uri: &NbdUri, backend: &str, out: &mut dyn Write) -> Result<(), Failure> {
    logs::start(backend.trim_start_matches("farshore "), "attach")?;
    let path = device.path.display();
    let _lock = lock(device)?;
    let (driver, dead) = Driver::open(device)?;
    if !device.exists() {
        return Err(KernelError::NoDevice(path.to_string()).into());
    }
    let shape = if device.connected() {
        take_over(options, device, uri, backend, &driver)?
    } else {
        first(options, device, uri, backend, &driver)?
    };
    let size = human_size(shape.size);
    if options.background_of_another {
        // Nobody waits for this process, and no terminal ends it.
        let _ = nix::unistd::setsid();
        let _ = std::env::set_current_dir("/");
        writeln!(out, "{ATTACHED} {path} is {uri}, {size}")?;
    } else {
        writeln!(out, "{path} is {uri}, {size}")?;
    }
    out.flush()?;
    notify::ready(&format!("{path} is {uri}"));
    watch(device, uri, &shape, &driver, &dead)
}

/// Opens a file under [`RUN_DIR`], which may belong to another user than who runs this: no link is followed to elsewhere.
fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

/// A file that cannot be used. Who may not even write there would not be obeyed by the driver either, which is what to say.
fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => KernelError::NotPermitted.into(),
        _ => Failure::failed(format!("{}: {error}", path.display())),
    }
}

/// One keeper a device.
fn lock(device: &Device) -> Result<Flock<File>, Failure> {
    let path = PathBuf::from(RUN_DIR).join(format!("attach-{}.lock", device.name()));
    let failed = |error: std::io::Error| unusable(&path, &error);
    std::fs::create_dir_all(RUN_DIR).map_err(failed)?;
    let file = match own_file().write(true).open(&path) {
        // Made by root, when it kept the device: to be locked it need not be written.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::open(&path),
        opened => opened,
    };
    let file = file.map_err(failed)?;
    let (mut file, end) = (file, Instant::now() + LOOK_EVERY + RETRY_MAX);
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            // The keeper of a device that was detached goes as soon as it looks.
            Err((file, _)) if !device.connected() && Instant::now() < end => file,
            Err(_) => {
                let text = format!("{} is attached already, and kept by another process", device.path.display());
                return Err(Failure::refused(text));
            }
        };
        std::thread::sleep(RETRY_MIN);
    }
}

/// Connects a device that is free.
fn first(options: &Attach, device: &Device, uri: &NbdUri, backend: &str, driver: &Driver) -> Result<Shape, Failure> {
    let (shape, sockets) =
        connections(options, uri, backend).map_err(|why| Failure::failed(format!("{uri}: {why}")))?;
    driver.connect(device, &shape, &sockets)?;
    Ok(shape)
}

/// Goes on with a device that an earlier keeper left connected: some of its connections may have died unseen.
fn take_over(
    options: &Attach,
    device: &Device,
    uri: &NbdUri,
    backend: &str,
    driver: &Driver,
) -> Result<Shape, Failure> {
    let found = device.backend().unwrap_or_default();
    if found != backend {
        let (device, wanted) = (device.path.display().to_string(), backend.to_owned());
        return Err(if found.is_empty() {
            KernelError::Busy(device)
        } else {
            KernelError::Another { device, found, wanted }
        }
        .into());
    }
    let (shape, sockets) =
        connections(options, uri, backend).map_err(|why| Failure::failed(format!("{uri}: {why}")))?;
    // The driver takes as many as it has dead ones, and closes the rest.
    driver.replace(device, backend, &sockets)?;
    tracing::info!("{} was connected already: this process keeps it from now on", device.path.display());
    Ok(shape)
}

/// As many connections as were asked for, if the server keeps several consistent, and what the device is to be.
fn connections(options: &Attach, uri: &NbdUri, backend: &str) -> Result<(Shape, Vec<OwnedFd>), String> {
    let (socket, info) = server::attend(uri)?;
    let shape = shape(options, backend, &info)?;
    let count = if info.flags & CAN_MULTI_CONN == 0 { 1 } else { options.connections.get() };
    let mut sockets = vec![socket];
    for _ in 1..count {
        sockets.push(connect_as(uri, &shape, options.read_only)?.0);
    }
    Ok((shape, sockets))
}

/// What the device is to be; an error says why the kernel cannot use the export.
fn shape(options: &Attach, backend: &str, info: &ExportInfo) -> Result<Shape, String> {
    let block = options.block_size;
    if info.block_min > block {
        return Err(format!("the server wants blocks of {}: --block-size {0}", info.block_min));
    }
    if !info.size.is_multiple_of(u64::from(block)) {
        return Err(format!(
            "{} bytes are no multiple of the block size {block}: the rest would be missing",
            info.size
        ));
    }
    let flags = info.flags | if options.read_only { READ_ONLY } else { 0 };
    Ok(Shape {
        size: info.size,
        block,
        flags,
        wait_seconds: options.wait,
        timeout_seconds: options.timeout,
        backend: backend.into(),
    })
}

/// A connection, if what is there is still what the device was made of; and how large it is, for it may have grown.
fn connect_as(uri: &NbdUri, shape: &Shape, read_only: bool) -> Result<(OwnedFd, u64), String> {
    let (socket, info) = server::attend(uri)?;
    if info.size < shape.size {
        return Err(format!("the export has {} bytes now, and had {}", info.size, shape.size));
    }
    if info.block_min > shape.block {
        return Err(format!("the server wants blocks of {} now, and the device has {}", info.block_min, shape.block));
    }
    let flags = info.flags | if read_only { READ_ONLY } else { 0 };
    if flags & READ_ONLY != shape.flags & READ_ONLY {
        return Err("the export has become read-only, or writable".into());
    }
    Ok((socket, info.size))
}

/// Replaces what dies, until the device is disconnected.
fn watch(device: &Device, uri: &NbdUri, shape: &Shape, driver: &Driver, dead: &DeadLinks) -> Result<(), Failure> {
    let path = device.path.display();
    let read_only = shape.flags & READ_ONLY != 0;
    let mut growth = Growth { told: driver.size(device).unwrap_or(shape.size), looked: Instant::now() };
    loop {
        let mut missing = dead.wait(LOOK_EVERY);
        if missing == 0 && device.connected() && growth.looked.elapsed() >= SIZE_EVERY {
            growth.looked = Instant::now();
            // A server that is away is noticed by the kernel.
            if let Ok((_, size)) = connect_as(uri, shape, read_only) {
                growth.tell(device, shape, driver, size);
            }
        }
        if missing > 0 {
            tracing::warn!("{path}: lost {missing} connections to {uri}; requests wait up to {} s", shape.wait_seconds);
        }
        let lost = Instant::now();
        let (mut pause, mut said) = (RETRY_MIN, None::<Instant>);
        while missing > 0 && device.connected() {
            let replaced = connect_as(uri, shape, read_only).and_then(|(socket, size)| {
                driver.replace(device, &shape.backend, &[socket]).map_err(|error| error.to_string())?;
                growth.tell(device, shape, driver, size);
                Ok(())
            });
            match replaced {
                Ok(()) => {
                    missing -= 1;
                    pause = RETRY_MIN;
                    if missing == 0 {
                        tracing::info!("{path}: connected again after {:.1} s", lost.elapsed().as_secs_f64());
                    }
                }
                Err(why) => {
                    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                        said = Some(Instant::now());
                        tracing::warn!("{path}: {uri}: {why}");
                    }
                    missing += dead.wait(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        if !device.connected() {
            if missing > 0 {
                let seconds = lost.elapsed().as_secs_f64();
                return Err(Failure::failed(format!(
                    "{path}: given up by the kernel {seconds:.0} s after its connections were lost"
                )));
            }
            tracing::info!("{path} is detached");
            return Ok(());
        }
    }
}

/// What the driver was told of an export that grows.
struct Growth {
    told: u64,
    looked: Instant,
}

impl Growth {
    /// Tells the driver when the export is larger than it knows; once, if it does not take that.
    fn tell(&mut self, device: &Device, shape: &Shape, driver: &Driver, size: u64) {
        if size <= self.told {
            return;
        }
        self.told = size;
        let (path, shown) = (device.path.display(), human_size(size));
        if !size.is_multiple_of(u64::from(shape.block)) {
            return tracing::warn!(
                "{path}: the export has {size} bytes now, no multiple of the block size {}: the device stays as it is",
                shape.block
            );
        }
        let told = driver.resize(device, &shape.backend, size);
        let has = driver.size(device);
        match told {
            Ok(()) if has == Some(size) => tracing::info!("{path} has {shown} now"),
            Ok(()) => tracing::warn!(
                "{path}: the export has {shown} now, and this kernel leaves the device as it is ({has:?} bytes): detach it and \
                 attach it again"
            ),
            Err(error) => tracing::warn!("{error}; the export has {shown} now: detach the device and attach it again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_known_by_its_whole_path() {
        let from =
            |uri: &str| from_root(uri.parse().expect("a URI")).expect("there is a working directory").to_string();
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(from("nbd+unix:///db?socket=run/s"), format!("nbd+unix:///db?socket={}/run/s", here.display()));
        assert_eq!(from("nbd+unix:///db?socket=/run/s"), "nbd+unix:///db?socket=/run/s");
        assert_eq!(from("nbd://h/db"), "nbd://h/db");
    }
}
