//! Many real agents of one cluster on loopback, with the process runtime: what a leader's death costs, what
//! forwarding adds, how fast changes spread, whether the cluster stays correct while leaders die for minutes, and
//! how many nodes a cluster can have.
//!
//! `cargo bench --bench cluster -- --rounds 30` measures failover and forwarding, `-- --news 30` the spread of
//! changes, `-- --soak-minutes 10 --clients 16` correctness under faults, `-- --nodes 100` a large cluster, and
//! `-- --readers 20 --nodes 100` what readers cost it.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod agents;
mod echo;
mod etcd;
#[path = "../support/figures.rs"]
mod figures;
mod forwarding;
#[path = "../support/http.rs"]
mod http;
mod membership;
mod news;
mod process;
mod readers;
mod soak;
mod succession;

use anyhow::Result;
use clap::Parser;

/// Nodes of a cluster whose leader dies.
const SIZE: usize = 5;

#[derive(Parser)]
struct Arguments {
    /// How often to kill a leader, of each system; with --news, how often to make each change.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How often to create a session at the leader, again at the leader, and at a follower.
    #[arg(long, default_value_t = 100)]
    creates: usize,
    /// Measure instead how fast changes spread in a cluster of this many nodes.
    #[arg(long)]
    news: Option<usize>,
    /// Run a soak instead: for this long, create and remove sessions while leaders die, then check what is left.
    #[arg(long)]
    soak_minutes: Option<f64>,
    /// Number of clients that create and remove sessions in the soak.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seed of the soak's random decisions.
    #[arg(long)]
    seed: Option<u64>,
    /// Measure instead a cluster of this many nodes: until all are alive to each other, idle, and on a busy host.
    #[arg(long)]
    nodes: Option<usize>,
    /// Measure instead what this many readers of events, and a scrape of each of --nodes nodes a second, cost creates.
    #[arg(long)]
    readers: Option<usize>,
    /// How long to measure the idle cluster, in seconds.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// How long to keep the host busy, in seconds.
    #[arg(long, default_value_t = 60)]
    busy_seconds: u64,
    /// `cargo bench` passes this flag to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(minutes) = arguments.soak_minutes {
        let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
        return soak::run(minutes, arguments.clients, seed).await;
    }
    if let Some(nodes) = arguments.news {
        return news::run(nodes, arguments.rounds).await;
    }
    if let Some(readers) = arguments.readers {
        return readers::run(arguments.nodes.unwrap_or(SIZE), readers, arguments.rounds).await;
    }
    if let Some(nodes) = arguments.nodes {
        return membership::run(nodes, arguments.idle_seconds, arguments.busy_seconds).await;
    }
    if arguments.creates > 0 {
        forwarding::run(arguments.creates).await?;
    }
    if arguments.rounds > 0 {
        succession::run(arguments.rounds).await?;
    }
    Ok(())
}
