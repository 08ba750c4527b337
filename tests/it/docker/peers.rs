//! Images from other nodes: three agents, each with an engine of its own.
//!
//! The engines of the second and the third node are in networks of their own, so that they reach no registry.

use std::fmt::Debug;
use std::fs;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use ostler::images::archive::thin::{LeftOut, Spool, thin};
use ostler::runtime::Images;
use ostler::runtime::docker::DockerRuntime;
use ostler::types::ImageReference;
use serde_json::{Value, json};

use super::own_engine::OwnEngine;
use super::stores::{self, CONTAINERD, GRAPH_DRIVER};
use super::{FOREVER, add, configuration};
use crate::support::agent::{Agent, until_within};
use crate::support::cluster::Cluster;
use crate::support::docker::{Lab, Registry, SOCKET, docker, no_gpus, quietly};

/// Bytes of the layer that only the image has.
const NOISE: u64 = 8 << 20;
/// `images.peer_bandwidth` of the nodes whose copies are timed: 8 MiB take two seconds, far more than without it.
const BANDWIDTH: u64 = 4 << 20;
/// What the bandwidth lets through at once after a pause, in seconds.
const BURST: f64 = 0.1;
/// How long a copy may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The lab's image with one more layer of random bytes, in the registry only.
fn publish(lab: &Lab, registry: &Registry, bytes: u64) -> String {
    let image = registry.reference(&lab.cluster);
    let directory = tempfile::tempdir().unwrap();
    let noise = directory.path().join("noise");
    let mut random = std::io::Read::take(fs::File::open("/dev/urandom").unwrap(), bytes);
    std::io::copy(&mut random, &mut fs::File::create(&noise).unwrap()).unwrap();
    let container = docker(&["create", &lab.image]);
    docker(&["cp", noise.to_str().unwrap(), &format!("{container}:/noise")]);
    docker(&["commit", &container, &image]);
    docker(&["rm", &container]);
    docker(&["push", "--quiet", &image]);
    docker(&["rmi", &image]);
    image
}

/// A cluster whose first node uses the lab's engine, and each other one of these. Node `i` has the label `at = n<i>`.
fn cluster(lab: &Lab, engines: &[OwnEngine]) -> Cluster {
    let mut cluster = Cluster::prepare(1 + engines.len(), "");
    for (i, node) in cluster.nodes.iter_mut().enumerate() {
        let host = i.checked_sub(1).map_or_else(|| SOCKET.to_owned(), |i| engines[i].host());
        let of_lab: toml::Table = toml::from_str(&configuration(lab, &host)).unwrap();
        change(node, |all| {
            all["runtime"].as_table_mut().unwrap().extend(of_lab["runtime"].as_table().unwrap().clone());
            all.insert("settings".to_owned(), toml::toml! { labels = {} }.into());
            all["settings"]["labels"].as_table_mut().unwrap().insert("at".to_owned(), format!("n{i}").into());
            // What the lab removes at the end is of its cluster.
            all["cluster"]["name"] = lab.cluster.to_string().into();
        });
    }
    cluster.name = lab.cluster.to_string();
    cluster.nodes.iter_mut().for_each(Agent::up);
    cluster.settled();
    cluster
}

/// Changes the configuration file of an agent.
fn change(node: &Agent, change: impl FnOnce(&mut toml::Table)) {
    let mut all: toml::Table = toml::from_str(&fs::read_to_string(node.config_file()).unwrap()).unwrap();
    change(&mut all);
    node.configure(&toml::to_string(&all).unwrap());
}

fn set(node: &Agent, key: &str, value: impl Into<toml::Value>) {
    change(node, |all| {
        let images = all.entry("images").or_insert_with(|| toml::Table::new().into());
        images.as_table_mut().unwrap().insert(key.to_owned(), value.into());
    });
    node.cli(&["node", "refresh"]).ok();
}

/// Asks for a session on one node.
fn create(cluster: &Cluster, node: usize, user: &str) -> String {
    let body = json!({"workspace": "far", "user": user, "constraints": {"at": format!("n{node}")}});
    super::id(&cluster.nodes[0].post("/v1/sessions", &body).expect(202))
}

