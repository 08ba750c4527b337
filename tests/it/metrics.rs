//! Metrics in the format that the scraper asks for.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::http::{Address, Request};
use crate::support::nvml::Fixture;
use crate::support::prometheus::{Prometheus, check_metrics, promtool};

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[test]
fn metrics_are_in_the_text_format_of_prometheus_unless_the_request_prefers_openmetrics() {
    let agent = Agent::start("http = { status_listen = '127.0.0.1:0' }");
    let token = agent.token("read");
    for client in [agent.client(), agent.tcp(Some(&token)), agent.status_client()] {
        for (accept, content_type) in [
            (None, PROMETHEUS),
            (Some("*/*"), PROMETHEUS),
            (Some("text/plain"), PROMETHEUS),
            (Some("application/json"), PROMETHEUS),
            (Some("application/openmetrics-text;version=1.0.0;q=0.1,text/plain;version=0.0.4;q=0.2"), PROMETHEUS),
            (Some("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.1"), OPEN_METRICS),
        ] {
            let request = Request::new("GET", "/metrics");
            let answer =
                client.send(&accept.into_iter().fold(request, |request, accept| request.header("accept", accept)));
            assert_eq!(answer.status, 200, "{accept:?}: {}", answer.text());
            assert_eq!(answer.header("content-type"), Some(content_type), "{accept:?}");
            assert_eq!(answer.header("vary"), Some("accept"));
            assert_eq!(answer.text().ends_with("# EOF\n"), content_type == OPEN_METRICS, "{accept:?}");
            assert!(answer.text().contains("\nostler_node_cores_physical{node=\"one\"} "), "{}", answer.text());
        }
    }
}

#[test]
fn the_leader_is_marked() {
    let agent = Agent::start("");
    until("it leads", || agent.get("/metrics").text().contains("\nostler_leader_known{node=\"one\"} 1.0\n"));
    let text = agent.get("/metrics").text();
    assert!(text.contains("\nostler_node_leader{node=\"one\"} 1.0\n"), "{text}");
}

