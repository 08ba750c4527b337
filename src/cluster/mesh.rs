//! Calls to any host: over the mesh, or directly if the host is this node.

use std::time::Duration;

use async_trait::async_trait;

use super::rpc::Serves;
use super::{Host, QUICK, SLOW};
use crate::catalogue::{Difference, Entry, ReplicaError, Replicas, Versions};
use crate::election::{self, Answer};
use crate::images::{Fetch, Fetching};
use crate::net::{self, Net};
use crate::placement::{HostAnswer, HostCall, Hosts, Offered, Unanswered};
use crate::rollout::{Fetchers, NotFetched};
use crate::sessions;
use crate::types::{Actor, ImageReference, NodeId, SessionId};
use crate::wire::Call;
use crate::wire::message::{self, AdmitError};

/// How long a call for a report may take: the host waits for a change first, and the network adds its time.
const REPORT_WITHIN: Duration = Duration::from_secs(8);
/// How long a host may take to write an offer to its disk. After that the leader asks again.
const ADMIT_WITHIN: Duration = Duration::from_secs(3);

/// The other nodes. Without a cluster token there are none.
#[derive(Clone)]
pub struct Peers(pub Option<Net>);

impl Peers {
    pub(super) async fn call<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, net::Error> {
        match &self.0 {
            Some(net) => net.call(node, call, by, within).await,
            None => Err(net::Error::Unreachable { node: *node, cause: net::Cause::Alone }),
        }
    }
}

#[async_trait]
impl election::Peers for Peers {
    async fn ask(&self, peer: &NodeId, request: election::Request, within: Duration) -> Option<Answer> {
        self.call(peer, request, None, within).await.ok()?.ok()
    }
}

#[async_trait]
impl Replicas for Peers {
    async fn keep(&self, node: &NodeId, entries: Vec<Entry>) -> Result<(), ReplicaError> {
        let kept = self.call(node, message::Keep(entries), None, SLOW).await;
        Ok(kept.map_err(|error| ReplicaError::Unanswered(error.into()))??)
    }

    async fn compare(&self, node: &NodeId, versions: Versions) -> Result<Difference, ReplicaError> {
        let compared = self.call(node, message::Compare(versions), None, SLOW).await;
        compared.map_err(|error| ReplicaError::Unanswered(error.into()))
    }
}

/// Every host, this one included. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    me: NodeId,
    host: Host,
    peers: Peers,
}

impl Mesh {
    pub const fn new(me: NodeId, host: Host, peers: Peers) -> Self {
        Self { me, host, peers }
    }

    pub(super) const fn me(&self) -> &NodeId {
        &self.me
    }

    pub(super) const fn host(&self) -> &Host {
        &self.host
    }

    pub(super) const fn net(&self) -> Option<&Net> {
        self.peers.0.as_ref()
    }

    /// Calls another node, for `by`. `None`: for this node itself.
    pub(super) async fn call<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, net::Error> {
        self.peers.call(node, call, by, within).await
    }

    /// Calls any host, this one included, for `by`. `None`: for this node itself.
    pub(super) async fn ask<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, net::Error>
    where
        Host: Serves<C>,
    {
        if *node != self.me {
            return self.call(node, call, by, within).await;
        }
        Ok(self.host.serve(call, by.unwrap_or(&self.myself())).await)
    }

    /// This node, as an actor.
    pub(super) const fn myself(&self) -> Actor {
        Actor::Node { id: self.me }
    }
}

#[async_trait]
impl Hosts for Mesh {
    async fn ask(&self, host: &NodeId, call: HostCall) -> Result<HostAnswer, Unanswered> {
        match call {
            HostCall::Report { ballot, have } => {
                let report = self.ask(host, message::Report { ballot, have }, None, REPORT_WITHIN).await?;
                Ok(HostAnswer::Report(report.map(Box::new)))
            }
            HostCall::Admit(admit) => {
                let admitted = self.ask(host, message::Admit(*admit), None, ADMIT_WITHIN).await?;
                Ok(HostAnswer::Admit(match admitted {
                    Ok(admitted) => Offered::Accepted(Box::new(admitted)),
                    Err(AdmitError::Stale(stale)) => Offered::Stale(stale),
                    // It stops: what became of the offer is not known.
                    Err(AdmitError::Refused(sessions::Error::Stopping)) => Offered::Unknown,
                    Err(AdmitError::Refused(error)) => Offered::Refused(error),
                }))
            }
            HostCall::Find { session, fingerprint } => {
                let found = self.ask(host, message::Find { session, fingerprint }, None, QUICK).await?;
                Ok(HostAnswer::Find(Box::new(found)))
            }
            HostCall::Claim { ballot, session } => {
                let claimed = self.ask(host, message::Claim { ballot, session }, None, ADMIT_WITHIN).await?;
                Ok(HostAnswer::Claim(match claimed {
                    Ok(claimed) => Ok(Box::new(claimed)),
                    Err(AdmitError::Stale(stale)) => Err(sessions::Error::Stale(stale)),
                    Err(AdmitError::Refused(error)) => Err(error),
                }))
            }
            HostCall::GiveUp { session, claim } => self.order(host, session, sessions::Command::GiveUp { claim }).await,
            HostCall::DropDuplicate(session) => self.order(host, session, sessions::Command::Duplicate).await,
        }
    }
}

impl Mesh {
    /// Sends a host an order about a session. An error of the host is only logged: the leader repeats the order, or the
    /// host ends the session by itself.
    async fn order(
        &self,
        host: &NodeId,
        session: SessionId,
        command: sessions::Command,
    ) -> Result<HostAnswer, Unanswered> {
        let commanded = self.ask(host, message::Command { session, command }, None, QUICK).await?;
        match commanded {
            Ok(_) | Err(sessions::Error::NotFound(_)) => {}
            Err(error) => tracing::debug!(%host, %session, %error, "host did not follow an order"),
        }
        Ok(HostAnswer::Done)
    }
}

#[async_trait]
impl Fetchers for Mesh {
    async fn fetch(&self, node: &NodeId, image: ImageReference, how: Fetch) -> Result<Fetching, NotFetched> {
        let fetched = self.ask(node, message::FetchImage { image, how }, None, SLOW).await;
        fetched.map_err(|error| NotFetched::Unanswered(error.into()))?.map_err(NotFetched::Refused)
    }
}

impl From<net::Error> for Unanswered {
    fn from(error: net::Error) -> Self {
        match error {
            net::Error::Unreachable { .. } => Self::Undelivered(error.into()),
            net::Error::NoAnswer { .. } => Self::NoAnswer(error.into()),
        }
    }
}
