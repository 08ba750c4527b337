//! The listener's certificate.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Error, Tls};
use crate::identity::certificate_end;

/// A certificate chain and its key, ready to serve. Two are equal if their files have the same content.
#[derive(Clone)]
pub struct Certificate {
    acceptor: TlsAcceptor,
    /// Of the chain's file, and of the key's.
    digests: [Vec<u8>; 2],
    /// The Unix second of its end.
    end: Option<u64>,
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.digests == other.digests
    }
}

impl Certificate {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// A file is not readable or has other content, or the key does not match the certificate.
    pub fn read(tls: &Tls) -> Result<Self, Error> {
        let [chain, key] = [&tls.cert, &tls.key].map(|path| fs::read(path).map_err(|e| wrong(path, e)));
        let (chain, key) = (chain?, key?);
        let digests = [&chain, &key].map(|content| digest(&SHA256, content).as_ref().to_vec());
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|e| wrong(&tls.cert, e))?;
        if chain.is_empty() {
            return Err(wrong(&tls.cert, "no PEM certificate found; expected the certificate chain"));
        }
        let end = chain.first().and_then(certificate_end);
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| wrong(&tls.key, e))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&tls.cert, e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| wrong(&tls.cert, e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), digests, end })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// The Unix second of its end; `None`: not known.
    pub(super) const fn end(&self) -> Option<u64> {
        self.end
    }

    /// Whether the content of the chain's file differs, and that of the key's.
    pub fn differs_from(&self, other: &Self) -> [bool; 2] {
        [0, 1].map(|file| self.digests[file] != other.digests[file])
    }
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
        let refused = || Certificate::read(&tls).err().unwrap().to_string();
        assert!(refused().contains("cert.pem"));
        std::fs::write(&tls.cert, "nothing").unwrap();
        assert!(refused().contains("key.pem"));
        std::fs::write(&tls.key, "nothing").unwrap();
        assert!(refused().contains("cert.pem: no PEM certificate found"), "{}", refused());
    }
}
