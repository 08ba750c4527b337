//! The listener's certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Error, Tls};

/// Reads the certificate and its key.
///
/// # Errors
/// A file is not readable or has other content, or the key does not match the certificate.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Error> {
    let chain = CertificateDer::pem_file_iter(&tls.cert).map_err(|e| wrong(&tls.cert, e))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(&tls.cert, e))?;
    if chain.is_empty() {
        return Err(wrong(&tls.cert, "no PEM certificate found; expected the certificate chain"));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| wrong(&tls.key, e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&tls.cert, e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| wrong(&tls.cert, e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn wrong(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::Tls { path: path.to_owned(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let refused = || acceptor(&tls).err().unwrap().to_string();
        assert!(refused().contains("cert.pem"));
        std::fs::write(&tls.cert, "nothing").unwrap();
        assert!(refused().contains("cert.pem: no PEM certificate found"), "{}", refused());
    }
}
