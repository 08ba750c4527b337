//! The record of a session in its host's journal.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Asked;
use super::decide::{Leaving, Unplaced};
use super::lifecycle::{Order, Wish};
use super::runner::Probe;
use crate::runtime::container::{Found, Launch, Mount, PortBinding, Run};
use crate::types::template::{self, Placeholder};
use crate::types::{
    Actor, Ballot, BootInstant, Deadline, EndReason, Endpoint, HealthStatus, Moment, Name, NodeId, NodeVerdict,
    Platform, Protocol, SessionActivity, SessionId, SessionProfile, SessionState, Timestamp, User, Workspace,
};

/// A session as its host remembers it. Stored as JSON, with the fields of all its parts side by side: fields may be
/// added with a default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Record {
    /// It has a container, or will have one.
    Live(Box<Live>),
    /// Its container is destroyed. It is remembered so that a retry of its key finds it.
    Tombstone(Box<Tombstone>),
}

/// A session that has a container, or will have one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    #[serde(flatten)]
    pub origin: Origin,
    #[serde(flatten)]
    pub status: Status,

    pub wish: Wish,
    /// It holds a reservation, until the runtime confirms that it does not run.
    pub reserved: bool,
    /// This host could not start it, and another may.
    #[serde(default)]
    pub unplaced: Option<Unplaced>,
    pub ports: Vec<PortBinding>,
    pub secret: Option<String>,
    pub previous_run: Option<Run>,
    pub run: Option<Run>,
    /// Why it had ended before its present start; `None` for its first.
    #[serde(default)]
    pub ended_before: Option<EndReason>,
    /// The boot in which it last ran.
    pub boot_id: u64,
    /// It ran, and another program has removed its container since, with the files in it.
    #[serde(default)]
    pub container_removed: bool,
    /// The start of the engine under which it was last seen to run.
    #[serde(default)]
    pub engine_epoch: Option<String>,
    /// What its user should know of its GPUs while this run goes on. Shown where there is no other message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,

    pub ttl: Option<Deadline>,
    /// When it is stopped because nobody used it.
    pub idle: Option<Deadline>,
    /// Ended: when its container is removed.
    pub retention: Option<Deadline>,
    /// When it ended, on the clock of the boot in `boot_id`.
    pub ended_at: Option<BootInstant>,
}

/// What is left of a session whose container is destroyed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    #[serde(flatten)]
    pub origin: Origin,
    #[serde(flatten)]
    pub status: Status,
    /// When this, too, is removed.
    pub forget: Deadline,
}

/// What was asked for and how it was placed. It never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub id: SessionId,
    pub user: User,
    /// The workspace as this session was asked for, templates not yet filled in.
    pub workspace: Workspace,
    /// The fingerprint of the request; `None` where the session was adopted from labels alone.
    pub fingerprint: Option<String>,
    pub created_at: Timestamp,
    /// The actor who asked for it; `None` where it was adopted from labels, or an older version made it.
    #[serde(default)]
    pub created_by: Option<Actor>,
    pub ballot: Ballot,
    pub attempt: u32,
    pub considered: Vec<NodeVerdict>,
    /// The hosts that could not start it before.
    #[serde(default)]
    pub tried: Vec<NodeId>,
    /// The platform of its image, as a host found out that could not start it.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// What people see of how it goes, or how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub state: SessionState,
    pub gpu_uuids: Vec<String>,
    pub container_id: Option<String>,
    pub image_digest: Option<String>,
    /// Since when it can be used.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    #[serde(default)]
    pub health: Option<HealthStatus>,
    pub last_activity_at: Timestamp,
    pub kept_alive_by: Option<String>,
    pub end_reason: Option<EndReason>,
    pub exit_code: Option<i64>,
    pub message: Option<String>,
    /// GPUs that it may still be on although it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus_leaving: Option<Leaving>,
}

