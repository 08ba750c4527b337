//! `ostler session`: running instances of workspaces.

mod act;
mod create;
mod explain;
mod list;
mod logs;
mod show;
mod wait;

use clap::{Args, Subcommand};

use super::Context;
use super::connection::Connection;
use super::failure::Failure;
use crate::types::Period;
pub(super) use create::current_user;

/// Commands about sessions.
#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    Create(create::CreateArgs),
    Ls(list::LsArgs),
    Show(show::ShowArgs),
    Logs(logs::LogsArgs),
    Stop(act::StopArgs),
    Start(act::StartArgs),
    /// Freeze sessions. They keep their reservations.
    Pause(IdArgs),
    /// Resume paused sessions.
    Resume(IdArgs),
    Keepalive(act::KeepaliveArgs),
    Extend(act::ExtendArgs),
    Rm(act::RmArgs),
    Explain(explain::ExplainArgs),
}

/// Sessions to act on.
#[derive(Debug, Args)]
pub(in crate::cli) struct IdArgs {
    /// Ids or id prefixes of sessions.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Whether to wait for the result, and how long.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct WaitArgs {
    /// Return as soon as the request is accepted.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait. The operation continues after the timeout.
    #[arg(long, value_name = "PERIOD", default_value = "5m", conflicts_with = "no_wait")]
    timeout: Period,
}

impl SessionCommand {
    /// Whether a value of `--node` is a filter of this command, not the node to ask.
    pub(super) fn filters_by(&self, node: &str) -> bool {
        matches!(self, Self::Ls(_)) && !Connection::is_url(node)
    }
}

pub(super) async fn run(command: &SessionCommand, context: &Context) -> Result<(), Failure> {
    match command {
        SessionCommand::Create(args) => create::run(args, context).await,
        SessionCommand::Ls(args) => list::run(args, context).await,
        SessionCommand::Show(args) => show::run(args, context).await,
        SessionCommand::Logs(args) => logs::run(args, context).await,
        SessionCommand::Stop(args) => act::stop(args, context).await,
        SessionCommand::Start(args) => act::start(args, context).await,
        SessionCommand::Pause(args) => act::pause(&args.ids, context).await,
        SessionCommand::Resume(args) => act::resume(&args.ids, context).await,
        SessionCommand::Keepalive(args) => act::keepalive(args, context).await,
        SessionCommand::Extend(args) => act::extend(args, context).await,
        SessionCommand::Rm(args) => act::remove(args, context).await,
        SessionCommand::Explain(args) => explain::run(args, context).await,
    }
}

#[cfg(test)]
pub(super) fn example() -> crate::types::Session {
    let json = r#"{"id":"mfrggzdfmztwq2lknnwg23tpob","user":"alice","workspace":"desktop","image":"kasmweb/desktop:1",
        "image_digest":null,"node":"host-a","node_id":"k3f7q2m5x6a4b7c2","container_id":"c0ffee","state":"running",
        "cores":2,"memory_bytes":2147483648,"gpus":0,"gpu_uuids":[],
        "endpoints":[{"container_port":6901,"host":"10.0.0.1","host_port":32001,"protocol":"tcp"}],
        "created_at":"2026-01-31T11:00:00Z","ready_at":"2026-01-31T11:00:05Z","health":null,
        "last_activity_at":"2026-01-31T11:30:00Z",
        "expires_at":"2026-01-31T14:00:00Z","kept_alive_by":null,"end_reason":null,"exit_code":null,
        "message":null,"attempt":1}"#;
    serde_json::from_str(json).unwrap()
}
