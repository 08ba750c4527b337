//! Containers that another program renames, and an engine that does not answer some calls.

use serde_json::{Value, json};

use super::{FOREVER, add, command, condition, configuration, container, id, sessions_of_containers, start};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, docker};
use crate::support::engine_relay::{EngineRelay, Fault};

fn allocated(agent: &Agent) -> Value {
    agent.node()["resources"]["cores"]["allocated"].clone()
}

/// Stops the agent, destroys its journal and starts it again.
fn lose_journal(agent: &mut Agent) {
    agent.kill9();
    std::fs::remove_file(agent.data_dir().join("sessions.redb")).unwrap();
    agent.up();
}

/// An agent whose calls to the engine pass a relay.
fn relayed(lab: &Lab, relay: &EngineRelay, limits: &str) -> Agent {
    let agent = Agent::start(&format!("{}{limits}", configuration(lab, &relay.host())));
    add(&agent, lab, "w", FOREVER, &json!({}));
    agent
}

#[test]
fn a_renamed_container_stays_the_sessions() {
    let Some(lab) = Lab::open("a_renamed_container_stays_the_sessions") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let session = id(&agent.running("w", "alice"));
    let (name, foreign) = (container(&lab, &session), format!("mine-{}", lab.cluster));
    docker(&["rename", &name, &foreign]);
    until("a condition names it", || {
        condition(&agent, "container_renamed").is_some_and(|text| text.contains(&foreign))
    });
    let is_kept = |agent: &Agent| {
        assert_eq!(agent.until_state(&session, "running")["end_reason"], Value::Null);
        assert_eq!(allocated(agent), 0.05);
    };
    is_kept(&agent);
    agent.kill9();
    agent.up();
    is_kept(&agent);
    lose_journal(&mut agent);
    is_kept(&agent);
    until("the condition is there again", || condition(&agent, "container_renamed").is_some());

    command(&agent, &session, "stop");
    agent.until_state(&session, "stopped");
    command(&agent, &session, "start");
    is_kept(&agent);
    docker(&["rename", &foreign, &name]);
    until("the condition ends", || condition(&agent, "container_renamed").is_none());
    docker(&["rename", &name, &foreign]);
    super::remove(&agent, &session);
    assert_eq!(sessions_of_containers(&lab), [""; 0], "the container is gone");
}

#[test]
fn a_copy_with_a_sessions_labels_is_named_and_left_alone() {
    let Some(lab) = Lab::open("a_copy_with_a_sessions_labels_is_named_and_left_alone") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let session = id(&agent.running("w", "alice"));
    let image = format!("ostler-{}:copy", lab.cluster);
    docker(&["commit", &container(&lab, &session), &image]);
    let copy = docker(&["run", "--detach", &image]);
    agent.kill9();
    agent.up();
    until("a condition names it", || {
        condition(&agent, "stray_containers").is_some_and(|text| text.contains(&copy[..12]))
    });
    agent.until_state(&session, "running");
    super::remove(&agent, &session);
    assert_eq!(docker(&["inspect", "--format", "{{.State.Status}}", &copy]), "running");
}

#[test]
fn one_container_that_cannot_be_inspected_is_one_unknown_session() {
    let Some(lab) = Lab::open("one_container_that_cannot_be_inspected_is_one_unknown_session") else { return };
    let relay = EngineRelay::start();
    let mut agent = relayed(&lab, &relay, "");
    let [odd, other] = ["alice", "bob"].map(|user| agent.running("w", user));
    let (odd, other, path) =
        (id(&odd), id(&other), format!("/containers/{}/json", odd["container_id"].as_str().unwrap()));
    for (fault, words) in
        [(Fault::Answer(500, "layer is broken"), "layer is broken"), (Fault::Hang, "no answer to `inspect`")]
    {
        for restart in [Agent::restart as fn(&mut Agent), lose_journal] {
            relay.on("GET", &path, fault);
            restart(&mut agent);
            let unknown = agent.until(&odd, "unknown with the reason", |session| {
                session["state"] == "unknown" && session["message"].as_str().is_some_and(|text| text.contains(words))
            });
            assert_eq!(unknown["end_reason"], Value::Null);
            agent.until_state(&other, "running");
            assert_eq!(allocated(&agent), 0.1, "what is not seen counts as taken");
            let third = id(&agent.running("w", "carol"));
            super::remove(&agent, &third);
            relay.mend();
            agent.until_state(&odd, "running");
        }
    }
    // While the agent runs, an event makes it look.
    relay.on("GET", &path, Fault::Answer(500, "layer is broken"));
    docker(&["pause", &container(&lab, &odd)]);
    agent.until_state(&odd, "unknown");
    relay.mend();
    agent.until_state(&odd, "running");
}

