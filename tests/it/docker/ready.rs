//! When a session can be used, and what its image's health check finds.

use serde_json::{Value, json};

use super::{add, configuration, id, start};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, SOCKET, docker};

/// Begins to listen when it is told to.
const LATE: &str = "mkdir -p /tmp/w; echo up > /tmp/w/health; while ! [ -e /tmp/go ]; do sleep 0.1; done; exec httpd -f -p 8080 -h /tmp/w";

fn tell_to_listen(lab: &Lab, session: &Value) {
    docker(&["exec", &lab.container(&id(session).parse().unwrap()), "touch", "/tmp/go"]);
}

fn held(agent: &Agent, session: &Value, wait: &str) -> Value {
    agent.get(&format!("/v1/sessions/{}?{wait}", id(session))).expect(200)
}

#[test]
fn a_session_is_ready_once_its_port_answers_also_behind_the_engines_proxy() {
    let Some(lab) = Lab::open("a_session_is_ready_once_its_port_answers_also_behind_the_engines_proxy") else { return };
    for publish_address in ["127.0.0.1", "0.0.0.0"] {
        let published = format!("publish_address = '{publish_address}'");
        let agent = Agent::start(&configuration(&lab, SOCKET).replace("publish_address = '127.0.0.1'", &published));
        let ports = json!([{"container_port": 8080}]);
        add(&agent, &lab, "tcp", LATE, &json!({"ports": ports, "ready": {"port": 8080, "timeout_seconds": 1}}));
        add(&agent, &lab, "http", LATE, &json!({"ports": ports, "ready": {"port": 8080, "path": "/health"}}));
        for workspace in ["tcp", "http"] {
            let session = agent.running(workspace, "alice");
            assert_eq!(session["ready_at"], Value::Null);
            let early = held(&agent, &session, "wait=ready&timeout=2s");
            assert_eq!((&early["state"], &early["ready_at"]), (&json!("running"), &Value::Null));
            if workspace == "tcp" {
                let late = agent.until(&id(&session), "late", |session| session["message"].is_string());
                let message = late["message"].as_str().unwrap();
                assert!(message.starts_with("not ready after 1s: port 8080: "), "{message}");
            }
            tell_to_listen(&lab, &session);
            let ready = held(&agent, &session, "wait=ready");
            assert!(ready["ready_at"].is_string(), "{ready}");
            assert_eq!(ready["message"], Value::Null);
            agent.delete(&format!("/v1/sessions/{}?wait=true", id(&session))).expect(200);
        }
    }
}

#[test]
fn create_waits_until_the_session_is_ready() {
    let Some(lab) = Lab::open("create_waits_until_the_session_is_ready") else { return };
    let agent = start(&lab);
    let script = "sleep 1; mkdir -p /tmp/w; echo up > /tmp/w/health; exec httpd -f -p 8080 -h /tmp/w";
    let ready = json!({"ports": [{"container_port": 8080}], "ready": {"port": 8080, "path": "/health"}});
    add(&agent, &lab, "web", script, &ready);
    let made = agent.cli(&["session", "create", "web", "--user", "alice", "-o", "json"]).json();
    assert!(made["ready_at"].is_string(), "{made}");
    let stopped = agent.client().command(&format!("/v1/sessions/{}/stop?wait=stopped", id(&made))).expect(202);
    assert_eq!(stopped["ready_at"], Value::Null);
}

#[test]
fn the_health_check_of_an_image_is_shown_and_ends_nothing() {
    let Some(lab) = Lab::open("the_health_check_of_an_image_is_shown_and_ends_nothing") else { return };
    let agent = start(&lab);
    let image = format!("ostler-{}:health", lab.cluster);
    let base = docker(&["create", &lab.image]);
    let check = "HEALTHCHECK --interval=1s --retries=1 CMD test ! -e /tmp/sick";
    docker(&["commit", "--change", check, base.trim(), &image]);
    docker(&["rm", base.trim()]);
    add(&agent, &lab, "checked", "exec sleep 100000", &json!({"image": image}));
    let session = agent.running("checked", "alice");
    let health = |wanted: &str| agent.until(&id(&session), wanted, |session| session["health"] == wanted);
    health("healthy");
    docker(&["exec", &lab.container(&id(&session).parse().unwrap()), "touch", "/tmp/sick"]);
    let sick = health("unhealthy");
    assert_eq!(sick["state"], "running");
    assert!(agent.cli(&["session", "show", &id(&session)]).ok().contains("unhealthy"));
    agent.client().command(&format!("/v1/sessions/{}/stop?wait=stopped", id(&session))).expect(202);
    until("no health while it does not run", || agent.session(&id(&session))["health"].is_null());
}
