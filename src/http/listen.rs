//! Accepts connections within limits, and serves them until the daemon stops.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::access::Peer;
use super::head::HeadTimer;
use super::socket::{Socket, admin};
use super::tls::Certificate;

/// Connections of one listener at most. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Connections from one address at most. The listener closes further ones at once.
const MAX_PER_ADDRESS: usize = 128;
/// How long a peer may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may idle between requests. nginx and most load balancers keep an idle connection for 60 s, and
/// must be the side that closes it: a request that they send while this side closes would fail.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of a request, and of its body read in advance, at most.
const MAX_HEAD: usize = 64 * 1024;
/// How long responses in progress may take once the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);
/// The pause after an accept that failed because the process or the host lacks a resource, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of one listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    connections: usize,
    per_address: usize,
    head: Duration,
    idle: Duration,
    handshake: Duration,
    drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            per_address: MAX_PER_ADDRESS,
            head: HEAD_TIMEOUT,
            idle: IDLE_TIMEOUT,
            handshake: HANDSHAKE_TIMEOUT,
            drain: DRAIN,
        }
    }
}

/// Where connections come from.
pub(super) enum Listener {
    Tcp {
        tcp: TcpListener,
        /// The certificate that each handshake begins with; it may be renewed.
        tls: Option<watch::Receiver<Certificate>>,
    },
    Socket(Socket),
}

/// An accepted connection that has sent no data yet.
enum Accepted {
    Tcp { stream: TcpStream, remote: SocketAddr, slot: Slot },
    Socket(UnixStream),
}

/// Serves a listener until `stopping` is true, then finishes the requests in progress within `limits.drain`.
pub(super) async fn serve(listener: Listener, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let addresses = Addresses::new(limits.per_address);
    let tls = match &listener {
        Listener::Tcp { tls, .. } => tls.clone(),
        Listener::Socket(_) => None,
    };
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit.expect("the semaphore is never closed"), accept(&listener, &addresses).await)
        };
        let (permit, accepted) = tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
            next = next => next,
        };
        let tls = tls.as_ref().map(|certificate| certificate.borrow().acceptor());
        let connection = Connection { router: router.clone(), tls, limits, stopping: stopping.clone() };
        connections.spawn(connection.serve(accepted, permit));
    }
    // Dropped first, so that a successor can bind the address at once.
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!(left = connections.len(), "connections with requests in progress closed: the drain timed out");
    }
}

/// The next connection from an address below its limit.
async fn accept(listener: &Listener, addresses: &Addresses) -> Accepted {
    loop {
        let accepted = match listener {
            Listener::Socket(socket) => socket.accept().await.map(|stream| Some(Accepted::Socket(stream))),
            Listener::Tcp { tcp, .. } => tcp.accept().await.map(|(stream, remote)| {
                addresses.enter(remote.ip()).map(|slot| Accepted::Tcp { stream, remote, slot })
            }),
        };
        match accepted {
            Ok(Some(accepted)) => return accepted,
            Ok(None) => tracing::debug!("connection closed: too many connections from one address"),
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the error concerns one connection only, which its peer closed before the accept.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What one connection needs.
struct Connection {
    router: Router,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, accepted: Accepted, permit: OwnedSemaphorePermit) {
        match accepted {
            Accepted::Socket(stream) => {
                let admin = stream.peer_cred().ok().and_then(|peer| admin(&peer));
                self.converse(stream, Peer::Socket { admin }).await;
            }
            Accepted::Tcp { stream, remote, slot } => {
                self.secure(stream, remote).await;
                drop(slot);
            }
        }
        drop(permit);
    }

    async fn secure(mut self, stream: TcpStream, remote: SocketAddr) {
        // The server writes responses whole: Nagle's algorithm would only delay them.
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let peer = Peer::Tcp { remote, local };
        let Some(tls) = self.tls.take() else { return self.converse(stream, peer).await };
        let handshake = tokio::time::timeout(self.limits.handshake, tls.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = stopped(&mut self.stopping) => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.converse(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%remote, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%remote, "TLS handshake timed out"),
        }
    }

    async fn converse<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut self, stream: I, peer: Peer) {
        let of_request = peer.clone();
        let service = self.router.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(of_request.clone());
            request.map(Body::new)
        });
        let timer = HeadTimer::new(self.limits.head);
        let stream = TokioIo::new(timer.watch(stream));
        let connection = http1::Builder::new()
            .timer(timer)
            .header_read_timeout(self.limits.idle)
            .max_buf_size(MAX_HEAD)
            .serve_connection(stream, TowerToHyperService::new(service));
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(?peer, %error, "connection ended early");
        }
    }
}

/// Returns once the daemon stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A dropped sender counts as a stop: the daemon that would send it has ended.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The number of connections of each address. The lock is held for one look-up, and never across an await.
#[derive(Debug, Clone)]
struct Addresses {
    limit: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Addresses {
    fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// A slot for another connection from this address, if the address is below its limit.
    fn enter(&self, address: IpAddr) -> Option<Slot> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Slot { addresses: self.clone(), address })
    }
}

/// The slot of one connection, released on drop.
#[derive(Debug)]
struct Slot {
    addresses: Addresses,
    address: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::sample;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    /// A limit that no test reaches.
    const FOREVER: Duration = Duration::from_secs(3600);
    /// A limit that a test waits for, and that a prompt peer keeps on a busy machine.
    const BRIEF: Duration = Duration::from_millis(500);
    /// How long a condition may take to become true on a busy machine.
    const SOON: Duration = Duration::from_secs(60);
    const REQUEST: &[u8] = b"GET /peer HTTP/1.1\r\nhost: localhost\r\n\r\n";

