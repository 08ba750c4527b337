//! What is remembered of a session: one journal entry.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Asked;
use super::decide::Unplaced;
use super::lifecycle::{Order, Wish};
use crate::runtime::container::{Found, Launch, Mount, PortBinding, Run};
use crate::types::{
    Actor, Ballot, BootInstant, Deadline, EndReason, Endpoint, Moment, Name, NodeId, NodeVerdict, SessionActivity,
    SessionId, SessionProfile, SessionState, Timestamp, User, Workspace,
};

/// A session as its host remembers it. Stored as JSON: fields may be added with a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: SessionId,
    pub user: User,
    /// The workspace as this session was asked for, templates not yet filled in.
    pub workspace: Workspace,
    /// The fingerprint of the request; `None` where the session was adopted from labels alone.
    pub fingerprint: Option<String>,
    pub ballot: Ballot,
    pub attempt: u32,
    pub considered: Vec<NodeVerdict>,
    /// The hosts that could not start it before.
    #[serde(default)]
    pub tried: Vec<NodeId>,
    /// This host could not start it either, and another may.
    #[serde(default)]
    pub unplaced: Option<Unplaced>,
    pub created_at: Timestamp,
    /// The actor who asked for it; `None` where it was adopted from labels, or an older version made it.
    #[serde(default)]
    pub created_by: Option<Actor>,

    pub wish: Wish,
    pub state: SessionState,
    /// It holds a reservation, until the runtime confirms that it does not run.
    pub reserved: bool,
    pub gpu_uuids: Vec<String>,
    pub ports: Vec<PortBinding>,
    pub secret: Option<String>,
    pub container_id: Option<String>,
    pub image_digest: Option<String>,
    pub previous_run: Option<Run>,
    pub run: Option<Run>,
    /// The boot in which it last ran.
    pub boot_id: u64,

    pub ttl: Option<Deadline>,
    /// When it ends for want of activity.
    pub idle: Option<Deadline>,
    pub last_activity_at: Timestamp,
    pub kept_alive_by: Option<String>,
    /// Ended: when its container is removed.
    pub retention: Option<Deadline>,
    /// Its container is destroyed: when the record itself is forgotten.
    pub forget: Option<Deadline>,

    /// When it ended, on the clock of the boot in `boot_id`.
    pub ended_at: Option<BootInstant>,
    pub end_reason: Option<EndReason>,
    pub exit_code: Option<i64>,
    pub message: Option<String>,
}

impl Record {
    /// A session that was just admitted.
    pub fn admitted(admit: &super::Admit, now: Moment) -> Self {
        let Asked { user, fingerprint, workspace, attempt, tried, secret, by } = admit.asked.clone();
        let deadline = |secs: Option<u64>| secs.map(|secs| Deadline::after(now, Duration::from_secs(secs)));
        Self {
            fingerprint: Some(fingerprint),
            attempt,
            considered: admit.considered.clone(),
            tried,
            secret,
            created_by: by,
            ttl: deadline(workspace.ttl_seconds),
            idle: deadline(workspace.idle_timeout_seconds),
            ..Self::blank(admit.session, user, workspace, admit.ballot, now)
        }
    }

    /// A session known only by the labels of its container.
    pub fn adopted(found: &Found, ballot: Ballot, now: Moment) -> Self {
        let mut workspace = Workspace::new(found.workspace.clone(), found.resources.cores, found.resources.memory);
        workspace.gpus = found.resources.gpus;
        workspace.image.clone_from(&found.image);
        Self {
            created_at: found.created_at,
            gpu_uuids: found.gpu_uuids.clone(),
            ports: found.ports.clone(),
            container_id: Some(found.container_id.clone()),
            message: Some("adopted from its container's labels".to_owned()),
            ..Self::blank(found.session, found.user.clone(), workspace, ballot, now)
        }
    }

    fn blank(id: SessionId, user: User, workspace: Workspace, ballot: Ballot, now: Moment) -> Self {
        Self {
            id,
            user,
            workspace,
            fingerprint: None,
            ballot,
            attempt: 1,
            considered: Vec::new(),
            tried: Vec::new(),
            unplaced: None,
            created_at: now.wall,
            created_by: None,
            wish: Wish::Run,
            state: SessionState::Pending,
            reserved: true,
            gpu_uuids: Vec::new(),
            ports: Vec::new(),
            secret: None,
            container_id: None,
            image_digest: None,
            previous_run: None,
            run: None,
            boot_id: now.boot_id,
            ttl: None,
            idle: None,
            last_activity_at: now.wall,
            kept_alive_by: None,
            retention: None,
            forget: None,
            ended_at: None,
            end_reason: None,
            exit_code: None,
            message: None,
        }
    }

    /// Whether its container is destroyed and only the memory of it is left.
    pub const fn is_gone(&self) -> bool {
        self.forget.is_some()
    }

    /// What a runner is to work towards; `None` where there is nothing to do.
    pub fn order(&self) -> Option<Order> {
        let ended = self.state.has_ended() && self.wish != Wish::Remove;
        let at_rest = self.is_gone() || ended || self.unplaced.is_some();
        (!at_rest).then(|| Order {
            wish: self.wish,
            previous_run: self.previous_run.clone(),
            run: self.run.clone(),
            paused: self.state == SessionState::Paused,
        })
    }

