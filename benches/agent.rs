//! What an agent costs: time until it is ready, memory and processor time while it idles.
//!
//! `cargo bench --bench agent -- --idle-seconds 60 --removed 300`. Memory is read on a fresh agent, with running
//! sessions, and after many more were created and removed; the last must be at most 1.2 times the first.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::query_parameters::ListContainersOptions;
use clap::Parser;

use support::agent::{Agent, Home};
use support::engine::{Lab, WORKSPACE};
use support::figures::{Figures, table};

/// How long an agent settles before it is measured: its start and recent work are not idling.
const SETTLE: Duration = Duration::from_secs(12);
/// The unit of `/proc/<pid>/stat`, whatever the kernel's own clock rate is.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Parser)]
struct Arguments {
    /// How often to start the agent on an empty data directory, and again on the same.
    #[arg(long, default_value_t = 10)]
    starts: usize,
    /// How long to measure an idle agent, in seconds.
    #[arg(long, default_value_t = 30)]
    idle_seconds: u64,
    /// Sessions that run while the agent idles.
    #[arg(long, default_value_t = 20)]
    held: usize,
    /// Sessions to create and remove before the last measurement.
    #[arg(long, default_value_t = 300)]
    removed: usize,
    /// `cargo bench` passes this flag to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    starts_of_processes(&arguments).await?;
    let Some(lab) = Lab::open().await? else {
        println!("SKIPPED: agent: needs docker and /bin/busybox");
        return Ok(());
    };
    starts_with_docker(&arguments, &lab).await?;
    idling(&arguments, &lab).await
}

async fn starts_of_processes(arguments: &Arguments) -> Result<()> {
    let cluster = format!("bench-{}", std::process::id());
    let (mut first, mut again) = (Figures::default(), Figures::default());
    for _ in 0..arguments.starts {
        let home = Home::new("process", &cluster)?;
        first.add_millis(start(&home).await?);
        again.add_millis(start(&home).await?);
    }
    println!("{}", starts_table("process runtime", &first, &again, None));
    Ok(())
}

async fn starts_with_docker(arguments: &Arguments, lab: &Lab) -> Result<()> {
    let (mut first, mut again, mut engine) = (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..arguments.starts {
        let home = Home::new("docker", &lab.cluster)?;
        engine.add_millis(dockers_share().await?);
        first.add_millis(start(&home).await?);
        again.add_millis(start(&home).await?);
    }
    println!("{}", starts_table("Docker runtime", &first, &again, Some(&engine)));
    Ok(())
}

/// The time from the fork to the first success of `/readyz`.
async fn start(home: &Home) -> Result<Duration> {
    let started = Instant::now();
    let _agent = home.start().await?;
    Ok(started.elapsed())
}

/// The time of the calls to the engine that any agent needs before it is ready: version, info, list of containers.
async fn dockers_share() -> Result<Duration> {
    let started = Instant::now();
    let docker = Docker::connect_with_unix_defaults()?.negotiate_version().await?;
    docker.info().await?;
    docker.list_containers(None::<ListContainersOptions>).await?;
    Ok(started.elapsed())
}

fn starts_table(runtime: &str, first: &Figures, again: &Figures, engine: Option<&Figures>) -> String {
    let share = engine.map_or(0.0, Figures::median);
    let row = |what: &str, figures: &Figures| {
        let ready = figures.median();
        let millis = |figure: f64| format!("{figure:.1} ms");
        [what.to_owned(), millis(ready), millis(figures.p95()), millis(share), millis(ready - share)]
    };
    let rows = [row("on an empty data directory", first), row("again, on the same", again)];
    table([&format!("{runtime}: start to ready"), "median", "p95", "Docker's share", "ostler's"], rows)
}

async fn idling(arguments: &Arguments, lab: &Lab) -> Result<()> {
    let home = Home::new("docker", &lab.cluster)?;
    let agent = home.start().await?;
    let mut api = home.api().await?;
    api.add_workspace(&lab.workspace()).await?;
    let mut rows = vec![idle("fresh", &agent, arguments).await?];

    let mut held = Vec::new();
    for _ in 0..arguments.held {
        held.push(api.create(WORKSPACE).await?);
    }
    rows.push(idle(&format!("{} sessions run", held.len()), &agent, arguments).await?);
    for session in held {
        api.remove(&session).await?;
    }
    for _ in 0..arguments.removed {
        let session = api.create(WORKSPACE).await?;
        api.remove(&session).await?;
    }
    rows.push(idle(&format!("{} more created and removed", arguments.removed), &agent, arguments).await?);

    println!("{}", table(["idle agent", "resident", "anonymous", "CPU of one core", "threads"], rows));
    Ok(())
}

async fn idle(what: &str, agent: &Agent, arguments: &Arguments) -> Result<[String; 5]> {
    let pid = agent.process.id();
    tokio::time::sleep(SETTLE).await;
    let (before, started) = (cpu_seconds(pid)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(arguments.idle_seconds)).await;
    let share = (cpu_seconds(pid)? - before) / started.elapsed().as_secs_f64();
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    let resident = memory(pid, "VmRSS:")?;
    let anonymous = memory(pid, "RssAnon:")?;
    Ok([what.to_owned(), resident, anonymous, format!("{:.2} %", share * 100.0), threads.to_string()])
}

/// Memory of a process, as `15.2 MB`. `VmRSS` is what `ps` shows, including the program's file;
/// `RssAnon` is the part that the kernel cannot read back from a file.
fn memory(pid: u32, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    let kib: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
    Ok(format!("{:.1} MB", kib * 1024.0 / 1e6))
}

/// Seconds of processor time so far, including time in the kernel.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The program's name, in parentheses, may hold any character; after it come numbers.
    let (_, fields) = text.rsplit_once(") ").context("no name")?;
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}
