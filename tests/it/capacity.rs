//! Capacity and overrides on the real agent: concrete cases, and the figures in its rejections.

use serde_json::{Value, json};

use crate::support::agent::{Agent, until};

/// Six cores, 6 GiB of memory, nothing else.
const SIX: &str = "dev = { physical_cores = 6, physical_memory = '6GiB' }";
const ONE_GPU: &str = "dev = { physical_cores = 64, physical_memory = '64GiB', physical_gpus = 1 }";
const GIB: u64 = 1 << 30;

fn add(agent: &Agent, name: &str, cores: u64, memory: u64, gpus: u64) {
    agent.workspace(name, "sleep 600", &json!({"cores": cores, "memory_bytes": memory, "gpus": gpus}));
}

fn set(agent: &Agent, settings: Value) {
    agent.patch("/v1/nodes/self", &settings).expect(200);
}

fn cores(agent: &Agent) -> Value {
    agent.node()["resources"]["cores"].clone()
}

/// The number of sessions that fit until one is rejected, which must be for lack of `dimension`.
fn fill(agent: &Agent, workspace: &str, dimension: &str) -> usize {
    for taken in 0.. {
        let answer = agent.create(workspace, "alice");
        if answer.status != 202 {
            let error = answer.refused(503, "no_capacity");
            assert_eq!(error["nodes"][0]["dimension"], dimension, "{error}");
            return taken;
        }
    }
    unreachable!()
}

/// Waits until `wanted` accepts the message of the node's condition of this kind, or `None` if it has none.
fn until_condition(agent: &Agent, kind: &str, wanted: impl Fn(Option<&str>) -> bool) {
    until(kind, || {
        let node = agent.node();
        let found = node["conditions"].as_array().unwrap().iter().find(|condition| condition["kind"] == kind).cloned();
        wanted(found.map(|condition| condition["message"].as_str().unwrap().to_owned()).as_deref())
    });
}

#[test]
fn six_cores_offered_as_twelve_show_five_of_twelve() {
    let agent = Agent::start(SIX);
    set(&agent, json!({"cores_override": 12}));
    add(&agent, "two", 2, GIB, 0);
    add(&agent, "three", 3, GIB, 0);
    agent.create("two", "alice").expect(202);
    agent.create("three", "bob").expect(202);
    let shown = cores(&agent);
    for (figure, value) in [("physical", 6), ("override", 12), ("effective", 12), ("allocated", 5), ("available", 7)] {
        assert_eq!(shown[figure], value, "{figure}: {shown}");
    }
    let told = agent.cli(&["node", "show", "self"]).ok();
    assert!(told.contains("5 of 12"), "{told}");
}

#[test]
fn six_of_one_core_and_one_gibibyte_fit_until_both_are_overridden() {
    let agent = Agent::start(SIX);
    add(&agent, "small", 1, GIB, 0);
    assert_eq!(fill(&agent, "small", "cores"), 6);
    set(&agent, json!({"cores_override": 12}));
    assert_eq!(fill(&agent, "small", "memory_bytes"), 0, "memory still limits it");
    set(&agent, json!({"memory_override_bytes": 12 * GIB}));
    assert_eq!(fill(&agent, "small", "cores"), 6);
    assert_eq!(agent.node()["sessions"], 12);
}

#[test]
fn one_gpu_offered_as_ten_admits_ten_sessions() {
    let agent = Agent::start(ONE_GPU);
    add(&agent, "cuda", 1, GIB, 1);
    add(&agent, "ten", 1, GIB, 10);
    set(&agent, json!({"gpus_override": 10}));
    // Ten slots of one GPU are not ten GPUs: such a session exceeds the node, with free slots and without.
    let wanted = json!({"workspace": "ten", "user": "alice"});
    let refused = agent.post("/v1/sessions", &wanted);
    assert_eq!(refused.refused(422, "exceeds_physical")["retryable"], false);
    for _ in 0..10 {
        let session = agent.create("cuda", "alice").expect(202);
        assert_eq!(session["gpu_uuids"].as_array().unwrap().len(), 1);
    }
    let error = agent.create("cuda", "alice").refused(503, "no_capacity");
    assert_eq!(error["nodes"][0]["dimension"], "gpus", "{error}");
    agent.post("/v1/sessions", &wanted).refused(422, "exceeds_physical");
    let gpu = &agent.get("/v1/gpus").expect(200)["items"][0];
    assert_eq!((&gpu["slots"], &gpu["slots_used"]), (&json!(10), &json!(10)));
}

