//! The endpoint: bound once, for both roles, client and server.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TransportConfig, VarInt};
use quinn_proto::RandomConnectionIdGenerator;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, watch};

use super::metrics::Metrics;
use super::pool::Pool;
use super::twin::Twin;
use super::{Cause, Hello, Serve, server};
use crate::clock::Clock;
use crate::gossip::Directory;
use crate::identity::Credentials;

/// Streams that a peer may have open at once: its calls in progress, some of which wait long.
const MAX_CALLS: u32 = 512;
/// Messages of gossip that a peer may have in progress at once.
const MAX_GOSSIP: u32 = 64;
/// How long a connection stays open without traffic. Connections have no keep-alive of their own: a leader's
/// heartbeats keep its connections open, and elsewhere a new connection costs a millisecond.
const IDLE: Duration = Duration::from_secs(10);
/// Messages of gossip that wait to be read at most.
const GOSSIP_QUEUE: usize = 1024;
/// How long [`Net::close`] waits until its close messages are sent.
const FAREWELL: Duration = Duration::from_millis(500);
/// The code that closes a connection when the agent stops.
pub(super) const GOODBYE: VarInt = VarInt::from_u32(0);
/// Bytes of the key for stateless resets.
const RESET_KEY: usize = 64;
const RESET_KEY_MODE: u32 = 0o600;

/// Why the mesh cannot be joined. The daemon shows it with its source.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address} (cluster.listen)")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the TLS configuration cannot be used for QUIC")]
    Tls(#[source] NoInitialCipherSuite),
}

/// This node's access to the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Net(pub(super) Arc<Inner>);

/// A compressed message of gossip, and the address of its sender.
pub(super) type Gossip = (SocketAddr, Vec<u8>);

pub(super) struct Inner {
    pub(super) endpoint: quinn::Endpoint,
    pub(super) me: Hello,
    pub(super) clock: Clock,
    pub(super) credentials: watch::Receiver<Arc<Credentials>>,
    pub(super) directory: watch::Receiver<Arc<Directory>>,
    pub(super) pool: Pool,
    pub(super) serve: OnceLock<Arc<dyn Serve>>,
    pub(super) gossip: mpsc::Sender<Gossip>,
    /// `Some` while gossip does not run. The lock is held for a move only.
    pub(super) gossip_inbox: Mutex<Option<mpsc::Receiver<Gossip>>>,
    pub(super) twin: Twin,
    pub(super) metrics: Metrics,
}

impl Net {
    /// Binds the endpoint. It answers requests after [`Self::serve`].
    ///
    /// # Errors
    /// The address is in use or not permitted, or the TLS configuration does not fit QUIC.
    pub fn bind(
        listen: SocketAddr,
        me: Hello,
        reset_key: &[u8; 64],
        credentials: watch::Receiver<Arc<Credentials>>,
        clock: Clock,
        directory: watch::Receiver<Arc<Directory>>,
    ) -> Result<Self, BindError> {
        let server = server_config(&credentials.borrow())?;
        let socket = crate::socket::udp("cluster.listen", listen)
            .map_err(|source| BindError::Listen { address: listen, source })?;
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key);
        let mut config = EndpointConfig::new(Arc::new(key));
        // quinn's own ids carry a mark of this start of the endpoint, and packets with other ids get no stateless
        // reset: neither those of a connection to the last start, nor those that probe a path.
        config.cid_generator(|| Box::<RandomConnectionIdGenerator>::default());
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(config, Some(server), socket, runtime)
            .map_err(|source| BindError::Listen { address: listen, source })?;
        let (gossip, gossip_inbox) = mpsc::channel(GOSSIP_QUEUE);
        Ok(Self(Arc::new(Inner {
            endpoint,
            me,
            clock,
            credentials,
            directory,
            pool: Pool::default(),
            serve: OnceLock::new(),
            gossip,
            gossip_inbox: Mutex::new(Some(gossip_inbox)),
            twin: Twin::default(),
            metrics: Metrics::default(),
        })))
    }

    /// Starts to answer requests. A second call changes nothing.
    pub fn serve(&self, serve: Arc<dyn Serve>) {
        if self.0.serve.set(serve).is_ok() {
            tokio::spawn(server::accept(Arc::clone(&self.0)));
        }
    }

    /// The address that the endpoint is bound to.
    ///
    /// # Errors
    /// The system does not report it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// The address of another live agent that has this node's own id, if there is one.
    pub fn duplicate(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.0.twin.watch()
    }

    /// Why addresses could not be reached lately, most of them tried again since. An address that was reached is gone.
    pub fn failures(&self) -> BTreeMap<SocketAddr, Cause> {
        self.0.pool.failures()
    }

    /// Number of refused connections: a wrong token, another cluster, another protocol.
    pub fn refused(&self) -> u64 {
        self.0.metrics.all_rejected()
    }

    /// Closes every connection and notifies the peers.
    pub async fn close(&self) {
        self.0.endpoint.close(GOODBYE, b"stopping");
        let _ = tokio::time::timeout(FAREWELL, self.0.endpoint.wait_idle()).await;
    }
}

/// The key for stateless resets, kept in a file: with the same key after a restart, peers notice at once that their
/// connections are gone.
///
/// # Errors
/// The file cannot be written, or the system has no random numbers.
pub fn reset_key(file: &Path) -> io::Result<[u8; RESET_KEY]> {
    if let Ok(kept) = fs::read(file)
        && let Ok(key) = kept.try_into()
    {
        return Ok(key);
    }
    let mut key = [0; RESET_KEY];
    SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("the system has no random numbers"))?;
    let mut options = OpenOptions::new();
    let mut written = options.write(true).create(true).truncate(true).mode(RESET_KEY_MODE).open(file)?;
    written.write_all(&key)?;
    Ok(key)
}

pub(super) fn server_config(credentials: &Credentials) -> Result<quinn::ServerConfig, BindError> {
    let crypto = QuicServerConfig::try_from(Arc::clone(&credentials.server)).map_err(BindError::Tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

pub(super) fn client_config(credentials: &Credentials) -> Result<quinn::ClientConfig, Cause> {
    let crypto = QuicClientConfig::try_from(Arc::clone(&credentials.client)).map_err(|_| Cause::NoCipherSuite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(IDLE.try_into().ok());
    transport.max_concurrent_bidi_streams(MAX_CALLS.into());
    transport.max_concurrent_uni_streams(MAX_GOSSIP.into());
    transport.datagram_receive_buffer_size(None);
    Arc::new(transport)
}