fn until(cluster: &Cluster, session: &str, state: &str) -> Value {
    let mut last = Value::Null;
    until_within(PATIENCE, &format!("a session that is {state}"), || {
        // A node that was started again hears of the session from the others.
        let answer = cluster.nodes[0].get(&format!("/v1/sessions/{session}"));
        if answer.status != 200 {
            return false;
        }
        last = answer.json();
        assert!(state == "failed" || last["state"] != "failed", "{last}: {}", cluster.nodes[1].log());
        last["state"] == state
    });
    last
}

/// Waits until the node has heard that a workspace names the image: it offers no other image.
fn until_it_offers(node: &Agent, image: &str) {
    until_within(PATIENCE, "a node that offers the image", || {
        let images = node.get("/v1/nodes/self/images").json();
        let mut items = images["items"].as_array().unwrap().iter();
        items.any(|item| item["names"] == json!([image]) && item["workspaces"] == json!(["far"]))
    });
}

/// The bytes of the images that a node gave, and the seconds that each took.
fn given(node: &Agent) -> Vec<(u64, f64)> {
    fn value<T: FromStr<Err: Debug>>(line: &str, key: &str) -> T {
        line.split(key).nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains("gave the image"));
    lines.map(|line| (value(line, "bytes="), value(line, "seconds="))).collect()
}

#[test]
fn without_its_registry_an_image_comes_from_a_node_that_has_it() {
    const TEST: &str = "without_its_registry_an_image_comes_from_a_node_that_has_it";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let mut engines = Vec::new();
    for _ in 0..2 {
        let Some(engine) = OwnEngine::start(TEST, &lab) else { return };
        engines.push(engine);
    }
    let image = publish(&lab, &registry, NOISE);
    let cluster = cluster(&lab, &engines);
    add(&cluster.nodes[0], &lab, "far", FOREVER, &json!({"image": image}));
    until(&cluster, &create(&cluster, 0, "alice"), "running");
    until_it_offers(&cluster.nodes[0], &image);
    drop(registry);

    set(&cluster.nodes[1], "from_peers", "off");
    let failed = until(&cluster, &create(&cluster, 1, "bob"), "failed");
    assert!(failed["message"].as_str().unwrap().contains("connection refused"), "{failed}");
    assert_eq!(given(&cluster.nodes[0]), []);

    cluster.nodes.iter().for_each(|node| set(node, "peer_bandwidth", BANDWIDTH.to_string()));
    set(&cluster.nodes[1], "from_peers", "fallback");
    let id = docker(&["inspect", "--format", "{{.Id}}", &image]);
    let running = until(&cluster, &create(&cluster, 1, "carol"), "running");
    assert_eq!(engines[0].docker(&["inspect", "--format", "{{.Id}}", &image]), id);
    let digest = docker(&["inspect", "--format", "{{index .RepoDigests 0}}", &image]);
    assert!(digest.ends_with(running["image_digest"].as_str().unwrap()), "{running}: {digest}");
    // Of a digest too, which no engine knows of an image that it loaded.
    cluster.nodes[0].cli(&["workspace", "pin", "far"]).ok();
    let pinned = until(&cluster, &create(&cluster, 2, "dave"), "running");
    assert_eq!(pinned["image_digest"], running["image_digest"], "{pinned}");
    assert!(pinned["image"].as_str().unwrap().contains("@sha256:"), "{pinned}");
    engines[1].docker(&["inspect", &id]);
    until(&cluster, &create(&cluster, 1, "erin"), "running");
    let users = engines[0].docker(&["ps", "--filter", &format!("ancestor={id}"), "--quiet"]);
    assert_eq!(users.lines().count(), 2, "{users}");

    // Each engine has the lab's image, whose layer is two thousand blocks of busybox: only the other one was sent, once to
    // each.
    let sent: Vec<(u64, f64)> = cluster.nodes.iter().flat_map(given).collect();
    let most = NOISE + (256 << 10);
    assert!(sent.len() == 2 && sent.iter().all(|(bytes, _)| (NOISE..most).contains(bytes)), "{sent:?}");
    let least = NOISE as f64 / BANDWIDTH as f64 - BURST;
    assert!(sent.iter().all(|(_, seconds)| *seconds >= least), "{sent:?}: less than {least} seconds");
    assert!(!cluster.nodes[0].data_dir().join("image-layer.tmp").exists());
    drop(cluster);
    quietly(&["rmi", &image]);
}