#[test]
fn a_gpu_is_shared_between_users_only_where_the_operator_says_so() {
    let agent = Agent::start(ONE_GPU);
    add(&agent, "cuda", 1, GIB, 1);
    set(&agent, json!({"gpus_override": 10}));
    until_condition(&agent, "gpu_sharing_limits_override", |told| told.is_some());
    agent.create("cuda", "alice").expect(202);
    agent.create("cuda", "alice").expect(202);
    let error = agent.create("cuda", "bob").refused(503, "no_capacity");
    assert_eq!(error["nodes"][0]["reason"], "gpu_sharing", "{error}");
    set(&agent, json!({"gpu_sharing": "any"}));
    until_condition(&agent, "gpu_sharing_limits_override", |told| told.is_none());
    for user in ["bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan"] {
        agent.create("cuda", user).expect(202);
    }
    agent.create("cuda", "judy").refused(503, "no_capacity");
}

#[test]
fn no_room_now_and_too_large_for_every_node_are_different_errors() {
    let agent = Agent::start(SIX);
    add(&agent, "four", 4, GIB, 0);
    add(&agent, "seven", 7, GIB, 0);
    add(&agent, "fat", 1, 7 * GIB, 0);
    agent.create("four", "alice").expect(202);

    let full = agent.create("four", "bob");
    let seconds = full.header("retry-after").expect("a Retry-After header").parse::<u32>().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
    let error = full.refused(503, "no_capacity");
    assert_eq!(error["retryable"], true);
    let expected = json!([{"node": "one", "reason": "no_capacity", "dimension": "cores", "requested": 4.0, "available": 2.0, "physical": 6.0, "message": null}]);
    assert_eq!(error["nodes"], expected);

    // An override does not make the host any larger for one session.
    set(&agent, json!({"cores_override": 100, "memory_override_bytes": 100 * GIB}));
    for (workspace, dimension, requested, physical) in
        [("seven", "cores", 7.0, 6.0), ("fat", "memory_bytes", 7.0 * GIB as f64, 6.0 * GIB as f64)]
    {
        let never = agent.create(workspace, "bob");
        assert_eq!(never.header("retry-after"), None);
        let error = never.refused(422, "exceeds_physical");
        assert_eq!(error["retryable"], false);
        let reason = &error["nodes"][0];
        assert_eq!((&reason["reason"], &reason["dimension"]), (&json!("exceeds_physical"), &json!(dimension)));
        assert_eq!((reason["requested"].as_f64(), reason["physical"].as_f64()), (Some(requested), Some(physical)));
        let refused = agent.cli(&["session", "create", workspace]).failed(3);
        assert!(refused.contains("exceeds_physical") || refused.contains("never"), "{refused}");
    }
    assert_eq!(agent.sessions(true).len(), 1, "a rejected request leaves no session");
}

#[test]
fn an_override_lowered_under_what_is_allocated_stops_nothing() {
    let agent = Agent::start(SIX);
    add(&agent, "five", 5, GIB, 0);
    add(&agent, "one", 1, GIB, 0);
    let id = agent.running("five", "alice")["id"].as_str().unwrap().to_owned();
    set(&agent, json!({"cores_override": 3}));
    until_condition(&agent, "overcommitted", |told| told == Some("5 of 3 cores allocated"));
    assert_eq!(agent.session(&id)["state"], "running");
    let shown = cores(&agent);
    assert_eq!((&shown["available"], &shown["allocated"]), (&json!(0), &json!(5)));
    agent.create("one", "bob").refused(503, "no_capacity");
    assert!(agent.cli(&["node", "show", "self"]).ok().contains("5 of 3 cores allocated"));
    set(&agent, json!({"cores_override": 0}));
    until_condition(&agent, "overcommitted", |told| told.is_none());
    agent.create("one", "bob").expect(202);
}

