//! What happens in the cluster, as its leader sees it: nodes, leaders, and requests that are refused.

use std::time::Duration;

use super::Happening;
use crate::types::{Dimension, ErrorCode, EventKind, Name, NodeId, SessionId, TargetKind};

impl Happening {
    pub fn node_joined(id: &NodeId, name: &Name, address: &str) -> Self {
        of_node(EventKind::NodeJoined, id, name, format!("{name} joined, at {address}")).with("address", address)
    }

    pub fn node_left(id: &NodeId, name: &Name) -> Self {
        of_node(EventKind::NodeLeft, id, name, format!("{name} left: its agent was stopped"))
    }

    pub fn node_lost(id: &NodeId, name: &Name, silent: Duration) -> Self {
        let seconds = silent.as_secs();
        of_node(
            EventKind::NodeLost,
            id,
            name,
            format!("{name} has not answered for {seconds} s; its sessions are unknown"),
        )
        .with("silent_seconds", seconds)
    }

    pub fn node_back(id: &NodeId, name: &Name, address: &str) -> Self {
        of_node(EventKind::NodeBack, id, name, format!("{name} answers again, at {address}")).with("address", address)
    }

    pub fn node_forgotten(id: &NodeId, name: &Name) -> Self {
        of_node(EventKind::NodeForgotten, id, name, format!("{name} was removed from the cluster for good"))
    }

    /// `previous`: the name or id of the leader before, if one is known.
    pub fn leader_elected(id: &NodeId, name: &Name, term: u64, previous: Option<&str>) -> Self {
        let after = previous.map(|previous| format!(" after {previous}")).unwrap_or_default();
        of_node(EventKind::LeaderElected, id, name, format!("{name} leads{after}, in term {term}"))
            .with("term", term)
            .with("previous", previous)
    }

    pub fn leader_lost(id: &NodeId, name: &Name, term: u64) -> Self {
        let message =
            format!("{name} stepped down, in term {term}: it does not reach enough nodes, or another one leads");
        of_node(EventKind::LeaderLost, id, name, message).with("term", term)
    }

    /// A host removes its copy of a session, of which another host has the newer one.
    pub fn session_duplicate(session: &SessionId, host: &str, keeper: Option<&str>) -> Self {
        let message = format!("two hosts had session {session}: {host} removes its copy");
        Self::of(EventKind::SessionDuplicate, message).about(TargetKind::Session, session, None).with("keeper", keeper)
    }

    pub fn session_forgotten(session: &SessionId, host: &str) -> Self {
        let message = format!("the record of session {session} of {host} was removed for good");
        Self::of(EventKind::SessionForgotten, message).about(TargetKind::Session, session, None).with("host", host)
    }

    /// The leader places no session of the workspace. `why`: in words.
    pub fn refused(workspace: &Name, reason: ErrorCode, dimension: Option<Dimension>, why: &str) -> Self {
        Self::of(EventKind::Refused, format!("a session of {workspace} was refused: {why}"))
            .about(TargetKind::Workspace, workspace, Some(workspace.to_string()))
            .with("reason", reason)
            .with("workspace", workspace)
            .with("dimension", dimension)
    }

    /// A person's request was answered with an error that says no.
    pub fn request_refused(method: &str, path: &str, code: ErrorCode, why: &str) -> Self {
        Self::of(EventKind::RequestRefused, format!("{method} {path} was refused: {why}"))
            .about(TargetKind::Path, path, None)
            .with("method", method)
            .with("path", path)
            .with("code", code)
    }
}

fn of_node(kind: EventKind, id: &NodeId, name: &Name, message: String) -> Happening {
    Happening::of(kind, message).about(TargetKind::Node, id, Some(name.to_string()))
}
