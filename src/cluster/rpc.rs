//! Sends a peer's request to the part of this node that answers it.

use async_trait::async_trait;
use futures_util::StreamExt;

use super::{Host, Leader, Peers, SLOW};
use crate::images::offers::Refusal;
use crate::net::{self, Peer, Reply, Serve};
use crate::types::Actor;
use crate::wire::message::{AnsweredBy, Asker, CopyImage, Logs, NotPassed, Pass, Passed, calls};
use crate::wire::{Call, Envelope, Request};

/// Answers one call, from a client or from a peer. `by`: the actor.
#[async_trait]
pub(super) trait Serves<C: Call> {
    async fn serve(&self, call: C, by: &Actor) -> C::Answer;
}

/// Answers one call of a peer whose answer is more than a value of this node.
#[async_trait]
trait Replies<C: Call> {
    async fn reply(&self, call: C) -> Reply;
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

    /// Passes a call on to the leader that this node follows, unchanged, and returns the leader's answer.
    async fn pass(&self, Pass(request): Pass) -> Result<Passed, NotPassed> {
        let of_leader = Envelope::decode(&request).is_ok_and(|asked| asked.request.answered_by() == AnsweredBy::Leader);
        let known = self.leader.leadership.borrow().clone();
        let followed = known.leader.filter(|_| of_leader && known.reign.is_none());
        let (Some(leader), Some(net)) = (followed, &self.peers.0) else { return Err(NotPassed::Undelivered) };
        match net.pass(&leader, &request, SLOW).await {
            Ok(answer) => Ok(Passed { leader, answer }),
            Err(net::Error::Unreachable { .. }) => Err(NotPassed::Undelivered),
            Err(error @ net::Error::NoAnswer { .. }) => Err(NotPassed::NoAnswer(error.to_string())),
        }
    }
}

#[async_trait]
impl Replies<Pass> for Rpc {
    async fn reply(&self, call: Pass) -> Reply {
        frame::<Pass>(&self.pass(call).await)
    }
}

/// The answer, then the log.
#[async_trait]
impl Replies<Logs> for Rpc {
    async fn reply(&self, Logs { session, request }: Logs) -> Reply {
        match self.host.sessions.logs(&session, request).await {
            Ok(lines) => {
                // The stream ends at the first error of the log.
                let lines = lines
                    .take_while(|chunk| std::future::ready(chunk.is_ok()))
                    .filter_map(|chunk| async { chunk.ok().map(Ok) });
                match frame::<Logs>(&Ok(())) {
                    Reply::Frame(answer) => Reply::Stream(answer, lines.boxed()),
                    refused => refused,
                }
            }
            Err(error) => frame::<Logs>(&Err(error)),
        }
    }
}

/// The image, then its archive.
#[async_trait]
impl Replies<CopyImage> for Rpc {
    async fn reply(&self, CopyImage(wanted): CopyImage) -> Reply {
        let given = match &self.host.giver {
            Some(giver) => giver.give(wanted).await,
            None => Err(Refusal::NotHere),
        };
        match given {
            Ok((offer, archive)) => match frame::<CopyImage>(&Ok(offer)) {
                Reply::Frame(answer) => Reply::Stream(answer, archive),
                refused => refused,
            },
            Err(refusal) => frame::<CopyImage>(&Err(refusal)),
        }
    }
}

#[async_trait]
impl Serve for Rpc {
    async fn serve(&self, from: &Peer, asked: Envelope) -> Reply {
        if let Some(refusal) = refusal(from, &asked) {
            tracing::warn!(peer = %from.node, request = asked.request.name(), refusal, "request refused");
            return Reply::Refused;
        }
        let by = asked.by.unwrap_or(Actor::Node { id: from.node });
        // Votes and heartbeats record nothing, and a slow disk must not delay them.
        let records = asked.request.changes() && !matches!(asked.request, Request::Election(_));
        let reply = self.dispatch(asked.request, &by).await;
        if records {
            self.host.events.flush().await;
        }
        reply
    }
}

/// Answers a call with the part that the table names.
macro_rules! reply {
    (Host, $rpc:ident, $call:ident, $by:ident) => {
        answer(&$rpc.host, $call, $by).await
    };
    (Leader, $rpc:ident, $call:ident, $by:ident) => {
        answer(&$rpc.leader, $call, $by).await
    };
    (Node, $rpc:ident, $call:ident, $by:ident) => {
        $rpc.reply($call).await
    };
}

macro_rules! dispatch {
    ($($(#[$doc:meta])* $name:ident($part:ident, $($column:ident),*): $body:ty => $answer:ty;)*) => {
        impl Rpc {
            async fn dispatch(&self, request: Request, by: &Actor) -> Reply {
                match request { $(Request::$name(call) => reply!($part, self, call, by),)* }
            }
        }
    };
}

calls!(dispatch);

async fn answer<C: Call>(part: &impl Serves<C>, call: C, by: &Actor) -> Reply {
    frame::<C>(&part.serve(call, by).await)
}

fn frame<C: Call>(answer: &C::Answer) -> Reply {
    match C::FORMAT.encode(answer) {
        Ok(bytes) => Reply::Frame(bytes),
        Err(error) => {
            tracing::error!(%error, "cannot encode an answer");
            Reply::Refused
        }
    }
}

/// Why the peer may not make this call. `None`: it may.
fn refusal(from: &Peer, asked: &Envelope) -> Option<&'static str> {
    let asker = asked.request.asker();
    match &asked.by {
        Some(Actor::Node { id }) if *id != from.node => return Some("the actor is another node"),
        Some(Actor::Token { .. } | Actor::Socket { .. }) if asker.role().is_none() => {
            return Some("the actor is a person, but only nodes may make this call");
        }
        _ => {}
    }
    let foreign = asker == Asker::Ballot && asked.request.ballot().map(|ballot| ballot.node) != Some(from.node);
    foreign.then_some("the ballot is another node's")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election;
    use crate::types::{Ballot, NodeId, sample};
    use crate::wire::message::{Claim, Command, Undrain};

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }

    fn refused(by: Option<Actor>, request: Request) -> Option<&'static str> {
        let from = Peer { node: id(1), address: "127.0.0.1:1".parse().unwrap() };
        refusal(&from, &Envelope { by, request })
    }

    #[test]
    fn a_peer_may_call_for_itself_or_for_a_person_but_not_for_another_node() {
        let undrain = || Request::Undrain(Undrain);
        assert_eq!(refused(None, undrain()), None);
        assert_eq!(refused(Some(Actor::Node { id: id(1) }), undrain()), None);
        assert_eq!(refused(Some(crate::types::sample::root()), undrain()), None);
        assert!(refused(Some(Actor::Node { id: id(2) }), undrain()).is_some());
        let command = Command { session: sample::session_id("k"), command: crate::sessions::Command::Stop };
        assert!(refused(Some(Actor::Node { id: id(2) }), Request::Command(command)).is_some());
    }

    #[test]
    fn a_call_with_a_ballot_is_answered_only_from_the_node_of_the_ballot_for_itself() {
        let ballot = |n| Ballot { term: 1, node: id(n) };
        let claim = |n| Request::Claim(Claim { ballot: ballot(n), session: sample::session_id("k") });
        let vote = |n| Request::Election(election::Request::Vote { ballot: ballot(n) });
        for (own, foreign) in [(claim(1), claim(2)), (vote(1), vote(2))] {
            assert_eq!(refused(None, own.clone()), None);
            assert!(refused(None, foreign).is_some());
            assert!(refused(Some(crate::types::sample::root()), own).is_some());
        }
    }
}
