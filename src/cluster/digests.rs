//! The digests of a workspace's image that are in use, as the leader knows them.

use super::{Cluster, Error, LEADER_PATIENCE, QUICK, Routed};
use crate::catalogue;
use crate::placement::Fleet;
use crate::placement::index::HostView;
use crate::sessions::Held;
use crate::types::{DigestInUse, Name, Workspace};
use crate::wire::message::Digests;

impl Cluster {
    /// The digests of the workspace's image that nodes have and that its sessions are made from.
    pub async fn digests(&self, workspace: &Name) -> Result<Routed<Vec<DigestInUse>>, Error> {
        let Routed { answer, by } = self.on_leader(Digests(workspace.clone()), LEADER_PATIENCE, QUICK).await?;
        let none = || Error::Catalogue(catalogue::Error::NoWorkspace(workspace.clone()));
        Ok(Routed { answer: answer.ok_or_else(none)?, by })
    }
}

/// By node: what it has under the workspace's `image`, then the workspace's sessions there.
pub(super) fn in_use(workspace: &Workspace, fleet: &Fleet) -> Vec<DigestInUse> {
    let mut found: Vec<DigestInUse> = fleet.hosts.values().flat_map(|host| on_host(workspace, host)).collect();
    found.sort_by(|a, b| (&a.node, &a.node_id, a.session).cmp(&(&b.node, &b.node_id, b.session)));
    found
}

fn on_host(workspace: &Workspace, host: &HostView) -> Vec<DigestInUse> {
    let here = workspace.image.as_ref().and_then(|image| host.images.get(image));
    let row = |session, digest, checked_at| {
        let (node, node_id) = (host.profile.name.clone(), host.profile.id);
        DigestInUse { node, node_id, session, digest, checked_at }
    };
    let own = here.map(|checked| {
        let checked = checked.as_ref();
        row(None, checked.and_then(|checked| checked.digest.clone()), checked.map(|checked| checked.at))
    });
    // Of an image from no registry, a session shows the id: it is no digest that another node could pull.
    let is_of_registry = here.is_some_and(Option::is_some);
    let sessions = host.sessions.values().filter(|held| is_made_from(workspace, held)).map(|held| {
        let by_digest = held.session.image.as_ref().is_some_and(|image| image.contains('@'));
        let digest = held.session.image_digest.clone().filter(|_| is_of_registry || by_digest);
        row(Some(held.session.id), digest, None)
    });
    own.into_iter().chain(sessions).collect()
}

/// Whether it is a session of the workspace that has its image now.
fn is_made_from(workspace: &Workspace, held: &Held) -> bool {
    let session = &held.session;
    session.workspace == workspace.name && session.image_digest.is_some() && !held.gone && !session.state.has_ended()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::images::Checked;
    use crate::types::{Ballot, Bytes, Cores, NodeId, SessionState, Timestamp, sample};

    fn workspace() -> Workspace {
        let mut workspace = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        workspace.image = Some("team/desktop:1".to_owned());
        workspace
    }

    fn held(key: &str, workspace: &str, state: SessionState, digest: &str) -> Held {
        let mut session = sample::session_profile(key, workspace, "alice", state);
        (session.image, session.image_digest) = (Some("team/desktop:1".to_owned()), Some(digest.to_owned()));
        let ballot = Ballot { term: 1, node: NodeId::from_bytes([1; 10]) };
        Held { session, activity: sample::activity(), ballot, gone: false, unplaced: false, reserved: true }
    }

    fn fleet(image: &str, digest: Option<&str>, sessions: Vec<Held>) -> Fleet {
        let profile = sample::profile("a", "aabb222222222222");
        let checked = digest.map(|digest| Checked { digest: Some(digest.to_owned()), at: Timestamp::default() });
        let view = HostView {
            usage: sample::usage(),
            last_seen: Timestamp::default(),
            sessions: sessions.into_iter().map(|held| (held.session.id, Arc::new(held))).collect(),
            images: [(image.to_owned(), checked)].into(),
            have: None,
            profile: Arc::new(profile),
        };
        Fleet { hosts: [(view.profile.id, Arc::new(view))].into(), unplaced: BTreeMap::new() }
    }

    fn told(fleet: &Fleet) -> Vec<(bool, Option<String>)> {
        in_use(&workspace(), fleet).into_iter().map(|row| (row.session.is_some(), row.digest)).collect()
    }

    #[test]
    fn nodes_and_running_sessions_tell_their_digests() {
        let sessions = vec![
            held("one", "desktop", SessionState::Running, "sha256:old"),
            held("two", "other", SessionState::Running, "sha256:other"),
            held("three", "desktop", SessionState::Stopped, "sha256:older"),
        ];
        let all = told(&fleet("team/desktop:1", Some("sha256:new"), sessions));
        assert_eq!(all, [(false, Some("sha256:new".to_owned())), (true, Some("sha256:old".to_owned()))]);
    }

    #[test]
    fn the_id_of_an_image_from_no_registry_is_no_digest() {
        let session = || held("one", "desktop", SessionState::Running, "sha256:id");
        assert_eq!(told(&fleet("team/desktop:1", None, vec![session()])), [(false, None), (true, None)]);
        assert_eq!(told(&fleet("another:1", Some("sha256:x"), vec![session()])), [(true, None)]);
        let mut pinned = session();
        pinned.session.image = Some("team/desktop@sha256:id".to_owned());
        let all = told(&fleet("another:1", None, vec![pinned]));
        assert_eq!(all, [(true, Some("sha256:id".to_owned()))], "made by its digest");
    }
}
