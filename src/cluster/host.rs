//! The calls that this node answers as a host: on its own sessions, settings and volumes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::rpc::Serves;
use super::volumes;
use crate::events::Happening;
use crate::images::Fetching;
use crate::observe::{Observed, Observer};
use crate::placement::{Have, HostReport};
use crate::sessions::Snapshot;
use crate::types::{
    Actor, Explanation, Gpu, GpuProfile, GpuState, Node, NodeId, NodeProfile, Refreshed, Remembered, Session,
    SessionId, SessionState, Volume, Wait,
};
use crate::wire::message::{
    Admit, AdmitError, ChangeGpu, Claim, Command, Compare, Describe, Drain, Explain, FetchImage, Find, Forget,
    ForgetSession, Hold, Keep, OfferImage, Patch, Refresh, RemoveVolume, Report, Secret, Undrain, Volumes,
};
use crate::{catalogue, doctor, election, events, gossip, gpu, history, images, node, sessions};

/// How long a report waits for a change.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a change waits until the leader knows of it. Without this wait, a caller's next request to the leader
/// would be answered from the state before the change.
pub(super) const KNOWN_WITHIN: Duration = Duration::from_millis(500);
/// The upper limit of a wait that a caller requests: longer than proxies keep an idle request open.
pub const MAX_HOLD: Duration = Duration::from_secs(600);

/// The handles of this host's owners. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    /// This node's profile and usage.
    pub observer: Observer,
    pub settings: node::Handle,
    pub gpus: gpu::Handle,
    pub events: events::Handle,
    pub history: history::Handle,
    pub doctor: doctor::task::Handle,
    /// `None`: the runtime has no images.
    pub images: Option<images::Handle>,
    /// Gives images to other nodes; `None` like `images`.
    pub giver: Option<images::give::Giver>,
    /// Reads the configuration again.
    pub refresh: node::refresh::Handle,
    pub sessions: sessions::Handle,
    pub catalogue: catalogue::Handle,
    pub election: election::Handle,
    /// The versions that the leader has of this host, by its last request for a report.
    pub told: Arc<watch::Sender<Option<Have>>>,
    /// Set once gossip has started: gossip publishes this host, so it starts after it.
    pub gossip: Arc<OnceLock<gossip::Handle>>,
}

impl Host {
    pub fn node(&self) -> Node {
        self.observer.node()
    }

    /// Returns once the leader has the current state of this host, or after [`KNOWN_WITHIN`].
    async fn is_known(&self) {
        let mut told = self.told.subscribe();
        let is_now = |have: Have| {
            have.node == self.observer.observed().version
                && !self.sessions.snapshot().feed.is_news_to(Some(have.sessions))
        };
        let known = told.wait_for(|told| told.is_some_and(is_now));
        let _ = tokio::time::timeout(KNOWN_WITHIN, known).await;
    }

    async fn forget(&self, node: NodeId, session: Option<SessionId>, by: &Actor) -> Result<(), gossip::Error> {
        match self.gossip.get() {
            Some(gossip) => gossip.forget(node, session, by.clone()).await,
            // A node without a cluster knows no other node.
            None => Err(gossip::Error::NotFound(node)),
        }
    }

    /// Returns once this host's profile shows the change of the GPU, or after [`KNOWN_WITHIN`]: what the owner of the
    /// GPUs publishes reaches the profile by way of other owners.
    async fn shows(&self, uuid: &str, change: gpu::Command) {
        let shown = async {
            loop {
                let Observed { version, profile, .. } = self.observer.observed();
                if is_shown(change, profile.gpus.iter().find(|gpu| gpu.uuid == uuid)) {
                    return;
                }
                self.observer.differs_from(Some(version)).await;
            }
        };
        let _ = tokio::time::timeout(KNOWN_WITHIN, shown).await;
    }

    /// This node after a change.
    async fn changed(&self) -> Node {
        self.is_known().await;
        self.node()
    }
}

