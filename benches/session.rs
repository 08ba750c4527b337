//! A session's start and end through ostler, compared with direct calls to Docker's API, in one run.
//!
//! `cargo bench --bench session -- --rounds 60`. Every round measures ostler once and Docker twice, in rotating
//! order: a host's speed drifts by half within the hour, the ratios within a round do not. The ratio of
//! Docker to itself is the noise to compare other ratios with.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod support;

use std::time::Instant;

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use clap::Parser;

use support::agent::Home;
use support::api::Api;
use support::engine::{Lab, WORKSPACE};
use support::figures::{Figures, table};

/// Rounds that are not counted: the first containers of a network or an image take longer.
const WARM_UP: usize = 2;
/// The grace period of a stop, the same as ostler's.
const STOP_GRACE_SECS: i32 = 10;
/// ostler's label of the cluster. The raw containers have another cluster of the same length, so that the
/// agent gets no events about them.
const LABEL_CLUSTER: &str = "ostler.cluster";

#[derive(Parser)]
struct Arguments {
    /// How often to measure each way.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// `cargo bench` passes this flag to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { rounds, .. } = Arguments::parse();
    let Some(lab) = Lab::open().await? else {
        println!("SKIPPED: session: needs docker and /bin/busybox");
        return Ok(());
    };
    let home = Home::new("docker", &lab.cluster)?;
    let _agent = home.start().await?;
    let mut api = home.api().await?;
    api.add_workspace(&lab.workspace()).await?;

    let like = api.create(WORKSPACE).await?;
    let raw = Raw::like(&lab.cluster, &like).await?;
    api.remove(&like).await?;

    let mut bench = Bench { api, raw };
    for round in 0..WARM_UP {
        bench.round(round, &mut Sides::default(), &mut Sides::default()).await?;
    }
    let (mut starts, mut ends) = (Sides::default(), Sides::default());
    for round in 0..rounds {
        bench.round(round, &mut starts, &mut ends).await?;
    }
    let head = ["median of rounds", "raw", "ostler", "ostler ÷ raw", "p95", "raw ÷ raw", "p95"];
    println!("{rounds} rounds\n{}", table(head, [starts.row("create to running"), ends.row("stop and remove")]));
    Ok(())
}

/// The ways that are compared.
#[derive(Debug, Clone, Copy)]
enum Way {
    Raw,
    RawAgain,
    Ostler,
}

/// The order of the first round; each following round rotates it by one.
const WAYS: [Way; 3] = [Way::Raw, Way::Ostler, Way::RawAgain];

struct Bench {
    api: Api,
    raw: Raw,
}

impl Bench {
    async fn round(&mut self, round: usize, starts: &mut Sides, ends: &mut Sides) -> Result<()> {
        let mut ways = WAYS;
        ways.rotate_left(round % WAYS.len());
        for way in ways {
            let started = Instant::now();
            let made = self.create(way).await?;
            starts.of(way).add_millis(started.elapsed());
            let ended = Instant::now();
            self.remove(way, &made).await?;
            ends.of(way).add_millis(ended.elapsed());
        }
        Ok(())
    }

    async fn create(&mut self, way: Way) -> Result<String> {
        match way {
            Way::Ostler => self.api.create(WORKSPACE).await,
            Way::Raw | Way::RawAgain => self.raw.create().await,
        }
    }

    async fn remove(&mut self, way: Way, made: &str) -> Result<()> {
        match way {
            Way::Ostler => self.api.remove(made).await,
            Way::Raw | Way::RawAgain => self.raw.remove(made).await,
        }
    }
}

/// Direct calls to the engine, with the client library that ostler uses too.
struct Raw {
    docker: Docker,
    cluster: String,
    body: ContainerCreateBody,
    made: usize,
}

impl Raw {
    /// Reads the configuration of a session's container, to create others with the same limits, network, init
    /// and labels.
    async fn like(cluster: &str, session: &str) -> Result<Self> {
        let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
        let name = format!("ostler-{cluster}-{session}");
        let inspected = docker.inspect_container(&name, None::<InspectContainerOptions>).await?;
        let made = inspected.config.context("a container has a configuration")?;
        let mut labels = made.labels.unwrap_or_default();
        labels.insert(LABEL_CLUSTER.to_owned(), "x".repeat(cluster.len()));
        let body = ContainerCreateBody {
            hostname: made.hostname,
            image: made.image,
            cmd: made.cmd,
            env: made.env,
            labels: Some(labels),
            exposed_ports: made.exposed_ports,
            host_config: inspected.host_config,
            ..ContainerCreateBody::default()
        };
        Ok(Self { docker, cluster: cluster.to_owned(), body, made: 0 })
    }

    async fn create(&mut self) -> Result<String> {
        self.made += 1;
        let name = format!("raw-{}-{}", self.cluster, self.made);
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let made = self.docker.create_container(Some(options), self.body.clone()).await?;
        self.docker.start_container(&made.id, None::<StartContainerOptions>).await?;
        Ok(made.id)
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let grace = StopContainerOptionsBuilder::default().t(STOP_GRACE_SECS).build();
        self.docker.stop_container(id, Some(grace)).await?;
        let with_volumes = RemoveContainerOptionsBuilder::default().v(true).build();
        Ok(self.docker.remove_container(id, Some(with_volumes)).await?)
    }
}

/// The measurements of each way, by round.
#[derive(Default)]
struct Sides {
    raw: Figures,
    raw_again: Figures,
    ostler: Figures,
}

impl Sides {
    fn of(&mut self, way: Way) -> &mut Figures {
        match way {
            Way::Raw => &mut self.raw,
            Way::RawAgain => &mut self.raw_again,
            Way::Ostler => &mut self.ostler,
        }
    }

    fn row(&self, what: &str) -> [String; 7] {
        let (ours, noise) = (over(&self.ostler, &self.raw), over(&self.raw_again, &self.raw));
        [
            what.to_owned(),
            format!("{:.1} ms", self.raw.median()),
            format!("{:.1} ms", self.ostler.median()),
            format!("{:.3}", ours.median()),
            format!("{:.3}", ours.p95()),
            format!("{:.3}", noise.median()),
            format!("{:.3}", noise.p95()),
        ]
    }
}

/// The ratio of each figure to the one of `base` from the same round.
fn over(figures: &Figures, base: &Figures) -> Figures {
    Figures(figures.0.iter().zip(&base.0).map(|(figure, base)| figure / base).collect())
}
