//! Events: what happened on the nodes, and who did it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::text::words;
use super::{Actor, Name, NodeId, Role, Timestamp};

/// How much an event matters. The order is that of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// What happens every day.
    Info,
    /// What somebody wants to know later: who changed what.
    Notice,
    /// What may need a hand.
    Warning,
}

words!(Severity { Info => "info", Notice => "notice", Warning => "warning" });

/// The table of kinds. One line a kind: its variant, its name, what it says, and the fields of its `data`.
macro_rules! kinds {
    ($($variant:ident = $name:literal, $severity:ident, $meaning:literal, [$($field:literal),*];)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum EventKind {
            $(#[doc = $meaning] $variant,)*
        }

        words!(EventKind { $($variant => $name),* });

        impl EventKind {
            /// The severity of its events. An event may be more severe than its kind: a session that failed is.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// One sentence for the documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// The fields of its events' `data`. A field that is not known or does not apply is left out.
            pub const fn fields(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($field),*],)* }
            }
        }
    };
}

kinds! {
    AgentStarted = "agent_started", Info, "The agent started.", ["version", "unclean"];
    AgentStopped = "agent_stopped", Info, "The agent stopped as it was told to.", ["version"];
    ClockStepped = "clock_stepped", Warning, "The wall clock of the host was set.", ["seconds"];
    ConfigurationChanged = "configuration_changed", Notice, "The configuration was read again and had changed.",
        ["applied", "needs_restart"];
    EventsDropped = "events_dropped", Warning, "More events came than the log takes, and some were not written.",
        ["count"];
    NodeJoined = "node_joined", Notice, "A node joined the cluster.", ["address"];
    NodeLeft = "node_left", Notice, "A node left: its agent was stopped.", [];
    NodeLost = "node_lost", Warning, "A node does not answer any more.", ["silent_seconds"];
    NodeBack = "node_back", Notice, "A node answers again.", ["address"];
    NodeForgotten = "node_forgotten", Notice, "A node that will not return was removed for good.", [];
    LeaderElected = "leader_elected", Notice, "A node became the leader.", ["term", "previous"];
    LeaderLost = "leader_lost", Warning, "The leader stepped down, since it does not reach enough nodes.", ["term"];
    SessionCreated = "session_created", Info, "A host admitted a session.", ["user", "workspace", "attempt"];
    SessionStarted = "session_started", Info, "A session runs.", ["user", "workspace"];
    SessionPaused = "session_paused", Info, "A session was paused.", ["user", "workspace"];
    SessionResumed = "session_resumed", Info, "A paused session runs again.", ["user", "workspace"];
    SessionExtended = "session_extended", Info, "The end of a session was put off.",
        ["user", "workspace", "expires_at"];
    SessionEnded = "session_ended", Info, "A session stopped or failed.",
        ["user", "workspace", "end_reason", "exit_code"];
    SessionRemoved = "session_removed", Info, "A session was removed from its host.", ["user", "workspace"];
    SessionMoved = "session_moved", Notice, "A host took over a session that other hosts could not start.",
        ["user", "workspace", "attempt", "from"];
    SessionDuplicate = "session_duplicate", Warning, "Two hosts had a session, and one of them removes its copy.",
        ["keeper"];
    SessionForgotten = "session_forgotten", Notice, "The record of a session of a lost host was removed for good.",
        ["host"];
    Refused = "refused", Warning, "Requests for sessions were refused.",
        ["reason", "workspace", "count", "dimension"];
    RequestRefused = "request_refused", Notice, "A person's request was not allowed, or conflicts with what is there.",
        ["method", "path", "code", "count"];
    SettingsChanged = "settings_changed", Notice, "A setting of a node was changed.", ["field", "from", "to"];
    DrainStarted = "drain_started", Notice, "A drain started: the node admits no new sessions.",
        ["deadline", "stop_sessions", "reason"];
    DrainDone = "drain_done", Notice, "No session is left on a node that drains.", [];
    DrainOverdue = "drain_overdue", Warning, "The deadline of a drain has passed with sessions left.", ["blockers"];
    DrainEnded = "drain_ended", Notice, "A drain ended: the node admits sessions again.", [];
    ConditionRaised = "condition_raised", Warning, "A condition was raised.", ["kind"];
    ConditionCleared = "condition_cleared", Info, "A condition was cleared.", ["kind"];
    WorkspaceChanged = "workspace_changed", Notice, "A workspace was added, changed or removed.",
        ["change", "fields"];
    WorkspaceConflict = "workspace_conflict", Warning, "A workspace was changed on two sides of a partition.", [];
    TokenCreated = "token_created", Notice, "An API token was created.", ["role", "expires_at"];
    TokenRevoked = "token_revoked", Notice, "An API token was revoked.", [];
    VolumeRemoved = "volume_removed", Notice, "A volume was removed.", [];
    ImagePulled = "image_pulled", Info, "An image was pulled.", ["bytes", "seconds", "from"];
    ImageFailed = "image_failed", Warning, "An image could not be pulled.", ["reason"];
    ImagePruned = "image_pruned", Notice, "Images that nothing needs were removed.", ["images", "bytes", "mode"];
    PruneRefused = "prune_refused", Warning, "A prune removed nothing, since that was not safe.", ["reason"];
    ImageChanged = "image_changed", Notice, "An image was adopted, pinned or unpinned.", ["change"];
    GpuLost = "gpu_lost", Warning, "A GPU vanished.", ["reason"];
    GpuBack = "gpu_back", Notice, "A GPU that had vanished is back.", [];
    GpuHot = "gpu_hot", Warning, "A GPU is hotter than it may be.", ["celsius"];
    GpuCordoned = "gpu_cordoned", Notice, "A GPU was cordoned: it takes no new sessions.", [];
    GpuUncordoned = "gpu_uncordoned", Notice, "A GPU takes sessions again.", [];
    GpuForgotten = "gpu_forgotten", Notice, "A GPU that will not return was removed for good.", [];
}

