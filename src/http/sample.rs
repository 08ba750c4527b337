//! A certificate for tests.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::Tls;

/// A self-signed certificate for `localhost`, valid for a century.
pub(super) fn certificate() -> Tls {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/sample");
    Tls { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
}

/// A client that trusts only [`certificate`].
pub(super) fn tls_client() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate().cert).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
