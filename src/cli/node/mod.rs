//! `ostler node`: what hosts have, and what their operators let them offer.

mod drain;
mod label;
mod refresh;
mod selection;
mod set;
mod show;

use clap::{Args, Subcommand};

use crate::types::{Figures, List, Node, SettingsPatch};

use super::client::Call;
use super::failure::Failure;
use super::history::{self, NodeHistoryArgs};
use super::route::Route;
use super::table::{NONE, joined, or_none, table};
use super::terminal::Terminal;
use super::{Context, Failures};
pub(super) use selection::{SELF, Selection, Selector};
pub(super) use show::{drain as draining, resources};

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List the nodes, with the allocated share of the resources that they offer.
    Ls,
    /// Show a node: its resources, utilization, allocation, settings and conditions.
    #[command(after_help = "Examples:\n  ostler node show host-a\n  ostler node show host-a -o json")]
    Show(ShowArgs),
    History(NodeHistoryArgs),
    Set(set::SetArgs),
    /// Let nodes admit new sessions.
    Enable(SelectArgs),
    /// Keep new sessions off nodes. Existing sessions keep running.
    Disable(SelectArgs),
    Drain(drain::DrainArgs),
    /// End the drain of nodes. This does not change whether they are enabled.
    Undrain(SelectArgs),
    Label(label::LabelArgs),
    Refresh(refresh::RefreshArgs),
    /// Remove nodes that will not return, and what the cluster knows of their sessions.
    ///
    /// Every node that is alive forgets them. A removed node that contacts the cluster again is added again.
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RmArgs {
    /// Names, ids or id prefixes of nodes that are not alive.
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// A node's name, id or id prefix.
    #[arg(value_name = "NODE")]
    name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SelectArgs {
    #[command(flatten)]
    selection: Selection,
}

pub(super) async fn run(command: &NodeCommand, context: &Context) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls => {
            let body = context.client()?.list(Route::new(&["nodes"])).await?;
            context.out.answer(&body, |list: &List<Node>| describe(&list.items, &context.out.terminal))
        }
        NodeCommand::Show(args) => {
            let body = context.client()?.get(Route::new(&["nodes", &args.name])).await?;
            context.out.answer(&body, |node| show::describe(node, &context.out.terminal, context.out.now))
        }
        NodeCommand::History(args) => history::run_node(args, context).await,
        NodeCommand::Set(args) => set::run(args, context).await,
        NodeCommand::Enable(args) => set::patch(&args.selection, &enabled(true), context).await,
        NodeCommand::Disable(args) => set::patch(&args.selection, &enabled(false), context).await,
        NodeCommand::Drain(args) => drain::run(args, context).await,
        NodeCommand::Undrain(args) => drain::end(&args.selection, context).await,
        NodeCommand::Label(args) => label::run(args, context).await,
        NodeCommand::Refresh(args) => refresh::run(args, context).await,
        NodeCommand::Rm(args) => remove(args, context).await,
    }
}

async fn remove(args: &RmArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut failures = Failures::default();
    for node in &args.nodes {
        match client.send(Call::delete(Route::new(&["nodes", node]))).await {
            Ok(_) => context.out.done(node)?,
            Err(failure) => failures.add(node, &failure),
        }
    }
    failures.into_result()
}

fn enabled(enabled: bool) -> SettingsPatch {
    SettingsPatch { enabled: Some(enabled), ..SettingsPatch::default() }
}

pub(super) fn describe(nodes: &[Node], terminal: &Terminal) -> String {
    let rows = nodes.iter().map(|node| {
        let resources = &node.resources;
        vec![
            if node.is_leader { format!("{} *", node.name) } else { node.name.to_string() },
            node.state.to_string(),
            accepts(node).to_owned(),
            share(&resources.cores),
            share(&resources.memory_bytes),
            if resources.gpus.effective == 0 { NONE.to_owned() } else { share(&resources.gpus) },
            node.sessions.to_string(),
            node.version.clone(),
            conditions(node, terminal),
        ]
    });
    let header = ["NAME", "STATE", "ACCEPTS", "CORES", "MEMORY", "GPUS", "SESSIONS", "VERSION", "CONDITIONS"];
    table(&header, rows)
}

