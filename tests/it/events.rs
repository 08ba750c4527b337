//! The event log: what it tells, who did it, and what outlives a kill, a full disk and a lost node.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::support::agent::{Agent, until};
use crate::support::cluster::Cluster;
use crate::support::http::Request;
use crate::support::skip;
use crate::support::small_disk::SmallDisk;

fn id(session: &Value) -> String {
    session["id"].as_str().unwrap().to_owned()
}

/// The events that the query selects, the oldest first.
fn events(agent: &Agent, query: &str) -> Vec<Value> {
    let mut items =
        agent.get(&format!("/v1/events?limit=1000{query}")).expect(200)["items"].as_array().unwrap().clone();
    items.reverse();
    items
}

fn texts(events: &[Value], field: &str) -> Vec<String> {
    events.iter().map(|event| event[field].as_str().unwrap_or_default().to_owned()).collect()
}

fn seq(event: &Value) -> u64 {
    event["id"].as_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap()
}

/// The frames of a stream of events: id, name and data.
fn frames(agent: &Agent, path: &str, last: Option<&str>) -> impl Iterator<Item = (String, String, Value)> + use<> {
    let mut request = Request::new("GET", path).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    // The lines of the chunks' sizes are not those of a frame.
    let mut lines = agent.client().lines(&request);
    std::iter::from_fn(move || {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let line = lines.next()?;
            match line.split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut id),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => return Some((id, name, serde_json::from_str(value).unwrap())),
                _ => {}
            }
        }
    })
}

#[test]
fn what_people_do_is_told_with_who_did_it_and_through_which_node() {
    let cluster = Cluster::start(3, "");
    let [follower, other] = cluster.followers()[..] else { panic!("three nodes have two followers") };
    let (asked, leader) = (&cluster.nodes[follower], format!("n{}", cluster.leader()));
    let client = asked.tcp(Some(&asked.token("admin")));
    let workspace = json!({"name": "sh", "command": ["sleep", "1000"], "cores": 0.1, "memory_bytes": "8M"});
    client.send(&Request::new("POST", "/v1/workspaces").json(&workspace)).expect(201);
    let path = format!("/v1/nodes/n{other}");
    client.send(&Request::new("PATCH", &path).json(&json!({"cores_override": 12}))).expect(200);
    client.send(&Request::new("POST", &format!("{path}/drain")).json(&json!({}))).expect(200);
    let wanted = json!({"workspace": "sh", "user": "alice"});
    let made = client.send(&Request::new("POST", "/v1/sessions?wait=running&timeout=60s").json(&wanted)).expect(202);
    let session = id(&made);
    asked.client().command(&format!("/v1/sessions/{session}/stop")).expect(202);
    asked.until_state(&session, "stopped");
    asked.tcp(Some(&asked.token("read"))).send(&Request::new("DELETE", &path)).refused(403, "forbidden");
    client.send(&Request::new("POST", "/v1/workspaces").json(&workspace)).refused(409, "conflict");

    // Any node tells of all.
    let reader = &cluster.nodes[other];
    let told = |kind: &str| {
        let found = events(reader, &format!("&kind={kind}"));
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        found[0].clone()
    };
    let by = |event: &Value| (event["who"]["name"].clone(), event["who"]["role"].clone(), event["via"].clone());
    let admin = (json!("test-admin"), json!("admin"), json!(format!("n{follower}")));
    let changed = told("settings_changed");
    assert_eq!(by(&changed), admin);
    assert_eq!((&changed["node"], &changed["severity"]), (&json!(format!("n{other}")), &json!("notice")));
    assert_eq!(changed["data"], json!({"field": "cores_override", "from": 0, "to": 12}));
    assert_eq!(by(&told("drain_started")), admin);
    assert_eq!(told("drain_done")["who"]["kind"], "system");
    assert_eq!((by(&told("workspace_changed")), &told("workspace_changed")["node"]), (admin.clone(), &json!(leader)));
    assert_eq!(by(&told("session_created")), admin);
    assert_eq!(told("session_created")["target"]["id"], json!(session));
    let ended = told("session_ended");
    assert_eq!((&ended["who"]["kind"], &ended["data"]["end_reason"]), (&json!("socket"), &json!("user_stopped")));
    let refused = events(reader, "&kind=request_refused");
    assert_eq!(texts(&refused, "node"), [format!("n{follower}"), format!("n{follower}")]);
    assert_eq!((&refused[0]["data"]["code"], &refused[1]["data"]["code"]), (&json!("forbidden"), &json!("conflict")));
    assert_eq!(events(reader, "&who=test-admin&severity=warning"), [] as [Value; 0]);
    let of_session = events(reader, &format!("&target={}", &session[..8]));
    assert_eq!(texts(&of_session, "kind"), ["session_created", "session_started", "session_ended"]);

    // The command line tells the same, the oldest first.
    let shown = reader.cli(&["events", "--kind", "session_created,settings_changed", "--since", "10m"]).ok();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("cores_override of n"), "{shown}");
    assert!(lines[1].ends_with(&format!("(by test-admin through n{follower})")), "{shown}");
    let json = reader.cli(&["events", &format!("n{other}"), "--kind", "drain_started", "-o", "json"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["kind"], "drain_started");
    assert!(reader.cli(&["events", "--kinds"]).ok().contains("node_lost"));
    reader.cli(&["events", "--since", "yesterday"]).failed(2);
    reader.get("/v1/events?kind=nothing").refused(400, "invalid");
    reader.get("/v1/events?node=nobody").refused(404, "not_found");
}