impl<'de> Deserialize<'de> for Record {
    /// A tombstone is known by its `forget`. Told apart by hand, so that an error names the field.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = serde_json::Map::deserialize(deserializer)?;
        let is_tombstone = fields.get("forget").is_some_and(|forget| !forget.is_null());
        let fields = serde_json::Value::Object(fields);
        let record = if is_tombstone {
            Tombstone::deserialize(fields).map(|tombstone| Self::Tombstone(Box::new(tombstone)))
        } else {
            Live::deserialize(fields).map(|live| Self::Live(Box::new(live)))
        };
        record.map_err(D::Error::custom)
    }
}

impl Record {
    pub const fn origin(&self) -> &Origin {
        match self {
            Self::Live(live) => &live.origin,
            Self::Tombstone(tombstone) => &tombstone.origin,
        }
    }

    pub const fn status(&self) -> &Status {
        match self {
            Self::Live(live) => &live.status,
            Self::Tombstone(tombstone) => &tombstone.status,
        }
    }

    pub(super) const fn status_mut(&mut self) -> &mut Status {
        match self {
            Self::Live(live) => &mut live.status,
            Self::Tombstone(tombstone) => &mut tombstone.status,
        }
    }

    /// `None` for a tombstone.
    pub const fn live(&self) -> Option<&Live> {
        match self {
            Self::Live(live) => Some(live),
            Self::Tombstone(_) => None,
        }
    }

    pub(super) const fn live_mut(&mut self) -> Option<&mut Live> {
        match self {
            Self::Live(live) => Some(live),
            Self::Tombstone(_) => None,
        }
    }

    /// Whether it holds a reservation.
    pub fn is_reserved(&self) -> bool {
        self.live().is_some_and(|live| live.reserved)
    }

    /// What everybody sees of it that is steady.
    pub fn profile(&self, node: &Name, node_id: &NodeId, endpoint_host: &str, now: Moment) -> SessionProfile {
        let (origin, status, live) = (self.origin(), self.status(), self.live());
        let remark = || live.filter(|live| live.is_in_use()).and_then(|live| live.remark.clone());
        SessionProfile {
            id: origin.id,
            user: origin.user.clone(),
            workspace: origin.workspace.name.clone(),
            image: origin.workspace.image_reference(),
            image_digest: status.image_digest.clone(),
            node: node.clone(),
            node_id: *node_id,
            container_id: status.container_id.clone(),
            state: status.state,
            resources: origin.workspace.resources(),
            gpu_uuids: status.gpu_uuids.clone(),
            endpoints: live.map(|live| live.endpoints(endpoint_host)).unwrap_or_default(),
            created_at: origin.created_at,
            ready_at: status.ready_at,
            health: status.health,
            expires_at: live.and_then(|live| live.ttl).map(|ttl| ttl.shown(now)),
            kept_alive_by: status.kept_alive_by.clone(),
            end_reason: status.end_reason,
            exit_code: status.exit_code,
            message: status.message.clone().filter(|_| !status.is_pulled()).or_else(remark),
            attempt: origin.attempt,
        }
    }

    /// What everybody sees of it that changes while nothing happens.
    pub fn activity(&self, now: Moment) -> SessionActivity {
        let status = self.status();
        let idle = self.live().filter(|live| live.is_in_use() && live.wish != Wish::Stop).and_then(|live| live.idle);
        SessionActivity {
            last_activity_at: status.last_activity_at,
            idle_ends_at: idle.map(|idle| idle.shown(now)),
            progress: status.message.clone().filter(|_| status.is_pulled()),
        }
    }
}

impl Live {
    /// A session that was just admitted, with nothing handed out to it yet.
    pub fn admitted(admit: &super::Admit, now: Moment) -> Self {
        let Asked { user, fingerprint, workspace, attempt, tried, platform, secret, by } = admit.asked.clone();
        let deadline = |span: Option<Duration>| span.map(|span| Deadline::after(now, span));
        let (ttl, idle) =
            (deadline(workspace.ttl_seconds.map(Duration::from_secs)), deadline(workspace.idle_timeout()));
        let origin = Origin {
            id: admit.session,
            user,
            workspace,
            fingerprint: Some(fingerprint),
            created_at: now.wall,
            created_by: by,
            ballot: admit.ballot,
            attempt,
            considered: admit.considered.clone(),
            tried,
            platform,
        };
        Self { secret, ttl, idle, ..Self::reserved(origin, Status::new(now.wall), now) }
    }

