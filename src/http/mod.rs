//! The HTTP API, over TCP and over a unix socket.
//!
//! A request passes `listen` (limits, TLS, the peer), `origin` (the host and origin),
//! `access` (the table of roles) and `extract` (strict decoding), and reaches a handler
//! that asks one owner. Only `error` turns an owner's error into a status code.
//! `openapi` generates the description of the API from the code.

mod accept;
mod access;
mod commands;
mod doctor;
mod error;
mod events;
mod extract;
mod gpus;
mod head;
mod health;
mod history;
mod images;
mod listed;
mod listen;
mod metrics;
mod nodes;
mod openapi;
mod origin;
mod page;
mod routed;
mod router;
#[cfg(test)]
mod sample;
mod sessions;
mod socket;
mod status;
mod tls;
mod tokens;
mod unique;
mod volumes;
mod wait;
mod workspaces;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::metrics::Sources;
use crate::types::{ClusterMode, Name};
use listen::{Limits, Listener};
use metrics::Requests;
pub use tls::Certificate;

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address of the API. An address other than loopback needs `tls`.
    pub listen: SocketAddr,
    /// The address of health, metrics and a short status, which need no token.
    pub status_listen: Option<SocketAddr>,
    /// The unix socket for this host's administrators.
    pub socket: PathBuf,
    pub tls: Option<Tls>,
    /// The host names, with or without a port, that requests may use in addition to loopback and the own address.
    pub allowed_hosts: Vec<String>,
}

/// PEM files of the listener's certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What of the configuration may change while the API is served.
pub struct Followed {
    pub allowed_hosts: watch::Receiver<Arc<[String]>>,
    /// `None` if `http.listen` does not speak TLS: that does not change.
    pub certificate: Option<watch::Receiver<Certificate>>,
}

/// What the API serves: the handles of the owners, and what everyone may read.
#[derive(Clone)]
pub struct Api {
    /// The cluster's name.
    pub name: Name,
    pub mode: ClusterMode,
    /// Routes each request to the node that answers it.
    pub cluster: Cluster,
    pub clock: Clock,
    /// Whether the node has loaded its journal and accepts requests.
    pub ready: watch::Receiver<bool>,
    /// What every part counts.
    pub metrics: Sources,
    /// Whether the agent was started with `--dev`, for the status.
    pub dev: bool,
}

/// Why the API cannot start. No listener is open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen { key: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("http.listen is {0}, which needs TLS: set http.tls_cert and http.tls_key, or listen on 127.0.0.1")]
    Unprotected(SocketAddr),
    #[error("{path}: {message}")]
    Tls { path: PathBuf, message: String },
    #[error("another agent uses the socket {0}: stop it, or change http.socket")]
    SocketInUse(PathBuf),
    #[error("cannot create the socket {path}: {source}")]
    Socket { path: PathBuf, source: std::io::Error },
}

/// The bound addresses of the API. A port that the kernel chose replaces port 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub listen: SocketAddr,
    pub status_listen: Option<SocketAddr>,
    pub socket: PathBuf,
}

/// The bound API. Callers can connect, and wait for answers until it runs.
pub struct Bound {
    pub addresses: Addresses,
    listeners: Vec<(Listener, Router)>,
    shutdown: watch::Receiver<bool>,
}

/// The state of every handler.
struct App {
    api: Api,
    /// True once the daemon stops, which ends every wait and every followed log.
    stopping: watch::Receiver<bool>,
    requests: Requests,
    /// What the TCP listener serves; `None`: it does not speak TLS.
    certificate: Option<watch::Receiver<Certificate>>,
    /// The streams of events that may still begin.
    event_streams: Arc<Semaphore>,
}

type Shared = axum::extract::State<Arc<App>>;

/// Binds every listener. [`Bound::run`] serves the API until `shutdown` is true.
///
/// # Errors
/// An address or the socket is in use or not permitted.
pub async fn serve(
    config: Config,
    followed: Followed,
    api: Api,
    shutdown: watch::Receiver<bool>,
) -> Result<Bound, Error> {
    let tls = followed.certificate;
    if tls.is_none() && !config.listen.ip().to_canonical().is_loopback() {
        return Err(Error::Unprotected(config.listen));
    }
    let (tcp, listen) = bind("http.listen", config.listen)?;
    let status = match config.status_listen {
        Some(address) => Some(bind("http.status_listen", address)?),
        None => None,
    };
    let socket = socket::bind(&config.socket).await?;

    let status_listen = status.as_ref().map(|(_, address)| *address);
    let addresses = Addresses { listen, status_listen, socket: config.socket };
    let event_streams = Arc::new(Semaphore::new(events::MAX_STREAMS));
    let (requests, certificate) = (Requests::default(), tls.clone());
    let app = Arc::new(App { api, stopping: shutdown.clone(), requests, certificate, event_streams });
    let api = router::api(Arc::clone(&app), followed.allowed_hosts);
    let mut listeners = vec![(Listener::Tcp { tcp, tls }, api.clone()), (Listener::Socket(socket), api)];
    if let Some((tcp, _)) = status {
        listeners.push((Listener::Tcp { tcp, tls: None }, router::status_only(app)));
    }
    Ok(Bound { addresses, listeners, shutdown })
}

impl Bound {
    /// Serves until `shutdown` is true, then finishes the requests in progress within [`listen::Limits`].
    pub async fn run(self) {
        let serve = |(listener, router)| listen::serve(listener, router, Limits::default(), self.shutdown.clone());
        join_all(self.listeners.into_iter().map(serve)).await;
    }
}

fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let wrong = |source| Error::Listen { key, address, source };
    let tcp = crate::socket::tcp(key, address).and_then(TcpListener::from_std).map_err(wrong)?;
    let bound = tcp.local_addr().map_err(wrong)?;
    Ok((tcp, bound))
}
