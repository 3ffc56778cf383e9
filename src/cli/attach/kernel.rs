//! The kernel's nbd driver by its generic netlink family (`include/uapi/linux/nbd-netlink.h`): who is connected to what.
//!
//! Owns the messages and what the driver's errors mean. Sockets that were given to a device belong to the kernel: it
//! keeps them whatever becomes of this process.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::err::RouterError;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::NlPayload;
use neli::router::synchronous::{NlRouter, NlRouterReceiverHandle};
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use nix::errno::Errno;

const FAMILY: &str = "nbd";
const EVENTS: &str = "nbd_mc_group";

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const CMD_LINK_DEAD: u8 = 4;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// How long the driver may take to let a device go.
const LET_GO: Duration = Duration::from_secs(20);

type Message = Genlmsghdr<u8, u16>;
type Attr = Nlattr<u16, Buffer>;

/// A device of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `/dev/nbd0`
    pub path: PathBuf,
    index: u32,
}

/// What a device is to be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes.
    pub size: u64,
    /// Logical block, bytes.
    pub block: u32,
    /// Transmission flags of the NBD protocol.
    pub flags: u16,
    /// How long requests wait for a connection to come back, seconds.
    pub wait_seconds: u64,
    /// After how long a request is sent again, on another connection or a new one, seconds. Never 0: what was on its way
    /// on a connection that died would be forgotten.
    pub timeout_seconds: u64,
    /// Who is behind it: the driver lets nobody else replace the connections.
    pub backend: String,
}

/// What went wrong between us and the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    #[error("the kernel has no nbd driver loaded; load it: modprobe nbd")]
    NotLoaded,
    #[error(
        "{0} is in use already; `farshore detach {0}` ends what farshore attached, `nbd-client -d {0}` anything else"
    )]
    Busy(String),
    #[error("not permitted: the nbd driver takes orders from who has CAP_SYS_ADMIN only; try as root")]
    NotPermitted,
    #[error("there is no {0}: the driver makes as many devices as its option nbds_max says (modprobe nbd nbds_max=16)")]
    NoDevice(String),
    #[error("{device} belongs to {found:?} and not to {wanted:?}")]
    Another { device: String, found: String, wanted: String },
    #[error("{device}: {what}: {error}")]
    Other { device: String, what: &'static str, error: String },
}

impl Device {
    /// The device of a path: `/dev/nbd0`, or `nbd0`.
    pub fn named(path: &Path) -> Option<Device> {
        let name = path.file_name()?.to_str()?;
        let index = name.strip_prefix("nbd").filter(|digits| !digits.starts_with('+'))?.parse().ok()?;
        let fits = path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || parent == Path::new("/dev"));
        fits.then(|| Device { path: Path::new("/dev").join(name), index })
    }

    /// The name without its directory.
    #[must_use]
    pub fn name(&self) -> String {
        format!("nbd{}", self.index)
    }

    fn sys(&self, file: &str) -> PathBuf {
        Path::new("/sys/block").join(self.name()).join(file)
    }

    /// Whether the driver has made it.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.sys("").exists()
    }

    /// Whether it is connected to a server: only then the driver shows this file.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.sys("pid").exists()
    }

    /// Whom it belongs to, as it was told when it was connected (kernels from 5.14 on).
    #[must_use]
    pub fn backend(&self) -> Option<String> {
        fs::read_to_string(self.sys("backend")).ok().map(|text| text.trim_end().to_owned())
    }

    /// What uses it: mount points, swap, devices on top of it.
    #[must_use]
    pub fn users(&self) -> Vec<String> {
        let mut users = Vec::new();
        let ours = |source: &str| {
            let rest = source.strip_prefix("/dev/").and_then(|name| name.strip_prefix(&self.name()));
            rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('p').is_some_and(|n| n.parse::<u32>().is_ok()))
        };
        for line in fs::read_to_string("/proc/mounts").unwrap_or_default().lines() {
            let mut words = line.split(' ');
            if let (Some(source), Some(point)) = (words.next(), words.next())
                && ours(source)
            {
                users.push(format!("mounted at {point}"));
            }
        }
        for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines() {
            if line.split_whitespace().next().is_some_and(ours) {
                users.push("used as swap".into());
            }
        }
        let mut holders = vec![self.sys("holders")];
        let parts = fs::read_dir(self.sys("")).into_iter().flatten().flatten();
        holders.extend(parts.map(|part| part.path().join("holders")).filter(|path| path.exists()));
        for holder in holders.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten() {
            users.push(format!("used by {}", holder.file_name().to_string_lossy()));
        }
        users
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }
}

