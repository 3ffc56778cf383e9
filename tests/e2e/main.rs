//! End to end: real processes, real sockets, real files; each test has a group of its own in a directory of its own.

mod backing;
mod crash;
mod failback;
mod growth;
mod harness;
mod identity;
mod intruders;
mod journal;
mod link;
#[path = "../common/listens.rs"]
mod listens;
mod long;
mod losses;
mod metrics;
mod modes;
mod operator;
mod promotion;
mod psk;
mod refusals;
mod resize;
mod restarts;
mod stale;
mod stop;
mod table;
mod tls;
mod unprivileged;
mod verify;
