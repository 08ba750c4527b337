//! The owner of the catalogue.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::store::{self, Store};
use super::{
    Contents, Edit, Edited, Entry, Error, Handle, Key, MAX_TOKENS, MAX_WORKSPACES, Replicas, Request, Snapshot,
    StoredToken, Value, sync, token,
};
use crate::clock::Clock;
use crate::election::Leadership;
use crate::events::{self, Happening};
use crate::gossip::ClusterView;
use crate::types::{Actor, ApiTokenRequest, Ballot, Name, NodeId, Workspace};

/// Changes that wait for the owner at most. Further callers wait for a place: each change takes one write to disk.
const QUEUE: usize = 256;

/// What the owner needs.
pub struct Parts {
    pub store: Store,
    pub stored: Contents,
    pub me: NodeId,
    pub leadership: watch::Receiver<Arc<Leadership>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub replicas: Arc<dyn Replicas>,
    pub events: events::Handle,
    pub clock: Clock,
}

/// Starts the owner. It ends when the last [`Handle`] is gone.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let Parts { store, stored, me, leadership, view, replicas, events, clock } = parts;
    let (requests, queue) = mpsc::channel(QUEUE);
    let contents = Arc::new(stored);
    let (publish, snapshot) = watch::channel(Arc::new(contents.snapshot(false)));
    let handle = Handle { requests, snapshot, leadership: leadership.clone(), replicas, me };
    let owner =
        Owner { store, contents, events, clock, leadership: leadership.clone(), seq: 0, synced: false, publish };
    let comparing = sync::run(handle.weak(), leadership, view);
    let task = tokio::spawn(async move {
        tokio::select! {
            () = owner.run(queue) => {}
            () = comparing => {}
        }
    });
    (handle, task)
}