#[async_trait]
impl Serves<Report> for Host {
    async fn serve(&self, Report { ballot, have }: Report, _: &Actor) -> Result<HostReport, election::Stale> {
        self.election.adopt(&ballot).await?;
        self.told.send_replace(have);
        let (known, version) = (have.map(|have| have.sessions), have.map(|have| have.node));
        let news = self.sessions.changes(ballot, known, REPORT_PATIENCE);
        let changes = tokio::select! {
            // A change of a session mostly changes the node's profile too: the branch above has that report already.
            biased;
            changes = news => changes?,
            // A change of the profile or of the images alone also calls for a report.
            () = self.observer.differs_from(version) => self.sessions.changes(ballot, known, Duration::ZERO).await?,
        };
        let Observed { version, profile, images } = self.observer.observed();
        Ok(HostReport {
            profile: NodeProfile::clone(&profile),
            images: images::Here::clone(&images),
            version,
            usage: self.observer.usage(),
            at: self.observer.now(),
            changes,
        })
    }
}

#[async_trait]
impl Serves<Admit> for Host {
    async fn serve(&self, Admit(admit): Admit, _: &Actor) -> Result<sessions::Admitted, AdmitError> {
        self.election.adopt(&admit.ballot).await.map_err(AdmitError::Stale)?;
        self.sessions.admit(admit).await.map_err(AdmitError::from)
    }
}

#[async_trait]
impl Serves<Claim> for Host {
    async fn serve(&self, Claim { ballot, session }: Claim, _: &Actor) -> Result<sessions::Claimed, AdmitError> {
        self.election.adopt(&ballot).await.map_err(AdmitError::Stale)?;
        self.sessions.claim(ballot, session).await.map_err(AdmitError::from)
    }
}

#[async_trait]
impl Serves<Find> for Host {
    async fn serve(&self, Find { session, fingerprint }: Find, _: &Actor) -> Result<Option<Session>, sessions::Error> {
        self.sessions.find(&session, fingerprint).await
    }
}

#[async_trait]
impl Serves<Command> for Host {
    async fn serve(&self, Command { session, command }: Command, by: &Actor) -> Result<Session, sessions::Error> {
        let commanded = self.sessions.command(session, command, by.clone()).await?;
        self.is_known().await;
        Ok(commanded)
    }
}

#[async_trait]
impl Serves<Secret> for Host {
    async fn serve(&self, Secret(session): Secret, _: &Actor) -> Result<Option<String>, sessions::Error> {
        self.sessions.secret(session).await
    }
}

#[async_trait]
impl Serves<Explain> for Host {
    async fn serve(&self, Explain(session): Explain, _: &Actor) -> Result<Explanation, sessions::Error> {
        self.sessions.explain(session).await
    }
}

#[async_trait]
impl Serves<Hold> for Host {
    async fn serve(&self, Hold { session, wait, timeout_millis }: Hold, _: &Actor) -> Option<Remembered> {
        let timeout = Duration::from_millis(timeout_millis).min(MAX_HOLD);
        let held = hold(self.sessions.watch(), &session, wait, timeout).await;
        if held.as_ref().is_some_and(|held| held.gone || held.session.state == SessionState::Stopped) {
            // The leader should know of the freed resources before the caller asks for them.
            self.is_known().await;
        }
        held
    }
}

#[async_trait]
impl Serves<Describe> for Host {
    async fn serve(&self, Describe: Describe, _: &Actor) -> Node {
        self.node()
    }
}

#[async_trait]
impl Serves<Patch> for Host {
    async fn serve(&self, Patch(patch): Patch, by: &Actor) -> Result<Node, node::Error> {
        self.settings.patch(patch, by.clone()).await?;
        Ok(self.changed().await)
    }
}

#[async_trait]
impl Serves<Drain> for Host {
    async fn serve(&self, Drain(request): Drain, by: &Actor) -> Result<Node, node::Error> {
        self.settings.drain(request, by.clone()).await?;
        Ok(self.changed().await)
    }
}

