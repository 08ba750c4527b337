//! `ostler workspace`: the catalogue that sessions are created from.

mod apply;
mod edit;
mod file;
mod pin;
mod pull;
mod show;

use clap::{Args, Subcommand};

use super::client::{Call, Client};
use super::failure::Failure;
use super::route::Route;
use super::{Context, Failures};
use crate::types::{List, Workspace};
pub(super) use file::export;

/// Commands about the catalogue.
#[derive(Debug, Subcommand)]
pub(super) enum WorkspaceCommand {
    /// List the workspaces of the catalogue.
    Ls,
    /// Show a workspace.
    Show(ShowArgs),
    Add(edit::AddArgs),
    Set(edit::SetArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    /// Remove workspaces from the catalogue. Existing sessions keep running.
    Rm(RmArgs),
    Pull(pull::PullArgs),
    Apply(apply::ApplyArgs),
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// The workspace's name.
    name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RmArgs {
    /// The workspaces' names.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Print workspaces as TOML, which `apply` reads back.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ostler workspace export > catalogue.toml\n  ostler workspace apply -f catalogue.toml"
)]
pub(in crate::cli) struct ExportArgs {
    /// Names of the workspaces [default: the whole catalogue].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn run(command: &WorkspaceCommand, context: &Context) -> Result<(), Failure> {
    match command {
        WorkspaceCommand::Ls => {
            let body = context.client()?.list(Route::new(&["workspaces"])).await?;
            context.out.answer(&body, |list: &List<Workspace>| show::describe_all(&list.items))
        }
        WorkspaceCommand::Show(args) => {
            let client = context.client()?;
            let body = client.get(Route::new(&["workspaces", &args.name])).await?;
            let moved = pin::moved(&client, &body.read()?).await;
            context.out.answer(&body, |workspace| show::describe(workspace, moved))
        }
        WorkspaceCommand::Add(args) => edit::add(args, context).await,
        WorkspaceCommand::Set(args) => edit::set(args, context).await,
        WorkspaceCommand::Pin(args) => pin::pin(args, context).await,
        WorkspaceCommand::Unpin(args) => pin::unpin(args, context).await,
        WorkspaceCommand::Rm(args) => remove(args, context).await,
        WorkspaceCommand::Pull(args) => pull::run(args, context).await,
        WorkspaceCommand::Apply(args) => apply::run(args, context).await,
        WorkspaceCommand::Export(args) => print_export(args, context).await,
    }
}

async fn remove(args: &RmArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for name in &args.names {
        match client.send(Call::delete(Route::new(&["workspaces", name]))).await {
            Ok(_) => context.out.done(name)?,
            Err(failure) => failures.add(name, &failure),
        }
    }
    failures.into_result()
}

async fn print_export(args: &ExportArgs, context: &Context) -> Result<(), Failure> {
    let all = catalogue(&context.client()?).await?;
    if let Some(missing) = args.names.iter().find(|name| !all.iter().any(|known| known.name.as_str() == name.as_str()))
    {
        return Err(Failure::Failed(format!("there is no workspace `{missing}`")));
    }
    let wanted = |known: &Workspace| args.names.is_empty() || args.names.iter().any(|name| name == known.name.as_str());
    let chosen: Vec<Workspace> = all.into_iter().filter(wanted).collect();
    context.out.text(export(&chosen)?.trim_end())
}

async fn catalogue(client: &Client) -> Result<Vec<Workspace>, Failure> {
    Ok(client.list(Route::new(&["workspaces"])).await?.read::<List<Workspace>>()?.items)
}