#[test]
fn a_page_goes_on_where_the_last_one_ended_over_all_nodes() {
    let cluster = Cluster::start(2, "");
    let node = &cluster.nodes[0];
    for n in 0..6 {
        node.patch(&format!("/v1/nodes/n{}", n % 2), &json!({"labels": {"n": n.to_string()}})).expect(200);
    }
    let all: Vec<String> = texts(&events(node, "&kind=settings_changed"), "id");
    assert_eq!(all.len(), 6);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = node.get(&format!("/v1/events?kind=settings_changed&limit=4{after}")).expect(200);
        seen.extend(texts(page["items"].as_array().unwrap(), "id"));
        let Some(next) = page["next_cursor"].as_str() else { break };
        after = format!("&after={next}");
    }
    seen.reverse();
    assert_eq!(seen, all);
}

#[test]
fn what_was_answered_is_in_the_log_of_an_agent_that_was_killed() {
    let mut agent = Agent::start("");
    agent.workspace("w", "sleep 1000", &json!({"cores": 0.01, "memory_bytes": "8M"}));
    let mut made = BTreeSet::new();
    for round in 0..3 {
        for n in 0..10 {
            made.insert(id(&agent.create("w", &format!("u{round}-{n}")).expect(202)));
        }
        agent.kill9();
        agent.up();
    }
    let told: Vec<Value> = events(&agent, "&kind=session_created");
    let told: BTreeSet<String> = told.iter().map(|event| event["target"]["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, made);
    let all = events(&agent, "");
    assert!(all.iter().zip(1..).all(|(event, n)| seq(event) == n), "the numbers have no gap");
    let starts = events(&agent, "&kind=agent_started");
    let unclean: Vec<&Value> = starts.iter().map(|event| &event["data"]["unclean"]).collect();
    assert_eq!(unclean, [false, true, true, true]);
    assert_eq!(agent.sigterm().code(), Some(0));
    agent.up();
    assert_eq!(events(&agent, "&kind=agent_started").last().unwrap()["data"]["unclean"], false);
    // The files are lines of JSON.
    let files = std::fs::read_dir(agent.data_dir().join("events")).unwrap();
    let lines: usize = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap().lines().count()).sum();
    assert_eq!(lines, events(&agent, "").len());
}

#[test]
fn a_full_disk_loses_no_event_and_stops_nothing() {
    let name = "a_full_disk_loses_no_event_and_stops_nothing";
    let Some(disk) = SmallDisk::mount(name, "size=32m") else { return };
    let mut agent = Agent::start(&format!("node = {{ data_dir = '{}' }}", disk.path().display()));
    disk.fill();
    for n in 0..20 {
        agent.delete(&format!("/v1/nodes/nobody-{n}")).refused(404, "not_found");
        agent.post("/v1/workspaces", &json!({"name": format!("w{n}")})).refused(422, "invalid");
    }
    let refused = || {
        events(&agent, "&kind=request_refused")
            .iter()
            .map(|event| event["data"]["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert!(refused() >= 1);
    let before = events(&agent, "");
    agent.kill9();
    disk.free();
    agent.up();
    let after = events(&agent, "");
    assert_eq!(after[..before.len()], before);
    assert!(after.iter().zip(1..).all(|(event, n)| seq(event) == n));
}

#[test]
fn a_stream_of_one_node_resumes_without_a_loss() {
    let mut agent = Agent::start("");
    let change = |agent: &Agent, n: u32| {
        agent.patch("/v1/nodes/self", &json!({"labels": {"n": n.to_string()}})).expect(200);
    };
    let path = "/v1/events?node=self&kind=settings_changed";
    let mut stream = frames(&agent, path, None);
    change(&agent, 1);
    let (last, name, event) = stream.next().unwrap();
    assert_eq!((name.as_str(), &event["data"]["to"]["n"], &event["id"]), ("", &json!("1"), &json!(last)));
    drop(stream);
    for n in 2..5 {
        change(&agent, n);
    }
    agent.kill9();
    agent.up();
    change(&agent, 5);
    let resumed: Vec<Value> =
        frames(&agent, path, Some(&last)).take(4).map(|(_, _, event)| event["data"]["to"]["n"].clone()).collect();
    assert_eq!(resumed, ["2", "3", "4", "5"]);
    let wrong = Request::new("GET", path).header("accept", "text/event-stream").header("last-event-id", "7");
    agent.client().send(&wrong).refused(400, "invalid");
    // Who follows does not delay the stop.
    let mut stream = frames(&agent, path, None);
    change(&agent, 6);
    stream.next().unwrap();
    assert_eq!(agent.sigterm().code(), Some(0));
    assert_eq!(stream.next().unwrap().1, "stopping");
}

#[test]
fn a_leader_tells_that_new_nodes_join_and_not_that_they_are_back() {
    let mut cluster = Cluster::prepare(3, "");
    cluster.nodes[0].up();
    until("it leads alone", || cluster.followed_by(0).as_deref() == Some("n0"));
    cluster.nodes[1..].iter_mut().for_each(Agent::up);
    cluster.settled();
    let joined = || {
        let events = cluster.nodes[0].get("/v1/events?kind=node_joined,node_back").expect(200);
        let events = events["items"].as_array().unwrap().iter();
        let told = events.map(|event| format!("{} {}", event["kind"], event["target"]["name"]).replace('"', ""));
        told.collect::<std::collections::BTreeSet<_>>()
    };
    until("two joined", || joined().len() >= 2);
    assert_eq!(Vec::from_iter(joined()), ["node_joined n1", "node_joined n2"]);
}

#[test]
fn a_stream_of_all_nodes_names_the_one_that_is_away_and_fills_in_what_it_has_to_tell() {
    let mut cluster = Cluster::start(3, "");
    let (leader, [follower, lost]) = (cluster.leader(), cluster.followers()[..].try_into().unwrap());
    let mut stream = frames(&cluster.nodes[follower], "/v1/events", None);
    let change = |cluster: &Cluster, node: usize, n: u32| {
        let change = json!({"labels": {"n": n.to_string()}});
        cluster.nodes[leader].patch(&format!("/v1/nodes/n{node}"), &change).expect(200);
    };
    let mut until_event = |what: &str, wanted: &dyn Fn(&str, &Value) -> bool| loop {
        let (_, name, event) = stream.next().unwrap_or_else(|| panic!("the stream ended before {what}"));
        if wanted(&name, &event) {
            return event;
        }
    };
    for node in [leader, lost] {
        change(&cluster, node, 1);
        until_event("the change", &|_, event| {
            event["kind"] == "settings_changed" && event["node"] == format!("n{node}")
        });
    }
    cluster.nodes[lost].kill9();
    until_event("the gap", &|name, event| name == "gap" && event["node"] == format!("n{lost}"));
    until_event("the loss", &|_, event| event["kind"] == "node_lost" && event["target"]["name"] == format!("n{lost}"));
    cluster.nodes[lost].up();
    let started = until_event("the start", &|_, event| event["kind"] == "agent_started");
    assert_eq!((&started["node"], &started["data"]["unclean"]), (&json!(format!("n{lost}")), &json!(true)));
    until_event("the return", &|_, event| event["kind"] == "node_back");
}

#[test]
fn the_command_line_follows_and_opens_the_stream_again() {
    let mut agent = Agent::start("");
    let mut follow = agent.command(&["events", "-f", "-o", "json", "--kind", "settings_changed,agent_started"]);
    let mut process = follow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["kind"], "agent_started", "it begins with the last events");
    agent.patch("/v1/nodes/self", &json!({"prune": "off"})).expect(200);
    assert_eq!(next()["data"]["field"], "prune");
    agent.kill9();
    agent.up();
    assert_eq!(next()["data"]["unclean"], true);
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn the_hook_is_told_of_the_kinds_that_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, got) = (dir.path().join("hook"), dir.path().join("got"));
    std::fs::write(&hook, format!("#!/bin/sh\ncat >> {}\n", got.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let agent = Agent::start(&format!("events = {{ hook = '{}', hook_kinds = ['settings_changed'] }}", hook.display()));
    agent.patch("/v1/nodes/self", &json!({"prune": "off"})).expect(200);
    until("the hook has run", || std::fs::read_to_string(&got).is_ok_and(|text| text.ends_with('\n')));
    let event: Value = serde_json::from_str(&std::fs::read_to_string(&got).unwrap()).unwrap();
    assert_eq!((&event["kind"], &event["node"]), (&json!("settings_changed"), &json!("one")));
    assert_eq!(event["message"], "prune of one changed from normal to off");
}

/// Whether these programs are on this machine; prints SKIPPED if not.
fn has(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        !std::env::var("PATH").unwrap_or_default().split(':').any(|at| Path::new(at).join(program).is_file())
    });
    missing.inspect(|program| skip(test, program)).is_none()
}

/// Takes one request, answers it, and returns its text.
fn one_request(listener: TcpListener) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        let length = |text: &str| {
            text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())
        };
        loop {
            let count = stream.read(&mut part).unwrap();
            text.extend_from_slice(&part[..count]);
            let read = String::from_utf8_lossy(&text).into_owned();
            let body = read.split_once("\r\n\r\n").map(|(_, body)| body.len());
            if count == 0 || body.is_some_and(|body| body >= length(&read).unwrap_or(0_usize)) {
                stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
                return read;
            }
        }
    })
}

