//! Sessions: requests for them, and how the API shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::words;
use super::{
    Bytes, Cores, Invalid, Labels, Name, NodeId, Resources, SessionActivity, SessionId, SessionProfile, Timestamp,
    User, check_env, schema,
};

/// A session's state in its life cycle. Only the session's host changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// The host has admitted it and reserved its resources, and has not begun to start it.
    Pending,
    /// The host pulls its image.
    Pulling,
    /// The host creates or starts its container.
    Starting,
    Running,
    Paused,
    /// The host stops or removes it. Its reservation holds until the runtime confirms the exit.
    Stopping,
    /// It ended by request or without an error. It holds no reservation.
    Stopped,
    /// It ended with an error. It holds no reservation.
    Failed,
    /// Its host or the host's engine cannot be reached. The session may still run, and is not ended for this.
    Unknown,
}
words!(SessionState {
    Pending => "pending",
    Pulling => "pulling",
    Starting => "starting",
    Running => "running",
    Paused => "paused",
    Stopping => "stopping",
    Stopped => "stopped",
    Failed => "failed",
    Unknown => "unknown",
});

impl SessionState {
    /// Whether the session is over, unless a caller starts it again.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    UserStopped,
    Exited,
    TtlExpired,
    IdleExpired,
    OomKilled,
    ImageFailed,
    StartFailed,
    /// Its container disappeared while it ran.
    Lost,
    HostRebooted,
    Drained,
    Duplicate,
}
words!(EndReason {
    UserStopped => "user_stopped",
    Exited => "exited",
    TtlExpired => "ttl_expired",
    IdleExpired => "idle_expired",
    OomKilled => "oom_killed",
    ImageFailed => "image_failed",
    StartFailed => "start_failed",
    Lost => "lost",
    HostRebooted => "host_rebooted",
    Drained => "drained",
    Duplicate => "duplicate",
});

/// What the health check of a session's image found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Its start period is not over.
    Starting,
    Healthy,
    Unhealthy,
}
words!(HealthStatus { Starting => "starting", Healthy => "healthy", Unhealthy => "unhealthy" });

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}
words!(Protocol { Tcp => "tcp", Udp => "udp" });

/// The address of one port of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    pub container_port: u16,
    pub host: String,
    pub host_port: u16,
    pub protocol: Protocol,
}

/// A session as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub id: SessionId,
    pub user: User,
    pub workspace: Name,
    /// `null` if the process runtime runs a bare command.
    pub image: Option<String>,
    pub image_digest: Option<String>,
    /// The node's name.
    pub node: Name,
    pub node_id: NodeId,
    pub container_id: Option<String>,
    pub state: SessionState,
    pub cores: Cores,
    pub memory_bytes: Bytes,
    pub gpus: u32,
    /// Its GPUs: distinct, and the same while it holds its reservation.
    pub gpu_uuids: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    pub created_at: Timestamp,
    /// Since when it can be used, as the `ready` of its workspace finds out; `null`: not yet, or it does not run.
    pub ready_at: Option<Timestamp>,
    /// What the image's health check found; `null`: the image has none. It ends no session.
    pub health: Option<HealthStatus>,
    pub last_activity_at: Timestamp,
    /// When it ends by itself: at the end of its TTL, or before, if nobody uses it until its idle timeout is over;
    /// `null`: never.
    pub expires_at: Option<Timestamp>,
    /// The `by` of the last keepalive.
    pub kept_alive_by: Option<String>,
    pub end_reason: Option<EndReason>,
    pub exit_code: Option<i64>,
    /// Progress, what went wrong, or what its user should know of its GPUs while it runs; for a person.
    pub message: Option<String>,
    /// The number of the attempt to place it, from 1.
    pub attempt: u32,
    /// The session's random secret: only in the answer to its creation, and only if the workspace uses `{secret}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl Session {
    /// Joins profile and activity, without the secret. Without an activity, the time of the last activity is that of
    /// the creation.
    pub fn of(profile: &SessionProfile, activity: Option<&SessionActivity>) -> Self {
        let progress = activity.and_then(|activity| activity.progress.clone());
        Self {
            id: profile.id,
            user: profile.user.clone(),
            workspace: profile.workspace.clone(),
            image: profile.image.clone(),
            image_digest: profile.image_digest.clone(),
            node: profile.node.clone(),
            node_id: profile.node_id,
            container_id: profile.container_id.clone(),
            state: profile.state,
            cores: profile.resources.cores,
            memory_bytes: profile.resources.memory,
            gpus: profile.resources.gpus,
            gpu_uuids: profile.gpu_uuids.clone(),
            endpoints: profile.endpoints.clone(),
            created_at: profile.created_at,
            ready_at: profile.ready_at,
            health: profile.health,
            last_activity_at: activity.map_or(profile.created_at, |activity| activity.last_activity_at),
            expires_at: [profile.expires_at, activity.and_then(|activity| activity.idle_ends_at)]
                .into_iter()
                .flatten()
                .min(),
            kept_alive_by: profile.kept_alive_by.clone(),
            end_reason: profile.end_reason,
            exit_code: profile.exit_code,
            message: progress.or_else(|| profile.message.clone()),
            attempt: profile.attempt,
            secret: None,
        }
    }

    pub const fn resources(&self) -> Resources {
        Resources::new(self.cores, self.memory_bytes, self.gpus)
    }
}

