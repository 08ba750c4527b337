//! `ostler demo`: three real agents in a temporary directory, one cluster, real sessions, and a tour of
//! the features.
//!
//! Several processes take part. The demo itself is a client: it explains each step ([`show`]) and runs it
//! through the API ([`prompt`]). The [`keeper`] owns the agents, the temporary directory and everything
//! created there, and removes it all when the demo ends, in whatever way ([`stage`] is the demo's side of
//! it). Each session runs this program too, as a [`page`].

mod image;
pub mod keeper;
mod narrator;
pub mod page;
mod plan;
mod prompt;
mod show;
mod sizes;
mod stage;

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use super::output::{Output, note};
use crate::capacity::probe::host_bounds;
use crate::runtime::Error;
use crate::runtime::docker::Visit;
use crate::types::Period;
use narrator::Narrator;
use plan::{Engine, Plan};
use show::Show;
use sizes::Sizes;
use stage::Stage;

/// How long the demo stays up after the show, without a terminal and without `--for`.
const UNATTENDED: Duration = Duration::from_secs(10);

/// Show ostler at work on this host: a cluster of three agents, sessions with web pages, a killed leader.
///
/// Sessions run in Docker if it answers, otherwise as processes of this host. No network is
/// needed. On a terminal the demo stays up until Ctrl-C. It leaves nothing behind, however it ends.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How long to stay up after the show, for example 30s [default: until Ctrl-C on a terminal, otherwise 10s].
    #[arg(long = "for", value_name = "PERIOD")]
    lasting: Option<Period>,
}

pub(super) async fn run(args: &DemoArgs, out: &Output) -> Result<(), Failure> {
    let mut interruption = Interruption::listen()?;
    let narrator = Narrator::new(out);
    narrator.title("ostler demo: three nodes, some users, and more requests than fit")?;
    let (engine, sizes) = choose_engine(&narrator).await?;
    let stage = Stage::set(Plan::new(engine, sizes)?).await?;
    let played = tokio::select! {
        biased;
        () = interruption.came() => Err(Failure::Interrupted),
        trouble = stage.trouble() => Err(trouble),
        played = play(&stage, &narrator) => played,
    };
    let played = match played {
        Ok(()) => linger(args, &stage, &mut interruption, &narrator).await,
        Err(failure) => Err(with_log(failure, &stage)),
    };
    // The cleanup runs even if standard output is closed.
    let _ = narrator.say("\nRemoving sessions, agents and files.");
    let cleared = stage.strike().await;
    played?;
    cleared?;
    narrator.say("Nothing is left behind.")
}

async fn play(stage: &Stage, narrator: &Narrator<'_>) -> Result<(), Failure> {
    Show::open(stage, narrator).await?.play().await
}

/// Keeps everything running until the time is over or the user interrupts the demo.
async fn linger(
    args: &DemoArgs,
    stage: &Stage,
    interruption: &mut Interruption,
    narrator: &Narrator<'_>,
) -> Result<(), Failure> {
    let attended = std::io::stdout().is_terminal();
    let lasting = args.lasting.map(|period| period.0).or((!attended).then_some(UNATTENDED));
    match lasting {
        Some(lasting) => {
            narrator.say(&format!("The demo stays up for {}, or until Ctrl-C.", Period::secs(lasting.as_secs())))?
        }
        None => narrator.say("The demo stays up until Ctrl-C.")?,
    }
    let over = async {
        match lasting {
            Some(lasting) => tokio::time::sleep(lasting).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = over => Ok(()),
        () = interruption.came() => Ok(()),
        trouble = stage.trouble() => Err(with_log(trouble, stage)),
    }
}

/// Chooses Docker if it answers; otherwise prints why not and chooses the process runtime. Returns it with figures for
/// the cores and memory that it has.
async fn choose_engine(narrator: &Narrator<'_>) -> Result<(Engine, Sizes), Failure> {
    /// Docker's address, unless the environment names another.
    const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| DEFAULT_HOST.to_owned());
    let greeted = match Visit::new(&host) {
        Ok(visit) => visit.greet().await.map_err(|e| match e {
            // The bare reason, without the prefix that logs have.
            Error::Unavailable(why) | Error::Failed(why) => why,
            other => other.to_string(),
        }),
        Err(wrong) => Err(wrong.to_string()),
    };
    match greeted {
        Ok(info) => {
            narrator.say(&format!(
                "Docker {} answers: sessions are containers, from an image made of this program.",
                info.version
            ))?;
            Ok((Engine::Docker { host }, Sizes::of(info.cores, info.memory)))
        }
        Err(why) => {
            narrator.warn(&format!("Docker is not available: {why}"))?;
            narrator.say("Continuing with the process runtime: sessions are processes of this host.")?;
            let (cores, memory) = host_bounds();
            Ok((Engine::Process, Sizes::of(cores, memory)))
        }
    }
}

/// Prints the failure and the last log lines of the agents.
fn with_log(failure: Failure, stage: &Stage) -> Failure {
    let Some(report) = failure.report() else { return failure };
    note(report);
    for agent in stage.witnesses() {
        let tail = Stage::log_tail(agent);
        if !tail.is_empty() {
            note(format_args!("Last log lines of the agent of {}:\n{tail}", agent.name()));
        }
    }
    Failure::Reported(failure.exit())
}

/// The signals that end a demo: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is closed).
struct Interruption([Signal; 3]);

impl Interruption {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::Failed(format!("signals cannot be handled: {e}")));
        Ok(Self([on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?]))
    }

    async fn came(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
