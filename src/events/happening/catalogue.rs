//! What happens to workspaces and API tokens.

use serde_json::Value;

use super::Happening;
use crate::types::{ApiToken, EventKind, Name, TargetKind, Workspace};

impl Happening {
    pub fn workspace_added(workspace: &Workspace) -> Self {
        changed(&workspace.name, "added")
    }

    pub fn workspace_removed(name: &Name) -> Self {
        changed(name, "removed")
    }

    /// Names the fields that differ; their values may be long, and the environment may be private.
    pub fn workspace_changed(before: &Workspace, after: &Workspace) -> Self {
        let fields = differing(before, after);
        let mut happening = changed(&after.name, "changed").with("fields", &fields);
        happening.message += &format!(": {}", fields.join(", "));
        happening
    }

    pub fn workspace_conflict(name: &Name) -> Self {
        let message = format!("workspace {name} was changed on two sides of a partition: the later change won");
        Self::of(EventKind::WorkspaceConflict, message).about(TargetKind::Workspace, name, Some(name.to_string()))
    }

    pub fn token_created(token: &ApiToken) -> Self {
        let ApiToken { id, name, role, expires_at, .. } = token;
        let until = expires_at.map_or_else(|| "without an end".to_owned(), |at| format!("until {at}"));
        Self::of(EventKind::TokenCreated, format!("API token {name} was created with role {role}, {until}"))
            .about(TargetKind::Token, id, Some(name.to_string()))
            .with("role", role)
            .with("expires_at", expires_at)
    }

    pub fn token_revoked(token: &ApiToken) -> Self {
        let ApiToken { id, name, .. } = token;
        Self::of(EventKind::TokenRevoked, format!("API token {name} was revoked")).about(
            TargetKind::Token,
            id,
            Some(name.to_string()),
        )
    }
}

fn changed(name: &Name, how: &str) -> Happening {
    Happening::of(EventKind::WorkspaceChanged, format!("workspace {name} was {how}"))
        .about(TargetKind::Workspace, name, Some(name.to_string()))
        .with("change", how)
}

fn differing(before: &Workspace, after: &Workspace) -> Vec<String> {
    let fields = |workspace: &Workspace| match serde_json::to_value(workspace) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    let mut names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| before.get(name) != after.get(name));
    names
}
