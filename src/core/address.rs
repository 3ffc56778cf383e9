//! Where to listen and whom to call: addresses of sockets, and URIs of NBD exports.
//!
//! Owns parsing and printing; nothing here resolves or connects. What `Display` prints parses back to
//! the same value. URIs follow "The NBD Uniform Resource Indicator (URI) format" of the nbd project's doc/uri.md:
//! all of it but abstract sockets, vsock and SSH, which are recognised and refused in words.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::core::modes::NO_SHARED_KEYS;

/// Port of NBD when a URI names none (registered with IANA).
pub const NBD_PORT: u16 = 10809;

/// One end of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// Path of a Unix socket; a relative one is from the working directory on.
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

/// What a URI says of TLS: with certificates (X.509), or with a shared key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct UriTls {
    /// `tls-certificates`: a directory with ca-cert.pem and, if the server asks for them, client-cert.pem and -key.pem.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname`: the name in the server's certificate, when it is not the host of the URI.
    pub hostname: Option<String>,
    /// What is shown instead of certificates.
    pub key: Option<UriKey>,
}

/// A key that the server has as well (TLS-PSK).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UriKey {
    /// The name before the host.
    pub user: String,
    /// `tls-psk-file`: a file with a line `user:key in hexadecimal`.
    pub file: PathBuf,
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
        let key = self.tls.as_ref().and_then(|tls| tls.key.as_ref());
        let user = key.map_or_else(String::new, |key| format!("{}@", percent_encode(&key.user)));
        match &self.address {
            Address::Tcp(host_port) => {
                let shown = host_port.strip_suffix(&format!(":{NBD_PORT}")).unwrap_or(host_port);
                write!(f, "nbd{s}://{user}{shown}/{export}")?;
            }
            Address::Unix(path) => {
                write!(f, "nbd{s}+unix://{user}/{export}?socket={}", percent_encode(&path.to_string_lossy()))?;
                mark = '&';
            }
        }
        let tls = self.tls.as_ref();
        let directory = tls.and_then(|tls| tls.certificates.as_ref()).map(|dir| dir.to_string_lossy().into_owned());
        let hostname = tls.and_then(|tls| tls.hostname.clone());
        let file = key.map(|key| key.file.to_string_lossy().into_owned());
        for (key, value) in [("tls-certificates", directory), ("tls-hostname", hostname), ("tls-psk-file", file)] {
            if let Some(value) = value {
                write!(f, "{}{key}={}", std::mem::replace(&mut mark, '&'), percent_encode(&value))?;
            }
        }
        Ok(())
    }
}

impl NbdUri {
    /// Whether both name the same export, however they are written: hosts and ports in any spelling, and with or without
    /// TLS. Two names of one host or socket, and of one export, are beyond what a name can tell.
    #[must_use]
    pub fn is_same_export(&self, other: &NbdUri) -> bool {
        self.export == other.export && self.address.in_one_spelling() == other.address.in_one_spelling()
    }

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
    /// Names of hosts in lower case without a last dot, IP addresses and ports as numbers, paths without what means nothing.
    fn in_one_spelling(&self) -> Address {
        let host_port = match self {
            Address::Unix(path) => return Address::Unix(path.components().collect()),
            Address::Tcp(host_port) => host_port,
        };
        let Some((host, port)) = host_port.rsplit_once(':') else { return self.clone() };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let host = match bare.parse::<::core::net::IpAddr>() {
            Ok(address) => address.to_canonical().to_string(),
            Err(_) => bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase(),
        };
        let port = port.parse::<u16>().map_or_else(|_| port.to_owned(), |port| port.to_string());
        Address::Tcp(format!("[{host}]:{port}"))
    }

