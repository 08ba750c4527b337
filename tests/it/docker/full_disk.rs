//! A disk that is full for real, with an engine's images on it: a node frees it of what is ostler's.

use std::fs;
use std::path::Path;

use ostler::runtime::Images;
use serde_json::json;

use super::own_engine::OwnEngine;
use super::{FOREVER, add, condition, configuration, id, remove};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, Registry, docker, quietly};
use crate::support::small_disk::SmallDisk;

/// Bytes of random data in an image: three of them, the engine's copies of one for a container and a pull take half of
/// the disk.
const NOISE: u64 = 16 << 20;
/// Bytes of a volume, which is more than any other program's images take.
const VOLUME: u64 = 24 << 20;
/// What the engine needs to write while it removes an image: the file with the names of all images.
const LEFT: u64 = 256 << 10;

/// Three images come by sessions, two of which no workspace names any more. Then the disk is filled.
fn a_full_disk_heals(test: &str, options: &str, fill: impl Fn(&SmallDisk)) {
    let Some(lab) = Lab::open(test) else { return };
    let Some(registry) = Registry::start(test) else { return };
    let Some(disk) = SmallDisk::mount(test, options) else { return };
    let Some(engine) = OwnEngine::start_on(test, &lab, &disk.path().join("docker")) else { return };
    let _inside = registry.serve_also(engine.enter());
    let data = disk.path().join("agent");
    let agent = Agent::start(&format!(
        "{}node = {{ data_dir = '{}' }}\n\
         images = {{ min_age = '0s', prune_interval = '0s', high_watermark = 80, low_watermark = 70 }}\n",
        configuration(&lab, &engine.host()),
        data.display(),
    ));
    let images = ["a", "b", "c"].map(|name| registry.publish_as(&lab.cluster, name, NOISE));
    for (workspace, image) in ["a", "b", "c"].into_iter().zip(&images) {
        add(&agent, &lab, workspace, FOREVER, &json!({"image": image}));
        let session = id(&agent.running(workspace, "alice"));
        remove(&agent, &session);
    }
    for workspace in ["a", "b"] {
        agent.delete(&format!("/v1/workspaces/{workspace}")).expect(204);
    }
    let container = engine.docker(&["create", &lab.image, "true"]);
    let foreign = engine.docker(&["commit", &container]);
    engine.docker(&["rm", &container]);
    engine.docker(&["volume", "create", "big"]);
    let mount = engine.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", "big"]);
    fs::write(Path::new(&mount).join("file"), vec![0; usize::try_from(VOLUME).unwrap()]).unwrap();
    let here = || engine.docker(&["images", "--all", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
    let has = |image: &str| here().contains(image);
    assert!(images.iter().all(|image| has(image)) && has(&foreign), "{}", here());

    fill(&disk);
    until("two images are gone", || !has(&images[0]) && !has(&images[1]));
    assert!(has(&images[2]) && has(&lab.image) && has(&foreign), "{}", here());
    until("it is a condition that this was not enough", || condition(&agent, "disk_pressure").is_some());
    let message = condition(&agent, "disk_pressure").unwrap();
    for part in ["is above images.high_watermark (80 %)", "how to free it: volumes 24 MiB (", "docker system df"] {
        assert!(message.contains(part), "{message}");
    }
    let log = agent.log();
    assert_eq!(log.matches("removed the image").count(), 2, "{log}");
    assert!(log.contains("reason=pressure"), "{log}");

    disk.free();
    until("it ends", || condition(&agent, "disk_pressure").is_none());
    agent.running("c", "bob");
    add(&agent, &lab, "a", FOREVER, &json!({"image": images[0]}));
    agent.running("a", "bob");
}

/// A container that has ended, with a volume. Dropping it removes both.
struct Ended(String);

impl Drop for Ended {
    fn drop(&mut self) {
        quietly(&["rm", "--volumes", &self.0]);
    }
}

#[tokio::test]
async fn an_engine_tells_what_is_on_its_disk_beside_images() {
    let Some(lab) = Lab::open("an_engine_tells_what_is_on_its_disk_beside_images") else { return };
    let before = lab.runtime.disk_usage().await.unwrap();
    assert!(before.build_cache.is_some(), "{before:?}");
    const WRITE: &str =
        "head -c 4194304 /dev/zero >/v/x; head -c 2097152 /dev/zero >/y; head -c 1048576 /dev/zero | tr '\\0' x";
    let container = Ended(docker(&["create", "--volume", "/v", &lab.image, "sh", "-c", WRITE]));
    docker(&["start", "--attach", &container.0]);
    let after = lab.runtime.disk_usage().await.unwrap();
    for (what, bytes, least) in
        [("volumes", after.volumes, 4), ("containers", after.containers, 2), ("logs", after.logs, 1)]
    {
        assert!(bytes.is_some_and(|bytes| bytes.get() >= least << 20), "{what}: {after:?}");
    }
}

#[test]
fn a_disk_without_bytes_is_freed_of_images_that_no_workspace_names() {
    let test = "a_disk_without_bytes_is_freed_of_images_that_no_workspace_names";
    a_full_disk_heals(test, "size=320m", |disk| disk.fill_but(LEFT));
}

#[test]
fn a_disk_without_inodes_is_freed_of_images_that_no_workspace_names() {
    let test = "a_disk_without_inodes_is_freed_of_images_that_no_workspace_names";
    a_full_disk_heals(test, "size=640m,nr_inodes=2000", |disk| disk.use_up_inodes(20));
}
