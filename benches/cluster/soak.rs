//! Clients create and remove sessions while leaders die and freeze. At the end every session that was acknowledged
//! and not removed must exist once, no other may exist, and all nodes must agree.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use crate::SIZE;
use crate::agents::{Cluster, Node, POLL};
use crate::figures::table;
use crate::http::Answer;

/// Small hosts, so that the cluster is often full.
const HOST: &str = "[dev]\nphysical_cores = 4\nphysical_memory = \"4GiB\"\n[log]\nlevel = \"info,ostler::sessions=debug,ostler::placement=debug\"\n";
const CORES: f64 = 0.25;
/// Workspaces that sessions are created from, and that the soak edits meanwhile.
const WORKSPACES: u64 = 3;
/// Sessions that a client holds at most: all clients together want more than the cluster has without one node.
const HELD: usize = 6;
/// Of 100 decisions of a client that could do either, those that create a session.
const MAKES: u32 = 65;
/// Pauses of a client: between two actions, and before it repeats a request.
const PAUSE_MILLIS: std::ops::Range<u64> = 50..500;
const AGAIN_MILLIS: std::ops::Range<u64> = 20..200;
/// How long a client waits for an answer before it asks another node.
const ANSWER: Duration = Duration::from_secs(5);
/// After this long, a repeated request counts as never answered.
const STUCK: Duration = Duration::from_secs(90);
/// The pause between two faults, and how long each lasts.
const FAULT_MILLIS: std::ops::Range<u64> = 5_000..15_000;
const DEAD_MILLIS: std::ops::Range<u64> = 500..5_000;
const FROZEN_MILLIS: std::ops::Range<u64> = 1_000..8_000;
/// One fault of this many freezes the leader; the others kill it.
const FREEZES_ONE_OF: usize = 3;
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
const EDIT_EVERY: Duration = Duration::from_secs(2);
/// How long the cluster may take to pass the checks after the last fault.
const SETTLES: Duration = Duration::from_secs(60);
/// Sessions outlive the soak by this, so that they end by themselves if it fails.
const SESSION_MARGIN: Duration = Duration::from_secs(600);
/// Sessions of one page of a list: enough for all of them.
const PAGE: usize = 500;

/// The state that all tasks of the soak share. They run on one thread.
struct Shared {
    nodes: Vec<Node>,
    stopping: Cell<bool>,
    created: Cell<u64>,
    removed: Cell<u64>,
    kills: Cell<u64>,
    freezes: Cell<u64>,
    edits: Cell<u64>,
    samples: Cell<u64>,
    /// Answers that were no success, and requests without an answer, counted by code.
    refusals: RefCell<BTreeMap<String, u64>>,
    /// Observations that must never happen.
    violations: RefCell<Vec<String>>,
}

impl Shared {
    fn any(&self, rng: &mut Rng) -> &Node {
        &self.nodes[rng.usize(..self.nodes.len())]
    }

    fn count_refusal(&self, code: &str) {
        *self.refusals.borrow_mut().entry(code.to_owned()).or_default() += 1;
    }

    fn violation(&self, what: String) {
        println!("VIOLATION: {what}");
        self.violations.borrow_mut().push(what);
    }
}

pub(crate) async fn run(minutes: f64, clients: usize, seed: u64) -> Result<()> {
    let lasts = Duration::from_secs_f64(minutes * 60.0);
    println!("soak: {minutes} minutes, {SIZE} nodes, {clients} clients, --seed {seed}");
    let mut cluster = Cluster::start(SIZE, HOST).await?;
    for n in 0..WORKSPACES {
        let workspace = format!("w{n}");
        let more = json!({ "cores": CORES });
        cluster.workspace(&workspace, lasts + SESSION_MARGIN, &more).await?;
    }
    let shared = Rc::new(Shared {
        nodes: cluster.nodes.clone(),
        stopping: Cell::default(),
        created: Cell::default(),
        removed: Cell::default(),
        kills: Cell::default(),
        freezes: Cell::default(),
        edits: Cell::default(),
        samples: Cell::default(),
        refusals: RefCell::default(),
        violations: RefCell::default(),
    });
    let outcome = LocalSet::new().run_until(soak(&mut cluster, &shared, lasts, clients, seed)).await;
    report(&shared);
    if let Err(error) = outcome {
        return Err(error.context(format!("the logs are in {}", cluster.keep_files().display())));
    }
    cluster.clear().await?;
    cluster.stop()
}

