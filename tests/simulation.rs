//! Whole clusters of the shipped decisions on virtual time, under every kind of fault.
//!
//! A seed is one history, and replays exactly. `OSTLER_SEEDS` sets the number of seeds; `OSTLER_SEED` runs a single
//! one. Safety is checked after each step ([`safety`]), liveness once the faults are over ([`liveness`]).

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a simulation that cannot go on has failed, and names its seed

#[path = "simulation/call.rs"]
mod call;
#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/cluster.rs"]
mod cluster;
#[path = "simulation/engine.rs"]
mod engine;
#[path = "simulation/event.rs"]
mod event;
#[path = "simulation/fleet.rs"]
mod fleet;
#[path = "simulation/histories.rs"]
mod histories;
#[path = "simulation/host.rs"]
mod host;
#[path = "simulation/invariants.rs"]
mod invariants;
#[path = "simulation/leader.rs"]
mod leader;
#[path = "simulation/liveness.rs"]
mod liveness;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/owner.rs"]
mod owner;
#[path = "simulation/replicas.rs"]
mod replicas;
#[path = "simulation/runner.rs"]
mod runner;
#[path = "simulation/safety.rs"]
mod safety;
#[path = "simulation/transcript.rs"]
mod transcript;
#[path = "simulation/world.rs"]
mod world;

/// The default number of seeds.
const SEEDS: u64 = 1000;

/// Runs the history of every seed. A failure prints its seed.
fn each_seed(run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("OSTLER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OSTLER_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(failure) = std::panic::catch_unwind(|| run(seed)) {
            println!("this history failed: OSTLER_SEED={seed}");
            std::panic::resume_unwind(failure);
        }
    }
}
