//! Readers of text: the configuration, the lines of the control socket, the requests of the metrics listener.

use farshore::cluster::config;
use farshore::cluster::control::Request;
use farshore::io::control::Lines;
use farshore::io::http;
use farshore::limits::{CONTROL_REQUEST_BYTES_MAX, NAME_BYTES_MAX, STREAMS_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX};

use super::{Input, Reached, Wanted};

pub const CONFIG_WANTED: Wanted = &[("accepted", 4), ("primary", 3), ("aux", 3), ("dr", 3)];
pub const CONTROL_WANTED: Wanted = &[("request", 20), ("line", 800), ("long line", 1)];
pub const HTTP_WANTED: Wanted = &[("get", 2), ("head", 1), ("refusal", 20)];

/// What is accepted keeps to every bound, and what is not is complained about at a line that exists.
pub fn config(input: &[u8], reached: &mut Reached) {
    let text = String::from_utf8_lossy(input);
    let lines = text.lines().count();
    match config::parse(&text, "file") {
        Ok(config) => {
            let names = config.volumes.iter().map(|volume| &volume.name).chain([&config.group.name]);
            for name in names {
                assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "a name of {} bytes", name.len());
            }
            assert!((1..=VOLUMES_MAX).contains(&config.volumes.len()));
            assert!(config.volumes.iter().all(|volume| (1..=VOLUME_BYTES_MAX).contains(&volume.size)));
            assert!(config.primary.iter().all(|primary| primary.backing.len() == config.volumes.len()));
            assert!(config.dr.iter().all(|dr| (1..=STREAMS_MAX).contains(&dr.streams)));
            assert!(config.warnings.iter().all(|warning| warning.line <= lines + 1));
            reached.one("accepted");
            reached.when("primary", config.primary.is_some());
            reached.when("aux", config.aux.is_some());
            reached.when("dr", config.dr.is_some());
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "a refusal says why");
            for error in errors {
                assert!(error.line <= lines + 1, "line {} of {lines}: {error}", error.line);
                assert!(!error.text.is_empty());
            }
        }
    }
}

/// Lines come out as they went in, however they were cut; a request that is read is written so that it reads the same.
pub fn control(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let piece = usize::from(input.u8()).max(1);
    let bytes = input.rest();
    let mut lines = Lines::default();
    let mut found = Vec::new();
    let mut whole = true;
    'pieces: for piece in bytes.chunks(piece) {
        lines.push(piece);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => found.push(line),
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break 'pieces;
                }
            }
        }
    }
    let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let open = expected.pop().unwrap_or_default();
    assert!(found.len() <= expected.len() && found.iter().zip(&expected).all(|(found, line)| found == line));
    assert_eq!(
        whole,
        found.len() == expected.len() && open.len() < CONTROL_REQUEST_BYTES_MAX,
        "only a long line is refused"
    );
    reached.many("line", found.len());
    reached.when("long line", !whole);
    for line in found {
        if let Ok(request) = Request::parse(&line) {
            let written = request.line();
            assert_eq!(Request::parse(written.trim_end().as_bytes()), Ok(request));
            reached.one("request");
        }
    }
}

/// A request is one from its last byte on, whatever follows; its path is a part of it.
pub fn http(input: &[u8], reached: &mut Reached) {
    let Some(parsed) = http::parse(input) else {
        assert!(!input.windows(4).any(|four| four == b"\r\n\r\n"), "a whole request is judged");
        return;
    };
    let end = input.windows(4).position(|four| four == b"\r\n\r\n").expect("it was found") + 4;
    assert_eq!(http::parse(&input[..end]).as_ref(), Some(&parsed), "what follows changes nothing");
    assert_eq!(http::parse(&input[..end - 1]), None, "nothing is answered before it is whole");
    match parsed {
        Ok((path, head)) => {
            assert!(path.starts_with('/') && !path.contains(['?', ' ', '\r', '\n']), "{path:?}");
            assert!(input.starts_with(if head { b"HEAD /" } else { b"GET /" }));
            reached.one(if head { "head" } else { "get" });
        }
        Err((code, text)) => {
            assert!((400..500).contains(&code) && !text.is_empty());
            reached.one("refusal");
        }
    }
}
