//! How long an image takes to come to a host: from a registry by the engine itself, from the registry through ostler,
//! and from another node through ostler, in one run.
//!
//! `cargo bench --bench image -- --rounds 10 --mib 64`. Two agents of one cluster: the first has the host's engine, which
//! has the image, and the second an engine of its own, from which the benchmark removes the image after each measurement.
//! Every round measures each way once, and the engine's own pull twice, in rotating order. The ratio of that pull to
//! itself is the noise to compare other ratios with. The engines' save and load without ostler show how much of a copy
//! is theirs.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[expect(dead_code, reason = "the benchmark of clusters uses the rest")]
#[path = "../cluster/agents.rs"]
mod agents;
mod daemons;
#[expect(dead_code, reason = "the benchmark of clusters uses the rest")]
#[path = "../cluster/process.rs"]
mod process;
#[expect(dead_code, reason = "other benchmarks use the rest")]
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::{self, Read};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder, RemoveImageOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, Docker};
use clap::Parser;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use agents::{Cluster, PATIENCE, POLL, Seeds};
use daemons::{Engine, Registry};
use support::engine::Lab;
use support::figures::{Figures, table};
use support::http;

/// Rounds that are not counted.
const WARM_UP: usize = 1;
/// The node that has the image, and the node that gets it.
const GIVER: usize = 0;
const TAKER: usize = 1;
/// How long an image may take, in seconds, by an engine or through ostler.
const IMAGE_PATIENCE_SECS: u64 = 600;
/// The engine of the first node, unless DOCKER_HOST names another.
const HOSTS_ENGINE: &str = "unix:///var/run/docker.sock";

#[derive(Parser)]
struct Arguments {
    /// How often to measure each way.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Random bytes in the image, in MiB. They do not compress.
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// The storage driver of the second node's engine.
    #[arg(long, default_value = "overlay2")]
    storage_driver: String,
    /// `cargo bench` passes this flag to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { rounds, mib, storage_driver, .. } = Arguments::parse();
    let lab = if daemons::available() { Lab::open().await? } else { None };
    let Some(lab) = lab else {
        println!("SKIPPED: image: needs root, docker, dockerd, docker-registry, ip and /bin/busybox");
        return Ok(());
    };
    let registry = Registry::start().await?;
    let image = Image::publish(&lab, &registry, mib)?;
    let engine = Engine::start(&storage_driver).await?;
    let mut bench = Bench::prepare(&image, &engine).await?;
    match bench.run(rounds).await {
        Ok(results) => println!("{rounds} rounds, {mib} MiB, from {}\n{}", bench.engines().await?, results.table()),
        Err(error) => {
            return Err(error.context(format!("the agents' logs are in {}", bench.cluster.keep_files().display())));
        }
    }
    bench.cluster.stop()
}

/// A way for an image to come to the second node.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The engine pulls, without ostler.
    Pull,
    PullAgain,
    /// The first engine saves and the second loads, without ostler.
    SaveAndLoad,
    /// Through ostler, from the registry.
    Registry,
    /// Through ostler, from the first node.
    Peer,
}

/// The order of the first round; each following round rotates it by one.
const WAYS: [Way; 5] = [Way::Pull, Way::Peer, Way::PullAgain, Way::Registry, Way::SaveAndLoad];

impl Way {
    /// Whether the image comes from the first node's engine. Then no engine knows its digest.
    const fn is_copy(self) -> bool {
        matches!(self, Self::SaveAndLoad | Self::Peer)
    }

    /// `images.from_peers` of the second node; `None`: ostler has no part in it.
    const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Pull | Self::PullAgain | Self::SaveAndLoad => None,
            Self::Registry => Some("off"),
            Self::Peer => Some("prefer"),
        }
    }
}

struct Bench {
    cluster: Cluster,
    /// The engines of the two nodes.
    giver: Docker,
    taker: Docker,
    image: String,
    id: String,
}

