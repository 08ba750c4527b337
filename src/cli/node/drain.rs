//! `ostler node drain` and `undrain`: emptying nodes, without moving anything.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::{joined, one_line, short_ids};
use crate::cli::{Context, Failures};
use crate::types::{DrainRequest, List, Node, Period, Session, SessionId, SessionState};

use super::selection::Selection;

/// How often a node is asked what still holds it.
const POLL: Duration = Duration::from_secs(1);
/// How long a node may be out of reach while its drain is waited for: an agent's restart, a change of leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keep new sessions off nodes until `undrain`, and see those that are there end.
///
/// Sessions are never moved. At the deadline --stop-sessions stops what is left (at once, where
/// there is no deadline); without it nothing is stopped, and --wait exits with 1. The node stays
/// drained in either case.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler node drain host-a --message \"new disk\"
  ostler node drain host-a --wait --deadline 1h --stop-sessions
  ostler node drain -l rack=3 --wait")]
pub(in crate::cli) struct DrainArgs {
    #[command(flatten)]
    selection: Selection,
    /// Return when no session holds a reservation on the nodes any more.
    #[arg(long)]
    wait: bool,
    /// When the drain should be over, as 1h.
    #[arg(long, value_name = "PERIOD")]
    deadline: Option<Period>,
    /// Stop the sessions that are left at the deadline.
    #[arg(long)]
    stop_sessions: bool,
    /// Why, for those who wonder.
    #[arg(long)]
    message: Option<String>,
}

pub(super) async fn run(args: &DrainArgs, context: &Context) -> Result<(), Failure> {
    let request = DrainRequest {
        deadline_seconds: args.deadline.map(Period::as_secs),
        stop_sessions: args.stop_sessions,
        message: args.message.clone(),
    };
    request.validate()?;
    let client = context.client()?;
    let begun = Instant::now();
    let mut draining = Vec::new();
    let mut failures = Failures::default();
    for node in args.selection.resolve(&client).await? {
        match client.send(Call::post(Route::new(&["nodes", &node, "drain"])).json(&request)?).await {
            Ok(_) => draining.push(node),
            Err(failure) => failures.add(&node, &failure),
        }
    }
    // What is left at the deadline is stopped then, which takes a moment more: only without that does the wait end.
    let deadline = args.deadline.filter(|_| !args.stop_sessions).and_then(|deadline| begun.checked_add(deadline.0));
    for node in &draining {
        match if args.wait { wait(&client, node, deadline, context).await } else { Ok(()) } {
            Ok(()) => context.out.done(node)?,
            Err(failure) => failures.add(node, &failure),
        }
    }
    failures.into_result()
}

/// Ends the drain of the selected nodes.
pub(super) async fn end(selection: &Selection, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for node in selection.resolve(&client).await? {
        match client.send(Call::delete(Route::new(&["nodes", &node, "drain"]))).await {
            Ok(_) => context.out.done(&node)?,
            Err(failure) => failures.add(&node, &failure),
        }
    }
    failures.into_result()
}

/// Waits until nothing is reserved on the node, then names the stopped sessions that are still there.
async fn wait(client: &Client, node: &str, deadline: Option<Instant>, context: &Context) -> Result<(), Failure> {
    let progress = Progress::start(&format!("draining {node}"));
    let mut told: Option<Vec<SessionId>> = None;
    let mut heard = Instant::now();
    loop {
        match client.get(Route::new(&["nodes", node])).await.and_then(|body| body.read::<Node>()) {
            Ok(state) => {
                heard = Instant::now();
                let Some(drain) = state.drain else {
                    return Err(Failure::Failed("somebody has ended the drain".to_owned()));
                };
                if drain.blockers.is_empty() {
                    break;
                }
                let waiting = format!("{node} waits for {}", joined(short_ids(&drain.blockers)));
                progress.show(&waiting);
                if told.as_ref() != Some(&drain.blockers) {
                    progress.aside(|| context.out.note(&waiting));
                    told = Some(drain.blockers);
                }
            }
            Err(failure) if failure.is_unreachable() && heard.elapsed() < PATIENCE => {
                progress.show(&format!("{node} does not answer: {}", one_line(&failure.to_string())));
            }
            Err(failure) => return Err(failure),
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let left = joined(short_ids(&told.unwrap_or_default()));
            return Err(Failure::Failed(format!("the deadline is over; the node stays drained; left: {left}")));
        }
        sleep(POLL).await;
    }
    drop(progress);
    name_stopped(client, node, context).await
}

/// Stopped sessions hold no reservation, but they are gone with the host's disk.
async fn name_stopped(client: &Client, node: &str, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["sessions"]).with("node", node).with("state", SessionState::Stopped);
    let sessions: List<Session> = client.list(route).await?.read()?;
    if !sessions.items.is_empty() {
        let ids = joined(short_ids(sessions.items.iter().map(|session| &session.id)));
        context.out.note(format!("{node}: stopped sessions stay there: {ids}"));
    }
    Ok(())
}
