//! What a create costs more on another node than on the leader.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::SIZE;
use crate::agents::Cluster;
use crate::echo::Echo;
use crate::figures::{Figures, table};
use crate::http::{Answer, Connection};

/// Rounds that are not counted.
const WARM_UP: usize = 5;
const SESSION: Duration = Duration::from_secs(900);
const WORKSPACE: &str = "bench";

pub(crate) async fn run(creates: usize) -> Result<()> {
    let mut cluster = Cluster::start(SIZE, "").await?;
    let leader = cluster.settled().await?;
    // Every session is placed on the leader's own host, so only the node that gets the request differs.
    let here = json!({ "labels": { "bench": "here" } });
    cluster.nodes[leader].put("PATCH", "/v1/nodes/self", &here).await?;
    cluster.workspace(WORKSPACE, SESSION, &json!({ "constraints": { "bench": "here" } })).await?;
    let mut leads = cluster.nodes[leader].connect().await?;
    let mut follows = cluster.nodes[(leader + 1) % SIZE].connect().await?;
    let echo = Echo::start().await?;
    let mut bare = Figures::default();
    let (mut first, mut again, mut forwarded) = (Figures::default(), Figures::default(), Figures::default());
    for round in 0..WARM_UP + creates {
        let mut took = [Duration::ZERO; 3];
        for turn in 0..took.len() {
            let way = (round + turn) % took.len();
            let asked = if way == 2 { &mut follows } else { &mut leads };
            took[way] = create_and_remove(asked).await?;
        }
        let exchange = echo.exchange().await?;
        if round >= WARM_UP {
            bare.add_millis(exchange);
            [&mut first, &mut again, &mut forwarded].into_iter().zip(took).for_each(|(f, took)| f.add_millis(took));
        }
    }
    ensure!(cluster.one_leader().await? == leader, "another node leads now");
    cluster.clear().await?;
    cluster.stop()?;
    let row = |what: &str, figures: &Figures| {
        let over = Figures(figures.0.iter().zip(&first.0).map(|(figure, base)| figure / base).collect());
        let millis = |figure: f64| format!("{figure:.2} ms");
        [what.to_owned(), millis(figures.median()), millis(figures.p95()), format!("{:.3}", over.median())]
    };
    let rows = [row("at the leader", &first), row("at the leader, again", &again), row("at a follower", &forwarded)];
    let head = ["create a session", "median", "p95", "÷ at the leader, median of rounds"];
    println!("{creates} rounds, {SIZE} nodes\n{}", table(head, rows));
    let added = Figures(forwarded.0.iter().zip(&first.0).map(|(there, here)| there - here).collect()).median();
    let bare = bare.median();
    println!(
        "a follower adds {added:.2} ms; a bare exchange over QUIC takes {bare:.2} ms: a ratio of {:.2}",
        added / bare
    );
    Ok(())
}

/// The time of the create; the removal is not counted.
pub(crate) async fn create_and_remove(connection: &mut Connection) -> Result<Duration> {
    let request = json!({ "workspace": WORKSPACE, "user": "bench" });
    let started = Instant::now();
    let session = ask(connection, "POST", "/v1/sessions", Some(&request)).await?;
    let took = started.elapsed();
    let id = session["id"].as_str().context("a session has an id")?;
    ask(connection, "DELETE", &format!("/v1/sessions/{id}?wait=true"), None).await?;
    Ok(took)
}

async fn ask(connection: &mut Connection, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    ensure!(connection.is_open().await, "the agent closed the connection");
    let Answer { status, body } = connection.ask(method, path, &[], body).await?;
    ensure!(status.is_success(), "{method} {path}: {status}: {body}");
    Ok(body)
}
