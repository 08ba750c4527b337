//! Clusters of real agents: membership, replication, requests to any node, and faults.

mod anywhere;
pub(crate) mod faults;
mod held;
mod membership;
mod replication;

use serde_json::Value;

pub(crate) fn id(session: &Value) -> String {
    session["id"].as_str().unwrap().to_owned()
}

/// Runs until it is stopped.
pub(crate) const FOREVER: &str = "exec sleep 100000";
