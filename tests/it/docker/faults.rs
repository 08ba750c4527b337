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
        assert_eq!(relay.cut("/events"), 1);
        // Between the two streams: the next stream begins with it.
        docker(&["kill", &container(&lab, session)]);
        agent.until_state(session, "failed");
        until("the next stream", || relay.calls("GET", "/events") > streams);
    }
    let log = agent.log();
    for words in ["does not answer", "state=unknown", "runtime_unavailable"] {
        assert!(!log.contains(words), "{log}");
    }
}