    /// Of a unix socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Unix(path) => Some(path),
            Address::Tcp(_) => None,
        }
    }

    /// Whether what goes there stays on this host: a unix socket, or a loopback address, also one of IPv4 as IPv6 writes it. Of
    /// names only `localhost` is sure to lead there (RFC 6761, section 6.3).
    #[must_use]
    pub fn is_local(&self) -> bool {
        let Address::Tcp(text) = self else { return true };
        let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare.eq_ignore_ascii_case("localhost")
            || bare.parse::<::core::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

/// Whether two listeners at these addresses would be in each other's way: the same port, of the same address or of all of them.
#[must_use]
pub fn is_one_port(one: &Address, other: &Address) -> bool {
    let (Address::Tcp(one), Address::Tcp(other)) = (one.in_one_spelling(), other.in_one_spelling()) else {
        return false;
    };
    let (Some((one, port)), Some((other, same))) = (one.rsplit_once(':'), other.rsplit_once(':')) else { return false };
    let number = |host: &str| host.trim_start_matches('[').trim_end_matches(']').parse::<::core::net::IpAddr>().ok();
    let all = match (number(one), number(other)) {
        (Some(one), Some(other)) => {
            one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified())
        }
        _ => false,
    };
    // 0 is a port that is free, whichever.
    port == same && port != "0" && (one == other || all)
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
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if has_port => (host, port),
        _ => (authority, ""),
    };
    // A name may be written with percent signs, an address in brackets not (RFC 3986, section 3.2.2).
    let host = if host.starts_with('[') { host.to_owned() } else { percent_decode(host)? };
    let host_port = match port {
        // An empty port is the default one (RFC 3986, section 3.2.3).
        "" => format!("{host}:{NBD_PORT}"),
        port => format!("{host}:{port}"),
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
        let (user, authority) = match authority.rsplit_once('@') {
            Some(_) if !secure => {
                return Err("a user name before the host is for TLS with a shared key: write nbds://");
            }
            Some((user, authority)) => (Some(percent_decode(user)?), authority),
            None => (None, authority),
        };
        let export = percent_decode(export)?;
        if export.len() > EXPORT_BYTES_MAX {
            return Err("the export name is longer than the 4096 bytes that NBD allows");
        }
        if export.contains('\0') {
            return Err("the export name contains a zero byte");
        }
        let mut socket = None;
        let (mut tls, mut kind) = (UriTls::default(), None);
        for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|parameter| !parameter.is_empty())
        {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match key {
                "socket" if socket.is_some() => return Err("there are two parameters socket="),
                "socket" => socket = Some(percent_decode(value)?),
                key if key.starts_with("tls-") && !secure => return Err("parameters of TLS belong to nbds://"),
                "tls-type" => kind = Some(percent_decode(value)?),
                key if key.starts_with("tls-") => tls.take(key, percent_decode(value)?)?,
                _ => {
                    return Err(
                        "the query parameter is not known: there are socket=/path of nbd+unix://, and those of TLS",
                    );
                }
            }
        }
        tls.agree(user, kind.as_deref())?;
        Ok(Parts { authority, export, socket, tls: secure.then_some(tls) })
    }
}

impl UriTls {
    fn take(&mut self, key: &str, value: String) -> Result<(), &'static str> {
        match (key, value.as_str()) {
            ("tls-certificates" | "tls-hostname" | "tls-psk-file", "") => return Err("a parameter of TLS is empty"),
            ("tls-certificates", _) if self.certificates.is_some() => return Err("tls-certificates is given twice"),
            ("tls-hostname", _) if self.hostname.is_some() => return Err("tls-hostname is given twice"),
            ("tls-psk-file", _) if self.key.is_some() => return Err("tls-psk-file is given twice"),
            ("tls-certificates", dir) if !dir.starts_with('/') => {
                return Err("tls-certificates is the whole path of a directory, from / on");
            }
            ("tls-certificates", dir) => self.certificates = Some(dir.into()),
            ("tls-hostname", name) => self.hostname = Some(name.to_owned()),
            ("tls-psk-file", file) if !file.starts_with('/') => {
                return Err("tls-psk-file is the whole path of a file, from / on");
            }
            ("tls-psk-file", file) => self.key = Some(UriKey { user: String::new(), file: file.into() }),
            ("tls-verify-peer", "true" | "1") => {}
            ("tls-verify-peer", _) => {
                return Err("a server that is not verified can be anybody: tls-verify-peer stays true");
            }
            _ => {
                return Err(
                    "the parameter of TLS is not known: there are tls-certificates, tls-hostname, tls-psk-file",
                );
            }
        }
        Ok(())
    }

    /// Puts the user's name to the key; certificates and keys exclude each other.
    fn agree(&mut self, user: Option<String>, kind: Option<&str>) -> Result<(), &'static str> {
        match (user, &mut self.key, kind) {
            (_, _, Some(kind)) if !["x509", "psk"].contains(&kind) => Err("tls-type is x509 or psk"),
            (None, None, None | Some("x509")) => Ok(()),
            (Some(_), Some(_), Some("x509")) => Err("tls-type=x509 shows certificates, and a shared key is named too"),
            (Some(user), Some(_), _) if user.is_empty() || user.contains('\0') => {
                Err("the user name before the host is empty, or contains a zero byte")
            }
            (Some(_), Some(_), _) if self.certificates.is_some() => Err(
                "a server is shown certificates or a shared key, not both: leave tls-certificates or tls-psk-file out",
            ),
            (Some(_), Some(_), _) if NO_SHARED_KEYS.is_some() => Err(NO_SHARED_KEYS.unwrap_or_default()),
            (Some(user), Some(key), _) => {
                key.user = user;
                Ok(())
            }
            _ => Err("a shared key is found by a user name before the host and tls-psk-file=FILE: name both"),
        }
    }
}

