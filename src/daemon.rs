//! The composition root: builds every part from the configuration, runs them, and stops them in order.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::cluster::{Cluster, Host, Leader, Mesh, Peers, Rpc};
use crate::config::Config;
use crate::http::Api;
use crate::identity::{Credentials, Token};
use crate::net::gossip::GossipTransport;
use crate::net::{Hello, Net};
use crate::placement::Placer;
use crate::runtime::Runtime;
use crate::runtime::docker::{self, DockerRuntime};
use crate::runtime::process::{self, ProcessRuntime};
use crate::sessions::Journal;
use crate::types::{ClusterMode, NodeId, OnUnknown, RuntimeKind};
use crate::{
    capacity, catalogue, cluster, config, election, gossip, http, identity, net, node, observe, placement, sessions,
    wire,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Between two rounds of gossip. It is read once at start, and what it costs grows with the cluster.
const GOSSIP_EVERY: Duration = Duration::from_secs(1);
/// An address of nobody (RFC 5737): the way there is the way out.
const ANYWHERE: &str = "192.0.2.1:9";
/// How long answers in progress may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// A session that could open the lock's file could take the lock.
const LOCK_MODE: u32 = 0o600;
/// How long the data directory may still be another's: an agent that was killed while it started a
/// session's process leaves its lock to that process, until it runs its own program.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is asked for again meanwhile.
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// The data directory holds secrets: nobody but the agent looks into it.
const DATA_DIR_MODE: u32 = 0o700;
/// What sessions of the process runtime may run as another user; they pass through, and see nothing.
const DATA_DIR_MODE_PROCESS: u32 = 0o711;

/// Runs the agent until it is told to stop (SIGTERM or SIGINT) or one of its parts ends.
/// Sessions go on without it.
///
/// # Errors
/// It could not be started, or a part ended unasked: systemd is to start it again.
pub async fn run(config: Config, dev: bool) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let daemon = Daemon::build(config, dev).await?;
    let (stop, stopping) = daemon.shutdown;
    let api = daemon.api;
    let addresses = api.addresses.clone();
    debug_assert!(!*stopping.borrow());
    tracing::info!(
        node = %daemon.node_id,
        version = env!("CARGO_PKG_VERSION"),
        http = %addresses.listen,
        status = addresses.status_listen.map(tracing::field::display),
        mesh = daemon.membership.net.as_ref().and_then(|net| net.local_addr().ok()).map(tracing::field::display),
        socket = %addresses.socket.display(),
        "the agent is up"
    );
    let mut serving = tokio::spawn(api.run());
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        part = first_to_end(daemon.owners) => Some(part),
        _ = &mut serving => Some("the HTTP API"),
    };

    stop.send_replace(true);
    if let Some(part) = ended {
        bail!("{part} ended unasked");
    }
    tracing::info!("stopping; sessions go on");
    daemon.membership.leave().await;
    if tokio::time::timeout(DRAIN, serving).await.is_err() {
        tracing::warn!("some answers were cut off after {} s", DRAIN.as_secs());
    }
    Ok(())
}

