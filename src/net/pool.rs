//! The open connections: one per node, dialled by either side.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use quinn::{Connection, ConnectionError, TransportErrorCode, VarInt};
use tokio::time::{Instant, timeout};

use super::endpoint::{Inner, client_config};
use super::{Hello, frame, server};
use crate::identity::{Credentials, node_of};
use crate::types::NodeId;

/// How long a handshake and the hello may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long a failed address is not dialled again: callers get the same error meanwhile.
const FAILED_FOR: Duration = Duration::from_millis(200);
/// Addresses whose failures are remembered at most.
const MAX_FAILED: usize = 4096;
/// The code that closes a connection to a node that this one refuses.
pub(super) const NOT_WANTED: VarInt = VarInt::from_u32(1);
/// The code that closes a connection to an earlier start of an agent that has connected again.
const REPLACED: VarInt = VarInt::from_u32(2);
/// The code that closes a connection to another agent with the same node id.
const TWIN: VarInt = VarInt::from_u32(4);
/// The TLS alerts among QUIC's error codes (RFC 9001, §4.8).
const ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// A connection, and the hello of its peer.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) hello: Arc<Hello>,
}

type Dial = Shared<BoxFuture<'static, Result<Link, String>>>;

/// The locks are held for a look-up or an insertion, and span no await.
#[derive(Default)]
pub(super) struct Pool {
    links: Mutex<Links>,
    dials: Mutex<HashMap<SocketAddr, Dial>>,
    failed: Mutex<HashMap<SocketAddr, (Instant, String)>>,
}

#[derive(Default)]
struct Links {
    by_node: HashMap<NodeId, Link>,
    nodes: HashMap<SocketAddr, NodeId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The connection to a node, if there is an open one.
    pub(super) fn of_node(&self, node: &NodeId) -> Option<Link> {
        let links = lock(&self.links);
        links.by_node.get(node).filter(|link| link.connection.close_reason().is_none()).cloned()
    }

    fn of_address(&self, address: SocketAddr) -> Option<Link> {
        let node = lock(&self.links).nodes.get(&address).copied()?;
        self.of_node(&node).filter(|link| address_of(&link.connection) == address)
    }

    /// Adds a connection. It replaces one to an earlier start of the same agent. Of two connections to the same
    /// start, the older one finishes its calls and gets no new ones.
    fn register(&self, link: Link) -> Result<(), String> {
        let mut links = lock(&self.links);
        let node = link.hello.node;
        if let Some(known) = links.by_node.get(&node)
            && known.connection.close_reason().is_none()
            && known.hello.incarnation != link.hello.incarnation
        {
            if known.hello.incarnation > link.hello.incarnation {
                return Err("a later start of this agent is already connected".to_owned());
            }
            known.connection.close(REPLACED, b"replaced");
        }
        links.nodes.insert(address_of(&link.connection), node);
        links.by_node.insert(node, link);
        Ok(())
    }

    fn forget(&self, link: &Link) {
        let mut links = lock(&self.links);
        if links.by_node.get(&link.hello.node).is_some_and(|known| same(&known.connection, &link.connection)) {
            links.by_node.remove(&link.hello.node);
        }
        let address = address_of(&link.connection);
        // If both sides dialled at once, there are two connections to one address, and the other may still be open.
        let is_left = links.by_node.get(&link.hello.node).is_some_and(|other| address_of(&other.connection) == address);
        if !is_left && links.nodes.get(&address) == Some(&link.hello.node) {
            links.nodes.remove(&address);
        }
    }

    fn failed_lately(&self, address: SocketAddr) -> Option<String> {
        let failed = lock(&self.failed);
        let (at, reason) = failed.get(&address)?;
        (at.elapsed() < FAILED_FOR).then(|| reason.clone())
    }

    /// Records a failure. Returns true if it is not the same as the last one: then it is worth a line in the log.
    fn note_failure(&self, address: SocketAddr, reason: &str) -> bool {
        let mut failed = lock(&self.failed);
        if failed.len() >= MAX_FAILED {
            failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
        }
        let before = failed.insert(address, (Instant::now(), reason.to_owned()));
        before.is_none_or(|(_, before)| before != reason)
    }
}

fn same(a: &Connection, b: &Connection) -> bool {
    a.stable_id() == b.stable_id()
}