/// Of each series its name and labels.
fn series(agent: &Agent) -> BTreeSet<String> {
    let text = agent.get("/metrics").text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[track_caller]
fn figure(agent: &Agent, series: &str) -> f64 {
    let text = agent.get("/metrics").text();
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().unwrap()
}

/// How many series a node may have: a Prometheus with the default limits takes a thousand such nodes.
const MAX_SERIES: usize = 900;

#[test]
fn sessions_are_counted_and_no_label_grows_with_them() {
    const SESSIONS: usize = 300;
    let agent = Agent::start("dev = { physical_cores = 64, physical_memory = '64GiB' }");
    agent.workspace("short", "exit 3", &json!({"cores": 0.1}));
    agent.workspace("huge", "exit 0", &json!({"cores": 100}));
    let ended = |sessions: usize| {
        until("they have ended", || {
            figure(&agent, "ostler_sessions_ended_total{node=\"one\",reason=\"exited\"}") >= sessions as f64
        });
    };
    agent.workspace("long", "exec sleep 600", &json!({"cores": 0.1}));
    agent.running("long", "u0");
    agent.create("short", "u0").expect(202);
    agent.create("huge", "u0").refused(422, "exceeds_physical");
    agent.sessions(true);
    ended(1);
    // It takes two samples of the host.
    until("the use of the host is known", || series(&agent).contains("ostler_node_cores_used{node=\"one\"}"));
    let before = series(&agent);
    assert!(before.len() <= MAX_SERIES, "{}", before.len());
    for i in 1..SESSIONS {
        agent.create("short", &format!("u{i}")).expect(202);
    }
    ended(SESSIONS);
    agent.sessions(true);
    let after = series(&agent);
    let more: Vec<_> = after.difference(&before).collect();
    assert!(more.is_empty(), "{more:?}");
    let (failed, all) = (SESSIONS as f64, SESSIONS as f64 + 1.0);
    for (series, count) in [
        ("ostler_sessions_created_total{node=\"one\"}", all),
        ("ostler_sessions_failed_total{node=\"one\"}", failed),
        ("ostler_placements_total{node=\"one\",outcome=\"placed\"}", all),
        ("ostler_placements_total{node=\"one\",outcome=\"refused\"}", 1.0),
        ("ostler_refusals_total{node=\"one\",reason=\"exceeds_physical\"}", 1.0),
        ("ostler_offers_total{node=\"one\",outcome=\"accepted\"}", all),
        ("ostler_placement_duration_seconds_count{node=\"one\"}", all),
        ("ostler_events_total{node=\"one\",kind=\"session_created\"}", all),
        ("ostler_elections_total{node=\"one\",outcome=\"won\"}", 1.0),
    ] {
        assert_eq!(figure(&agent, series), count, "{series}");
    }
    // Most end before they are seen to run.
    assert!(figure(&agent, "ostler_session_start_duration_seconds_count{node=\"one\",pulled=\"false\"}") >= 1.0);
    // What clients make up is no label.
    for method in ["BREW", "DELETE"] {
        assert_eq!(agent.client().send(&Request::new(method, "/v1/status")).status, 405, "{method}");
    }
    assert_eq!(agent.get("/v1/coffee").status, 404);
    let after = series(&agent);
    let more: Vec<_> = after.difference(&before).collect();
    assert!(more.is_empty(), "{more:?}");
    assert!(figure(&agent, "ostler_journal_commit_duration_seconds_count{node=\"one\"}") >= all);
}

/// The board of Grafana: every query of it, with its variables filled in.
fn queries_of_the_board() -> Vec<String> {
    let board: Value = serde_json::from_str(include_str!("../../packaging/grafana/ostler.json")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().unwrap().replace("$job", "ostler").replace("$node", ".*")).collect()
}

/// The names of metrics in a query.
fn names_in(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ostler_") || word.starts_with("process_")).map(str::to_owned).collect()
}

#[test]
fn prometheus_scrapes_a_cluster_and_answers_every_query_of_the_board_and_of_the_rules() {
    let test = "prometheus_scrapes_a_cluster_and_answers_every_query_of_the_board_and_of_the_rules";
    let Some(promtool) = promtool(test) else { return };
    let fixture = Fixture::new(1);
    let cluster = Cluster::start(
        3,
        &format!(
            "http = {{ status_listen = '127.0.0.1:0' }}\ngpu = {{ nvml_library = '{}' }}",
            fixture.library().display()
        ),
    );
    let agent = &cluster.nodes[0];
    agent.workspace("shell", "exec sleep 600", &json!({}));
    agent.workspace("huge", "exec sleep 600", &json!({"cores": 100_000}));
    let session = agent.running("shell", "alice");
    agent.create("huge", "alice").refused(422, "exceeds_physical");
    let id = session["id"].as_str().unwrap();
    agent.post(&format!("/v1/sessions/{id}/stop?wait=stopped"), &json!({})).expect(202);
    cluster.nodes.iter().for_each(|node| check_metrics(&promtool, &node.get("/metrics").text()));

    let targets = cluster.nodes.iter().map(|node| match node.status_client().address {
        Address::Tcp(address) => address,
        Address::Socket(path) => panic!("{path:?}"),
    });
    let Some(prometheus) = Prometheus::start(test, &targets.collect::<Vec<_>>()) else { return };
    until("every node was scraped", || {
        let targets = prometheus.get("/api/v1/targets?state=active");
        let targets = targets["activeTargets"].as_array().unwrap();
        targets.iter().for_each(|target| assert_eq!(target["lastError"], "", "{target}"));
        targets.len() == 3 && targets.iter().all(|target| target["health"] == "up")
    });
    // A rate needs two scrapes.
    until("rates are known", || !prometheus.query("rate(process_cpu_seconds_total[1m])").is_empty());
    let absent: BTreeSet<String> = queries_of_the_board()
        .iter()
        .flat_map(|query| {
            prometheus.query(query);
            names_in(query)
        })
        .filter(|name| prometheus.query(name).is_empty())
        .collect();
    // The process runtime has no images; `docs/metrics.md`, which is made from the code, has their metric.
    assert_eq!(Vec::from_iter(absent), ["ostler_image_bytes", "ostler_image_pulls_total"]);
    let documented = include_str!("../../docs/metrics.md");
    assert!(documented.contains("| `ostler_image_bytes` |") && documented.contains("| `ostler_image_pulls_total` |"));
    until("the rules were evaluated", || {
        let groups = prometheus.get("/api/v1/rules")["groups"].as_array().unwrap().clone();
        let rules: Vec<Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        rules.iter().for_each(|rule| assert!(rule.get("lastError").is_none(), "{rule}"));
        rules.len() > 20 && rules.iter().all(|rule| rule["health"] == "ok")
    });
    let share = prometheus.query("ostler:cluster_cores_allocated:ratio");
    assert_eq!(share.len(), 1, "{share:?}");
    let refused = prometheus.query("sum(ostler_refusals_total{reason=\"exceeds_physical\"})");
    assert_eq!(refused[0]["value"][1], "1", "the leader counts a refusal, and once");
}

#[test]
fn the_shipped_alerts_fire_when_they_should() {
    let Some(promtool) = promtool("the_shipped_alerts_fire_when_they_should") else { return };
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus");
    for arguments in [["check", "rules", "ostler.rules.yml"], ["test", "rules", "ostler.rules.test.yml"]] {
        let output = Command::new(&promtool).args(arguments).current_dir(directory).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    // The metrics that the rules name are those of the code.
    let documented = include_str!("../../docs/metrics.md");
    for name in names_in(include_str!("../../packaging/prometheus/ostler.rules.yml")) {
        let base = name.strip_suffix("_bucket").unwrap_or(&name);
        assert!(documented.contains(&format!("| `{base}` |")), "{name}");
    }
}
