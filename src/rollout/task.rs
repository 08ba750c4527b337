//! The owner of the rollout: makes the calls that [`Turns`] decides on, while this node leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::turns::{Order, Situation, Turns};
use super::{Fetchers, NotFetched};
use crate::catalogue;
use crate::clock::Clock;
use crate::election::{Leadership, Reign};
use crate::images::{Fetch, Fetching};
use crate::placement::Fleet;
use crate::types::Ballot;

/// Between two turns. In a large cluster some host reports at any time, and a turn looks at all of them.
const TURN_EVERY: Duration = Duration::from_secs(1);
/// How often there is a turn though nothing changed: pauses end, and the time of a daily check comes.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the owner is made of.
pub struct Parts {
    pub leadership: watch::Receiver<Arc<Leadership>>,
    /// What hosts reported to this node, while it leads.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    pub hosts: Arc<dyn Fetchers>,
    pub clock: Clock,
}

/// Starts the owner.
pub fn spawn(parts: Parts) -> JoinHandle<()> {
    let owner = Owner {
        parts,
        ballot: None,
        turns: Turns::default(),
        calls: JoinSet::new(),
        is_news: true,
        turn_at: Instant::now(),
    };
    tokio::spawn(owner.run())
}

struct Owner {
    parts: Parts,
    /// That of the reign that the turns belong to.
    ballot: Option<Ballot>,
    turns: Turns,
    calls: JoinSet<(Order, Result<Fetching, NotFetched>)>,
    /// Something changed since the last turn.
    is_news: bool,
    /// When the next turn may be.
    turn_at: Instant,
}

