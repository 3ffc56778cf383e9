//! Who is believed: certificates of the CA, with the right name.
//!
//! What a certificate is worth (signatures, dates, purposes) is decided by webpki; here is only added whose it is.

use std::sync::{Arc, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::{Clients, Said};
use crate::core::peer::PeerName;

/// The farshore names that a certificate carries.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<PeerName> {
    match webpki::EndEntityCert::try_from(certificate) {
        Ok(end) => end.valid_uri_names().filter_map(|name| name.parse().ok()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Names in words.
pub fn listed(names: &[PeerName]) -> String {
    if names.is_empty() {
        return "no farshore role".into();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Refuses a name: the peer hears `access_denied`, who refuses has the words.
fn refuse(said: &Said, text: String) -> Error {
    *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// Clients with a certificate of the CA and, as far as that is asked for, of a group or role.
#[derive(Debug)]
pub struct NamedClients {
    inner: Arc<dyn ClientCertVerifier>,
    clients: Clients,
    said: Said,
}

impl NamedClients {
    pub fn new(inner: Arc<dyn ClientCertVerifier>, clients: Clients, said: Said) -> NamedClients {
        NamedClients { inner, clients, said }
    }

    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), String> {
        let found = names(certificate);
        match &self.clients {
            Clients::Anybody => Ok(()),
            Clients::OfGroup(group) if found.is_empty() || found.iter().any(|name| name.group == *group) => Ok(()),
            Clients::OfGroup(group) => Err(format!(
                "the client's certificate is valid, and is that of {}: this is the group {group}",
                listed(&found)
            )),
            Clients::Named(wanted) if found.iter().any(|name| wanted.contains(name)) => Ok(()),
            Clients::Named(wanted) => Err(format!(
                "the peer's certificate is valid, and is that of {}: here only {} may connect",
                listed(&found),
                listed(wanted)
            )),
        }
    }
}

impl ClientCertVerifier for NamedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.judge(end_entity).map_err(|text| refuse(&self.said, text))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A server with a certificate of the CA that says which role it is; where it runs does not matter.
#[derive(Debug)]
pub struct NamedServer {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    wanted: PeerName,
    said: Said,
}

impl NamedServer {
    pub fn new(roots: Arc<RootCertStore>, wanted: PeerName, said: Said) -> NamedServer {
        NamedServer { roots, algorithms: super::provider().signature_verification_algorithms, wanted, said }
    }
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let found = names(end_entity);
        if found.contains(&self.wanted) {
            return Ok(ServerCertVerified::assertion());
        }
        let text = format!(
            "the peer's certificate is valid, and is that of {}: {} was to answer here; look at the address in the \
             configuration, and at the certificate on that host",
            listed(&found),
            self.wanted
        );
        Err(refuse(&self.said, text))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
