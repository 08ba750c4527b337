//! One connection to a node: a unix socket, TCP or TLS.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::connection::{Target, Url};
use super::failure::Failure;

/// Timeout of connecting and of the TLS handshake, each. A slower node is of no use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that carries HTTP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects.
///
/// # Errors
/// [`Failure::Unreachable`], which says what to check. Nothing has been sent.
pub(super) async fn dial(target: &Target, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Stream>, Failure> {
    match target {
        Target::Socket(path) => dial_socket(path).await,
        Target::Url(url) => dial_url(url, tls).await,
    }
}

/// A TLS configuration that trusts the certificates of a PEM text, and no others.
pub(super) fn trust(pem: &str) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| Failure::Failed(format!("the CA is not PEM: {e}")))?;
        roots.add(certificate).map_err(|e| Failure::Failed(format!("the CA cannot be used: {e}")))?;
    }
    if roots.is_empty() {
        return Err(Failure::Failed("the CA file holds no certificate".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Failed(format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn dial_socket(path: &Path) -> Result<Box<dyn Stream>, Failure> {
    let stream = in_time(UnixStream::connect(path)).await.map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is the agent running? To contact another node, use --node URL or run: ostler login URL"
            }
            io::ErrorKind::PermissionDenied => "only root and members of group `ostler` may use it",
            _ => "check the agent's log",
        };
        Failure::Unreachable(format!("no agent answers at {}: {e}; {hint}", path.display()))
    })?;
    Ok(Box::new(stream))
}

async fn dial_url(url: &Url, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Stream>, Failure> {
    let unreachable = |e: io::Error| Failure::Unreachable(format!("{url} cannot be reached: {e}"));
    if !url.tls {
        return Ok(Box::new(in_time(TcpStream::connect((url.host.as_str(), url.port))).await.map_err(unreachable)?));
    }
    let Some(config) = tls else {
        let what = "https needs --ca FILE (or OSTLER_CA) with the CA that signed the node's certificate";
        return Err(Failure::Usage(what.to_owned()));
    };
    let name = ServerName::try_from(url.host.clone())
        .map_err(|_| Failure::Usage(format!("`{}` is not a valid host name for a certificate", url.host)))?;
    let tcp = in_time(TcpStream::connect((url.host.as_str(), url.port))).await.map_err(unreachable)?;
    let stream = in_time(TlsConnector::from(config.clone()).connect(name, tcp)).await.map_err(|e| {
        Failure::Unreachable(format!("TLS handshake with {url} failed: {e}; did the given CA sign its certificate?"))
    })?;
    Ok(Box::new(stream))
}

async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()));
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_agent_is_unreachable_and_says_what_to_do() {
        let target = Target::Socket("/nonexistent/ostler.sock".into());
        let Err(Failure::Unreachable(message)) = dial(&target, None).await else {
            panic!("something answered");
        };
        assert!(message.contains("is the agent running?"), "{message}");
    }

    #[tokio::test]
    async fn https_without_a_ca_says_what_to_pass() {
        let target = Target::Url(Url::parse("https://localhost:1").unwrap());
        let Err(Failure::Usage(message)) = dial(&target, None).await else {
            panic!("no CA was asked for");
        };
        assert!(message.contains("--ca FILE"), "{message}");
    }

    #[test]
    fn a_file_without_certificates_is_no_ca() {
        assert!(trust("").is_err());
        assert!(trust("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
