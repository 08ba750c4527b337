//! What readers cost those who create sessions: streams of events, and a scrape of every node each second.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, HOST};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::agents::{Cluster, Node, Seeds};
use crate::figures::{Figures, table};
use crate::forwarding::create_and_remove;
use crate::membership::found;

const SESSION: Duration = Duration::from_secs(900);
/// The workspace of the sessions, as [`create_and_remove`] asks for it.
const WORKSPACE: &str = "bench";
/// Between two scrapes of a node.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
/// How long the readers read before it is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// Creates of one turn.
const CREATES: usize = 40;

/// Who reads meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nobody,
    NobodyAgain,
    /// Streams of events of the leader, which is scraped too.
    Readers,
    /// The same, and every node is scraped. Here all nodes share one host.
    ReadersOfAll,
}

pub(crate) async fn run(size: usize, readers: usize, rounds: usize) -> Result<()> {
    let mut cluster = Cluster::prepare(size, Seeds::One, "[log]\nlevel = \"warn\"\n")?;
    for node in 0..size {
        cluster.spawn(node)?;
    }
    found(&cluster, Instant::now()).await?;
    let leader = cluster.one_leader().await?;
    let here = json!({ "labels": { "bench": "here" } });
    cluster.nodes[leader].put("PATCH", "/v1/nodes/self", &here).await?;
    cluster.workspace(WORKSPACE, SESSION, &json!({ "constraints": { "bench": "here" } })).await?;
    let turns = [Turn::Nobody, Turn::NobodyAgain, Turn::Readers, Turn::ReadersOfAll];
    let mut figures = [const { Figures(Vec::new()) }; 4];
    let (own, all) = (cluster.nodes[leader..=leader].to_vec(), cluster.nodes.clone());
    for round in 0..rounds {
        for step in 0..turns.len() {
            let turn = (round + step) % turns.len();
            let mut reading = match turns[turn] {
                Turn::Readers => read(&own[0], &own, readers).await?,
                Turn::ReadersOfAll => read(&own[0], &all, readers).await?,
                Turn::Nobody | Turn::NobodyAgain => JoinSet::new(),
            };
            sleep(SETTLE).await;
            let mut connection = cluster.nodes[leader].connect().await?;
            let mut took = Figures::default();
            for _ in 0..CREATES {
                took.add_millis(create_and_remove(&mut connection).await?);
            }
            ensure!(reading.try_join_next().is_none(), "a reader was cut off");
            figures[turn].0.push(took.median());
        }
    }
    ensure!(cluster.one_leader().await? == leader, "another node leads now");
    cluster.clear().await?;
    cluster.stop()?;
    let [alone, again, read, read_all] = &figures;
    let row = |what: String, figures: &Figures| {
        let over = Figures(figures.0.iter().zip(&alone.0).map(|(figure, base)| figure / base).collect());
        [what, format!("{:.2} ms", figures.median()), format!("{:.3}", over.median())]
    };
    let rows = [
        row("nobody reads".to_owned(), alone),
        row("nobody reads, again".to_owned(), again),
        row(format!("{readers} streams of events, and a scrape a second"), read),
        row(format!("the same, and all {size} nodes are scraped"), read_all),
    ];
    println!("{size} nodes, {rounds} rounds of {CREATES} creates at the leader");
    println!("{}", table(["create a session while", "median", "÷ nobody, median of rounds"], rows));
    Ok(())
}

/// Readers of all nodes' events at one node, and a scraper of each of some nodes.
async fn read(at: &Node, scraped: &[Node], readers: usize) -> Result<JoinSet<()>> {
    let mut reading = JoinSet::new();
    for _ in 0..readers {
        reading.spawn(follow(events(at).await?));
    }
    for node in scraped {
        reading.spawn(scrape(node.clone()));
    }
    Ok(reading)
}

/// A stream of the events of all nodes.
async fn events(node: &Node) -> Result<Incoming> {
    let stream = UnixStream::connect(node.folder.join("agent.sock")).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/v1/events").header(HOST, "localhost").header(ACCEPT, "text/event-stream");
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    ensure!(response.status().is_success(), "a stream of events: {}", response.status());
    Ok(response.into_body())
}

/// Ends when the stream ends, which the caller notices.
async fn follow(mut events: Incoming) {
    while let Some(Ok(_)) = events.frame().await {}
}

async fn scrape(node: Node) {
    let mut due = interval(SCRAPE_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ends when a scrape fails, which the caller notices.
    while node.get("/metrics").await.is_ok() {
        due.tick().await;
    }
}
