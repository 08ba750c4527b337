//! `ostler workspace pull`.

use clap::Args;

use crate::cli::client::{Call, Client};
use crate::cli::failure::Failure;
use crate::cli::image::pull_everywhere;
use crate::cli::route::Route;
use crate::cli::session::current_user;
use crate::cli::{Context, Failures};
use crate::types::{
    List, Name, Node, NodeImages, NodeState, NodeVerdict, Plan, Reason, RuntimeKind, SessionRequest, Workspace,
};

/// Pull the image of a workspace now, on every node that has it.
///
/// With `prepull`, also on every node that may run the workspace.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ostler workspace pull desktop")]
pub(in crate::cli) struct PullArgs {
    /// The workspace's name.
    name: String,
}

pub(super) async fn run(args: &PullArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let workspace: Workspace = client.get(Route::new(&["workspaces", &args.name])).await?.read()?;
    let Some(image) = &workspace.image_reference() else {
        return Err(Failure::Refused(format!("workspace {} has no image", workspace.name)));
    };
    let mut failures = Failures::default();
    let mut nodes = having(&client, &workspace.name, &mut failures).await?;
    if workspace.prepull {
        nodes.extend(running(&client, &workspace.name).await?);
        nodes.sort_unstable();
        nodes.dedup();
    }
    if nodes.is_empty() {
        failures.into_result()?;
        return Err(Failure::Failed(format!(
            "no node has image {image} of workspace {}; run: ostler image pull {image} NODE",
            workspace.name
        )));
    }
    let pulled = pull_everywhere(image, &nodes, &client, context).await;
    failures.into_result().and(pulled)
}

/// The nodes that have the workspace's image. A node that does not answer is reported as a failure.
async fn having(client: &Client, workspace: &Name, failures: &mut Failures) -> Result<Vec<String>, Failure> {
    let nodes: List<Node> = client.list(Route::new(&["nodes"])).await?.read()?;
    let mut having = Vec::new();
    let may_have = |node: &&Node| node.runtime.kind == RuntimeKind::Docker && node.state != NodeState::Left;
    for node in nodes.items.iter().filter(may_have) {
        let name = node.name.to_string();
        let listed = client.list(Route::new(&["nodes", &name, "images"])).await;
        match listed.and_then(|body| body.read::<NodeImages>()) {
            Ok(images) if images.items.iter().any(|image| image.workspaces.contains(workspace)) => having.push(name),
            Ok(_) => {}
            Err(failure) => failures.add(&name, &failure),
        }
    }
    Ok(having)
}

/// The nodes that may run the workspace, by the leader's verdict on a session of it.
async fn running(client: &Client, workspace: &Name) -> Result<Vec<String>, Failure> {
    let request = SessionRequest::new(workspace.clone(), current_user()?);
    let call = Call::post(Route::new(&["sessions"]).with("dry_run", true)).json(&request)?;
    let plan: Plan = client.send(call).await?.read()?;
    Ok(plan.nodes.iter().filter(|verdict| may_run(verdict)).map(|verdict| verdict.node.to_string()).collect())
}

/// Whether the node may run sessions of the workspace, now or once it has room again.
fn may_run(verdict: &NodeVerdict) -> bool {
    let Some(refusal) = &verdict.refusal else { return true };
    matches!(
        refusal.reason,
        Reason::NoCapacity
            | Reason::PhysicalUnknown
            | Reason::GpuSharing
            | Reason::GpuMemoryUnknown
            | Reason::Volume
            | Reason::SessionLimit
            | Reason::NoPorts
            | Reason::LowDisk
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeReason;

    #[test]
    fn a_node_without_room_may_run_a_workspace_and_one_without_its_labels_may_not() {
        let verdict = |reason: Option<Reason>| {
            let node: Name = "a".parse().unwrap();
            may_run(&NodeVerdict {
                node: node.clone(),
                rank: None,
                refusal: reason.map(|reason| NodeReason::plain(node, reason)),
            })
        };
        assert!(verdict(None) && verdict(Some(Reason::NoCapacity)) && verdict(Some(Reason::Volume)));
        assert!(!verdict(Some(Reason::Constraint)) && !verdict(Some(Reason::Disabled)));
    }
}
