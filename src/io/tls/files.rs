//! Certificates and keys as files: read, matched, and told apart when they change.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore};

use super::{End, Paths, TlsError, Validity, verify, words};
use crate::core::peer::PeerName;
use crate::io::open::{denied, to_read};

/// Longest file that is read, bytes: a chain of a dozen certificates is far below.
pub const FILE_BYTES_MAX: u64 = 256 << 10;
/// Most certificates of a chain whose dates are looked at.
const CHAIN_MAX: usize = 8;
/// Later than any date that a certificate can carry (31 December 9999; RFC 5280, 4.1.2.5), seconds since the Unix epoch.
const FAR_SECONDS: u64 = 300_000_000_000;

/// What files were when they were looked at: a change of any of them changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamp {
    pub fn of(paths: &Paths) -> Stamp {
        let own = paths.own.iter().flat_map(|(cert, key)| [cert, key]);
        Stamp(std::iter::once(&paths.ca).chain(own).map(|path| look(path)).collect())
    }

    #[cfg(feature = "psk")]
    pub fn of_file(path: &Path) -> Stamp {
        Stamp(vec![look(path)])
    }
}

/// The time is that of any change, also of owner and permissions: what could not be read may become readable.
fn look(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = std::fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.ctime(), data.ctime_nsec()))
}

/// What the files hold.
pub struct Loaded {
    pub ca: PathBuf,
    pub roots: Arc<RootCertStore>,
    /// The chain, the key, and what the two files are called.
    pub own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, (PathBuf, PathBuf))>,
}

/// Reads everything. The stamp is older than what was read, never newer: a change in between is seen the next time.
pub fn load(paths: &Paths) -> Result<(Stamp, Loaded), TlsError> {
    let stamp = Stamp::of(paths);
    let mut roots = RootCertStore::empty();
    for root in certificates(&paths.ca)? {
        roots.add(root).map_err(|error| wrong(&paths.ca, &format!("holds what is no certificate of a CA: {error}")))?;
    }
    let own = match &paths.own {
        Some((cert, key)) => Some((certificates(cert)?, private_key(key)?, (cert.clone(), key.clone()))),
        None => None,
    };
    Ok((stamp, Loaded { ca: paths.ca.clone(), roots: Arc::new(roots), own }))
}

impl Loaded {
    /// Whether the own certificate carries the name that this host is known by.
    pub fn check_name(&self, wanted: Option<&PeerName>, paths: &Paths) -> Result<(), TlsError> {
        let (Some(wanted), Some((chain, _, (cert, _)))) = (wanted, &self.own) else { return Ok(()) };
        let names = verify::names(&chain[0]);
        if names.contains(wanted) {
            return Ok(());
        }
        let text = format!(
            "is a certificate of {}, and this host has to be {wanted}: copy that of its own role here (`farshore certs` \
             makes one for each role, signed by the CA in {})",
            verify::listed(&names),
            paths.ca.display()
        );
        Err(wrong(cert, &text))
    }

    /// Says what others will have against the own certificate. No reason not to start: volumes are served without links.
    /// `end`: as what it is shown, if that is known.
    pub fn warn(&self, paths: &Paths, end: Option<End>) {
        if let Some((_, _, (_, key))) = &self.own
            && std::fs::metadata(key).is_ok_and(|data| data.permissions().mode() & 0o077 != 0)
        {
            tracing::warn!("{}: this private key can be read by others: chmod 600", key.display());
        }
        if let Err(error) = self.check_chain(paths, end) {
            tracing::error!("the other hosts will refuse the certificate of this one: {error}");
        }
    }

    /// Whether the own certificate is one of the CA, today, and meant for that end of a connection; without one, for any.
    pub fn check_chain(&self, paths: &Paths, end: Option<End>) -> Result<(), TlsError> {
        let Some((_, _, (cert, _))) = &self.own else { return Ok(()) };
        self.verify(UnixTime::now(), end).map_err(|error| {
            let text = words::certificate(&error, &paths.ca, end).unwrap_or_else(|| error.to_string());
            wrong(cert, &format!("this certificate {text}"))
        })
    }

    /// The file of the own certificate, and the last second in which its whole chain is valid.
    pub fn validity(&self) -> Option<Validity> {
        let (_, _, (cert, _)) = self.own.as_ref()?;
        // Nobody tells the dates of a certificate but who refuses it for them; each round names one of the chain.
        let mut until = UnixTime::since_unix_epoch(Duration::from_secs(FAR_SECONDS));
        for _ in 0..CHAIN_MAX {
            match self.verify(until, None) {
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }))
                    if not_after < until =>
                {
                    until = not_after;
                }
                _ => break,
            }
        }
        (until.as_secs() < FAR_SECONDS).then(|| Validity {
            cert: cert.clone(),
            not_after_s: until.as_secs(),
            refused: None,
        })
    }

    fn verify(&self, at: UnixTime, end: Option<End>) -> Result<(), Error> {
        let Some((chain, ..)) = &self.own else { return Ok(()) };
        match end {
            Some(End::Server) => {
                let algorithms = super::provider().signature_verification_algorithms.all;
                let own = ParsedCertificate::try_from(&chain[0])?;
                let (roots, between) = (&self.roots, &chain[1..]);
                rustls::client::verify_server_cert_signed_by_trust_anchor(&own, roots, between, at, algorithms)
            }
            Some(End::Client) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), super::provider());
                let verifier = verifier.build().map_err(|error| Error::General(error.to_string()))?;
                verifier.verify_client_cert(&chain[0], &chain[1..], at).map(drop)
            }
            None => match self.verify(at, Some(End::Client)) {
                Err(error) if words::is_of_purpose(&error) => self.verify(at, Some(End::Server)),
                done => done,
            },
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path, "certificate")?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(path, "holds no certificate (-----BEGIN CERTIFICATE-----)")),
        Ok(found) => Ok(found),
        Err(_) => Err(wrong(path, "is damaged: its PEM text cannot be read")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let mut bytes = read(path, "private key")?;
    let text = "holds no private key that can be used: PEM, without a password (-----BEGIN PRIVATE KEY-----)";
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| wrong(path, text));
    bytes.fill(0);
    key
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = to_read(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => Err(wrong(path, &format!("is too long for a {what}"))),
        Ok(_) => Ok(bytes),
        Err(error) => {
            let advice = match error.kind() {
                std::io::ErrorKind::PermissionDenied => format!("; {}", denied()),
                std::io::ErrorKind::NotFound => "; `farshore certs` makes one".to_owned(),
                _ => String::new(),
            };
            Err(wrong(path, &format!("the {what} cannot be read: {error}{advice}")))
        }
    }
}

pub fn wrong(path: &Path, text: &str) -> TlsError {
    TlsError(format!("{}: {text}", path.display()))
}
