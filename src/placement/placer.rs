//! Takes a request to the host that admits it. Used where this node leads.

use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};

use super::book::{Again, Begin, Begun};
use super::flights::End;
use super::offer::{Offer, Step};
use super::plan::Offers;
use super::{Error, Handle, Hosts, Placed};
use crate::catalogue;
use crate::clock::Clock;
use crate::sessions::{Admit, Admitted, Asked};
use crate::types::{Actor, Ballot, Name, NodeId, Plan, Session, SessionId, SessionRequest, SessionState, Workspace};

/// Random bytes of the key that is drawn for a request without one.
const KEY_BYTES: usize = 16;
/// The first offer of a session.
const FIRST_ATTEMPT: u32 = 1;
/// How often a host may say that it does not have what it was just said to have.
const MAX_MISUNDERSTANDINGS: u32 = 3;

/// Places sessions. Cheap to clone.
#[derive(Clone)]
pub struct Placer {
    cluster: Name,
    catalogue: catalogue::Handle,
    hosts: Arc<dyn Hosts>,
    book: Handle,
    clock: Clock,
}

impl Placer {
    pub fn new(cluster: Name, catalogue: catalogue::Handle, hosts: Arc<dyn Hosts>, book: Handle, clock: Clock) -> Self {
        Self { cluster, catalogue, hosts, book, clock }
    }

    /// The cluster's name, which session ids are made with.
    pub const fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// Places a session, as the leader. `drawn`: its key was drawn for this very request.
    pub async fn place_here(
        &self,
        session: SessionId,
        drawn: bool,
        request: SessionRequest,
        by: Actor,
    ) -> Result<Placed, Error> {
        let fingerprint = request.fingerprint();
        for _ in 0..MAX_MISUNDERSTANDINGS {
            // A retry finds its session even where the workspace is gone by now.
            let workspace = self.resolve(&request);
            let begin = Begin { session, user: request.user.clone(), workspace: workspace.clone(), drawn };
            match self.book.begin(begin).await? {
                Begun::Offer { ballot, offers } => {
                    let asked = Asked {
                        user: request.user,
                        fingerprint,
                        workspace: workspace?,
                        attempt: FIRST_ATTEMPT,
                        tried: Vec::new(),
                        secret: None,
                        by: Some(by),
                    };
                    let Admitted { session, replayed } = self.offer(&session, &ballot, &asked, offers).await?;
                    return Ok(Placed { session, replayed });
                }
                Begun::Unknown(known) => return Ok(Placed { session: *known, replayed: true }),
                Begun::Known { host, session: known } => {
                    if let Some(placed) = self.find(&host, &session, &fingerprint, known).await? {
                        return Ok(placed);
                    }
                }
                Begun::Wait(error) => return Err(error),
            }
        }
        Err(Error::NoLeader("what the hosts hold is changing just now".to_owned()))
    }

    /// Says where the session would go, and changes nothing.
    pub async fn dry_run_here(&self, request: SessionRequest) -> Result<Plan, Error> {
        let workspace = self.resolve(&request)?;
        let session = SessionId::of_key(&self.cluster, &draw_key()?);
        Ok(self.book.dry_run(session, request.user, workspace).await?.into())
    }

    /// The session from the host that has it; `None` where the host does not have it after all.
    async fn find(
        &self,
        host: &NodeId,
        session: &SessionId,
        fingerprint: &str,
        known: Option<Box<Session>>,
    ) -> Result<Option<Placed>, Error> {
        match self.hosts.find(host, session, fingerprint.to_owned()).await {
            Ok(found) => Ok(found.map(|session| Placed { session, replayed: true })),
            Err(Some(error)) => Err(Error::Host(error)),
            Err(None) => match known {
                Some(known) => {
                    let session = Session { state: SessionState::Unknown, ..*known };
                    Ok(Some(Placed { session, replayed: true }))
                }
                None => Err(Error::NoLeader("the host of this session does not answer just now".to_owned())),
            },
        }
    }

    /// Places a session elsewhere that its host could not start, or tells the host that nobody takes it. Where
    /// that cannot be said yet, it stays as it is: its host gives it up in time.
    pub async fn place_elsewhere(&self, session: &SessionId, host: &NodeId, ballot: Ballot) {
        let asked = match self.hosts.claim(host, session, ballot).await {
            Ok(asked) => asked,
            Err(error) => {
                tracing::debug!(%host, %session, %error, "a session that could not be started is not claimed");
                return;
            }
        };
        let again = Again {
            session: *session,
            host: *host,
            user: asked.user.clone(),
            workspace: asked.workspace.clone(),
            tried: asked.tried.clone(),
        };
        let placed = match self.book.begin_again(again).await {
            Ok((ballot, offers)) => self.offer(session, &ballot, &asked, offers).await,
            Err(error) => Err(error),
        };
        match placed {
            // The host that could not start it puts its copy away once this one is known to be there.
            Ok(admitted) => tracing::info!(%session, node = %admitted.session.node, "placed elsewhere"),
            Err(Error::Indexing { .. } | Error::NoLeader(_) | Error::OutcomeUnknown { .. }) => {}
            Err(error) => {
                tracing::info!(%session, %error, "no other node takes it");
                self.hosts.give_up(host, session).await;
            }
        }
    }

    /// Offers the session to the candidates in turn, and tells the book how that ended.
    async fn offer(
        &self,
        session: &SessionId,
        ballot: &Ballot,
        asked: &Asked,
        offers: Offers,
    ) -> Result<Admitted, Error> {
        let outcome = self.offer_around(session, ballot, asked, offers).await;
        let end = match &outcome {
            Ok(_) => End::Taken,
            Err(Error::OutcomeUnknown { .. }) => End::Uncertain,
            Err(_) => End::NotTaken,
        };
        self.book.end(*session, *ballot, end).await;
        outcome
    }

    async fn offer_around(
        &self,
        session: &SessionId,
        ballot: &Ballot,
        asked: &Asked,
        offers: Offers,
    ) -> Result<Admitted, Error> {
        let mut offer = Offer::new(offers, self.clock.now().boot);
        let mut step = offer.begin();
        loop {
            let (host, after, considered) = match step {
                Step::Done(outcome) => return *outcome,
                Step::Ask { host, after, considered } => (host, after, considered),
            };
            tokio::time::sleep(after).await;
            let admit = Admit {
                cluster: self.cluster.clone(),
                ballot: *ballot,
                destination: host.id,
                session: *session,
                asked: asked.clone(),
                // The leader counts over all hosts.
                user_limit: None,
                considered,
            };
            self.book.offering(*session, *ballot, host).await;
            let outcome = self.hosts.admit(admit).await;
            step = offer.offered(outcome, self.clock.now().boot);
        }
    }

    /// The workspace as the request wants it, every value checked.
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
/// The system has no random numbers.
pub fn draw_key() -> Result<String, Error> {
    let mut bytes = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Internal("no random bytes could be had".to_owned()))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}
