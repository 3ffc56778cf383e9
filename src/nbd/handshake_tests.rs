//! What is negotiated: styles of replies, metadata contexts, size constraints, and a server that goes away.

use crate::core::modes::TlsMode;
use crate::nbd::protocol::*;
use crate::nbd::session::tests::{Bench, client_flags, export, go, option, option_replies, request};
use crate::nbd::session::{Event, Export, Purpose, Refusal, Session, SessionError};

fn contexts(export: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let mut data = string(export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// A session past its flags, to which nothing was said yet.
fn greeted(export: Export) -> Bench {
    let mut bench = Bench::new();
    bench.export = Ok(export);
    bench.feed(&client_flags()).unwrap();
    bench.sent.clear();
    bench
}

/// (reply, first bytes of its data) of each answer since the last call.
fn answers(bench: &mut Bench) -> Vec<(u32, Vec<u8>)> {
    let sent = std::mem::take(&mut bench.sent);
    option_replies(&sent).into_iter().map(|(_, reply, data)| (reply, data)).collect()
}

fn code(bench: &mut Bench) -> u32 {
    answers(bench).last().expect("an answer").0
}

fn ask(bench: &mut Bench, kind: u32, data: &[u8]) -> u32 {
    bench.feed(&option(kind, data)).unwrap();
    code(bench)
}

/// The transmission flags that `OPT_GO` announces.
fn go_flags(bench: &mut Bench) -> u16 {
    bench.feed(&option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE]))).unwrap();
    let found = answers(bench).into_iter().find(|(reply, data)| *reply == REP_INFO && data[..2] == [0, 0]);
    be16(&found.expect("size and flags").1, 10)
}

#[test]
fn styles_are_negotiated_once_and_never_backwards() {
    let mut bench = greeted(export());
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b""), REP_ERR_INVALID);
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ERR_INVALID);
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b""), REP_ERR_EXT_HEADER_REQD);
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b"data"), REP_ERR_INVALID);
    assert_ne!(go_flags(&mut bench) & SEND_DF, 0);
    // Extended headers without structured replies before them.
    let mut bench = greeted(export());
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(go_flags(&mut bench) & (SEND_DF | BLOCK_STATUS_PAYLOAD), SEND_DF);
    let mut bench = greeted(export());
    assert_eq!(go_flags(&mut bench) & SEND_DF, 0, "not without chunks to be kept together");
}

#[test]
fn an_export_name_has_no_place_for_extended_headers() {
    let mut bench = greeted(export());
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(bench.feed(&option(OPT_EXPORT_NAME, b"db")), Err(SessionError::NameExtended));
}

#[test]
fn flags_say_what_an_export_offers() {
    let none =
        Export { multi_conn: false, trim: false, zeroes: false, cache: false, fua: false, flush: false, ..export() };
    let all = SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN | SEND_CACHE | SEND_FAST_ZERO;
    let read_only = Export { read_only: true, ..export() };
    let still = READ_ONLY | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    for (export, flags) in [(export(), all), (none, 0), (read_only, still)] {
        assert_eq!(go_flags(&mut greeted(export)), HAS_FLAGS | flags);
    }
}

#[test]
fn contexts_are_listed_by_wildcard_and_set_by_name() {
    let mut bench = greeted(export());
    assert_eq!(
        ask(&mut bench, OPT_LIST_META_CONTEXT, &contexts("db", &[])),
        REP_ERR_INVALID,
        "structured replies first"
    );
    assert_eq!(ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("db", &[])), REP_ERR_INVALID);
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b""), REP_ACK);
    let context = |id: u8| (REP_META_CONTEXT, [&[0, 0, 0, id][..], b"base:allocation"].concat());
    let ack = (REP_ACK, vec![]);
    for (kind, queries, found) in [
        (OPT_LIST_META_CONTEXT, &[][..], Some(0)),
        (OPT_LIST_META_CONTEXT, &["base:"], Some(0)),
        (OPT_LIST_META_CONTEXT, &["x-none:"], None),
        (OPT_SET_META_CONTEXT, &["base:allocation", "x-none:leaf"], Some(1)),
        (OPT_SET_META_CONTEXT, &["base:"], None),
        (OPT_SET_META_CONTEXT, &[], None),
    ] {
        bench.feed(&option(kind, &contexts("db", queries))).unwrap();
        let expected: Vec<_> = found.map(context).into_iter().chain([ack.clone()]).collect();
        assert_eq!(answers(&mut bench), expected, "{kind} {queries:?}");
    }
    assert!(bench.events.iter().all(|event| *event == Event::Resolve { name: "db".into(), purpose: Purpose::Info }));
    assert_eq!(ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("db", &["nothing"])), REP_ERR_INVALID);
    bench.export = Ok(Export { allocation: false, ..export() });
    bench.feed(&option(OPT_LIST_META_CONTEXT, &contexts("db", &[]))).unwrap();
    assert_eq!(answers(&mut bench), [ack], "an export that cannot tell has no context");
    bench.export = Err(Refusal { code: REP_ERR_UNKNOWN, text: "none".into() });
    assert_eq!(ask(&mut bench, OPT_LIST_META_CONTEXT, &contexts("no", &[])), REP_ERR_UNKNOWN);
}

