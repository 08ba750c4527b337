//! History: recorded by real agents, read through any node and over restarts.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::small_disk::SmallDisk;

fn history(agent: &Agent, path: &str) -> Value {
    agent.get(path).expect(200)
}

/// The known points of the first series.
fn known(history: &Value) -> usize {
    let points = history["series"][0]["average"].as_array().unwrap();
    points.iter().filter(|point| !point.is_null()).count()
}

fn until_rows(agent: &Agent, path: &str, rows: usize) -> Value {
    let mut last = Value::Null;
    until("rows are recorded", || {
        last = history(agent, path);
        known(&last) >= rows
    });
    last
}

const OWN: &str = "/v1/nodes/self/history?since=-10m&step=10s&metric=memory.utilized,cores.effective";

#[test]
fn rows_outlive_kill_9_and_the_time_without_an_agent_is_a_gap() {
    let mut agent = Agent::start("");
    let before = until_rows(&agent, OWN, 1);
    let series = &before["series"];
    assert_eq!((&series[0]["metric"], &series[0]["unit"]), (&"memory.utilized".into(), &"bytes".into()));
    assert!(series[0]["average"].as_array().unwrap().iter().flat_map(Value::as_f64).all(|used| used > 1e6), "{before}");
    agent.kill9();
    let killed = SystemTime::now();
    until("more than one row is missing", || killed.elapsed().is_ok_and(|since| since > Duration::from_secs(21)));
    agent.up();
    let after = until_rows(&agent, OWN, known(&before) + 1);
    let gaps = after["gaps"].as_array().unwrap();
    // The first one is the time before the first start.
    assert_eq!(gaps.len(), 2, "{after}");
    assert!(gaps.iter().all(|gap| gap["reason"] == "agent_stopped"), "{after}");
    let drawn = agent.cli(&["node", "history", "self", "--since", "10m"]).ok();
    assert!(drawn.contains("memory.utilized: ") && drawn.contains("the agent did not run."), "{drawn}");
    let cluster = until_rows(&agent, "/v1/history?since=-10m&metric=nodes.alive", 1);
    assert_eq!(cluster["node"], "one");
    assert!(agent.cli(&["history", "--metric", "nodes.known"]).ok().contains("nodes.known: "));
}

#[test]
fn what_is_out_of_bounds_is_refused_by_its_field() {
    let agent = Agent::start("");
    for (query, field) in [
        ("since=-24h&step=10s", "step: "),
        ("since=-7d&step=60s", "step: "),
        ("metric=cpu", "metric: `cpu` is not a metric"),
        ("since=-1h&until=-2h", "since: "),
        ("gpu=GPU-9", "gpu: `GPU-9` is not the UUID"),
    ] {
        let refused = agent.get(&format!("/v1/nodes/self/history?{query}")).refused(422, "invalid");
        assert!(refused["message"].as_str().unwrap().starts_with(field), "{query}: {refused}");
    }
    for query in ["since=yesterday", "step=x", "until=6h", "step=1ms", "bogus=1"] {
        agent.get(&format!("/v1/nodes/self/history?{query}")).refused(400, "invalid");
        agent.get(&format!("/v1/history?{query}")).refused(400, "invalid");
    }
    agent.get("/v1/history?gpu=GPU-1").refused(400, "invalid");
}

#[test]
fn any_node_gives_the_history_of_any_node_while_that_node_is_there() {
    let mut cluster = Cluster::start(3, "");
    let of_n2 = "/v1/nodes/n2/history?since=-10m&step=10s";
    let found = until_rows(&cluster.nodes[0], of_n2, 1);
    assert_eq!((&found["node"], found["series"].as_array().unwrap().len()), (&"n2".into(), 6));
    let totals = until_rows(&cluster.nodes[1], "/v1/history?since=-10m&metric=nodes.alive,nodes.known", 1);
    let last =
        |i: usize| totals["series"][i]["average"].as_array().unwrap().iter().filter_map(Value::as_f64).next_back();
    assert!(last(0).is_some_and(|alive| (1.0..=3.0).contains(&alive)), "{totals}");
    cluster.nodes[2].kill9();
    let answer = || cluster.nodes[0].get(of_n2);
    until("the node is known to be away", || answer().text().contains("node_unreachable"));
    answer().refused(503, "node_unreachable");
}

#[test]
fn a_history_that_cannot_be_written_is_a_condition_and_stops_nothing() {
    let mut agent = Agent::prepare("");
    let directory = agent.data_dir().join("history");
    fs::create_dir_all(agent.data_dir()).unwrap();
    fs::write(&directory, "a file where the directory belongs").unwrap();
    agent.up();
    let raised = |agent: &Agent| {
        let node = agent.node();
        node["conditions"].as_array().unwrap().iter().any(|condition| condition["kind"] == "history_unwritable")
    };
    until("it is a condition", || raised(&agent));
    fs::remove_file(&directory).unwrap();
    until_rows(&agent, OWN, 1);
    until("it ends", || !raised(&agent));
}

#[test]
fn a_full_disk_loses_nothing_and_rows_go_on() {
    let name = "a_full_disk_loses_nothing_and_rows_go_on";
    let Some(disk) = SmallDisk::mount(name, "size=64m") else { return };
    let agent = Agent::start(&format!("node = {{ data_dir = '{}' }}", disk.path().display()));
    let before = known(&until_rows(&agent, OWN, 1));
    disk.fill();
    until_rows(&agent, OWN, before + 1);
}