#[test]
fn an_override_below_physical_keeps_the_rest_for_the_host() {
    let agent = Agent::start(SIX);
    add(&agent, "one", 1, GIB, 0);
    set(&agent, json!({"cores_override": 2}));
    assert_eq!(fill(&agent, "one", "cores"), 2);
}

#[test]
fn a_declared_setting_cannot_be_changed_by_the_api() {
    let agent = Agent::start(&format!("{SIX}\nsettings = {{ cores_override = 12, labels = {{ rack = '3' }} }}"));
    for (patch, key) in [
        (json!({"cores_override": 6}), "settings.cores_override"),
        (json!({"cores_override": 6, "enabled": false}), "settings.cores_override"),
        (json!({"labels": {"rack": "4"}}), "settings.labels"),
    ] {
        let before = agent.node()["settings"].clone();
        let error = agent.patch("/v1/nodes/self", &patch).refused(409, "declared_setting");
        let message = error["message"].as_str().unwrap();
        let file = agent.config_file().display().to_string();
        assert!(message.contains(&file) && message.contains(key), "{message}");
        assert_eq!(agent.node()["settings"], before, "all or nothing");
    }
    let node = agent.node();
    assert_eq!(node["declared_settings"], json!(["cores_override", "labels"]));
    assert_eq!((&node["settings"]["cores_override"], &node["settings"]["labels"]), (&json!(12), &json!({"rack": "3"})));
    set(&agent, json!({"enabled": false}));
    agent.cli(&["node", "set", "self", "--cores-override", "6"]).failed(3);
}

#[test]
fn settings_survive_a_restart_and_a_kill() {
    let mut agent = Agent::start(ONE_GPU);
    let wanted = json!({"enabled": false, "prune": "off", "cores_override": 12.5, "memory_override_bytes": GIB,
        "gpus_override": 3, "gpu_sharing": "any", "labels": {"rack": "3"}});
    set(&agent, wanted.clone());
    agent.restart();
    assert_eq!(agent.node()["settings"], wanted);
    set(&agent, json!({"enabled": true, "labels": {"rack": null, "row": "7"}}));
    agent.kill9();
    agent.up();
    let node = agent.node();
    assert_eq!((&node["settings"]["enabled"], &node["settings"]["labels"]), (&json!(true), &json!({"row": "7"})));
    assert_eq!(node["settings"]["cores_override"], 12.5);
}

#[test]
fn gpus_are_offered_only_where_there_is_one() {
    let mut agent = Agent::start("dev = { physical_gpus = 0 }");
    let error = agent.patch("/v1/nodes/self", &json!({"gpus_override": 2})).refused(422, "invalid");
    assert!(error["message"].as_str().unwrap().contains("gpus_override"), "{error}");
    assert_eq!(agent.node()["settings"]["gpus_override"], 0);
    // The host no longer has its GPU: the override is kept, and no GPU is offered.
    let without = std::fs::read_to_string(agent.config_file()).unwrap();
    agent.configure(&without.replace("physical_gpus = 0", "physical_gpus = 1"));
    agent.restart();
    set(&agent, json!({"gpus_override": 2}));
    until_condition(&agent, "gpu_override_inactive", |told| told.is_none());
    agent.configure(&without);
    agent.restart();
    until_condition(&agent, "gpu_override_inactive", |told| told.is_some());
    let gpus = agent.node()["resources"]["gpus"].clone();
    assert_eq!((&gpus["override"], &gpus["effective"]), (&json!(2), &json!(0)));
}
