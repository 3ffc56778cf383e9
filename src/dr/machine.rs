//! The DR machine: receives, journals, spools, applies, promotes.

use crate::cluster::status::DrStatus;
use crate::core::machine::Now;
use crate::dr::recovery::Recovered;

pub use crate::dr::api::{Effect, File, Input, Options, PromoteError};

/// One DR site of one group.
pub struct Machine {
    options: Options,
}

impl Machine {
    #[must_use]
    pub fn new(_recovered: Recovered, options: Options) -> Machine {
        Machine { options }
    }

    /// Where this site stands.
    #[must_use]
    pub fn status(&self, _now: Now) -> DrStatus {
        DrStatus { group: self.options.group_name.clone(), ..DrStatus::default() }
    }
}

impl crate::core::machine::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, _now: Now, _input: Input, _fx: &mut Vec<Effect>) {
        let _ = &self.options;
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}
