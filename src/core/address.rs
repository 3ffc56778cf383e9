//! Where to listen and whom to call: addresses of sockets, and URIs of NBD exports.
//!
//! Owns parsing and printing; nothing here resolves or connects. What `Display` prints parses back to
//! the same value. URIs follow "NBD URIs" of the nbd project's doc/uri.md, as far as farshore speaks it:
//! no TLS, no vsock.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Port of NBD when a URI names none (registered with IANA).
pub const NBD_PORT: u16 = 10809;

/// One end of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// Absolute or relative path of a Unix socket.
    Unix(PathBuf),
    /// `host:port`; an IPv6 address stands in brackets.
    Tcp(String),
}

/// An export of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NbdUri {
    pub address: Address,
    /// Name of the export, decoded; empty is the server's default export.
    pub export: String,
}

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {why}")]
pub struct AddressError {
    pub text: String,
    pub why: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = |why| AddressError { text: text.into(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            check_socket_path(path).map_err(wrong)?;
            return Ok(Address::Unix(path.into()));
        }
        check_host_port(text).map_err(wrong)?;
        Ok(Address::Tcp(text.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(host_port) => f.write_str(host_port),
        }
    }
}

impl FromStr for NbdUri {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<NbdUri, AddressError> {
        let wrong = |why| AddressError { text: text.into(), why };
        if let Some(rest) = text.strip_prefix("nbd://") {
            return tcp_uri(rest).map_err(wrong);
        }
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            return unix_uri(rest).map_err(wrong);
        }
        Err(wrong("expected nbd://host[:port]/export or nbd+unix:///export?socket=/path"))
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(&self.export);
        match &self.address {
            Address::Tcp(host_port) => {
                let shown = host_port.strip_suffix(&format!(":{NBD_PORT}")).unwrap_or(host_port);
                write!(f, "nbd://{shown}/{export}")
            }
            Address::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", percent_encode(&path.to_string_lossy()))
            }
        }
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = AddressError;

            fn try_from(text: String) -> Result<$name, AddressError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

text_conversions!(Address);
text_conversions!(NbdUri);

/// `host[:port]/export`
fn tcp_uri(rest: &str) -> Result<NbdUri, &'static str> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err("a user name before the host is not supported");
    }
    if export.contains(['?', '#']) {
        return Err("a query or fragment after the export name is not supported");
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let host_port = if has_port { authority.to_owned() } else { format!("{authority}:{NBD_PORT}") };
    check_host_port(&host_port)?;
    Ok(NbdUri { address: Address::Tcp(host_port), export: percent_decode(export)? })
}

/// `/export?socket=/path`
fn unix_uri(rest: &str) -> Result<NbdUri, &'static str> {
    let path = rest.strip_prefix('/').ok_or("nbd+unix takes no host: nbd+unix:///export?socket=/path")?;
    let (export, query) = path.split_once('?').ok_or("?socket=/path is missing")?;
    let socket = query.strip_prefix("socket=").ok_or("the one parameter allowed is socket=/path")?;
    if socket.contains(['&', '#']) {
        return Err("the one parameter allowed is socket=/path");
    }
    let socket = percent_decode(socket)?;
    check_socket_path(&socket)?;
    Ok(NbdUri { address: Address::Unix(socket.into()), export: percent_decode(export)? })
}

fn check_socket_path(path: &str) -> Result<(), &'static str> {
    match path {
        "" => Err("the path of the socket is missing"),
        path if path.contains('\0') => Err("the path of the socket contains a zero byte"),
        path if path.len() > SOCKET_PATH_BYTES_MAX => Err("the path of the socket is longer than 107 bytes"),
        _ => Ok(()),
    }
}

fn check_host_port(text: &str) -> Result<(), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("expected host:port or unix:/path")?;
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("the bracket around the IPv6 address is not closed")?,
        None if host.contains(':') => return Err("an IPv6 address stands in brackets: [::1]:port"),
        None => host,
    };
    if bare.is_empty() {
        return Err("the host is missing (0.0.0.0 or [::] listens on every address)");
    }
    if bare.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]@?#".contains(c)) {
        return Err("the host contains a character that no host name has");
    }
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() {
        return Err("the port is not a number from 0 to 65535");
    }
    Ok(())
}

fn percent_decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "% is not followed by two hex digits";
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(WRONG);
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).map_err(|_| WRONG)?);
    }
    String::from_utf8(out).map_err(|_| "the name is not UTF-8")
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `sun_path` has 108 bytes with its closing zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["unix:/run/farshore/x.sock", "127.0.0.1:10809", "host.example:0", "[::1]:65535"] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn wrong_addresses_say_what_is_wrong() {
        for (text, why) in [
            ("unix:", "path of the socket is missing"),
            ("host", "expected host:port"),
            (":1", "host is missing"),
            ("::1:80", "brackets"),
            ("[::1:80", "bracket"),
            ("h:65536", "port"),
            ("h:", "port"),
            ("h:+1", "port"),
            ("a b:1", "character"),
            ("nbd://h:1", "brackets"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<Address>().is_err());
    }

    #[test]
    fn uris_round_trip() {
        for (text, address, export) in [
            ("nbd://h/e", "h:10809", "e"),
            ("nbd://h:5/a/b%20c", "h:5", "a/b c"),
            ("nbd://[::1]/", "[::1]:10809", ""),
            ("nbd+unix:///e?socket=/run/x.sock", "unix:/run/x.sock", "e"),
            ("nbd+unix:///?socket=/a%3Fb", "unix:/a?b", ""),
        ] {
            let uri: NbdUri = text.parse().expect(text);
            assert_eq!((uri.address.to_string().as_str(), uri.export.as_str()), (address, export));
            assert_eq!(uri.to_string(), text);
        }
        assert_eq!("nbd://h".parse::<NbdUri>().expect("no path").export, "");
        assert_eq!("nbd://h:10809/e".parse::<NbdUri>().expect("port").to_string(), "nbd://h/e");
    }

    #[test]
    fn wrong_uris_say_what_is_wrong() {
        for (text, why) in [
            ("http://h/e", "nbd://"),
            ("nbds://h/e", "nbd://"),
            ("nbd:///e", "host is missing"),
            ("nbd://h:x/e", "port"),
            ("nbd://u@h/e", "user"),
            ("nbd://h/e?x=1", "query"),
            ("nbd://h/%4", "hex"),
            ("nbd://h/%+1", "hex"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd+unix://h/e?socket=/x", "no host"),
            ("nbd+unix:///e", "missing"),
            ("nbd+unix:///e?socket=", "missing"),
            ("nbd+unix:///e?path=/x", "socket=/path"),
        ] {
            let error = text.parse::<NbdUri>().expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_export_and_socket_round_trips(export in ".{0,30}", socket in "[^\0]{1,25}", port in 0u16..) {
            let unix = Address::Unix(socket.into());
            for address in [unix, Address::Tcp(format!("[::1]:{port}")), Address::Tcp(format!("host:{port}"))] {
                assert_eq!(address.to_string().parse::<Address>(), Ok(address.clone()));
                let uri = NbdUri { address, export: export.clone() };
                assert_eq!(uri.to_string().parse::<NbdUri>(), Ok(uri));
            }
        }
    }
}