async fn soak(cluster: &mut Cluster, shared: &Rc<Shared>, lasts: Duration, clients: usize, seed: u64) -> Result<()> {
    let started = Instant::now();
    let mut chance = Rng::with_seed(seed);
    let of_clients: Vec<_> = (0..clients)
        .map(|client| tokio::task::spawn_local(be_client(Rc::clone(shared), client, chance.fork())))
        .collect();
    let edits = tokio::task::spawn_local(edit(Rc::clone(shared), lasts, chance.fork()));
    let samples = tokio::task::spawn_local(sample(Rc::clone(shared)));
    let faults = break_things(cluster, shared, started + lasts, chance.fork()).await;
    shared.stopping.set(true);
    let mut held = BTreeMap::new();
    for client in of_clients {
        held.extend(client.await??);
    }
    edits.await?;
    faults?;
    println!("last fault over after {:.0} s; clients hold {} sessions", started.elapsed().as_secs_f64(), held.len());
    let deadline = Instant::now() + SETTLES;
    while let Err(why) = check(cluster, &held).await {
        if Instant::now() >= deadline {
            shared.violation(format!("{why:#}"));
            break;
        }
        sleep(POLL * 10).await;
    }
    samples.abort();
    let violations = shared.violations.borrow();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    Ok(())
}

/// Creates and removes sessions until the soak stops, and repeats each request until it is answered. Returns the keys
/// of the sessions that it holds, by id.
async fn be_client(shared: Rc<Shared>, client: usize, mut rng: Rng) -> Result<BTreeMap<String, String>> {
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    let mut made = 0;
    while !shared.stopping.get() {
        if held.is_empty() || held.len() < HELD && rng.u32(..100) < MAKES {
            made += 1;
            create(&shared, format!("client-{client}-{made}"), &mut held, &mut rng).await?;
        } else {
            remove_one(&shared, &mut held, &mut rng).await?;
        }
        sleep(Duration::from_millis(rng.u64(PAUSE_MILLIS))).await;
    }
    Ok(held)
}

async fn create(shared: &Shared, key: String, held: &mut BTreeMap<String, String>, rng: &mut Rng) -> Result<()> {
    let request =
        json!({ "workspace": format!("w{}", rng.u64(..WORKSPACES)), "user": format!("user-{}", rng.u32(..8)) });
    let started = Instant::now();
    loop {
        let headers = [("Idempotency-Key", key.as_str())];
        match ask(shared, rng, "POST", "/v1/sessions", &headers, Some(&request)).await {
            Ok(session) => {
                let id = session["id"].as_str().context("a session has an id")?;
                if held.insert(id.to_owned(), key.clone()).is_some() {
                    shared.violation(format!("{id} was created for {key}, and for another key"));
                }
                shared.created.update(|n| n + 1);
                return Ok(());
            }
            // The cluster is full: remove a session to make room.
            Err(code) if code == "no_capacity" && !held.is_empty() => remove_one(shared, held, rng).await?,
            Err(code) => ensure!(started.elapsed() < STUCK, "create with key {key} does not succeed: {code}"),
        }
        sleep(Duration::from_millis(rng.u64(AGAIN_MILLIS))).await;
    }
}

