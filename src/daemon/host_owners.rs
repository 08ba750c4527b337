//! The owners of this host: GPUs, capacity, settings, sessions, conditions, the catalogue and its images.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::engine::Engine;
use super::stores::HostStores;
use super::{Base, Start, VERSION, engine};
use crate::cluster::{Copies, Host};
use crate::events::Happening;
use crate::gpu::listed::List;
use crate::observe::{self, Observer, conditions};
use crate::runtime::{Health, Images, NoImages, Runtime};
use crate::sessions::{Journal, Record};
use crate::types::{Ballot, Condition, EventKind, NVIDIA_CLASS};
use crate::{capacity, catalogue, election, events, gpu, history, images, node, sessions};

type Conditions = watch::Receiver<Arc<Vec<Condition>>>;
type ImagesHere = watch::Receiver<Arc<images::Here>>;

/// What sessions live on: the engine, the room on this host, and the operator's settings.
struct Ground {
    runtime: Arc<dyn Runtime>,
    capacity: capacity::Handle,
    node: node::Handle,
    /// `None`: the runtime has no images.
    images: Option<images::Handle>,
}

/// Starts the owner of the event log, before everything that happens.
pub(super) fn events(base: &Base, config: watch::Receiver<events::Config>) -> (events::Handle, JoinHandle<()>) {
    events::task::spawn(events::task::Parts {
        directory: base.config.data_dir.join("events"),
        me: base.me,
        name: base.config.node.name.clone(),
        version: VERSION.to_owned(),
        config,
        clock: base.clock.clone(),
    })
}

/// Starts the owner of the GPUs.
pub(super) fn gpus(
    base: &Base,
    store: gpu::store::Store,
    events: &events::Handle,
    config: watch::Receiver<gpu::Config>,
    listed: watch::Receiver<List>,
) -> Result<(gpu::Handle, JoinHandle<()>)> {
    Ok(gpu::task::spawn(gpu::task::Parts {
        config,
        store,
        node: base.me,
        listed,
        program: engine::this_program()?,
        fictitious: base.config.dev.physical_gpus,
        events: events.clone(),
        clock: base.clock.clone(),
    }))
}

impl Start {
    /// Passes the GPUs that the engine lists to their owner, for a class that no driver is asked about.
    pub(super) fn listed_gpus(&mut self, runtime: &dyn Runtime, publish: watch::Sender<List>) {
        if self.base.config.gpu.class != NVIDIA_CLASS {
            let task = tokio::spawn(follow_list(runtime.health(), publish));
            self.owners.add("the reader of the engine's GPUs", ((), task));
        }
    }

    /// Starts the owners of this host. Each reads the snapshots of those before it.
    pub(super) fn host(
        &mut self,
        stores: HostStores,
        engine: Engine,
        election: election::Handle,
        history: watch::Sender<Option<String>>,
    ) -> Host {
        let Engine { runtime, images } = engine;
        let capacity = self.capacity(&*runtime);
        let node = self.node(stores.node, capacity.clone());
        let (images, made) = images.map(|engine| self.images(stores.images, engine, &*runtime)).unzip();
        let ground = Ground { runtime, capacity, node, images };
        let sessions = self.sessions(&ground, stores.journal, stores.fence);
        let conditions = self.conditions(&ground, &sessions);
        self.drains(&ground, &sessions);
        let catalogue = self.catalogue(stores.catalogue, &election);
        if let Some(made) = made {
            self.start_images(made, &ground, &sessions, &catalogue, &election);
        }
        let here = self.images_here(&ground, &catalogue);
        ground.images.iter().for_each(|images| self.metrics.add(images.metrics()));
        let giver = ground.images.as_ref().map(|images| self.giver(images, &catalogue));
        let observer = self.observer(&ground, &sessions, conditions, here);
        Host {
            history: self.history(&observer, &sessions, &election, history),
            doctor: self.doctor.clone(),
            observer,
            settings: ground.node,
            gpus: self.gpus.clone(),
            events: self.events.clone(),
            images: ground.images,
            giver,
            refresh: self.refresh.clone(),
            sessions,
            catalogue,
            election,
            told: Arc::default(),
            gossip: Arc::default(),
        }
    }

