//! The agent reads its configuration and the files that it names again, without a restart.

use std::fs;

use serde_json::{Value, json};

use crate::support::agent::{Agent, until};
use crate::support::cluster::{Cluster, write_token};

/// A self-signed certificate of `localhost` for tests, and its key.
const CERT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/sample/cert.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/sample/key.pem");

/// Writes the agent's configuration with these sections changed.
fn configure(agent: &Agent, changes: &str) {
    let mut all: toml::Table = toml::from_str(&fs::read_to_string(agent.config_file()).unwrap()).unwrap();
    let changes: toml::Table = toml::from_str(changes).unwrap();
    for (section, keys) in changes {
        let section = all.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
        section.extend(keys.as_table().unwrap().clone());
    }
    agent.configure(&toml::to_string(&all).unwrap());
}

fn refresh(agent: &Agent) -> Value {
    agent.post("/v1/nodes/self/refresh", &Value::Null).expect(200)
}

fn has(keys: &Value, key: &str) -> bool {
    keys.as_array().unwrap().iter().any(|named| named == key)
}

#[test]
fn the_answer_names_what_was_applied_what_needs_a_restart_and_what_is_unchanged() {
    let agent = Agent::start("log = { level = 'warn,ostler::daemon=info' }");
    agent.workspace("w", "sleep 1000", &json!({"cores": 0.1}));
    agent.patch("/v1/nodes/self", &json!({"prune": "off"})).expect(200);
    configure(
        &agent,
        "limits = { max_sessions_per_node = 1, max_sessions_per_user = 1 }\n\
         settings = { prune = 'aggressive' }\n\
         log = { level = 'info', format = 'json' }\n\
         http = { allowed_hosts = ['desk.example.com'] }",
    );

    let refreshed = refresh(&agent);
    let applied = json!([
        "http.allowed_hosts",
        "settings.prune",
        "limits.max_sessions_per_user",
        "limits.max_sessions_per_node",
        "log.level"
    ]);
    assert_eq!(refreshed["applied"], applied);
    assert_eq!(refreshed["needs_restart"], json!(["log.format"]));
    assert!(has(&refreshed["unchanged"], "node.name") && has(&refreshed["unchanged"], "cluster.seeds"));

    // Each is in force.
    until("the setting is declared", || agent.node()["settings"]["prune"] == "aggressive");
    agent.patch("/v1/nodes/self", &json!({"prune": "off"})).refused(409, "declared_setting");
    agent.running("w", "bob");
    until("the limit of the node", || agent.create("w", "alice").text().contains("session_limit"));
    until("the level of the log", || agent.log().contains("kind=session_created"));
    let token = agent.token("read");
    let named = crate::support::http::Request::new("GET", "/v1/status").header("host", "desk.example.com");
    assert_eq!(agent.tcp(Some(&token)).send(&named).status, 200);

    // The same again changes nothing; the command line shows it.
    let again = refresh(&agent);
    assert_eq!((&again["applied"], &again["needs_restart"]), (&json!([]), &json!(["log.format"])));
    let shown = agent.cli(&["node", "refresh"]).ok();
    assert!(shown.contains("needs restart  log.format") && shown.contains("node.name"), "{shown}");
    configure(&agent, "settings = { prune = 'normal' }");
    let shown = agent.cli(&["node", "refresh", "one"]).ok();
    assert!(shown.contains("one\n  applied        settings.prune"), "{shown}");
    assert!(agent.log().contains("the configuration was refreshed"), "{}", agent.log());
}

#[test]
fn a_file_that_is_not_valid_changes_nothing_and_is_the_answer() {
    let agent = Agent::start("");
    let valid = fs::read_to_string(agent.config_file()).unwrap();
    agent.configure(&format!(
        "{}\n[limits2]\nkeep_ended = 3\n",
        valid.replace("min_free_disk = 0", "keep_ended = '1h'")
    ));
    let refused = agent.post("/v1/nodes/self/refresh", &Value::Null).refused(422, "invalid");
    assert!(refused.to_string().contains("limits2"), "{refused}");
    let error = agent.cli(&["node", "refresh"]).failed(3);
    assert!(error.contains("limits2"), "{error}");
    agent.sighup();
    until("the log says why", || {
        agent.log().lines().any(|line| line.contains("nothing changed") && line.contains("by=node "))
    });
    agent.configure(&valid);
    assert_eq!(refresh(&agent)["applied"], json!([]), "what was valid in the file was not applied either");
}