/// Whether a block status may be asked for after these options: (kind, data), and whether each succeeds.
fn status_after(options: &[(u32, Vec<u8>, bool)]) -> bool {
    let mut bench = greeted(export());
    for (kind, data, succeeds) in options {
        assert_eq!(ask(&mut bench, *kind, data) == REP_ACK, *succeeds);
    }
    go_flags(&mut bench);
    bench.events.clear();
    bench.feed(&request(0, CMD_BLOCK_STATUS, 9, 0, 4096)).unwrap();
    !bench.requests().is_empty()
}

#[test]
fn the_last_selection_counts_and_only_for_its_export() {
    let structured = || (OPT_STRUCTURED_REPLY, vec![], true);
    let set = |name: &str, queries: &[&str]| (OPT_SET_META_CONTEXT, contexts(name, queries), true);
    let selected = || set("db", &["base:allocation"]);
    assert!(status_after(&[structured(), selected()]));
    assert!(status_after(&[structured(), set("db", &[]), selected()]));
    assert!(!status_after(&[structured()]));
    assert!(!status_after(&[structured(), selected(), set("db", &[])]), "a later selection replaces it");
    assert!(!status_after(&[structured(), selected(), (OPT_SET_META_CONTEXT, vec![1], false)]), "also when it fails");
    let huge = (OPT_SET_META_CONTEXT, vec![0; 1 << 20], false);
    assert!(!status_after(&[structured(), selected(), huge]));
    assert!(status_after(&[structured(), selected(), (OPT_LIST_META_CONTEXT, contexts("db", &[]), true)]));
    assert!(
        status_after(&[structured(), selected(), (OPT_STARTTLS, vec![], false)]),
        "a refused upgrade forgets nothing"
    );
    assert!(status_after(&[structured(), selected(), (OPT_INFO, go("db", &[]), true)]));
}

#[test]
fn a_selection_for_another_export_is_none_for_this_one() {
    let mut bench = greeted(Export { name: "log".into(), ..export() });
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("log", &["base:allocation"])), REP_ACK);
    bench.export = Ok(export());
    assert_eq!(go_flags(&mut bench) & BLOCK_STATUS_PAYLOAD, 0);
    let mut bench = greeted(export());
    assert_eq!(ask(&mut bench, OPT_EXTENDED_HEADERS, b""), REP_ACK);
    // By the name of the default export: it is the same one.
    assert_eq!(ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("", &["base:allocation"])), REP_ACK);
    assert_ne!(go_flags(&mut bench) & BLOCK_STATUS_PAYLOAD, 0);
}

#[test]
fn size_constraints_have_to_be_asked_for_where_they_are_not_the_usual_ones() {
    for constrained in [Export { block_min: 512, ..export() }, Export { block_max: 1 << 20, ..export() }] {
        let mut bench = greeted(constrained.clone());
        bench.feed(&option(OPT_GO, &go("db", &[]))).unwrap();
        let told = answers(&mut bench);
        assert_eq!(told.iter().map(|(reply, _)| *reply).collect::<Vec<_>>(), [REP_INFO, REP_ERR_BLOCK_SIZE_REQD]);
        assert_eq!(told[0].1[..2], [0, 3], "they come with the refusal");
        assert_eq!(ask(&mut bench, OPT_INFO, &go("db", &[])), REP_ACK, "to know about it takes no promise");
        go_flags(&mut bench);
        assert!(bench.session.transmitting());
        let mut bench = greeted(constrained);
        bench.feed(&option(OPT_EXPORT_NAME, b"db")).unwrap();
        assert!(bench.session.finished() && bench.sent.is_empty());
    }
}

#[test]
fn a_server_that_goes_away_says_so_to_every_option_but_goodbye() {
    let mut bench = greeted(export());
    bench.session.shut_down();
    let long = contexts("db", &["base:allocation"]);
    for (kind, data) in [(OPT_GO, go("db", &[])), (OPT_LIST, vec![]), (OPT_SET_META_CONTEXT, long), (77, vec![1; 70])] {
        assert_eq!(ask(&mut bench, kind, &data), REP_ERR_SHUTDOWN);
    }
    assert_eq!(bench.events, []);
    assert_eq!(ask(&mut bench, OPT_ABORT, &[0; 100_000]), REP_ACK, "whatever data comes with it");
    assert!(bench.session.finished());
    let mut bench = greeted(export());
    bench.session.shut_down();
    bench.feed(&option(OPT_EXPORT_NAME, b"db")).unwrap();
    assert!(bench.session.finished() && bench.sent.is_empty());
}

