//! Where to listen and whom to call: addresses of sockets, and URIs of NBD exports.
//!
//! Owns parsing and printing; nothing here resolves or connects. What `Display` prints parses back to
//! the same value. URIs follow "The NBD Uniform Resource Indicator (URI) format" of the nbd project's doc/uri.md:
//! all of it but TLS-PSK with its user names, abstract sockets, vsock and SSH, which are recognised and refused in words.

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
    /// The connection has to be secure (`nbds://`, `nbds+unix://`).
    pub tls: Option<UriTls>,
}

/// What a URI says of TLS, always with X.509.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UriTls {
    /// `tls-certificates`: a directory with ca-cert.pem and, if the server asks for them, client-cert.pem and -key.pem.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname`: the name in the server's certificate, when it is not the host of the URI.
    pub hostname: Option<String>,
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
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        // Schemes are written in either case (RFC 3986, section 3.1).
        match scheme.to_ascii_lowercase().as_str() {
            "nbd" => tcp_uri(rest, false).map_err(wrong),
            "nbds" => tcp_uri(rest, true).map_err(wrong),
            "nbd+unix" => unix_uri(rest, false).map_err(wrong),
            "nbds+unix" => unix_uri(rest, true).map_err(wrong),
            "nbd+vsock" | "nbds+vsock" => Err(wrong("vsock is not supported: use nbd:// or nbd+unix://")),
            "nbd+ssh" => Err(wrong("SSH is not supported: forward a port, and use nbd://")),
            _ => Err(wrong("expected nbd://host[:port]/export or nbd+unix:///export?socket=/path (nbds for TLS)")),
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(&self.export);
        let s = if self.tls.is_some() { "s" } else { "" };
        let mut mark = '?';
        match &self.address {
            Address::Tcp(host_port) => {
                let shown = host_port.strip_suffix(&format!(":{NBD_PORT}")).unwrap_or(host_port);
                write!(f, "nbd{s}://{shown}/{export}")?;
            }
            Address::Unix(path) => {
                write!(f, "nbd{s}+unix:///{export}?socket={}", percent_encode(&path.to_string_lossy()))?;
                mark = '&';
            }
        }
        let tls = self.tls.as_ref();
        let directory = tls.and_then(|tls| tls.certificates.as_ref()).map(|dir| dir.to_string_lossy().into_owned());
        let hostname = tls.and_then(|tls| tls.hostname.clone());
        for (key, value) in [("tls-certificates", directory), ("tls-hostname", hostname)] {
            if let Some(value) = value {
                write!(f, "{}{key}={}", std::mem::replace(&mut mark, '&'), percent_encode(&value))?;
            }
        }
        Ok(())
    }
}

impl NbdUri {
    /// The name by which the server has to be known in its certificate.
    #[must_use]
    pub fn host(&self) -> &str {
        if let Some(name) = self.tls.as_ref().and_then(|tls| tls.hostname.as_ref()) {
            return name;
        }
        match &self.address {
            Address::Tcp(host_port) => host_port.rsplit_once(':').map_or(host_port.as_str(), |(host, _)| host),
            Address::Unix(_) => "localhost",
        }
    }
}

impl Address {
    /// Whether what goes there stays on this host: a unix socket, or a loopback address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let Address::Tcp(text) = self else { return true };
        let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost" || bare.parse::<::core::net::IpAddr>().is_ok_and(|address| address.is_loopback())
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
fn tcp_uri(rest: &str, secure: bool) -> Result<NbdUri, &'static str> {
    let Parts { authority, export, socket, tls } = Parts::of(rest, secure)?;
    if socket.is_some() {
        return Err("?socket= belongs to nbd+unix://");
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let host_port = match authority.strip_suffix(':') {
        // An empty port is the default one (RFC 3986, section 3.2.3).
        Some(host) => format!("{host}:{NBD_PORT}"),
        _ if has_port => authority.to_owned(),
        _ => format!("{authority}:{NBD_PORT}"),
    };
    check_host_port(&host_port)?;
    Ok(NbdUri { address: Address::Tcp(host_port), export, tls })
}

/// `/export?socket=/path`
fn unix_uri(rest: &str, secure: bool) -> Result<NbdUri, &'static str> {
    let Parts { authority, export, socket, tls } = Parts::of(rest, secure)?;
    if !authority.is_empty() {
        return Err("nbd+unix takes no host: nbd+unix:///export?socket=/path");
    }
    let socket = socket.ok_or("?socket=/path is missing")?;
    if socket.starts_with('\0') {
        return Err("a socket in the abstract namespace is not supported");
    }
    check_socket_path(&socket)?;
    Ok(NbdUri { address: Address::Unix(socket.into()), export, tls })
}