#[test]
fn a_new_certificate_is_served_after_sighup_and_a_broken_one_is_not() {
    let files = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| files.path().join(name));
    fs::copy(CERT, &cert).unwrap();
    fs::copy(KEY, &key).unwrap();
    let http =
        format!("http = {{ listen = '0.0.0.0:0', tls_cert = '{}', tls_key = '{}' }}", cert.display(), key.display());
    let agent = Agent::start(&http);
    let token = agent.token("read");
    let url = format!("https://localhost:{}", agent.tcp_address().rsplit(':').next().unwrap());
    let trusts = |ca: &str| {
        agent.cli_with(&["status", "--node", &url, "--ca", ca], &[("OSTLER_API_TOKEN", &token)], "").code == 0
    };
    assert!(trusts(CERT));

    // A key that does not belong to the certificate.
    let new = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let new_cert = files.path().join("new.pem").display().to_string();
    fs::write(&new_cert, pem("CERTIFICATE", new.cert.der())).unwrap();
    fs::write(&key, pem("PRIVATE KEY", &new.signing_key.serialize_der())).unwrap();
    let refused = agent.post("/v1/nodes/self/refresh", &Value::Null).refused(422, "invalid");
    assert!(refused.to_string().contains("cert.pem"), "{refused}");
    assert!(trusts(CERT), "the certificate in force stays");

    fs::copy(&new_cert, &cert).unwrap();
    agent.sighup();
    until("the new certificate is served", || trusts(&new_cert));
    assert!(!trusts(CERT));
    assert!(agent.log().contains("http.tls_cert, http.tls_key"), "{}", agent.log());
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", data_encoding::BASE64.encode(der))
}

#[test]
fn any_node_is_refreshed_from_any_node_and_addresses_follow() {
    let mut cluster = Cluster::prepare(2, "");
    let seeds = |cluster: &Cluster, node: usize, seeds: &[String]| {
        let list: Vec<String> = seeds.iter().map(|seed| format!("'{seed}'")).collect();
        configure(&cluster.nodes[node], &format!("cluster = {{ seeds = [{}] }}", list.join(", ")));
    };
    seeds(&cluster, 0, &[]);
    seeds(&cluster, 1, &[]);
    cluster.nodes.iter_mut().for_each(Agent::up);
    assert_eq!(cluster.alive(0).len(), 1, "they do not know each other");
    seeds(&cluster, 0, &[cluster.mesh(1)]);
    assert_eq!(refresh(&cluster.nodes[0])["applied"], json!(["cluster.seeds"]));
    cluster.settled();

    configure(&cluster.nodes[1], "limits = { keep_ended = '2h' }");
    let shown = cluster.nodes[0].cli(&["node", "refresh", "n1"]).ok();
    assert!(shown.contains("applied        limits.keep_ended"), "{shown}");
    let by = cluster.nodes[1].log();
    assert!(by.lines().any(|line| line.contains("refreshed") && line.contains("uid ")), "{by}");

    write_token(&cluster.token_file(), "Zt8mPq1rLc4vXs7kWy0hBd3fNg6jAe9uTo2iRb5nQxE");
    for _ in 0..2 {
        assert_eq!(refresh(&cluster.nodes[0])["needs_restart"], json!(["cluster.token_file"]));
    }
    write_token(&cluster.token_file(), crate::support::cluster::TOKEN);
    assert_eq!(refresh(&cluster.nodes[0])["needs_restart"], json!([]));
}

#[test]
fn only_an_administrator_may_refresh() {
    let agent = Agent::start("");
    let operate = agent.token("operate");
    agent.tcp(Some(&operate)).post("/v1/nodes/self/refresh", &Value::Null).refused(403, "forbidden");
}