async fn remove_one(shared: &Shared, held: &mut BTreeMap<String, String>, rng: &mut Rng) -> Result<()> {
    let (id, key) = held.iter().nth(rng.usize(..held.len())).map(|(i, k)| (i.clone(), k.clone())).context("none")?;
    let started = Instant::now();
    while let Err(code) = ask(shared, rng, "DELETE", &format!("/v1/sessions/{id}"), &[], None).await {
        ensure!(started.elapsed() < STUCK, "cannot remove {id} of key {key}: {code}");
        sleep(Duration::from_millis(rng.u64(AGAIN_MILLIS))).await;
    }
    held.remove(&id);
    shared.removed.update(|n| n + 1);
    Ok(())
}

/// Sends a request to a random node. Counts an answer that is no success, and returns its code as the error.
async fn ask(
    shared: &Shared,
    rng: &mut Rng,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Result<Value, String> {
    let node = shared.any(rng);
    let code = match timeout(ANSWER, node.ask(method, path, headers, body)).await {
        Ok(Ok(Answer { status, body })) if status.is_success() => return Ok(body),
        Ok(Ok(Answer { status, body })) => {
            let code = body["error"]["code"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            if body["error"]["retryable"] != true && code != "not_found" {
                shared.violation(format!("{method} {path} at {}: {body}", node.name));
            }
            format!("{code} ({method})")
        }
        Ok(Err(_)) => format!("no connection ({method})"),
        Err(_) => format!("no answer ({method})"),
    };
    shared.count_refusal(&code);
    Err(code.split(" (").next().unwrap_or_default().to_owned())
}

/// Edits a workspace every [`EDIT_EVERY`], so that the nodes' catalogues must converge.
async fn edit(shared: Rc<Shared>, lasts: Duration, mut rng: Rng) {
    let sleeps = (lasts + SESSION_MARGIN).as_secs().to_string();
    while !shared.stopping.get() {
        let name = format!("w{}", rng.u64(..WORKSPACES));
        let workspace = json!({
            "name": name, "command": ["sleep", sleeps], "cores": CORES, "memory_bytes": "8MiB",
            "env": { "EDIT": shared.edits.get().to_string() },
        });
        if ask(&shared, &mut rng, "PUT", &format!("/v1/workspaces/{name}"), &[], Some(&workspace)).await.is_ok() {
            shared.edits.update(|n| n + 1);
        }
        sleep(EDIT_EVERY).await;
    }
}

/// Checks every node's own figures repeatedly: no host may allocate more than it offers.
async fn sample(shared: Rc<Shared>) {
    loop {
        for node in &shared.nodes {
            let Ok(Ok(own)) = timeout(SAMPLE_EVERY, node.get("/v1/nodes/self")).await else { continue };
            for dimension in ["cores", "memory_bytes"] {
                let figures = &own["resources"][dimension];
                let (allocated, effective) = (figures["allocated"].as_f64(), figures["effective"].as_f64());
                if allocated.is_none() || allocated > effective {
                    shared.violation(format!("{} has allocated more {dimension} than it offers: {figures}", node.name));
                }
            }
            shared.samples.update(|n| n + 1);
        }
        sleep(SAMPLE_EVERY).await;
    }
}

/// Kills leaders and starts them again, and freezes some, until `until`. Afterwards every agent runs.
async fn break_things(cluster: &mut Cluster, shared: &Shared, until: Instant, mut rng: Rng) -> Result<()> {
    for fault in 1.. {
        let pause = Duration::from_millis(rng.u64(FAULT_MILLIS));
        if Instant::now() + pause >= until {
            tokio::time::sleep_until(until).await;
            return Ok(());
        }
        sleep(pause).await;
        // If no node answers with a leader, a random node is the victim.
        let leader = timeout(ANSWER, leader(shared)).await.unwrap_or_default();
        let victim = leader.unwrap_or_else(|| rng.usize(..SIZE));
        if fault % FREEZES_ONE_OF == 0 {
            cluster.freeze(victim, true)?;
            sleep(Duration::from_millis(rng.u64(FROZEN_MILLIS))).await;
            cluster.freeze(victim, false)?;
            shared.freezes.update(|n| n + 1);
        } else {
            cluster.kill(victim);
            sleep(Duration::from_millis(rng.u64(DEAD_MILLIS))).await;
            cluster.spawn(victim)?;
            shared.kills.update(|n| n + 1);
        }
    }
    Ok(())
}

/// The leader of the first node that answers and follows one.
async fn leader(shared: &Shared) -> Option<usize> {
    for node in &shared.nodes {
        if let Ok((Some(leader), ..)) = node.follows().await {
            return leader.strip_prefix('n')?.parse().ok();
        }
    }
    None
}

/// Checks that exactly the held sessions exist, each once, and that all nodes agree.
async fn check(cluster: &Cluster, held: &BTreeMap<String, String>) -> Result<()> {
    cluster.one_leader().await?;
    let mut hosts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in &cluster.nodes {
        for session in node.kept_sessions() {
            hosts.entry(session).or_default().push(&node.name);
        }
    }
    let of = |id: &String| held.get(id).cloned().unwrap_or_else(|| "a removed session".to_owned());
    for (id, hosts) in &hosts {
        ensure!(hosts.len() == 1, "twice: {id} ({}) is on {hosts:?}", of(id));
        ensure!(held.contains_key(id), "not removed: {id} was removed, or never acknowledged, and is on {hosts:?}");
    }
    for (id, key) in held {
        ensure!(hosts.contains_key(id), "lost: {id} ({key}) was acknowledged, and no host has it");
    }
    let catalogue = cluster.nodes[0].get("/v1/workspaces").await?;
    for node in &cluster.nodes {
        let listed = node.get(&format!("/v1/sessions?limit={PAGE}")).await?;
        let listed: Vec<&Value> = listed["items"].as_array().into_iter().flatten().collect();
        let ids: BTreeSet<&str> = listed.iter().filter_map(|session| session["id"].as_str()).collect();
        let missing: Vec<&String> = held.keys().filter(|id| !ids.contains(id.as_str())).collect();
        let more: Vec<&&str> = ids.iter().filter(|id| !held.contains_key(**id)).collect();
        ensure!(missing.is_empty() && more.is_empty(), "{} lists unexpected {more:?} and lacks {missing:?}", node.name);
        ensure!(ids.len() == listed.len(), "{} lists a session twice", node.name);
        for session in listed {
            ensure!(session["state"] == "running", "{} lists {session}", node.name);
            let (id, host) = (session["id"].as_str().unwrap_or_default(), session["node"].as_str().unwrap_or_default());
            ensure!(hosts[id] == [host], "{} lists {id} on {host}, but it is on {:?}", node.name, hosts[id]);
        }
        let own = node.get("/v1/nodes/self").await?;
        let count = hosts.values().filter(|hosts| hosts[0] == node.name).count();
        ensure!(own["sessions"] == json!(count), "{} reports {} of {count} sessions", node.name, own["sessions"]);
        let theirs = node.get("/v1/workspaces").await?;
        ensure!(theirs == catalogue, "{} has {theirs}, n0 has {catalogue}", node.name);
    }
    Ok(())
}

fn report(shared: &Shared) {
    let count = |what: &str, n: u64| [what.to_owned(), n.to_string()];
    let mut rows = vec![
        count("sessions created", shared.created.get()),
        count("sessions removed", shared.removed.get()),
        count("leaders killed", shared.kills.get()),
        count("leaders frozen", shared.freezes.get()),
        count("workspaces edited", shared.edits.get()),
        count("samples of a host", shared.samples.get()),
    ];
    rows.extend(shared.refusals.borrow().iter().map(|(code, n)| count(code, *n)));
    rows.push(count("violations", shared.violations.borrow().len() as u64));
    println!("{}", table(["soak", "count"], rows));
}