#[async_trait]
impl Serves<Undrain> for Host {
    async fn serve(&self, Undrain: Undrain, by: &Actor) -> Result<Node, node::Error> {
        self.settings.undrain(by.clone()).await?;
        Ok(self.changed().await)
    }
}

#[async_trait]
impl Serves<Refresh> for Host {
    async fn serve(&self, Refresh: Refresh, by: &Actor) -> Result<Refreshed, node::Error> {
        self.refresh.refresh(by.clone()).await
    }
}

#[async_trait]
impl Serves<ChangeGpu> for Host {
    async fn serve(&self, ChangeGpu { uuid, command }: ChangeGpu, by: &Actor) -> Result<Option<Gpu>, gpu::Error> {
        self.gpus.command(&uuid, command, by.clone()).await?;
        self.shows(&uuid, command).await;
        let changed = self.changed().await;
        Ok(changed.gpus.into_iter().find(|gpu| gpu.uuid == uuid))
    }
}

#[async_trait]
impl Serves<FetchImage> for Host {
    async fn serve(&self, FetchImage { image, how }: FetchImage, _: &Actor) -> Result<Fetching, images::Error> {
        self.images.as_ref().ok_or(images::Error::NoImages)?.fetch(&image, how).await
    }
}

#[async_trait]
impl Serves<OfferImage> for Host {
    async fn serve(&self, OfferImage(image): OfferImage, _: &Actor) -> Option<images::offers::Offer> {
        self.giver.as_ref()?.offer(&image).await
    }
}

#[async_trait]
impl Serves<Volumes> for Host {
    async fn serve(&self, Volumes: Volumes, _: &Actor) -> Result<Vec<Volume>, sessions::Error> {
        let names = self.sessions.runtime().volumes().await?;
        let users = volumes::users(&self.sessions.snapshot(), &self.catalogue.snapshot());
        Ok(volumes::describe(names, users, &self.settings.state().name))
    }
}

#[async_trait]
impl Serves<RemoveVolume> for Host {
    async fn serve(&self, RemoveVolume(name): RemoveVolume, by: &Actor) -> Result<(), sessions::Error> {
        let users = volumes::users(&self.sessions.snapshot(), &self.catalogue.snapshot());
        if let Some(session) = users.get(&name).and_then(|sessions| sessions.first()) {
            let message = format!("volume {name} is used by session {session}");
            return Err(sessions::Error::Conflict(message));
        }
        self.sessions.runtime().remove_volume(&name).await?;
        self.events.record(Happening::volume_removed(&name), Some(by));
        Ok(())
    }
}

#[async_trait]
impl Serves<Forget> for Host {
    async fn serve(&self, Forget(node): Forget, by: &Actor) -> Result<(), gossip::Error> {
        self.forget(node, None, by).await
    }
}

#[async_trait]
impl Serves<ForgetSession> for Host {
    async fn serve(&self, ForgetSession { node, session }: ForgetSession, by: &Actor) -> Result<(), gossip::Error> {
        self.forget(node, Some(session), by).await
    }
}

#[async_trait]
impl Serves<Keep> for Host {
    async fn serve(&self, Keep(entries): Keep, _: &Actor) -> Result<(), catalogue::Error> {
        self.catalogue.keep(entries).await
    }
}

#[async_trait]
impl Serves<Compare> for Host {
    async fn serve(&self, Compare(versions): Compare, _: &Actor) -> catalogue::Difference {
        self.catalogue.compare(&versions)
    }
}

#[async_trait]
impl Serves<election::Request> for Host {
    async fn serve(&self, request: election::Request, _: &Actor) -> Result<election::Answer, election::Error> {
        self.election.answer(request).await
    }
}

/// The session, once `wait` is met or the timeout is over. `None`: this host has no record of it.
async fn hold(
    mut sessions: watch::Receiver<Arc<Snapshot>>,
    id: &SessionId,
    wait: Wait,
    timeout: Duration,
) -> Option<Remembered> {
    let wanted = sessions.wait_for(|snapshot| is_over(wait, snapshot, id));
    // An error means that the daemon is stopping: the last snapshot is the answer.
    let _ = tokio::time::timeout(timeout, wanted).await;
    let snapshot = sessions.borrow();
    Some(Remembered { session: snapshot.document(id)?, gone: snapshot.gone.contains(id) })
}

