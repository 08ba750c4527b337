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
use crate::types::{Ballot, NodeId, Session, SessionId};
use crate::wire::message::{self, AdmitError};
use crate::wire::{Call, Document};

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
        within: Duration,
    ) -> Result<C::Answer, net::Error> {
        match &self.0 {
            Some(net) => net.call(node, call, within).await,
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
        self.call(peer, request, within).await.ok()?.ok()
    }
}

#[async_trait]
impl Replicas for Peers {
    async fn keep(&self, node: &NodeId, entries: Vec<Entry>) -> Result<(), String> {
        let kept = self.call(node, message::Keep(Document(entries)), SLOW).await.map_err(|e| e.to_string())?;
        kept.map_err(|Document(error)| error.to_string())
    }

    async fn compare(&self, node: &NodeId, versions: Versions) -> Result<Difference, String> {
        let compared = self.call(node, message::Compare(Document(versions)), SLOW).await;
        compared.map(|Document(difference)| difference).map_err(|e| e.to_string())
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

    /// Asks another node.
    pub(super) async fn call<C: Call>(
        &self,
        node: &NodeId,
        call: C,
        within: Duration,
    ) -> Result<C::Answer, net::Error> {
        self.peers.call(node, call, within).await
    }

    /// Asks any host, this one included.
    pub(super) async fn ask<C: Call>(&self, node: &NodeId, call: C, within: Duration) -> Result<C::Answer, net::Error>
    where
        Host: Serves<C>,
    {
        if *node == self.me { Ok(self.host.serve(call).await) } else { self.call(node, call, within).await }
    }
}

#[async_trait]
impl Hosts for Mesh {
    async fn report(&self, host: &NodeId, ballot: Ballot, have: Option<Have>) -> Result<HostReport, String> {
        let answer = self.ask(host, message::Report { ballot, have }, REPORT_WITHIN).await;
        let report = answer.map_err(|error| error.to_string())?;
        report.map(|Document(report)| report).map_err(|stale| stale.to_string())
    }

    async fn admit(&self, admit: Admit) -> Offered {
        let host = admit.destination;
        match self.ask(&host, message::Admit(Document(admit)), ADMIT_WITHIN).await {
            Ok(Ok(Document(admitted))) => Offered::Accepted(Box::new(admitted)),
            Ok(Err(AdmitError::Stale(stale))) => Offered::Stale(stale),
            // It stops, and what became of the offer is not known; or it is too busy even to look at it.
            Ok(Err(AdmitError::Refused(Document(error @ sessions::Error::Stopping)))) => {
                Offered::Unknown(error.to_string())
            }
            Ok(Err(AdmitError::Refused(Document(error)))) => Offered::Refused(error),
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
        match self.ask(host, find, QUICK).await {
            Ok(Ok(found)) => Ok(found.map(|Document(session)| session)),
            Ok(Err(Document(error))) => Err(Some(error)),
            Err(_) => Err(None),
        }
    }

    async fn claim(&self, host: &NodeId, session: &SessionId, ballot: Ballot) -> Result<Asked, String> {
        let claim = message::Claim { ballot, session: *session };
        let claimed = self.ask(host, claim, ADMIT_WITHIN).await.map_err(|error| error.to_string())?;
        match claimed {
            Ok(Document(asked)) => Ok(asked),
            Err(AdmitError::Stale(stale)) => Err(stale.to_string()),
            Err(AdmitError::Refused(Document(error))) => Err(error.to_string()),
        }
    }

    async fn give_up(&self, host: &NodeId, session: &SessionId) {
        let command = message::Command { session: *session, command: sessions::Command::GiveUp };
        if let Err(error) = self.ask(host, command, QUICK).await {
            tracing::debug!(%host, %session, %error, "the host will give the session up by itself");
        }
    }

    async fn drop_duplicate(&self, host: &NodeId, session: &SessionId) -> Result<(), String> {
        let command = message::Command { session: *session, command: sessions::Command::Duplicate };
        match self.ask(host, command, QUICK).await {
            // What is not there is put away.
            Ok(Ok(_) | Err(Document(sessions::Error::NotFound(_)))) => Ok(()),
            Ok(Err(Document(error))) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
