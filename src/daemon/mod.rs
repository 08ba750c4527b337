//! The composition root: builds every part from the configuration, runs them, and stops them in order.
//!
//! [`run`] is the life of an agent, and `Daemon::build` is its start, told in stages. A stage is handed what the
//! stages before it made:
//!
//! 1. `lock` claims the data directory, `stores` opens what is in it.
//! 2. `knots` makes the channels that are read before their owner starts. `host_owners` starts the owner of the GPUs,
//!    which the runtime hands over; `engine` makes the runtime, and `mesh` joins the other nodes.
//!    `live` publishes the part of the configuration that may change, which `refresh` owns.
//! 3. `host_owners` starts the owners of this host, `cluster_owners` those of the cluster. The election starts before
//!    both, since the catalogue follows its leader.
//! 4. The HTTP API is bound last: whoever can connect finds all the owners there.
//!
//! `owners` waits for an owner that ends, `shutdown` stops the agent.

mod address;
mod cluster_owners;
mod doctor;
mod engine;
mod host_owners;
mod knots;
mod live;
mod lock;
mod mesh;
mod owners;
mod refresh;
mod shutdown;
mod stores;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::cluster::{Cluster, Mesh, Peers, Registries};
use crate::config::Config;
use crate::http::{self, Api, Certificate};
use crate::metrics::Sources;
use crate::types::{Actor, NodeId};
use crate::{events, gpu, node};

pub use engine::this_program;
pub use refresh::Source;

use knots::Watches;
use live::Followed;
use owners::Owners;
use shutdown::{Shutdown, Signals, Told};
use stores::Stores;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the agent until it is told to stop (SIGTERM or SIGINT) or one of its parts ends. At SIGHUP it reads the
/// configuration again, from `source`. Sessions go on without it.
///
/// # Errors
/// It could not be started, or a part ended unasked: systemd is to start it again.
pub async fn run(config: Config, source: Source) -> Result<()> {
    let signals = Signals::listen()?;
    let daemon = Daemon::build(config, source).await?;
    let mut running = daemon.serve();
    let ended = running.until_the_end(signals).await;

    running.shutdown.begin();
    if let Some(part) = ended {
        bail!("{part} ended unasked");
    }
    running.shutdown.drain(running.api).await;
    Ok(())
}

/// Every part, built; the owners run, and callers of the API wait.
struct Daemon {
    me: NodeId,
    api: http::Bound,
    refresh: node::refresh::Handle,
    owners: Owners,
    shutdown: Shutdown,
}

/// The daemon while it serves.
struct Running {
    me: NodeId,
    api: JoinHandle<()>,
    refresh: node::refresh::Handle,
    owners: Owners,
    shutdown: Shutdown,
}

/// What is known before any part is made.
struct Base {
    config: Config,
    me: NodeId,
    /// Which life of the agent this is: grows with every start.
    incarnation: u64,
    clock: Clock,
}

/// What every owner is started with. `host_owners` and `cluster_owners` add a method for each.
struct Start {
    base: Base,
    events: events::Handle,
    gpus: gpu::Handle,
    peers: Peers,
    watches: Watches,
    followed: Followed,
    metrics: Sources,
    refresh: node::refresh::Handle,
    doctor: crate::doctor::task::Handle,
    registries: Registries,
    owners: Owners,
}

