//! `ostler session explain`, and the plan of a dry run: the verdict of every node.

use clap::Args;

use crate::cli::Context;
use crate::cli::failure::{Failure, reason_cells};
use crate::cli::route::Route;
use crate::cli::table::{NONE, age, or_none, table};
use crate::types::{Explanation, NodeVerdict, Plan, Timestamp};

/// Show why a session is on its node: the verdict of every node when it was placed.
#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainArgs {
    /// A session's id or id prefix.
    #[arg(value_name = "ID")]
    id: String,
}

pub(super) async fn run(args: &ExplainArgs, context: &Context) -> Result<(), Failure> {
    let body = context.client()?.get(Route::new(&["sessions", &args.id, "explain"])).await?;
    context.out.answer(&body, |explanation| describe(explanation, context.out.now))
}

fn describe(explanation: &Explanation, now: Timestamp) -> String {
    let Explanation { session, node, attempt, decided_at, nodes } = explanation;
    let when = age(*decided_at, now);
    format!("Session {session} was placed on {node} {when} ago, at attempt {attempt}.\n{}", verdicts(nodes))
}

/// The node that would be offered the session first, and every node's verdict.
pub(super) fn describe_plan(plan: &Plan) -> String {
    let answer = match &plan.node {
        Some(node) => format!("The session would be offered to {node} first."),
        None => "No node would admit the session.".to_owned(),
    };
    if plan.nodes.is_empty() { answer } else { format!("{answer}\n{}", verdicts(&plan.nodes)) }
}

/// The nodes that would admit the session, in their order, then the others.
fn verdicts(nodes: &[NodeVerdict]) -> String {
    let mut nodes: Vec<&NodeVerdict> = nodes.iter().collect();
    nodes.sort_by_key(|verdict| (verdict.rank.unwrap_or(u32::MAX), &verdict.node));
    let rows = nodes.into_iter().map(|verdict| {
        let figures = match &verdict.refusal {
            Some(reason) => reason_cells(reason),
            None => [NONE; 5].map(str::to_owned),
        };
        let mut row = vec![verdict.node.to_string(), or_none(verdict.rank)];
        row.extend(figures);
        row
    });
    table(&["NODE", "RANK", "REFUSAL", "DIMENSION", "REQUESTED", "AVAILABLE", "PHYSICAL"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Dimension, NodeReason, Reason};

    fn nodes() -> Vec<NodeVerdict> {
        let refusal = NodeReason {
            node: "a".parse().unwrap(),
            reason: Reason::ExceedsPhysical,
            dimension: Some(Dimension::Cores),
            requested: Some(8.5),
            available: Some(2.0),
            physical: Some(6.0),
            message: None,
        };
        vec![
            NodeVerdict { node: "a".parse().unwrap(), rank: None, refusal: Some(refusal) },
            NodeVerdict { node: "c".parse().unwrap(), rank: Some(2), refusal: None },
            NodeVerdict { node: "b".parse().unwrap(), rank: Some(1), refusal: None },
        ]
    }

    #[test]
    fn a_placement_is_explained_node_by_node() {
        let explanation = Explanation {
            session: "mfrggzdfmztwq2lknnwg23tpob".parse().unwrap(),
            node: "b".parse().unwrap(),
            attempt: 1,
            decided_at: Timestamp::from_millis(0),
            nodes: nodes(),
        };
        let expected = "\
Session mfrggzdfmztwq2lknnwg23tpob was placed on b 5s ago, at attempt 1.
NODE   RANK   REFUSAL            DIMENSION   REQUESTED   AVAILABLE   PHYSICAL
b      1      -                  -           -           -           -
c      2      -                  -           -           -           -
a      -      exceeds_physical   cores       8.5         2           6";
        assert_eq!(describe(&explanation, Timestamp::from_millis(5000)), expected);
    }

    #[test]
    fn a_plan_says_where_the_session_would_go() {
        let plan = Plan { node: Some("b".parse().unwrap()), nodes: nodes() };
        assert!(describe_plan(&plan).starts_with("The session would be offered to b first.\nNODE"));
        assert_eq!(describe_plan(&Plan { node: None, nodes: Vec::new() }), "No node would admit the session.");
    }
}
