//! Places the sessions that are requested by name, where this node leads.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use super::book::Begin;
use super::state::Place;
use super::{Error, Handle};
use crate::catalogue;
use crate::sessions::Admitted;
use crate::types::{Actor, Name, Plan, SessionId, SessionRequest, Workspace};

/// Random bytes of the key that is drawn for a request without one.
const KEY_BYTES: usize = 16;

/// Places sessions. Cheap to clone.
#[derive(Clone)]
pub struct Placer {
    cluster: Name,
    catalogue: catalogue::Handle,
    placement: Handle,
}

impl Placer {
    pub const fn new(cluster: Name, catalogue: catalogue::Handle, placement: Handle) -> Self {
        Self { cluster, catalogue, placement }
    }

    /// The cluster's name, which is part of every session id.
    pub const fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// Places a session, as the leader. `drawn`: the key was drawn for this request alone.
    ///
    /// # Errors
    /// No host admitted it, or it is not known whether one did.
    pub async fn place_here(
        &self,
        session: SessionId,
        drawn: bool,
        request: SessionRequest,
        by: Actor,
    ) -> Result<Admitted, Error> {
        // An error is not returned yet: a retry finds its session even if the workspace has been removed since.
        let workspace = self.resolve(&request);
        let fingerprint = request.fingerprint();
        let begin = Begin { session, user: request.user, workspace, drawn };
        self.placement.place(Place { begin, fingerprint, by: Some(by) }).await
    }

    /// Says where the session would go, and changes nothing.
    ///
    /// # Errors
    /// No host would admit it.
    pub async fn dry_run_here(&self, request: SessionRequest) -> Result<Plan, Error> {
        let workspace = self.resolve(&request)?;
        let session = SessionId::of_key(&self.cluster, &draw_key()?);
        Ok(self.placement.dry_run(session, request.user, workspace).await?.into())
    }

    /// A host leaves a registry alone for so long, because it limits pulls.
    pub async fn limited(&self, registry: String, pause: Duration) {
        self.placement.limited(registry, pause).await;
    }

    /// How long a registry is to be left alone, by what hosts told; `None`: not at all.
    pub async fn ask_limit(&self, registry: String) -> Option<Duration> {
        self.placement.ask_limit(registry).await
    }

    /// The workspace with the request's values, every value checked.
    fn resolve(&self, request: &SessionRequest) -> Result<Workspace, Error> {
        request.validate()?;
        let catalogue = self.catalogue.snapshot();
        let workspace = catalogue
            .workspaces
            .get(&request.workspace)
            .ok_or_else(|| Error::NoWorkspace(request.workspace.clone()))?;
        let resolved = workspace.resolve(request);
        resolved.validate()?;
        Ok(resolved)
    }
}

/// A key for a request that has none.
///
/// # Errors
/// [`Error::NoRandomBytes`].
pub fn draw_key() -> Result<String, Error> {
    let mut bytes = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomBytes)?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}
