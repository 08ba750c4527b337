//! Registries that want credentials, limit pulls, fail, or stop in the middle.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::runtime::Images;
use ostler::runtime::docker::DockerRuntime;
use ostler::runtime::images::{Patience, PullCause, PullError, PullOptions};
use ostler::types::ImageReference;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{FOREVER, add, configuration, id};
use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::docker::{Lab, Registry, SOCKET, config, no_gpus, quietly};
use crate::support::engine_relay::{self, EngineRelay};
use crate::support::registry_relay::{Fault, RegistryRelay};

/// Bytes of a layer: enough to be cut in the middle.
const LAYER: u64 = 4 << 20;
/// In standard base64 it has characters that the URL-safe alphabet does not have.
const PASSWORD: &str = "?>~";
/// `PASSWORD`, as htpasswd writes it.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuqXkUefawJL7CWNUQlhoRZEVJCvq8mLa";
const LIMIT: &str = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;

/// Pulls with a runtime of its own.
async fn pull(lab: &Lab, host: &str, image: &str, patience: Patience) -> Result<Option<String>, PullError> {
    let config = ostler::runtime::docker::Config { host: host.to_owned(), ..config(&lab.cluster) };
    let runtime = DockerRuntime::new(config, no_gpus()).unwrap();
    let options = PullOptions { patience, ..PullOptions::default() };
    runtime.pull(&ImageReference::parse(image).unwrap(), &options, mpsc::channel(1).0).await
}

async fn cause(lab: &Lab, image: &str) -> PullCause {
    pull(lab, SOCKET, image, Patience::default()).await.unwrap_err().cause
}

/// Writes a file that only its owner can read.
fn write(file: &Path, text: &str, mode: u32) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// An agent whose file of credentials and helpers are in this directory.
struct Private {
    agent: Agent,
    file: PathBuf,
    image: String,
    users: u32,
}

impl Private {
    fn start(lab: &Lab, directory: &Path, image: String) -> Self {
        let file = directory.join("credentials.json");
        write(&file, "{}", 0o600);
        let images = format!("images = {{ registry_credentials = '{}' }}\n", file.display());
        let mut agent = Agent::prepare(&format!("{images}{}", configuration(lab, SOCKET)));
        agent.find_programs_in(directory);
        agent.up();
        add(&agent, lab, "private", FOREVER, &json!({"image": image}));
        Self { agent, file, image, users: 0 }
    }

    fn create(&mut self, credentials: &Value, mode: u32) -> String {
        write(&self.file, &credentials.to_string(), mode);
        self.users += 1;
        id(&self.agent.create("private", &format!("user{}", self.users)).expect(202))
    }

    /// A session runs with these credentials. The image is gone afterwards.
    fn runs_with(&mut self, credentials: &Value) {
        let session = self.create(credentials, 0o600);
        self.agent.until_state(&session, "running");
        self.agent.delete(&format!("/v1/sessions/{session}?wait=true&timeout=30s")).expect(200);
        quietly(&["rmi", "--force", &self.image]);
    }

