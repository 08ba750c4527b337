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
    // The engine kills the container first. The agent may see that or not.
    let ends = [json!(["failed", "lost", null]), json!(["failed", "exited", 137])];
    assert!(ends.contains(&end(&agent, &gone)), "{}", agent.session(&gone));
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
