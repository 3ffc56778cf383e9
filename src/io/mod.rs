//! The kernel: ring, registered memory, sockets, files, clock. The only room with unsafe code.
#![allow(unsafe_code)]
