//! `ostler doctor`: checks this host, or has another node check itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use tokio::net::UnixStream;

use super::Context;
use super::client::{Call, Client};
use super::connection::Connection;
use super::failure::{Exit, Failure};
use super::output::Output;
use super::route::Route;
use super::table::one_line;
use super::terminal::Terminal;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon;
use crate::doctor::collect::{Examiner, Gpus, examine};
use crate::doctor::task::LIMIT;
use crate::doctor::{Agent, Told};
use crate::types::{Check, Checkup, List, Node, Session, Verdict};

/// Check this host, or another node: engine, GPUs, memory, mesh, clock, token, disk, limits, API, ports of sessions, agent.
///
/// Says what is wrong, and for each fault how to mend it. Reads only, and works while the agent is down. Reads the
/// configuration file itself, so run it as the agent's user, mostly as root. Exits with 1 if a check fails.
///
/// With --node NAME the agent of that node makes the checks of its host, with its own configuration; NAME may be an id or a
/// unique prefix of one. With --node URL the node at that URL checks itself. Both need an administrator: root or a member of
/// group ostler on the socket, or an API token of role admin. If the agent of the other node is down, run
/// `ssh HOST ostler doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler doctor
  ostler doctor --output json
  ostler doctor --node host-b
  ssh root@host-b ostler doctor")]
pub(super) struct DoctorArgs {
    /// Configuration file of this host [default: /etc/ostler/ostler.toml if it exists, otherwise built-in defaults].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How long the answer of a node is waited for: the node itself gives up before, and says so.
const PATIENCE: Duration = LIMIT.saturating_add(Duration::from_secs(10));
/// The node at a URL, as it names itself.
const SELF: &str = "self";

pub(super) async fn run(args: &DoctorArgs, context: &mut Context) -> Result<(), Failure> {
    match context.connection.node.clone() {
        None => here(args, &context.out).await,
        Some(_) if args.config.is_some() => {
            let message =
                "--config is for the checks of this host; the agent of another node has its own configuration";
            Err(Failure::Usage(message.to_owned()))
        }
        Some(url) if Connection::is_url(&url) => away(SELF, context).await,
        Some(name) => {
            // A name is the node to check, and says nothing of the node to contact.
            context.connection.node = None;
            away(&name, context).await
        }
    }
}

/// Has a node check itself.
async fn away(name: &str, context: &Context) -> Result<(), Failure> {
    let call = Call::new(Method::GET, Route::new(&["nodes", name, "doctor"])).waiting(PATIENCE);
    let body = context.client()?.send(call).await?.body;
    context.out.answer(&body, |checkup: &Checkup| describe(checkup, &context.out.terminal))?;
    ended(body.read::<Checkup>()?.verdict)
}

/// Checks this host.
async fn here(args: &DoctorArgs, out: &Output) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), true).map_err(|e| Failure::Failed(e.to_string()))?.doctor();
    let clock = Clock::system().map_err(|e| Failure::Failed(format!("the clock cannot be read: {e}")))?;
    let by = Examiner {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        gpus: Gpus::Child(daemon::this_program().map_err(|e| Failure::Failed(format!("{e:#}")))?),
        agent_pid: agent_pid(&config.socket).await,
        now: clock.now().wall,
    };
    let agent = match ask(&config.socket).await {
        Ok(told) => Agent::Up(Box::new(told)),
        // What the client says after it is for other commands.
        Err(failure) => Agent::Down(one_line(failure.to_string().split("; is ").next().unwrap_or_default())),
    };
    let checkup = examine(&config, &agent, &by).await;
    out.value(&checkup, || describe(&checkup, &out.terminal))?;
    ended(checkup.verdict)
}

fn ended(worst: Verdict) -> Result<(), Failure> {
    if worst == Verdict::Fail { Err(Failure::Reported(Exit::Failed)) } else { Ok(()) }
}

/// The process at the other end of the agent's socket.
async fn agent_pid(socket: &Path) -> Option<u32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    u32::try_from(stream.peer_cred().ok()?.pid()?).ok()
}

/// Asks the agent of this host.
async fn ask(socket: &Path) -> Result<Told, Failure> {
    let connection = Connection { socket: Some(socket.to_owned()), isolated: true, ..Connection::default() };
    let client = Client::new(&connection.choose_here()?)?;
    let here: Node = client.get(Route::new(&["nodes", "self"])).await?.read()?;
    let nodes: List<Node> = client.list(Route::new(&["nodes"])).await?.read()?;
    let own = Route::new(&["sessions"]).with("node", here.name.as_str());
    let sessions: List<Session> = client.list(own).await?.read()?;
    let ports = sessions.items.iter().flat_map(|session| &session.endpoints).map(|endpoint| endpoint.host_port);
    Ok(Told { ports: ports.collect::<BTreeSet<u16>>(), here, nodes: nodes.items })
}

/// The checks as text: one line each, below a fault how to mend it, and a count at the end.
fn describe(checkup: &Checkup, terminal: &Terminal) -> String {
    let mut lines: Vec<String> = checkup.checks.iter().flat_map(|check| describe_check(check, terminal)).collect();
    let count = |verdict| checkup.checks.iter().filter(|check| check.verdict == verdict).count();
    let counts: Vec<String> = [Verdict::Fail, Verdict::Warn, Verdict::Ok, Verdict::Skipped]
        .into_iter()
        .filter(|verdict| count(*verdict) > 0)
        .map(|verdict| format!("{} {verdict}", count(verdict)))
        .collect();
    lines.push(format!("{}: {}", checkup.node, counts.join(", ")));
    lines.join("\n")
}

fn describe_check(check: &Check, terminal: &Terminal) -> Vec<String> {
    let word = format!("{:7}", check.verdict);
    let word = match check.verdict {
        Verdict::Ok => terminal.green(&word),
        Verdict::Skipped => word,
        Verdict::Warn => terminal.yellow(&word),
        Verdict::Fail => terminal.red(&word),
    };
    let line = format!("{word}  {:9}  {}", check.topic, one_line(&check.message));
    let mend = check.mend.as_ref().map(|mend| format!("{:20}mend: {}", "", one_line(mend)));
    std::iter::once(line).chain(mend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Topic;

    #[test]
    fn each_fault_has_its_mend_below_it() {
        let checks = vec![
            Check::ok(Topic::Engine, "Docker 28.1 answers"),
            Check::fail(Topic::Token, "/t is readable\nby others", "chmod 600 /t"),
            Check::skipped(Topic::Gpus, "made up"),
        ];
        let expected = "\
ok       engine     Docker 28.1 answers
skipped  gpus       made up
fail     token      /t is readable by others
                    mend: chmod 600 /t
host-a: 1 fail, 1 ok, 1 skipped";
        assert_eq!(describe(&Checkup::new("host-a".parse().unwrap(), checks), &Terminal::PLAIN), expected);
    }
}
