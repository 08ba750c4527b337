//! The catalogue of workspaces on the real agent: changes are durable, and sessions do not depend on it.

use serde_json::json;

use crate::support::agent::Agent;

const ROOMY: &str = "dev = { physical_cores = 6, physical_memory = '6GiB' }";

#[test]
fn workspaces_are_added_replaced_removed_and_kept() {
    let mut agent = Agent::start(ROOMY);
    let desk = json!({"name": "desk", "image": "kasmweb/desktop:1.16.0", "cores": 2, "memory_bytes": "2GiB",
        "ports": [{"container_port": 6901}], "env": {"VNC_PW": "{secret}"}, "volumes": [{"name": "home-{user}", "path": "/home"}]});
    let added = agent.post("/v1/workspaces", &desk).expect(201);
    assert_eq!((&added["memory_bytes"], &added["pull"]), (&json!(2_u64 << 30), &json!("daily")));
    agent.post("/v1/workspaces", &desk).refused(409, "conflict");
    agent.cli(&["workspace", "add", "desk", "--cores", "1", "--memory", "1GiB", "--image", "busybox"]).failed(3);
    agent.kill9();
    agent.up();
    assert_eq!(agent.get("/v1/workspaces/desk").expect(200), added);

    let mut changed = added.clone();
    changed["cores"] = json!(3);
    assert_eq!(agent.put("/v1/workspaces/desk", &changed).expect(200)["cores"], 3);
    agent.cli(&["workspace", "set", "desk", "--description", "for work"]).ok();
    let shown = agent.get("/v1/workspaces/desk").expect(200);
    assert_eq!((&shown["description"], &shown["cores"], &shown["env"]), (&json!("for work"), &json!(3), &added["env"]));
    changed["name"] = json!("other");
    agent.put("/v1/workspaces/other", &changed).expect(201);
    let listed = agent.get("/v1/workspaces").expect(200);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|workspace| workspace["name"].clone()).collect();
    assert_eq!(names, ["desk", "other"]);
    assert_eq!(agent.delete("/v1/workspaces/desk").status, 204);
    agent.kill9();
    agent.up();
    agent.get("/v1/workspaces/desk").refused(404, "not_found");
    agent.get("/v1/workspaces/other").expect(200);
}

#[test]
fn a_session_outlives_its_workspace() {
    let agent = Agent::start(ROOMY);
    agent.workspace("shell", "exec sleep 600", &json!({}));
    let id = agent.running("shell", "alice")["id"].as_str().unwrap().to_owned();
    agent.cli(&["workspace", "rm", "shell"]).ok();
    assert_eq!(agent.session(&id)["state"], "running");
    agent.client().command(&format!("/v1/sessions/{id}/stop?wait=stopped")).expect(202);
    let started = agent.client().command(&format!("/v1/sessions/{id}/start?wait=running")).expect(202);
    assert_eq!(started["state"], "running", "it has its own copy of the workspace");
    agent.create("shell", "alice").refused(404, "not_found");
}
