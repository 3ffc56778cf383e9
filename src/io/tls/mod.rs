//! TLS of connections: who shows which certificate or shared key, whom it believes, and what is said when it does not.
//!
//! ```text
//!   Acceptor, Connector ──config()──► Tls (stream)   one connection: records in, plaintext out, and back
//!     │  files, reloaded when they change  ├─ certified  its records, by rustls
//!     │  keys: those shared with clients   ├─ psk        its records, by OpenSSL (feature psk)
//!     └─ verify  names of certificates     └─ words   what went wrong, and what to do
//! ```
//!
//! Owns certificates, keys and the decision about a peer's. Knows no socket (`io::secure` carries the bytes). Keys and
//! their passwords are in no text made here: errors name files and reasons only.
//!
//! Invariants: files are looked at before each handshake, and what cannot be used does not replace what could; nothing of
//! a session is kept for another one, so that each handshake judges the certificates of its own time.

mod certified;
mod files;
#[cfg(feature = "psk")]
mod keys;
#[cfg(feature = "psk")]
mod psk;
mod stream;
mod verify;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use self::certified::Certified;
use self::files::{Loaded, Stamp};
pub use self::stream::Tls;
use self::verify::{NamedClients, NamedServer};
pub use self::words::is_of_certificates;
use super::clock;
use crate::core::machine::Now;
#[cfg(not(feature = "psk"))]
use crate::core::modes::NO_SHARED_KEYS;
use crate::core::peer::PeerName;
pub use crate::core::peer::{End, Paths};

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Anybody: no certificate is asked for.
    Anybody,
    /// Who has a certificate of the CA; one that names a farshore group has to name this one.
    OfGroup(String),
    /// Who has a certificate of the CA with one of these names.
    Named(Vec<PeerName>),
}

/// Whom to believe at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A role of a group, wherever it runs.
    Named(PeerName),
    /// A host, by name or address, as URIs have it.
    Host(String),
}

/// Which versions of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Both ends are ours.
    Newest,
    /// What clients of NBD may still have (1.2; the NBD specification asks for no less).
    Wide,
}

/// What keeps certificates from being used; says which file, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

/// How long the own certificate is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validity {
    pub cert: PathBuf,
    /// The last second in which its whole chain is valid, since the Unix epoch.
    pub not_after_s: u64,
    /// Why files that are there by now do not replace it, and since when, nanoseconds since the Unix epoch.
    pub refused: Option<(String, u64)>,
}

impl From<Validity> for (String, u64, Option<(String, u64)>) {
    fn from(validity: Validity) -> Self {
        (validity.cert.display().to_string(), validity.not_after_s, validity.refused)
    }
}

/// The side that is connected to. Clones share what they have loaded.
#[derive(Clone, Debug)]
pub struct Acceptor(By);

/// What the two ends know each other by.
#[derive(Clone, Debug)]
enum By {
    Certificates(Certificates),
    #[cfg(feature = "psk")]
    Keys(psk::Keyed),
}

#[derive(Clone, Debug)]
struct Certificates {
    paths: Paths,
    clients: Clients,
    versions: Versions,
    said: Said,
    kept: Arc<Mutex<Kept<ServerConfig>>>,
}

/// The side that connects. Clones share what they have loaded.
#[derive(Clone, Debug)]
pub struct Connector(With);

/// What the two ends know each other by, where we connect.
#[derive(Clone, Debug)]
enum With {
    Certificates(OfServer),
    #[cfg(feature = "psk")]
    Key(psk::Keyed),
}

#[derive(Clone, Debug)]
struct OfServer {
    paths: Paths,
    server: Server,
    versions: Versions,
    said: Said,
    kept: Arc<Mutex<Kept<ClientConfig>>>,
}

/// What a verifier has against a name: TLS itself has no words for it.
type Said = Arc<Mutex<Option<String>>>;

/// What the files held when they were last good.
#[derive(Debug)]
struct Kept<C> {
    /// Of the files as they were last looked at, usable or not.
    stamp: Stamp,
    config: Arc<C>,
    validity: Option<Validity>,
    /// Other hosts believed the certificate when it was read.
    sound: bool,
    /// When files that could not be used are looked at again although they have not changed, monotonic nanoseconds: a
    /// certificate may only have to become valid.
    again_ns: Option<u64>,
}

impl<C> Kept<C> {
    fn new(
        stamp: Stamp,
        loaded: Loaded,
        paths: &Paths,
        end: Option<End>,
        build: impl FnOnce(Loaded) -> Result<C, TlsError>,
    ) -> Result<Kept<C>, TlsError> {
        let (validity, sound) = (loaded.validity(), loaded.check_chain(paths, end).is_ok());
        Ok(Kept { stamp, config: Arc::new(build(loaded)?), validity, sound, again_ns: None })
    }

    /// Whether what is kept is good today.
    fn is_good(&self, now: Now) -> bool {
        let until_s = self.validity.as_ref().map_or(u64::MAX, |validity| validity.not_after_s);
        self.sound && now.wall_ns / 1_000_000_000 <= until_s
    }
}

