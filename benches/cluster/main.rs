//! Many real agents of one cluster on loopback, with the process runtime: what a leader's death costs, what
//! forwarding adds, how fast news goes around, whether all holds while leaders die for minutes, and how many nodes one
//! network bears.
//!
//! `cargo bench --bench cluster -- --rounds 30` measures, `-- --news 30` spreads, `-- --soak-minutes 10 --clients 16`
//! breaks and checks, `-- --nodes 100` grows.

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
mod soak;
mod succession;

use anyhow::Result;
use clap::Parser;

/// Nodes of a cluster whose leader dies.
const SIZE: usize = 5;

#[derive(Parser)]
struct Arguments {
    /// How often a leader is killed, of each system; how often there is news.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How often a session is asked for at the leader, again there, and elsewhere.
    #[arg(long, default_value_t = 100)]
    creates: usize,
    /// Instead: how fast news goes around a cluster of so many nodes.
    #[arg(long)]
    news: Option<usize>,
    /// Instead: for so long, sessions come and go while leaders die; then it is checked that all is as acknowledged.
    #[arg(long)]
    soak_minutes: Option<f64>,
    /// How many make and remove sessions in the soak.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// What of the soak is left to chance follows from it.
    #[arg(long)]
    seed: Option<u64>,
    /// Instead: a cluster of so many nodes that finds itself, idles, and bears a busy host.
    #[arg(long)]
    nodes: Option<usize>,
    /// How long it idles.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// How long the host is busy.
    #[arg(long, default_value_t = 60)]
    busy_seconds: u64,
    /// `cargo bench` says this to every benchmark.
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
