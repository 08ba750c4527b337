//! `ostler session create`.

use std::time::Duration;

use clap::Args;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::sleep;

use crate::cli::Context;
use crate::cli::arguments::{Pair, count, map};
use crate::cli::client::{Answer, Call, Client};
use crate::cli::failure::Failure;
use crate::cli::output::Body;
use crate::cli::progress::Progress;
use crate::cli::route::Route;
use crate::cli::table::one_line;
use crate::types::{Bytes, Cores, Name, Period, Plan, Session, SessionRequest, User};

use super::WaitArgs;
use super::explain::describe_plan;
use super::list::address;
use super::show::secret;
use super::wait::{Goal, until};

/// Retries of a request whose outcome is unknown. With the pauses below they take fifteen seconds,
/// longer than an agent's restart or a change of leader.
const RETRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Create a session from a workspace, and wait until it can be used.
///
/// Prints the session's id, its endpoints, its GPUs and its secret, if it has one. Values that are not given
/// come from the workspace. The request carries an idempotency key, so that a retry never creates a
/// second session.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler session create desktop
  ostler session create desktop --user alice --cores 4 --memory 8GiB --ttl 8h
  ostler session create training --gpus 2 --constraint rack=3 --no-wait
  ostler session create desktop --dry-run")]
pub(in crate::cli) struct CreateArgs {
    /// The workspace to create it from.
    workspace: Name,
    /// User of the session [default: the current user].
    #[arg(long)]
    user: Option<User>,
    /// Cores to reserve, for example 2, 0.5 or 250m.
    #[arg(long)]
    cores: Option<Cores>,
    /// Memory to reserve, for example 4GiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Number of GPUs, each a separate device.
    #[arg(long, value_name = "COUNT", value_parser = count)]
    gpus: Option<u32>,
    /// Set an environment variable, in addition to the workspace's or in place of one.
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// Remove the session after this time, for example 8h.
    #[arg(long, value_name = "PERIOD")]
    ttl: Option<Period>,
    /// Stop the session once nobody was connected to its ports or kept it alive for this time, for example 30m.
    #[arg(long, value_name = "PERIOD")]
    idle_timeout: Option<Period>,
    /// A label that the node must have.
    #[arg(long, value_name = "KEY=VALUE")]
    constraint: Vec<Pair>,
    /// Idempotency key: the same key and request return the same session [default: a random key].
    #[arg(long)]
    key: Option<String>,
    /// Only show where the session would be placed, and each node's verdict.
    #[arg(long, conflicts_with_all = ["key", "no_wait"])]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) async fn run(args: &CreateArgs, context: &Context) -> Result<(), Failure> {
    let request = args.request()?;
    let client = context.client()?;
    if args.dry_run {
        return dry_run(&client, &request, context).await;
    }
    let key = args.key.clone().map_or_else(random_key, Ok)?;
    let answer = create(&client, &request, &key, context).await?;
    let made: Session = answer.read()?;
    if args.wait.no_wait {
        return context.out.answer(&answer.body, describe);
    }
    // Printed before the wait, so that the user can find the session after an interrupt.
    context.out.note(format!("Session {} is on {}.", made.id, made.node));
    let id = made.id.as_str();
    let progress = Progress::start("pending");
    let (mut session, body) = until(Goal::Ready, &client, id, args.wait.timeout, &progress).await?;
    drop(progress);
    session.secret = match made.secret {
        // The answer to a repeated request, 200, does not hold the secret.
        None if answer.status == 200 => secret(&client, id).await.ok().flatten(),
        known => known,
    };
    let body = if session.secret.is_some() { Body::of(&session)? } else { body };
    context.out.answer(&body, describe)
}

impl CreateArgs {
    fn request(&self) -> Result<SessionRequest, Failure> {
        let user = self.user.clone().map_or_else(current_user, Ok)?;
        let request = SessionRequest {
            cores: self.cores,
            memory_bytes: self.memory,
            gpus: self.gpus,
            env: map(&self.env),
            ttl_seconds: self.ttl.map(Period::as_secs),
            idle_timeout_seconds: self.idle_timeout.map(Period::as_secs),
            constraints: map(&self.constraint),
            ..SessionRequest::new(self.workspace.clone(), user)
        };
        request.validate()?;
        Ok(request)
    }
}

