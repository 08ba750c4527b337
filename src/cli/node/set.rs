//! `ostler node set`, `enable` and `disable`: changes of settings.

use clap::Args;
use hyper::Method;

use crate::cli::arguments::{count, one_of};
use crate::cli::client::{Answer, Call, Client};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::route::Route;
use crate::cli::table::one_line;
use crate::cli::{Context, Failures};
use crate::types::{Bytes, Condition, Cores, GpuSharing, Node, Prune, SettingsPatch};

use super::selection::Selection;

const SHARING_CAUTION: &str = "\
warning: gpu_sharing = any lets different users share one GPU. GPUs isolate processes poorly: a user may
read what another left in the GPU's memory, slow another down, or crash another's work. Choose it only
where all users trust each other.";

/// Change what nodes offer. A change takes effect at once, and survives a restart.
///
/// An override of 0 removes the override. A setting that is in the node's configuration file cannot
/// be changed by a command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ostler node set host-a --cores-override 12 --memory-override 8GiB
  ostler node set -l rack=3 --prune aggressive
  ostler node set host-a --gpus-override 0")]
pub(in crate::cli) struct SetArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct SettingArgs {
    /// Offer this many cores, regardless of what the host has; 0 removes the override.
    #[arg(long, value_name = "CORES")]
    cores_override: Option<Cores>,
    /// Offer this much memory, for example 8GiB, regardless of what the host has; 0 removes the override.
    #[arg(long, value_name = "SIZE")]
    memory_override: Option<Bytes>,
    /// Offer this many GPUs, shared among sessions; 0 removes the override.
    #[arg(long, value_name = "COUNT", value_parser = count)]
    gpus_override: Option<u32>,
    /// Which images the node removes by itself, of those that ostler pulled and that nothing needs: none, those without
    /// a name, or also those that no workspace names.
    #[arg(long, value_parser = one_of::<Prune>(Prune::ALL.iter().map(|prune| prune.as_str())))]
    prune: Option<Prune>,
    /// Which sessions may share one GPU.
    #[arg(long, value_parser = one_of::<GpuSharing>(GpuSharing::ALL.iter().map(|sharing| sharing.as_str())))]
    gpu_sharing: Option<GpuSharing>,
}

pub(super) async fn run(args: &SetArgs, context: &Context) -> Result<(), Failure> {
    let given = &args.settings;
    let change = SettingsPatch {
        cores_override: given.cores_override,
        memory_override_bytes: given.memory_override,
        gpus_override: given.gpus_override,
        prune: given.prune,
        gpu_sharing: given.gpu_sharing,
        ..SettingsPatch::default()
    };
    if given.gpu_sharing == Some(GpuSharing::Any) {
        context.out.note(SHARING_CAUTION);
    }
    patch(&args.selection, &change, context).await
}

/// Changes the settings of the selected nodes, one after the other.
pub(super) async fn patch(selection: &Selection, change: &SettingsPatch, context: &Context) -> Result<(), Failure> {
    change.validate()?;
    let client = context.client()?;
    let mut failures = Failures::default();
    for node in selection.resolve(&client).await? {
        match patch_one(&client, &node, change).await {
            Ok(answer) => show(&node, &answer, &context.out)?,
            Err(failure) => failures.add(&node, &failure),
        }
    }
    failures.into_result()
}

pub(super) async fn patch_one(client: &Client, node: &str, change: &SettingsPatch) -> Result<Answer, Failure> {
    client.send(Call::new(Method::PATCH, Route::new(&["nodes", node])).json(change)?).await
}

/// Prints the node's name, and its conditions on standard error.
pub(super) fn show(node: &str, answer: &Answer, out: &Output) -> Result<(), Failure> {
    out.answer(&answer.body, |changed: &Node| changed.name.to_string())?;
    if let Ok(changed) = answer.read::<Node>() {
        for condition in &changed.conditions {
            out.note(warning(node, condition));
        }
    }
    Ok(())
}

fn warning(node: &str, condition: &Condition) -> String {
    format!("{node}: {}: {}", condition.kind, one_line(&condition.message))
}

#[cfg(test)]
mod tests {
    use crate::cli::node::NodeCommand;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    use super::*;

    fn parse(line: &str) -> Result<SetArgs, clap::Error> {
        match Cli::try_parse_from(line.split(' '))?.command {
            Command::Node(NodeCommand::Set(args)) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let args = parse("ostler node set host-a --memory-override 8G --cores-override 0.5").unwrap();
        assert_eq!(args.settings.memory_override, Some(Bytes::gib(8)));
        assert_eq!(args.settings.cores_override, Some(Cores::from_milli(500)));
        let args = parse("ostler node set -l rack=3 --gpu-sharing any").unwrap();
        assert_eq!(args.settings.gpu_sharing, Some(GpuSharing::Any));
    }

    #[test]
    fn a_change_needs_nodes_and_settings() {
        for line in [
            "ostler node set host-a",
            "ostler node set --prune off",
            "ostler node set host-a -l rack=3 --prune off",
            "ostler node set host-a --prune sometimes",
            "ostler node set host-a --cores-override -1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
