//! Sessions outlive the agent, however it ends, and the next agent adopts them unchanged.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::{FOREVER, add, add_web, command, container, id, page, run, sessions_of_containers, start, until_it_sleeps};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, docker};
use crate::support::http::Request;

#[test]
fn a_session_lives_on_while_its_agent_stops_is_killed_and_is_upgraded() {
    let Some(lab) = Lab::open("a_session_lives_on_while_its_agent_stops_is_killed_and_is_upgraded") else { return };
    let mut agent = start(&lab);
    add_web(&agent, &lab);
    let session = agent.running("web", "alice");
    let shown = agent.session(&id(&session));
    let (session, before) = (id(&session), page(&session));
    assert_eq!(before, "hello alice\n");
    let running = run(&lab, &session);
    let newer = agent.directory().join("ostler-newer");
    fs::copy(env!("CARGO_BIN_EXE_ostler"), &newer).unwrap();

    for (how, go) in [
        ("stopped", (|agent| assert!(agent.sigterm().success())) as fn(&mut Agent)),
        ("killed", Agent::kill9),
        ("upgraded", |agent| {
            assert!(agent.sigterm().success());
            agent.run_with(&agent.directory().join("ostler-newer"));
        }),
    ] {
        go(&mut agent);
        assert_eq!(run(&lab, &session), running, "{how}");
        assert_eq!(page(&shown), before, "{how}: it serves without its agent");
        agent.up();
        assert_eq!(agent.until_state(&session, "running"), shown, "{how}");
        assert_eq!(run(&lab, &session), running, "{how}");
        assert_eq!(agent.node()["resources"]["cores"]["allocated"], 0.05, "{how}");
    }
}

#[test]
fn without_a_journal_sessions_are_adopted_from_their_labels() {
    let Some(lab) = Lab::open("without_a_journal_sessions_are_adopted_from_their_labels") else { return };
    let mut agent = start(&lab);
    add_web(&agent, &lab);
    let request = Request::new("POST", "/v1/sessions?wait=running&timeout=60s")
        .header("idempotency-key", "one")
        .json(&json!({"workspace": "web", "user": "alice"}));
    let shown = agent.client().send(&request).expect(202);
    let session = id(&shown);
    let stopped = id(&agent.running("web", "bob"));
    command(&agent, &stopped, "stop");
    agent.until_state(&stopped, "stopped");
    let running = run(&lab, &session);

    assert!(agent.sigterm().success());
    fs::remove_file(agent.data_dir().join("sessions.redb")).unwrap();
    agent.up();
    let adopted = agent.until_state(&session, "running");
    for field in ["id", "user", "workspace", "image", "container_id", "cores", "memory_bytes", "endpoints"] {
        assert_eq!(adopted[field], shown[field], "{field}");
    }
    assert_eq!(run(&lab, &session), running);
    assert_eq!(agent.client().send(&request).expect(200)["id"], shown["id"], "its key still returns it");
    agent.until(&stopped, "ended", |session| session["state"] == "failed" || session["state"] == "stopped");
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 0.05);
    assert_eq!(sessions_of_containers(&lab).len(), 2);
}

#[test]
fn changes_while_the_agent_was_down_are_found() {
    let Some(lab) = Lab::open("changes_while_the_agent_was_down_are_found") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let [vanished, ended, paused] = [(); 3].map(|()| id(&agent.running("w", "alice")));
    until_it_sleeps(&lab, &ended);
    agent.kill9();
    docker(&["rm", "--force", &container(&lab, &vanished)]);
    docker(&["kill", "--signal", "TERM", &container(&lab, &ended)]);
    docker(&["pause", &container(&lab, &paused)]);
    agent.up();
    assert_eq!(agent.until_state(&vanished, "failed")["end_reason"], "lost");
    let ended = agent.until_state(&ended, "failed");
    assert_eq!((&ended["end_reason"], &ended["exit_code"]), (&json!("exited"), &json!(143)));
    until("resumed", || run(&lab, &paused).ends_with("running"));
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 0.05);
}

#[test]
fn a_removed_sessions_container_that_came_back_is_removed_again() {
    let Some(lab) = Lab::open("a_removed_sessions_container_that_came_back_is_removed_again") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    let session = id(&agent.running("w", "alice"));
    let name = container(&lab, &session);
    let labels: Value =
        serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config.Labels}}", &name])).unwrap();
    super::remove(&agent, &session);
    agent.kill9();

    let mut again: Vec<String> = ["run", "--detach", "--name", &name].map(str::to_owned).to_vec();
    for (key, value) in labels.as_object().unwrap() {
        again.extend(["--label".to_owned(), format!("{key}={}", value.as_str().unwrap())]);
    }
    again.extend([lab.image.clone(), "sleep".to_owned(), "1000".to_owned()]);
    docker(&again.iter().map(String::as_str).collect::<Vec<_>>());
    agent.up();
    until("removed again", || sessions_of_containers(&lab).is_empty());
    until("gone", || agent.sessions(false).is_empty());
}

/// I6: an acknowledged request is carried out, at whatever point the agent was killed.
#[test]
fn an_agent_killed_right_after_its_answer_has_lost_nothing() {
    let Some(lab) = Lab::open("an_agent_killed_right_after_its_answer_has_lost_nothing") else { return };
    let mut agent = start(&lab);
    add(&agent, &lab, "w", FOREVER, &json!({}));
    for delay in [0, 3, 20, 60, 150, 300].map(Duration::from_millis) {
        let session = id(&agent.create("w", "alice").expect(202));
        std::thread::sleep(delay);
        agent.kill9();
        agent.up();
        agent.until_state(&session, "running");
        assert_eq!(sessions_of_containers(&lab), [session.as_str()], "killed {delay:?} after the answer");

        command(&agent, &session, "stop");
        std::thread::sleep(delay);
        agent.kill9();
        agent.up();
        agent.until_state(&session, "stopped");
        assert!(run(&lab, &session).ends_with("exited"), "killed {delay:?} after the answer");

        agent.delete(&format!("/v1/sessions/{session}")).expect(202);
        std::thread::sleep(delay);
        agent.kill9();
        agent.up();
        until("removed", || agent.sessions(false).is_empty());
        assert_eq!(sessions_of_containers(&lab), [""; 0], "killed {delay:?} after the answer");
    }
}
