//! `ostler node drain` and `undrain`: drains nodes, without moving sessions.

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

/// The pause between two looks at the sessions that a drain waits for.
const POLL: Duration = Duration::from_secs(1);
/// How long a node may be unreachable during `--wait`: an agent's restart or a change of leader takes less.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keep new sessions off nodes until `undrain`, and let existing sessions end.
///
/// A drain never moves sessions. With --stop-sessions, the sessions that are left at the deadline are
/// stopped (at once if there is no deadline). Without it no session is stopped, and --wait exits with
/// code 1 at the deadline. The node stays drained in either case.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler node drain host-a --message \"new disk\"
  ostler node drain host-a --wait --deadline 1h --stop-sessions
  ostler node drain -l rack=3 --wait")]
pub(in crate::cli) struct DrainArgs {
    #[command(flatten)]
    selection: Selection,
    /// Wait until no session holds a reservation on the nodes.
    #[arg(long)]
    wait: bool,
    /// Deadline of the drain, counted from now, for example 1h.
    #[arg(long, value_name = "PERIOD")]
    deadline: Option<Period>,
    /// Stop the sessions that are left at the deadline.
    #[arg(long)]
    stop_sessions: bool,
    /// Reason for the drain, shown with the node.
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
    // With --stop-sessions the wait goes on after the deadline, since stopping the sessions takes a moment more.
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
                    return Err(Failure::Failed("another command ended the drain".to_owned()));
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
            return Err(Failure::Failed(format!("the deadline has passed; the node stays drained; left: {left}")));
        }
        sleep(POLL).await;
    }
    drop(progress);
    name_stopped(client, node, context).await
}

/// Stopped sessions hold no reservation, but they are lost if the host's disk is.
async fn name_stopped(client: &Client, node: &str, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["sessions"]).with("node", node).with("state", SessionState::Stopped);
    let sessions: List<Session> = client.list(route).await?.read()?;
    if !sessions.items.is_empty() {
        let ids = joined(short_ids(sessions.items.iter().map(|session| &session.id)));
        context.out.note(format!("{node}: stopped sessions remain on the node: {ids}"));
    }
    Ok(())
}