/// The id of an event: its node, and its number in the log of that node, as `NODEID-NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    pub node: NodeId,
    pub seq: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.node, self.seq)
    }
}

impl FromStr for EventId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(node, seq)| {
            // `+1` and `01` are numbers, and not an id that anybody was given.
            let canonical = seq == "0" || !seq.starts_with(['0', '+']);
            Some(Self { node: node.parse().ok()?, seq: seq.parse().ok().filter(|_| canonical)? })
        });
        parsed.ok_or_else(|| format!("`{text}` is not the id of an event; expected the node's id, `-` and a number"))
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    Node,
    Session,
    Workspace,
    Token,
    Image,
    Gpu,
    Volume,
    /// A path of the HTTP API.
    Path,
}

words!(TargetKind {
    Node => "node",
    Session => "session",
    Workspace => "workspace",
    Token => "token",
    Image => "image",
    Gpu => "gpu",
    Volume => "volume",
    Path => "path",
});

/// What an event is about, by its id and, if it has one, its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventTarget {
    #[serde(rename = "type")]
    pub kind: TargetKind,
    pub id: String,
    pub name: Option<String>,
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhoKind {
    /// The bearer of an API token.
    Token,
    /// A user of a node's unix socket.
    Socket,
    /// Another node.
    Node,
    /// The node itself.
    System,
}

words!(WhoKind { Token => "token", Socket => "socket", Node => "node", System => "system" });

/// Who did what an event tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Who {
    pub kind: WhoKind,
    /// The id of the token or the node, or the uid of the user.
    pub id: Option<String>,
    pub name: Option<String>,
    /// The role that the person had.
    pub role: Option<Role>,
}

impl Who {
    pub const SYSTEM: Self = Self { kind: WhoKind::System, id: None, name: None, role: None };

