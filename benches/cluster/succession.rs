//! The time from a leader's death until the cluster accepts a request again, compared with etcd.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::SIZE;
use crate::agents::{Cluster, PATIENCE};
use crate::etcd::Etcd;
use crate::figures::{Figures, table};

/// How often to send the request to a survivor, without waiting for earlier answers. The measurement is the time until
/// a request is accepted, not the time that a client waits for an answer that was lost with the leader.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long a cluster rests after all its nodes run again, so that one round does not affect the next.
const REST: Duration = Duration::from_secs(1);
/// How long the sessions run. The rounds do not remove them, so they end by themselves.
const SESSION: Duration = Duration::from_secs(900);
const WORKSPACE: &str = "bench";

pub(crate) async fn run(rounds: usize) -> Result<()> {
    let mut ostler = Cluster::start(SIZE, "").await?;
    ostler.workspace(WORKSPACE, SESSION, &json!({})).await?;
    let mut etcd = Etcd::start(SIZE).await?;
    if etcd.is_none() {
        println!("SKIPPED: succession compared with etcd: needs etcd");
    }
    let (mut follows, mut ours, mut theirs) = (Figures::default(), Figures::default(), Figures::default());
    for round in 0..rounds {
        // Both systems in each round, in alternating order.
        for turn in [round, round + 1] {
            match &mut etcd {
                Some(etcd) if turn % 2 == 1 => theirs.add_millis(of_etcd(etcd, round).await?),
                None if turn % 2 == 1 => {}
                _ => {
                    let (followed, accepted) = of_ostler(&mut ostler, round).await?;
                    follows.add_millis(followed);
                    ours.add_millis(accepted);
                }
            }
        }
    }
    ostler.clear().await?;
    ostler.stop()?;
    let row = |what: &str, figures: &Figures| {
        let seconds = |q| format!("{:.3} s", figures.quantile(q) / 1000.0);
        [what.to_owned(), seconds(0.5), seconds(0.95), seconds(0.99), seconds(1.0)]
    };
    let mut rows = vec![row("ostler: a new leader is followed", &follows), row("ostler: a session is accepted", &ours)];
    if etcd.is_some() {
        rows.push(row("etcd: a put is accepted", &theirs));
    }
    let head = ["after the leader's death", "median", "p95", "p99", "max"];
    println!("{rounds} leaders killed of {SIZE} nodes\n{}", table(head, rows));
    if etcd.is_some() {
        println!("ostler ÷ etcd, medians: {:.2}", ours.median() / theirs.median());
    }
    Ok(())
}

/// The times until the survivor follows another leader, and until it accepts a session.
async fn of_ostler(cluster: &mut Cluster, round: usize) -> Result<(Duration, Duration)> {
    let leader = cluster.settled().await?;
    let survivor = cluster.nodes[survivor(leader, round)].clone();
    let key = format!("round-{round}");
    sleep(REST).await;
    cluster.kill(leader);
    let old = &cluster.nodes[leader].name;
    let followed = first(|| {
        let (survivor, old) = (survivor.clone(), old.clone());
        async move { survivor.follows().await.is_ok_and(|(leader, ..)| leader.is_some_and(|leader| leader != old)) }
    });
    let accepted = first(|| {
        let (survivor, key) = (survivor.clone(), key.clone());
        async move {
            let request = json!({ "workspace": WORKSPACE, "user": "bench" });
            let answer = survivor.ask("POST", "/v1/sessions", &[("Idempotency-Key", &key)], Some(&request)).await;
            answer.is_ok_and(|answer| answer.status.is_success())
        }
    });
    let took = tokio::try_join!(followed, accepted)?;
    cluster.spawn(leader)?;
    cluster.settled().await?;
    Ok(took)
}

async fn of_etcd(etcd: &mut Etcd, round: usize) -> Result<Duration> {
    let leader = etcd.settled().await?;
    let survivor = etcd.member(survivor(leader, round));
    let key = format!("round-{round}");
    sleep(REST).await;
    etcd.kill(leader);
    let took = first(|| {
        let (survivor, key) = (survivor.clone(), key.clone());
        async move { survivor.put(&key).await.unwrap_or(false) }
    })
    .await?;
    etcd.spawn(leader)?;
    etcd.settled().await?;
    Ok(took)
}

/// A node other than the leader, a different one in each round.
const fn survivor(leader: usize, round: usize) -> usize {
    (leader + 1 + round % (SIZE - 1)) % SIZE
}

/// The time until one of repeated attempts succeeds.
async fn first<F: Future<Output = bool> + Send + 'static>(mut attempt: impl FnMut() -> F) -> Result<Duration> {
    let started = Instant::now();
    let mut again = interval(ASK_EVERY);
    again.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut attempts = JoinSet::new();
    loop {
        tokio::select! {
            _ = again.tick() => drop(attempts.spawn(attempt())),
            Some(Ok(true)) = attempts.join_next() => return Ok(started.elapsed()),
        }
        ensure!(started.elapsed() < PATIENCE, "no attempt succeeds");
    }
}