/// What stands behind the scheme of a URI, decoded.
struct Parts<'a> {
    authority: &'a str,
    /// The path without its first slash; any further one is part of the name.
    export: String,
    socket: Option<String>,
    tls: Option<UriTls>,
}

impl Parts<'_> {
    fn of(rest: &str, secure: bool) -> Result<Parts<'_>, &'static str> {
        if rest.contains('#') {
            return Err("a fragment (#…) means nothing in an NBD URI; in a name it is written %23");
        }
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let (authority, export) = path.split_once('/').unwrap_or((path, ""));
        if authority.contains('@') {
            return Err(
                "a user name before the host is for TLS with shared keys, which is not supported: use certificates",
            );
        }
        let export = percent_decode(export)?;
        if export.contains('\0') {
            return Err("the export name contains a zero byte");
        }
        let mut socket = None;
        let mut tls = UriTls::default();
        for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|parameter| !parameter.is_empty())
        {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match key {
                "socket" if socket.is_some() => return Err("there are two parameters socket="),
                "socket" => socket = Some(percent_decode(value)?),
                key if key.starts_with("tls-") && !secure => return Err("parameters of TLS belong to nbds://"),
                key if key.starts_with("tls-") => tls.take(key, percent_decode(value)?)?,
                _ => {
                    return Err(
                        "the query parameter is not known: there are socket=/path of nbd+unix://, and those of TLS",
                    );
                }
            }
        }
        Ok(Parts { authority, export, socket, tls: secure.then_some(tls) })
    }
}

