//! The owner of the catalogue.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::store::{self, Store};
use super::{
    Book, Edit, Edited, Entry, Error, Handle, Key, MAX_TOKENS, MAX_WORKSPACES, Replicas, Request, Snapshot,
    StoredToken, Value, sync, token,
};
use crate::clock::Clock;
use crate::election::Leadership;
use crate::gossip::ClusterView;
use crate::types::{Actor, ApiTokenRequest, Ballot, Name, NodeId, Workspace};

/// Requests that wait for the owner. Further callers wait to send: each change takes one write to disk.
const QUEUE: usize = 256;

/// What the owner needs.
pub struct Parts {
    pub store: Store,
    pub kept: Book,
    pub me: NodeId,
    pub leadership: watch::Receiver<Arc<Leadership>>,
    pub view: watch::Receiver<Arc<ClusterView>>,
    pub replicas: Arc<dyn Replicas>,
    pub clock: Clock,
}

/// Starts the owner. It ends when the last [`Handle`] is gone.
pub fn spawn(parts: Parts) -> (Handle, JoinHandle<()>) {
    let Parts { store, kept, me, leadership, view, replicas, clock } = parts;
    let (requests, queue) = mpsc::channel(QUEUE);
    let book = Arc::new(kept);
    let (publish, snapshot) = watch::channel(Arc::new(book.snapshot(false)));
    let handle = Handle { requests, snapshot, leadership: leadership.clone(), replicas, me };
    let owner = Owner { store, book, clock, leadership: leadership.clone(), seq: 0, synced: false, publish };
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
    book: Arc<Book>,
    clock: Clock,
    leadership: watch::Receiver<Arc<Leadership>>,
    /// Distinguishes the changes of this node under one ballot.
    seq: u64,
    synced: bool,
    publish: watch::Sender<Arc<Snapshot>>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "cannot remove expired entries from the catalogue");
        }
        while let Some(request) = queue.recv().await {
            // A failed send is ignored: the caller may stop waiting, and the change is made or rejected all the same.
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
            return Err(Error::Conflict(format!("workspace {name} exists already")));
        }
        let new = existing.is_none();
        if existing.is_some_and(|existing| **existing == workspace) {
            // After an edit with an unknown outcome only this node may have the entry, so it is replicated again.
            let entry = self.book.entry(&Key::Workspace(name)).map(|entry| (**entry).clone());
            return Ok((Edited::Put { new }, entry));
        }
        if new && catalogue.workspaces.len() >= MAX_WORKSPACES {
            return Err(Error::Conflict(format!("the catalogue is full: at most {MAX_WORKSPACES} workspaces")));
        }
        let entry = self.write(Key::Workspace(name.clone()), Value::Workspace(Box::new(workspace)), ballot).await?;
        tracing::info!(%name, new, %by, "workspace stored");
        Ok((Edited::Put { new }, Some(entry)))
    }

    async fn delete(&mut self, name: &Name, ballot: Ballot, by: &Actor) -> Result<(Edited, Option<Entry>), Error> {
        if !self.publish.borrow().workspaces.contains_key(name) {
            return Err(Error::NotFound { what: "workspace".into(), name: name.to_string() });
        }
        let entry = self.write(Key::Workspace(name.clone()), Value::Tombstone, ballot).await?;
        tracing::info!(%name, %by, "workspace removed");
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
            return Err(Error::Conflict(format!(
                "the catalogue is full: at most {MAX_TOKENS} API tokens; revoke tokens that are not in use"
            )));
        }
        let (new, stored) = token::new(&catalogue, request, self.clock.now())?;
        let key = Key::Token(stored.token.id.clone());
        let entry = self.write(key, Value::Token(Box::new(stored)), ballot).await?;
        tracing::info!(id = %new.token.id, name = %new.token.name, role = %new.token.role, %by, "API token created");
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
        let id = self.publish.borrow().tokens.values().find(named).map(|stored| stored.token.id.clone());
        let Some(id) = id else {
            return Err(Error::NotFound { what: "API token".into(), name: id_or_name.to_owned() });
        };
        let entry = self.write(Key::Token(id.clone()), Value::Tombstone, ballot).await?;
        tracing::info!(%id, %by, "API token revoked");
        Ok((Edited::Done, Some(entry)))
    }

    /// Stores the entries that are newer.
    async fn keep(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let now = self.clock.now();
        let mut book = (*self.book).clone();
        let mut changed = Vec::new();
        for mut entry in entries {
            if let Value::Token(stored) = &mut entry.value {
                **stored = token::rebased(stored, now); // the deadline is relative to the boot of the sending host
            }
            let key = entry.key.clone();
            let lost = book.conflict(&key).cloned();
            if book.merge(entry) || book.conflict(&key) != lost.as_ref() {
                changed.push(key);
            }
        }
        for conflict in changed.iter().filter_map(|key| book.conflict(key)) {
            tracing::warn!(key = ?conflict.previous.key, "changed on both sides of a partition: one change was lost");
        }
        self.commit(book, &changed).await
    }

    /// Writes the next version of an entry.
    async fn write(&mut self, key: Key, value: Value, ballot: Ballot) -> Result<Entry, Error> {
        self.seq += 1;
        let version = self.book.next_version(&key, ballot, self.seq);
        let entry = Entry { key: key.clone(), version, changed_at: self.clock.now().wall, value };
        let mut book = (*self.book).clone();
        book.merge(entry.clone());
        self.commit(book, &[key]).await?;
        Ok(entry)
    }

    /// Removes expired tokens and old tombstones, and rebases the other deadlines onto this boot. Every node does so by
    /// itself, without replication.
    async fn tidy(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut book = (*self.book).clone();
        let mut changed = book.forget_old(now.wall);
        for entry in self.book.entries() {
            let Value::Token(stored) = &entry.value else { continue };
            let value = if token::has_expired(stored, now) {
                tracing::info!(id = %stored.token.id, name = %stored.token.name, "API token expired");
                Value::Tombstone
            } else {
                Value::Token(Box::new(token::rebased(stored, now)))
            };
            if value != entry.value {
                changed.push(entry.key.clone());
                book.restate(Entry { value, ..(**entry).clone() });
            }
        }
        self.commit(book, &changed).await
    }

    /// Writes the changed entries, then publishes the book.
    async fn commit(&mut self, book: Book, changed: &[Key]) -> Result<(), Error> {
        if changed.is_empty() {
            return Ok(());
        }
        let changes = changed.iter().flat_map(|key| store::write(&book, key)).collect();
        self.store.commit(changes).await.map_err(|e| Error::Store(e.to_string()))?;
        self.book = Arc::new(book);
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(self.book.snapshot(self.synced)));
    }
}

#[cfg(test)]
mod tests;
