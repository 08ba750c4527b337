//! The actor: who asked for a change.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Name, NodeId, Role};

/// The actor of a change, which travels with the change to the owner that makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    /// The bearer of an API token.
    Token {
        id: String,
        /// The token's name at that time: the token may be revoked since.
        name: Name,
        /// The token's role at that time.
        role: Role,
        /// The node that received the request.
        via: Name,
    },
    /// A user of a node's unix socket, as that node's kernel reports it. Such a user has role `admin`.
    Socket {
        uid: u32,
        /// The user's name on that node. `None`: its `/etc/passwd` does not have the user.
        name: Option<String>,
        /// The node that received the request.
        via: Name,
    },
    /// A node on its own: for example the leader that removes a session from one of two hosts.
    Node { id: NodeId },
}

impl Actor {
    /// The node that received the request. `None`: no person made it.
    pub const fn via(&self) -> Option<&Name> {
        match self {
            Self::Token { via, .. } | Self::Socket { via, .. } => Some(via),
            Self::Node { .. } => None,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id, name, .. } => write!(f, "token {name} ({id})"),
            Self::Socket { uid, name: Some(name), .. } => write!(f, "{name} (uid {uid})"),
            Self::Socket { uid, name: None, .. } => write!(f, "uid {uid}"),
            Self::Node { id } => write!(f, "node {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::sample;

    #[test]
    fn an_actor_is_one_object_and_one_phrase() {
        let id = NodeId::from_bytes([1; 10]);
        let via = || "host-a".parse().unwrap();
        let nameless = Actor::Socket { uid: 7, name: None, via: via() };
        for (actor, object, phrase) in [
            (
                sample::token_actor(Role::Operate),
                json!({"kind": "token", "id": "abcdefgh", "name": "ci", "role": "operate", "via": "host-a"}),
                "token ci (abcdefgh)".to_owned(),
            ),
            (
                sample::root(),
                json!({"kind": "socket", "uid": 0, "name": "root", "via": "host-a"}),
                "root (uid 0)".to_owned(),
            ),
            (nameless, json!({"kind": "socket", "uid": 7, "name": null, "via": "host-a"}), "uid 7".to_owned()),
            (Actor::Node { id }, json!({"kind": "node", "id": id}), format!("node {id}")),
        ] {
            assert_eq!(serde_json::to_value(&actor).unwrap(), object);
            assert_eq!(actor.to_string(), phrase);
            assert_eq!(serde_json::from_value::<Actor>(object).unwrap(), actor);
        }
    }
}
