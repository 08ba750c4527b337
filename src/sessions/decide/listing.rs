//! Which of the containers that the engine lists belong to which session. Pure.
//!
//! A container belongs to a session by its recorded id, and by its labels where no id is recorded. Its name decides only
//! between several containers of one session: the engine gives a name to one container only.

use std::collections::BTreeMap;

use crate::runtime::container::{Found, Renamed};
use crate::types::{NodeId, SessionId};

/// The engine's list, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// Each session's container.
    pub(super) sessions: BTreeMap<SessionId, Found>,
    pub(super) oddities: Oddities,
}

/// Containers that the operator should know of. The host changes none of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Containers of this host's sessions that another program renamed.
    pub renamed: Vec<Oddity>,
    /// Containers with the labels of a session whose container is another one.
    pub strays: Vec<Oddity>,
    /// Containers of another node id.
    pub foreign: Vec<Oddity>,
}

/// A container that is not as this host would have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    pub container_id: String,
    pub session: SessionId,
    /// The node id of its labels.
    pub node: NodeId,
    pub renamed: Option<Renamed>,
}

impl Oddity {
    fn of(found: &Found) -> Self {
        Self {
            container_id: found.container_id.clone(),
            session: found.session,
            node: found.node,
            renamed: found.renamed.clone(),
        }
    }
}

/// Sorts what the engine listed. `recorded` is the id of a session's container, where the host has recorded one.
pub(super) fn sort<'a>(
    mut found: Vec<Found>,
    node: &NodeId,
    recorded: impl Fn(&SessionId) -> Option<&'a str>,
) -> Listing {
    let mut listing = Listing::default();
    // The recorded container comes first, then the one that is named as it was created, then the oldest.
    found.sort_by_cached_key(|found| (recorded(&found.session) != Some(&found.container_id), found.rank()));
    for found in found {
        if found.node != *node {
            listing.oddities.foreign.push(Oddity::of(&found));
        } else if listing.sessions.contains_key(&found.session) || !may_be_its(&found, recorded(&found.session)) {
            listing.oddities.strays.push(Oddity::of(&found));
        } else {
            if found.renamed.is_some() {
                listing.oddities.renamed.push(Oddity::of(&found));
            }
            listing.sessions.insert(found.session, found);
        }
    }
    listing
}

/// Whether a container with the labels of a session can be the session's. One that has neither the recorded id nor the
/// name is a copy that another program made, such as from an image with our labels.
fn may_be_its(found: &Found, recorded: Option<&str>) -> bool {
    recorded.is_none_or(|id| id == found.container_id) || found.renamed.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::container::Container;
    use crate::sessions::decide::testing::{found, id, node_id};

    /// A container of session `k`.
    fn container(container_id: &str, name: Option<&str>) -> Found {
        let renamed = name.map(|name| Renamed { name: name.to_owned(), expected: "k".to_owned() });
        Found { container_id: container_id.to_owned(), renamed, ..found("k", node_id(), Container::Created) }
    }

    /// The container of session `k`, and the strays.
    fn sorted(containers: Vec<Found>, recorded: Option<&str>) -> (Option<String>, Vec<String>) {
        let listing = sort(containers, &node_id(), |_| recorded);
        let ids = |odd: &[Oddity]| odd.iter().map(|odd| odd.container_id.clone()).collect();
        (listing.sessions.get(&id("k")).map(|found| found.container_id.clone()), ids(&listing.oddities.strays))
    }

    fn is(session: Option<&str>, strays: &[&str]) -> (Option<String>, Vec<String>) {
        (session.map(str::to_owned), strays.iter().map(|&stray| stray.to_owned()).collect())
    }

    #[test]
    fn the_recorded_container_is_the_sessions_whatever_its_name() {
        let both = || vec![container("a", None), container("b", Some("mine"))];
        assert_eq!(sorted(both(), Some("b")), is(Some("b"), &["a"]));
        assert_eq!(sorted(both(), Some("a")), is(Some("a"), &["b"]));
    }

    #[test]
    fn without_a_recorded_id_the_labels_decide_and_then_the_name_and_then_the_age() {
        assert_eq!(sorted(vec![container("b", Some("mine"))], None), is(Some("b"), &[]));
        assert_eq!(sorted(vec![container("a", Some("copy")), container("b", None)], None), is(Some("b"), &["a"]));
        let older = Found { created_at: crate::types::Timestamp::from_millis(1), ..container("z", Some("older")) };
        assert_eq!(sorted(vec![container("a", Some("newer")), older], None), is(Some("z"), &["a"]));
    }

    #[test]
    fn a_copy_of_a_session_whose_container_is_gone_is_not_the_session() {
        assert_eq!(sorted(vec![container("copy", Some("mine"))], Some("gone")), is(None, &["copy"]));
        // The answer to an earlier attempt to create it was lost.
        assert_eq!(sorted(vec![container("b", None)], Some("gone")), is(Some("b"), &[]));
    }

    #[test]
    fn a_renamed_container_and_one_of_another_node_are_named() {
        let foreign = Found { node: NodeId::from_bytes([9; 10]), ..container("f", None) };
        let listing = sort(vec![foreign, container("b", Some("mine"))], &node_id(), |_| None);
        assert_eq!(listing.oddities.renamed[0].renamed.as_ref().unwrap().name, "mine");
        assert_eq!((listing.oddities.foreign.len(), listing.oddities.strays.len()), (1, 0));
    }
}
