//! The way to any host: over the mesh, or none at all where it is this one.

use std::time::Duration;

use async_trait::async_trait;

use super::rpc::Serves;
use super::{Host, QUICK, SLOW};
use crate::catalogue::{Difference, Entry, Replicas, Versions};
use crate::election::{self, Answer};
use crate::net::{self, Net};
use crate::placement::{Have, HostReport, Hosts, Offered};
use crate::sessions::{self, Admit, Asked};
use crate::types::{Actor, Ballot, NodeId, Session, SessionId};
use crate::wire::Call;
use crate::wire::message::{self, AdmitError};

/// How long a host may hold its report, and the way there and back.
const REPORT_WITHIN: Duration = Duration::from_secs(8);
/// How long a host may take to write an offer down. The leader asks again after it.
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
            None => Err(net::Error::Unreachable {
                node: *node,
                reason: "this node has no cluster token and stays alone".to_owned(),
            }),
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
    async fn keep(&self, node: &NodeId, entries: Vec<Entry>) -> Result<(), String> {
        let kept = self.call(node, message::Keep(entries), None, SLOW).await.map_err(|e| e.to_string())?;
        kept.map_err(|error| error.to_string())
    }

    async fn compare(&self, node: &NodeId, versions: Versions) -> Result<Difference, String> {
        let compared = self.call(node, message::Compare(versions), None, SLOW).await;
        compared.map_err(|e| e.to_string())
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

    /// Asks another node, for `by`; `None`: for this node itself.
    pub(super) async fn call<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        by: Option<&Actor>,
        within: Duration,
    ) -> Result<C::Answer, net::Error> {
        self.peers.call(node, call, by, within).await
    }

    /// Asks any host, this one included, for `by`; `None`: for this node itself.
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
    async fn report(&self, host: &NodeId, ballot: Ballot, have: Option<Have>) -> Result<HostReport, String> {
        let answer = self.ask(host, message::Report { ballot, have }, None, REPORT_WITHIN).await;
        let report = answer.map_err(|error| error.to_string())?;
        report.map_err(|stale| stale.to_string())
    }

    async fn admit(&self, admit: Admit) -> Offered {
        let host = admit.destination;
        match self.ask(&host, message::Admit(admit), None, ADMIT_WITHIN).await {
            Ok(Ok(admitted)) => Offered::Accepted(Box::new(admitted)),
            Ok(Err(AdmitError::Stale(stale))) => Offered::Stale(stale),
            // It stops, and what became of the offer is not known; or it is too busy even to look at it.
            Ok(Err(AdmitError::Refused(error @ sessions::Error::Stopping))) => Offered::Unknown(error.to_string()),
            Ok(Err(AdmitError::Refused(error))) => Offered::Refused(error),
            Err(error @ net::Error::Unreachable { .. }) => Offered::Unreachable(error.to_string()),
            Err(error @ net::Error::NoAnswer { .. }) => Offered::Unknown(error.to_string()),
        }
    }

    async fn find(
        &self,
        host: &NodeId,
        session: &SessionId,
        fingerprint: String,
    ) -> Result<Option<Session>, Option<sessions::Error>> {
        let find = message::Find { session: *session, fingerprint };
        match self.ask(host, find, None, QUICK).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    async fn claim(&self, host: &NodeId, session: &SessionId, ballot: Ballot) -> Result<Asked, String> {
        let claim = message::Claim { ballot, session: *session };
        let claimed = self.ask(host, claim, None, ADMIT_WITHIN).await.map_err(|error| error.to_string())?;
        match claimed {
            Ok(asked) => Ok(asked),
            Err(AdmitError::Stale(stale)) => Err(stale.to_string()),
            Err(AdmitError::Refused(error)) => Err(error.to_string()),
        }
    }

    async fn give_up(&self, host: &NodeId, session: &SessionId) {
        let command = message::Command { session: *session, command: sessions::Command::GiveUp };
        if let Err(error) = self.ask(host, command, None, QUICK).await {
            tracing::debug!(%host, %session, %error, "the host will give the session up by itself");
        }
    }

    async fn drop_duplicate(&self, host: &NodeId, session: &SessionId) -> Result<(), String> {
        let command = message::Command { session: *session, command: sessions::Command::Duplicate };
        match self.ask(host, command, None, QUICK).await {
            // What is not there is put away.
            Ok(Ok(_) | Err(sessions::Error::NotFound(_))) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