/// The peer's address; an IPv4-mapped address as IPv4.
pub(super) fn address_of(connection: &Connection) -> SocketAddr {
    let address = connection.remote_address();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Inner {
    /// A connection to a node, dialled if there is none.
    pub(super) async fn link(self: &Arc<Self>, node: &NodeId) -> Result<Link, String> {
        if let Some(link) = self.pool.of_node(node) {
            return Ok(link);
        }
        let address = self.directory.borrow().get(node).copied().ok_or("its address is unknown")?;
        let link = self.link_to(address).await?;
        if link.hello.node == *node {
            return Ok(link);
        }
        Err(format!("its address {address} belongs to node {} now", link.hello.node))
    }

    /// A connection to the node at an address. Concurrent callers share one dial.
    pub(super) async fn link_to(self: &Arc<Self>, address: SocketAddr) -> Result<Link, String> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(link) = self.pool.of_address(address) {
            return Ok(link);
        }
        if let Some(reason) = self.pool.failed_lately(address) {
            return Err(reason);
        }
        let dial = {
            let mut dials = lock(&self.pool.dials);
            dials.entry(address).or_insert_with(|| self.begin_dial(address)).clone()
        };
        dial.await
    }

    /// Dials in a task of its own: callers may give up at any time, and the peer would keep a half-made connection
    /// and expect answers on it.
    fn begin_dial(self: &Arc<Self>, address: SocketAddr) -> Dial {
        let inner = Arc::clone(self);
        let dialling = tokio::spawn(async move {
            let dialled = AssertUnwindSafe(Arc::clone(&inner).dial(address)).catch_unwind().await;
            // The entry exists: `link_to` holds the lock until it has inserted it.
            lock(&inner.pool.dials).remove(&address);
            dialled.unwrap_or_else(|_| Err("the dial panicked: see the log".to_owned()))
        });
        dialling.map(|ended| ended.unwrap_or_else(|error| Err(error.to_string()))).boxed().shared()
    }

    pub(super) async fn dial(self: Arc<Self>, address: SocketAddr) -> Result<Link, String> {
        let dialled = timeout(HANDSHAKE, self.clone().shake_hands(address)).await;
        let dialled = dialled.unwrap_or_else(|_| Err("no answer".to_owned()));
        if let Err(reason) = &dialled
            && self.pool.note_failure(address, reason)
        {
            tracing::warn!(%address, %reason, "cannot connect to a node");
        }
        dialled
    }

    async fn shake_hands(self: Arc<Self>, address: SocketAddr) -> Result<Link, String> {
        let config = client_config(&self.credentials.borrow().clone())?;
        let connecting =
            self.endpoint.connect_with(config, address, Credentials::SERVER_NAME).map_err(|e| e.to_string())?;
        let connection = connecting.await.map_err(|e| explain(&e))?;
        let greeted = async {
            // Only the peer's hello shows that the peer has accepted this node.
            let (mut to, mut from) = connection.open_bi().await.map_err(|e| explain(&e))?;
            frame::send_value(&mut to, &self.me).await?;
            let _ = to.finish();
            let hello = frame::receive(&mut from).await;
            hello.map_err(|reason| match connection.close_reason() {
                Some(closed) => {
                    if closed_as(&closed, TWIN) {
                        self.met_twin(&connection);
                    }
                    explain(&closed)
                }
                None => reason,
            })
        };
        self.admit(&connection, greeted.await)
    }

    /// Accepts a connection if its hello is valid, else closes it.
    pub(super) fn admit(
        self: &Arc<Self>,
        connection: &Connection,
        hello: Result<Hello, String>,
    ) -> Result<Link, String> {
        let admitted = hello.map_err(Unwanted::from).and_then(|hello| {
            self.check(connection, &hello)?;
            let link = Link { connection: connection.clone(), hello: Arc::new(hello) };
            self.pool.register(link.clone())?;
            Ok(link)
        });
        match admitted {
            Ok(link) => {
                tokio::spawn(server::answer(Arc::clone(self), link.clone()));
                Ok(link)
            }
            Err(Unwanted { code, reason }) => {
                connection.close(code, reason.as_bytes());
                Err(reason)
            }
        }
    }

    fn check(&self, connection: &Connection, hello: &Hello) -> Result<(), Unwanted> {
        if hello.cluster != self.me.cluster {
            return Err(format!("it belongs to cluster {}: another token or another cluster", hello.cluster).into());
        }
        if certified(connection).as_ref() != Some(&hello.node) {
            return Err("its certificate belongs to another node".to_owned().into());
        }
        if hello.node != self.me.node {
            return Ok(());
        }
        if hello.incarnation == self.me.incarnation {
            return Err("it is this node itself".to_owned().into());
        }
        self.met_twin(connection);
        Err(Unwanted { code: TWIN, reason: "another agent has the same node id".to_owned() })
    }

    fn met_twin(&self, connection: &Connection) {
        self.duplicate.send_replace(Some(address_of(connection)));
    }

    /// Forgets a connection that has ended.
    pub(super) fn parted(&self, link: &Link) {
        self.pool.forget(link);
    }
}

/// Why a connection is refused: the code and the reason that the peer gets.
struct Unwanted {
    code: VarInt,
    reason: String,
}

impl From<String> for Unwanted {
    fn from(reason: String) -> Self {
        Self { code: NOT_WANTED, reason }
    }
}

/// Whether the peer closed the connection with this code.
fn closed_as(error: &ConnectionError, code: VarInt) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(closed) if closed.error_code == code)
}

/// The node that the peer's certificate names.
fn certified(connection: &Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<rustls::pki_types::CertificateDer<'static>>>()?;
    node_of(chain.first()?)
}

/// Describes an error, so that a wrong token and a silent host have different messages.
pub(super) fn explain(error: &ConnectionError) -> String {
    let is_alert = |code: TransportErrorCode| ALERTS.contains(&u64::from(code));
    match error {
        ConnectionError::TransportError(error) if is_alert(error.code) => "another token or another cluster".to_owned(),
        ConnectionError::ConnectionClosed(closed) if is_alert(closed.error_code) => {
            "another token or another cluster".to_owned()
        }
        ConnectionError::ApplicationClosed(closed) if [NOT_WANTED, TWIN].contains(&closed.error_code) => {
            String::from_utf8_lossy(&closed.reason).into_owned()
        }
        ConnectionError::TimedOut => "no answer".to_owned(),
        error => error.to_string(),
    }
}