/// The driver.
pub struct Driver {
    router: NlRouter,
    family: u16,
}

/// Connections of a device that the driver has found dead since it was last asked.
pub struct DeadLinks(Receiver<()>);

impl DeadLinks {
    /// How many there are; waits for the first one.
    pub fn wait(&self, patience: Duration) -> usize {
        match self.0.recv_timeout(patience) {
            Ok(()) => 1 + self.0.try_iter().count(),
            Err(_) => 0,
        }
    }
}

impl Driver {
    /// Speaks to the driver, and hears from then on of connections of this device that are dead.
    pub fn open(device: &Device) -> Result<(Driver, DeadLinks), KernelError> {
        let other = |what, error: String| KernelError::Other { device: FAMILY.into(), what, error };
        let (router, events) = NlRouter::connect(NlFamily::Generic, None, Groups::empty())
            .map_err(|error| other("cannot open a netlink socket", error.to_string()))?;
        let family = router.resolve_genl_family(FAMILY).map_err(|_| KernelError::NotLoaded)?;
        let group = router
            .resolve_nl_mcast_group(FAMILY, EVENTS)
            .map_err(|error| other("the driver has no group for its events", error.to_string()))?;
        router
            .add_mcast_membership(Groups::new_groups(&[group]))
            .map_err(|error| other("cannot listen to the driver's events", error.to_string()))?;
        let (told, dead) = std::sync::mpsc::channel();
        let index = device.index;
        std::thread::spawn(move || {
            let mut events = events;
            while let Some(event) = events.next_typed::<u16, Message>() {
                let Ok(event) = event else { continue };
                let NlPayload::Payload(message) = event.nl_payload() else { continue };
                let of = message.attrs().get_attr_handle().get_attr_payload_as::<u32>(ATTR_INDEX).ok();
                if *message.cmd() == CMD_LINK_DEAD && of == Some(index) && told.send(()).is_err() {
                    return;
                }
            }
        });
        Ok((Driver { router, family }, DeadLinks(dead)))
    }

    /// Connects a device by these sockets.
    pub fn connect(&self, device: &Device, shape: &Shape, sockets: &[OwnedFd]) -> Result<(), KernelError> {
        let mut attrs = vec![
            attr(ATTR_INDEX, device.index),
            attr(ATTR_SIZE_BYTES, shape.size),
            attr(ATTR_BLOCK_SIZE_BYTES, u64::from(shape.block)),
            attr(ATTR_SERVER_FLAGS, u64::from(shape.flags)),
            attr(ATTR_DEAD_CONN_TIMEOUT, shape.wait_seconds),
            attr(ATTR_TIMEOUT, shape.timeout_seconds),
            text_attr(ATTR_BACKEND_IDENTIFIER, &shape.backend),
        ];
        attrs.push(list_of(sockets));
        self.tell(CMD_CONNECT, attrs).map_err(|errno| self.meaning(device, "cannot connect it", errno))
    }

