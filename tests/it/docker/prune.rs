//! Prunes of a real agent on a real engine: ostler's images go, and nothing else does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ostler::runtime::Images;
use ostler::runtime::images::Removal;
use serde_json::{Value, json};

use super::{FOREVER, add, configuration, id, remove};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, Registry, SOCKET, docker, lines, quietly};

/// An agent that prunes when it is asked, also what has just been used.
fn start(lab: &Lab) -> Agent {
    let images = "images = { min_age = '0s', prune_interval = '0s', high_watermark = 100 }\n";
    Agent::start(&(configuration(lab, SOCKET) + images))
}

fn prune(agent: &Agent, mode: &str, dry_run: bool) -> Value {
    agent.post(&format!("/v1/nodes/self/images/prune?dry_run={dry_run}"), &json!({"mode": mode})).expect(200)
}

fn ids(of: &Value) -> Vec<&str> {
    of.as_array().unwrap().iter().map(|image| image["id"].as_str().unwrap()).collect()
}

/// Why the report keeps the image.
fn kept<'a>(report: &'a Value, id: &str) -> &'a str {
    let kept = report["kept"].as_array().unwrap().iter().find(|image| image["id"] == id);
    kept.unwrap_or_else(|| panic!("{id} is not kept: {report}"))["reason"].as_str().unwrap()
}

fn id_of(image: &str) -> String {
    docker(&["image", "inspect", "--format", "{{.Id}}", image])
}

fn is_here(image: &str) -> bool {
    lines(&["image", "inspect", "--format", "{{.Id}}", image]).iter().any(|id| !id.is_empty())
}

/// An image without a name, of another program: a child of `parent`. Dropping it removes it.
struct Stranger(String);

impl Stranger {
    fn child_of(parent: &str) -> Self {
        let container = docker(&["create", parent, "true"]);
        let id = docker(&["commit", &container]);
        docker(&["rm", &container]);
        Self(id)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        quietly(&["rmi", &self.0]);
    }
}

/// Runs a session of the workspace once, which brings its image.
fn once(agent: &Agent, workspace: &str) {
    let session = id(&agent.running(workspace, "alice"));
    remove(agent, &session);
}

#[test]
fn an_image_that_a_moved_tag_left_goes_and_that_of_another_program_stays() {
    const TEST: &str = "an_image_that_a_moved_tag_left_goes_and_that_of_another_program_stays";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 1 << 20);
    let foreign = Stranger::child_of(&lab.image);
    let agent = start(&lab);
    add(&agent, &lab, "far", FOREVER, &json!({"image": image, "pull": "always"}));
    once(&agent, "far");
    let old = id_of(&image);
    assert_eq!(kept(&prune(&agent, "normal", true), &old), "workspace");

    registry.publish_newer(&lab.cluster, 1 << 20);
    once(&agent, "far");
    let new = id_of(&image);
    assert_ne!(old, new);
    let container = docker(&["create", &old, "true"]);
    assert_eq!(kept(&prune(&agent, "normal", false), &old), "container", "a stopped container of another program");
    docker(&["rm", &container]);
    let dry = agent.cli(&["image", "prune", "--dry-run"]).ok();
    let short = &old["sha256:".len()..][..12];
    assert!(dry.contains("WOULD REMOVE") && dry.contains(short) && dry.contains("it has no name"), "{dry}");
    assert!(is_here(&old), "a dry run removes nothing");

    let report = agent.cli(&["image", "prune", "-o", "json"]).json();
    assert_eq!(
        (ids(&report["removed"]), report["removed"][0]["reason"].as_str()),
        (vec![old.as_str()], Some("dangling"))
    );
    assert_eq!((kept(&report, &foreign.0), kept(&report, &new)), ("foreign", "workspace"));
    assert!(!is_here(&old) && is_here(&new) && is_here(&foreign.0));
    assert!(report["up_to_bytes"].as_u64().unwrap() >= 1 << 20, "{report}");
    let log = agent.log();
    assert!(log.contains("removed the image") && log.contains("reason=dangling"), "{log}");
    assert!(log.contains("prune requested") && log.contains("uid "), "{log}");
    let reader = agent.tcp(Some(&agent.token("read")));
    reader.command("/v1/nodes/self/images/prune?dry_run=true").expect(200);
    reader.command("/v1/nodes/self/images/prune").refused(403, "forbidden");
    quietly(&["rmi", &image]);
}