impl Daemon {
    async fn build(config: Config, source: Source) -> Result<Self> {
        let lock = lock::claim(&config).await?;
        let token = refresh::token(&config.cluster.token_file)?;
        if token.is_none() {
            let file = config.cluster.token_file.display();
            tracing::info!(%file, "there is no cluster token: this node stays alone");
        }
        let certificate = config.http.tls.as_ref().map(Certificate::read).transpose()?;
        let clock = Clock::system().context("the boot clock cannot be read")?;
        let stores = Stores::open(&config.data_dir, clock.now().wall)?;
        let base = Base { config, me: stores.me(), incarnation: stores.incarnation(), clock };

        let (live, followed) = live::tie(&base.config, certificate.clone());
        let mut owners = Owners::default();
        let (watches, publishers) = knots::tie(token.is_some());
        let events = owners.add("the owner of the event log", host_owners::events(&base, followed.events.clone()));
        // Before the runtime, which hands the devices over.
        let gpus = host_owners::gpus(&base, stores.gpus, &events, followed.gpu.clone(), watches.listed.clone())?;
        let gpus = owners.add("the owner of the GPUs", gpus);
        let engine = engine::open(&base, &gpus)?;
        let net = mesh::join(&base, token.clone(), watches.directory.clone()).await?;
        let (refresh, refreshes) = node::refresh::channel();
        let (doctor, checkups) = crate::doctor::task::channel();

        let peers = Peers(net.clone());
        let (registries, mut metrics) = (Registries::default(), Sources::default());
        metrics.add(events.counts());
        net.iter().for_each(|net| metrics.add(net.clone()));
        let mut start =
            Start { base, events, gpus, peers, watches, followed, metrics, refresh, doctor, registries, owners };
        start.listed_gpus(&*engine.runtime, publishers.listed);
        let election = start.election(stores.ballots);
        let host = start.host(stores.host, engine, election.clone(), publishers.history);
        let hosts = Mesh::new(start.base.me, host.clone(), start.peers.clone());
        let leader = start.placement(&host, &hosts);
        start.rollout(&hosts, &leader);
        let mut gossip = None;
        if let Some(net) = &net {
            mesh::answer(net, &host, &leader);
            gossip = Some(start.gossip(net, &host, stores.roster, publishers.gossip).await?);
        }
        start.signs(net.clone(), &host, publishers.signs);
        start.news(&host);

        let files = refresh::Files { token, certificate };
        let dev = source.dev;
        let task = refresh::spawn(source, start.base.config.clone(), files, live, start.events.clone(), refreshes);
        start.owners.add("the owner of the configuration", ((), task));

        let cluster = Cluster::new(hosts, leader);
        start.registries.join(&cluster);
        let (config, gpus, clock) = (start.followed.doctor.clone(), start.gpus.clone(), start.base.clock.clone());
        let task = doctor::spawn(checkups, doctor::Parts { config, cluster: cluster.clone(), gpus, clock });
        start.owners.add("the owner of the checkups", ((), task));
        let (stop, stopping) = watch::channel(false);
        let api = bind(&start.base, start.followed.http, start.metrics, dev, cluster, stopping).await?;
        let events = start.events;
        let shutdown = Shutdown { stop, election, gossip, net, events, _lock: lock };
        Ok(Self { me: start.base.me, api, refresh: start.refresh, owners: start.owners, shutdown })
    }

    /// Lets the callers in.
    fn serve(self) -> Running {
        let Self { me, api, refresh, owners, shutdown } = self;
        tracing::info!(
            node = %me,
            version = VERSION,
            http = %api.addresses.listen,
            status = api.addresses.status_listen.map(tracing::field::display),
            mesh = shutdown.net.as_ref().and_then(|net| net.local_addr().ok()).map(tracing::field::display),
            socket = %api.addresses.socket.display(),
            "the agent is up"
        );
        Running { me, api: tokio::spawn(api.run()), refresh, owners, shutdown }
    }
}

impl Running {
    /// Waits until the operator stops the agent: `None`; or until a part ends, which it names.
    async fn until_the_end(&mut self, mut signals: Signals) -> Option<&'static str> {
        loop {
            tokio::select! {
                stops = signals.next() => match stops {
                    Told::Stop => return None,
                    Told::Refresh => {
                        let (refresh, by) = (self.refresh.clone(), Actor::Node { id: self.me });
                        // The owner logs what it did.
                        tokio::spawn(async move { refresh.refresh(by).await });
                    }
                },
                owner = self.owners.first_to_end() => return Some(owner),
                _ = &mut self.api => return Some("the HTTP API"),
            }
        }
    }
}

/// Binds the HTTP API: callers may connect, and wait until it is served.
async fn bind(
    base: &Base,
    followed: http::Followed,
    metrics: Sources,
    dev: bool,
    cluster: Cluster,
    stopping: watch::Receiver<bool>,
) -> Result<http::Bound> {
    let (name, mode) = (base.config.cluster.name.clone(), base.config.cluster.mode);
    let ready = cluster.host().sessions.ready();
    let api = Api { name, mode, cluster, clock: base.clock.clone(), ready, metrics, dev };
    Ok(http::serve(base.config.http.clone(), followed, api, stopping).await?)
}
