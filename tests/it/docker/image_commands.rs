//! `ostler image` and `/v1/nodes/{node}/images`, on a real engine with a registry on loopback. Every image here belongs to
//! its test: what else the engine has is only looked at.

use std::fs;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{FOREVER, add, condition, id, remove, start};
use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::docker::{Lab, Registry, SOCKET, docker, quietly};
use crate::support::engine_relay::{EngineRelay, Fault};

/// The image with this name in the node's list.
fn listed(agent: &Agent, node: &str, name: &str) -> Option<Value> {
    let images = agent.cli(&["image", "ls", node, "-o", "json"]).json();
    let mut items = images["items"].as_array().unwrap().iter();
    items.find(|image| image["names"].as_array().unwrap().contains(&json!(name))).cloned()
}

/// Waits until the image is in the list, and `wanted` accepts it.
fn until_listed(agent: &Agent, node: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    until(&format!("{name} is listed so on {node}"), || {
        found = listed(agent, node, name);
        found.as_ref().is_some_and(&wanted)
    });
    found.unwrap()
}

fn id_of(image: &str) -> String {
    docker(&["inspect", "--format", "{{.Id}}", image])
}

/// The line of the table that names the image.
fn line_of(table: &str, name: &str) -> String {
    let cells =
        |line: &str| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|");
    table.lines().map(cells).find(|line| line.starts_with(&format!("{name}|"))).unwrap_or_else(|| panic!("{table}"))
}

#[test]
fn images_are_listed_with_what_uses_them() {
    const TEST: &str = "images_are_listed_with_what_uses_them";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 1 << 20);
    let agent = start(&lab);
    add(&agent, &lab, "far", FOREVER, &json!({"image": image}));
    let session = id(&agent.running("far", "alice"));

    let found = until_listed(&agent, "self", &image, |image| image["containers"] == 1);
    let whose = [&found["owner"], &found["origin"], &found["pinned"]];
    assert_eq!(whose, [&json!("ostler"), &json!("registry"), &json!(false)], "{found}");
    assert_eq!((&found["workspaces"], &found["sessions"]), (&json!(["far"]), &json!([session])), "{found}");
    assert_eq!(found["id"], id_of(&image));
    let source = &found["sources"][0];
    assert_eq!((&source["name"], source["digest"].as_str().unwrap().starts_with("sha256:")), (&json!(image), true));
    assert!(found["pulled_at"].is_string() && found["last_used_at"].is_string(), "{found}");
    let foreign = listed(&agent, "self", &lab.image).unwrap();
    assert_eq!((&foreign["owner"], &foreign["origin"]), (&json!("foreign"), &json!(null)), "{foreign}");

    let table = agent.cli(&["image", "ls", "--owner", "ostler"]).ok();
    let line = line_of(&table, &image);
    assert!(line.contains("|ostler|workspace far, 1 session|") && line.contains(&id_of(&image)[7..19]), "{table}");
    assert!(!table.contains(&lab.image), "{table}");
    let last = table.lines().last().unwrap();
    assert!(last.contains(" images, ") && last.contains(", listed "), "{table}");
    let pages = agent.get("/v1/nodes/self/images?owner=ostler&limit=1").expect(200);
    assert_eq!((pages["items"].as_array().unwrap().len(), &pages["node"]), (1, &json!("one")));

    // The list follows what others do with the engine.
    remove(&agent, &session);
    docker(&["rmi", &image]);
    until("it is gone", || listed(&agent, "self", &image).is_none());
}