    /// The container to make for it, every template filled in.
    pub fn launch(&self) -> Launch {
        let fill = |text: &str| {
            text.replace("{user}", self.user.as_str())
                .replace("{workspace}", self.workspace.name.as_str())
                .replace("{session}", self.id.as_str())
                .replace("{secret}", self.secret.as_deref().unwrap_or_default())
        };
        let env: BTreeMap<String, String> = self.workspace.env.iter().map(|(k, v)| (k.clone(), fill(v))).collect();
        let volumes = self.workspace.volumes.iter();
        Launch {
            session: self.id,
            user: self.user.clone(),
            workspace: self.workspace.name.clone(),
            image: self.workspace.image.clone(),
            pull: self.workspace.pull,
            command: self.workspace.command.clone(),
            env,
            resources: self.workspace.resources(),
            gpu_uuids: self.gpu_uuids.clone(),
            ports: self.ports.clone(),
            volumes: volumes
                .map(|v| Mount { name: fill(&v.name), path: v.path.clone(), read_only: v.read_only })
                .collect(),
            shm: self.workspace.shm_bytes,
            network: self.workspace.network.clone(),
        }
    }

    /// Whether anything in it asks for a random secret.
    pub fn wants_secret(workspace: &Workspace) -> bool {
        workspace.env.values().any(|value| value.contains("{secret}"))
    }

    /// What everybody sees of it that is steady.
    pub fn profile(&self, node: &Name, node_id: &NodeId, endpoint_host: &str, now: Moment) -> SessionProfile {
        SessionProfile {
            id: self.id,
            user: self.user.clone(),
            workspace: self.workspace.name.clone(),
            image: self.workspace.image.clone(),
            image_digest: self.image_digest.clone(),
            node: node.clone(),
            node_id: *node_id,
            container_id: self.container_id.clone(),
            state: self.state,
            resources: self.workspace.resources(),
            gpu_uuids: self.gpu_uuids.clone(),
            endpoints: self.endpoints(endpoint_host),
            created_at: self.created_at,
            expires_at: self.ttl.filter(|_| !self.is_gone()).map(|ttl| ttl.shown(now)),
            kept_alive_by: self.kept_alive_by.clone(),
            end_reason: self.end_reason,
            exit_code: self.exit_code,
            message: self.message.clone().filter(|_| !self.is_pulled()),
            attempt: self.attempt,
        }
    }

    /// What everybody sees of it that changes while nothing happens.
    pub fn activity(&self) -> SessionActivity {
        let progress = self.message.clone().filter(|_| self.is_pulled());
        SessionActivity { last_activity_at: self.last_activity_at, progress }
    }

    /// Whether its message is the progress of its image.
    fn is_pulled(&self) -> bool {
        self.state == SessionState::Pulling
    }

    fn endpoints(&self, host: &str) -> Vec<Endpoint> {
        if self.is_gone() {
            return Vec::new();
        }
        let endpoint = |port: &PortBinding| Endpoint {
            container_port: port.container_port,
            host: host.to_owned(),
            host_port: port.host_port,
            protocol: port.protocol,
        };
        self.ports.iter().map(endpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::decide::testing::{id, workspace};

    /// A record as the first version wrote it. A newer version must read it: give new fields a default.
    const FIRST: &str = include_str!("../../tests/golden/record-v1.json");

    #[test]
    fn records_of_older_versions_are_read() {
        let record: Record = serde_json::from_str(FIRST).unwrap();
        assert_eq!(record.id, id("golden"));
        assert_eq!(record.state, SessionState::Running);
        assert_eq!(record.workspace.name, workspace().name);
        assert_eq!(record.ports[0].host_port, 20_000);
        assert_eq!(record.created_by, None, "it was not kept then");
        let again: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(again, record);
    }

    #[test]
    fn the_progress_of_a_pull_is_activity_and_what_went_wrong_is_not() {
        let mut record = crate::sessions::decide::testing::record("k");
        let now = crate::node::fixture::moment();
        let mut seen = |state, message: &str| {
            (record.state, record.message) = (state, Some(message.to_owned()));
            let profile = record.profile(&"one".parse().unwrap(), &NodeId::from_bytes([1; 10]), "host", now);
            let shown = crate::types::Session::of(&profile, Some(&record.activity())).message;
            assert_eq!(shown.as_deref(), Some(message));
            (profile.message, record.activity().progress)
        };
        assert_eq!(seen(SessionState::Pulling, "43 %"), (None, Some("43 %".to_owned())));
        assert_eq!(seen(SessionState::Failed, "no such image"), (Some("no such image".to_owned()), None));
    }

    #[test]
    fn templates_are_filled_in_for_one_session() {
        let mut record = crate::sessions::decide::testing::record("k");
        record.secret = Some("s3cret".to_owned());
        record.workspace.env = BTreeMap::from([("A".into(), "{user}:{session}:{secret}:{other}".into())]);
        record.workspace.volumes = vec![crate::types::VolumeMount {
            name: "home-{user}-{workspace}".into(),
            path: "/home".into(),
            read_only: false,
            roam: false,
        }];
        let launch = record.launch();
        assert_eq!(launch.env["A"], format!("alice:{}:s3cret:{{other}}", record.id));
        assert_eq!(launch.volumes[0].name, "home-alice-desktop");
    }
}
