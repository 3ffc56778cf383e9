//! The kernel: ring, registered memory, sockets, files, signals, clock. The only room with unsafe code.
//!
//! ```text
//!   daemon ──turn()──► reactor ──┬─ net     sockets: accept, connect, scatter receive, batched send
//!          ◄─events───           │    └─ secure, tls   records and plaintext, certificates
//!                                ├─ disk    files: direct or buffered, durable writes, zeroing
//!                                ├─ arena   page-aligned memory the kernel knows (fixed buffers)
//!                                ├─ ring    one io_uring, one io_uring_enter a turn
//!                                └─ clock, signal
//! ```
//!
//! - One thread owns a [`Reactor`]; nothing in here is shared but the arena's free lists.
//! - Memory the kernel sees is owned by the operation that shows it, until its completion is read.
//! - Nothing polls: without work and deadline the thread sleeps in the kernel.
//! - Everything has a bound (I9): received bytes not yet consumed, connections, time to close.
#![allow(unsafe_code)]

mod accept;
pub mod arena;
pub mod clock;
pub mod control;
mod disk;
pub mod entropy;
mod extents;
pub mod http;
mod lease;
pub mod listen;
mod lock;
pub mod mark;
mod net;
pub mod notify;
pub mod open;
mod patience;
pub mod places;
mod plan;
pub mod reactor;
pub mod reader;
mod resolve;
mod ring;
mod secure;
mod sending;
mod signal;
mod slice;
mod socket;
pub mod tls;
pub mod vector;
mod work;

pub use extents::Range;
pub use open::{Direct, OpenOptions, Preallocate, is_absent, make_dir};
pub use reactor::{Event, FileId, Reactor, ReactorOptions, Stopper};
pub use reader::{FileReader, Still};