/// Runs an example of a hook with an event, as the agent does.
fn run_example(name: &str, environment: &[(&str, String)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/hooks").join(name);
    let event = json!({
        "id": "aaaaaaaaaaaaaaaa-7", "time": "2026-01-31T12:00:00.000Z", "node": "host-a", "kind": "node_lost",
        "severity": "warning", "target": null, "who": {"kind": "system", "id": null, "name": null, "role": null},
        "via": null, "message": "host-c has not answered for 22 s", "data": {"silent_seconds": 22},
    });
    let mut command = Command::new(path);
    command.envs(environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(format!("{event}\n").as_bytes()).unwrap();
    assert!(process.wait().unwrap().success(), "{name}");
}

#[test]
fn the_examples_of_hooks_pass_an_event_on() {
    if !has("the_examples_of_hooks_pass_an_event_on", &["curl", "jq"]) {
        return;
    }
    let listen = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/topic", listener.local_addr().unwrap());
        (one_request(listener), url)
    };
    let (request, url) = listen();
    run_example("curl", &[("OSTLER_HOOK_URL", url)]);
    let posted = request.join().unwrap();
    assert!(posted.starts_with("POST /topic") && posted.contains("\"kind\":\"node_lost\""), "{posted}");
    let (request, url) = listen();
    run_example("ntfy", &[("OSTLER_NTFY_TOPIC", url)]);
    let posted = request.join().unwrap();
    assert!(posted.contains("title: ostler: node_lost on host-a") && posted.contains("priority: high"), "{posted}");
    assert!(posted.trim_end().ends_with("host-c has not answered for 22 s"), "{posted}");

    let dir = tempfile::tempdir().unwrap();
    let (mail, sent) = (dir.path().join("mail"), dir.path().join("sent"));
    std::fs::write(&mail, format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} > {}\n", sent.display())).unwrap();
    std::fs::set_permissions(&mail, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    run_example("mail", &[("PATH", path), ("OSTLER_MAIL_TO", "ops@example.com".to_owned())]);
    let sent = std::fs::read_to_string(sent).unwrap();
    assert!(sent.starts_with("-s ostler: node_lost on host-a ops@example.com\nhost-c has not answered"), "{sent}");
}
