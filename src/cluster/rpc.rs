//! A peer's request and the part of this node that answers it.

use async_trait::async_trait;
use futures_util::StreamExt;
use serde::Serialize;

use super::{Host, Leader, Peers, SLOW};
use crate::net::{self, Peer, Reply, Serve};
use crate::wire::message::{Asker, Logs, NotPassed, Pass, Passed};
use crate::wire::{Call, Document, Request, codec};

/// What answers one kind of request, whoever asks.
#[async_trait]
pub(super) trait Serves<C: Call> {
    async fn serve(&self, call: C) -> C::Answer;
}

/// Answers the peers of this node.
pub struct Rpc {
    host: Host,
    leader: Leader,
    peers: Peers,
}

impl Rpc {
    pub const fn new(host: Host, leader: Leader, peers: Peers) -> Self {
        Self { host, leader, peers }
    }

    /// Passes a request on to the leader that this node follows, and its answer back.
    async fn pass(&self, Pass(request): Pass) -> Result<Passed, NotPassed> {
        let of_leader = codec::decode::<Request>(&request).is_ok_and(|request| request.is_of_leader());
        let known = self.leader.leadership.borrow().clone();
        let followed = known.leader.filter(|_| of_leader && known.reign.is_none());
        let (Some(leader), Some(net)) = (followed, &self.peers.0) else { return Err(NotPassed::Undelivered) };
        match net.pass(&leader, &request, SLOW).await {
            Ok(answer) => Ok(Passed { leader, answer }),
            Err(net::Error::Unreachable { .. }) => Err(NotPassed::Undelivered),
            Err(error @ net::Error::NoAnswer { .. }) => Err(NotPassed::NoAnswer(error.to_string())),
        }
    }

    /// The log of a session: the answer, then what it is about.
    async fn logs(&self, Logs { session, request }: Logs) -> Reply {
        match self.host.sessions.logs(&session, request).await {
            Ok(lines) => {
                // Where the log breaks off, so does the stream.
                let lines = lines
                    .take_while(|chunk| std::future::ready(chunk.is_ok()))
                    .filter_map(|chunk| async { chunk.ok() });
                match frame::<Logs>(&Ok(())) {
                    Reply::Frame(answer) => Reply::Stream(answer, lines.boxed()),
                    refused => refused,
                }
            }
            Err(error) => frame::<Logs>(&Err(Document(error))),
        }
    }
}

#[async_trait]
impl Serve for Rpc {
    async fn serve(&self, from: &Peer, request: Request) -> Reply {
        if let Some(refusal) = refusal(from, &request) {
            tracing::warn!(peer = %from.node, request = request.name(), refusal, "a request is not answered");
            return Reply::Refused;
        }
        match request {
            Request::Election(call) => answer(&self.host, call).await,
            Request::Report(call) => answer(&self.host, call).await,
            Request::Admit(call) => answer(&self.host, call).await,
            Request::Find(call) => answer(&self.host, call).await,
            Request::Command(call) => answer(&self.host, call).await,
            Request::Secret(call) => answer(&self.host, call).await,
            Request::Explain(call) => answer(&self.host, call).await,
            Request::Hold(call) => answer(&self.host, call).await,
            Request::Logs(call) => self.logs(call).await,
            Request::Describe(call) => answer(&self.host, call).await,
            Request::Patch(call) => answer(&self.host, call).await,
            Request::Drain(call) => answer(&self.host, call).await,
            Request::Undrain(call) => answer(&self.host, call).await,
            Request::Volumes(call) => answer(&self.host, call).await,
            Request::RemoveVolume(call) => answer(&self.host, call).await,
            Request::Keep(call) => answer(&self.host, call).await,
            Request::Compare(call) => answer(&self.host, call).await,
            Request::Place(call) => answer(&self.leader, call).await,
            Request::DryRun(call) => answer(&self.leader, call).await,
            Request::Nodes(call) => answer(&self.leader, call).await,
            Request::Sessions(call) => answer(&self.leader, call).await,
            Request::Locate(call) => answer(&self.leader, call).await,
            Request::Edit(call) => answer(&self.leader, call).await,
            Request::Claim(call) => answer(&self.host, call).await,
            Request::Forget(call) => answer(&self.host, call).await,
            Request::Pass(call) => frame::<Pass>(&self.pass(call).await),
        }
    }
}

async fn answer<C: Call>(part: &impl Serves<C>, call: C) -> Reply {
    frame::<C>(&part.serve(call).await)
}

fn frame<C: Call>(answer: &C::Answer) -> Reply
where
    C::Answer: Serialize,
{
    match codec::encode(answer) {
        Ok(bytes) => Reply::Frame(bytes),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be sent");
            Reply::Refused
        }
    }
}

/// Why the peer may not ask this, if so.
fn refusal(from: &Peer, request: &Request) -> Option<&'static str> {
    let holder = match request.asker() {
        Asker::Member => return None,
        Asker::BallotHolder => request.ballot(),
    };
    (holder.map(|ballot| &ballot.node) != Some(&from.node)).then_some("it speaks for another node's ballot")
}
