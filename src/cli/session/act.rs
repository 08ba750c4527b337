//! Commands on existing sessions: stop, start, pause, resume, keepalive, extend, rm.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use hyper::StatusCode;
use tokio::time::{Instant, sleep};

use crate::cli::client::{Answer, Call, Client};
use crate::cli::failure::Failure;
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::one_line;
use crate::cli::{Context, Failures};
use crate::types::{ExtendRequest, KeepaliveRequest, Period, Session, SessionState, User};

use super::create::current_user;
use super::wait::{Goal, POLL, not_in_time, until};
use super::{IdArgs, WaitArgs};

/// Most requests at the same time. Each may take the whole grace period of a stop.
const AT_ONCE: usize = 16;
/// The longest wait of one request. A node holds an answer for at most ten minutes, but a reverse proxy gives up after
/// 60 s, or 50 s as Debian configures haproxy, and a host that does not answer adds a few seconds.
const MAX_HOLD: Duration = Duration::from_secs(40);
/// The longest wait for a pause or resume, which takes an engine milliseconds.
const HOLD_PAUSE: Period = Period::secs(10);

/// Stop sessions. They release their reservations, and keep their containers for `start`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    #[command(flatten)]
    ids: IdArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Start stopped sessions again, on the same nodes.
#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    #[command(flatten)]
    ids: IdArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Remove sessions and their containers, running or not. Named volumes stay.
