//! How sessions end, with and without a request, and what happens if `docker` changes them.

use serde_json::{Value, json};

use super::{FOREVER, add, command, container, id, run, start, until_it_sleeps};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, docker};

/// State, reason and exit code of a session that has ended.
fn end(agent: &Agent, id: &str) -> Value {
    let session = agent.until(id, "ended", |session| session["state"] == "stopped" || session["state"] == "failed");
    json!([session["state"], session["end_reason"], session["exit_code"]])
}

#[test]
fn a_session_that_ends_says_how() {
    let Some(lab) = Lab::open("a_session_that_ends_says_how") else { return };
    let agent = start(&lab);
    let little = json!({"memory_bytes": 8 << 20});
    for (name, script, ended) in [
        ("well", "exit 0", json!(["stopped", "exited", 0])),
        ("badly", "exit 3", json!(["failed", "exited", 3])),
        // `tail` keeps a line without end in memory.
        ("greedy", "exec tail /dev/zero", json!(["failed", "oom_killed", 137])),
        ("typo", "exec /no/such/program", json!(["failed", "exited", 127])),
    ] {
        add(&agent, &lab, name, script, &little);
        let session = id(&agent.create(name, "alice").expect(202));
        assert_eq!(end(&agent, &session), ended, "{name}");
    }
    let resources = agent.node()["resources"].clone();
    assert_eq!(resources["memory_bytes"]["allocated"], 0, "an ended session holds nothing: {resources}");
    let message = agent.sessions(false).iter().find(|s| s["workspace"] == "greedy").unwrap()["message"].clone();
    assert!(message.as_str().unwrap().contains("8 MiB of memory"), "{message}");
}

#[test]
fn changes_made_with_docker_are_noticed_or_undone() {
    let Some(lab) = Lab::open("changes_made_with_docker_are_noticed_or_undone") else { return };
    let agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let begin = || id(&agent.running("w", "alice"));

    let (stopped, killed, gone) = (begin(), begin(), begin());
    until_it_sleeps(&lab, &stopped);
    docker(&["stop", &container(&lab, &stopped)]);
    assert_eq!(end(&agent, &stopped), json!(["failed", "exited", 143]));
    docker(&["kill", &container(&lab, &killed)]);
    assert_eq!(end(&agent, &killed), json!(["failed", "exited", 137]));
    docker(&["rm", "--force", &container(&lab, &gone)]);
    // The engine kills the container first, which is part of its removal.
    assert_eq!(end(&agent, &gone), json!(["failed", "lost", null]), "{}", agent.session(&gone));
    super::remove(&agent, &gone);

    let session = begin();
    let running = run(&lab, &session);
    docker(&["pause", &container(&lab, &session)]);
    until("resumed", || run(&lab, &session) == running);
    assert_eq!(agent.session(&session)["state"], "running");

    command(&agent, &session, "pause");
    agent.until_state(&session, "paused");
    docker(&["unpause", &container(&lab, &session)]);
    until("paused again", || run(&lab, &session).ends_with("paused"));
    command(&agent, &session, "resume");
    agent.until_state(&session, "running");
    assert_eq!(run(&lab, &session), running, "the run is the same");
}

#[test]
fn a_stopped_session_started_with_docker_is_stopped_again() {
    let Some(lab) = Lab::open("a_stopped_session_started_with_docker_is_stopped_again") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let session = id(&agent.running("w", "alice"));
    until_it_sleeps(&lab, &session);
    command(&agent, &session, "stop");
    agent.until_state(&session, "stopped");
    docker(&["start", &container(&lab, &session)]);
    until_it_sleeps(&lab, &session);
    // The agent lists all containers at its next start at the latest.
    agent.restart();
    until("stopped again", || run(&lab, &session).ends_with("exited"));
    assert_eq!(end(&agent, &session), json!(["stopped", "user_stopped", 143]));
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 0.0);
    command(&agent, &session, "start");
    agent.until_state(&session, "running");
}