#[test]
fn a_removal_that_is_stuck_says_so_and_holds_no_quota() {
    let Some(lab) = Lab::open("a_removal_that_is_stuck_says_so_and_holds_no_quota") else { return };
    let relay = EngineRelay::start();
    let agent = relayed(&lab, &relay, "limits = { max_sessions_per_user = 1, min_free_disk = 0 }\n");
    for fault in [Fault::Answer(500, "device or resource busy"), Fault::Hang] {
        let session = agent.running("w", "alice");
        let path = format!("/containers/{}", session["container_id"].as_str().unwrap());
        relay.on("DELETE", &path, fault);
        agent.delete(&format!("/v1/sessions/{}", id(&session))).expect(202);
        until("the reservation is free", || allocated(&agent) == 0.0);
        let next = id(&agent.running("w", "alice"));
        if fault != Fault::Hang {
            agent.until(&id(&session), "stuck", |session| {
                session["message"].as_str().is_some_and(|text| text.contains("device or resource busy"))
            });
            until("it is tried again", || relay.calls("DELETE", &path) > 2);
        }
        relay.mend();
        super::remove(&agent, &id(&session));
        super::remove(&agent, &next);
        assert_eq!(sessions_of_containers(&lab), [""; 0]);
    }
}

#[test]
fn an_event_stream_that_ends_is_routine() {
    let Some(lab) = Lab::open("an_event_stream_that_ends_is_routine") else { return };
    let relay = EngineRelay::start();
    let agent = relayed(&lab, &relay, "");
    let sessions = ["alice", "bob", "carol"].map(|user| id(&agent.running("w", user)));
    for session in &sessions {
        let streams = relay.calls("GET", "/events");
        assert_eq!(relay.cut("/events"), 2, "of containers and of images");
        // Between the two streams: the next stream begins with it.
        docker(&["kill", &container(&lab, session)]);
        agent.until_state(session, "failed");
        until("the next streams", || relay.calls("GET", "/events") > streams + 1);
    }
    let log = agent.log();
    for words in ["does not answer", "state=unknown", "runtime_unavailable"] {
        assert!(!log.contains(words), "{log}");
    }
}

/// A workspace that cannot be started anywhere, and what its session says.
fn fails(agent: &Agent, workspace: &str) -> Value {
    let session = id(&agent.create(workspace, "alice").expect(202));
    agent.until_state(&session, "failed")
}

#[test]
fn a_command_that_cannot_be_executed_is_the_workspaces_fault() {
    let Some(lab) = Lab::open("a_command_that_cannot_be_executed_is_the_workspaces_fault") else { return };
    let agent = start(&lab);
    for (name, command, words) in
        [("missing", "/no/such", "No such file"), ("plain", "/etc/passwd", "Permission denied")]
    {
        add(&agent, &lab, name, "", &json!({"command": [command]}));
        for _ in 0..4 {
            let failed = fails(&agent, name);
            assert_eq!(json!([failed["end_reason"], failed["attempt"]]), json!(["start_failed", 1]), "{failed}");
            let message = failed["message"].as_str().unwrap();
            assert!(message.contains(command) && message.contains(words), "{message}");
        }
    }
    assert_eq!(condition(&agent, "failing_starts"), None);
    // A shell that finds no program ran all the same.
    add(&agent, &lab, "shell", "/no/such", &json!({}));
    assert_eq!(fails(&agent, "shell")["end_reason"], "exited");
}

#[test]
fn what_the_host_or_the_registry_lacks_is_a_condition_with_the_engines_words() {
    let Some(lab) = Lab::open("what_the_host_or_the_registry_lacks_is_a_condition_with_the_engines_words") else {
        return;
    };
    let relay = EngineRelay::start();
    let agent = relayed(&lab, &relay, "");
    let full = "could not find an available, non-overlapping IPv4 address pool among the defaults";
    for (kind, method, path, message) in [
        ("network_failing", "POST", "/networks/create", full),
        ("registry_failing", "POST", "/images/create", "Get https://r/v2/: dial tcp: lookup r: no such host"),
    ] {
        if kind == "registry_failing" {
            add(&agent, &lab, "far", FOREVER, &json!({"image": "registry.invalid/x:1", "pull": "missing"}));
        }
        relay.on(method, path, Fault::Answer(404, message));
        let session = id(&agent.create(if kind == "network_failing" { "w" } else { "far" }, "alice").expect(202));
        until("a condition says why", || condition(&agent, kind).is_some_and(|text| text.contains(message)));
        agent.until_state(&session, "failed");
        assert_eq!(allocated(&agent), 0.0, "a session that cannot start holds nothing");
        relay.mend();
    }
    agent.running("w", "alice");
    until("the network's condition ends", || condition(&agent, "network_failing").is_none());
    assert!(condition(&agent, "registry_failing").is_some(), "nothing was pulled since");
}