impl Acceptor {
    /// Loads the certificates. `own`: the name that this host's certificate has to carry.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn new(
        paths: &Paths,
        own: Option<&PeerName>,
        clients: Clients,
        versions: Versions,
    ) -> Result<Acceptor, TlsError> {
        let said = Said::default();
        let (stamp, loaded) = files::load(paths)?;
        loaded.check_name(own, paths)?;
        loaded.warn(paths, SERVER);
        let kept = Kept::new(stamp, loaded, paths, SERVER, |loaded| server_config(loaded, &clients, versions, &said))?;
        let kept = Arc::new(Mutex::new(kept));
        Ok(Acceptor(By::Certificates(Certificates { paths: paths.clone(), clients, versions, said, kept })))
    }

    /// For clients that have a key of this file in common with us, and for no others.
    ///
    /// # Errors
    /// Why the file cannot be used; or that this build knows no shared keys.
    #[cfg(feature = "psk")]
    pub fn with_keys(file: &Path) -> Result<Acceptor, TlsError> {
        psk::Keyed::new(file, None).map(By::Keys).map(Acceptor)
    }

    /// # Errors
    /// That this build knows no shared keys.
    #[cfg(not(feature = "psk"))]
    pub fn with_keys(file: &Path) -> Result<Acceptor, TlsError> {
        Err(files::wrong(file, NO_SHARED_KEYS.unwrap_or_default()))
    }

    /// A connection that was accepted, at the beginning of its handshake.
    ///
    /// # Errors
    /// When the files changed to something that leaves no choice.
    pub fn begin(&self) -> Result<Tls, TlsError> {
        match &self.0 {
            By::Certificates(own) => {
                Certified::server(own.current().0, own.said.clone(), own.paths.clone()).map(Tls::new)
            }
            #[cfg(feature = "psk")]
            By::Keys(keyed) => keyed.begin(),
        }
    }

    /// How long the certificate is good that the next connection gets, if it gets one.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        match &self.0 {
            By::Certificates(own) => own.current().1,
            #[cfg(feature = "psk")]
            By::Keys(_) => None,
        }
    }
}

impl Certificates {
    fn current(&self) -> (Arc<ServerConfig>, Option<Validity>) {
        current(&self.kept, &self.paths, SERVER, |loaded| {
            server_config(loaded, &self.clients, self.versions, &self.said)
        })
    }
}

impl Connector {
    /// As [`Acceptor::new`].
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn new(
        paths: &Paths,
        own: Option<&PeerName>,
        server: Server,
        versions: Versions,
    ) -> Result<Connector, TlsError> {
        let said = Said::default();
        let (stamp, loaded) = files::load(paths)?;
        loaded.check_name(own, paths)?;
        loaded.warn(paths, server.asks());
        server_name(&server)?;
        let build = |loaded| client_config(loaded, &server, versions, &said);
        let kept = Kept::new(stamp, loaded, paths, server.asks(), build)?;
        let kept = Arc::new(Mutex::new(kept));
        Ok(Connector(With::Certificates(OfServer { paths: paths.clone(), server, versions, said, kept })))
    }

    /// Shows a server the key of this file that has this name, and believes who has it too.
    ///
    /// # Errors
    /// Why the file cannot be used; or that this build knows no shared keys.
    #[cfg(feature = "psk")]
    pub fn with_key(file: &Path, name: &str) -> Result<Connector, TlsError> {
        psk::Keyed::new(file, Some(name)).map(With::Key).map(Connector)
    }

    /// # Errors
    /// That this build knows no shared keys.
    #[cfg(not(feature = "psk"))]
    pub fn with_key(file: &Path, _: &str) -> Result<Connector, TlsError> {
        Err(files::wrong(file, NO_SHARED_KEYS.unwrap_or_default()))
    }

    /// A connection that is up, at the beginning of its handshake.
    ///
    /// # Errors
    /// When the name of the server is none.
    pub fn begin(&self) -> Result<Tls, TlsError> {
        match &self.0 {
            With::Certificates(of) => {
                let name = server_name(&of.server)?;
                Certified::client(of.current().0, name, of.said.clone(), of.paths.clone()).map(Tls::new)
            }
            #[cfg(feature = "psk")]
            With::Key(keyed) => keyed.begin(),
        }
    }

    /// As [`Acceptor::validity`].
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        match &self.0 {
            With::Certificates(of) => of.current().1,
            #[cfg(feature = "psk")]
            With::Key(_) => None,
        }
    }
}

impl OfServer {
    fn current(&self) -> (Arc<ClientConfig>, Option<Validity>) {
        let build = |loaded| client_config(loaded, &self.server, self.versions, &self.said);
        current(&self.kept, &self.paths, self.server.asks(), build)
    }
}

impl Server {
    /// As what the own certificate is asked for there: a role asks that of a client, a server of others maybe nothing.
    fn asks(&self) -> Option<End> {
        matches!(self, Server::Named(_)).then_some(End::Client)
    }
}

/// As what an [`Acceptor`] shows its own certificate.
const SERVER: Option<End> = Some(End::Server);