#[test]
fn a_child_that_is_killed_for_its_memory_does_not_decide_how_the_session_ends() {
    let Some(lab) = Lab::open("a_child_that_is_killed_for_its_memory_does_not_decide_how_the_session_ends") else {
        return;
    };
    let agent = start(&lab);
    let little = json!({"memory_bytes": 8 << 20});
    add(&agent, &lab, "three", "tail /dev/zero; exit 3", &little);
    let session = id(&agent.create("three", "alice").expect(202));
    assert_eq!(end(&agent, &session), json!(["failed", "exited", 3]));
    let message = agent.session(&session)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("exit code 3") && message.contains("8 MiB of memory"), "{message}");

    add(&agent, &lab, "later", "tail /dev/zero; echo ready; exec sleep 100000", &little);
    let session = id(&agent.running("later", "alice"));
    until("the child was killed", || docker(&["logs", &container(&lab, &session)]).contains("ready"));
    docker(&["kill", &container(&lab, &session)]);
    assert_eq!(end(&agent, &session), json!(["failed", "exited", 137]), "killed by a person");
}

#[test]
fn a_session_is_killed_after_its_own_grace_and_says_so() {
    let Some(lab) = Lab::open("a_session_is_killed_after_its_own_grace_and_says_so") else { return };
    let agent = start(&lab);
    let saves = "trap 'sleep 12; exit 0' TERM; while true; do sleep 0.1; done";
    add(&agent, &lab, "saves", saves, &json!({"stop_grace_seconds": 30}));
    add(&agent, &lab, "stubborn", "trap '' TERM; while true; do sleep 0.1; done", &json!({"stop_grace_seconds": 1}));
    let [saves, stubborn] = ["saves", "stubborn"].map(|name| id(&agent.running(name, "alice")));
    for session in [&saves, &stubborn] {
        // A signal that arrives before the trap is set ends the shell.
        until("the trap is set", || docker(&["top", &container(&lab, session), "-eo", "pid,comm"]).contains("sleep"));
        command(&agent, session, "stop");
    }
    assert_eq!(end(&agent, &stubborn), json!(["stopped", "user_stopped", 137]));
    let message = agent.session(&stubborn)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("killed") && message.contains("1 s"), "{message}");
    assert_eq!(end(&agent, &saves), json!(["stopped", "user_stopped", 0]));
    assert_eq!(agent.session(&saves)["message"], Value::Null);
}

#[test]
fn a_stopped_session_whose_container_was_removed_is_not_started_empty() {
    let Some(lab) = Lab::open("a_stopped_session_whose_container_was_removed_is_not_started_empty") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let [known, unknown] = [(); 2].map(|()| id(&agent.running("w", "alice")));
    for session in [&known, &unknown] {
        command(&agent, session, "stop");
        agent.until_state(session, "stopped");
    }
    docker(&["rm", &container(&lab, &unknown)]);
    // The agent has not looked since: the start finds out.
    command(&agent, &unknown, "start");
    assert_eq!(end(&agent, &unknown)[1], "lost");
    docker(&["rm", &container(&lab, &known)]);
    agent.restart();
    let shown = agent.until(&known, "its container is gone", |session| session["message"].is_string());
    assert_eq!(shown["state"], "stopped");
    let refused = agent.client().command(&format!("/v1/sessions/{known}/start")).refused(409, "conflict");
    for message in [&shown["message"], &refused["message"], &agent.session(&unknown)["message"]] {
        assert!(message.as_str().unwrap().contains("the files in it are gone"), "{message}");
    }
}

#[test]
fn a_start_waits_for_a_port_that_another_program_has() {
    let Some(lab) = Lab::open("a_start_waits_for_a_port_that_another_program_has") else { return };
    let agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({"ports": [{"container_port": 8080}]}));
    let session = agent.running("w", "alice");
    let port = session["endpoints"][0]["host_port"].as_u64().unwrap();
    let session = id(&session);
    command(&agent, &session, "stop");
    agent.until_state(&session, "stopped");
    let taken = std::net::TcpListener::bind(("0.0.0.0", u16::try_from(port).unwrap())).unwrap();
    let refused = agent.client().command(&format!("/v1/sessions/{session}/start")).refused(503, "no_capacity");
    assert!(refused["message"].as_str().unwrap().contains(&port.to_string()), "{refused}");
    assert_eq!((&refused["retryable"], &agent.session(&session)["state"]), (&json!(true), &json!("stopped")));
    drop(taken);
    command(&agent, &session, "start");
    agent.until_state(&session, "running");
}