    /// Gives a device new sockets for connections that are dead.
    pub fn replace(&self, device: &Device, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError> {
        let attrs = vec![attr(ATTR_INDEX, device.index), text_attr(ATTR_BACKEND_IDENTIFIER, backend), list_of(sockets)];
        self.tell(CMD_RECONFIGURE, attrs).map_err(|errno| self.meaning(device, "cannot replace a connection", errno))
    }

    /// Tells the driver how large a device is from now on; whoever uses it hears of that from the kernel.
    pub fn resize(&self, device: &Device, backend: &str, size: u64) -> Result<(), KernelError> {
        let attrs = vec![
            attr(ATTR_INDEX, device.index),
            attr(ATTR_SIZE_BYTES, size),
            text_attr(ATTR_BACKEND_IDENTIFIER, backend),
        ];
        self.tell(CMD_RECONFIGURE, attrs).map_err(|errno| self.meaning(device, "cannot resize it", errno))
    }

    /// Bytes of the device, as the kernel has it.
    #[must_use]
    pub fn size(&self, device: &Device) -> Option<u64> {
        let sectors: u64 = fs::read_to_string(device.sys("size")).ok()?.trim().parse().ok()?;
        sectors.checked_mul(512)
    }

    /// Has the driver let a device go: what is in flight fails. Waits until it has.
    pub fn disconnect(&self, device: &Device) -> Result<(), KernelError> {
        self.tell(CMD_DISCONNECT, vec![attr(ATTR_INDEX, device.index)])
            .map_err(|errno| self.meaning(device, "cannot disconnect it", errno))?;
        let end = Instant::now() + LET_GO;
        while device.connected() {
            if Instant::now() > end {
                let error = format!("it is still connected after {} s", LET_GO.as_secs());
                return Err(KernelError::Other { device: device.text(), what: "cannot disconnect it", error });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends one command and waits for the driver's word on it.
    fn tell(&self, command: u8, attrs: Vec<Attr>) -> Result<(), Errno> {
        let attrs: GenlBuffer<u16, Buffer> = attrs.into_iter().collect();
        let message = GenlmsghdrBuilder::<u8, u16>::default()
            .cmd(command)
            .version(1)
            .attrs(attrs)
            .build()
            .expect("every part of the message is given");
        let answers: NlRouterReceiverHandle<u16, Message> = self
            .router
            .send::<_, _, u16, Message>(self.family, NlmF::ACK, NlPayload::Payload(message))
            .map_err(|_| Errno::EIO)?;
        for answer in answers {
            match answer {
                Ok(_) => {}
                Err(RouterError::Nlmsgerr(error)) => return Err(Errno::from_raw(-*error.error())),
                Err(_) => return Err(Errno::EIO),
            }
        }
        Ok(())
    }

    fn meaning(&self, device: &Device, what: &'static str, errno: Errno) -> KernelError {
        match errno {
            Errno::EBUSY => KernelError::Busy(device.text()),
            Errno::EPERM | Errno::EACCES => KernelError::NotPermitted,
            Errno::ENOENT | Errno::ENODEV => KernelError::NoDevice(device.text()),
            errno => KernelError::Other { device: device.text(), what, error: errno.desc().into() },
        }
    }
}

fn attr(kind: u16, value: impl neli::ToBytes + neli::Size) -> Attr {
    NlattrBuilder::default()
        .nla_type(AttrTypeBuilder::default().nla_type(kind).build().expect("a type is given"))
        .nla_payload(value)
        .build()
        .expect("numbers and texts fit an attribute")
}

/// A text, which the kernel wants with a zero at its end.
fn text_attr(kind: u16, text: &str) -> Attr {
    attr(kind, [text.as_bytes(), &[0]].concat())
}

/// The nested list of sockets.
fn list_of(sockets: &[OwnedFd]) -> Attr {
    let nested = |kind: u16, inner: &[Attr]| {
        let mut list = NlattrBuilder::default()
            .nla_type(AttrTypeBuilder::default().nla_type(kind).nla_nested(true).build().expect("a type is given"))
            .nla_payload(Vec::<u8>::new())
            .build()
            .expect("an empty list fits an attribute");
        for one in inner {
            list = list.nest(one).expect("an attribute fits a list");
        }
        list
    };
    let number = |socket: &OwnedFd| u32::try_from(socket.as_raw_fd()).expect("descriptors are not negative");
    let items: Vec<Attr> = sockets.iter().map(|socket| nested(SOCK_ITEM, &[attr(SOCK_FD, number(socket))])).collect();
    nested(ATTR_SOCKETS, &items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_path_or_its_name() {
        for (text, index) in [("/dev/nbd0", 0), ("nbd15", 15), ("/dev/nbd123", 123)] {
            let device = Device::named(Path::new(text)).expect("a device");
            assert_eq!((device.index, device.name()), (index, format!("nbd{index}")));
        }
        for text in ["/dev/sda", "/dev/nbd", "/dev/nbd0p1", "nbd-1", "nbd+1", "/tmp/nbd0", "", "/dev/mapper/nbd0"] {
            assert_eq!(Device::named(Path::new(text)), None, "{text}");
        }
    }
}