impl Owner {
    async fn run(mut self) {
        loop {
            let reign = self.follow();
            let look_at = if self.is_news { self.turn_at } else { self.turn_at + LOOK_EVERY };
            tokio::select! {
                Some(ended) = self.calls.join_next(), if !self.calls.is_empty() => {
                    match ended {
                        Ok((order, answer)) => self.answered(order, &answer),
                        Err(failure) => {
                            tracing::error!(%failure, "a call about an image has failed");
                            self.begin_anew();
                        }
                    }
                }
                Ok(()) = self.parts.leadership.changed() => {}
                Ok(()) = self.parts.fleet.changed(), if reign.is_some() => self.is_news = true,
                Ok(()) = self.parts.catalogue.changed(), if reign.is_some() => self.is_news = true,
                () = sleep_until(look_at), if reign.is_some() => {
                    self.is_news = false;
                    self.turn_at = Instant::now() + TURN_EVERY;
                    if let Some(reign) = reign {
                        self.turn(&reign);
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// The reign of this node, if it leads. Each reign begins anew: the reports tell what was done.
    fn follow(&mut self) -> Option<Arc<Reign>> {
        let reign = self.parts.leadership.borrow_and_update().reign.clone();
        let ballot = reign.as_ref().map(|reign| reign.ballot);
        if ballot != self.ballot {
            self.ballot = ballot;
            self.begin_anew();
        }
        reign
    }

    /// The hosts go on with what they were asked for.
    fn begin_anew(&mut self) {
        self.turns.clear();
        self.calls = JoinSet::new();
        self.is_news = true;
    }

    fn turn(&mut self, reign: &Reign) {
        let now = self.parts.clock.now();
        // Another node may have been elected since.
        if now.boot >= reign.lease {
            return;
        }
        let fleet = self.parts.fleet.borrow_and_update().clone();
        let catalogue = self.parts.catalogue.borrow_and_update().clone();
        let workspaces = &catalogue.workspaces;
        let orders = self.turns.next(Situation { now, fleet: &fleet, reached: &reign.reached, workspaces });
        for order in orders {
            if order.how == Fetch::Missing {
                tracing::info!(node = %order.node, image = %order.image, "having the node pull the image ahead");
            } else {
                tracing::debug!(node = %order.node, image = %order.image, how = ?order.how, "checking the image");
            }
            self.call(order);
        }
    }

    fn call(&mut self, order: Order) {
        let hosts = Arc::clone(&self.parts.hosts);
        self.calls.spawn(async move {
            let answer = hosts.fetch(&order.node, order.image.clone(), order.how.clone()).await;
            (order, answer)
        });
    }

    fn answered(&mut self, order: Order, answer: &Result<Fetching, NotFetched>) {
        if let Err(error) = answer {
            let (node, image) = (order.node, &order.image);
            tracing::warn!(%node, %image, %error, "the node did not fetch the image; trying again later");
        }
        if self.turns.answered(&order.node, answer, self.parts.clock.now().boot) {
            self.call(order);
        } else {
            // The node may have another turn.
            self.is_news = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use async_trait::async_trait;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::images::Here;
    use crate::placement::index::HostView;
    use crate::types::{
        BootInstant, Bytes, Cores, ImageReference, Moment, NodeId, Resources, RuntimeKind, Timestamp, Workspace, sample,
    };

    const PATIENCE: Duration = Duration::from_secs(30);
    /// In this time a node that leads takes a turn.
    const A_TURN: Duration = TURN_EVERY.saturating_mul(2);

    /// Tells of every call, and leaves its answer to the test.
    struct Hosts(mpsc::UnboundedSender<Call>);

    type Call = (NodeId, Fetch, tokio::sync::oneshot::Sender<Fetching>);

    #[async_trait]
    impl Fetchers for Hosts {
        async fn fetch(&self, node: &NodeId, _: ImageReference, how: Fetch) -> Result<Fetching, NotFetched> {
            let (reply, answer) = tokio::sync::oneshot::channel();
            self.0.send((*node, how, reply)).unwrap();
            answer.await.map_err(|closed| NotFetched::Unanswered(closed.into()))
        }
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }

    fn fleet(hosts: u8) -> Fleet {
        let host = |n| {
            let mut profile = sample::profile(&format!("n{n}"), id(n).as_str());
            profile.physical = Resources::new(Cores::whole(4), Bytes::gib(64), 0);
            profile.effective = profile.physical;
            (profile.runtime.kind, profile.runtime.available) = (RuntimeKind::Docker, true);
            let view = HostView {
                profile: Arc::new(profile),
                usage: sample::usage(),
                last_seen: Timestamp::default(),
                sessions: BTreeMap::new(),
                images: Here::new(),
                have: None,
            };
            (id(n), Arc::new(view))
        };
        Fleet { hosts: (0..hosts).map(host).collect(), unplaced: BTreeMap::new() }
    }

    fn reign(term: u64, reached: &[u8]) -> Arc<Leadership> {
        let reached: BTreeSet<NodeId> = reached.iter().copied().map(id).collect();
        let ballot = Ballot { term, node: id(0) };
        let lease = BootInstant::from_millis(u64::MAX);
        let reign = Reign { ballot, electorate: reached.clone(), reached, needed: 1, lease };
        Arc::new(Leadership { leader: Some(id(0)), ballot: Some(ballot), reign: Some(Arc::new(reign)) })
    }

    fn follower() -> Arc<Leadership> {
        Arc::new(Leadership { leader: None, ballot: None, reign: None })
    }

    #[tokio::test]
    async fn the_leader_and_no_other_node_has_hosts_pull_and_asks_again_while_a_pull_runs() {
        let mut workspace = Workspace::new("w".parse().unwrap(), Cores::whole(1), Bytes::gib(1));
        (workspace.image, workspace.prepull) = (Some("x:1".to_owned()), true);
        let workspaces = [(workspace.name.clone(), Arc::new(workspace))].into();
        let catalogue =
            watch::Sender::new(Arc::new(catalogue::Snapshot { workspaces, ..catalogue::Snapshot::default() }));
        let (leadership, hosts) = (watch::Sender::new(follower()), watch::Sender::new(Arc::new(fleet(1))));
        let (calls, mut called) = mpsc::unbounded_channel();
        let moment = Moment { wall: Timestamp::default(), boot: BootInstant::from_millis(1), boot_id: 1 };
        let task = spawn(Parts {
            leadership: leadership.subscribe(),
            fleet: hosts.subscribe(),
            catalogue: catalogue.subscribe(),
            hosts: Arc::new(Hosts(calls)),
            clock: Clock::manual(moment),
        });
        assert!(timeout(A_TURN, called.recv()).await.is_err(), "it does not lead");

        leadership.send_replace(reign(1, &[0, 1]));
        let next =
            async |called: &mut mpsc::UnboundedReceiver<Call>| timeout(PATIENCE, called.recv()).await.unwrap().unwrap();
        let (node, how, reply) = next(&mut called).await;
        assert_eq!((node, how), (id(0), Fetch::Missing));
        reply.send(Fetching::Runs).unwrap();
        let (node, _, mut reply) = next(&mut called).await;
        assert_eq!(node, id(0), "it is asked again at once");

        // Another host reports meanwhile.
        hosts.send_replace(Arc::new(fleet(2)));
        assert_eq!(next(&mut called).await.0, id(1));
        // A new reign knows nothing of the orders before it.
        leadership.send_replace(reign(2, &[0]));
        let (node, _, again) = next(&mut called).await;
        assert_eq!(node, id(0));
        timeout(PATIENCE, reply.closed()).await.expect("the call of the reign before is dropped");
        leadership.send_replace(follower());
        assert!(timeout(A_TURN, called.recv()).await.is_err(), "it leads no more");
        assert!(again.is_closed());
        task.abort();
    }
}
