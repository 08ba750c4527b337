//! Debian's Prometheus as a child process that scrapes agents, with the rules that ostler ships.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::agent::until;
use super::cluster::free_port;
use super::http::{Address, Client, Request};
use super::proxy::find;

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/ostler.rules.yml");

/// A running Prometheus. Dropping it ends it.
pub(crate) struct Prometheus {
    directory: TempDir,
    child: Child,
    client: Client,
}

impl Prometheus {
    /// `None` after the note of a skip if the machine lacks it. `targets`: addresses as `host:port`.
    pub(crate) fn start(test: &str, targets: &[String]) -> Option<Self> {
        let program = find(test, "prometheus")?;
        let directory = tempfile::tempdir().unwrap();
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{RULES}']\n\
             scrape_configs: [{{job_name: ostler, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, configuration).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Self { directory, child, client: Client { address: Address::Tcp(address), token: None } };
        until("Prometheus serves", || {
            prometheus.client.try_send(&Request::new("GET", "/-/ready")).is_ok_and(|answer| answer.status == 200)
        });
        Some(prometheus)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.client.get(path).expect(200)["data"].clone()
    }

    /// The values of a query, each with its labels.
    #[track_caller]
    pub(crate) fn query(&self, query: &str) -> Vec<Value> {
        let body = format!("query={}", percent_encoded(query));
        let request = Request::new("POST", "/api/v1/query").text("application/x-www-form-urlencoded", &body);
        let answer = self.client.send(&request);
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        answer.json()["data"]["result"].as_array().unwrap().clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("Prometheus's log:\n{}", fs::read_to_string(self.directory.path().join("log")).unwrap());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
        encoded
    })
}

/// Debian's promtool; `None` after the note of a skip if the machine lacks it.
pub(crate) fn promtool(test: &str) -> Option<PathBuf> {
    find(test, "prometheus").map(|program| program.with_file_name("promtool"))
}

/// Has promtool check the text of a scrape.
#[track_caller]
pub(crate) fn check_metrics(promtool: &PathBuf, text: &str) {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