/// Whether certificates can be used, by this host and by those it meets at these ends of connections, today.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn check(paths: &Paths, own: Option<&PeerName>, ends: &[End]) -> Result<(), TlsError> {
    let (_, loaded) = files::load(paths)?;
    loaded.check_name(own, paths)?;
    ends.iter().try_for_each(|end| loaded.check_chain(paths, Some(*end)))?;
    server_config(loaded, &Clients::Anybody, Versions::Newest, &Said::default()).map(drop)
}

/// Whether shared keys can be used; how many names there are.
///
/// # Errors
/// Why not.
#[cfg(feature = "psk")]
pub fn check_keys(file: &Path) -> Result<usize, TlsError> {
    keys::Keys::load(file).map(|keys| keys.len())
}

/// # Errors
/// That this build knows no shared keys.
#[cfg(not(feature = "psk"))]
pub fn check_keys(file: &Path) -> Result<usize, TlsError> {
    Acceptor::with_keys(file).map(|_| 0)
}

/// How long files that cannot be used are left alone, nanoseconds.
const AGAIN_NS: u64 = 10_000_000_000;

/// The configuration of the files as they are now, or as they were when they could last be used; and how long they are
/// good.
fn current<C>(
    kept: &Mutex<Kept<C>>,
    paths: &Paths,
    end: Option<End>,
    build: impl FnOnce(Loaded) -> Result<C, TlsError>,
) -> (Arc<C>, Option<Validity>) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let (stamp, now) = (Stamp::of(paths), clock::now());
    if stamp != kept.stamp || kept.again_ns.is_some_and(|at| at <= now.mono_ns) {
        kept.stamp = stamp;
        kept.again_ns = None;
        let built = files::load(paths).and_then(|(stamp, loaded)| {
            // What others would refuse, one that is not valid yet, too, is no reason to give up what they believe.
            if kept.is_good(now) {
                loaded.check_chain(paths, end)?;
            }
            loaded.warn(paths, end);
            Kept::new(stamp, loaded, paths, end, build)
        });
        match built {
            Ok(built) => {
                *kept = built;
                tracing::info!("TLS certificates were read anew from {}", paths.ca.display());
            }
            Err(error) => {
                let text = format!("TLS certificates have changed and cannot be used, the old ones stay: {error}");
                kept.again_ns = Some(now.mono_ns + AGAIN_NS);
                if let Some(validity) = &mut kept.validity {
                    let told = validity.refused.as_ref().is_some_and(|(before, _)| *before == text);
                    if !told {
                        tracing::error!("{text}");
                        validity.refused = Some((text, now.wall_ns));
                    }
                } else {
                    tracing::error!("{text}");
                }
            }
        }
    }
    (kept.config.clone(), kept.validity.clone())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

const BUG: &str = "the provider has the versions that it is asked for";

fn server_config(loaded: Loaded, clients: &Clients, versions: Versions, said: &Said) -> Result<ServerConfig, TlsError> {
    let wrong = |error: &dyn std::fmt::Display| TlsError(format!("{}: {error}", loaded.ca.display()));
    let builder = ServerConfig::builder_with_provider(provider());
    let builder =
        builder.with_protocol_versions(versions.list()).map_err(|error| TlsError(format!("{BUG}: {error}")))?;
    let builder = match clients {
        Clients::Anybody => builder.with_no_client_auth(),
        named => {
            let inner = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider());
            let inner = inner.build().map_err(|error| wrong(&error))?;
            builder.with_client_cert_verifier(Arc::new(NamedClients::new(inner, named.clone(), said.clone())))
        }
    };
    let (chain, key, files) = loaded.own.ok_or_else(|| TlsError("a server needs a certificate and its key".into()))?;
    let mut config = builder.with_single_cert(chain, key).map_err(|error| words::own(&error, &files))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(loaded: Loaded, server: &Server, versions: Versions, said: &Said) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder =
        builder.with_protocol_versions(versions.list()).map_err(|error| TlsError(format!("{BUG}: {error}")))?;
    let builder = match server {
        Server::Host(_) => builder.with_root_certificates(loaded.roots),
        Server::Named(name) => {
            let verifier = NamedServer::new(loaded.roots, name.clone(), said.clone());
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = match loaded.own {
        Some((chain, key, files)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| words::own(&error, &files))?
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    // A role is known by its URI, which is not for the eyes of the network.
    config.enable_sni = matches!(server, Server::Host(_));
    Ok(config)
}

/// The name in the form TLS wants; that of a role is looked at by our own verifier and goes nowhere.
fn server_name(server: &Server) -> Result<ServerName<'static>, TlsError> {
    let text = match server {
        Server::Named(_) => "farshore",
        Server::Host(host) => host.trim_start_matches('[').trim_end_matches(']'),
    };
    ServerName::try_from(text.to_owned())
        .map_err(|_| TlsError(format!("{text:?} is no name of a host that a certificate could have")))
}

impl Versions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static NEWEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        static WIDE: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Versions::Newest => &NEWEST,
            Versions::Wide => &WIDE,
        }
    }
}

#[cfg(all(test, feature = "psk"))]
mod psk_tests;
#[cfg(test)]
mod tests;
