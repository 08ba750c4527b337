//! The engine restarts, crashes and hangs while sessions run. The agent ends no session because of it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::own_engine::{MemoryGroup, OwnEngine};
use super::{FOREVER, add, command, condition, configuration, container, id};
use crate::support::agent::{Agent, until};
use crate::support::docker::Lab;

/// The agent notices an engine that hangs within this: 30 s between two looks, and some seconds to answer.
const FOUND_OUT: Duration = Duration::from_secs(45);

fn start(lab: &Lab, engine: &OwnEngine) -> Agent {
    let agent = Agent::start(&configuration(lab, &engine.host()));
    add(&agent, lab, "start", FOREVER, &json!({"on_host_restart": "start"}));
    add(&agent, lab, "stop", FOREVER, &json!({"on_host_restart": "stop"}));
    // It ignores SIGTERM, so it runs until the engine kills it after its grace period.
    add(&agent, lab, "stubborn", "trap '' TERM; while :; do sleep 1; done", &json!({}));
    agent
}

fn run(engine: &OwnEngine, lab: &Lab, id: &str) -> String {
    engine.docker(&["inspect", "--format", "{{.Id}} {{.State.StartedAt}}", &container(lab, id)])
}

fn has_condition(agent: &Agent) -> bool {
    agent.node()["conditions"].as_array().unwrap().iter().any(|condition| condition["kind"] == "runtime_unavailable")
}

fn expect_no_engine(agent: &Agent, sessions: &[&String]) {
    for session in sessions {
        agent.until_state(session, "unknown");
    }
    until("the condition", || has_condition(agent));
    let refused = agent.create("start", "bob").refused(503, "runtime_unavailable");
    assert_eq!(refused["retryable"], true, "{refused}");
    agent.get("/livez").expect(200);
}

#[test]
fn sessions_that_an_engine_takes_down_start_again_or_stop() {
    const TEST: &str = "sessions_that_an_engine_takes_down_start_again_or_stop";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(mut engine) = OwnEngine::start(TEST, &lab) else { return };
    let agent = start(&lab, &engine);
    let ([started, stopped], stubborn) =
        (["start", "stop"].map(|name| id(&agent.running(name, "alice"))), id(&agent.running("stubborn", "alice")));
    let ended = id(&agent.running("start", "carol"));
    command(&agent, &ended, "stop");
    agent.until_state(&ended, "stopped");

    for signal in [Signal::TERM, Signal::KILL] {
        let before = [&started, &stubborn].map(|session| run(&engine, &lab, session));
        engine.down(signal);
        expect_no_engine(&agent, &[&started, &stopped, &stubborn]);
        assert_eq!(agent.session(&ended)["state"], "stopped", "an ended session is known without the engine");
        engine.up();
        for (session, before) in [&started, &stubborn].into_iter().zip(before) {
            agent.until_state(session, "running");
            let after = run(&engine, &lab, session);
            assert_ne!(after, before, "{signal:?}: a new run");
            assert_eq!(after[..64], before[..64], "{signal:?}: of the same container");
        }
        let end = agent.until_state(&stopped, "stopped");
        assert_eq!(end["end_reason"], "host_rebooted", "{signal:?}: {end}");
        assert_eq!(agent.session(&ended)["state"], "stopped", "{signal:?}: it had ended before");
        until("no condition", || !has_condition(&agent));
        let allocated = agent.node()["resources"]["cores"]["allocated"].clone();
        assert_eq!(allocated, 0.1, "{signal:?}");
        command(&agent, &stopped, "start");
        agent.until_state(&stopped, "running");
    }
    for session in agent.sessions(false) {
        super::remove(&agent, &id(&session));
    }
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]), "");
}

#[test]
fn an_agent_that_starts_before_its_engine_waits_for_it() {
    const TEST: &str = "an_agent_that_starts_before_its_engine_waits_for_it";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(mut engine) = OwnEngine::start(TEST, &lab) else { return };
    let mut agent = start(&lab, &engine);
    let [started, stopped] = ["start", "stop"].map(|name| id(&agent.running(name, "alice")));
    assert!(agent.sigterm().success());
    engine.down(Signal::TERM);
    agent.up();
    expect_no_engine(&agent, &[&started, &stopped]);
    engine.up();
    agent.until_state(&started, "running");
    assert_eq!(agent.until_state(&stopped, "stopped")["end_reason"], "host_rebooted");
}

#[test]
fn a_hanging_engine_ends_no_session_and_does_not_block_the_agent() {
    const TEST: &str = "a_hanging_engine_ends_no_session_and_does_not_block_the_agent";
    let Some(lab) = Lab::open(TEST) else { return };
    let Some(engine) = OwnEngine::start(TEST, &lab) else { return };
    let agent = start(&lab, &engine);
    let (session, wanted) = (id(&agent.running("start", "alice")), id(&agent.running("stop", "alice")));
    let before = run(&engine, &lab, &session);

    engine.signal(Signal::STOP);
    let frozen = Instant::now();
    // The agent accepts requests meanwhile, and carries them out when the engine answers again.
    command(&agent, &wanted, "stop");
    let taken = agent.create("start", "bob");
    until("the agent notices", || {
        let asked = Instant::now();
        let down = agent.session(&session)["state"] == "unknown";
        assert!(asked.elapsed() < Duration::from_secs(2), "the agent hangs too");
        assert!(frozen.elapsed() < FOUND_OUT, "the agent does not notice that the engine hangs");
        down
    });
    expect_no_engine(&agent, &[&session]);

    engine.signal(Signal::CONT);
    agent.until_state(&session, "running");
    assert_eq!(run(&engine, &lab, &session), before, "the same run continues");
    assert_eq!(agent.session(&session)["message"], json!(null));
    agent.until_state(&wanted, "stopped");
    agent.until_state(&id(&taken.expect(202)), "running");
    until("no condition", || !has_condition(&agent));
}

#[test]
fn an_engine_in_a_smaller_cgroup_than_it_reports_is_a_condition() {
    const TEST: &str = "an_engine_in_a_smaller_cgroup_than_it_reports_is_a_condition";
    let Some(lab) = Lab::open(TEST) else { return };
    // Dropped after the engine.
    let Some(group) = MemoryGroup::make(TEST, 512 << 20) else { return };
    let Some(engine) = OwnEngine::start(TEST, &lab) else { return };
    let agent = Agent::start(&configuration(&lab, &engine.host()));
    let physical = || agent.node()["resources"]["memory_bytes"]["physical"].as_u64();
    until("the engine tells", || physical().is_some());
    assert_eq!(condition(&agent, "engine_limited"), None);
    let reported = physical();
    group.take(engine.process());
    until("the condition", || condition(&agent, "engine_limited").is_some());
    let text = condition(&agent, "engine_limited").unwrap();
    assert!(text.contains("of memory, and its cgroup allows 512 MiB"), "{text}");
    assert_eq!(physical(), reported, "its containers are not in that cgroup");
}
