//! Sessions: the leader places and lists them, and their hosts do everything else.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::{Cluster, Error, LEADER_PATIENCE, QUICK, READ_PATIENCE, Routed, SLOW, delivered};
use crate::placement;
use crate::retry::Pauses;
use crate::sessions::{Admitted, Command, LogsRequest};
use crate::types::{
    Actor, Explanation, List, Node, NodeState, Plan, Remembered, Session, SessionFilter, SessionId, SessionRequest,
    Wait,
};
use crate::wire::message::{self, DryRun, Explain, Hold, Locate, Logs, Place, Secret, Sessions};

/// The time that the network may add to a wait on a host.
const HOLD_MARGIN: Duration = Duration::from_secs(5);

impl Cluster {
    /// Places a session under an idempotency key; without one a random key is drawn.
    pub async fn place(
        &self,
        request: SessionRequest,
        key: Option<String>,
        by: &Actor,
    ) -> Result<Routed<Admitted>, Error> {
        request.validate().map_err(placement::Error::from)?;
        let drawn = key.is_none();
        let session = SessionId::of_key(self.leader.placer.cluster(), &key.map_or_else(placement::draw_key, Ok)?);
        let place = Place { session, drawn, request };
        // A retry with the same session id is the same session, so it is safe to ask the next leader. But a drawn key
        // that may have reached a leader no longer counts as drawn: a host may have its session.
        let asked = match self.change_on_leader(place.clone(), by, !drawn).await {
            Err(Error::NoAnswer { .. }) if drawn => {
                self.change_on_leader(Place { drawn: false, ..place }, by, true).await
            }
            asked => asked,
        };
        let Routed { answer, by } = asked?;
        Ok(Routed { answer: answer?, by })
    }