#[derive(Debug, Args)]
pub(in crate::cli) struct RmArgs {
    #[command(flatten)]
    ids: IdArgs,
    /// Only make every node forget the sessions, for hosts that are not alive and will not return.
    #[arg(long, conflicts_with = "no_wait")]
    forget: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Mark sessions as in use, which restarts their idle timeouts.
#[derive(Debug, Args)]
pub(in crate::cli) struct KeepaliveArgs {
    #[command(flatten)]
    ids: IdArgs,
    /// The user who keeps them alive [default: the current user].
    #[arg(long, value_name = "USER")]
    by: Option<User>,
}

/// Extend the lifetime of sessions. It is never shortened.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler session extend mfrggzdf --ttl 2h")]
pub(in crate::cli) struct ExtendArgs {
    #[command(flatten)]
    ids: IdArgs,
    /// The least time to live, counted from now, for example 2h.
    #[arg(long, value_name = "PERIOD")]
    ttl: Period,
}

pub(super) async fn stop(args: &StopArgs, context: &Context) -> Result<(), Failure> {
    let WaitArgs { no_wait, timeout } = args.wait;
    let stopping = async |client: &Client, id: &str, progress: &Progress| {
        let mut answer = client.send(Call::post(Route::new(&["sessions", id, "stop"]))).await?;
        if !no_wait {
            (_, answer.body) = until(Goal::Ended, client, id, timeout, progress).await?;
        }
        Ok(answer)
    };
    each(&args.ids.ids, "stopping", context, stopping).await
}

pub(super) async fn start(args: &StartArgs, context: &Context) -> Result<(), Failure> {
    let WaitArgs { no_wait, timeout } = args.wait;
    let starting = async |client: &Client, id: &str, progress: &Progress| {
        let mut answer = client.send(Call::post(Route::new(&["sessions", id, "start"]))).await?;
        if !no_wait {
            (_, answer.body) = until(Goal::Ready, client, id, timeout, progress).await?;
        }
        Ok(answer)
    };
    each(&args.ids.ids, "starting", context, starting).await
}

pub(super) async fn remove(args: &RmArgs, context: &Context) -> Result<(), Failure> {
    let WaitArgs { no_wait, timeout } = args.wait;
    let removing = async |client: &Client, id: &str, _: &Progress| {
        let route = Route::new(&["sessions", id]);
        if args.forget {
            return client.send(Call::delete(route.with("forget", true))).await;
        }
        if no_wait { client.send(Call::delete(route)).await } else { remove_and_wait(client, id, timeout).await }
    };
    each(&args.ids.ids, "removing", context, removing).await
}

/// Repeats the request while the node answers 202: the session is not removed yet. Once the removal is accepted, a node
/// that cannot be reached for a moment does not end the wait.
async fn remove_and_wait(client: &Client, id: &str, timeout: Period) -> Result<Answer, Failure> {
    let begun = Instant::now();
    let mut full_id = id.to_owned();
    let mut accepted = false;
    loop {
        let left = timeout.0.saturating_sub(begun.elapsed()).min(MAX_HOLD);
        let hold = Period::secs(left.as_secs().max(1));
        let route = Route::new(&["sessions", &full_id]).with("wait", true).with("timeout", hold);
        let doing = match client.send(Call::delete(route).waiting(hold.0)).await {
            Ok(answer) if answer.status != StatusCode::ACCEPTED => return Ok(answer),
            Ok(answer) => {
                let session: Session = answer.read()?;
                // By the next request a prefix of the id may match another session.
                full_id = session.id.to_string();
                accepted = true;
                session.state.to_string()
            }
            Err(failure) if accepted && failure.is_unreachable() => one_line(&failure.to_string()),
            Err(failure) => return Err(failure),
        };
        if begun.elapsed() >= timeout.0 {
            return Err(not_in_time(id, timeout, &doing));
        }
        // A node that is shutting down answers without a wait.
        sleep(POLL).await;
    }
}

pub(super) async fn keepalive(args: &KeepaliveArgs, context: &Context) -> Result<(), Failure> {
    let by = args.by.clone().map_or_else(current_user, Ok)?;
    post("keepalive", &args.ids.ids, &KeepaliveRequest { by }, context).await
}

pub(super) async fn extend(args: &ExtendArgs, context: &Context) -> Result<(), Failure> {
    let request = ExtendRequest { ttl_seconds: args.ttl.as_secs() };
    request.validate()?;
    post("extend", &args.ids.ids, &request, context).await
}

/// Pauses the sessions, and waits until they are paused.
pub(super) async fn pause(ids: &[String], context: &Context) -> Result<(), Failure> {
    and_hold("pause", SessionState::Paused, ids, context).await
}

pub(super) async fn resume(ids: &[String], context: &Context) -> Result<(), Failure> {
    and_hold("resume", SessionState::Running, ids, context).await
}

/// Requests the action. The node holds its answer until the session is in this state.
async fn and_hold(action: &str, state: SessionState, ids: &[String], context: &Context) -> Result<(), Failure> {
    let asking = async |client: &Client, id: &str, _: &Progress| {
        let route = Route::new(&["sessions", id, action]).with("wait", state).with("timeout", HOLD_PAUSE);
        client.send(Call::post(route)).await
    };
    each(ids, action, context, asking).await
}

async fn post<T: serde::Serialize>(action: &str, ids: &[String], body: &T, context: &Context) -> Result<(), Failure> {
    let asking = async |client: &Client, id: &str, _: &Progress| {
        client.send(Call::post(Route::new(&["sessions", id, action])).json(body)?).await
    };
    each(ids, action, context, asking).await
}

/// Calls `ask` for each session, several at the same time, and prints the id of each session that succeeds.
async fn each(
    ids: &[String],
    doing: &str,
    context: &Context,
    ask: impl AsyncFn(&Client, &str, &Progress) -> Result<Answer, Failure>,
) -> Result<(), Failure> {
    let client = context.client()?;
    let progress = Progress::start(doing);
    let asked = stream::iter(ids).map(async |id| (id, ask(&client, id, &progress).await));
    let mut answers = std::pin::pin!(asked.buffered(AT_ONCE));
    let mut failures = Failures::default();
    while let Some((id, answer)) = answers.next().await {
        progress.aside(|| match answer {
            Ok(answer) if answer.body.as_bytes().is_empty() => context.out.done(id),
            Ok(answer) => context.out.answer(&answer.body, |session: &Session| session.id.to_string()),
            Err(failure) => {
                failures.add(id, &failure);
                Ok(())
            }
        })?;
    }
    failures.into_result()
}