    fn capacity(&mut self, runtime: &dyn Runtime) -> capacity::Handle {
        let config = capacity::Config {
            runtime: runtime.kind(),
            dev: self.base.config.dev,
            data_dir: self.base.config.data_dir.clone(),
            interval: capacity::INTERVAL,
        };
        let started = capacity::task::spawn(config, runtime.health(), self.gpus.watch(), self.base.clock.clone());
        self.owners.add("the owner of capacity", started)
    }

    fn node(
        &mut self,
        (store, stored): (node::store::Store, node::store::Stored),
        capacity: capacity::Handle,
    ) -> node::Handle {
        let config = self.followed.node.clone();
        let started = node::task::spawn(config, store, stored, capacity, self.events.clone(), self.base.clock.clone());
        self.owners.add("the owner of this node's settings", started)
    }

    fn sessions(
        &mut self,
        ground: &Ground,
        (journal, records): (Journal, Vec<Record>),
        fence: Option<Ballot>,
    ) -> sessions::Handle {
        let started = sessions::task::spawn(sessions::task::Parts {
            config: self.followed.sessions.clone(),
            cluster: self.base.config.cluster.name.clone(),
            node_id: self.base.me,
            journal,
            records,
            fence,
            incarnation: self.base.incarnation,
            runtime: Arc::clone(&ground.runtime),
            images: match &ground.images {
                Some(images) => Arc::new(images.clone()),
                None => Arc::new(NoImages),
            },
            node: ground.node.watch(),
            capacity: ground.capacity.watch(),
            gpus: self.gpus.clone(),
            signs: self.watches.signs.clone(),
            events: self.events.clone(),
            clock: self.base.clock.clone(),
        });
        let sessions = self.owners.add("the owner of sessions", started);
        self.metrics.add(sessions.metrics());
        sessions
    }

    fn conditions(&mut self, ground: &Ground, sessions: &sessions::Handle) -> Conditions {
        let watches = conditions::Watches {
            report: ground.capacity.watch(),
            node: ground.node.watch(),
            sessions: sessions.watch(),
            health: ground.runtime.health(),
            cluster: self.watches.signs.clone(),
            limits: self.followed.sessions.clone(),
            images: ground.images.as_ref().map_or_else(|| watch::channel(Arc::default()).1, images::Handle::watch),
            event_log: self.events.trouble(),
            history: self.watches.history.clone(),
        };
        let (publish, conditions) = watch::channel(Arc::default());
        let task = conditions::spawn(watches, publish, self.events.clone(), self.base.clock.clone());
        self.owners.add("the owner of conditions", (conditions, task))
    }

    fn drains(&mut self, ground: &Ground, sessions: &sessions::Handle) {
        let (node, sessions) = (ground.node.watch(), sessions.watch());
        let task = observe::drains::spawn(node, sessions, self.events.clone(), self.base.clock.clone());
        self.owners.add("the watch over drains", ((), task));
    }

    fn catalogue(
        &mut self,
        (store, stored): (catalogue::store::Store, catalogue::Contents),
        election: &election::Handle,
    ) -> catalogue::Handle {
        let started = catalogue::task::spawn(catalogue::task::Parts {
            store,
            stored,
            me: self.base.me,
            leadership: election.leadership(),
            view: self.watches.view.clone(),
            replicas: Arc::new(self.peers.clone()),
            events: self.events.clone(),
            clock: self.base.clock.clone(),
        });
        self.owners.add("the owner of the catalogue", started)
    }

    /// Makes the owner of the images: sessions need its handle, and it reads their snapshot.
    fn images(
        &self,
        store: images::store::Store,
        engine: Arc<dyn Images>,
        runtime: &dyn Runtime,
    ) -> (images::Handle, images::task::Made) {
        images::task::make(images::task::Parts {
            config: self.followed.images.clone(),
            store,
            engine,
            health: runtime.health(),
            neighbours: Arc::new(self.registries.clone()),
            events: self.events.clone(),
            clock: self.base.clock.clone(),
            others: images::task::Others {
                peers: Arc::new(Copies::new(self.peers.clone(), self.watches.view.clone())),
                min_free: self.min_free(),
            },
        })
    }

