//! Another live agent with this node's id, as after a copy of a data directory.
//!
//! One of the two must stop. When it has, the alarm ends: while it lasts, this node dials the other agent again and
//! again, and what is not met any more is gone, or is another node now.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::endpoint::Inner;
use super::pool::lock;

/// Between two dials of the other agent.
const DIAL_EVERY: Duration = Duration::from_secs(2);
/// How long after the last meeting the alarm ends: some dials, each of which may time out.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(8);

/// What this node knows of the other agent.
#[derive(Default)]
pub(super) struct Twin {
    /// The last meeting. The lock spans no await.
    met: Mutex<Option<Instant>>,
    alarm: watch::Sender<Option<SocketAddr>>,
}

impl Twin {
    pub(super) fn watch(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.alarm.subscribe()
    }

    /// Notes a meeting. True if it is the first one of this alarm.
    fn met(&self, address: SocketAddr) -> bool {
        let first = lock(&self.met).replace(Instant::now()).is_none();
        self.alarm.send_replace(Some(address));
        first
    }

    /// Ends the alarm if the other agent was not met for [`GONE_AFTER`]. True if it did.
    fn ends(&self) -> bool {
        let is_gone = lock(&self.met).take_if(|met| met.elapsed() >= GONE_AFTER).is_some();
        if is_gone {
            self.alarm.send_replace(None);
        }
        is_gone
    }
}

impl Inner {
    pub(super) fn met_twin(self: &Arc<Self>, address: SocketAddr) {
        if self.twin.met(address) {
            tokio::spawn(Arc::clone(self).look_for_twin());
        }
    }

    /// Looks for the other agent until it is gone.
    async fn look_for_twin(self: Arc<Self>) {
        while !self.twin.ends() {
            sleep(DIAL_EVERY).await;
            let address = *self.twin.alarm.borrow();
            if let Some(address) = address {
                // A meeting is noted while the two shake hands.
                let _ = Arc::clone(&self).dial(address).await;
            }
        }
    }
}