#[test]
fn an_image_is_pulled_on_any_node_and_never_in_place_of_a_foreign_one() {
    const TEST: &str = "an_image_is_pulled_on_any_node_and_never_in_place_of_a_foreign_one";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 1 << 20);
    let docker_runtime = format!(
        "runtime = {{ kind = 'docker', docker_host = '{SOCKET}', publish_address = '127.0.0.1', endpoint_host = 'localhost' }}"
    );
    let mut cluster = Cluster::start(2, &docker_runtime);
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let pulled = first.cli(&["image", "pull", &image, "n1"]).ok();
    let short = id_of(&image)[7..19].to_owned();
    assert_eq!(pulled, format!("n1: pulled {image} ({short})\n"));
    assert!(second.log().contains("pull of an image requested") && second.log().contains("uid "), "{}", second.log());
    let again = first.cli(&["image", "pull", &image, "n1"]).ok();
    assert_eq!(again, format!("n1: {image} is up to date ({short})\n"));

    // Both share one engine. The other one did not pull the image, so to it the name came from no registry.
    until_listed(first, "n1", &image, |image| image["owner"] == "ostler");
    until_listed(second, "n0", &image, |image| image["owner"] == "foreign");
    let refused = second.cli(&["image", "pull", &image, "n0"]).failed(3);
    let told = format!(
        "n0: error: image {image} on node n0 was not pulled by ostler, and a pull could replace it: adopt it first: \
         ostler image adopt {image} n0\n"
    );
    assert_eq!(refused, told);
    assert_eq!(second.cli(&["image", "adopt", &image, "n0"]).ok(), format!("{image}\n"));
    until_listed(second, "n0", &image, |image| image["owner"] == "ostler");
    registry.publish_newer(&lab.cluster, 1 << 20);
    let newer = second.cli(&["image", "pull", &image, "--all"]).ok();
    let short = id_of(&image)[7..19].to_owned();
    assert!(newer.contains(&format!("n0: pulled {image} ({short})\n")), "{newer}");
    assert_eq!(newer.lines().count(), 2, "{newer}");

    add(first, &lab, "far", FOREVER, &json!({"image": image}));
    until_listed(first, "n0", &image, |image| image["workspaces"] == json!(["far"]));
    until_listed(first, "n1", &image, |image| image["workspaces"] == json!(["far"]));
    let refreshed = second.cli(&["workspace", "pull", "far"]).ok();
    let mut lines: Vec<&str> = refreshed.lines().collect();
    lines.sort_unstable();
    let expected = ["n0", "n1"].map(|node| format!("{node}: {image} is up to date ({short})"));
    assert_eq!(lines, expected);

    let absent = image.replace(":1", ":none");
    let failed = first.cli(&["image", "pull", &absent, "n0", "n1"]).failed(1);
    assert!(
        failed.contains(&format!("n0: error: cannot pull {absent}: ")) && failed.contains("n1: error: "),
        "{failed}"
    );
    let all = first.cli(&["image", "ls", "--all"]).ok();
    assert!(all.contains("\nn0: ") && all.contains("\nn1: "), "{all}");
    cluster.nodes[1].kill9();
    let output = cluster.nodes[0].cli(&["image", "ls", "--all"]);
    assert!(output.stdout.contains(&image), "{output:?}");
    assert!(output.failed(4).starts_with("n1: error: "));
    quietly(&["rmi", "--force", &id_of(&image)]);
}

#[test]
fn an_interrupted_command_leaves_the_pull_running() {
    const TEST: &str = "an_interrupted_command_leaves_the_pull_running";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let image = registry.publish(&lab.cluster, 160 << 20);
    let agent = start(&lab);
    let command: Child = agent.command(&["image", "pull", &image]).spawn().unwrap();
    let mut pull = Value::Null;
    until("the pull runs", || {
        let pulls = agent.get("/v1/nodes/self/images?limit=1").expect(200)["pulls"].clone();
        pull =
            pulls.as_array().unwrap().iter().find(|pull| pull["image"] == image.as_str()).cloned().unwrap_or_default();
        pull["state"] == "running"
    });
    assert_eq!(line_of(&agent.cli(&["image", "ls"]).ok(), &image).split('|').nth(1), Some("-"), "{pull}");
    kill_process(Pid::from_child(&command), Signal::INT).unwrap();
    let ended = command.wait_with_output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(
        (ended.status.code(), told.as_str()),
        (Some(130), "The pulls that have begun go on; see: ostler image ls\n")
    );
    until_listed(&agent, "self", &image, |image| image["owner"] == "ostler");
    quietly(&["rmi", &image]);
}