#[test]
fn the_network_has_the_configured_range() {
    let Some(lab) = Lab::open("the_network_has_the_configured_range") else { return };
    let range = "10.219.64.0/24";
    let with_range = |host: &str| {
        configuration(&lab, host).replace("kind = 'docker'", &format!("kind = 'docker', network_subnet = '{range}'"))
    };
    let agent = Agent::start(&with_range(crate::support::docker::SOCKET));
    add(&agent, &lab, "w", FOREVER, &json!({}));
    agent.running("w", "alice");
    let told = docker(&["network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}}{{end}}", &lab.network()]);
    assert_eq!(told, range);
}

/// Gives the engine an image that says it is for this architecture.
fn load_image_for(architecture: &str, image: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let sh = |script: &str| {
        let output = std::process::Command::new("sh").args(["-c", script]).current_dir(&directory).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let layer = sh("tar -C /bin -cf layer.tar busybox && sha256sum layer.tar");
    let layer = format!("sha256:{}", layer.split(' ').next().unwrap());
    let config = json!({
        "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    std::fs::write(file("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]);
    std::fs::write(file("manifest.json"), manifest.to_string()).unwrap();
    sh("tar -c . | docker load");
}

#[test]
fn an_image_of_another_platform_is_refused_before_a_run() {
    let Some(lab) = Lab::open("an_image_of_another_platform_is_refused_before_a_run") else { return };
    let agent = start(&lab);
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let image = format!("ostler-{}:foreign", lab.cluster);
    load_image_for(other, &image);
    add(&agent, &lab, "foreign", FOREVER, &json!({"image": image}));
    let failed = fails(&agent, "foreign");
    assert_eq!((&failed["end_reason"], &failed["exit_code"]), (&json!("image_failed"), &Value::Null), "{failed}");
    let message = failed["message"].as_str().unwrap();
    let own = agent.node()["runtime"]["platform"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("linux/{other}")) && message.contains(&own), "{message}");
    assert_eq!(condition(&agent, "failing_starts"), None);
}

#[test]
fn the_figures_follow_the_engine_both_ways() {
    let Some(lab) = Lab::open("the_figures_follow_the_engine_both_ways") else { return };
    let has = docker(&["info", "--format", "{{.NCPU}}"]);
    if has.len() != 1 {
        return crate::support::skip("the_figures_follow_the_engine_both_ways", "an engine with fewer than 10 cores");
    }
    let relay = EngineRelay::start();
    let agent = relayed(&lab, &relay, "");
    let cores = |agent: &Agent| agent.node()["resources"]["cores"]["physical"].as_f64();
    assert_eq!(cores(&agent), has.parse().ok());
    add(&agent, &lab, "large", FOREVER, &json!({"cores": 2, "memory_bytes": 16 << 20}));
    let now = format!("\"NCPU\":{has}").leak();
    relay.on("GET", "/info", Fault::Rewrite(now, "\"NCPU\":9"));
    until("cores that were added are offered", || cores(&agent) == Some(9.0));
    let session = id(&agent.running("large", "alice"));
    relay.mend();
    relay.on("GET", "/info", Fault::Rewrite(now, "\"NCPU\":1"));
    until("cores that are gone are not offered", || cores(&agent) == Some(1.0));
    until("a condition says so", || condition(&agent, "overcommitted").is_some());
    agent.until_state(&session, "running");
    agent.create("large", "bob").refused(422, "exceeds_physical");
}

#[test]
fn figures_that_the_engine_does_not_tell_are_unknown_and_not_zero() {
    let name = "figures_that_the_engine_does_not_tell_are_unknown_and_not_zero";
    let Some(lab) = Lab::open(name) else { return };
    let has = docker(&["info", "--format", "{{.NCPU}}"]);
    if has.len() != 1 {
        return crate::support::skip(name, "an engine with fewer than 10 cores");
    }
    let relay = EngineRelay::start();
    relay.on("GET", "/info", Fault::Rewrite(format!("\"NCPU\":{has}").leak(), "\"NCPU\":0"));
    let agent = relayed(&lab, &relay, "");
    let physical = |agent: &Agent, resource: &str| agent.node()["resources"][resource]["physical"].clone();
    until("the engine answers", || physical(&agent, "memory_bytes") != Value::Null);
    assert_eq!(physical(&agent, "cores"), Value::Null);
    let refused = agent.create("w", "alice").refused(503, "no_capacity");
    let reason = &refused["nodes"][0];
    assert_eq!((&reason["reason"], &reason["physical"]), (&json!("physical_unknown"), &Value::Null), "{refused}");
    assert!(agent.cli(&["node", "ls"]).ok().contains("0 of -"));
    assert!(agent.cli(&["node", "show", "self"]).ok().contains("cores of the host: unknown"));
    let metrics = agent.get("/metrics").text();
    assert!(!metrics.contains("ostler_node_cores_physical{") && !metrics.contains("ostler_node_cores_effective{"));
    relay.mend();
    until("the engine tells", || physical(&agent, "cores").as_f64() == has.parse().ok());
    // The leader learns it from the node's next report.
    until("the leader places sessions here", || agent.create("w", "alice").status == 202);
    agent.running("w", "bob");
}