/// A session past its flags, in which TLS has this part.
fn greeted_with(tls: TlsMode) -> Bench {
    let mut bench = Bench::new();
    bench.session = Session::with_tls(tls);
    bench.export = Ok(export());
    bench.feed(&client_flags()).unwrap();
    bench.sent.clear();
    bench
}

fn secure(bench: &mut Bench) {
    assert_eq!(ask(bench, OPT_STARTTLS, b""), REP_ACK);
    assert_eq!(bench.events.pop(), Some(Event::Secure));
    bench.session.secured();
}

#[test]
fn where_tls_is_required_nothing_is_answered_before_it_but_goodbye() {
    let mut bench = greeted_with(TlsMode::Required);
    let long = contexts("db", &["base:allocation"]);
    for (kind, data) in [(OPT_GO, go("db", &[])), (OPT_LIST, vec![]), (OPT_SET_META_CONTEXT, long), (77, vec![1; 70])] {
        assert_eq!(ask(&mut bench, kind, &data), REP_ERR_TLS_REQD);
    }
    assert_eq!(bench.events, [], "nobody was asked whether an export exists");
    assert_eq!(ask(&mut bench, OPT_STARTTLS, b"?"), REP_ERR_INVALID);
    secure(&mut bench);
    assert_eq!(ask(&mut bench, OPT_STARTTLS, b""), REP_ERR_INVALID, "once");
    go_flags(&mut bench);
    assert!(bench.session.transmitting());
    let mut bench = greeted_with(TlsMode::Required);
    assert_eq!(bench.feed(&option(OPT_EXPORT_NAME, b"db")), Err(SessionError::TlsRequired));
    assert!(bench.sent.is_empty());
    let mut bench = greeted_with(TlsMode::Required);
    assert_eq!(ask(&mut bench, OPT_ABORT, b""), REP_ACK);
    assert!(bench.session.finished());
    let mut bench = greeted_with(TlsMode::Required);
    secure(&mut bench);
    bench.export = Ok(Export { block_max: 32 << 20, ..export() });
    bench.feed(&option(OPT_EXPORT_NAME, b"db")).unwrap();
    assert!(bench.session.transmitting(), "old clients may, within TLS");
}

#[test]
fn what_was_negotiated_in_the_clear_is_forgotten() {
    let mut bench = greeted_with(TlsMode::Optional);
    assert_eq!(ask(&mut bench, OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("db", &["base:allocation"])), REP_ACK);
    bench.events.clear();
    secure(&mut bench);
    assert_eq!(
        ask(&mut bench, OPT_SET_META_CONTEXT, &contexts("db", &[])),
        REP_ERR_INVALID,
        "replies are simple again"
    );
    assert_eq!(go_flags(&mut bench) & SEND_DF, 0);
    bench.events.clear();
    bench.feed(&request(0, CMD_BLOCK_STATUS, 9, 0, 4096)).unwrap();
    assert!(bench.requests().is_empty());
}

#[test]
fn nothing_is_parsed_between_the_grant_of_tls_and_its_beginning() {
    let mut bench = greeted_with(TlsMode::Optional);
    bench.feed(&option(OPT_STARTTLS, b"")).unwrap();
    bench.feed(&option(OPT_LIST, b"")).unwrap();
    assert_eq!(bench.events, [Event::Secure]);
    assert_eq!(answers(&mut bench).len(), 1);
    let mut bench = greeted_with(TlsMode::Optional);
    go_flags(&mut bench);
    assert!(bench.session.transmitting(), "who does not want it goes without");
}

#[test]
fn what_comes_in_the_clear_behind_starttls_ends_the_connection_and_a_refused_one_does_not() {
    for (behind, bytes) in [(option(OPT_LIST, b""), 16), (vec![0x16], 1)] {
        let mut bench = greeted_with(TlsMode::Optional);
        let forged = [option(OPT_STARTTLS, b""), behind].concat();
        assert_eq!(bench.feed(&forged), Err(SessionError::Injected(bytes)));
        assert!(bench.events.is_empty() && bench.sent.is_empty(), "nothing is granted");
    }
    let mut bench = greeted_with(TlsMode::Off);
    let both = [option(OPT_STARTTLS, b""), option(OPT_STRUCTURED_REPLY, b"")].concat();
    bench.feed(&both).unwrap();
    assert_eq!(answers(&mut bench).len(), 2);
}
