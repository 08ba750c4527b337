//! A client's side of a handshake that notes which key the other side has, to say so where the keys differ.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::authority::key_id_of;

/// The key id that the other side's certificate names.
#[derive(Debug, Default)]
pub struct Noted(Mutex<Option<String>>);

impl Noted {
    /// `None`: there was no certificate, or it is of no cluster of ostler.
    pub fn key_id(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Verifies as `verifier` does.
#[derive(Debug)]
struct Noting {
    verifier: Arc<WebPkiServerVerifier>,
    noted: Arc<Noted>,
}

/// The configuration with a verifier that notes. It accepts nothing that `verifier` refuses.
pub(super) fn noting(config: &ClientConfig, verifier: Arc<WebPkiServerVerifier>) -> (ClientConfig, Arc<Noted>) {
    let noted = Arc::new(Noted::default());
    let mut config = config.clone();
    config.dangerous().set_certificate_verifier(Arc::new(Noting { verifier, noted: Arc::clone(&noted) }));
    (config, noted)
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.noted.0.lock().unwrap_or_else(PoisonError::into_inner) = key_id_of(certificate);
        self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
