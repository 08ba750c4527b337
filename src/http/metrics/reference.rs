//! `docs/metrics.md`, made from a scrape in which everything is known.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::sync::watch;

use super::requests::Requests;
use super::sample::{figures, known_node};
use crate::clock::Clock;
use crate::identity::{Credentials, Token};
use crate::metrics::{Format, Process, Scrape, Sources};
use crate::net::{Hello, Net};
use crate::sessions::Measured;
use crate::types::{ClusterMode, Name, NodeId};
use crate::{election, events, history, images, placement, sessions, wire};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
const HEAD: &str = "\
# Metrics

Each agent serves its metrics at `/metrics`, in the text format of Prometheus (0.0.4), or as OpenMetrics if the header
`Accept` prefers it. An agent tells of itself only: scrape every node. `http.status_listen` serves them without a token.

Every metric has the label `node`. A figure that is not known is absent. Counters begin at 0 when the agent starts. No
label has a value that grows with sessions, users or images. `process_*` are of the agent, under the names that every
Prometheus client uses. This table is made from the code.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
";

const TOKEN: &str = "hT2vq0Kx9sLwZc4bNfYp7RmDgUe1JaXo5iVtEk8ySHQ";

/// The mesh of a node that is alone.
fn mesh() -> Net {
    let (cluster, node): (Name, NodeId) = ("lab".parse().unwrap(), "aabb222222222222".parse().unwrap());
    let credentials =
        Credentials::new(&Token::parse(TOKEN.as_bytes()).unwrap(), &cluster, &node, wire::PROTOCOL).unwrap();
    let hello = Hello {
        cluster,
        node,
        name: "one".parse().unwrap(),
        incarnation: 1,
        version: String::new(),
        mode: ClusterMode::default(),
    };
    let (credentials, directory) = (watch::channel(Arc::new(credentials)).1, watch::channel(Arc::default()).1);
    let clock = Clock::system().unwrap();
    Net::bind("127.0.0.1:0".parse().unwrap(), hello, &[0; 64], credentials, clock, directory).unwrap()
}

fn scrape() -> Scrape {
    let (sessions, requests) = (sessions::Metrics::default(), Requests::default());
    sessions.count(Measured::Started { took: Duration::from_secs(1), pulled: true });
    requests.answered(&Method::GET, "/v1/status", StatusCode::OK, Duration::from_millis(1));
    let mut sources = Sources::default();
    sources.add(figures(known_node()));
    sources.add(sessions);
    sources.add(placement::Metrics::default());
    sources.add(election::Metrics::default());
    sources.add(images::Metrics::default());
    sources.add(mesh());
    sources.add(requests);
    sources.add(events::Counts::default());
    sources.add(history::Metrics::default());
    let mut scrape = Scrape::of("one");
    scrape.add(&sources);
    scrape.add_common(&Process);
    scrape
}

/// Of each metric its type, its labels and its meaning.
fn described(text: &str) -> BTreeMap<&str, (&str, Vec<&str>, &str)> {
    let after = |kind: &'static str| {
        let lines = text.lines().filter_map(move |line| line.strip_prefix(kind));
        lines.filter_map(|line| line.split_once(' ')).collect::<BTreeMap<_, _>>()
    };
    let (helps, types) = (after("# HELP "), after("# TYPE "));
    let labels = |name: &str, kind: &str| {
        let series = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let is_of = |line: &&str| line.split(['{', ' ']).next() == Some(&series);
        let line = text.lines().find(is_of).unwrap_or_else(|| panic!("{name} has no value"));
        let inside = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inside, _)| inside);
        let names = inside.split(',').filter_map(|pair| pair.split_once('=').map(|(label, _)| label));
        names.filter(|label| *label != "node").collect::<Vec<_>>()
    };

    helps.iter().map(|(name, help)| (*name, (types[name], labels(name, types[name]), *help))).collect()
}

/// Dashboards and alerts use the names: a release freezes them.
#[tokio::test]
async fn the_page_of_metrics_has_every_metric() {
    let text = scrape().encode(Format::Prometheus).unwrap();
    let mut page = HEAD.to_owned();
    for (name, (kind, labels, help)) in described(&text) {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
    }
    if std::env::var_os("OSTLER_REWRITE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    assert_eq!(page, std::fs::read_to_string(PAGE).unwrap(), "OSTLER_REWRITE=1 rewrites the page");
}

#[tokio::test]
async fn both_formats_have_the_same_metrics() {
    let scrape = scrape();
    let names = |format, kind: &'static str| -> Vec<String> {
        let text = scrape.encode(format).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind)?.split(' ').next().map(str::to_owned));
        lines.map(|name| name.trim_end_matches("_total").to_owned()).collect()
    };
    for kind in ["# HELP ", "# TYPE "] {
        let prometheus = names(Format::Prometheus, kind);
        assert_eq!(names(Format::OpenMetrics, kind), prometheus);
        assert!(prometheus.len() > 70, "{prometheus:?}");
    }
    assert!(scrape.encode(Format::OpenMetrics).unwrap().ends_with("# EOF\n"));
}