    struct Served {
        address: SocketAddr,
        stop: watch::Sender<bool>,
        running: JoinHandle<()>,
    }

    async fn served(limits: Limits) -> Served {
        listening(limits, None).await
    }

    async fn listening(limits: Limits, certificate: Option<Certificate>) -> Served {
        let tls = certificate.map(|certificate| watch::channel(certificate).1);
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let router = Router::new()
            .route("/peer", get(|axum::Extension(peer): axum::Extension<Peer>| async move { format!("{peer:?}") }))
            .route("/echo", post(|body: String| async { body }))
            .route("/never", get(|| async { std::future::pending::<()>().await }));
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(serve(Listener::Tcp { tcp, tls }, router, limits, stopping));
        Served { address, stop, running }
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(REQUEST).await.unwrap();
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    }

    #[tokio::test]
    async fn a_handler_gets_the_peer() {
        let served = served(Limits::default()).await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let answer = ask(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(&format!("{:?}", stream.local_addr().unwrap())), "{answer}");
    }

    #[tokio::test]
    async fn connections_of_one_address_are_limited() {
        let served = served(Limits { per_address: 2, ..Limits::default() }).await;
        let connect = || TcpStream::connect(served.address);
        let (mut one, mut two) = (connect().await.unwrap(), connect().await.unwrap());
        assert!(ask(&mut one).await.starts_with("HTTP/1.1 200"));
        assert!(ask(&mut two).await.starts_with("HTTP/1.1 200"));
        let mut three = connect().await.unwrap();
        assert_eq!(three.read(&mut [0; 1]).await.unwrap_or(0), 0, "the third is closed");
        drop(one);
        // The slot is free once the listener has seen the end of the connection.
        while {
            let mut again = connect().await.unwrap();
            let _ = again.write_all(REQUEST).await;
            again.read(&mut [0; 1]).await.unwrap_or(0) == 0
        } {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_waits() {
        let served = served(Limits { connections: 1, ..Limits::default() }).await;
        let mut one = TcpStream::connect(served.address).await.unwrap();
        assert!(ask(&mut one).await.starts_with("HTTP/1.1 200"));
        let mut two = TcpStream::connect(served.address).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), ask(&mut two)).await;
        assert!(waiting.is_err(), "the second is not served beside the first");
        drop(one);
        let read = two.read(&mut [0; 12]).await.unwrap();
        assert!(read > 0, "the second is served after the first");
    }

    /// A connection that has got an answer.
    async fn kept(served: &Served) -> TcpStream {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        assert!(ask(&mut stream).await.starts_with("HTTP/1.1 200"));
        stream
    }

    /// Waits until the server closes the connection, which it must do without an answer.
    async fn closed(mut stream: TcpStream) {
        let mut rest = Vec::new();
        // A reset ends the connection as well.
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection is closed");
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    }

    #[tokio::test]
    async fn a_head_has_its_limit_from_its_first_byte_and_on_a_new_connection_from_the_start() {
        let served = served(Limits { head: BRIEF, idle: FOREVER, ..Limits::default() }).await;
        closed(TcpStream::connect(served.address).await.unwrap()).await;
        for mut slow in [TcpStream::connect(served.address).await.unwrap(), kept(&served).await] {
            slow.write_all(b"GET /peer HTTP/1.1\r\n").await.unwrap();
            closed(slow).await;
        }
    }

    #[tokio::test]
    async fn further_bytes_do_not_extend_the_limit_of_a_head() {
        let served = served(Limits { head: BRIEF, idle: FOREVER, ..Limits::default() }).await;
        let mut slow = kept(&served).await;
        let trickle = async {
            while slow.write_all(b"x").await.is_ok() {
                let _ = tokio::time::timeout(Duration::from_millis(10), slow.read(&mut [0; 64])).await;
            }
        };
        tokio::time::timeout(SOON, trickle).await.expect("the connection is closed");
    }

    #[tokio::test]
    async fn a_kept_connection_may_idle_for_longer_than_a_head_may_take() {
        let idle = BRIEF * 3;
        let served = served(Limits { head: BRIEF, idle, ..Limits::default() }).await;
        let mut stream = kept(&served).await;
        // Bytes of a body are no bytes of the next head.
        stream.write_all(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        stream.write_all(b"hi").await.unwrap();
        let begun = Instant::now();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        closed(stream).await;
        assert!(begun.elapsed() >= idle, "closed after {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn tls_is_served_and_a_silent_handshake_times_out() {
        let tls = Certificate::read(&sample::certificate()).unwrap();
        let served = listening(Limits { handshake: Duration::from_millis(200), ..Limits::default() }, Some(tls)).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let mut secure = sample::tls_client().connect(name, &mut stream).await.unwrap();
        secure.write_all(REQUEST).await.unwrap();
        let mut head = [0; 12];
        secure.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed");
    }

    #[tokio::test]
    async fn a_stop_closes_idle_connections_at_once_and_late_ones_after_the_drain() {
        let served = served(Limits { drain: Duration::from_millis(50), ..Limits::default() }).await;
        let mut idle = TcpStream::connect(served.address).await.unwrap();
        assert!(ask(&mut idle).await.starts_with("HTTP/1.1 200"));
        let mut late = TcpStream::connect(served.address).await.unwrap();
        late.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        served.stop.send_replace(true);
        served.running.await.unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(late.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(served.address).await.is_err(), "nothing listens any more");
    }

    #[test]
    fn an_address_without_connections_is_removed() {
        let addresses = Addresses::new(1);
        let slot = addresses.enter("::ffff:192.0.2.1".parse().unwrap());
        assert!(slot.is_some() && addresses.enter("192.0.2.1".parse().unwrap()).is_none());
        drop(slot);
        assert!(addresses.open.lock().unwrap().is_empty());
    }
}
