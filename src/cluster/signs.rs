//! What the mesh and the catalogue know of this node's place in the cluster, for its conditions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::catalogue::{Key, Snapshot};
use crate::gossip::ClusterView;
use crate::net::{Cause, Net};
use crate::node::ClusterSigns;
use crate::types::{ClusterMode, NodeState};

/// How often the failures of the mesh are looked at. They also end by time.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Addresses that a message names at most.
const MAX_NAMED: usize = 3;

/// Starts the owner. It ends when the last reader of the signs is dropped.
pub fn spawn(
    mode: ClusterMode,
    net: Option<Net>,
    view: watch::Receiver<Arc<ClusterView>>,
    catalogue: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Arc<ClusterSigns>>,
) -> JoinHandle<()> {
    tokio::spawn(run(mode, net, view, catalogue, publish))
}

async fn run(
    mode: ClusterMode,
    net: Option<Net>,
    mut view: watch::Receiver<Arc<ClusterView>>,
    mut catalogue: watch::Receiver<Arc<Snapshot>>,
    publish: watch::Sender<Arc<ClusterSigns>>,
) {
    // Without a mesh this node meets no duplicate.
    let mut met = net.as_ref().map_or_else(|| watch::channel(None).1, Net::duplicate);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let failures = net.as_ref().map(Net::failures).unwrap_or_default();
        let met_at = *met.borrow_and_update();
        let now = signs(mode, met_at, &failures, &view.borrow_and_update(), &catalogue.borrow_and_update());
        publish.send_if_modified(|before| {
            let news = **before != now;
            if news {
                *before = Arc::new(now);
            }
            news
        });
        tokio::select! {
            () = publish.closed() => return,
            _ = looks.tick() => {}
            // `changed` fails once the sender is dropped, which disables its branch.
            Ok(()) = met.changed() => {}
            Ok(()) = view.changed() => {}
            Ok(()) = catalogue.changed() => {}
        }
    }
}

fn signs(
    mode: ClusterMode,
    met: Option<SocketAddr>,
    failures: &BTreeMap<SocketAddr, Cause>,
    view: &ClusterView,
    catalogue: &Snapshot,
) -> ClusterSigns {
    let there = view.members.values().filter(|member| member.state == NodeState::Alive && member.mode != mode);
    let differing = there.filter_map(|member| Some(member.profile.as_ref()?.name.clone()));
    let conflicts = catalogue.contents.conflicts().map(|conflict| match &conflict.previous.key {
        Key::Workspace(name) => format!("workspace {name}"),
        Key::Token(id) => format!("API token {id}"),
    });
    ClusterSigns {
        duplicate: met.or(view.duplicate).map(|address| address.to_string()),
        alone: view.alone.then(|| alone(failures)),
        failing: named(failures.iter().filter(|(_, cause)| cause.needs_operator())),
        mode_mismatch: differing.collect(),
        conflicts: conflicts.collect(),
    }
}

fn alone(failures: &BTreeMap<SocketAddr, Cause>) -> String {
    let why = named(failures.iter()).join("; ");
    if why.is_empty() { "no seed has answered yet".to_owned() } else { format!("no seed has answered yet: {why}") }
}

/// The first [`MAX_NAMED`] addresses with their causes, and how many more there are.
fn named<'a>(failures: impl Iterator<Item = (&'a SocketAddr, &'a Cause)>) -> Vec<String> {
    let mut named: Vec<String> = failures.map(|(address, cause)| format!("{address}: {cause}")).collect();
    let more = named.len().saturating_sub(MAX_NAMED);
    named.truncate(MAX_NAMED);
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(causes: &[Cause]) -> BTreeMap<SocketAddr, Cause> {
        let address = |n: usize| SocketAddr::from(([192, 0, 2, u8::try_from(n).unwrap()], 7480));
        causes.iter().enumerate().map(|(n, cause)| (address(n), cause.clone())).collect()
    }

    fn signs_of(failures: &BTreeMap<SocketAddr, Cause>, view: &ClusterView) -> ClusterSigns {
        signs(ClusterMode::Available, None, failures, view, &Snapshot::default())
    }

    #[test]
    fn only_what_does_not_pass_by_itself_is_failing() {
        let narrow = Cause::NarrowPath(SocketAddr::from(([192, 0, 2, 0], 7480)));
        let failing = signs_of(&failures(&[narrow, Cause::NoHello]), &ClusterView::default()).failing;
        let expected = "192.0.2.0:7480: the path to 192.0.2.0:7480 carries only datagrams of less than 1200 bytes; \
                        raise its MTU to 1280 or more";
        assert_eq!(failing, [expected]);
    }

    #[test]
    fn a_node_that_is_alone_says_why() {
        let view = ClusterView { alone: true, ..ClusterView::default() };
        let alone = |causes: &[Cause]| signs_of(&failures(causes), &view).alone.unwrap();
        assert_eq!(alone(&[]), "no seed has answered yet");
        assert_eq!(alone(&[Cause::NoHello]), "no seed has answered yet: 192.0.2.0:7480: no answer");
        assert!(alone(&[Cause::NoHello, Cause::NoHello, Cause::NoHello, Cause::NoHello]).ends_with("; and 1 more"));
    }
}