/// Every part, built and running.
struct Daemon {
    node_id: NodeId,
    api: http::Bound,
    membership: Membership,
    owners: Vec<(&'static str, JoinHandle<()>)>,
    shutdown: (watch::Sender<bool>, watch::Receiver<bool>),
    _lock: File,
}

/// What tells the other nodes that this one goes.
struct Membership {
    election: election::Handle,
    gossip: Option<gossip::Handle>,
    net: Option<Net>,
}

impl Membership {
    /// Hands over, says goodbye, closes the mesh: in this order.
    async fn leave(self) {
        self.election.hand_over().await;
        if let Some(gossip) = self.gossip {
            let _ = gossip.leave().await;
        }
        if let Some(net) = self.net {
            net.close().await;
        }
    }
}

impl Daemon {
    async fn build(config: Config, dev: bool) -> Result<Self> {
        let lock = claim(&config).await?;
        let token = token(&config.cluster.token_file)?;
        let clock = Clock::system().context("the boot clock cannot be read")?;
        let started = clock.now().wall;
        let data_dir = &config.data_dir;
        let (node_store, kept) = node::store::Store::open(data_dir, node::store::machine_id().as_deref(), started)?;
        let (roster, remembered) = gossip::roster::Store::open(data_dir, started)?;
        let (ballots, promised) = election::store::Store::open(data_dir, started)?;
        let (me, incarnation) = (kept.id, remembered.incarnation);
        let runtime = runtime(&config, &me)?;
        let (name, mode) = (config.cluster.name.clone(), config.cluster.mode);

        // Those who read these are made before those who say them.
        let (publish_directory, directory) = watch::channel(Arc::default());
        let (publish_view, view) = watch::channel(Arc::default());
        // Without a mesh there is nobody to look for.
        let looking = election::Members { untried: token.is_some(), ..election::Members::default() };
        let (publish_members, members) = watch::channel(Arc::new(looking));

        let net = match token {
            Some(token) => Some(mesh(&config, token, &me, incarnation, directory).await?),
            None => None,
        };
        let peers = Peers(net.clone());
        let (election, election_task) = election::task::spawn(election::task::Parts {
            config: election::Config::new(mode),
            me,
            store: ballots,
            kept: promised.clone(),
            members,
            peers: Arc::new(peers.clone()),
            clock: clock.clone(),
            seed: seed_of(&me, incarnation),
        });
        let observed = capacity::Config {
            runtime: runtime.kind(),
            dev: config.dev,
            fallback_disk: data_dir.clone(),
            interval: capacity::INTERVAL,
        };
        let (capacity, capacity_task) = capacity::task::spawn(observed, runtime.health(), clock.clone());
        let (publish_conditions, conditions) = watch::channel(Arc::default());
        let (node, node_task) = node::task::spawn(config.node, node_store, kept, capacity.clone(), clock.clone());
        let (journal, records) = Journal::open(data_dir, started)?;
        let min_free_disk = config.sessions.min_free_disk;
        let placement_config = placement::Config {
            strategy: config.placement.strategy,
            on_unknown: config.placement.on_unknown.unwrap_or(OnUnknown::of(mode)),
            max_sessions_per_user: config.sessions.max_sessions_per_user,
        };
        let endpoint_host = config.sessions.endpoint_host.clone();
        let (publish_signs, signs) = watch::channel(Arc::default());
        let (sessions, sessions_task) = sessions::task::spawn(sessions::task::Parts {
            config: config.sessions,
            cluster: name.clone(),
            node_id: me,
            journal,
            records,
            fence: promised.highest,
            incarnation,
            runtime: runtime.clone(),
            node: node.watch(),
            capacity: capacity.watch(),
            signs: signs.clone(),
            clock: clock.clone(),
        });
        let watches = observe::conditions::Watches {
            report: capacity.watch(),
            node: node.watch(),
            sessions: sessions.watch(),
            health: runtime.health(),
            cluster: signs,
            min_free_disk,
        };
        let conditions_task = observe::conditions::spawn(watches, publish_conditions, clock.clone());
        let (catalogue_store, kept) = catalogue::store::Store::open(data_dir, &me, started)?;
        let (catalogue, catalogue_task) = catalogue::task::spawn(catalogue::task::Parts {
            store: catalogue_store,
            kept,
            me,
            leadership: election.leadership(),
            view: view.clone(),
            replicas: Arc::new(peers.clone()),
            clock: clock.clone(),
        });

        let facts = observe::Facts { address: endpoint_host, version: VERSION.to_owned(), runtime: runtime.kind() };
        let (publish_images, images) = watch::channel(cluster::images::Images::default());
        let images_task = cluster::images::spawn(runtime.clone(), catalogue.watch(), sessions.watch(), publish_images);
        let sources = observe::Sources {
            node: node.watch(),
            report: capacity.watch(),
            sessions: sessions.watch(),
            health: runtime.health(),
            conditions,
            images,
        };
        let observer = observe::Observer::new(sources, facts, clock.clone());
        let host = Host {
            observer,
            settings: node,
            sessions: sessions.clone(),
            catalogue: catalogue.clone(),
            election: election.clone(),
            told: Arc::default(),
            gossip: Arc::default(),
        };
        let hosts = Mesh::new(me, host.clone(), peers);
        let (placement, placement_task) = placement::task::spawn(placement::task::Parts {
            cluster: name.clone(),
            config: placement_config,
            leadership: election.leadership(),
            view: view.clone(),
            hosts: Arc::new(hosts.clone()),
            clock: clock.clone(),
        });
        let fleet = placement.fleet();
        let placer = Placer::new(name.clone(), catalogue.clone(), placement);
        let leader =
            Leader { host: host.clone(), fleet, placer, leadership: election.leadership(), view: view.clone() };
        let mut owners = vec![
            ("the owner of the election", election_task),
            ("the owner of capacity", capacity_task),
            ("the owner of this node's settings", node_task),
            ("the owner of sessions", sessions_task),
            ("the owner of conditions", conditions_task),
            ("the owner of the catalogue", catalogue_task),
            ("the owner of the images that are here", images_task),
            ("the owner of placements", placement_task),
        ];
        let mut told = None;
        if let Some(net) = &net {
            net.serve(Arc::new(Rpc::new(host.clone(), leader.clone(), Peers(Some(net.clone())))));
            let gossip = gossip::Config {
                me,
                cluster: name.clone(),
                advertise: advertised(&config.cluster, net)?,
                seeds: config.cluster.seeds,
                mode,
                interval: GOSSIP_EVERY,
            };
            let channels =
                gossip::Channels { directory: publish_directory, view: publish_view, members: publish_members };
            let source = published(host.clone(), mode);
            let transport = GossipTransport(net.clone());
            let started =
                gossip::task::spawn(gossip, &transport, source, (roster, remembered), channels, clock.clone());
            let (gossip, gossip_task) = started.await?;
            owners.push(("the owner of gossip", gossip_task));
            // It is set this once.
            let _ = host.gossip.set(gossip.clone());
            told = Some(gossip);
        }
        let signs_task = cluster::signs::spawn(mode, net.clone(), view, catalogue.watch(), publish_signs);
        owners.push(("the owner of the cluster's signs", signs_task));

        let membership = Membership { election, gossip: told, net };
        let api = Api { name, mode, cluster: Cluster::new(hosts, leader), clock, ready: sessions.ready(), dev };
        let shutdown = watch::channel(false);
        let api = http::serve(config.http, api, shutdown.1.clone()).await?;
        Ok(Self { node_id: me, api, membership, owners, shutdown, _lock: lock })
    }
}

/// Joins the mesh.
async fn mesh(
    config: &Config,
    token: Token,
    me: &NodeId,
    incarnation: u64,
    directory: watch::Receiver<Arc<gossip::Directory>>,
) -> Result<Net> {
    let (cluster, node) = (config.cluster.name.clone(), *me);
    let credentials = spawn_blocking(move || Credentials::new(&token, &cluster, &node, wire::PROTOCOL)).await??;
    // The sender goes: until the token is rotated, the credentials stay as they are.
    let (_, credentials) = watch::channel(Arc::new(credentials));
    let hello = Hello {
        cluster: config.cluster.name.clone(),
        node: *me,
        name: config.node.name.clone(),
        incarnation,
        version: VERSION.to_owned(),
        mode: config.cluster.mode,
    };
    let reset_key =
        net::reset_key(&config.data_dir.join("reset-key")).context("the mesh's reset key cannot be kept")?;
    Ok(Net::bind(config.cluster.listen, hello, &reset_key, credentials, directory)?)
}

/// What the others are told of where this node is.
fn advertised(cluster: &config::Cluster, net: &Net) -> Result<SocketAddr> {
    let bound = net.local_addr().context("the mesh's own address is not known")?;
    if let Some(advertise) = cluster.advertise {
        return Ok(advertise);
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let source = cluster.seeds.iter().find_map(|seed| source_towards(seed));
    // Without a seed others come to this node: they see its address, and it tells the way out to anywhere.
    let source = source.or_else(|| source_towards(ANYWHERE)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    Ok(SocketAddr::new(source, bound.port()))
}

/// The address of this host that packets to `there` come from. Nothing is sent.
fn source_towards(there: &str) -> Option<IpAddr> {
    there.to_socket_addrs().ok()?.find_map(|there| {
        let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(there).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

/// What gossip tells of this node.
fn published(host: Host, mode: ClusterMode) -> gossip::task::Source {
    Arc::new(move || {
        let sessions = host.sessions.snapshot();
        let here = sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id));
        gossip::keys::Published {
            profile: host.observer.observed().profile,
            usage: host.observer.usage(),
            sessions: here.map(|(_, session)| Arc::clone(session)).collect(),
            catalogue: host.catalogue.snapshot().digest.clone(),
            mode,
        }
    })
}

/// Different on every node and at every start.
fn seed_of(me: &NodeId, incarnation: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me.as_str(), incarnation).hash(&mut hasher);
    hasher.finish()
}

/// Makes the data directory and takes it for this process alone.
async fn claim(config: &Config) -> Result<File> {
    let directory = &config.data_dir;
    let mode = if config.runtime.kind == RuntimeKind::Process { DATA_DIR_MODE_PROCESS } else { DATA_DIR_MODE };
    let shown = directory.display();
    // One that is there keeps its mode: it may be a directory that others use too.
    if !directory.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(directory)
            .with_context(|| format!("the data directory {shown} (node.data_dir) cannot be made"))?;
    }
    let path = directory.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).mode(LOCK_MODE).open(&path);
    let lock = lock.with_context(|| format!("{} cannot be made", path.display()))?;
    let began = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(LOCK_AGAIN).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "another agent runs on the data directory {shown}: stop that one, or give this one its own node.data_dir"
            ),
            Err(e) => return Err(e).with_context(|| format!("{} cannot be locked", path.display())),
        }
    }
}

