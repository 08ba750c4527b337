//! The addresses of the seeds. Names are looked up again regularly.
//!
//! A name server that does not answer must delay neither the start nor the gossip with other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often names are looked up, since their addresses may change.
const LOOK_UP_EVERY: Duration = Duration::from_secs(60);
/// The same while the look-up of a name fails.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);

/// The known addresses of the seeds.
#[derive(Debug)]
pub(super) struct Seeds {
    addresses: watch::Receiver<BTreeSet<SocketAddr>>,
    /// The look-ups. They end when the seeds are dropped.
    _resolver: JoinSet<()>,
}

impl Seeds {
    pub(super) fn new(seeds: &[String]) -> Self {
        let fixed: BTreeSet<SocketAddr> = seeds.iter().filter_map(|seed| seed.parse().ok()).collect();
        let names: Vec<String> = seeds.iter().filter(|s| s.parse::<SocketAddr>().is_err()).cloned().collect();
        let (publish, addresses) = watch::channel(fixed.clone());
        let mut resolver = JoinSet::new();
        if !names.is_empty() {
            resolver.spawn(resolve(names, fixed, publish));
        }
        Self { addresses, _resolver: resolver }
    }

    pub(super) fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.addresses.borrow().clone()
    }
}

async fn resolve(names: Vec<String>, fixed: BTreeSet<SocketAddr>, publish: watch::Sender<BTreeSet<SocketAddr>>) {
    let mut found: BTreeMap<&str, Vec<SocketAddr>> = BTreeMap::new();
    let mut failing: BTreeSet<&str> = BTreeSet::new();
    loop {
        for name in &names {
            match lookup_host(name).await {
                Ok(addresses) => {
                    found.insert(name, addresses.collect());
                    failing.remove(name.as_str());
                }
                // The addresses of the last look-up stay.
                Err(error) => {
                    if failing.insert(name) {
                        tracing::warn!(seed = %name, %error, "cannot look up the name of a seed");
                    }
                }
            }
        }
        publish.send_replace(fixed.iter().chain(found.values().flatten()).copied().collect());
        tokio::time::sleep(if failing.is_empty() { LOOK_UP_EVERY } else { LOOK_UP_AGAIN }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_known_at_once_and_names_after_a_look_up() {
        let fixed: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let mut seeds = Seeds::new(&[fixed.to_string(), "localhost:7".to_owned()]);
        assert_eq!(seeds.addresses(), [fixed].into());
        seeds.addresses.wait_for(|found| found.len() > 1).await.unwrap();
        assert!(seeds.addresses().iter().any(|address| address.port() == 7));
    }
}
