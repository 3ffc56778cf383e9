//! Metadata contexts ("Metadata querying"): what a client asks for, and the one context there is, `base:allocation`.
//!
//! Queries of other namespaces find nothing and are no error; a query without a namespace is one.

use crate::nbd::options::text;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::reply::ALLOCATION_ID;

/// The name of the context that says which parts have no storage.
pub const ALLOCATION: &str = "base:allocation";

/// What `OPT_LIST_META_CONTEXT` or `OPT_SET_META_CONTEXT` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries {
    pub export: String,
    /// Whether one of its queries finds `base:allocation`.
    pub allocation: bool,
}

/// Reads the data of one of these options.
///
/// # Errors
/// What is malformed.
pub fn queries(option: u32, data: &[u8]) -> Result<Queries, &'static str> {
    let mut rest = data;
    let export = string(&mut rest)?;
    let count = number(&mut rest)?;
    let listing = option == OPT_LIST_META_CONTEXT;
    // Listing without a query lists everything; setting without one selects nothing.
    let mut allocation = listing && count == 0;
    for _ in 0..count {
        let query = string(&mut rest)?;
        let (namespace, leaf) = query.split_once(':').ok_or("a query starts with a namespace and a colon")?;
        if namespace.is_empty() {
            return Err("a query starts with a namespace and a colon");
        }
        // A namespace alone is a wildcard of a list and selects nothing.
        allocation |= namespace == "base" && (leaf == "allocation" || listing && leaf.is_empty());
    }
    if !rest.is_empty() {
        return Err("there is more data than the number of queries says");
    }
    Ok(Queries { export: export.to_owned(), allocation })
}

/// Answers with the context. A listed one has no number yet.
pub fn context(out: &mut Outbox, option: u32) {
    let id = if option == OPT_SET_META_CONTEXT { ALLOCATION_ID } else { 0 };
    out.put(&OptionReplyHead::encode(option, REP_META_CONTEXT, 4 + ALLOCATION.len() as u32));
    out.put(&id.to_be_bytes());
    out.put(ALLOCATION.as_bytes());
}

/// The payload of a `CMD_BLOCK_STATUS` ("Request types" of the extension): the length that is asked about, when the
/// contexts named are those that were selected, each once.
#[must_use]
pub fn chosen(payload: &[u8]) -> Option<u64> {
    // With one context there is one way to name some of them.
    (payload.len() == 12 && be32(payload, 8) == ALLOCATION_ID).then(|| be64(payload, 0))
}

fn number(rest: &mut &[u8]) -> Result<u32, &'static str> {
    let (front, after) = rest.split_at_checked(4).ok_or("the data of this option is shorter than its fields")?;
    *rest = after;
    Ok(be32(front, 0))
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a str, &'static str> {
    let length = number(rest)? as usize;
    let (front, after) = rest.split_at_checked(length).ok_or("a string is longer than the option that carries it")?;
    *rest = after;
    text(front)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(export: &str, queries: &[&str]) -> Vec<u8> {
        let string = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        let mut data = string(export);
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    }

    #[test]
    fn queries_find_what_their_option_lets_them_find() {
        let cases: [(&[&str], bool, bool); 9] = [
            (&[], true, false),
            (&["base:"], true, false),
            (&["base:allocation"], true, true),
            (&["x-other:", "base:allocation"], true, true),
            (&["qemu:dirty-bitmap:a"], false, false),
            (&["base:nothing"], false, false),
            (&["base:allocation:"], false, false),
            (&["Base:allocation"], false, false),
            (&["base:", "base:"], true, false),
        ];
        for (asked, listed, set) in cases {
            let data = data("db", asked);
            let found = [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT].map(|option| queries(option, &data));
            let expected = |allocation| Ok(Queries { export: "db".into(), allocation });
            assert_eq!(found, [expected(listed), expected(set)], "{asked:?}");
        }
    }

    #[test]
    fn malformed_queries_are_refused() {
        let good = data("db", &["base:allocation"]);
        for length in 0..good.len() {
            assert!(queries(OPT_SET_META_CONTEXT, &good[..length]).is_err(), "{length} bytes of it");
        }
        let more = [&good[..], b"x"].concat();
        let long = data(&"n".repeat(STRING_BYTES_MAX + 1), &[]);
        let broken = [more, long, data("db", &["base"]), data("db", &[":allocation"]), data("d\0b", &[])];
        for data in broken {
            assert!(queries(OPT_SET_META_CONTEXT, &data).is_err());
        }
        let mut huge = data("", &[]);
        huge[4..8].copy_from_slice(&[0xff; 4]);
        assert!(queries(OPT_LIST_META_CONTEXT, &huge).is_err());
    }

    #[test]
    fn a_context_has_the_bytes_of_the_specification() {
        let mut out = Outbox::new();
        context(&mut out, OPT_SET_META_CONTEXT);
        let sent: Vec<u8> = out.drain().flatten().collect();
        assert_eq!(sent[8..24], [0, 0, 0, 10, 0, 0, 0, 4, 0, 0, 0, 19, 0, 0, 0, 1]);
        assert_eq!(&sent[24..], b"base:allocation");
    }

    #[test]
    fn a_payload_names_every_context_once_or_is_refused() {
        let payload = |length: u64, ids: &[u32]| {
            let ids = ids.iter().flat_map(|id| id.to_be_bytes());
            length.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
        };
        assert_eq!(chosen(&payload(1 << 40, &[1])), Some(1 << 40));
        for wrong in [payload(9, &[]), payload(9, &[0]), payload(9, &[2]), payload(9, &[1, 1]), vec![], vec![0; 7]] {
            assert_eq!(chosen(&wrong), None);
        }
    }
}