/// A token that is there must be a good one. One that is not there leaves the node alone.
fn token(file: &Path) -> Result<Option<Token>> {
    match identity::read(file) {
        Ok(token) => Ok(Some(token)),
        Err(_) if fs::metadata(file).is_err_and(|e| e.kind() == ErrorKind::NotFound) => {
            tracing::info!(file = %file.display(), "there is no cluster token: this node stays alone");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn runtime(config: &Config, node: &NodeId) -> Result<Arc<dyn Runtime>> {
    let cluster = config.cluster.name.clone();
    match config.runtime.kind {
        RuntimeKind::Docker => Ok(DockerRuntime::new(docker::Config {
            cluster,
            node: *node,
            host: config.runtime.docker_host.clone(),
            cpu_mode: config.runtime.cpu_mode,
            cap_allow: config.runtime.cap_allow.clone(),
            publish_address: config.runtime.publish_address,
        })?),
        RuntimeKind::Process => {
            let (cores, memory) = capacity::probe::host_bounds();
            Ok(Arc::new(ProcessRuntime::open(process::Config {
                directory: config.data_dir.join("process"),
                cluster,
                node: *node,
                user: config.runtime.process_user.clone(),
                shim: this_program()?,
                cores,
                memory,
            })?))
        }
    }
}

/// This program's file, also where it was replaced by a newer one since it was started.
///
/// # Errors
/// The kernel does not say.
pub fn this_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("this program's own path is not known")?;
    let text = path.to_string_lossy();
    Ok(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

/// The name of the first owner that ends. None does while the daemon is well.
async fn first_to_end(owners: Vec<(&'static str, JoinHandle<()>)>) -> &'static str {
    let (names, tasks): (Vec<_>, Vec<_>) = owners.into_iter().unzip();
    let (ended, index, _) = futures_util::future::select_all(tasks).await;
    if let Err(error) = ended {
        tracing::error!(part = names[index], %error, "a part of the daemon has failed");
    }
    names[index]
}