#[test]
fn an_image_goes_with_all_of_our_names_and_one_with_a_child_is_left() {
    const TEST: &str = "an_image_goes_with_all_of_our_names_and_one_with_a_child_is_left";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let first = registry.publish(&lab.cluster, 1 << 20);
    let second = first.replace(":1", ":2");
    docker(&["pull", "--quiet", &first]);
    docker(&["tag", &first, &second]);
    docker(&["push", "--quiet", &second]);
    docker(&["rmi", &first, &second]);
    let agent = start(&lab);
    for (workspace, image) in [("first", &first), ("second", &second)] {
        add(&agent, &lab, workspace, FOREVER, &json!({"image": image}));
        once(&agent, workspace);
        agent.delete(&format!("/v1/workspaces/{workspace}")).expect(204);
    }
    let image = id_of(&first);
    assert_eq!(image, id_of(&second));

    let empty = prune(&agent, "aggressive", false);
    assert_eq!(kept(&empty, &image), "catalogue_empty");
    assert!(empty["notes"][0].as_str().unwrap().contains("the catalogue has no workspaces"), "{empty}");
    add(&agent, &lab, "other", FOREVER, &json!({}));

    let child = Stranger::child_of(&first);
    let left = prune(&agent, "aggressive", false);
    assert_eq!(ids(&left["skipped"]), [image.as_str()], "{left}");
    assert!(left["skipped"][0]["reason"].as_str().unwrap().contains("child"), "{left}");
    assert!(is_here(&image) && is_here(&child.0));
    drop(child);

    let report = prune(&agent, "aggressive", false);
    assert_eq!(ids(&report["removed"]), [image.as_str()], "{report}");
    assert!(![&image, &first, &second].into_iter().any(|name| is_here(name)));
    assert!(is_here(&lab.image));
}

#[tokio::test]
async fn the_nameless_parent_of_a_removed_image_stays() {
    const TEST: &str = "the_nameless_parent_of_a_removed_image_stays";
    let Some(lab) = Lab::open(TEST) else { return };
    let parent = Stranger::child_of(&lab.image);
    let child = Stranger::child_of(&parent.0);
    assert_eq!(lab.runtime.remove(&child.0, &[]).await, Ok(Removal::Removed));
    assert!(!is_here(&child.0) && is_here(&parent.0));
    assert_eq!(lab.runtime.remove(&child.0, &[]).await, Ok(Removal::Gone));
}

#[test]
fn sessions_get_their_images_while_prunes_remove_them() {
    const TEST: &str = "sessions_get_their_images_while_prunes_remove_them";
    const ROUNDS: usize = 6;
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 4 << 20);
    let foreign = Stranger::child_of(&lab.image);
    let agent = start(&lab);
    add(&agent, &lab, "other", FOREVER, &json!({}));
    let done = AtomicBool::new(false);
    let removed = thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut removed = 0;
            while !done.load(Ordering::SeqCst) {
                let answer = agent.post("/v1/nodes/self/images/prune", &json!({"mode": "aggressive"}));
                removed += answer.expect(200)["removed"].as_array().unwrap().len();
            }
            removed
        });
        // The image is of a workspace of one caller, and of none between two rounds. Of the other's it always is.
        let callers = [("near", "missing"), ("fresh", "always")].map(|(workspace, pull)| {
            let (agent, lab, image) = (&agent, &lab, &image);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    add(agent, lab, workspace, FOREVER, &json!({"image": image, "pull": pull}));
                    once(agent, workspace);
                    agent.delete(&format!("/v1/workspaces/{workspace}")).expect(204);
                }
            })
        });
        for caller in callers {
            caller.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        pruning.join().unwrap()
    });
    let last = prune(&agent, "aggressive", false);
    assert!(removed + ids(&last["removed"]).len() > 0, "prunes removed the image at least once");
    assert!(!is_here(&image) && is_here(&foreign.0) && is_here(&lab.image));
}

#[test]
fn an_agent_that_is_killed_while_it_prunes_goes_on_after_it() {
    const TEST: &str = "an_agent_that_is_killed_while_it_prunes_goes_on_after_it";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 4 << 20);
    let foreign = Stranger::child_of(&lab.image);
    let mut agent = start(&lab);
    add(&agent, &lab, "other", FOREVER, &json!({}));
    for (round, step) in ["prune requested", "removed the image", "pruned the images"].into_iter().enumerate() {
        add(&agent, &lab, "far", FOREVER, &json!({"image": image}));
        once(&agent, "far");
        agent.delete("/v1/workspaces/far").expect(204);
        let log = |agent: &Agent| agent.log().matches(step).count();
        let before = log(&agent);
        let mut asking = agent.command(&["image", "prune", "--mode", "aggressive"]).spawn().unwrap();
        until(step, || log(&agent) > before);
        agent.kill9();
        asking.wait().unwrap();
        agent.up();
        until("its catalogue is compared, and the prune done", || {
            prune(&agent, "aggressive", false);
            !is_here(&image)
        });
        assert!(kept(&prune(&agent, "aggressive", true), &foreign.0) == "foreign", "round {round}");
        assert!(is_here(&foreign.0) && is_here(&lab.image));
    }
    // What came back after its record was dropped is ours again.
    add(&agent, &lab, "far", FOREVER, &json!({"image": image}));
    once(&agent, "far");
    assert_eq!(kept(&prune(&agent, "aggressive", true), &id_of(&image)), "workspace");
    quietly(&["rmi", &image]);
}