impl UriTls {
    fn take(&mut self, key: &str, value: String) -> Result<(), &'static str> {
        match (key, value.as_str()) {
            ("tls-certificates" | "tls-hostname", "") => return Err("a parameter of TLS is empty"),
            ("tls-certificates", dir) if !dir.starts_with('/') => {
                return Err("tls-certificates is the whole path of a directory, from / on");
            }
            ("tls-certificates", dir) => self.certificates = Some(dir.into()),
            ("tls-hostname", name) => self.hostname = Some(name.to_owned()),
            ("tls-type", "x509") | ("tls-verify-peer", "true" | "1") => {}
            ("tls-type", _) | ("tls-psk-file" | "tls-username", _) => {
                return Err("TLS with shared keys is not supported: use certificates (tls-type=x509)");
            }
            ("tls-verify-peer", _) => {
                return Err("a server that is not verified can be anybody: tls-verify-peer stays true");
            }
            _ => return Err("the parameter of TLS is not known: there are tls-certificates and tls-hostname"),
        }
        Ok(())
    }
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
    fn what_stays_on_this_host_is_known_by_its_address() {
        for (text, local) in [
            ("unix:/x", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).is_local(), local, "{text}");
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
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<Address>().is_ok(), "as long as the kernel takes");
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
        for (text, shown) in [
            ("nbds://h:10809/e", "nbds://h/e"),
            ("nbds://h/e?tls-type=x509&tls-verify-peer=true", "nbds://h/e"),
            ("nbds://h/e?tls-hostname=a&tls-certificates=/a%20b", "nbds://h/e?tls-certificates=/a%20b&tls-hostname=a"),
            ("NBDS+UNIX:///e?socket=/s&tls-hostname=a", "nbds+unix:///e?socket=/s&tls-hostname=a"),
            ("nbd://example.com//disk", "nbd://example.com//disk"),
            ("NBD://h/e", "nbd://h/e"),
            ("nbd://h:/e", "nbd://h/e"),
            ("nbd://[2001:db8::7]/e", "nbd://[2001:db8::7]/e"),
            ("nbd://[2001:db8::7]:10810/", "nbd://[2001:db8::7]:10810/"),
            ("nbd+unix://?socket=/s", "nbd+unix:///?socket=/s"),
            ("nbd+unix:///a/b?socket=relative.sock", "nbd+unix:///a/b?socket=relative.sock"),
            ("nbd://h/%68%65%6c%6c%6f%20world%3F%23", "nbd://h/hello%20world%3F%23"),
        ] {
            assert_eq!(text.parse::<NbdUri>().expect(text).to_string(), shown);
        }
        assert_eq!("nbd://h:10809/e".parse::<NbdUri>().expect("port").to_string(), "nbd://h/e");
    }

    #[test]
    fn a_server_is_known_by_the_host_of_its_uri_unless_the_uri_says_otherwise() {
        for (text, host) in [
            ("nbds://store.example:10810/e", "store.example"),
            ("nbds://[::1]/e", "[::1]"),
            ("nbds://10.0.0.1/e?tls-hostname=store.example", "store.example"),
            ("nbds+unix:///e?socket=/run/s", "localhost"),
        ] {
            assert_eq!(text.parse::<NbdUri>().expect(text).host(), host);
        }
    }

    #[test]
    fn wrong_uris_say_what_is_wrong() {
        for (text, why) in [
            ("http://h/e", "nbd://"),
            ("h/e", "nbd://"),
            ("nbds://u@h/e", "shared keys"),
            ("nbds://h/e?tls-type=psk", "shared keys"),
            ("nbds://h/e?tls-psk-file=/x", "shared keys"),
            ("nbds://h/e?tls-verify-peer=false", "anybody"),
            ("nbds://h/e?tls-certificates=here", "whole path"),
            ("nbds://h/e?tls-hostname=", "empty"),
            ("nbds://h/e?tls-priority=x", "not known"),
            ("NBDS+UNIX:///e", "missing"),
            ("nbd+vsock://2/e", "vsock is not supported"),
            ("nbds+vsock://2/e", "vsock is not supported"),
            ("nbd+ssh://h/e", "SSH"),
            ("nbd://h/e?tls-type=x509", "belong to nbds://"),
            ("nbd://h/e?socket=/x", "nbd+unix"),
            ("nbd://h/e#f", "fragment"),
            ("nbd://h/a%00b", "zero byte"),
            ("nbd+unix:///e?socket=%00/abstract", "abstract"),
            ("nbd+unix:///e?socket=/a%00b", "zero byte"),
            ("nbd+unix:///e?socket=/x&socket=/y", "two"),
            ("nbd:///e", "host is missing"),
            ("nbd://h:x/e", "port"),
            ("nbd://u@h/e", "user"),
            ("nbd://h/e?x=1", "query parameter"),
            ("nbd://h/%4", "hex"),
            ("nbd://h/%+1", "hex"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd+unix://h/e?socket=/x", "no host"),
            ("nbd+unix:///e", "missing"),
            ("nbd+unix:///e?socket=", "missing"),
            ("nbd+unix:///e?path=/x", "socket=/path"),
            ("nbd+unix://host?socket=/x", "no host"),
        ] {
            let error = text.parse::<NbdUri>().expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_export_and_socket_round_trips(export in "[^\0]{0,30}", socket in "[^\0]{1,25}", port in 0u16..) {
            let unix = Address::Unix(socket.into());
            for address in [unix, Address::Tcp(format!("[::1]:{port}")), Address::Tcp(format!("host:{port}"))] {
                assert_eq!(address.to_string().parse::<Address>(), Ok(address.clone()));
                for tls in [None, Some(UriTls::default())] {
                    let uri = NbdUri { address: address.clone(), export: export.clone(), tls };
                    assert_eq!(uri.to_string().parse::<NbdUri>(), Ok(uri));
                }
            }
        }
    }
}
