//! Our NBD against the NBD of others: our server driven by qemu, libnbd, nbdkit, nbd-client and fio, and by clients that
//! mean harm; our client against nbdkit and qemu-nbd; the auxiliary as a process with its fencing. A test whose tool is
//! missing says so and passes.

mod aux;
mod backing;
mod clients;
mod harness;
mod hostile;
#[path = "../common/listens.rs"]
mod listens;
mod psk;
mod raw;
mod region;
mod server;
mod tls;
