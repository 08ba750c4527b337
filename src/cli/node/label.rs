//! `ostler node label`.

use clap::Args;

use crate::cli::Context;
use crate::cli::arguments::LabelChange;
use crate::cli::failure::Failure;
use crate::types::{LabelsPatch, SettingsPatch};

use super::set;

/// Set labels of a node, or take them away.
///
/// Workspaces and sessions choose nodes by labels, and -l selects nodes by them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler node label host-a rack=3 disk=ssd\n  ostler node label host-a disk-")]
pub(in crate::cli) struct LabelArgs {
    /// A node's name, its id, or the beginning of its id.
    #[arg(value_name = "NODE")]
    name: String,
    /// KEY=VALUE sets a label, KEY- takes it away.
    #[arg(value_name = "CHANGE", required = true)]
    changes: Vec<LabelChange>,
}

pub(super) async fn run(args: &LabelArgs, context: &Context) -> Result<(), Failure> {
    let labels: LabelsPatch = args.changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect();
    let change = SettingsPatch { labels: Some(labels), ..SettingsPatch::default() };
    change.validate()?;
    let answer = set::patch_one(&context.client()?, &args.name, &change).await?;
    set::show(&args.name, &answer, &context.out)
}
