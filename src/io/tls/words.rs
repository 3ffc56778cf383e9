//! What went wrong with TLS, in words for who has to mend it: what, where, what to do.

use std::path::{Path, PathBuf};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};

use super::{End, Paths, TlsError};

const NEW_ONES: &str = "make new ones (`farshore certs`) and copy them to their hosts";
/// How reasons begin that the other end is the cause of, and one of them that says nothing of certificates.
const OF_PEER: &str = "TLS: the peer";
const GAVE_UP: &str = "TLS: the peer gave up";
const NOT_OUR_KEY: &str = "TLS: the server does not take the key of";

/// Whether a connection failed for a certificate, of either end, or for a shared key: nothing but another one mends that.
pub fn is_of_certificates(reason: &str) -> bool {
    reason.starts_with(NOT_OUR_KEY) || reason.starts_with(OF_PEER) && !reason.starts_with(GAVE_UP)
}

/// Whether a certificate is not meant for an end of a connection.
pub fn is_of_purpose(error: &Error) -> bool {
    let Error::InvalidCertificate(error) = error else { return false };
    matches!(error, CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. })
}

/// That a certificate is not meant for that end, and what to do.
fn purpose(end: Option<End>) -> String {
    let (what, usage) = match end {
        Some(End::Client) => ("a client's, who connects", "clientAuth"),
        Some(End::Server) => ("a server's, who is connected to", "serverAuth"),
        None => ("one of a host", "clientAuth or serverAuth"),
    };
    format!(
        "is not meant to be {what}: its extended key usage lacks {usage}; make one that has it (those of `farshore certs` are \
         good for both ends) and copy it to its host"
    )
}

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

/// What is wrong with a certificate, after "it"; `None` when it is something else that went wrong. `end`: whose it is.
pub fn certificate(error: &Error, ca: &Path, end: Option<End>) -> Option<String> {
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
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => purpose(end),
        other => format!("cannot be used: {other}"),
    })
}

/// Why a connection failed. `established`: after its handshake; `end`: which one is ours.
pub fn failure(error: &Error, said: Option<String>, paths: &Paths, established: bool, end: End) -> String {
    let theirs = match end {
        End::Client => End::Server,
        End::Server => End::Client,
    };
    if let Some(said) = said {
        return format!("TLS: {said}");
    }
    if let Some(text) = certificate(error, &paths.ca, Some(theirs)) {
        return format!("TLS: the peer's certificate {text}");
    }
    let mine = paths.own.as_ref().map_or_else(|| "none is configured".into(), |(cert, _)| cert.display().to_string());
    match error {
        Error::NoCertificatesPresented => "TLS: the peer shows no certificate, and needs one here".into(),
        Error::AlertReceived(alert) => match alert {
            // RFC 8446, section 6.2: of one that has expired, or is not valid at the peer's time.
            AlertDescription::CertificateExpired => format!(
                "TLS: the peer says that this host's certificate ({mine}) has expired, or is not valid yet: {NEW_ONES}; or look \
                 at the clocks of both hosts"
            ),
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
            AlertDescription::UnsupportedCertificate => {
                format!("TLS: the peer says that this host's certificate ({mine}) {}", purpose(Some(end)))
            }
            AlertDescription::CertificateUnknown | AlertDescription::BadCertificate => {
                format!("TLS: the peer does not accept this host's certificate ({mine}); its log says why")
            }
            other => format!("{GAVE_UP}: {other:?}"),
        },
        Error::InvalidMessage(_) if !established => format!("TLS was expected, and what came is none ({error})"),
        Error::DecryptError => "TLS: a record was changed on its way, or is damaged".into(),
        other => format!("TLS: {other}"),
    }
}

/// How a connection with a shared key failed, as OpenSSL tells it.
#[cfg(feature = "psk")]
pub struct SharedKey<'a> {
    /// Number of the reason (openssl/sslerr.h), and its text.
    pub code: i32,
    pub reason: &'a str,
    /// After the handshake.
    pub established: bool,
    /// What we say that we are, where we are the client.
    pub own: Option<String>,
    /// What the client says that it is, and whether there is such a name.
    pub name: Option<(String, bool)>,
    pub path: &'a Path,
}

/// Why a connection with a shared key failed: for the log of this host only, for it tells names from keys.
#[cfg(feature = "psk")]
pub fn shared_key(failed: &SharedKey<'_>) -> String {
    /// From here on: alerts of the peer (`SSL_AD_REASON_OFFSET`).
    const ALERTS: i32 = 1000;
    const BAD_RECORD: i32 = 281;
    /// `BINDER_DOES_NOT_VERIFY`, `DIGEST_CHECK_FAILED`.
    const NOT_THE_KEY: [i32; 2] = [253, 149];
    /// `NO_SHARED_CIPHER`, `NO_SUITABLE_SIGNATURE_ALGORITHM`, `NO_SUITABLE_KEY_SHARE`, `UNSUPPORTED_PROTOCOL`.
    const NOTHING_IN_COMMON: [i32; 4] = [193, 118, 101, 258];
    let (code, reason, path) = (failed.code, failed.reason, failed.path.display());
    if let Some(own) = failed.own.as_ref().filter(|_| !failed.established) {
        return format!(
            "{NOT_OUR_KEY} {own} in {path} ({reason}): it needs the same line in its own file of \
             shared keys, and TLS 1.3, or 1.2 with ECDHE-PSK or DHE-PSK and an AEAD cipher"
        );
    }
    match &failed.name {
        _ if code >= ALERTS => format!("{GAVE_UP}: {reason}"),
        _ if failed.established && code == BAD_RECORD => {
            "TLS: a record was changed on its way, or is damaged".to_owned()
        }
        Some((name, false)) if !failed.established => {
            format!("TLS: the client calls itself {name}, which has no key in {path}: add it there, it is read anew")
        }
        Some((name, true)) if !failed.established && (code == BAD_RECORD || NOT_THE_KEY.contains(&code)) => {
            format!("TLS: the client calls itself {name}, and its key is not the one in {path}")
        }
        None if NOTHING_IN_COMMON.contains(&code) => format!(
            "TLS: the client shows no shared key ({reason}): here it needs one of {path}, and TLS 1.3, or 1.2 with \
             ECDHE-PSK or DHE-PSK and an AEAD cipher"
        ),
        None if !failed.established => format!("TLS was expected, and what came is none ({reason})"),
        _ => format!("TLS: {reason}"),
    }
}

fn time(at: &UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}
