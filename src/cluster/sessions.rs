//! Sessions: placed and listed by whoever leads, everything else by the host that has them.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::{Cluster, Error, LEADER_PATIENCE, QUICK, READ_PATIENCE, Routed, SLOW};
use crate::placement;
use crate::sessions::{Admitted, Command, LogsRequest};
use crate::types::{
    Actor, Explanation, List, Node, NodeState, Plan, Remembered, Session, SessionFilter, SessionId, SessionRequest,
    Wait,
};
use crate::wire::message::{self, DryRun, Explain, Hold, Locate, Logs, Place, Secret, Sessions};

/// What the way there and back may add to an answer that is held.
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
        // The same session id asked for again is the same session: nothing is lost by asking the next leader.
        // But a key that may have reached one is no longer new to everybody.
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
        // The sessions of a node that is not known by now can still be asked for by its name or id.
        if let Some(node) = &filter.node
            && let Ok(id) = self.resolve(node).await
        {
            filter.node = Some(id.into());
        }
        let listed = self.on_leader(Sessions(filter.clone()), READ_PATIENCE, QUICK).await;
        listed.unwrap_or_else(|_| Routed { answer: self.leader.knowledge().list(&filter), by: None })
    }

    /// The session whose id begins so.
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

    /// Why nobody tells of a session: by its whole id, it may be on a node that cannot be asked.
    async fn unknown(&self, prefix: &str) -> Error {
        let Ok(session) = prefix.parse::<SessionId>() else { return Error::NoSession(prefix.to_owned()) };
        let silent = |node: &Node| matches!(node.state, NodeState::Suspect | NodeState::Unknown);
        match self.nodes().await.answer.into_iter().find(silent) {
            Some(away) => Error::HostUnknown { node: away.name, session },
            None => Error::NoSession(prefix.to_owned()),
        }
    }

    /// Asks one session to change. It answers once the wish is durable; the session follows behind.
    pub async fn command(&self, session: &Session, command: Command, by: &Actor) -> Result<Routed<Session>, Error> {
        let command = message::Command { session: session.id, command };
        let Routed { answer, by } = self.change_on(&session.node_id, command, by, SLOW).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// The session once it is as wanted or the time is up; as it was, where its host cannot be asked or
    /// does not know it any more.
    pub async fn hold(&self, session: Session, wait: Wait, timeout: Duration) -> Remembered {
        let deadline = Instant::now() + timeout;
        let mut held = self.hold_there(session, wait, timeout).await;
        // One that could not be started where it was goes on elsewhere.
        while held.gone
            && matches!(wait, Wait::Until(_))
            && let Ok(Routed { answer: found, .. }) = self.session(held.session.id.as_str()).await
            && !found.gone
            && found.session.node_id != held.session.node_id
        {
            let left = deadline.saturating_duration_since(Instant::now());
            held = self.hold_there(found.session, wait, left).await;
        }
        held
    }

    async fn hold_there(&self, session: Session, wait: Wait, timeout: Duration) -> Remembered {
        let timeout_millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let hold = Hold { session: session.id, wait, timeout_millis };
        match self.on(&session.node_id, hold, timeout + HOLD_MARGIN).await {
            Ok(Routed { answer: Some(remembered), .. }) => remembered,
            Ok(Routed { answer: None, .. }) => Remembered { session, gone: true },
            Err(_) => Remembered { session, gone: false },
        }
    }

    /// The session's random secret, if its workspace uses one.
    pub async fn secret(&self, session: &Session) -> Result<Routed<Option<String>>, Error> {
        let Routed { answer, by } = self.on(&session.node_id, Secret(session.id), QUICK).await?;
        Ok(Routed { answer: answer?, by })
    }

    /// Why the session is where it is.
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
        let (answer, lines) = net.call_stream(host, logs, None, SLOW).await.map_err(|error| self.unanswered(error))?;
        answer?;
        Ok(self.routed(host, lines.boxed()))
    }

    /// A session of this host by its whole id: nobody knows it better.
    fn own(&self, id: &str) -> Option<Remembered> {
        let id: SessionId = id.parse().ok()?;
        let snapshot = self.host().sessions.snapshot();
        let session = snapshot.document(&id)?;
        let gone = snapshot.gone.contains(&id);
        // What is gone here may live on elsewhere.
        (!gone).then_some(Remembered { session, gone })
    }
}