    fn start_images(
        &mut self,
        made: images::task::Made,
        ground: &Ground,
        sessions: &sessions::Handle,
        catalogue: &catalogue::Handle,
        election: &election::Handle,
    ) {
        let task = made.start(images::task::Around {
            sessions: sessions.watch(),
            sessions_ready: sessions.ready(),
            catalogue: catalogue.watch(),
            node: ground.node.watch(),
            leadership: election.leadership(),
            members: self.watches.members.clone(),
            report: ground.capacity.watch(),
        });
        self.owners.add("the owner of the images", ((), task));
    }

    fn min_free(&self) -> images::MinFree {
        let limits = self.followed.sessions.clone();
        Arc::new(move || limits.borrow().min_free_disk)
    }

    /// Gives this node's images to other nodes.
    fn giver(&self, images: &images::Handle, catalogue: &catalogue::Handle) -> images::give::Giver {
        images::give::Giver::new(images::give::Parts {
            images: images.clone(),
            catalogue: catalogue.watch(),
            config: self.followed.images.clone(),
            min_free: self.min_free(),
            data_dir: self.base.config.data_dir.clone(),
        })
    }

    /// Which of the catalogue's images are here; none on a runtime without images.
    fn images_here(&mut self, ground: &Ground, catalogue: &catalogue::Handle) -> ImagesHere {
        let (publish, here) = watch::channel(Arc::default());
        if let Some(images) = &ground.images {
            let task = images::here::spawn(images.watch(), catalogue.watch(), publish);
            self.owners.add("the list of the catalogue's images that are here", ((), task));
        }
        here
    }

    fn history(
        &mut self,
        observer: &Observer,
        sessions: &sessions::Handle,
        election: &election::Handle,
        trouble: watch::Sender<Option<String>>,
    ) -> history::Handle {
        let (events, counts, metrics) = (self.events.clone(), self.events.counts(), sessions.metrics());
        let (me, leadership) = (self.base.me, election.leadership());
        let started = history::task::spawn(history::task::Parts {
            directory: self.base.config.data_dir.join("history"),
            observer: observer.clone(),
            sessions: sessions.watch(),
            view: self.watches.view.clone(),
            totals: Box::new(move || history::sampling::Totals {
                created: metrics.created(),
                ended: metrics.ended(),
                failed: metrics.failed(),
                refused: (leadership.borrow().leader == Some(me)).then(|| counts.of(EventKind::Refused)),
            }),
            on_clock_step: Box::new(move |seconds| events.record(Happening::clock_stepped(seconds), None)),
            trouble,
            clock: self.base.clock.clone(),
        });
        let history = self.owners.add("the owner of the history", started);
        self.metrics.add(history.metrics());
        history
    }

    fn observer(
        &self,
        ground: &Ground,
        sessions: &sessions::Handle,
        conditions: Conditions,
        here: ImagesHere,
    ) -> Observer {
        let sources = observe::Sources {
            node: ground.node.watch(),
            report: ground.capacity.watch(),
            sessions: sessions.watch(),
            health: ground.runtime.health(),
            conditions,
            images: here,
        };
        let facts = observe::Facts {
            address: self.base.config.sessions.endpoint_host.clone(),
            version: VERSION.to_owned(),
            runtime: ground.runtime.kind(),
        };
        Observer::new(sources, facts, self.base.clock.clone())
    }
}

/// Ends with the runtime, or with the owner of the GPUs. An engine that does not answer lists what it listed before.
async fn follow_list(mut health: watch::Receiver<Health>, publish: watch::Sender<List>) {
    loop {
        if let Health::Up(info) = &*health.borrow_and_update() {
            let list: List = Some(info.gpus.listed().into());
            publish.send_if_modified(|listed| std::mem::replace(listed, list.clone()) != list);
        }
        tokio::select! {
            () = publish.closed() => return,
            changed = health.changed() => if changed.is_err() { return },
        }
    }
}
