//! Real endpoints on loopback.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use chitchat::ChitchatMessage;
use chitchat::transport::Transport;
use futures_util::TryStreamExt;
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::timeout;

use super::gossip::GossipTransport;
use super::*;
use crate::clock::Clock;
use crate::election;
use crate::gossip::Directory;
use crate::identity::{Credentials, Token};
use crate::sessions::LogsRequest;
use crate::types::{Ballot, BootInstant, Moment, SessionId, Timestamp, sample};
use crate::wire::{Call, Envelope, PROTOCOL, Request, message};

/// More than any call here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "hT2vq0Kx9sLwZc4bNfYp7RmDgUe1JaXo5iVtEk8ySHQ";
const OTHER_TOKEN: &str = "B6nWz3QmUo1fXsKc8JrLyTd0vGhPe5iAa9VtEk2YxHM";

/// A day in 2026, in Unix seconds.
const NOW: u64 = 1_780_000_000;

/// A clock that always shows this time, in Unix seconds.
#[derive(Debug)]
struct Shows(u64);

impl rustls::time_provider::TimeProvider for Shows {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

fn wall(seconds: u64) -> Clock {
    let wall = Timestamp::from_millis(i64::try_from(seconds).unwrap() * 1000);
    Clock::manual(Moment { wall, boot: BootInstant::from_millis(0), boot_id: 1 })
}

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

/// The node that a test's endpoint belongs to.
#[derive(Clone)]
struct Identity {
    token: Token,
    cluster: &'static str,
    node: u8,
    incarnation: u64,
    /// What the clock shows that its TLS verifies certificates by, in Unix seconds.
    clock: u64,
    reset_key: [u8; 64],
}

fn node(n: u8) -> Identity {
    Identity {
        token: Token::parse(TOKEN.as_bytes()).unwrap(),
        cluster: "c",
        node: n,
        incarnation: 1,
        clock: NOW,
        reset_key: [n; 64],
    }
}

struct Node {
    net: Net,
    directory: watch::Sender<Arc<Directory>>,
    served: Arc<Desk>,
}

impl Node {
    fn start(identity: &Identity) -> Self {
        Self::start_at(identity, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts the node as soon as its stopped predecessor has released the address.
    async fn start_again_at(identity: &Identity, listen: SocketAddr) -> Self {
        let again = async {
            loop {
                match Self::start_at(identity, listen) {
                    Ok(node) => return node,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        timeout(PATIENCE, again).await.expect("the address is free again")
    }

    fn start_at(identity: &Identity, listen: SocketAddr) -> Result<Self, BindError> {
        let cluster: Name = identity.cluster.parse().unwrap();
        let (node, clock) = (id(identity.node), Arc::new(Shows(identity.clock)));
        let credentials = Credentials::with_clock(&identity.token, &cluster, &node, PROTOCOL, clock).unwrap();
        let hello = Hello {
            cluster,
            node: id(identity.node),
            name: format!("n{}", identity.node).parse().unwrap(),
            incarnation: identity.incarnation,
            version: "0.0.0".to_owned(),
            mode: ClusterMode::Available,
        };
        let (directory, known) = watch::channel(Arc::default());
        let credentials = watch::channel(Arc::new(credentials)).1;
        let net = Net::bind(listen, hello, &identity.reset_key, credentials, wall(identity.clock), known)?;
        let served = Arc::new(Desk::default());
        net.serve(served.clone());
        Ok(Self { net, directory, served })
    }

    async fn has_refused(&self, connections: u64) {
        let refused = async {
            while self.net.refused() != connections {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.unwrap_or_else(|_| panic!("{} were refused", self.net.refused()));
    }

    fn address(&self) -> SocketAddr {
        self.net.local_addr().unwrap()
    }

    fn knows(&self, n: u8, address: SocketAddr) {
        self.directory.send_modify(|known| {
            Arc::make_mut(known).insert(id(n), address);
        });
    }

    async fn asks(&self, n: u8) -> Result<String, Error> {
        self.asks_within(n, PATIENCE).await
    }

    async fn asks_within(&self, n: u8, within: Duration) -> Result<String, Error> {
        let described = self.net.call(&id(n), message::Describe, None, within).await;
        described.map(|node| node.name.to_string())
    }

    /// Repeats the call until it succeeds: the address of a restarted node is not dialled again at once.
    async fn asks_until_answered(&self, n: u8) -> String {
        timeout(PATIENCE, async {
            loop {
                match self.asks(n).await {
                    Ok(answer) => return answer,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
        .expect("it answers")
    }
}

/// Answers requests as the tests need.
#[derive(Default)]
struct Desk {
    asked: AtomicUsize,
}

#[async_trait]
impl Serve for Desk {
    async fn serve(&self, from: &Peer, asked: Envelope) -> Reply {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match asked.request {
            // The answer is called by the node that asks: calls that are mixed up show.
            Request::Describe(_) => frame::<message::Describe>(&sample::node(from.node.as_str(), id(9).as_str())),
            Request::Locate(message::Locate(text)) if text == "panic" => panic!("as the test wants it"),
            Request::Locate(message::Locate(text)) if text == "never" => std::future::pending().await,
            Request::Secret(message::Secret(session)) => frame::<message::Secret>(&Ok(Some(session.to_string()))),
            Request::Logs(message::Logs { request: LogsRequest { tail: Some(0), .. }, .. }) => {
                let broken = [Ok(Bytes::from_static(b"some")), Err(io::Error::other("it broke off"))];
                let Reply::Frame(answer) = frame::<message::Logs>(&Ok(())) else { unreachable!() };
                Reply::Stream(answer, Box::pin(futures_util::stream::iter(broken)))
            }
            Request::Logs(_) => {
                let chunks = (0..100_u8).map(|n| Ok(Bytes::from(vec![n; 10_000])));
                let Reply::Frame(answer) = frame::<message::Logs>(&Ok(())) else { unreachable!() };
                Reply::Stream(answer, Box::pin(futures_util::stream::iter(chunks)))
            }
            _ => Reply::Refused,
        }
    }
}

fn frame<C: Call>(answer: &C::Answer) -> Reply {
    Reply::Frame(C::FORMAT.encode(answer).unwrap())
}

/// Two nodes of one cluster; the first knows where the second is.
fn pair() -> (Node, Node) {
    let (one, two) = (Node::start(&node(1)), Node::start(&node(2)));
    one.knows(2, two.address());
    (one, two)
}

fn is_unreachable<T: std::fmt::Debug>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Unreachable { .. }))
}

fn is_no_answer<T: std::fmt::Debug>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::NoAnswer { .. }))
}

#[tokio::test]
async fn one_connection_carries_calls_both_ways() {
    let (one, two) = pair();
    assert_eq!(one.asks(2).await, Ok(id(1).to_string()));
    assert_eq!(two.asks(1).await, Ok(id(2).to_string()), "it does not know the first one's address");
    assert_eq!(one.net.hello_of(&id(2)).unwrap().node, id(2));
    assert_eq!((one.net.refused(), two.net.refused()), (0, 0));
}

#[tokio::test]
async fn a_dial_is_completed_after_its_caller_gave_up() {
    let (a, b) = (Node::start(&node(1)), Node::start(&node(2)));
    a.knows(2, b.address());
    b.knows(1, a.address());
    {
        let asks = a.asks(2);
        tokio::pin!(asks);
        // Gives up after the peer has accepted the connection, and before the dialler knows that.
        while b.net.hello_of(&id(1)).is_none() {
            let polled = std::future::poll_fn(|cx| Poll::Ready(asks.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "{polled:?}");
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(b.asks_within(1, Duration::from_secs(5)).await, Ok(id(2).to_string()));
}

#[tokio::test]
async fn each_of_many_concurrent_calls_gets_its_own_answer() {
    let (one, two) = pair();
    let net = Arc::new(one.net.clone());
    let calls = (0..300).map(|n| {
        let (net, session) = (Arc::clone(&net), sample::session_id(&n.to_string()));
        tokio::spawn(async move { (net.call(&id(2), message::Secret(session), None, PATIENCE).await, session) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (answer, session): (_, SessionId) = call.await.unwrap();
        assert_eq!(answer, Ok(Ok(Some(session.to_string()))));
    }
    assert_eq!(two.served.asked.load(Ordering::SeqCst), 300);
}

#[tokio::test]
async fn a_node_with_another_token_or_cluster_exchanges_no_request() {
    let strangers = [
        Identity { token: Token::parse(OTHER_TOKEN.as_bytes()).unwrap(), ..node(2) },
        Identity { cluster: "other", ..node(2) },
    ];
    for stranger in strangers {
        let (one, two) = (Node::start(&node(1)), Node::start(&stranger));
        one.knows(2, two.address());
        two.knows(1, one.address());
        assert!(is_unreachable(&one.asks(2).await));
        let Err(Error::Unreachable { cause, .. }) = two.asks(1).await else { panic!("it was let in") };
        assert!(cause.to_string().contains("token"), "{cause}");
        for node in [&one, &two] {
            assert_eq!(node.served.asked.load(Ordering::SeqCst), 0);
            node.has_refused(1).await;
        }
        assert!(one.net.hello_of(&id(2)).is_none());
    }
}

#[tokio::test]
async fn a_clock_that_was_never_set_is_not_taken_for_another_token() {
    let (one, two) = (Node::start(&node(1)), Node::start(&Identity { clock: 86_400, ..node(2) }));
    one.knows(2, two.address());
    two.knows(1, one.address());
    let refused = async |from: &Node, to| match from.asks(to).await {
        Err(Error::Unreachable { cause, .. }) => cause.to_string(),
        other => panic!("{other:?}"),
    };
    let there = refused(&one, 2).await;
    assert!(there.starts_with("the clock of that host shows 1970-01-02, and the clock of this host 2026-"), "{there}");
    let here = refused(&two, 1).await;
    assert!(here.starts_with("the clock of this host shows 1970-01-02: set it"), "{here}");
    assert!(one.net.failures()[&two.address()].needs_operator());
}

#[tokio::test]
async fn an_endpoint_answers_datagrams_of_forgotten_connections_whatever_their_size() {
    let node = Node::start(&node(1));
    let mut prober = path::Prober::new(Ipv4Addr::LOCALHOST.into(), node.address());
    let probed = timeout(PATIENCE, async {
        tokio::select! {
            never = prober.run() => match never {},
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
    });
    probed.await.unwrap();
    let evidence = prober.evidence;
    assert!(evidence.small_answers > 1 && evidence.full_answers > 1, "{evidence:?}");
}

#[tokio::test]
async fn an_address_that_answers_again_has_no_failure() {
    let (one, two) = pair();
    one.net.0.pool.note_failure(two.address(), &Cause::OtherToken);
    assert_eq!(one.net.failures().len(), 1);
    one.asks_until_answered(2).await;
    assert!(one.net.failures().is_empty());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let node = Node::start(&node(1));
    let roots = rustls::RootCertStore::empty();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![PROTOCOL.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connected = endpoint.connect_with(config, node.address(), Credentials::SERVER_NAME).unwrap().await;
    assert!(connected.is_err());
    assert_eq!(node.served.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_absent_node_is_unreachable_and_a_hanging_one_did_not_answer() {
    let (one, _two) = pair();
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    one.knows(3, nobody.local_addr().unwrap());
    assert!(is_unreachable(&one.asks_within(3, Duration::from_millis(50)).await));
    assert!(is_unreachable(&one.asks(4).await), "its address is unknown");
    one.asks(2).await.unwrap();
    let never = one.net.call(&id(2), message::Locate("never".to_owned()), None, Duration::from_millis(50)).await;
    assert!(is_no_answer(&never), "{never:?}");
    assert_eq!(one.asks(2).await, Ok(id(1).to_string()), "others go on");
}

#[tokio::test]
async fn a_refused_or_panicking_request_gets_no_answer() {
    let (one, _two) = pair();
    let beat = election::Request::PreVote { ballot: Ballot { term: 1, node: id(1) } };
    assert!(is_no_answer(&one.net.call(&id(2), beat, None, PATIENCE).await));
    let panics = one.net.call(&id(2), message::Locate("panic".to_owned()), None, PATIENCE).await;
    assert!(is_no_answer(&panics), "{panics:?}");
    assert_eq!(one.asks(2).await, Ok(id(1).to_string()));
}

#[tokio::test]
async fn a_stream_follows_its_answer_to_the_end() {
    let (one, _two) = pair();
    let logs = message::Logs { session: sample::session_id("k"), request: LogsRequest { follow: false, tail: None } };
    let (answer, chunks) = one.net.call_stream(&id(2), logs, None, PATIENCE).await.unwrap();
    assert_eq!(answer, Ok(()));
    let bytes: Vec<u8> =
        chunks.try_fold(Vec::new(), |all, chunk| async move { Ok([&all[..], &chunk].concat()) }).await.unwrap();
    let expected: Vec<u8> = (0..100_u8).flat_map(|n| vec![n; 10_000]).collect();
    assert!(bytes == expected, "{} bytes of {}", bytes.len(), expected.len());
}

#[tokio::test]
async fn a_stream_that_breaks_off_does_not_look_whole() {
    let (one, _two) = pair();
    let request = LogsRequest { follow: false, tail: Some(0) };
    let logs = message::Logs { session: sample::session_id("k"), request };
    // The break may overtake what came before it, the answer included.
    if let Ok((_, chunks)) = one.net.call_stream(&id(2), logs, None, PATIENCE).await {
        assert!(timeout(PATIENCE, chunks.try_collect::<Vec<_>>()).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_call_is_not_answered_by_another_node_at_the_same_address() {
    let (one, two) = pair();
    one.knows(3, two.address());
    let Err(Error::Unreachable { cause, .. }) = one.asks(3).await else { panic!("it is another node") };
    assert_eq!(cause, Cause::OtherNode { address: two.address(), found: id(2) });
}

#[tokio::test]
async fn a_restarted_node_is_reached_again_and_its_last_start_is_refused() {
    let (one, two) = pair();
    one.asks(2).await.unwrap();
    let address = two.address();
    two.net.close().await;
    drop(two);
    let next_life = Identity { incarnation: 2, ..node(2) };
    let two = Node::start_again_at(&next_life, address).await;
    assert_eq!(one.asks_until_answered(2).await, id(1).to_string());
    assert_eq!(one.net.hello_of(&id(2)).unwrap().incarnation, 2);

    let last_life = Node::start(&node(2));
    last_life.knows(1, one.address());
    assert!(last_life.asks(1).await.is_err(), "a later start is connected");
    drop(two);
}

#[tokio::test]
async fn of_two_connections_to_one_address_the_open_one_is_used() {
    let (one, two) = pair();
    let net = &one.net.0;
    let older = net.link_to(two.address()).await.unwrap_or_else(|e| panic!("{e}"));
    let newer = Arc::clone(net).dial(two.address()).await.unwrap_or_else(|e| panic!("{e}"));
    older.connection.close(0_u32.into(), b"as if it was idle");
    older.connection.closed().await;
    // The task that answers on the older one notices its end meanwhile, and forgets it.
    for _ in 0..1000 {
        let used = net.link_to(two.address()).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(used.connection.stable_id(), newer.connection.stable_id());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn two_live_agents_with_one_id_notice() {
    let (one, other) = (Node::start(&node(1)), Node::start(&Identity { incarnation: 2, ..node(1) }));
    one.knows(2, other.address());
    let mut noticed = one.net.duplicate();
    assert!(one.asks(2).await.is_err());
    let seen = timeout(PATIENCE, noticed.wait_for(Option::is_some)).await.unwrap().unwrap();
    assert_eq!(*seen, Some(other.address()));
    drop(seen);
    let ended = timeout(twin::GONE_AFTER + Duration::from_secs(1), noticed.wait_for(Option::is_none)).await;
    assert!(ended.map(|seen| *seen.unwrap()).is_err(), "the alarm stays while the other agent lives");
    other.net.close().await;
    drop(other);
    let ended = timeout(PATIENCE, noticed.wait_for(Option::is_none)).await;
    assert_eq!(*ended.expect("the alarm ends with its cause").unwrap(), None);
}

#[tokio::test]
async fn gossip_goes_both_ways_and_a_silent_address_is_no_error() {
    let (one, two) = pair();
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let open = async |node: &Node| GossipTransport(node.net.clone()).open(node.address()).await.unwrap();
    let (mut from_one, mut from_two) = (open(&one).await, open(&two).await);
    assert!(GossipTransport(one.net.clone()).open(one.address()).await.is_err(), "the transport opens once");
    let message = || ChitchatMessage::BadCluster;
    from_one.send(nobody.local_addr().unwrap(), message()).await.unwrap();
    from_one.send(two.address(), message()).await.unwrap();
    let (from, _) = timeout(PATIENCE, from_two.recv()).await.unwrap().unwrap();
    assert_eq!(from, one.address());
    from_two.send(from, message()).await.unwrap();
    let (from, _) = timeout(PATIENCE, from_one.recv()).await.unwrap().unwrap();
    assert_eq!(from, two.address());
}

/// Frames that a faulty peer with the token might send.
#[tokio::test]
async fn malformed_frames_are_refused_and_the_connection_stays_open() {
    let (one, two) = pair();
    one.asks(2).await.unwrap();
    let link = one.net.0.pool.of_node(&id(2)).unwrap();
    let too_long = u32::MAX.to_be_bytes().to_vec();
    let too_short = [&9_u32.to_be_bytes()[..], &[1, 2, 3]].concat();
    let nonsense = [&3_u32.to_be_bytes()[..], &[200, 200, 200]].concat();
    let trailing = [&7_u32.to_be_bytes()[..], b"\x09\x00null\x00"].concat();
    for frame in [Vec::new(), vec![0, 0], too_long, too_short, nonsense, trailing] {
        let (mut to, mut from) = link.connection.open_bi().await.unwrap();
        to.write_all(&frame).await.unwrap();
        to.finish().unwrap();
        assert!(timeout(PATIENCE, from.read_to_end(10)).await.unwrap().is_err(), "{frame:?}");
    }
    assert_eq!(two.served.asked.load(Ordering::SeqCst), 1);
    assert_eq!(one.asks(2).await, Ok(id(1).to_string()));
}

#[test]
fn the_reset_key_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("reset.key");
    let first = reset_key(&file).unwrap();
    assert_eq!(reset_key(&file).unwrap(), first);
    std::fs::write(&file, b"damaged").unwrap();
    assert_ne!(reset_key(&file).unwrap(), first);
    assert!(reset_key(directory.path()).is_err());
}
