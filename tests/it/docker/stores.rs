//! The image store of containerd, and a switch from one store to another, on Docker 26.1.

use std::collections::BTreeMap;

use ostler::clock::Clock;
use ostler::runtime::Images;
use ostler::runtime::docker::{Config, DockerRuntime};
use ostler::runtime::images::{ImageStoreKind, Removal};
use ostler::types::PullPolicy;
use rustix::process::Signal;

use super::gpus::debian_13;
use super::images::Keeper;
use super::own_engine::OwnEngine;
use crate::support::docker::{Lab, config, no_gpus};

/// Layers as plain directories work on every file system.
pub(super) const CONTAINERD: &str = r#"{"features": {"containerd-snapshotter": true}, "storage-driver": "native"}"#;
pub(super) const GRAPH_DRIVER: &str = "{}";

/// An engine with these settings. `None`, after printing SKIPPED, if there is no Docker 26.1.
pub(super) fn engine(test: &str, lab: &Lab, settings: &str) -> Option<OwnEngine> {
    let root = debian_13();
    if !root.join("usr/sbin/dockerd").exists() {
        crate::support::skip(test, "docker-cdi");
        return None;
    }
    OwnEngine::start_with(test, lab, settings, Some(&root))
}

pub(super) fn config_of(lab: &Lab, engine: &OwnEngine) -> Config {
    Config { host: engine.host(), ..config(&lab.cluster) }
}

/// Publishes the lab's image, with another label for each `version`, and removes it from the engine.
fn publish(lab: &Lab, engine: &OwnEngine, registry: &str, version: &str) -> String {
    let image = format!("{registry}/x:1");
    let container = engine.docker(&["create", &lab.image]);
    engine.docker(&["commit", "--change", &format!("LABEL version={version}"), &container, &image]);
    engine.docker(&["rm", &container]);
    engine.docker(&["push", "--quiet", &image]);
    engine.docker(&["rmi", &image]);
    image
}

fn id_of(engine: &OwnEngine, image: &str) -> String {
    engine.docker(&["inspect", "--format", "{{.Id}}", image])
}

#[tokio::test]
async fn in_the_store_of_containerd_ours_is_what_a_pull_of_ours_brought() {
    const TEST: &str = "in_the_store_of_containerd_ours_is_what_a_pull_of_ours_brought";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(mut engine) = engine(TEST, &lab, CONTAINERD) else { return };
    let registry = engine.registry();
    let image = publish(&lab, &engine, &registry, "one");
    let runtime = DockerRuntime::new(config_of(&lab, &engine), no_gpus()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::start_on(config_of(&lab, &engine), directory.path(), Clock::system().unwrap()).await;
    let store = keeper.images.snapshot().store.clone().unwrap().store;
    assert_eq!(store.kind, ImageStoreKind::Containerd);
    let built = runtime.inspect(&lab.image).await.unwrap().unwrap();
    assert!(!built.digests.is_empty(), "the store has a digest for an image that came from no registry");
    assert!(!keeper.is_ours(&built.id, &[&lab.image]).await);

    let mut launch = lab.launch("k", "true");
    launch.image = Some(image.clone());
    let digest = keeper.ensure(&launch, PullPolicy::Daily).await.unwrap();
    let id = id_of(&engine, &image);
    assert_eq!(digest, id, "an image's id is its digest in this store");
    assert!(keeper.is_ours(&id, &[&image]).await);

    // By its digest: the store has that as a name, which a pull of ours gave.
    let by_digest = image.replace(":1", &format!("@{digest}"));
    launch.image = Some(by_digest.clone());
    engine.docker(&["rmi", &image]);
    keeper.ensure(&launch, PullPolicy::Always).await.unwrap();
    assert!(keeper.is_ours(&id, &[&by_digest]).await);
    engine.docker(&["tag", &by_digest, "mine:1"]);
    assert!(!keeper.is_ours(&id, &[&by_digest, "mine:1"]).await, "another program gave it a name");

    // Containers protect it, running or not, and a name that it has besides those that are expected.
    let names = [by_digest.clone(), "mine:1".to_owned()];
    let container = engine.docker(&["create", "--network", "none", &by_digest, "true"]);
    assert_eq!(runtime.in_use().await, Ok(BTreeMap::from([(id.clone(), 1)])));
    assert!(matches!(runtime.remove(&id, &names[..1]).await, Ok(Removal::Skipped(_))));
    engine.docker(&["rmi", "mine:1"]);
    assert!(matches!(runtime.remove(&id, &names[..1]).await, Ok(Removal::Skipped(_))), "a stopped container");
    engine.docker(&["rm", &container]);
    engine.docker(&["tag", &id, "mine:1"]);
    engine.docker(&["tag", &id, "mine:2"]);
    let names = runtime.inspect(&id).await.unwrap().unwrap().names;
    assert!(names.len() > 1, "{names:?}");
    assert_eq!(runtime.remove(&id, &names).await, Ok(Removal::Removed));
    assert_eq!(runtime.remove(&id, &names).await, Ok(Removal::Gone));
    assert!(runtime.inspect(&lab.image).await.unwrap().is_some());
    keeper.kill().await;
}

#[tokio::test]
async fn after_a_switch_of_the_store_what_was_ours_is_ours() {
    const TEST: &str = "after_a_switch_of_the_store_what_was_ours_is_ours";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(mut engine) = engine(TEST, &lab, GRAPH_DRIVER) else { return };
    let registry = engine.registry();
    let image = publish(&lab, &engine, &registry, "one");
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::start_on(config_of(&lab, &engine), directory.path(), Clock::system().unwrap()).await;
    let mut launch = lab.launch("k", "true");
    launch.image = Some(image.clone());
    let digest = keeper.ensure(&launch, PullPolicy::Daily).await.unwrap();
    let id = id_of(&engine, &image);
    assert_ne!(digest, id, "an image's id is the digest of its configuration in this store");
    assert!(keeper.is_ours(&id, &[&image]).await);

    // The engine's operator switches the store, and brings the images along.
    let archive = engine.save(&[&image, &lab.image]);
    engine.down(Signal::TERM);
    engine.configure(CONTAINERD);
    engine.up();
    engine.load(&archive);
    let moved = id_of(&engine, &image);
    assert_ne!(moved, id);
    let mut snapshot = keeper.images.watch();
    let recognised = snapshot.wait_for(|now| {
        now.store.as_ref().is_some_and(|info| now.records.is_ours(&info.store, &moved, std::slice::from_ref(&image)))
    });
    tokio::time::timeout(crate::support::docker::PATIENCE, recognised).await.expect("it is recognised").unwrap();
    assert!(!keeper.is_ours(&id_of(&engine, &lab.image), &[&lab.image]).await);

    // And back: nothing was forgotten meanwhile.
    engine.down(Signal::TERM);
    engine.configure(GRAPH_DRIVER);
    engine.up();
    assert!(keeper.is_ours(&id, &[&image]).await);
    keeper.kill().await;
}
