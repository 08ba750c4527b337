//! The actor: who asked for a change.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Name, NodeId};

/// The actor of a change, which travels with the change to the owner that makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    /// The bearer of an API token, with the token's name at that time: the token may be revoked since.
    Token { id: String, name: Name },
    /// A user of a node's unix socket, as that node's kernel reports it.
    Socket { uid: u32 },
    /// A node on its own: for example the leader that removes a session from one of two hosts.
    Node { id: NodeId },
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id, name } => write!(f, "token {name} ({id})"),
            Self::Socket { uid } => write!(f, "uid {uid}"),
            Self::Node { id } => write!(f, "node {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_actor_is_one_object_and_one_phrase() {
        let id = NodeId::from_bytes([1; 10]);
        let token = Actor::Token { id: "abcdefgh".to_owned(), name: "ci".parse().unwrap() };
        for (actor, object, phrase) in [
            (token, json!({"kind": "token", "id": "abcdefgh", "name": "ci"}), "token ci (abcdefgh)".to_owned()),
            (Actor::Socket { uid: 0 }, json!({"kind": "socket", "uid": 0}), "uid 0".to_owned()),
            (Actor::Node { id }, json!({"kind": "node", "id": id}), format!("node {id}")),
        ] {
            assert_eq!(serde_json::to_value(&actor).unwrap(), object);
            assert_eq!(actor.to_string(), phrase);
            assert_eq!(serde_json::from_value::<Actor>(object).unwrap(), actor);
        }
    }
}
