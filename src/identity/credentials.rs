//! The TLS configuration of this node as server and as client: TLS 1.3, where both sides must show a certificate
//! of the cluster's authority.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use super::authority::{Authority, FIRST_YEAR, LAST_YEAR, SERVER_NAME};
use super::noting::{Noted, noting};
use super::{KeyError, Token};
use crate::types::{Name, NodeId};

/// A node's side of every handshake. TLS sessions are never resumed: resumption would let a node back in after
/// its token was replaced.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub server: Arc<rustls::ServerConfig>,
    pub client: Arc<rustls::ClientConfig>,
    /// What `client` verifies with.
    verifier: Arc<WebPkiServerVerifier>,
    /// Identifies the key without revealing it.
    pub key_id: String,
}

impl Credentials {
    /// The server name of every node in handshakes.
    pub const SERVER_NAME: &str = SERVER_NAME;
    /// The years at whose beginnings the validity of every certificate begins and ends.
    pub const VALID_YEARS: (i32, i32) = (FIRST_YEAR, LAST_YEAR);

    /// `protocol`: the name of what is spoken over these connections, as ALPN has it. Takes some 50 ms: for a thread
    /// that may block.
    ///
    /// # Errors
    /// The system has no random numbers, or the TLS library refuses what it is given.
    pub fn new(token: &Token, cluster: &Name, node: &NodeId, protocol: &[u8]) -> Result<Self, KeyError> {
        Self::with_clock(token, cluster, node, protocol, Arc::new(DefaultTimeProvider))
    }

    /// The same, with the clock that certificates are verified by.
    ///
    /// # Errors
    /// The system has no random numbers, or the TLS library refuses what it is given.
    pub(crate) fn with_clock(
        token: &Token,
        cluster: &Name,
        node: &NodeId,
        protocol: &[u8],
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, KeyError> {
        let authority = Authority::derive(token, cluster)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone())?;
        let roots = Arc::new(roots);
        let (certificate, key) = authority.issue(node)?;

        let refused = |e: &dyn std::fmt::Display| KeyError(e.to_string());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let mut server = rustls::ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&clock))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients.build().map_err(|e| refused(&e))?)
            .with_single_cert(vec![certificate.clone()], key.clone_key())?;
        server.alpn_protocols = vec![protocol.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let verifier = servers.build().map_err(|e| refused(&e))?;
        let mut client = rustls::ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(Arc::clone(&verifier))
            .with_client_auth_cert(vec![certificate], key)?;
        client.alpn_protocols = vec![protocol.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client), verifier, key_id: authority.key_id })
    }

    /// The same, with a client that notes the key id of the other side.
    #[must_use]
    pub fn noting(&self) -> (Self, Arc<Noted>) {
        let (client, noted) = noting(&self.client, Arc::clone(&self.verifier));
        (Self { client: Arc::new(client), ..self.clone() }, noted)
    }
}
