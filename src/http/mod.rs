//! The HTTP API: any caller's way to the owners, over TCP and over a unix socket.
//!
//! A request passes `listen` (bounds, TLS, who is there), `origin` (which host it is for),
//! `access` (one table of who may do what) and `extract` (strict reading), and reaches a handler
//! that asks one owner. `error` is the only place that turns an owner's refusal into a status.
//! `openapi` describes all of it from the code.

mod access;
mod commands;
mod error;
mod extract;
mod health;
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
use tokio::sync::watch;

use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::types::{ClusterMode, Name};
use listen::{Limits, Listener};

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the API is served. Off loopback it needs `tls`.
    pub listen: SocketAddr,
    /// Where health, metrics and a short status are served to anybody.
    pub status_listen: Option<SocketAddr>,
    /// The unix socket for this host's administrators.
    pub socket: PathBuf,
    pub tls: Option<Tls>,
    /// The names, with or without a port, that the API answers to besides loopback and its own address.
    pub allowed_hosts: Vec<String>,
}

/// PEM files of the listener's certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What the API serves: the handles of the owners, and what everybody may read.
#[derive(Clone)]
pub struct Api {
    /// The cluster's name.
    pub name: Name,
    pub mode: ClusterMode,
    /// Every request's way to the node that answers it.
    pub cluster: Cluster,
    pub clock: Clock,
    /// Whether the node has loaded its journal and takes requests.
    pub ready: watch::Receiver<bool>,
    /// The agent was started with `--dev`, which the status says.
    pub dev: bool,
}

/// Why the API cannot be served. Nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen { key: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("http.listen is {0}, which is not loopback: set http.tls_cert and http.tls_key")]
    Unprotected(SocketAddr),
    #[error("{path}: {message}")]
    Tls { path: PathBuf, message: String },
    #[error("another agent answers on the socket {0}")]
    SocketInUse(PathBuf),
    #[error("the socket {path} cannot be made: {source}")]
    Socket { path: PathBuf, source: std::io::Error },
}

/// Where the API listens, ports chosen by the system filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub listen: SocketAddr,
    pub status_listen: Option<SocketAddr>,
    pub socket: PathBuf,
}

/// The API, bound: callers connect and wait until it runs.
pub struct Bound {
    pub addresses: Addresses,
    listeners: Vec<(Listener, Router)>,
    shutdown: watch::Receiver<bool>,
}

/// What every handler is given.
struct App {
    api: Api,
    /// True once the daemon stops: what waits or follows ends then.
    stopping: watch::Receiver<bool>,
}

type Shared = axum::extract::State<Arc<App>>;

/// Binds every listener. The API is served while [`Bound::run`] is polled, until `shutdown` is true.
///
/// # Errors
/// An address or the socket is taken or may not be used, or the certificate cannot be read.
pub async fn serve(config: Config, api: Api, shutdown: watch::Receiver<bool>) -> Result<Bound, Error> {
    if config.tls.is_none() && !config.listen.ip().to_canonical().is_loopback() {
        return Err(Error::Unprotected(config.listen));
    }
    let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
    let (tcp, listen) = bind("http.listen", config.listen).await?;
    let status = match config.status_listen {
        Some(address) => Some(bind("http.status_listen", address).await?),
        None => None,
    };
    let socket = socket::bind(&config.socket).await?;

    let status_listen = status.as_ref().map(|(_, address)| *address);
    let addresses = Addresses { listen, status_listen, socket: config.socket };
    let app = Arc::new(App { api, stopping: shutdown.clone() });
    let api = router::api(Arc::clone(&app), config.allowed_hosts.into());
    let mut listeners = vec![(Listener::Tcp { tcp, tls }, api.clone()), (Listener::Socket(socket), api)];
    if let Some((tcp, _)) = status {
        listeners.push((Listener::Tcp { tcp, tls: None }, router::status_only(app)));
    }
    Ok(Bound { addresses, listeners, shutdown })
}

impl Bound {
    /// Serves until the shutdown is called, then finishes the answers in progress, by a deadline.
    pub async fn run(self) {
        let serve = |(listener, router)| listen::serve(listener, router, Limits::default(), self.shutdown.clone());
        join_all(self.listeners.into_iter().map(serve)).await;
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let wrong = |source| Error::Listen { key, address, source };
    let tcp = TcpListener::bind(address).await.map_err(wrong)?;
    let bound = tcp.local_addr().map_err(wrong)?;
    Ok((tcp, bound))
}