fn check_socket_path(path: &str) -> Result<(), &'static str> {
    match path {
        "" => Err("the path of the socket is missing"),
        path if path.contains('\0') => Err("the path of the socket contains a zero byte"),
        path if path.starts_with('@') => {
            Err("a socket in the abstract namespace is not supported; a file of such a name is written ./@name")
        }
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
    if host.starts_with('[') && bare.contains('%') {
        return Err("an IPv6 address with a zone (%eth0) is not supported: give the host an address that needs none");
    }
    if bare.is_empty() {
        return Err("the host is missing (0.0.0.0 or [::] listens on every address)");
    }
    if bare.contains(|c: char| c.is_whitespace() || c.is_control() || "/[]@?#%".contains(c)) {
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

/// Longest string of the NBD protocol, bytes.
const EXPORT_BYTES_MAX: usize = 4096;
/// `sun_path` has 108 bytes with its closing zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_server_could_take_is_refused_in_words() {
        let long = format!("nbd://h/{}", "a".repeat(EXPORT_BYTES_MAX + 1));
        assert!(long.parse::<NbdUri>().is_err_and(|error| error.why.contains("4096")));
        assert!(long[..long.len() - 1].parse::<NbdUri>().is_ok());
        for zone in ["nbd://[fe80::1%25lo]/x", "nbd://[fe80::1%25lo]:1/x"] {
            assert!(zone.parse::<NbdUri>().is_err_and(|error| error.why.contains("zone")), "{zone}");
        }
        assert!("[fe80::1%2]:10809".parse::<Address>().is_err_and(|error| error.why.contains("zone")));
    }

    #[test]
    fn a_host_may_be_written_with_percent_signs() {
        let plain: NbdUri = "nbd://store.example:7/x".parse().expect("plain");
        for text in ["nbd://store%2Eexample:7/x", "nbd://%73tore.%65xample:7/x"] {
            assert_eq!(text.parse::<NbdUri>().expect(text), plain);
        }
        assert_eq!(
            "nbd://store%2Eexample".parse::<NbdUri>().expect("without port").address.to_string(),
            "store.example:10809"
        );
        for text in ["nbd://a%3A1/x", "nbd://a%2Fb/x", "nbd://a%2/x", "nbd://a%00/x", "nbd://a%25b/x"] {
            assert!(text.parse::<NbdUri>().is_err(), "{text}");
        }
        assert!("a%2eb:1".parse::<Address>().is_err());
    }

    #[test]
    fn an_abstract_socket_is_not_taken_for_a_file() {
        for text in ["unix:@x", "unix:@"] {
            assert!(text.parse::<Address>().is_err_and(|error| error.why.contains("abstract")), "{text}");
        }
        assert!("nbd+unix:///?socket=@x".parse::<NbdUri>().is_err_and(|error| error.why.contains("abstract")));
        assert!("unix:./@x".parse::<Address>().is_ok());
    }

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
            ("[::ffff:127.0.0.1]:1", true),
            ("[::ffff:192.0.2.1]:1", false),
            ("localhost:1", true),
            ("LocalHost:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.0.2.1:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).is_local(), local, "{text}");
        }
    }

    #[test]
    fn listeners_are_in_each_others_way_on_one_port_of_one_address_or_of_all() {
        let one = |a: &str, b: &str| is_one_port(&a.parse().expect(a), &b.parse().expect(b));
        assert!(one("127.0.0.1:80", "127.0.0.1:080") && one("0.0.0.0:80", "127.0.0.1:80") && one("h:80", "H.:80"));
        assert!(!one("127.0.0.1:80", "127.0.0.1:81") && !one("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!one("0.0.0.0:80", "[::]:80"), "that is for the system to say");
        assert!(!one("127.0.0.1:0", "127.0.0.1:0") && !one("unix:/a", "unix:/a"));
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
    fn one_export_is_known_in_any_spelling() {
        for (one, other, same) in [
            ("nbd://h/e", "nbd://h:10809/e", true),
            ("nbd://h/e", "NBD://H.:010809/%65", true),
            ("nbd://h/e", "nbds://h/e?tls-hostname=x", true),
            ("nbd://[::1]/", "nbd://[0:0::0001]:10809", true),
            ("nbd://192.0.2.1/e", "nbd://[::ffff:192.0.2.1]/e", true),
            ("nbd+unix:///?socket=/run/x", "nbd+unix:///?socket=/run//./x", true),
            ("nbd+unix:///?socket=/run/x", "nbds+unix:///?socket=/run/x&tls-hostname=a", true),
            ("nbd+unix:///?socket=/run/x", "nbd+unix:///x?socket=/run/x", false),
            ("nbd+unix:///?socket=/run/x", "nbd+unix:///?socket=/run/y/../x", false),
            ("nbd://h/e", "nbd://h/E", false),
            ("nbd://h/e", "nbd://h:10810/e", false),
            ("nbd://localhost/e", "nbd://127.0.0.1/e", false),
        ] {
            let uri = |text: &str| text.parse::<NbdUri>().expect(text);
            assert_eq!(uri(one).is_same_export(&uri(other)), same, "{one} {other}");
            assert_eq!(uri(other).is_same_export(&uri(one)), same, "{other} {one}");
        }
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
            ("nbds://u@h/e", "shared key"),
            ("nbds://h/e?tls-type=psk", "shared key"),
            ("nbds://h/e?tls-psk-file=/x", "shared key"),
            ("nbds://u@h/e?tls-psk-file=x", "whole path"),
            ("nbds://u@h/e?tls-psk-file=/x&tls-type=x509", "is named too"),
            ("nbds://u@h/e?tls-psk-file=/x&tls-certificates=/y", "not both"),
            ("nbds://@h/e?tls-psk-file=/x", "empty"),
            ("nbds://h/e?tls-type=anon", "x509 or psk"),
            ("nbds://h/e?tls-verify-peer=false", "anybody"),
            ("nbds://h/e?tls-hostname=a&tls-hostname=b", "tls-hostname is given twice"),
            ("nbds://h/e?tls-certificates=/a&tls-certificates=/a", "tls-certificates is given twice"),
            ("nbds://u@h/e?tls-psk-file=/a&tls-psk-file=/b", "tls-psk-file is given twice"),
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
            ("nbd://u@h/e", "write nbds://"),
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

    #[test]
    fn a_user_name_and_a_file_are_a_shared_key_where_this_build_has_them() {
        for (text, shown, user) in [
            ("nbds://alice@h:10809/e?tls-psk-file=/k&tls-type=psk", "nbds://alice@h/e?tls-psk-file=/k", "alice"),
            ("nbds://a%40b@[::1]/e?tls-psk-file=/k", "nbds://a%40b@[::1]/e?tls-psk-file=/k", "a@b"),
            (
                "nbds+unix://alice@/e?socket=/s&tls-psk-file=/k",
                "nbds+unix://alice@/e?socket=/s&tls-psk-file=/k",
                "alice",
            ),
        ] {
            match (text.parse::<NbdUri>(), NO_SHARED_KEYS) {
                (Ok(uri), None) => {
                    assert_eq!(uri.to_string(), shown);
                    assert_eq!(shown.parse(), Ok(uri.clone()));
                    let key = UriKey { user: user.into(), file: "/k".into() };
                    assert_eq!(uri.tls.and_then(|tls| tls.key), Some(key));
                }
                (Err(error), Some(why)) => assert_eq!(error.why, why),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_export_and_socket_round_trips(export in "[^\0]{0,30}", socket in "[^\0@][^\0]{0,24}", port in 0u16..) {
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
