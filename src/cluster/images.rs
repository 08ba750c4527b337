//! The images of the catalogue that this host has: their sessions start sooner here than on a host that must pull.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::catalogue;
use crate::runtime::Runtime;
use crate::sessions::{self, Snapshot};
use crate::types::SessionState;

/// Images that a host publishes at most.
const MAX_IMAGES: usize = 1000;
/// How often the engine is asked if nothing else suggests a change.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The images, as workspaces name them.
pub type Images = Arc<BTreeSet<String>>;

/// A change of these suggests that the host's images have changed.
#[derive(Debug, Clone, PartialEq, Default)]
struct Signs {
    /// The images that the catalogue names.
    named: BTreeSet<String>,
    /// The images of this host's sessions.
    used: BTreeSet<String>,
}

/// Starts the owner. It ends when the last reader of the images is dropped.
pub fn spawn(
    runtime: Arc<dyn Runtime>,
    catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    sessions: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Images>,
) -> JoinHandle<()> {
    tokio::spawn(run(runtime, catalogue, sessions, publish))
}

async fn run(
    runtime: Arc<dyn Runtime>,
    mut catalogue: watch::Receiver<Arc<catalogue::Snapshot>>,
    mut sessions: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Images>,
) {
    loop {
        let signs = signs(&catalogue.borrow_and_update(), &sessions.borrow_and_update());
        let wanted: Vec<String> = signs.named.iter().take(MAX_IMAGES).cloned().collect();
        if let Ok(present) = runtime.present(&wanted).await {
            publish.send_if_modified(|known| {
                let news = **known != present;
                if news {
                    *known = Arc::new(present);
                }
                news
            });
        }
        tokio::select! {
            () = publish.closed() => return,
            _ = timeout(LOOK_EVERY, differ(&signs, &mut catalogue, &mut sessions)) => {}
        }
    }
}

/// Returns once the signs differ from `known`.
async fn differ(
    known: &Signs,
    catalogue: &mut watch::Receiver<Arc<catalogue::Snapshot>>,
    sessions: &mut watch::Receiver<Arc<Snapshot>>,
) {
    while signs(&catalogue.borrow_and_update(), &sessions.borrow_and_update()) == *known {
        tokio::select! {
            Ok(()) = catalogue.changed() => {}
            Ok(()) = sessions.changed() => {}
            else => std::future::pending().await,
        }
    }
}

fn signs(catalogue: &catalogue::Snapshot, sessions: &sessions::Snapshot) -> Signs {
    let pulled = |state| !matches!(state, SessionState::Pending | SessionState::Pulling);
    let used = sessions.sessions.values().filter(|session| pulled(session.state));
    Signs {
        named: catalogue.workspaces.values().filter_map(|workspace| workspace.image.clone()).collect(),
        used: used.filter_map(|session| session.image.clone()).collect(),
    }
}
