//! Several real agents: found, led, asked anywhere, killed and cut off.

mod anywhere;
mod faults;
mod membership;
mod replication;

use serde_json::Value;

fn id(session: &Value) -> String {
    session["id"].as_str().unwrap().to_owned()
}

/// Runs until it is told to end.
const FOREVER: &str = "exec sleep 100000";
