//! `ostler status`: the node that answers, and its cluster.

use clap::Args;
use serde::Deserialize;

use crate::types::{Name, NodeId, NodeState, RuntimeStatus};

use super::Context;
use super::failure::Failure;
use super::route::Route;
use super::table::{NONE, fields, one_line, or_none};
use super::terminal::Terminal;

/// Show the node that answers, its runtime, its cluster and the leader.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {}

/// `GET /v1/status`
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) node: StatusNode,
    pub(super) cluster: StatusCluster,
}

#[derive(Debug, Deserialize)]
pub(super) struct StatusNode {
    pub(super) id: NodeId,
    pub(super) name: Name,
    pub(super) version: String,
    pub(super) runtime: RuntimeStatus,
    pub(super) state: NodeState,
    /// The agent was started with `--dev`.
    #[serde(default)]
    pub(super) dev: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct StatusCluster {
    pub(super) name: Name,
    pub(super) mode: String,
    /// How many nodes are known.
    pub(super) nodes: u64,
    pub(super) leader: Option<Leader>,
    pub(super) term: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Leader {
    pub(super) name: Name,
}

pub(super) async fn run(context: &Context) -> Result<(), Failure> {
    let body = context.client()?.get(Route::new(&["status"])).await?;
    context.out.answer(&body, |status| describe(status, &context.out.terminal))
}

/// The status as text.
pub(super) fn describe(status: &Status, terminal: &Terminal) -> String {
    let Status { node, cluster } = status;
    let leader = or_none(cluster.leader.as_ref().map(|leader| &leader.name));
    let leader = if leader == NONE { terminal.red("none") } else { leader };
    let nodes = if cluster.nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", cluster.nodes) };
    let mut text = fields(&[
        ("node", format!("{} ({}), {}", node.name, node.id, node.state)),
        ("version", node.version.clone()),
        ("runtime", describe_runtime(&node.runtime, terminal)),
        ("cluster", format!("{}, {nodes}, {} mode", cluster.name, one_line(&cluster.mode))),
        ("leader", format!("{leader}, term {}", cluster.term)),
    ]);
    if node.dev {
        let what = "This node runs with --dev: its figures may come from [dev] instead of the hardware, and its sessions \
                    may run outside containers.";
        text.push_str(&format!("\n  {}", terminal.red(what)));
    }
    text
}

/// The runtime in one line: `docker 28.1`, or why it is not available.
pub(super) fn describe_runtime(runtime: &RuntimeStatus, terminal: &Terminal) -> String {
    let version = runtime.version.as_ref().map(|version| format!(" {}", one_line(version))).unwrap_or_default();
    let message = runtime.message.as_ref().map(|message| format!(": {}", one_line(message))).unwrap_or_default();
    if runtime.available {
        format!("{}{version}{message}", runtime.kind)
    } else {
        terminal.red(&format!("{}{version}, not available{message}", runtime.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_short_block() {
        let json = r#"{"node":{"id":"k3f7q2m5x6a4b7c2","name":"a","version":"0.1.0","state":"alive","dev":true,
            "runtime":{"kind":"docker","version":"28.1","available":false,"message":"no\nanswer"}},
            "cluster":{"name":"default","mode":"available","nodes":1,"leader":null,"term":4}}"#;
        let status: Status = serde_json::from_str(json).unwrap();
        let expected = "  \
  node     a (k3f7q2m5x6a4b7c2), alive
  version  0.1.0
  runtime  docker 28.1, not available: no answer
  cluster  default, 1 node, available mode
  leader   none, term 4
  This node runs with --dev: its figures may come from [dev] instead of the hardware, and its sessions may run outside containers.";
        assert_eq!(describe(&status, &Terminal::PLAIN), expected);
    }
}