#[test]
fn what_an_operator_said_of_an_image_outlives_the_agent_and_lost_records_make_it_foreign() {
    const TEST: &str = "what_an_operator_said_of_an_image_outlives_the_agent_and_lost_records_make_it_foreign";
    let Some(lab) = Lab::open(TEST) else { return };
    let mut agent = start(&lab);
    let image = &lab.image;
    until_listed(&agent, "self", image, |image| image["owner"] == "foreign");
    agent.cli(&["image", "pin", &id_of(image)[..30]]).ok();
    assert_eq!(agent.cli(&["image", "adopt", image, "one"]).ok(), format!("{image}\n"));
    agent.restart();
    let found = until_listed(&agent, "self", image, |image| image["owner"] == "ostler");
    assert_eq!((&found["pinned"], &found["origin"]), (&json!(true), &json!("here")), "{found}");
    assert!(line_of(&agent.cli(&["image", "ls"]).ok(), image).ends_with("|pinned"));
    assert_eq!(agent.cli(&["image", "unpin", image, "-o", "json"]).json()["pinned"], false);
    assert!(agent.log().contains("kind=image_changed") && agent.log().contains("via="), "{}", agent.log());
    let unknown = agent.cli(&["image", "adopt", "no-such-image"]).failed(1);
    assert!(unknown.contains("no image no-such-image on this node"), "{unknown}");

    agent.kill9();
    fs::write(agent.data_dir().join("images.redb"), "no records").unwrap();
    agent.up();
    until_listed(&agent, "self", image, |image| image["owner"] == "foreign");
    until("the condition", || condition(&agent, "images_record_lost").is_some());
    let told = condition(&agent, "images_record_lost").unwrap();
    assert!(told.contains("images.redb") && told.contains("run: ostler image adopt IMAGE"), "{told}");
    let aside = told.split("were moved to ").nth(1).unwrap().split(": every").next().unwrap();
    fs::remove_file(aside).unwrap();
    until("the condition ends with the file", || condition(&agent, "images_record_lost").is_none());
}

#[test]
fn an_engine_that_ostler_does_not_work_with_is_a_condition() {
    const TEST: &str = "an_engine_that_ostler_does_not_work_with_is_a_condition";
    let Some(lab) = Lab::open(TEST) else { return };
    let relay = EngineRelay::start();
    for (from, to, told) in [
        (r#""Name":"Engine""#, r#""Name":"Podman""#, "the container engine is Podman "),
        (r#""MinAPIVersion":"1."#, r#""MinAPIVersion":"9."#, " speaks no version of its API below 9."),
    ] {
        relay.on("GET", "/version", Fault::Rewrite(from, to));
        let agent = Agent::start(&super::configuration(&lab, &relay.host()));
        until("the condition", || condition(&agent, "engine_unsupported").is_some_and(|text| text.contains(told)));
        assert_eq!(condition(&agent, "runtime_unavailable"), None);
        assert_eq!(agent.node()["runtime"]["available"], false);
        relay.mend();
        until("the engine is another", || agent.node()["runtime"]["available"] == true);
        until("the condition ends", || condition(&agent, "engine_unsupported").is_none());
    }
}

#[test]
fn a_node_without_images_says_so_and_only_an_administrator_changes_images() {
    let agent = Agent::start("");
    let images = agent.get("/v1/nodes/self/images").expect(200);
    assert_eq!((&images["items"], &images["store"]), (&json!([]), &json!(null)));
    let note = "this node runs sessions as processes and has no images";
    assert_eq!(images["note"], note);
    assert!(agent.cli(&["image", "ls"]).ok().ends_with(&format!("\n\n{note}\n")));
    let request = json!({"image": "x:1"});
    let tokens = ["read", "operate"].map(|role| agent.token(role));
    for path in ["pull", "adopt", "pin", "unpin"] {
        let path = format!("/v1/nodes/one/images/{path}");
        for token in &tokens {
            assert_eq!(agent.tcp(Some(token)).post(&path, &request).status, 403, "{path}");
        }
        agent.post(&path, &request).refused(409, "conflict");
        agent.post(&path, &json!({"image": "a b"})).refused(422, "invalid");
    }
    assert_eq!(agent.tcp(Some(&tokens[0])).get("/v1/nodes/self/images").status, 200);
    agent.get("/v1/nodes/elsewhere/images").refused(404, "not_found");
    agent.get("/v1/nodes/self/images?owner=nobody").refused(400, "invalid");
}