    /// A session known only by the labels of its container.
    pub fn adopted(found: &Found, ballot: Ballot, now: Moment) -> Self {
        let mut workspace = Workspace::new(found.workspace.clone(), found.resources.cores, found.resources.memory);
        workspace.gpus = found.resources.gpus;
        workspace.gpu_memory_bytes = found.gpu_memory;
        workspace.image.clone_from(&found.image);
        let origin = Origin {
            id: found.session,
            user: found.user.clone(),
            workspace,
            fingerprint: None,
            created_at: found.created_at,
            created_by: None,
            ballot,
            attempt: 1,
            considered: Vec::new(),
            tried: Vec::new(),
            platform: None,
        };
        let status = Status {
            gpu_uuids: found.gpu_uuids.clone(),
            container_id: Some(found.container_id.clone()),
            message: Some("adopted from its container's labels".to_owned()),
            ..Status::new(now.wall)
        };
        Self { ports: found.ports.clone(), ..Self::reserved(origin, status, now) }
    }

    /// A session whose container was destroyed and is there again: the container is to be removed.
    pub fn found_again(tombstone: &Tombstone, now: Moment) -> Self {
        let Tombstone { origin, status, .. } = tombstone.clone();
        Self { wish: Wish::Remove, reserved: false, ..Self::reserved(origin, status, now) }
    }

    const fn reserved(origin: Origin, status: Status, now: Moment) -> Self {
        Self {
            origin,
            status,
            wish: Wish::Run,
            reserved: true,
            unplaced: None,
            ports: Vec::new(),
            secret: None,
            previous_run: None,
            run: None,
            ended_before: None,
            boot_id: now.boot_id,
            engine_epoch: None,
            remark: None,
            container_removed: false,
            ttl: None,
            idle: None,
            retention: None,
            ended_at: None,
        }
    }

    /// Whether it runs, or is paused.
    pub fn is_in_use(&self) -> bool {
        matches!(self.status.state, SessionState::Running | SessionState::Paused)
    }

    /// What its runner is to probe until it can be used.
    pub fn probe(&self) -> Option<Probe> {
        let waits = self.status.state == SessionState::Running && self.status.ready_at.is_none();
        let ready = self.origin.workspace.ready.as_ref().filter(|_| waits)?;
        let is_probed = |port: &&PortBinding| port.container_port == ready.port && port.protocol == Protocol::Tcp;
        Some(Probe {
            container_port: ready.port,
            host_port: self.ports.iter().find(is_probed)?.host_port,
            path: ready.path.clone(),
            patience: Duration::from_secs(ready.timeout_seconds),
        })
    }

    /// What a runner is to work towards; `None` where there is nothing to do. `unseen`: it is not known whether the
    /// session still runs.
    pub fn order(&self, unseen: bool) -> Option<Order> {
        let ended = self.status.state.has_ended() && self.wish != Wish::Remove;
        let at_rest = ended || self.unplaced.is_some();
        (!at_rest).then(|| Order {
            wish: self.wish,
            previous_run: self.previous_run.clone(),
            run: self.run.clone(),
            paused: self.status.state == SessionState::Paused,
            unseen,
            reserved: self.reserved,
        })
    }

