//! `ostler demo`: three real agents in a temporary place, one cluster, real sessions, and a tour of what
//! it does.
//!
//! Several processes take part. The demo itself is a client: it tells what it does ([`show`]) and does it
//! through the API ([`prompt`]). The [`keeper`] has the agents, the temporary place and all that comes to
//! be there, and takes it away when the demo ends, however that ends ([`stage`] is the demo's side of it).
//! Each session runs this program once more, as a [`page`].

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

/// How long the demo goes on after the show where nobody is there to end it and nobody said.
const UNATTENDED: Duration = Duration::from_secs(10);

/// Show ostler at work on this host: a cluster of three agents, sessions to click, a leader that is killed.
///
/// Sessions run in Docker where it answers, and as processes of this host where not. No network is
/// needed. On a terminal it goes on until Ctrl-C. It leaves nothing behind, however it ends.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How long it goes on after the show, as 30s; left out: on a terminal until Ctrl-C, else 10s.
    #[arg(long = "for", value_name = "PERIOD")]
    lasting: Option<Period>,
}

pub(super) async fn run(args: &DemoArgs, out: &Output) -> Result<(), Failure> {
    let mut interruption = Interruption::listen()?;
    let narrator = Narrator::new(out);
    narrator.title("ostler demo: three nodes, a few people, and more asked for than there is")?;
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
    // Whoever is told may be gone; what is there to clear away is cleared away all the same.
    let _ = narrator.say("\nClearing away: sessions, agents, files.");
    let cleared = stage.strike().await;
    played?;
    cleared?;
    narrator.say("Nothing is left behind.")
}

async fn play(stage: &Stage, narrator: &Narrator<'_>) -> Result<(), Failure> {
    Show::open(stage, narrator).await?.play().await
}

/// Leaves everything as it is until the time is over or somebody has seen enough.
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
            narrator.say(&format!("It goes on for {}, or until Ctrl-C.", Period::secs(lasting.as_secs())))?
        }
        None => narrator.say("It goes on until Ctrl-C.")?,
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

/// Docker where it answers. Where not, why not, and the process runtime. With it, figures for what it has.
async fn choose_engine(narrator: &Narrator<'_>) -> Result<(Engine, Sizes), Failure> {
    /// Where Docker is, unless the environment says otherwise.
    const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| DEFAULT_HOST.to_owned());
    let greeted = match Visit::new(&host) {
        Ok(visit) => visit.greet().await.map_err(|e| match e {
            // Without the preface that is for logs.
            Error::Unavailable(why) => why,
            other => other.to_string(),
        }),
        Err(wrong) => Err(wrong.to_string()),
    };
    match greeted {
        Ok(info) => {
            narrator.say(&format!(
                "Docker {} answers: sessions are containers, of an image made from this very program.",
                info.version
            ))?;
            Ok((Engine::Docker { host }, Sizes::of(info.cores, info.memory)))
        }
        Err(why) => {
            narrator.warn(&format!("Docker cannot be used: {why}"))?;
            narrator.say("Going on with the process runtime: sessions are processes of this host.")?;
            let (cores, memory) = host_bounds();
            Ok((Engine::Process, Sizes::of(cores, memory)))
        }
    }
}

/// Tells what failed, and what the agents had to say last.
fn with_log(failure: Failure, stage: &Stage) -> Failure {
    let Some(report) = failure.report() else { return failure };
    note(report);
    for agent in stage.witnesses() {
        let tail = Stage::log_tail(agent);
        if !tail.is_empty() {
            note(format_args!("The last words of the agent of {}:\n{tail}", agent.name()));
        }
    }
    Failure::Reported(failure.exit())
}

/// The signals that end a demo: Ctrl-C, a polite kill, a terminal that is closed.
struct Interruption([Signal; 3]);

impl Interruption {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::Failed(format!("signals cannot be heard: {e}")));
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