    /// Why a session does not start with these credentials.
    fn fails_with(&mut self, credentials: &Value, mode: u32) -> String {
        let session = self.create(credentials, mode);
        let failed = self.agent.until_state(&session, "failed");
        assert_eq!(failed["end_reason"], "image_failed", "{failed}");
        failed["message"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_private_image_is_pulled_with_the_credentials_of_the_file_or_of_a_helper() {
    const TEST: &str = "a_private_image_is_pulled_with_the_credentials_of_the_file_or_of_a_helper";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(open) = Registry::start(TEST) else { return };
    let published = open.publish(&lab.cluster, 1 << 20);
    let guarded = open.guarded("alice", HASH);
    let image = guarded.reference(&lab.cluster);
    assert_ne!(image, published);
    let server = image.split('/').next().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-lab");
    let answer = json!({"ServerURL": server, "Username": "alice", "Secret": PASSWORD});
    write(&helper, &format!("#!/bin/sh\nread -r server\n[ \"$server\" = {server} ] && echo '{answer}'\n"), 0o755);
    let mut private = Private::start(&lab, directory.path(), image.clone());

    let message = private.fails_with(&json!({}), 0o600);
    assert!(message.contains("no basic auth credentials"), "{message}");
    let of = |password: &str| json!({"auths": {server.clone(): {"username": "alice", "password": password}}});
    let message = private.fails_with(&of("hush-hush"), 0o600);
    assert!(message.contains("unauthorized") && !message.contains("hush-hush"), "{message}");
    let message = private.fails_with(&of(PASSWORD), 0o644);
    assert!(message.ends_with(&format!("(mode 0644); run: chmod 600 {}", private.file.display())), "{message}");
    private.runs_with(&of(PASSWORD));
    private.runs_with(&json!({"auths": {server.clone(): {"auth": "YWxpY2U6Pz5+"}}}));
    private.runs_with(&json!({"credHelpers": {server.clone(): "lab"}}));
    let path = format!("{server}/{}", lab.cluster);
    private.runs_with(&json!({"auths": {path: {"auth": "YWxpY2U6Pz5+"}, server: {"auth": "YWxpY2U6d3Jvbmc="}}}));
    let log = private.agent.log();
    assert!(!log.contains(PASSWORD) && !log.contains("hush-hush") && !log.contains("YWxpY2U6"), "{log}");
}

#[test]
fn the_check_of_a_configuration_looks_at_the_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials.json");
    let agent = Agent::prepare(&format!("images = {{ registry_credentials = '{}' }}\n", file.display()));
    let config = agent.config_file();
    let check = || agent.cli(&["config", "check", "--dev", "--config", config.to_str().unwrap()]);
    let told = check().failed(1);
    assert!(told.contains("images.registry_credentials: cannot read"), "{told}");
    write(&file, r#"{"auths": {"r": {"auth": "hush"}}}"#, 0o600);
    let told = check().failed(1);
    assert!(told.contains("auths of `r`") && !told.contains("hush"), "{told}");
    write(&file, r#"{"auths": {"r": {"username": "u", "password": "p"}}}"#, 0o640);
    check().ok();
    write(&file, "{}", 0o644);
    let told = check().failed(1);
    assert!(told.contains("run: chmod 600"), "{told}");
}

/// Three hosts, with a workspace whose registry limits pulls.
struct Limited {
    lab: Lab,
    relay: RegistryRelay,
    cluster: Cluster,
    _registry: Registry,
}

impl Limited {
    fn open(test: &str) -> Option<Self> {
        let lab = Lab::open(test)?;
        let registry = Registry::start(test)?;
        let relay = RegistryRelay::to(registry.port());
        let image = relay.reference(&registry.publish(&lab.cluster, 1 << 20));
        let cluster = Cluster::start(3, &configuration(&lab, SOCKET));
        add(&cluster.nodes[0], &lab, "far", FOREVER, &json!({"image": image}));
        relay.on("/manifests/", Fault::Answer(429, LIMIT));
        Some(Self { lab, relay, cluster, _registry: registry })
    }

    fn create(&self, n: usize) -> String {
        id(&self.cluster.nodes[n % 3].create("far", &format!("user{n}")).expect(202))
    }

    /// Waits until the session waits for the registry, and returns the id of its host.
    fn waits(&self, session: &str) -> String {
        let waits = self.cluster.nodes[0].until(session, "limited", |session| {
            session["message"].as_str().is_some_and(|text| text.contains(" limits pulls (429); next try in "))
        });
        assert_eq!(waits["state"], "pulling", "{waits}");
        waits["node_id"].as_str().unwrap().to_owned()
    }

    /// How often engines asked for the image. They may ask for its digest first.
    fn asked(&self) -> usize {
        self.relay.requests(&format!("GET /v2/{}/manifests/", self.lab.cluster))
    }
}

#[test]
fn a_limited_registry_is_asked_once_by_each_host_and_is_nobodys_failing_start() {
    const TEST: &str = "a_limited_registry_is_asked_once_by_each_host_and_is_nobodys_failing_start";
    let Some(limited) = Limited::open(TEST) else { return };
    let sessions: Vec<String> = (0..4).map(|n| limited.create(n)).collect();
    for session in &sessions {
        limited.waits(session);
    }
    let asked = limited.asked();
    assert!((1..=3).contains(&asked), "{asked} pulls for 4 sessions on 3 hosts");
    let nodes = &limited.cluster.nodes;
    until("a condition names the registry", || {
        nodes.iter().any(|node| has(node, "registry_limited").is_some_and(|text| text.contains("127.0.0.1:")))
    });
    for node in nodes {
        assert_eq!((has(node, "failing_starts"), has(node, "registry_failing")), (None, None));
    }
    for session in &sessions {
        assert_eq!(nodes[0].session(session)["state"], "pulling", "it is offered to no other host");
    }
    assert_eq!(limited.asked(), asked, "no further pull");
}

#[test]
fn a_limit_that_one_host_met_keeps_the_others_from_asking() {
    const TEST: &str = "a_limit_that_one_host_met_keeps_the_others_from_asking";
    let Some(limited) = Limited::open(TEST) else { return };
    let term = limited.cluster.term(0);
    let first = limited.create(0);
    let mut hosts = BTreeSet::from([limited.waits(&first)]);
    let later: Vec<String> = (1..4).map(|n| limited.create(n)).collect();
    hosts.extend(later.iter().map(|session| limited.waits(session)));
    assert!(hosts.len() > 1, "the sessions are on several hosts: {hosts:?}");
    // A new leader knows only what it is told.
    if limited.cluster.term(0) == term {
        assert_eq!(limited.asked(), 1);
    }
}

/// The message of a condition of the node.
fn has(node: &Agent, kind: &str) -> Option<String> {
    let conditions = node.node()["conditions"].as_array().unwrap().clone();
    let found = conditions.iter().find(|condition| condition["kind"] == kind)?;
    Some(found["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_pull_that_stops_in_the_middle_is_given_up() {
    const TEST: &str = "a_pull_that_stops_in_the_middle_is_given_up";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let relay = RegistryRelay::to(registry.port());
    let image = relay.reference(&registry.publish(&lab.cluster, LAYER));
    relay.on("/blobs/", Fault::Stall(1 << 20));
    let begun = Instant::now();
    let patience = Patience { fetching: Duration::from_secs(2), unpacking: Duration::from_secs(2) };
    let stalled = pull(&lab, SOCKET, &image, patience).await.unwrap_err();
    assert_eq!(stalled.cause, PullCause::Stalled, "{stalled}");
    assert!(begun.elapsed() >= patience.fetching, "after {:?}", begun.elapsed());
    relay.mend();
    assert!(pull(&lab, SOCKET, &image, Patience::default()).await.unwrap().unwrap().starts_with("sha256:"));
}

#[tokio::test]
async fn half_a_layer_is_fetched_again() {
    const TEST: &str = "half_a_layer_is_fetched_again";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let relay = RegistryRelay::to(registry.port());
    let image = relay.reference(&registry.publish(&lab.cluster, LAYER));
    relay.on("/blobs/", Fault::CutOnce(1 << 20));
    pull(&lab, SOCKET, &image, Patience::default()).await.unwrap();
    assert!(relay.requests("/blobs/") >= 2);
}

#[tokio::test]
async fn an_answer_of_the_engine_that_is_cut_off_tells_nothing_of_the_image() {
    const TEST: &str = "an_answer_of_the_engine_that_is_cut_off_tells_nothing_of_the_image";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let relay = RegistryRelay::to(registry.port());
    let image = relay.reference(&registry.publish(&lab.cluster, LAYER));
    relay.on("/blobs/", Fault::Stall(1 << 20));
    let engine = Arc::new(EngineRelay::start());
    let host = engine.host();
    let (cut, fetched) = (Arc::clone(&engine), async || {
        while relay.requests("/blobs/") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let cutter = async {
        fetched().await;
        while cut.cut("/images/create") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (pulled, ()) = tokio::join!(pull(&lab, &host, &image, Patience::default()), cutter);
    assert_eq!(pulled.unwrap_err().cause, PullCause::Engine);
    relay.mend();
}

#[tokio::test]
async fn a_registry_that_fails_is_told_from_one_that_does_not_have_the_image() {
    const TEST: &str = "a_registry_that_fails_is_told_from_one_that_does_not_have_the_image";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let relay = RegistryRelay::to(registry.port());
    let image = relay.reference(&registry.publish(&lab.cluster, 1 << 20));
    for (status, body, expected) in [
        (503, "", PullCause::Registry),
        (502, "<html>bad gateway</html>", PullCause::Registry),
        (500, r#"{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}"#, PullCause::Registry),
        (429, LIMIT, PullCause::Limited),
        (429, "slow down", PullCause::Limited),
        (403, r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#, PullCause::Denied),
    ] {
        relay.on("/manifests/", Fault::Answer(status, body));
        assert_eq!(cause(&lab, &image).await, expected, "{status} {body}");
        relay.mend();
    }
    assert_eq!(cause(&lab, &image.replace(":1", ":none")).await, PullCause::Absent);
    assert_eq!(cause(&lab, &image.replace(":1", "-none:1")).await, PullCause::Absent);
    pull(&lab, SOCKET, &image, Patience::default()).await.unwrap();
    quietly(&["rmi", &image]);
    drop(registry);
    let gone = Patience { fetching: Duration::from_secs(60), ..Patience::default() };
    assert_eq!(pull(&lab, SOCKET, &image, gone).await.unwrap_err().cause, PullCause::Registry);
}

#[test]
fn a_full_disk_is_met_twice_and_then_told() {
    const TEST: &str = "a_full_disk_is_met_twice_and_then_told";
    let Some(lab) = Lab::open(TEST) else { return };
    let relay = EngineRelay::start();
    let agent = Agent::start(&configuration(&lab, &relay.host()));
    add(&agent, &lab, "far", FOREVER, &json!({"image": format!("127.0.0.1:1/{}:1", lab.cluster)}));
    let full = "failed to register layer: write /noise: no space left on device";
    relay.on("POST", "/images/create", engine_relay::Fault::Answer(500, full));
    let session = id(&agent.create("far", "alice").expect(202));
    let failed = agent.until_state(&session, "failed");
    assert!(failed["message"].as_str().unwrap().contains("no space left on device"), "{failed}");
    assert_eq!(relay.calls("POST", "/images/create"), 2);
}