fn is_over(wait: Wait, snapshot: &Snapshot, id: &SessionId) -> bool {
    let Some(session) = snapshot.sessions.get(id).filter(|_| !snapshot.gone.contains(id)) else { return true };
    wait.is_over(session.state, session.ready_at.is_some(), false)
}

/// Whether a GPU, as the profile has it, is as the change wants it.
fn is_shown(change: gpu::Command, gpu: Option<&GpuProfile>) -> bool {
    match change {
        gpu::Command::Cordon => gpu.is_none_or(|gpu| gpu.cordoned),
        // An uncordon also gives a device that was failing another chance.
        gpu::Command::Uncordon => gpu.is_none_or(|gpu| !gpu.cordoned && gpu.state != GpuState::Failing),
        gpu::Command::Forget => gpu.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::sample;

    fn snapshot(state: SessionState, gone: bool) -> (Arc<Snapshot>, SessionId) {
        let session = sample::session_profile("k", "desktop", "alice", state);
        let id = session.id;
        let mut snapshot = Snapshot::default();
        snapshot.sessions.insert(id, Arc::new(session));
        if gone {
            snapshot.gone.insert(id);
        }
        (Arc::new(snapshot), id)
    }

    #[test]
    fn a_wait_ends_when_the_session_has_ended_or_is_gone() {
        use SessionState::{Failed, Paused, Running, Starting, Stopped};
        let met = |state, gone, wait: Wait| {
            let (snapshot, id) = snapshot(state, gone);
            is_over(wait, &snapshot, &id)
        };
        assert!(met(Running, false, Wait::Until(Running)));
        assert!(met(Failed, false, Wait::Until(Running)));
        assert!(met(Stopped, true, Wait::Until(Running)));
        assert!(!met(Starting, false, Wait::Until(Running)));
        assert!(!met(Running, false, Wait::Until(Paused)));
        assert!(!met(Stopped, false, Wait::UntilGone));
        assert!(met(Stopped, true, Wait::UntilGone));
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_change() {
        let (starting, id) = snapshot(SessionState::Starting, false);
        let (sessions, watching) = watch::channel(starting);
        let waiting =
            tokio::spawn(async move { hold(watching, &id, Wait::Until(SessionState::Running), MAX_HOLD).await });
        sessions.send_replace(snapshot(SessionState::Pulling, false).0);
        sessions.send_replace(snapshot(SessionState::Running, false).0);
        assert_eq!(waiting.await.unwrap().unwrap().session.state, SessionState::Running);
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_timeout() {
        let (starting, id) = snapshot(SessionState::Starting, false);
        let (_sessions, watching) = watch::channel(starting);
        let late = hold(watching, &id, Wait::Until(SessionState::Running), Duration::ZERO).await;
        assert_eq!(late.unwrap().session.state, SessionState::Starting);
    }

    #[test]
    fn a_change_of_a_gpu_is_shown_once_its_profile_has_it() {
        use gpu::Command::{Cordon, Forget, Uncordon};
        let gpu = |cordoned, state| GpuProfile { cordoned, state, ..sample::gpu("GPU-1", 0) };
        let shown = |change, cordoned, state| is_shown(change, Some(&gpu(cordoned, state)));
        assert!(shown(Cordon, true, GpuState::Lost) && !shown(Cordon, false, GpuState::Ok));
        assert!(shown(Uncordon, false, GpuState::Ok) && !shown(Uncordon, true, GpuState::Cordoned));
        assert!(!shown(Uncordon, false, GpuState::Failing), "it gets another chance");
        assert!(!shown(Forget, false, GpuState::Lost));
        assert!([Cordon, Uncordon, Forget].into_iter().all(|change| is_shown(change, None)));
    }
}