impl Bench {
    /// Starts the agents, and has the first one pull the image.
    async fn prepare(image: &Image, engine: &Engine) -> Result<Self> {
        let hosts = std::env::var("DOCKER_HOST").unwrap_or_else(|_| HOSTS_ENGINE.to_owned());
        let mut cluster = Cluster::prepare(2, Seeds::Everybody, "")?;
        for (node, host) in [(GIVER, hosts.as_str()), (TAKER, &engine.host())] {
            configure(&cluster, node, "runtime", "kind", "docker")?;
            configure(&cluster, node, "runtime", "docker_host", host)?;
            cluster.spawn(node)?;
        }
        cluster.settled().await?;
        // A node asks only those for an image that it sees alive itself, which takes longer.
        let deadline = Instant::now() + PATIENCE;
        while cluster.nodes[TAKER].alive_seen().await? < cluster.nodes.len() {
            ensure!(Instant::now() < deadline, "the second node does not see the first one alive");
            sleep(POLL).await;
        }
        // A node gives only what a workspace names.
        cluster.workspace("bench", Duration::from_secs(1), &json!({ "image": image.0 })).await?;
        let (giver, taker) = (connect(&hosts).await?, connect(&engine.host()).await?);
        let mut bench = Self { cluster, giver, taker, image: image.0.clone(), id: String::new() };
        bench.ask_to_pull(GIVER).await?;
        bench.id = bench.giver.inspect_image(&image.0).await?.id.context("an image has an id")?;
        Ok(bench)
    }

    async fn run(&self, rounds: usize) -> Result<Results> {
        let mut results = Results::default();
        for round in 0..WARM_UP {
            self.round(round, &mut Results::default()).await?;
        }
        for round in 0..rounds {
            self.round(round, &mut results).await?;
        }
        Ok(results)
    }

    async fn round(&self, round: usize, results: &mut Results) -> Result<()> {
        let mut ways = WAYS;
        ways.rotate_left(round % WAYS.len());
        for way in ways {
            if let Some(mode) = way.mode() {
                configure(&self.cluster, TAKER, "images", "from_peers", mode)?;
                self.post(TAKER, "refresh", None).await?;
            }
            // Else a way would wait for the disk to take what the one before it has written.
            rustix::fs::sync();
            let (busy, started) = (self.processor_time()?, Instant::now());
            self.bring(way).await.with_context(|| format!("{way:?}"))?;
            let result = results.of(way);
            result.time.add_millis(started.elapsed());
            result.processor.0.push((self.processor_time()? - busy) * 1000.0);
            self.check_and_remove(way).await.with_context(|| format!("{way:?}"))?;
        }
        Ok(())
    }

    async fn bring(&self, way: Way) -> Result<()> {
        match way {
            Way::Pull | Way::PullAgain => self.pull().await,
            Way::SaveAndLoad => self.save_and_load().await,
            Way::Registry | Way::Peer => self.ask_to_pull(TAKER).await,
        }
    }

    async fn pull(&self) -> Result<()> {
        let options = CreateImageOptionsBuilder::default().from_image(&self.image).build();
        Ok(self.taker.create_image(Some(options), None, None).try_for_each(|_| async { Ok(()) }).await?)
    }

    async fn save_and_load(&self) -> Result<()> {
        let archive = bollard::body_try_stream(self.giver.export_image(&self.image).map_err(io::Error::other));
        let options = ImportImageOptionsBuilder::default().build();
        Ok(self.taker.import_image(options, archive, None).try_for_each(|_| async { Ok(()) }).await?)
    }

    /// Returns once ostler has the image on this node.
    async fn ask_to_pull(&self, node: usize) -> Result<()> {
        let pull = format!("images/pull?wait=true&timeout={IMAGE_PATIENCE_SECS}s");
        let answer = self.post(node, &pull, Some(&json!({ "image": self.image }))).await?;
        ensure!(answer["state"] == "done", "the pull is not done: {answer}");
        Ok(())
    }

    /// Sends a request about a node to that node.
    async fn post(&self, node: usize, what: &str, body: Option<&Value>) -> Result<Value> {
        let node = &self.cluster.nodes[node];
        let path = format!("/v1/nodes/{}/{what}", node.name);
        let http::Answer { status, body } = node.ask("POST", &path, &[], body).await?;
        ensure!(status.is_success(), "POST {path}: {status}: {body}");
        Ok(body)
    }

    /// Removes the image from the second node, and waits until its agent knows.
    async fn check_and_remove(&self, way: Way) -> Result<()> {
        let image = self.taker.inspect_image(&self.image).await?;
        ensure!(image.id.as_ref() == Some(&self.id), "another image came: {:?}", image.id);
        let is_copy = image.repo_digests.unwrap_or_default().is_empty();
        ensure!(is_copy == way.is_copy(), "the image came from elsewhere");
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        self.taker.remove_image(&self.id, Some(options), None).await?;
        let (node, deadline) = (&self.cluster.nodes[TAKER], Instant::now() + PATIENCE);
        loop {
            let images = node.get(&format!("/v1/nodes/{}/images", node.name)).await?;
            if !images["items"].as_array().context("a list")?.iter().any(|listed| listed["id"] == self.id.as_str()) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the agent still lists the image");
            sleep(POLL).await;
        }
    }

