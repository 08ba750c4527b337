//! Images are pulled on demand from a registry on loopback.

use serde_json::json;

use super::{FOREVER, add, id, run, sessions_of_containers, start};
use crate::support::agent::{Agent, until};
use crate::support::docker::{Lab, Registry};

/// Bytes; enough that the test can look at the pull before it is done.
const NOISE: u64 = 160 << 20;

/// Creates a session of an image that is only in the registry, and waits until the pull begins.
fn pulling(agent: &Agent, lab: &Lab, registry: &Registry) -> String {
    let image = registry.publish(&lab.cluster, NOISE);
    add(agent, lab, "far", FOREVER, &json!({"image": image}));
    let session = id(&agent.create("far", "alice").expect(202));
    agent.until_state(&session, "pulling");
    session
}

#[test]
fn a_pull_shows_its_progress() {
    const TEST: &str = "a_pull_shows_its_progress";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let agent = start(&lab);
    let session = pulling(&agent, &lab, &registry);
    let measured = agent.until(&session, "measured", |session| {
        let message = session["message"].as_str().unwrap_or_default();
        assert_ne!(session["state"], "running", "it ran before any progress was seen");
        message.contains(" of ")
    });
    // On a busy machine the test may miss the whole download.
    let message = measured["message"].as_str().unwrap();
    assert!(message.starts_with("pulling ") || message.starts_with("unpacking, "), "{measured}");
    let running = agent.until_state(&session, "running");
    assert_eq!(running["message"], json!(null));
    assert!(running["image_digest"].as_str().unwrap().starts_with("sha256:"), "{running}");
}

#[test]
fn a_missing_image_fails_the_session_and_is_named() {
    const TEST: &str = "a_missing_image_fails_the_session_and_is_named";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let agent = start(&lab);
    let image = registry.reference(&lab.cluster);
    add(&agent, &lab, "none", FOREVER, &json!({"image": image}));
    let session = id(&agent.create("none", "alice").expect(202));
    let failed = agent.until_state(&session, "failed");
    assert_eq!(failed["end_reason"], "image_failed");
    let message = failed["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("cannot pull {image}: ")) && message.contains("not found"), "{message}");
    let told = agent.cli(&["session", "create", "none"]).failed(1);
    assert!(told.contains(&image), "{told}");
    let condition = agent.node()["conditions"].as_array().unwrap().iter().any(|c| c["kind"] == "failing_starts");
    assert!(!condition, "two failures are too few for the condition");
}

#[test]
fn a_pull_is_cancelled_with_its_session_and_repeated_by_the_next_agent() {
    const TEST: &str = "a_pull_is_cancelled_with_its_session_and_repeated_by_the_next_agent";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(registry) = Registry::start(TEST) else { return };
    let mut agent = start(&lab);
    let session = pulling(&agent, &lab, &registry);
    let second = id(&agent.create("far", "bob").expect(202));
    let removed = agent.delete(&format!("/v1/sessions/{session}?wait=true&timeout=5s"));
    removed.expect(200);
    assert_eq!(agent.session(&second)["state"], "pulling", "the removal did not wait for the pull");
    agent.kill9();
    agent.up();
    agent.until_state(&second, "running");
    until("one container", || sessions_of_containers(&lab) == [second.clone()]);
    assert!(run(&lab, &second).ends_with("running"));
}