    /// `me`: the node that writes the event.
    pub fn of(actor: &Actor, me: &NodeId) -> Self {
        match actor {
            Actor::Token { id, name, role, .. } => {
                Self { kind: WhoKind::Token, id: Some(id.clone()), name: Some(name.to_string()), role: Some(*role) }
            }
            Actor::Socket { uid, name, .. } => {
                Self { kind: WhoKind::Socket, id: Some(uid.to_string()), name: name.clone(), role: Some(Role::Admin) }
            }
            Actor::Node { id } if id == me => Self::SYSTEM,
            Actor::Node { id } => Self { kind: WhoKind::Node, id: Some(id.to_string()), name: None, role: None },
        }
    }
}

impl fmt::Display for Who {
    /// The name that people know, or the id where there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.name, &self.id) {
            (WhoKind::Socket, None, Some(uid)) => f.pad(&format!("uid {uid}")),
            (_, Some(name), _) => f.pad(name),
            (_, None, Some(id)) => f.pad(id),
            (kind, None, None) => f.pad(kind.as_str()),
        }
    }
}

/// Something that happened on a node, as its log has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// The node's id, `-`, and the number of the event in the log of that node. The numbers have no gap.
    #[schema(value_type = String)]
    pub id: EventId,
    /// On one node it never goes back, unless its clock was set back by more than a minute.
    pub time: Timestamp,
    /// The name of the node whose log it is.
    pub node: Name,
    pub kind: EventKind,
    pub severity: Severity,
    /// `null`: the cluster.
    pub target: Option<EventTarget>,
    pub who: Who,
    /// The node that received the request of the person; `null`: no person made it.
    pub via: Option<Name>,
    /// One sentence for people.
    pub message: String,
    /// What the kind has of further facts.
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
    /// It was told after later ones, since its node did not answer before. Only while one follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

/// The place of an event among those of all nodes: by time, then by node, then by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventPlace {
    pub time: Timestamp,
    pub id: EventId,
}

impl Event {
    pub const fn place(&self) -> EventPlace {
        EventPlace { time: self.time, id: self.id }
    }
}

/// Which events are wanted. Every condition that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFilter {
    /// Not before.
    pub since: Option<Timestamp>,
    /// Not after.
    pub until: Option<Timestamp>,
    /// Of these kinds; empty: of every kind.
    pub kinds: BTreeSet<EventKind>,
    /// At least as severe.
    pub severity: Option<Severity>,
    /// The id, the beginning of the id, or the name of what they are about.
    pub target: Option<String>,
    /// The id or the name of who did it, or a [`WhoKind`].
    pub who: Option<String>,
    /// A part of the message, in upper or lower case.
    pub text: Option<String>,
}

impl EventFilter {
    pub fn matches(&self, event: &Event) -> bool {
        self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time <= until)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.severity.is_none_or(|least| event.severity >= least)
            && self.target.as_ref().is_none_or(|wanted| is_about(event, wanted))
            && self.who.as_ref().is_none_or(|wanted| is_by(&event.who, wanted))
            && self.text.as_ref().is_none_or(|text| contains(&event.message, text))
    }
}

fn is_about(event: &Event, wanted: &str) -> bool {
    event.target.as_ref().is_some_and(|target| target.id.starts_with(wanted) || target.name.as_deref() == Some(wanted))
}

fn is_by(who: &Who, wanted: &str) -> bool {
    who.kind.as_str() == wanted || who.name.as_deref() == Some(wanted) || who.id.as_deref() == Some(wanted)
}

fn contains(message: &str, text: &str) -> bool {
    message.to_lowercase().contains(&text.to_lowercase())
}

/// One page of events, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    pub items: Vec<Event>,
    /// Pass it as `after` to get older ones; `null`: there are none.
    pub next_cursor: Option<String>,
    /// The nodes that did not answer: their events are missing here.
    pub gaps: Vec<EventGap>,
}

/// A node that did not answer, so that its events are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventGap {
    pub node: Name,
    pub message: String,
}

#[cfg(test)]
mod tests;