/// The login name of the user who runs the command.
pub(in crate::cli) fn current_user() -> Result<User, Failure> {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|n| !n.is_empty()));
    let name = name.ok_or_else(|| Failure::Usage("USER is not set; give the user with --user".to_owned()))?;
    name.parse().map_err(Failure::Usage)
}

/// 128 random bits.
fn random_key() -> Result<String, Failure> {
    let mut random = [0; 16];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| Failure::Failed("the system has no random numbers".to_owned()))?;
    Ok(data_encoding::HEXLOWER.encode(&random))
}

/// Sends the request, and again with the same key while its outcome is unknown.
async fn create(client: &Client, request: &SessionRequest, key: &str, context: &Context) -> Result<Answer, Failure> {
    let mut pause = FIRST_PAUSE;
    let mut retries = 0;
    loop {
        let call = Call::post(Route::new(&["sessions"])).json(request)?.idempotency_key(key);
        let failure = match client.send(call).await {
            Err(failure) if retries < RETRIES && is_open(&failure, retries) => failure,
            settled => return settled,
        };
        context.out.note(format!("{failure}; retrying"));
        sleep(pause).await;
        pause *= 2;
        retries += 1;
    }
}

/// Whether to retry. A node that is unreachable at first has created nothing. After a request whose
/// outcome is unknown, an unreachable node may have created the session, and may be restarting.
fn is_open(failure: &Failure, retries: u32) -> bool {
    failure.is_outcome_unknown() || (retries > 0 && matches!(failure, Failure::Unreachable(_)))
}

async fn dry_run(client: &Client, request: &SessionRequest, context: &Context) -> Result<(), Failure> {
    let route = Route::new(&["sessions"]).with("dry_run", true);
    let answer = client.send(Call::post(route).json(request)?).await?;
    context.out.answer(&answer.body, describe_plan)?;
    let plan: Plan = answer.read()?;
    if plan.node.is_some() { Ok(()) } else { Err(Failure::Refused("no node would admit the session".to_owned())) }
}

/// The id alone on the first line, for scripts; below it the endpoints, the GPUs and the secret.
fn describe(session: &Session) -> String {
    let mut lines = vec![session.id.to_string()];
    lines.extend(
        session
            .endpoints
            .iter()
            .map(|endpoint| format!("  {}/{} at {}", endpoint.container_port, endpoint.protocol, address(endpoint))),
    );
    lines.extend(session.gpu_uuids.iter().map(|uuid| format!("  GPU {}", one_line(uuid))));
    lines.extend(session.secret.iter().map(|secret| format!("  secret {secret}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::session::{SessionCommand, example};
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> CreateArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Session(SessionCommand::Create(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_holds_the_given_arguments_and_no_others() {
        let line = "ostler session create desktop --user alice --cores 250m --memory 4G --ttl 1h -e A=1 -e B=x=y --constraint rack=3";
        let json = serde_json::to_string(&parse(line).request().unwrap()).unwrap();
        let expected = r#"{"workspace":"desktop","user":"alice","cores":0.25,"memory_bytes":4294967296,"env":{"A":"1","B":"x=y"},"ttl_seconds":3600,"constraints":{"rack":"3"}}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn an_invalid_value_is_rejected_before_anything_is_sent() {
        let args = parse("ostler session create desktop --user alice -e LD_PRELOAD=x");
        assert!(matches!(args.request(), Err(Failure::Refused(message)) if message.contains("env.LD_PRELOAD")));
    }

    #[test]
    fn only_a_request_that_may_have_been_carried_out_is_retried() {
        let unreachable = Failure::Unreachable("x".to_owned());
        assert!(!is_open(&unreachable, 0) && is_open(&unreachable, 1));
        assert!(is_open(&Failure::Lost("x".to_owned()), 0));
        assert!(!is_open(&Failure::Failed("x".to_owned()), 1));
    }

    #[test]
    fn keys_are_random() {
        assert_ne!(random_key().unwrap(), random_key().unwrap());
    }

    #[test]
    fn a_new_session_says_how_to_reach_it() {
        let gpu_uuids = vec!["GPU-1".to_owned(), "GPU-2".to_owned()];
        let session = Session { secret: Some("s3cret".to_owned()), gpu_uuids, ..example() };
        let expected =
            "mfrggzdfmztwq2lknnwg23tpob\n  6901/tcp at 10.0.0.1:32001\n  GPU GPU-1\n  GPU GPU-2\n  secret s3cret";
        assert_eq!(describe(&session), expected);
    }
}
