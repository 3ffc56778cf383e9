//! The simulator: a seeded cluster of the real machines that tries to lose our data.
#![allow(dead_code)]

mod checkers;
mod disk;
mod network;
mod oracle;
mod rng;
mod workload;
