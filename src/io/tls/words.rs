//! What went wrong with TLS, in words for who has to mend it: what, where, what to do.

use std::path::{Path, PathBuf};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};

use super::{Paths, TlsError};

const NEW_ONES: &str = "make new ones (`farshore certs`) and copy them to their hosts";

/// Why the own certificate and key cannot be used together.
pub fn own(error: &Error, (cert, key): &(PathBuf, PathBuf)) -> TlsError {
    let (cert, key) = (cert.display(), key.display());
    TlsError(match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            format!("{key}: is not the key of the certificate in {cert}: copy both files of one role together")
        }
        Error::InvalidCertificate(_) => format!("{cert}: cannot be used: {error}"),
        _ => format!("{key}: cannot be used as the key of {cert}: {error}"),
    })
}

/// What is wrong with a certificate, after "it"; `None` when it is something else that went wrong.
pub fn certificate(error: &Error, ca: &Path) -> Option<String> {
    let Error::InvalidCertificate(error) = error else { return None };
    let ca = ca.display();
    Some(match error {
        CertificateError::Expired => format!("has expired: {NEW_ONES}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("expired at {}: {NEW_ONES}; or the clock of this host is wrong", time(not_after))
        }
        CertificateError::NotValidYet => "is not valid yet: look at the clocks of both hosts".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is not valid before {}: look at the clocks of both hosts", time(not_before))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "is not signed by the CA in {ca}: all hosts need the certificate of the CA that signed theirs, and one \
             CA for all"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "is valid for other names ({error}): connect by a name it has, or make one with this name (`farshore \
             certs --host`)"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("is not meant for this end of a connection ({error})")
        }
        other => format!("cannot be used: {other}"),
    })
}

/// Why a connection failed. `established`: after its handshake.
pub fn failure(error: &Error, said: Option<String>, paths: &Paths, established: bool) -> String {
    if let Some(said) = said {
        return format!("TLS: {said}");
    }
    if let Some(text) = certificate(error, &paths.ca) {
        return format!("TLS: the peer's certificate {text}");
    }
    let mine = paths.own.as_ref().map_or_else(|| "none is configured".into(), |(cert, _)| cert.display().to_string());
    match error {
        Error::NoCertificatesPresented => "TLS: the peer shows no certificate, and needs one here".into(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                format!("TLS: the peer says that this host's certificate ({mine}) has expired: {NEW_ONES}")
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                format!("TLS: the peer does not know the CA of this host's certificate ({mine}): it needs the same CA")
            }
            AlertDescription::AccessDenied => format!(
                "TLS: the peer refuses this host's certificate ({mine}): it is that of another role or group, its \
                 log says which"
            ),
            AlertDescription::CertificateRequired => {
                format!("TLS: the peer wants a certificate of this host ({mine})")
            }
            AlertDescription::CertificateUnknown | AlertDescription::BadCertificate => {
                format!("TLS: the peer does not accept this host's certificate ({mine}); its log says why")
            }
            other => format!("TLS: the peer gave up: {other:?}"),
        },
        Error::InvalidMessage(_) if !established => format!("TLS was expected, and what came is none ({error})"),
        Error::DecryptError => "TLS: a record was changed on its way, or is damaged".into(),
        other => format!("TLS: {other}"),
    }
}

fn time(at: &UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}