#[test]
fn a_copy_goes_on_after_the_agent_that_gives_it_was_killed() {
    const TEST: &str = "a_copy_goes_on_after_the_agent_that_gives_it_was_killed";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let Some(engine) = OwnEngine::start(TEST, &lab) else { return };
    let image = publish(&lab, &registry, NOISE);
    let engines = [engine];
    let mut cluster = cluster(&lab, &engines);
    add(&cluster.nodes[0], &lab, "far", FOREVER, &json!({"image": image}));
    until(&cluster, &create(&cluster, 0, "alice"), "running");
    drop(registry);

    set(&cluster.nodes[0], "peer_bandwidth", "2MiB");
    let session = create(&cluster, 1, "bob");
    let mut message = String::new();
    until_within(PATIENCE, "a copy that is under way", || {
        let told = cluster.nodes[1].get(&format!("/v1/sessions/{session}")).json();
        message = told["message"].as_str().unwrap_or_default().to_owned();
        // Some of it has come, and not all.
        message.starts_with("copying ") && !message.starts_with("copying 0 B")
    });
    assert!(message.contains(" of ") && message.ends_with(" from node n0"), "{message}");
    cluster.nodes[0].kill9();
    cluster.nodes[0].up();
    until(&cluster, &session, "running");
    let log = cluster.nodes[1].log();
    assert!(log.contains("the stream broke") && log.contains("took the image from another node"), "{log}");
    drop(cluster);
    quietly(&["rmi", &image]);
}

#[tokio::test]
async fn docker_26_gives_and_takes_images_in_either_store() {
    const TEST: &str = "docker_26_gives_and_takes_images_in_either_store";
    let Some(lab) = Lab::open(TEST) else { return };
    for settings in [GRAPH_DRIVER, CONTAINERD] {
        let Some(engine) = stores::engine(TEST, &lab, settings) else { return };
        let runtime = DockerRuntime::new(stores::config_of(&lab, &engine), no_gpus()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let noise = directory.path().join("noise");
        fs::write(&noise, "noise").unwrap();
        let container = engine.docker(&["create", &lab.image]);
        engine.docker(&["cp", noise.to_str().unwrap(), &format!("{container}:/noise")]);
        engine.docker(&["commit", &container, "x:1"]);
        engine.docker(&["rm", &container]);

        let image = runtime.inspect("x:1").await.unwrap().unwrap();
        let whole: Vec<Bytes> = runtime.save(&image.id).try_collect().await.unwrap();
        engine.docker(&["rmi", "x:1"]);
        assert_eq!(runtime.inspect(&image.id).await, Ok(None));
        // The lab's image keeps its layer here. A store of containerd is never asked to do without.
        let is_graph_driver = settings == GRAPH_DRIVER;
        let lower = image.layers[..image.layers.len() - 1].iter().filter(|_| is_graph_driver);
        let out = LeftOut { layers: lower.cloned().collect(), ..LeftOut::default() };
        let mut thinned = Vec::new();
        let spool = Spool::new(directory.path(), |_| Ok(()));
        thin(whole.concat().as_slice(), &mut thinned, &out, &spool).unwrap();
        assert_eq!(thinned.len() < 100 << 10, is_graph_driver, "{settings}: {} bytes", thinned.len());

        let told = runtime.load(stream::iter([Ok(Bytes::from(thinned))]).boxed()).await;
        assert_eq!(told, Ok(vec![image.id.clone()]), "{settings}");
        runtime.tag(&image.id, &ImageReference::parse("x:1").unwrap()).await.unwrap();
        let again = runtime.inspect("x:1").await.unwrap().unwrap();
        assert_eq!((again.id, again.content), (image.id, image.content), "{settings}");
        let made = engine.docker(&["create", "x:1", "cat", "/noise"]);
        assert!(!made.is_empty());
    }
}
