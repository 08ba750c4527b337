//! Many nodes in one cluster: how long until all have found each other, what they cost at rest, and whether a busy
//! host makes nodes count as dead.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

use crate::agents::{Cluster, POLL, Seeds};
use crate::figures::{Figures, table};

/// How long the nodes may take to find each other.
const FIND_EACH_OTHER: Duration = Duration::from_secs(180);
/// How long the cluster rests before it is measured.
const SETTLE: Duration = Duration::from_secs(10);
/// How often every node is asked while the host is busy: seldom, so that the requests add little load.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// All bytes on this host's loopback: the cluster's gossip, heartbeats and reports, with their headers.
const LOOPBACK_BYTES: &str = "/sys/class/net/lo/statistics/rx_bytes";

pub(crate) async fn run(size: usize, idle_seconds: u64, busy_seconds: u64) -> Result<()> {
    let mut cluster = Cluster::prepare(size, Seeds::One, "[log]\nlevel = \"warn,ostler::election=info\"\n")?;
    let started = Instant::now();
    for node in 0..size {
        cluster.spawn(node)?;
    }
    let outcome = measure(&cluster, started, idle_seconds, busy_seconds).await;
    if let Err(error) = outcome {
        return Err(error.context(format!("the logs are in {}", cluster.keep_files().display())));
    }
    cluster.stop()
}

async fn measure(cluster: &Cluster, started: Instant, idle_seconds: u64, busy_seconds: u64) -> Result<()> {
    let size = cluster.nodes.len();
    found(cluster, started).await?;
    println!(
        "{size} nodes: all alive to each other, one leader, {:.1} s after the first start",
        started.elapsed().as_secs_f64()
    );

    sleep(SETTLE).await;
    println!("{}", at_rest(cluster, Duration::from_secs(idle_seconds)).await?);

    let before = look(cluster).await;
    let (over, mut seen) = (Instant::now() + Duration::from_secs(busy_seconds), Seen::default());
    let spinning = Spinning::on_every_core()?;
    while Instant::now() < over {
        sleep(LOOK_EVERY).await;
        seen.add(&before, look(cluster).await, size);
    }
    drop(spinning);
    println!("{busy_seconds} s with every core busy, {} checks of {size} nodes", seen.looks);
    println!("{}", table(["while busy", "count"], seen.rows()));
    found(cluster, Instant::now()).await
}

/// Waits until every node sees all nodes alive, and all follow one leader.
pub(crate) async fn found(cluster: &Cluster, since: Instant) -> Result<()> {
    let all = cluster.nodes.len();
    for node in &cluster.nodes {
        loop {
            let alive = node.alive_seen().await;
            if matches!(alive, Ok(alive) if alive == all) {
                break;
            }
            ensure!(since.elapsed() < FIND_EACH_OTHER, "{} sees {alive:?} of {all} alive", node.name);
            sleep(POLL).await;
        }
    }
    loop {
        match cluster.one_leader().await {
            Ok(_) => return Ok(()),
            Err(why) => ensure!(since.elapsed() < FIND_EACH_OTHER, "no leader: {why:#}"),
        }
        sleep(POLL).await;
    }
}

async fn at_rest(cluster: &Cluster, over: Duration) -> Result<String> {
    let size = cluster.nodes.len();
    let cpu = || (0..size).map(|node| cluster.process(node)?.cpu_seconds()).collect::<Result<Vec<f64>>>();
    let bytes = || -> Result<f64> { Ok(fs::read_to_string(LOOPBACK_BYTES)?.trim().parse()?) };
    let (cpu_before, bytes_before, started) = (cpu()?, bytes()?, Instant::now());
    sleep(over).await;
    let seconds = started.elapsed().as_secs_f64();
    let network = (bytes()? - bytes_before) / seconds / size as f64;
    let spent = Figures(cpu()?.iter().zip(cpu_before).map(|(now, then)| (now - then) / seconds * 100.0).collect());
    let memory =
        |key| (0..size).map(|node| cluster.process(node)?.memory(key)).collect::<Result<Vec<f64>>>().map(Figures);
    let row = |what: &str, figures: &Figures, unit: &str| {
        let show = |q| format!("{:.2} {unit}", figures.quantile(q));
        [what.to_owned(), show(0.5), show(1.0)]
    };
    let rows = [
        row("resident memory", &memory("VmRSS:")?, "MB"),
        row("anonymous memory", &memory("RssAnon:")?, "MB"),
        row("CPU", &spent, "% of a core"),
        row("network, mean of all", &Figures(vec![network / 1000.0]), "KB/s"),
    ];
    Ok(table(["a node at rest", "median", "max"], rows))
}

/// The result of one check of every node: the leader that it follows, its term, and how many nodes it sees alive.
/// `None` if it did not answer.
type Look = Vec<Option<(Option<String>, u64, usize)>>;

async fn look(cluster: &Cluster) -> Look {
    let mut look = Vec::new();
    for node in &cluster.nodes {
        let seen = async { Ok::<_, anyhow::Error>((node.follows().await?, node.alive_seen().await?)) };
        look.push(seen.await.ok().map(|((leader, term, _), alive)| (leader, term, alive)));
    }
    look
}

/// The results of all checks.
#[derive(Default)]
struct Seen {
    looks: usize,
    /// Nodes that others did not see alive, summed over nodes and checks.
    dead: usize,
    /// Nodes that followed no leader, and nodes that did not answer, summed over checks.
    leaderless: usize,
    silent: usize,
    terms: BTreeSet<u64>,
}

impl Seen {
    fn add(&mut self, before: &Look, now: Look, size: usize) {
        self.looks += 1;
        self.terms.extend(before.iter().flatten().map(|(_, term, _)| *term));
        for seen in now {
            match seen {
                None => self.silent += 1,
                Some((leader, term, alive)) => {
                    self.leaderless += usize::from(leader.is_none());
                    self.terms.insert(term);
                    self.dead += size.saturating_sub(alive);
                }
            }
        }
    }

    fn rows(&self) -> Vec<[String; 2]> {
        let row = |what: &str, count: usize| [what.to_owned(), count.to_string()];
        vec![
            row("nodes that a node did not see alive", self.dead),
            row("changes of the term", self.terms.len().saturating_sub(1)),
            row("nodes without a leader", self.leaderless),
            row("nodes that did not answer", self.silent),
        ]
    }
}

/// Threads that keep every core busy until this is dropped.
struct Spinning {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Spinning {
    fn on_every_core() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| move || while !stop.load(Ordering::Relaxed) {};
        let threads = (0..thread::available_parallelism()?.get()).map(|_| thread::spawn(spin(Arc::clone(&stop))));
        Ok(Self { threads: threads.collect(), stop })
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