    /// Seconds of processor time of both agents so far.
    fn processor_time(&self) -> Result<f64> {
        [GIVER, TAKER].iter().map(|node| self.cluster.process(*node)?.cpu_seconds()).sum()
    }

    /// The two engines, for people.
    async fn engines(&self) -> Result<String> {
        let (giver, taker) = (self.giver.info().await?, self.taker.info().await?);
        let driver = |driver: Option<String>| driver.unwrap_or_else(|| "unknown".to_owned());
        let version = taker.server_version.unwrap_or_default();
        Ok(format!("Docker {version} with {} to one with {}", driver(giver.driver), driver(taker.driver)))
    }
}

/// Sets a key in the configuration file of a node.
fn configure(cluster: &Cluster, node: usize, section: &str, key: &str, value: &str) -> Result<()> {
    let file = cluster.nodes[node].folder.join("ostler.toml");
    let mut all: toml::Table = toml::from_str(&fs::read_to_string(&file)?)?;
    let section = all.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().context("a section")?.insert(key.to_owned(), value.into());
    Ok(fs::write(file, toml::to_string(&all)?)?)
}

async fn connect(host: &str) -> Result<Docker> {
    Ok(Docker::connect_with_unix(host, IMAGE_PATIENCE_SECS, API_DEFAULT_VERSION)?.negotiate_version().await?)
}

/// An image in the registry: busybox, and a layer of random bytes. Dropping it removes it from the host's engine.
struct Image(String);

impl Image {
    fn publish(lab: &Lab, registry: &Registry, mib: u64) -> Result<Self> {
        let image = Self(format!("{}/{}:1", registry.address, lab.cluster));
        let folder = tempfile::tempdir()?;
        let noise = folder.path().join("noise");
        io::copy(&mut File::open("/dev/urandom")?.take(mib << 20), &mut File::create(&noise)?)?;
        // The lab removes containers of this name.
        let container = format!("raw-{}", lab.cluster);
        docker(&["create", "--name", &container, &lab.image, "sleep"])?;
        docker(&["cp", &noise.display().to_string(), &format!("{container}:/noise")])?;
        docker(&["commit", &container, &image.0])?;
        docker(&["push", "--quiet", &image.0])?;
        docker(&["rm", &container])?;
        docker(&["rmi", &image.0])?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = docker(&["rmi", "--force", &self.0]); // the agent may not have pulled it yet
    }
}

fn docker(arguments: &[&str]) -> Result<()> {
    let output = Command::new("docker").args(arguments).output()?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The measurements of one way, by round.
#[derive(Default)]
struct Measured {
    time: Figures,
    /// Milliseconds of both agents.
    processor: Figures,
}

#[derive(Default)]
struct Results {
    pull: Measured,
    pull_again: Measured,
    save_and_load: Measured,
    registry: Measured,
    peer: Measured,
}

impl Results {
    fn of(&mut self, way: Way) -> &mut Measured {
        match way {
            Way::Pull => &mut self.pull,
            Way::PullAgain => &mut self.pull_again,
            Way::SaveAndLoad => &mut self.save_and_load,
            Way::Registry => &mut self.registry,
            Way::Peer => &mut self.peer,
        }
    }

    fn table(&self) -> String {
        let row = |what: &str, Measured { time, processor }: &Measured| {
            [
                what.to_owned(),
                format!("{:.2} s", time.median() / 1000.0),
                format!("{:.2} s", time.p95() / 1000.0),
                format!("{:.3}", over(time, &self.pull.time).median()),
                format!("{:.3}", over(time, &self.save_and_load.time).median()),
                format!("{:.0} ms", processor.median()),
            ]
        };
        let head = ["an image to a host", "median", "p95", "÷ pull", "÷ save and load", "agents' processor time"];
        let rows = [
            row("pull, by the engine", &self.pull),
            row("the same again", &self.pull_again),
            row("pull, through ostler", &self.registry),
            row("save and load, by the engines", &self.save_and_load),
            row("from the other node, through ostler", &self.peer),
        ];
        table(head, rows)
    }
}

/// The ratio of each figure to the one of `base` from the same round.
fn over(figures: &Figures, base: &Figures) -> Figures {
    Figures(figures.0.iter().zip(&base.0).map(|(figure, base)| figure / base).collect())
}