struct Owner {
    store: Store,
    contents: Arc<Contents>,
    events: events::Handle,
    clock: Clock,
    leadership: watch::Receiver<Arc<Leadership>>,
    /// Distinguishes the changes that this node makes under one ballot.
    seq: u64,
    synced: bool,
    publish: watch::Sender<Arc<Snapshot>>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "cannot remove old entries from the catalogue");
        }
        while let Some(request) = queue.recv().await {
            // The caller may have gone: the change is made or rejected all the same.
            match request {
                Request::Edit(edit, by, reply) => drop(reply.send(self.edit(*edit, &by).await)),
                Request::Keep(entries, reply) => drop(reply.send(self.keep(entries).await)),
                Request::Synced => {
                    self.synced = true;
                    self.publish();
                }
            }
        }
    }

    async fn edit(&mut self, edit: Edit, by: &Actor) -> Result<(Edited, Option<Entry>), Error> {
        let ballot = match &self.leadership.borrow().reign {
            Some(reign) => reign.ballot,
            None => return Err(Error::NoLeader),
        };
        match edit {
            Edit::Put { workspace, create_only } => self.put(*workspace, create_only, ballot, by).await,
            Edit::Delete(name) => self.delete(&name, ballot, by).await,
            Edit::CreateToken(request) => self.create_token(&request, ballot, by).await,
            Edit::RevokeToken(id_or_name) => self.revoke_token(&id_or_name, ballot, by).await,
        }
    }

    async fn put(
        &mut self,
        workspace: Workspace,
        create_only: bool,
        ballot: Ballot,
        by: &Actor,
    ) -> Result<(Edited, Option<Entry>), Error> {
        workspace.validate()?;
        let name = workspace.name.clone();
        let catalogue = self.publish.borrow().clone();
        let existing = catalogue.workspaces.get(&name);
        if existing.is_some() && create_only {
            return Err(Error::WorkspaceExists(name));
        }
        let new = existing.is_none();
        if existing.is_some_and(|existing| **existing == workspace) {
            // It may be here and nowhere else, after an edit whose outcome was not known: others get it again.
            let entry = self.contents.entry(&Key::Workspace(name)).map(|entry| (**entry).clone());
            return Ok((Edited::Put { new }, entry));
        }
        if new && catalogue.workspaces.len() >= MAX_WORKSPACES {
            return Err(Error::TooManyWorkspaces);
        }
        let told = match existing {
            Some(before) => Happening::workspace_changed(before, &workspace),
            None => Happening::workspace_added(&workspace),
        };
        let entry = self.write(Key::Workspace(name), Value::Workspace(Box::new(workspace)), ballot).await?;
        self.events.record(told, Some(by));
        Ok((Edited::Put { new }, Some(entry)))
    }

    async fn delete(&mut self, name: &Name, ballot: Ballot, by: &Actor) -> Result<(Edited, Option<Entry>), Error> {
        if !self.publish.borrow().workspaces.contains_key(name) {
            return Err(Error::NoWorkspace(name.clone()));
        }
        let entry = self.write(Key::Workspace(name.clone()), Value::Tombstone, ballot).await?;
        self.events.record(Happening::workspace_removed(name), Some(by));
        Ok((Edited::Done, Some(entry)))
    }

    async fn create_token(
        &mut self,
        request: &ApiTokenRequest,
        ballot: Ballot,
        by: &Actor,
    ) -> Result<(Edited, Option<Entry>), Error> {
        self.tidy().await?; // frees the names of expired tokens
        let catalogue = self.publish.borrow().clone();
        if catalogue.tokens.len() >= MAX_TOKENS {
            return Err(Error::TooManyTokens);
        }
        let (new, stored) = token::new(&catalogue, request, self.clock.now())?;
        let key = Key::Token(stored.token.id.clone());
        let entry = self.write(key, Value::Token(Box::new(stored)), ballot).await?;
        self.events.record(Happening::token_created(&new.token), Some(by));
        Ok((Edited::Token(new), Some(entry)))
    }

    async fn revoke_token(
        &mut self,
        id_or_name: &str,
        ballot: Ballot,
        by: &Actor,
    ) -> Result<(Edited, Option<Entry>), Error> {
        let named =
            |stored: &&Arc<StoredToken>| stored.token.id == id_or_name || stored.token.name.as_str() == id_or_name;
        let token = self.publish.borrow().tokens.values().find(named).map(|stored| stored.token.clone());
        let Some(token) = token else {
            return Err(Error::NoToken(id_or_name.to_owned()));
        };
        let entry = self.write(Key::Token(token.id.clone()), Value::Tombstone, ballot).await?;
        self.events.record(Happening::token_revoked(&token), Some(by));
        Ok((Edited::Done, Some(entry)))
    }

    /// Stores the entries that are newer than this node's.
    async fn keep(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let now = self.clock.now();
        let mut contents = (*self.contents).clone();
        let mut changed = Vec::new();
        for mut entry in entries {
            if let Value::Token(stored) = &mut entry.value {
                **stored = token::rebased(stored, now); // to this host's clock
            }
            let key = entry.key.clone();
            let lost = contents.conflict(&key).cloned();
            if contents.merge(entry) || contents.conflict(&key) != lost.as_ref() {
                changed.push(key);
            }
        }
        for conflict in changed.iter().filter_map(|key| contents.conflict(key)) {
            match &conflict.previous.key {
                Key::Workspace(name) => self.events.record(Happening::workspace_conflict(name), None),
                Key::Token(id) => {
                    tracing::warn!(%id, "an API token was changed on two sides of a partition: the later change won");
                }
            }
        }
        self.commit(contents, &changed).await
    }

    /// Writes the next version of an entry.
    async fn write(&mut self, key: Key, value: Value, ballot: Ballot) -> Result<Entry, Error> {
        self.seq += 1;
        let version = self.contents.next_version(&key, ballot, self.seq);
        let entry = Entry { key: key.clone(), version, changed_at: self.clock.now().wall, value };
        let mut contents = (*self.contents).clone();
        contents.merge(entry.clone());
        self.commit(contents, &[key]).await?;
        Ok(entry)
    }

    /// Removes expired tokens and old tombstones, and rebases the deadlines of the other tokens to this boot. Every
    /// node does so by itself, so nothing is sent to the others.
    async fn tidy(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut contents = (*self.contents).clone();
        let mut changed = contents.forget_old(now.wall);
        for entry in self.contents.entries() {
            let Value::Token(stored) = &entry.value else { continue };
            let value = if token::has_expired(stored, now) {
                tracing::info!(id = %stored.token.id, name = %stored.token.name, "API token expired");
                Value::Tombstone
            } else {
                Value::Token(Box::new(token::rebased(stored, now)))
            };
            if value != entry.value {
                changed.push(entry.key.clone());
                contents.restate(Entry { value, ..(**entry).clone() });
            }
        }
        self.commit(contents, &changed).await
    }

    /// Writes what changed, then publishes it.
    async fn commit(&mut self, contents: Contents, changed: &[Key]) -> Result<(), Error> {
        if changed.is_empty() {
            return Ok(());
        }
        let changes = changed.iter().flat_map(|key| store::write(&contents, key)).collect();
        self.store.commit(changes).await.map_err(|error| Error::Store(error.into()))?;
        self.contents = Arc::new(contents);
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(self.contents.snapshot(self.synced)));
    }
}

#[cfg(test)]
mod tests;