/// A request for a session. Fields that are left out come from the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    pub workspace: Name,
    pub user: User,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::session_cores_or_null, required = false)]
    pub cores: Option<Cores>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::session_memory_or_null, required = false)]
    pub memory_bytes: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1024)]
    pub gpus: Option<u32>,
    /// Merged into the workspace's environment; values of the request take precedence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = schema::env, required = false)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub ttl_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub idle_timeout_seconds: Option<u64>,
    /// Labels that the node must have, in addition to the workspace's constraints.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = schema::labels, required = false)]
    pub constraints: Labels,
}

impl SessionRequest {
    /// A request that leaves everything to the workspace.
    pub fn new(workspace: Name, user: User) -> Self {
        Self {
            workspace,
            user,
            cores: None,
            memory_bytes: None,
            gpus: None,
            env: BTreeMap::new(),
            ttl_seconds: None,
            idle_timeout_seconds: None,
            constraints: Labels::new(),
        }
    }

    /// Checks what the types of the fields do not.
    pub fn validate(&self) -> Result<(), Invalid> {
        check_env(&self.env)?;
        super::node::check_labels("constraints", &self.constraints)?;
        super::workspace::check_spans(self.ttl_seconds, self.idle_timeout_seconds)?;
        if let Some(cores) = self.cores {
            super::workspace::check_cores(cores)?;
        }
        if let Some(memory) = self.memory_bytes {
            super::workspace::check_memory(memory)?;
        }
        super::workspace::check_gpus(self.gpus.unwrap_or(0))
    }

    /// A digest of every field, in one canonical order. Two requests with one idempotency key are the same request if
    /// their fingerprints are equal.
    pub fn fingerprint(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("a request of strings and numbers always serialises");
        data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, &canonical).as_ref())
    }
}

/// States that a session is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepaliveRequest {
    /// The user or program that uses the session.
    pub by: User,
}

/// Lets a session live at least this long from now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// The session lives at least this long from now.
    #[schema(minimum = 1, maximum = 3153600000i64)]
    pub ttl_seconds: u64,
}

impl ExtendRequest {
    pub fn validate(&self) -> Result<(), Invalid> {
        super::workspace::check_spans(Some(self.ttl_seconds), None)
    }
}

/// A session, and whether its host only remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub session: Session,
    /// Its container is destroyed. The host keeps its record so that a retry with its key finds it.
    pub gone: bool,
}

/// Which sessions to list, and from which place on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionFilter {
    pub user: Option<User>,
    pub state: Option<SessionState>,
    /// A node's name or id.
    pub node: Option<Name>,
    pub workspace: Option<Name>,
    /// Include sessions whose containers are destroyed.
    pub all: bool,
    /// Only sessions after this place in the list.
    pub after: Option<String>,
    /// The maximum number of sessions in the answer.
    pub limit: usize,
}

/// What a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// The session is in this state; or it is over, and will not reach the state by itself.
    Until(SessionState),
    /// The session can be used; or it is over.
    Ready,
    /// The session's container is destroyed.
    UntilGone,
}

impl Wait {
    /// Whether nothing is left to wait for. `ready`: the session can be used. `gone`: its container is destroyed.
    pub fn is_over(self, state: SessionState, ready: bool, gone: bool) -> bool {
        self.is_reached(state, ready, gone) || (self != Self::UntilGone && state.has_ended())
    }

    /// Whether the session is as wanted, or will never be: its container is destroyed.
    pub fn is_reached(self, state: SessionState, ready: bool, gone: bool) -> bool {
        gone || match self {
            Self::Until(wanted) => state == wanted,
            Self::Ready => ready,
            Self::UntilGone => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_depends_on_the_fields_and_not_on_their_order() {
        let request: SessionRequest =
            serde_json::from_str(r#"{"user":"alice","workspace":"desktop","env":{"B":"2","A":"1"}}"#).unwrap();
        let reordered: SessionRequest =
            serde_json::from_str(r#"{"workspace":"desktop","env":{"A":"1","B":"2"},"user":"alice","cores":null}"#)
                .unwrap();
        assert_eq!(request.fingerprint(), reordered.fingerprint());
        let other = SessionRequest { cores: Some(Cores::whole(1)), ..request.clone() };
        assert_ne!(request.fingerprint(), other.fingerprint());
    }
}
