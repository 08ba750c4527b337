//! The open connections: one per node, dialled by either side.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use quinn::{Connection, ConnectionError, VarInt};
use tokio::time::{Instant, timeout};

use super::endpoint::{Inner, client_config};
use super::path::Prober;
use super::{Cause, Hello, Unwanted, frame, server};
use crate::identity::{Credentials, node_of};
use crate::types::NodeId;

/// How long a handshake and the hello may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long a failed address is not dialled again: callers get the same error meanwhile.
const FAILED_FOR: Duration = Duration::from_millis(200);
/// How long the failure of an address is shown after the last try: gossip tries what it wants to reach every few
/// seconds.
const SHOWN_FOR: Duration = Duration::from_secs(30);
/// Addresses whose failures are remembered at most.
const MAX_FAILED: usize = 4096;
/// The code that closes a connection to a node that this one refuses.
pub(super) const NOT_WANTED: VarInt = VarInt::from_u32(1);
/// The code that closes a connection to an earlier start of an agent that has connected again.
const REPLACED: VarInt = VarInt::from_u32(2);
/// The code that closes a connection to an address that this host has no more.
const MOVED: VarInt = VarInt::from_u32(5);
/// The code of a connection to another agent with the same node id.
pub(super) const TWIN: VarInt = VarInt::from_u32(4);

/// A connection, and the hello of its peer.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) hello: Arc<Hello>,
}

type Dial = Shared<BoxFuture<'static, Result<Link, Cause>>>;

/// The locks are held for a look-up or an insertion, and span no await.
#[derive(Default)]
pub(super) struct Pool {
    links: Mutex<Links>,
    dials: Mutex<HashMap<SocketAddr, Dial>>,
    failed: Mutex<HashMap<SocketAddr, (Instant, Cause)>>,
}

#[derive(Default)]
struct Links {
    by_node: HashMap<NodeId, Link>,
    nodes: HashMap<SocketAddr, NodeId>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The connection to a node, if there is an open one.
    pub(super) fn of_node(&self, node: &NodeId) -> Option<Link> {
        let links = lock(&self.links);
        links.by_node.get(node).filter(|link| link.connection.close_reason().is_none()).cloned()
    }

    /// Every open connection that is in use.
    pub(super) fn all(&self) -> Vec<Link> {
        let links = lock(&self.links);
        links.by_node.values().filter(|link| link.connection.close_reason().is_none()).cloned().collect()
    }

    fn of_address(&self, address: SocketAddr) -> Option<Link> {
        let node = lock(&self.links).nodes.get(&address).copied()?;
        self.of_node(&node).filter(|link| address_of(&link.connection) == address)
    }

    /// Takes in a connection. It replaces what was there of an earlier life of that agent; of two of one life the
    /// older finishes what it does, and is used no more.
    fn register(&self, link: Link) -> Result<(), Unwanted> {
        let mut links = lock(&self.links);
        let node = link.hello.node;
        if let Some(known) = links.by_node.get(&node)
            && known.connection.close_reason().is_none()
            && known.hello.incarnation != link.hello.incarnation
        {
            if known.hello.incarnation > link.hello.incarnation {
                return Err(Unwanted::EarlierLife);
            }
            known.connection.close(REPLACED, b"replaced");
        }
        lock(&self.failed).remove(&address_of(&link.connection));
        links.nodes.insert(address_of(&link.connection), node);
        links.by_node.insert(node, link);
        Ok(())
    }

