//! The stop: what ends first, and why.

use std::fs::File;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::net::Net;
use crate::{election, events, gossip};

/// How long answers in progress may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the last event may take to reach the disk.
const LAST_EVENT: Duration = Duration::from_secs(2);

/// How the operator stops the agent, and has it read its configuration again.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
pub(super) enum Told {
    Stop,
    /// Read the configuration again.
    Refresh,
}

/// What the stop needs of the running daemon.
pub(super) struct Shutdown {
    /// True once the daemon stops.
    pub stop: watch::Sender<bool>,
    pub election: election::Handle,
    pub gossip: Option<gossip::Handle>,
    pub net: Option<Net>,
    pub events: events::Handle,
    /// The data directory's: it goes with the last of the daemon.
    pub _lock: File,
}

impl Signals {
    /// From now on a signal does not kill the process, and waits until [`Self::next`] reads it.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns at SIGTERM and at SIGINT, which stop the agent, and at SIGHUP.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Refresh,
        }
    }
}

impl Shutdown {
    /// The API accepts no more connections, and requests that wait for a change end.
    ///
    /// This is first: no new connection finds a node that is half gone, and the answers in progress have all the time
    /// that the steps after this one take. Where a part failed it is the only step: the others may need that part,
    /// systemd starts the agent again, and the other nodes notice by themselves that its connections are gone.
    pub(super) fn begin(&self) {
        self.stop.send_replace(true);
    }

    /// Takes leave of the cluster, and waits until `api` has given its last answer. In this order:
    ///
    /// 1. The election hands over: a leader has its successor campaign at once, so that placements wait for moments and
    ///    not for the followers' timeouts. That is a call over the mesh, and more urgent than the goodbye, which takes up
    ///    to a second.
    /// 2. Gossip says goodbye: the others know that this node left, and do not take it for one that fell silent. The
    ///    goodbye travels over the mesh.
    /// 3. The mesh closes, and tells the peers: calls to this node fail at once instead of after a timeout.
    /// 4. The answers in progress are waited for, at most [`DRAIN`]. They go on during the steps before, so they cost the
    ///    least time when they are waited for last. One that still needs another node fails from step 3 on.
    ///
    /// 5. The event log gets its last event, so that the next agent knows that this one was stopped.
    ///
    /// Owners are not stopped. An owner replies only after its change is on disk, so the end of the process loses
    /// nothing that a caller was promised, and containers run without the agent. The lock of the data directory is
    /// held through all of it: an agent that starts meanwhile waits.
    pub(super) async fn drain(self, api: JoinHandle<()>) {
        tracing::info!("stopping; sessions go on");
        self.election.hand_over().await;
        if let Some(gossip) = &self.gossip {
            let _ = gossip.leave().await;
        }
        if let Some(net) = &self.net {
            net.close().await;
        }
        if timeout(DRAIN, api).await.is_err() {
            tracing::warn!("some answers were cut off after {} s", DRAIN.as_secs());
        }
        if timeout(LAST_EVENT, self.events.close()).await.is_err() {
            tracing::warn!("the event log did not take its last event within {} s", LAST_EVENT.as_secs());
        }
    }
}
