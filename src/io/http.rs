//! A listener that answers GET: one request a connection, then it is closed.
//!
//! Owns the sockets and the words of HTTP/1.1; what is on a page is its caller's. Bounded (I9): a request that does
//! not end within [`HTTP_REQUEST_BYTES_MAX`] is refused, and of more than [`HTTP_CONNECTIONS_MAX`] connections the oldest
//! is ended, so that whoever says nothing keeps nobody out.

use std::collections::VecDeque;
use std::io;

use super::{Event, Reactor};
use crate::core::address::Address;
use crate::core::ids::Conn;
use crate::limits::{HTTP_CONNECTIONS_MAX, HTTP_REQUEST_BYTES_MAX};

/// A request to be answered with [`HttpServer::reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub conn: Conn,
    /// Without what follows a question mark.
    pub path: String,
    /// Only the head of the answer is wanted.
    head: bool,
}

/// The listener and its connections; without an address it is nobody's.
#[derive(Debug, Default)]
pub struct HttpServer {
    listener: Option<usize>,
    /// Oldest first; whether its request has been taken: nothing more is looked at then.
    conns: VecDeque<(Conn, bool)>,
}

impl HttpServer {
    /// Listens, when there is an address.
    pub fn start(reactor: &mut Reactor, address: Option<&Address>) -> io::Result<HttpServer> {
        let listener = address.map(|address| reactor.listen(address)).transpose()?;
        Ok(HttpServer { listener, conns: VecDeque::new() })
    }

    /// Takes an event of the reactor; false when it is about somebody else.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &Event, asked: &mut Vec<Asked>) -> bool {
        match event {
            Event::Accepted { listener, conn, .. } if Some(*listener) == self.listener => {
                if self.conns.len() >= HTTP_CONNECTIONS_MAX
                    && let Some((oldest, _)) = self.conns.pop_front()
                {
                    reactor.abort(oldest, "too many connections");
                }
                self.conns.push_back((*conn, false));
                true
            }
            Event::Received { conn } => match self.conns.iter_mut().find(|(known, _)| known == conn) {
                Some((conn, taken)) => {
                    *taken = received(reactor, *conn, *taken, asked);
                    true
                }
                None => false,
            },
            Event::Sent { conn } => self.conns.iter().any(|(known, _)| known == conn),
            Event::Closed { conn, .. } => {
                let before = self.conns.len();
                self.conns.retain(|(known, _)| known != conn);
                self.conns.len() < before
            }
            _ => false,
        }
    }

    /// Sends a page and ends the connection.
    pub fn reply(reactor: &mut Reactor, asked: &Asked, code: u16, kind: &str, body: &str) {
        let length = body.len();
        let allow = if code == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let mut text = format!(
            "HTTP/1.1 {code} {}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n",
            reason(code)
        );
        if !asked.head {
            text.push_str(body);
        }
        reactor.send(asked.conn, text.into());
        reactor.close(asked.conn, "answered");
    }

    /// Takes no more connections, and ends those that have not asked anything yet.
    pub fn stop(&mut self, reactor: &mut Reactor) {
        if let Some(listener) = self.listener.take() {
            reactor.stop_listening(listener);
        }
        for (conn, _) in self.conns.drain(..).filter(|(_, taken)| !taken) {
            reactor.abort(conn, "stopping");
        }
    }
}

/// Looks for a whole request in what has arrived; whether there is one now, or never will be.
fn received(reactor: &mut Reactor, conn: Conn, taken: bool, asked: &mut Vec<Asked>) -> bool {
    let rx = reactor.rx(conn);
    let mut bytes = vec![0; rx.len().min(HTTP_REQUEST_BYTES_MAX)];
    let filled = rx.peek(&mut bytes);
    assert!(filled, "no more is looked at than has arrived");
    if taken {
        rx.skip(rx.len());
        return true;
    }
    let parsed = parse(&bytes);
    if parsed.is_none() && bytes.len() < HTTP_REQUEST_BYTES_MAX {
        return false;
    }
    match parsed.unwrap_or(Err((431, "the request is too long"))) {
        Ok((path, head)) => asked.push(Asked { conn, path, head }),
        Err((code, text)) => {
            let ask = Asked { conn, path: String::new(), head: false };
            HttpServer::reply(reactor, &ask, code, "text/plain; charset=utf-8", &format!("{text}\n"));
        }
    }
    true
}

/// The path and whether only the head is wanted, or the status and words of a refusal.
pub type Parsed = Result<(String, bool), (u16, &'static str)>;

/// The path of a whole request and whether only the head is wanted; `None` while it is not whole.
pub fn parse(bytes: &[u8]) -> Option<Parsed> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return Some(Err((400, "the request is no text"))) };
    let line = head.split("\r\n").next().unwrap_or_default();
    // A line that ends for others where it does not end here (RFC 9112, section 2.2).
    if line.contains(char::is_control) {
        return Some(Err((400, "control characters in the request line")));
    }
    let mut words = line.split(' ');
    Some(match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method @ ("GET" | "HEAD")), Some(target), Some(version), None)
            if version.starts_with("HTTP/1.") && target.starts_with('/') =>
        {
            let path = target.split('?').next().unwrap_or_default();
            Ok((path.to_owned(), method == "HEAD"))
        }
        (Some(_), Some(target), Some(version), None) if version.starts_with("HTTP/1.") && target.starts_with('/') => {
            Err((405, "only GET and HEAD are answered"))
        }
        _ => Err((400, "not a request of HTTP/1.1")),
    })
}

fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Bad Request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_parsed_whole_and_nothing_else_is_answered() {
        assert_eq!(parse(b"GET /metrics HTTP/1.1\r\nHost: a\r\n"), None);
        let whole = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
        assert_eq!(parse(whole), Some(Ok(("/metrics".into(), false))));
        assert_eq!(parse(b"HEAD / HTTP/1.0\r\n\r\n"), Some(Ok(("/".into(), true))));
        for (bytes, code) in [
            (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], 405),
            (b"GET metrics HTTP/1.1\r\n\r\n", 400),
            (b"GET /metrics HTTP/2\r\n\r\n", 400),
            (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
            (b"GET /met\nrics HTTP/1.1\r\n\r\n", 400),
            (b"GET /metrics\r HTTP/1.1\r\n\r\n", 400),
            (b"\xff\xfe\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
        ] {
            assert!(matches!(parse(bytes), Some(Err((found, _))) if found == code), "{bytes:?}");
        }
    }
}
