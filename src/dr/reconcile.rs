//! What a promotion does with each order record: a table over everything that is known of it.
//!
//! Pure decision, no state. "Here" is DR; "ring" is the auxiliary's payload ring.
//!
//! | journal | table | up to the cut | has payload | here | ring | state | decision |
//! |---|---|---|---|---|---|---|---|
//! | – | – | | | | | | no such record |
//! | any | any | yes | | | | | in the image |
//! | no | yes | no | | | | | append to the journal first, then as below |
//! | | | no | no | | | | held: its effect needs no payload, the order forbids it |
//! | | | no | yes | yes | | | held |
//! | | | no | yes | no | yes | | fetch; if that fails, by state |
//! | | | no | yes | no | no | queued | missing: never left the primary |
//! | | | no | yes | no | no | sent | missing: lost on its way |
//! | | | no | yes | no | no | copied | missing, and named: the table says it is here |
//! | | | no | yes | no | no | none | missing: unknown |
//!
//! Whatever is not in the image is in the report, and nothing else is (I4).

pub use crate::cluster::losses::Missing;
use crate::format::table::State;

/// Everything known of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub in_journal: bool,
    pub in_table: bool,
    /// At or below the cut: applied or about to be, by itself or by a batch.
    pub in_image: bool,
    pub has_payload: bool,
    /// Its payload is durable here.
    pub here: bool,
    /// The slot names a place in the payload ring.
    pub in_ring: bool,
    /// State of its slot in the status table, if the slot is its own.
    pub state: Option<State>,
}

/// What is done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Make its order durable in the journal here before anything else.
    pub append: bool,
    /// Its payload can be had from the auxiliary's ring.
    pub fetch: bool,
    /// What the report says of it if it does not get into the image.
    pub missing: Option<Missing>,
    /// The two sides contradict each other: worth a line (I8).
    pub conflict: bool,
}

/// The table in the module's doc.
#[must_use]
pub fn decide(known: Known) -> Decision {
    let nothing = Decision { append: false, fetch: false, missing: None, conflict: false };
    if known.in_image || !(known.in_journal || known.in_table) {
        return nothing;
    }
    let append = !known.in_journal;
    if !known.has_payload || known.here {
        return Decision { append, missing: Some(Missing::Held), ..nothing };
    }
    let missing = match known.state {
        Some(State::Queued) => Missing::Queued,
        Some(State::Sent) => Missing::Sent,
        Some(State::Copied) | None => Missing::Unknown,
    };
    Decision { append, fetch: known.in_ring, missing: Some(missing), conflict: known.state == Some(State::Copied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_case() -> impl Iterator<Item = Known> {
        let states = [None, Some(State::Queued), Some(State::Sent), Some(State::Copied)];
        (0..64u8).flat_map(move |bits| {
            states.into_iter().map(move |state| Known {
                in_journal: bits & 1 != 0,
                in_table: bits & 2 != 0,
                in_image: bits & 4 != 0,
                has_payload: bits & 8 != 0,
                here: bits & 16 != 0,
                in_ring: bits & 32 != 0,
                state,
            })
        })
    }

    #[test]
    fn over_all_inputs_what_is_not_in_the_image_is_reported_and_nothing_else() {
        for known in every_case() {
            let decision = decide(known);
            let exists = known.in_journal || known.in_table;
            assert_eq!(decision.missing.is_some(), exists && !known.in_image, "{known:?}");
        }
    }

    #[test]
    fn over_all_inputs_only_orders_that_the_journal_lacks_are_appended() {
        for known in every_case() {
            let wanted = known.in_table && !known.in_journal && !known.in_image;
            assert_eq!(decide(known).append, wanted, "{known:?}");
        }
    }

    #[test]
    fn over_all_inputs_only_payloads_that_are_not_here_are_fetched() {
        for known in every_case() {
            let wanted = (known.in_journal || known.in_table)
                && !known.in_image
                && known.has_payload
                && !known.here
                && known.in_ring;
            assert_eq!(decide(known).fetch, wanted, "{known:?}");
        }
    }

    #[test]
    fn over_all_inputs_the_word_says_where_the_payload_is() {
        for known in every_case() {
            let Some(missing) = decide(known).missing else { continue };
            let payload_needed = known.has_payload && !known.here;
            assert_eq!(missing == Missing::Held, !payload_needed, "{known:?}");
            assert_eq!(missing == Missing::Queued, payload_needed && known.state == Some(State::Queued), "{known:?}");
            assert_eq!(missing == Missing::Sent, payload_needed && known.state == Some(State::Sent), "{known:?}");
            assert_eq!(
                decide(known).conflict,
                payload_needed && known.state == Some(State::Copied),
                "a table that says copied of what is not here is named: {known:?}"
            );
        }
    }
}