    /// The container to make for it, every template filled in.
    pub fn launch(&self) -> Launch {
        let Origin { id, user, workspace, .. } = &self.origin;
        let fill = |text: &str| {
            template::fill(text, |placeholder| match placeholder {
                Placeholder::User => Some(user.as_str()),
                Placeholder::Workspace => Some(workspace.name.as_str()),
                Placeholder::Session => Some(id.as_str()),
                Placeholder::Secret => Some(self.secret.as_deref().unwrap_or_default()),
            })
        };
        let env: BTreeMap<String, String> = workspace.env.iter().map(|(k, v)| (k.clone(), fill(v))).collect();
        let volumes = workspace.volumes.iter();
        Launch {
            session: *id,
            user: user.clone(),
            workspace: workspace.name.clone(),
            image: workspace.image_reference(),
            pull: workspace.pull,
            entrypoint: workspace.entrypoint.clone(),
            command: workspace.command.clone(),
            run_as: workspace.run_as.clone(),
            init: workspace.init,
            env,
            resources: workspace.resources(),
            gpu_uuids: self.status.gpu_uuids.clone(),
            gpu_capabilities: workspace.gpu_capabilities.clone(),
            gpu_memory: workspace.gpu_memory_bytes,
            ports: self.ports.clone(),
            volumes: volumes
                .map(|v| Mount {
                    name: fill(&v.name),
                    path: v.path.clone(),
                    read_only: v.read_only,
                    user: v.name.contains(Placeholder::User.as_str()).then(|| user.clone()),
                })
                .collect(),
            tmpfs: workspace.tmpfs.clone(),
            read_only: workspace.read_only,
            shm: workspace.shm_bytes,
            stop_grace: Duration::from_secs(workspace.stop_grace_seconds),
            network: workspace.network.clone(),
        }
    }

    /// Its container is destroyed: what is remembered of it until `forget`.
    pub fn to_tombstone(&self, forget: Deadline) -> Tombstone {
        let mut status = self.status.clone();
        status.state = status.ended_state();
        Tombstone { origin: self.origin.clone(), status, forget }
    }

    fn endpoints(&self, host: &str) -> Vec<Endpoint> {
        let endpoint = |port: &PortBinding| Endpoint {
            container_port: port.container_port,
            host: host.to_owned(),
            host_port: port.host_port,
            protocol: port.protocol,
        };
        self.ports.iter().map(endpoint).collect()
    }
}

impl Origin {
    /// Whether anything in it asks for a random secret.
    pub fn wants_secret(&self) -> bool {
        self.workspace.env.values().any(|value| value.contains(Placeholder::Secret.as_str()))
    }
}

impl Status {
    const fn new(last_activity_at: Timestamp) -> Self {
        Self {
            state: SessionState::Pending,
            gpu_uuids: Vec::new(),
            container_id: None,
            image_digest: None,
            ready_at: None,
            health: None,
            last_activity_at,
            kept_alive_by: None,
            end_reason: None,
            exit_code: None,
            message: None,
            gpus_leaving: None,
        }
    }

    /// The state of a session that is over: one that ended by its own fault has failed; one that was asked to end, or
    /// ended with 0, has stopped.
    pub fn ended_state(&self) -> SessionState {
        let failed = match self.end_reason {
            Some(EndReason::OomKilled | EndReason::ImageFailed | EndReason::StartFailed | EndReason::Lost) => true,
            Some(EndReason::Exited) => self.exit_code != Some(0),
            _ => false,
        };
        if failed { SessionState::Failed } else { SessionState::Stopped }
    }

