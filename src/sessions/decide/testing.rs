//! A host to decide on, for tests.

use super::{Context, Registry, Report};
use crate::capacity;
use crate::ledger::PortRange;
use crate::node;
use crate::runtime::container::{Container, Exit, Found, Run};
use crate::sessions::lifecycle::Sight;
use crate::sessions::record::{Live, Record};
use crate::sessions::{Admit, Asked, Command, Config, Error};
use crate::types::{
    Ballot, BootInstant, Bytes, Cores, EndReason, Moment, Name, NodeId, Period, Port, Protocol, Resources, SessionId,
    SessionRequest, SessionState, Settings, Timestamp, Workspace,
};

pub(in crate::sessions) fn config() -> Config {
    Config {
        max_sessions_per_user: 0,
        max_sessions_per_node: 0,
        keep_ended: Period::secs(3600),
        stopped_retention: Period::secs(600),
        min_free_disk: Bytes::ZERO,
        max_foreign_gpu_memory: Bytes::gib(1),
        port_range: PortRange { first: 20_000, last: 20_099 },
        networks: Vec::new(),
        endpoint_host: "host".to_owned(),
    }
}

pub(in crate::sessions) fn cluster() -> Name {
    "test".parse().unwrap()
}

pub(in crate::sessions) fn node_id() -> NodeId {
    NodeId::from_bytes([7; 10])
}

pub(in crate::sessions) fn id(key: &str) -> SessionId {
    SessionId::of_key(&cluster(), key)
}

pub(in crate::sessions) fn node_state() -> node::State {
    node::State {
        id: node_id(),
        name: "node-1".parse().unwrap(),
        settings: Settings::default(),
        declared: Vec::new(),
        drain: None,
    }
}

pub(in crate::sessions) const START: Moment =
    Moment { wall: Timestamp::from_millis(1_700_000_000_000), boot: BootInstant::from_millis(1_000_000), boot_id: 1 };

/// A workspace of one core, 1 GiB and one port.
pub(in crate::sessions) fn workspace() -> Workspace {
    let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
    workspace.image = Some("desktop:1".to_owned());
    workspace.ports = vec![Port { container_port: 80, protocol: Protocol::Tcp }];
    workspace
}

/// An offer of `workspace` under `key`.
pub(in crate::sessions) fn offer(key: &str, workspace: Workspace) -> Admit {
    let request = SessionRequest::new(workspace.name.clone(), "alice".parse().unwrap());
    let asked = Asked {
        user: request.user.clone(),
        fingerprint: request.fingerprint(),
        workspace,
        attempt: 1,
        tried: Vec::new(),
        platform: None,
        secret: None,
        by: Some(crate::types::sample::root()),
    };
    Admit {
        cluster: cluster(),
        ballot: Ballot { term: 1, node: node_id() },
        destination: node_id(),
        session: id(key),
        asked,
        considered: Vec::new(),
    }
}

pub(in crate::sessions) fn new_live(key: &str) -> Live {
    Live::admitted(&offer(key, workspace()), START)
}

/// A host of six cores and 6 GiB with nothing on it.
pub(super) struct Host {
    pub(super) registry: Registry,
    pub(super) now: Moment,
    pub(super) node: node::State,
    pub(super) report: capacity::Report,
}

impl Host {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: Config) -> Self {
        let mut registry = Registry::new(config, cluster(), node_id(), None, Vec::new());
        (registry.engine_up, registry.is_listed) = (true, true);
        Self {
            registry,
            now: START,
            node: node_state(),
            report: capacity::Report { disks: Vec::new(), swap: None, ..node::fixture::report() },
        }
    }

    /// Decides, and takes every decision as written.
    pub(super) fn decide<T>(&mut self, decide: impl FnOnce(&mut Registry, &Context<'_>) -> T) -> T {
        let decided = self.decide_unwritten(decide);
        self.registry.committed();
        decided
    }

    pub(super) fn decide_unwritten<T>(&mut self, decide: impl FnOnce(&mut Registry, &Context<'_>) -> T) -> T {
        let cx = Context {
            now: self.now,
            node: &self.node,
            report: &self.report,
            duplicated: false,
            port_usable: &|_| true,
            draw_secret: &|| "s3cret".to_owned(),
        };
        decide(&mut self.registry, &cx)
    }

    /// The daemon restarts: only what is written is left.
    pub(super) fn restart(&mut self) {
        let records = self.registry.records().cloned().collect();
        let fence = self.registry.fence;
        self.registry = Registry::new(self.registry.config.clone(), cluster(), node_id(), fence, records);
        (self.registry.engine_up, self.registry.is_listed) = (true, true);
    }
}

pub(super) fn run(n: u32) -> Run {
    Run(n.to_string())
}

pub(super) fn exit(n: u32, code: i64) -> Exit {
    Exit::new(run(n), code)
}

pub(super) fn record<'a>(host: &'a Host, key: &str) -> &'a Record {
    host.registry.record(&id(key)).unwrap()
}

pub(super) fn live<'a>(host: &'a Host, key: &str) -> &'a Live {
    record(host, key).live().unwrap()
}

pub(super) fn state(host: &Host, key: &str) -> (SessionState, Option<EndReason>) {
    let status = record(host, key).status();
    (status.state, status.end_reason)
}

pub(super) fn admit(host: &mut Host, key: &str, workspace: Workspace) -> Result<bool, Error> {
    let offer = offer(key, workspace);
    host.decide(|registry, cx| registry.admit(&offer, cx))
}

pub(super) fn saw(host: &mut Host, key: &str, sight: Sight) {
    host.decide(|registry, cx| registry.report(&id(key), Report::Saw(sight), cx));
}

pub(super) fn command(host: &mut Host, key: &str, command: Command) -> Result<(), Error> {
    host.decide(|registry, cx| registry.command(&id(key), &command, cx))
}

pub(super) fn running(key: &str, workspace: Workspace) -> Host {
    let mut host = Host::new();
    admit(&mut host, key, workspace).unwrap();
    saw(&mut host, key, Sight::Running(run(1)));
    host
}

pub(super) fn found(key: &str, node: NodeId, container: Container) -> Found {
    Found {
        container_id: "c1".to_owned(),
        renamed: None,
        node,
        session: id(key),
        user: "alice".parse().unwrap(),
        workspace: "desktop".parse().unwrap(),
        resources: Resources::new(Cores::whole(2), Bytes::gib(1), 0),
        gpu_uuids: Vec::new(),
        gpu_memory: None,
        image: Some("desktop:1".to_owned()),
        ports: Vec::new(),
        created_at: START.wall,
        container: Some(container),
    }
}
