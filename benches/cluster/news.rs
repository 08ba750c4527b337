//! How fast changes spread: a change of a host's settings, an edit of the catalogue, a host's death.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::agents::{Cluster, Node, PATIENCE};
use crate::echo::Echo;
use crate::figures::{Figures, table};
use crate::http::Connection;

/// The pause between two requests while waiting for a change: short, but long enough to add little load.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The pause while waiting for a death, which takes longer.
const MISS_EVERY: Duration = Duration::from_millis(20);
/// How long the cluster rests between two rounds.
const REST: Duration = Duration::from_millis(200);
/// One round of this many kills a host.
const KILLS: usize = 5;

#[derive(Default)]
struct Found {
    echo: Figures,
    told: Figures,
    leader: Figures,
    edited: Figures,
    everywhere: Figures,
    missed: Figures,
    unknown: Figures,
}

pub(crate) async fn run(size: usize, rounds: usize) -> Result<()> {
    let mut cluster = Cluster::start(size, "[log]\nlevel = \"warn\"\n").await?;
    let echo = Echo::start().await?;
    let mut found = Found::default();
    for round in 0..rounds {
        sleep(REST).await;
        found.echo.add_millis(echo.exchange().await?);
        let leader = cluster.settled().await?;
        let changed = (leader + 1 + round % (size - 1)) % size;
        of_a_change(&cluster, leader, changed, round, &mut found).await?;
        found.echo.add_millis(echo.exchange().await?);
        of_an_edit(&cluster, changed, round, &mut found).await?;
        if round % KILLS == 0 {
            of_a_death(&mut cluster, leader, changed, &mut found).await?;
        }
    }
    cluster.stop()?;
    let row = |what: &str, figures: &Figures| {
        let millis = |q| format!("{:.2} ms", figures.quantile(q));
        let over = figures.median() / found.echo.median();
        [what.to_owned(), millis(0.5), millis(0.95), millis(1.0), format!("{over:.1}")]
    };
    let rows = [
        row("a bare exchange over QUIC", &found.echo),
        row("a host's settings are changed: the host answers", &found.told),
        row("… and the leader lists the change", &found.leader),
        row("a workspace is changed: the node answers", &found.edited),
        row("… and every node serves the change", &found.everywhere),
        row("a host is killed: the leader lists it as suspect", &found.missed),
        row("… and as unknown", &found.unknown),
    ];
    println!("{rounds} rounds, {size} nodes\n{}", table(["change", "median", "p95", "max", "÷ bare, medians"], rows));
    Ok(())
}

/// Changes a host's settings at that host, and waits until the leader lists the change.
async fn of_a_change(cluster: &Cluster, leader: usize, host: usize, round: usize, found: &mut Found) -> Result<()> {
    let (at_host, at_leader) = (&cluster.nodes[host], &cluster.nodes[leader]);
    let (mut asked, mut listing) = (at_host.connect().await?, at_leader.connect().await?);
    let label = format!("round-{round}");
    let patch = json!({ "labels": { "news": label } });
    let started = Instant::now();
    let told = async {
        expect(&mut asked, "PATCH", "/v1/nodes/self", Some(&patch)).await?;
        Ok::<_, anyhow::Error>(started.elapsed())
    };
    let listed = until(&mut listing, "/v1/nodes", LOOK_EVERY, |nodes| {
        named(nodes, &at_host.name).is_some_and(|node| node["settings"]["labels"]["news"] == *label)
    });
    let (told, ()) = tokio::try_join!(told, listed)?;
    found.leader.add_millis(started.elapsed().max(told));
    found.told.add_millis(told);
    Ok(())
}

/// Puts a workspace at one node, and reads it at every node: each serves its own copy.
async fn of_an_edit(cluster: &Cluster, at: usize, round: usize, found: &mut Found) -> Result<()> {
    let mut asked = cluster.nodes[at].connect().await?;
    let mut readers = try_join_all(cluster.nodes.iter().map(Node::connect)).await?;
    let workspace = json!({
        "name": "news", "command": ["true"], "cores": 0.1, "memory_bytes": "8MiB", "description": format!("round {round}"),
    });
    let path = "/v1/workspaces/news";
    let started = Instant::now();
    let edited = async {
        expect(&mut asked, "PUT", path, Some(&workspace)).await?;
        Ok::<_, anyhow::Error>(started.elapsed())
    };
    let read = readers
        .iter_mut()
        .map(|reader| until(reader, path, LOOK_EVERY, |served| served["description"] == workspace["description"]));
    let (edited, _) = tokio::try_join!(edited, try_join_all(read))?;
    found.everywhere.add_millis(started.elapsed());
    found.edited.add_millis(edited);
    Ok(())
}

/// Kills a host's agent, waits until the leader lists the death, and starts the agent again.
async fn of_a_death(cluster: &mut Cluster, leader: usize, host: usize, found: &mut Found) -> Result<()> {
    let name = cluster.nodes[host].name.clone();
    let mut listing = cluster.nodes[leader].connect().await?;
    let started = Instant::now();
    cluster.kill(host);
    let is = |states: &'static [&'static str]| {
        let name = name.clone();
        move |nodes: &Value| named(nodes, &name).is_some_and(|node| states.iter().any(|state| node["state"] == **state))
    };
    until(&mut listing, "/v1/nodes", LOOK_EVERY, is(&["suspect", "unknown"])).await?;
    found.missed.add_millis(started.elapsed());
    until(&mut listing, "/v1/nodes", MISS_EVERY, is(&["unknown"])).await?;
    found.unknown.add_millis(started.elapsed());
    cluster.spawn(host)?;
    cluster.settled().await?;
    Ok(())
}

fn named<'a>(nodes: &'a Value, name: &str) -> Option<&'a Value> {
    nodes["items"].as_array()?.iter().find(|node| node["name"] == *name)
}

/// Repeats a request until its answer is as wanted.
async fn until(asked: &mut Connection, path: &str, every: Duration, is: impl Fn(&Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        ensure!(asked.is_open().await, "the agent closed the connection");
        if is(&asked.ask("GET", path, &[], None).await?.body) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{path} does not change");
        sleep(every).await;
    }
}

async fn expect(asked: &mut Connection, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
    let answer = asked.ask(method, path, &[], body).await.context("no answer")?;
    ensure!(answer.status.is_success(), "{method} {path}: {}: {}", answer.status, answer.body);
    Ok(())
}
