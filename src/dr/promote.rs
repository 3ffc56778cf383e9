//! Promotion: fence, read the table, reconcile, fetch, report, replay, serve.

use serde::{Deserialize, Serialize};

use crate::cluster::status::PromoteReport;
use crate::core::ids::{Chain, GroupId, Seq};

/// What a promotion decided, kept durably by the shell (as JSON) before anything is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    pub group_id: GroupId,
    /// Chain of the record at the tail: where the history of the new epoch goes on.
    pub tail_chain: Chain,
    /// The cut this promotion replays to; equal to `report.cut_seq`.
    pub cut: Seq,
    /// The object that `farshore promote --json` prints.
    pub report: PromoteReport,
}
