//! Pure vocabulary shared by every room: identifiers, modes, the machine contract, byte ropes,
//! range sets and the in-flight overlap tracker. No clock, randomness, lock, socket or file.

pub mod address;
pub mod allocation;
pub mod asker;
pub mod errno;
pub mod fence;
pub mod identity;
pub mod ids;
pub mod machine;
pub mod modes;
pub mod names;
pub mod op;
pub mod overlap;
pub mod peer;
pub mod planted;
pub mod ranges;
pub mod rate;
pub mod rope;
pub mod sparing;
pub mod zero;