    /// Whether its message is the progress of its image.
    fn is_pulled(&self) -> bool {
        self.state == SessionState::Pulling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::decide::testing::{START, id, new_live, workspace};

    /// Records as the first version wrote them. A newer version must read them: give new fields a default.
    const LIVE: &str = include_str!("../../tests/golden/record-v1.json");
    const TOMBSTONE: &str = include_str!("../../tests/golden/record-v1-tombstone.json");

    fn read(json: &str) -> Record {
        let record: Record = serde_json::from_str(json).unwrap();
        let again: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(again, record);
        record
    }

    #[test]
    fn records_of_older_versions_are_read() {
        let record = read(LIVE);
        let live = record.live().unwrap();
        assert_eq!(live.origin.id, id("golden"));
        assert_eq!(live.origin.workspace.name, workspace().name);
        assert_eq!(live.origin.created_by, None, "it was not kept then");
        assert_eq!(live.status.state, SessionState::Running);
        assert_eq!(live.ports[0].host_port, 20_000);
    }

    #[test]
    fn tombstones_of_older_versions_are_read() {
        let Record::Tombstone(tombstone) = read(TOMBSTONE) else { panic!("it has a date to be forgotten at") };
        assert_eq!(tombstone.origin.id, id("golden"));
        assert_eq!((tombstone.status.state, tombstone.status.exit_code), (SessionState::Failed, Some(3)));
        assert_eq!(tombstone.forget.remaining(START), Duration::from_secs(3600));
    }

    #[test]
    fn a_record_that_cannot_be_read_names_the_field() {
        let error = |json: &str| serde_json::from_str::<Record>(json).unwrap_err().to_string();
        assert_eq!(error(&LIVE.replace("\"wish\"", "\"wish2\"")), "missing field `wish`");
        assert_eq!(error(&TOMBSTONE.replace("\"state\"", "\"state2\"")), "missing field `state`");
    }

    #[test]
    fn a_pinned_session_is_made_from_its_digest_and_shows_it() {
        let mut live = new_live("k");
        live.origin.workspace.image_digest = Some(format!("sha256:{}", "a".repeat(64)));
        let expected = Some(format!("desktop@sha256:{}", "a".repeat(64)));
        assert_eq!(live.launch().image, expected);
        let record = Record::Live(Box::new(live));
        assert_eq!(
            record.profile(&"one".parse().unwrap(), &NodeId::from_bytes([1; 10]), "host", START).image,
            expected
        );
    }

    #[test]
    fn a_tombstone_shows_how_it_ended_and_no_endpoints() {
        let mut live = new_live("k");
        live.ports = vec![PortBinding { container_port: 80, protocol: crate::types::Protocol::Tcp, host_port: 20_000 }];
        live.ttl = Some(Deadline::after(START, Duration::from_secs(60)));
        live.status.end_reason = Some(EndReason::OomKilled);
        let shown =
            |record: Record| record.profile(&"one".parse().unwrap(), &NodeId::from_bytes([1; 10]), "host", START);
        let forget = Deadline::after(START, Duration::from_secs(3600));
        let after = shown(Record::Tombstone(Box::new(live.to_tombstone(forget))));
        let before = shown(Record::Live(Box::new(live)));
        assert_eq!((before.endpoints.len(), before.expires_at.is_some()), (1, true));
        let state = SessionState::Failed;
        assert_eq!(after, SessionProfile { state, endpoints: Vec::new(), expires_at: None, ..before });
    }

    #[test]
    fn the_progress_of_a_pull_is_activity_and_what_went_wrong_is_not() {
        let mut live = new_live("k");
        let now = crate::node::fixture::moment();
        let mut seen = |state, message: &str| {
            (live.status.state, live.status.message) = (state, Some(message.to_owned()));
            let record = Record::Live(Box::new(live.clone()));
            let profile = record.profile(&"one".parse().unwrap(), &NodeId::from_bytes([1; 10]), "host", now);
            let shown = crate::types::Session::of(&profile, Some(&record.activity(START))).message;
            assert_eq!(shown.as_deref(), Some(message));
            (profile.message, record.activity(START).progress)
        };
        assert_eq!(seen(SessionState::Pulling, "43 %"), (None, Some("43 %".to_owned())));
        assert_eq!(seen(SessionState::Failed, "no such image"), (Some("no such image".to_owned()), None));
    }

    #[test]
    fn templates_are_filled_in_for_one_session() {
        let mut live = new_live("k");
        live.secret = Some("s3cret".to_owned());
        live.origin.workspace.env = BTreeMap::from([("A".into(), "{user}:{session}:{secret}:{other}".into())]);
        live.origin.workspace.volumes = vec![crate::types::VolumeMount {
            name: "home-{user}-{workspace}".into(),
            path: "/home".into(),
            read_only: false,
            roam: false,
        }];
        let launch = live.launch();
        assert_eq!(launch.env["A"], format!("alice:{}:s3cret:{{other}}", live.origin.id));
        let mount = &launch.volumes[0];
        assert_eq!((mount.name.as_str(), mount.user.as_ref()), ("home-alice-desktop", Some(&launch.user)));
    }
}
