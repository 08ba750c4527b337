//! Which sessions use which named volumes. Pure.

use std::collections::BTreeMap;

use crate::types::template::{self, Placeholder};
use crate::types::{Name, SessionId, SessionProfile, Volume, Workspace};
use crate::{catalogue, sessions};

/// The volumes of a node by name, each with its users.
pub(super) fn describe(
    mut names: Vec<String>,
    mut users: BTreeMap<String, Vec<SessionId>>,
    node: &Name,
) -> Vec<Volume> {
    names.sort_unstable();
    let describe = |name: String| {
        let sessions = users.remove(&name).unwrap_or_default();
        Volume { name, node: node.clone(), sessions }
    };
    names.into_iter().map(describe).collect()
}

/// The sessions, running or stopped, that use each volume, as far as the catalogue still has their workspaces. This is
/// a hint: when a volume is removed, the engine decides whether it is in use.
pub(super) fn users(
    sessions: &sessions::Snapshot,
    catalogue: &catalogue::Snapshot,
) -> BTreeMap<String, Vec<SessionId>> {
    let mut users: BTreeMap<String, Vec<SessionId>> = BTreeMap::new();
    for (id, session) in sessions.sessions.iter().filter(|(id, _)| !sessions.gone.contains(*id)) {
        for name in catalogue.workspaces.get(&session.workspace).into_iter().flat_map(|w| names(w, session)) {
            users.entry(name).or_default().push(*id);
        }
    }
    users
}

fn names(workspace: &Workspace, session: &SessionProfile) -> impl Iterator<Item = String> {
    let fill = |template: &str| {
        template::fill(template, |placeholder| match placeholder {
            Placeholder::User => Some(session.user.as_str()),
            Placeholder::Workspace => Some(workspace.name.as_str()),
            // No name of a volume contains the others.
            Placeholder::Session | Placeholder::Secret => None,
        })
    };
    workspace.volumes.iter().map(move |volume| fill(&volume.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::sample;
    use crate::types::{Bytes, Cores, SessionState, VolumeMount};
    use std::sync::Arc;

    #[test]
    fn a_volume_shows_the_sessions_that_use_it_until_they_are_gone() {
        let mut desktop = Workspace::new("desktop".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        desktop.volumes = vec![VolumeMount {
            name: "{workspace}-{user}".to_owned(),
            path: "/home".to_owned(),
            read_only: false,
            roam: false,
        }];
        let catalogue = catalogue::Snapshot {
            workspaces: [(desktop.name.clone(), Arc::new(desktop))].into(),
            ..catalogue::Snapshot::default()
        };
        let mut sessions = sessions::Snapshot::default();
        for (key, state) in [("a", SessionState::Running), ("b", SessionState::Stopped), ("c", SessionState::Stopped)] {
            let session = sample::session_profile(key, "desktop", "alice", state);
            sessions.sessions.insert(session.id, Arc::new(session));
        }
        let gone = sample::session("c", "desktop", "alice", SessionState::Stopped).id;
        sessions.gone.insert(gone);
        let users = users(&sessions, &catalogue);
        assert_eq!(users.keys().collect::<Vec<_>>(), ["desktop-alice"]);
        assert_eq!(users["desktop-alice"].len(), 2);
        assert!(!users["desktop-alice"].contains(&gone));
    }
}
