//! Our NBD against the NBD of others: our server driven by qemu, libnbd and fio, our client against nbdkit and
//! qemu-nbd, and the auxiliary as a process with its fencing. A test whose tool is missing says so and passes.

mod aux;
mod harness;
mod region;
mod server;