    /// Closes the connections that peers have made to an address that this host has no more: nothing arrives on them.
    pub(super) fn close_stale(&self) {
        let is_stale = |link: &&Link| link.connection.local_ip().is_some_and(|ip| !is_here(ip));
        for link in lock(&self.links).by_node.values().filter(is_stale) {
            link.connection.close(MOVED, b"moved");
        }
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

    fn failed_lately(&self, address: SocketAddr) -> Option<Cause> {
        let failed = lock(&self.failed);
        let (at, cause) = failed.get(&address)?;
        (at.elapsed() < FAILED_FOR).then(|| cause.clone())
    }

    pub(super) fn failures(&self) -> BTreeMap<SocketAddr, Cause> {
        let failed = lock(&self.failed);
        let shown = failed.iter().filter(|(_, (at, _))| at.elapsed() < SHOWN_FOR);
        shown.map(|(address, (_, cause))| (*address, cause.clone())).collect()
    }

    /// Notes a failure. True where it is not the same as last time: then it is worth a line in the log.
    pub(super) fn note_failure(&self, address: SocketAddr, cause: &Cause) -> bool {
        let mut failed = lock(&self.failed);
        if failed.len() >= MAX_FAILED {
            failed.retain(|_, (at, _)| at.elapsed() < FAILED_FOR);
        }
        let before = failed.insert(address, (Instant::now(), cause.clone()));
        before.is_none_or(|(_, before)| before != *cause)
    }
}

/// Whether this host has the address.
fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip.to_canonical(), 0));
    bound.map_or_else(|error| error.kind() != io::ErrorKind::AddrNotAvailable, |_| true)
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
    /// A connection to a node, dialled where there is none.
    pub(super) async fn link(self: &Arc<Self>, node: &NodeId) -> Result<Link, Cause> {
        if let Some(link) = self.pool.of_node(node) {
            return Ok(link);
        }
        let address = self.directory.borrow().get(node).copied().ok_or(Cause::NoAddress)?;
        let link = self.link_to(address).await?;
        if link.hello.node == *node {
            return Ok(link);
        }
        Err(Cause::OtherNode { address, found: link.hello.node })
    }

    /// A connection to whoever is at an address. Callers at one time share one dial.
    pub(super) async fn link_to(self: &Arc<Self>, address: SocketAddr) -> Result<Link, Cause> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(link) = self.pool.of_address(address) {
            return Ok(link);
        }
        if let Some(cause) = self.pool.failed_lately(address) {
            return Err(cause);
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
            dialled.unwrap_or(Err(Cause::DialPanicked))
        });
        dialling.map(|ended| ended.unwrap_or(Err(Cause::DialCancelled))).boxed().shared()
    }

    pub(super) async fn dial(self: Arc<Self>, address: SocketAddr) -> Result<Link, Cause> {
        let dialled = self.try_dial(address).await.map_err(|cause| cause.explained(self.clock.now().wall));
        if let Err(cause) = &dialled
            && self.pool.note_failure(address, cause)
        {
            tracing::warn!(%address, reason = %cause, "a node cannot be reached");
        }
        dialled
    }

    async fn try_dial(self: &Arc<Self>, address: SocketAddr) -> Result<Link, Cause> {
        let from = self.endpoint.local_addr().map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |own| own.ip());
        let mut prober = Prober::new(from, address);
        let dialled = tokio::select! {
            dialled = timeout(HANDSHAKE, Arc::clone(self).shake_hands(address)) => dialled,
            never = prober.run() => match never {},
        };
        match dialled {
            Ok(dialled) => dialled,
            Err(_) if prober.is_narrow() => Err(Cause::NarrowPath(address)),
            Err(_) => Err(Cause::NoHello),
        }
    }

    async fn shake_hands(self: Arc<Self>, address: SocketAddr) -> Result<Link, Cause> {
        let config = client_config(&self.credentials.borrow().clone())?;
        let connection = self.endpoint.connect_with(config, address, Credentials::SERVER_NAME)?.await?;
        let greeted = async {
            // Only the other side's hello says that it has let this one in.
            let (mut to, mut from) = connection.open_bi().await?;
            frame::send_value(&mut to, &self.me).await?;
            let _ = to.finish();
            let hello = frame::receive(&mut from).await;
            hello.map_err(|cause| match connection.close_reason() {
                Some(closed) => {
                    if closed_as(&closed, TWIN) {
                        self.met_twin(address_of(&connection));
                    }
                    closed.into()
                }
                None => cause,
            })
        };
        self.admit(&connection, greeted.await)
    }

    /// Lets a connection count, once its hello is as it must be.
    pub(super) fn admit(self: &Arc<Self>, connection: &Connection, hello: Result<Hello, Cause>) -> Result<Link, Cause> {
        let admitted = hello.and_then(|hello| {
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
            Err(cause) => {
                connection.close(cause.code(), cause.to_string().as_bytes());
                Err(cause)
            }
        }
    }

    fn check(self: &Arc<Self>, connection: &Connection, hello: &Hello) -> Result<(), Unwanted> {
        if hello.cluster != self.me.cluster {
            return Err(Unwanted::OtherCluster(hello.cluster.clone()));
        }
        if certified(connection).as_ref() != Some(&hello.node) {
            return Err(Unwanted::OtherCertificate);
        }
        if hello.node != self.me.node {
            return Ok(());
        }
        if hello.incarnation == self.me.incarnation {
            return Err(Unwanted::Itself);
        }
        self.met_twin(address_of(connection));
        Err(Unwanted::Twin)
    }

    /// Forgets a connection that has ended.
    pub(super) fn parted(&self, link: &Link) {
        self.pool.forget(link);
    }
}

/// Whether the peer closed it with this code.
fn closed_as(error: &ConnectionError, code: VarInt) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(closed) if closed.error_code == code)
}

/// The node that the peer's certificate names.
fn certified(connection: &Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<rustls::pki_types::CertificateDer<'static>>>()?;
    node_of(chain.first()?)
}