/// `5 of 12`: allocated, of what is offered; `5 of -` if that is not known.
fn share<T: Copy + Default + PartialEq + std::fmt::Display>(figures: &Figures<T>) -> String {
    format!("{} of {}", figures.allocated, or_none(figures.offered()))
}

/// Whether the operator lets the node admit new sessions.
fn accepts(node: &Node) -> &'static str {
    match (&node.drain, node.enabled) {
        (Some(_), _) => "draining",
        (None, true) => "yes",
        (None, false) => "disabled",
    }
}

/// The node's conditions, in red. They are the last column, so that colour codes do not misalign another one.
fn conditions(node: &Node, terminal: &Terminal) -> String {
    let kinds = joined(node.conditions.iter().map(|condition| condition.kind));
    if node.conditions.is_empty() { kinds } else { terminal.red(&kinds) }
}

#[cfg(test)]
pub(super) fn example() -> Node {
    let json = r#"{"id":"k3f7q2m5x6a4b7c2","name":"host-a","address":"10.0.0.1:7480","version":"0.1.0",
        "state":"alive","enabled":true,"is_leader":true,"last_seen":"2026-01-31T12:00:00Z",
        "runtime":{"kind":"docker","version":"28.1","available":true,"message":null},
        "resources":{
          "cores":{"physical":6,"override":12,"effective":12,"allocated":5,"available":7,"utilized":4.2,"utilized_at":"2026-01-31T12:00:00Z"},
          "memory_bytes":{"physical":6442450944,"override":0,"effective":6442450944,"allocated":5368709120,"available":1073741824,"utilized":null,"utilized_at":null},
          "gpus":{"physical":1,"override":10,"effective":10,"allocated":3,"available":7,"utilized":null,"utilized_at":null}},
        "disk":{"path":"/var/lib/docker","total_bytes":107374182400,"free_bytes":53687091200},
        "swap":{"total_bytes":0,"used_bytes":0},"load":[0.5,0.25,0.1],
        "gpus":[{"uuid":"GPU-1","index":0,"node":"host-a","model":"L4","memory_total_bytes":25769803776,
          "memory_used_bytes":1073741824,"utilization_percent":37.0,"temperature_celsius":41.0,"power_watts":30.0,
          "health":"ok","slots":10,"slots_used":3,"cordoned":false}],
        "sessions":2,
        "settings":{"enabled":true,"prune":"normal","cores_override":12,"memory_override_bytes":0,"gpus_override":10,
          "gpu_sharing":"same_user","labels":{"rack":"3"}},
        "declared_settings":["cores_override"],
        "drain":null,
        "conditions":[{"kind":"dev_figures","message":"cores are not measured","since":"2026-01-31T11:00:00Z"}]}"#;
    serde_json::from_str(json).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_show_what_is_allocated_of_what_they_offer() {
        let leader = example();
        let mut other = Node { name: "b".parse().unwrap(), is_leader: false, enabled: false, ..example() };
        other.resources.gpus =
            Figures { physical: Some(0), override_: 0, effective: 0, allocated: 0, ..other.resources.gpus };
        other.conditions.clear();
        let expected = "\
NAME       STATE   ACCEPTS    CORES     MEMORY           GPUS      SESSIONS   VERSION   CONDITIONS
host-a *   alive   yes        5 of 12   5 GiB of 6 GiB   3 of 10   2          0.1.0     dev_figures
b          alive   disabled   5 of 12   5 GiB of 6 GiB   -         2          0.1.0     -";
        assert_eq!(describe(&[leader, other], &Terminal::PLAIN), expected);
    }
}