    /// Says where the session would go, and changes nothing.
    pub async fn dry_run(&self, request: SessionRequest) -> Result<Routed<Plan>, Error> {
        let Routed { answer, by } = self.on_leader(DryRun(request), LEADER_PATIENCE, QUICK).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The sessions of the whole cluster that the filter selects, oldest first.
    pub async fn sessions(&self, mut filter: SessionFilter) -> Routed<List<Session>> {
        // A filter for a node that is not known any more still applies, by the node's name or id.
        if let Some(node) = &filter.node
            && let Ok(id) = self.resolve(node).await
        {
            filter.node = Some(id.into());
        }
        let listed = self.on_leader(Sessions(filter.clone()), READ_PATIENCE, QUICK).await;
        listed.unwrap_or_else(|_| Routed { answer: self.leader.knowledge().list(&filter), by: None })
    }

    /// The session whose id begins with `prefix`.
    pub async fn session(&self, prefix: &str) -> Result<Routed<Remembered>, Error> {
        if let Some(own) = self.own(prefix) {
            return Ok(Routed { answer: own, by: None });
        }
        let located = self.on_leader(Locate(prefix.to_owned()), READ_PATIENCE, QUICK).await;
        let Routed { answer: found, by } =
            located.unwrap_or_else(|_| Routed { answer: self.leader.knowledge().locate(prefix), by: None });
        match <[Remembered; 1]>::try_from(found) {
            Ok([session]) => Ok(Routed { answer: session, by }),
            Err(found) => match found.as_slice() {
                [first, second, ..] => Err(Error::AmbiguousSession {
                    prefix: prefix.to_owned(),
                    first: first.session.id.to_string(),
                    second: second.session.id.to_string(),
                }),
                _ => Err(self.unknown(prefix).await),
            },
        }
    }

    /// The error for a session that was not found. If `prefix` is a whole id, a silent node may have it.
    async fn unknown(&self, prefix: &str) -> Error {
        let Ok(session) = prefix.parse::<SessionId>() else { return Error::NoSession(prefix.to_owned()) };
        let silent = |node: &Node| matches!(node.state, NodeState::Suspect | NodeState::Unknown);
        match self.nodes().await.answer.into_iter().find(silent) {
            Some(away) => Error::HostUnknown { node: away.name, session },
            None => Error::NoSession(prefix.to_owned()),
        }
    }

    /// Sends a command to a session's host. Returns once the wish is durable, before the session reaches it.
    pub async fn command(&self, session: &Session, command: Command, by: &Actor) -> Result<Routed<Session>, Error> {
        let command = message::Command { session: session.id, command };
        let Routed { answer, by } = self.change_on(&session.node_id, command, by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The session, once `wait` is over or the timeout has passed. A host that does not answer is asked again until
    /// then, unless an operator has removed it or its session. After the timeout the session as it was last known.
    pub async fn hold(&self, session: Session, wait: Wait, timeout: Duration) -> Remembered {
        let mut pauses = Pauses::until(Instant::now() + timeout);
        let mut last = Remembered { session, gone: false };
        loop {
            match self.hold_there(&last.session, wait, pauses.left()).await {
                Ok(held) if held.gone && wait != Wait::UntilGone => match self.moved(&held).await {
                    Some(moved) => last = moved,
                    None => return held,
                },
                Ok(held) if wait.is_over(held.session.state, held.session.ready_at.is_some(), held.gone) => {
                    return held;
                }
                // The host stops, or the time is up.
                Ok(held) => last = held,
                Err(_) => {
                    let found = self.session(last.session.id.as_str()).await;
                    last = found.map_or(last, |found| found.answer);
                    // Others may know the session as it was before a command that its host has answered. So only
                    // the wanted state counts here, and not any end.
                    if wait.is_reached(last.session.state, last.session.ready_at.is_some(), last.gone)
                        || self.view().has_forgotten(&last.session.node_id, &last.session.id)
                    {
                        return last;
                    }
                }
            }
            if !pauses.pass().await {
                return last;
            }
        }
    }

    /// One wait on the session's host.
    async fn hold_there(&self, session: &Session, wait: Wait, timeout: Duration) -> Result<Remembered, Error> {
        let timeout_millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let hold = Hold { session: session.id, wait, timeout_millis };
        let held = self.on_once(&session.node_id, hold, None, timeout + HOLD_MARGIN).await?.answer;
        // The host has no record of it any more.
        Ok(held.unwrap_or_else(|| Remembered { session: session.clone(), gone: true }))
    }

    /// The session on another host, if its host could not start it.
    async fn moved(&self, held: &Remembered) -> Option<Remembered> {
        let found = self.session(held.session.id.as_str()).await.ok()?.answer;
        (!found.gone && found.session.node_id != held.session.node_id).then_some(found)
    }

    /// The session's random secret, if its workspace uses one.
    pub async fn secret(&self, session: &Session) -> Result<Routed<Option<String>>, Error> {
        let Routed { answer, by } = self.on(&session.node_id, Secret(session.id), QUICK).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// Why the session was placed on its host.
    pub async fn explain(&self, session: &Session) -> Result<Routed<Explanation>, Error> {
        let Routed { answer, by } = self.on(&session.node_id, Explain(session.id), QUICK).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The session's output, oldest first, from the host that has it.
    pub async fn logs(
        &self,
        session: &Session,
        request: LogsRequest,
    ) -> Result<Routed<BoxStream<'static, io::Result<Bytes>>>, Error> {
        let host = &session.node_id;
        let net = match self.mesh.net() {
            Some(net) if host != self.mesh.me() => net,
            _ => {
                let lines = self.host().sessions.logs(&session.id, request).await?;
                return Ok(Routed { answer: lines, by: None });
            }
        };
        let logs = Logs { session: session.id, request };
        let call =
            async || net.call_stream(host, logs.clone(), None, SLOW).await.map_err(|error| self.unanswered(error));
        let (answer, lines) = delivered(call, || self.is_silent(host)).await?;
        answer?;
        Ok(self.routed(host, lines.boxed()))
    }

    /// A session of this host by its whole id: its host has the newest state.
    fn own(&self, id: &str) -> Option<Remembered> {
        let id: SessionId = id.parse().ok()?;
        let snapshot = self.host().sessions.snapshot();
        let session = snapshot.document(&id)?;
        let gone = snapshot.gone.contains(&id);
        // A session that is gone from this host may run on another.
        (!gone).then_some(Remembered { session, gone })
    }
}
