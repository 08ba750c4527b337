//! An agent behind the proxies of every day, Debian's nginx and haproxy, with their defaults.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::agent::{Agent, until};
use crate::support::http::{Client, Request};
use crate::support::proxy::{Proxy, UPSTREAM, connections_to};

/// For how long nginx and haproxy wait for an answer here: nginx's default.
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long nginx keeps a connection by default.
const KEEP: &str = "60s";
/// States of a connection in `/proc/net/tcp`. The side that closes first waits.
const ESTABLISHED: &str = "01";
const TIME_WAIT: &str = "06";

/// An agent that lets nginx pass requests on under the name of its upstream.
fn agent() -> Agent {
    Agent::start(&format!("http = {{ allowed_hosts = ['{UPSTREAM}'] }}"))
}

/// nginx with its defaults and haproxy in front of the agent; without those that the machine lacks.
fn proxies(test: &str, agent: &Agent) -> Vec<(&'static str, Proxy)> {
    let address = agent.tcp_address();
    let nginx = Proxy::nginx(test, &address, KEEP).map(|proxy| ("nginx", proxy));
    let haproxy = Proxy::haproxy(test, &address).map(|proxy| ("haproxy", proxy));
    nginx.into_iter().chain(haproxy).collect()
}

#[test]
fn nginx_reaches_health_under_the_name_of_its_upstream_and_nothing_else() {
    let agent = Agent::start("");
    let test = "nginx_reaches_health_under_the_name_of_its_upstream_and_nothing_else";
    let Some(nginx) = Proxy::nginx(test, &agent.tcp_address(), KEEP) else { return };
    let token = agent.token("read");
    let client = nginx.client("default.sock", Some(&token));
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(client.get(path).expect(200)["status"], "ok");
    }
    let refused = client.get("/v1/status").refused(403, "forbidden");
    assert!(refused["message"].as_str().unwrap().contains(UPSTREAM), "{refused}");
    // It passes on what the caller sends once it is told to.
    nginx.client("kept.sock", Some(&token)).get("/v1/status").expect(200);
}

#[test]
fn haproxy_checks_health_without_a_host() {
    let agent = Agent::start("");
    let Some(haproxy) = Proxy::haproxy("haproxy_checks_health_without_a_host", &agent.tcp_address()) else { return };
    let mut state = String::new();
    until("a check", || {
        let table = haproxy.client("admin.sock", None).exchange(b"show stat\n").unwrap();
        let table = String::from_utf8_lossy(&table).into_owned();
        state = table.lines().find(|line| line.starts_with("agents,one,")).unwrap().to_owned();
        state.contains(",L7")
    });
    assert!(state.contains(",UP,") && state.contains(",L7OK,"), "{state}");
    haproxy.client("default.sock", None).get("/readyz").expect(200);
    haproxy.client("default.sock", Some(&agent.token("read"))).get("/v1/status").expect(200);
}

#[test]
fn a_held_answer_comes_before_a_proxy_gives_up() {
    let agent = agent();
    let proxies = proxies("a_held_answer_comes_before_a_proxy_gives_up", &agent);
    if proxies.is_empty() {
        return;
    }
    agent.workspace("shell", "exec sleep 600", &json!({}));
    let session = agent.running("shell", "alice");
    let path = format!("/v1/sessions/{}?wait=stopped", session["id"].as_str().unwrap());
    let token = agent.token("read");
    std::thread::scope(|scope| {
        for (name, proxy) in &proxies {
            let client = proxy.client("default.sock", Some(&token));
            let path = &path;
            scope.spawn(move || {
                let begun = Instant::now();
                let answer = client.get(path);
                let taken = begun.elapsed();
                assert_eq!(answer.status, 200, "{name}, after {taken:?}: {}", answer.text());
                assert_eq!(answer.json()["state"], "running", "{name}");
                assert!(taken < PATIENCE, "{name}: {taken:?}");
            });
        }
    });
}

#[test]
fn a_followed_log_passes_a_proxy_as_it_is_written() {
    let agent = agent();
    let go = agent.directory().join("go");
    let script = format!("echo first; until [ -e {} ]; do sleep 0.05; done; echo last", go.display());
    agent.workspace("talk", &script, &json!({}));
    let proxies = proxies("a_followed_log_passes_a_proxy_as_it_is_written", &agent);
    let token = agent.token("read");
    let session = agent.running("talk", "alice");
    let request = Request::new("GET", &format!("/v1/sessions/{}/logs?follow=true", session["id"].as_str().unwrap()));
    let follow = |client: Client| client.lines(&request).skip_while(|line| !line.is_empty());
    let mut followed: Vec<_> =
        proxies.iter().map(|(name, proxy)| (name, follow(proxy.client("default.sock", Some(&token))))).collect();
    // The session goes on once every follower has its first line.
    for (name, lines) in &mut followed {
        assert!(lines.any(|line| line == "first"), "{name}");
    }
    std::fs::write(go, "").unwrap();
    for (name, mut lines) in followed {
        assert!(lines.any(|line| line == "last"), "{name}");
    }
}

#[test]
fn nginx_uses_a_kept_connection_again_and_is_the_side_that_closes_it() {
    let agent = Agent::start("");
    let address = agent.tcp_address();
    let test = "nginx_uses_a_kept_connection_again_and_is_the_side_that_closes_it";
    // Longer than the head of a request may take.
    let Some(nginx) = Proxy::nginx(test, &address, "12s") else { return };
    let client = nginx.client("kept.sock", None);
    client.get("/livez").expect(200);
    let kept = connections_to(&address, ESTABLISHED);
    assert_eq!(kept.len(), 1, "{kept:?}");
    client.get("/livez").expect(200);
    assert_eq!(connections_to(&address, ESTABLISHED), kept, "the second request has no connection of its own");
    until("the end of the connection", || connections_to(&address, ESTABLISHED).is_empty());
    assert!(connections_to(&address, TIME_WAIT).contains(&kept[0]), "the agent closed it");
}
