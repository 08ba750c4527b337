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
    /// In the order of the configuration.
    addresses: watch::Receiver<Vec<SocketAddr>>,
    /// The look-ups. They end when the seeds are dropped.
    _resolver: JoinSet<()>,
}

impl Seeds {
    pub(super) fn new(seeds: &[String]) -> Self {
        let fixed = |seed: &String| Some((seed.clone(), vec![seed.parse().ok()?]));
        let fixed: Found = seeds.iter().filter_map(fixed).collect();
        let (publish, addresses) = watch::channel(in_order(seeds, &fixed));
        let mut resolver = JoinSet::new();
        if seeds.iter().any(|seed| !fixed.contains_key(seed)) {
            resolver.spawn(resolve(seeds.to_vec(), fixed, publish));
        }
        Self { addresses, _resolver: resolver }
    }

    /// In the order of the configuration. Names that have not been looked up yet are left out.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.borrow().clone()
    }
}

/// By seed, its addresses.
type Found = BTreeMap<String, Vec<SocketAddr>>;

fn in_order(seeds: &[String], found: &Found) -> Vec<SocketAddr> {
    seeds.iter().filter_map(|seed| found.get(seed)).flatten().copied().collect()
}

async fn resolve(seeds: Vec<String>, mut found: Found, publish: watch::Sender<Vec<SocketAddr>>) {
    let names: Vec<String> = seeds.iter().filter(|seed| !found.contains_key(*seed)).cloned().collect();
    let mut failing: BTreeSet<&str> = BTreeSet::new();
    loop {
        for name in &names {
            match lookup_host(name).await {
                Ok(addresses) => {
                    found.insert(name.clone(), addresses.collect());
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
        publish.send_replace(in_order(&seeds, &found));
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
        assert_eq!(seeds.addresses(), [fixed]);
        seeds.addresses.wait_for(|found| found.len() > 1).await.unwrap();
        assert!(seeds.addresses().iter().any(|address| address.port() == 7));
    }
}
