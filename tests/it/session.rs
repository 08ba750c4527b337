//! The whole life of a session on the real agent, through HTTP and the command line.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use ostler::types::Timestamp;
use serde_json::{Value, json};

use crate::support::agent::{Agent, lives, until};
use crate::support::http::Request;

const ROOMY: &str = "dev = { physical_cores = 64, physical_memory = '64GiB' }";
/// Ends at once on SIGTERM.
const SERVE: &str = "echo up; exec sleep 600";

fn id(session: &Value) -> &str {
    session["id"].as_str().unwrap()
}

fn path(session: &Value, command: &str) -> String {
    format!("/v1/sessions/{}{command}", id(session))
}

fn command_pid(agent: &Agent, session: &Value) -> i64 {
    agent.process_state(id(session))["command"]["pid"].as_i64().expect("a command that was started")
}

fn millis(time: &Value) -> i64 {
    serde_json::from_value::<Timestamp>(time.clone()).unwrap().millis()
}

fn ids(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|session| id(session).to_owned()).collect()
}

#[test]
fn a_session_is_made_stopped_started_paused_resumed_and_removed() {
    let agent = Agent::start(ROOMY);
    agent.workspace(
        "shell",
        SERVE,
        &json!({"ports": [{"container_port": 80}, {"container_port": 53, "protocol": "udp"}]}),
    );
    let first = agent.running("shell", "alice");
    let endpoints = first["endpoints"].clone();
    assert_eq!(endpoints.as_array().unwrap().len(), 2, "{endpoints}");
    assert_eq!((&endpoints[0]["host"], &endpoints[1]["protocol"]), (&json!("localhost"), &json!("udp")));
    let pid = command_pid(&agent, &first);
    assert!(lives(pid));

    let stopped = agent.client().command(&path(&first, "/stop?wait=stopped")).expect(202);
    assert_eq!((&stopped["state"], &stopped["end_reason"]), (&json!("stopped"), &json!("user_stopped")));
    assert!(!lives(pid), "a stopped session has no process");
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 0);
    assert_eq!(agent.node()["sessions"], 0);
    agent.client().command(&path(&first, "/pause")).refused(409, "conflict");

    let started = agent.client().command(&path(&first, "/start?wait=running")).expect(202);
    assert_eq!((&started["state"], &started["end_reason"]), (&json!("running"), &Value::Null));
    assert_eq!(started["endpoints"], endpoints, "it keeps its ports");
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 1);
    agent.client().command(&path(&first, "/start")).expect(202);

    let paused = agent.client().command(&path(&first, "/pause?wait=paused")).expect(202);
    assert_eq!(paused["state"], "paused");
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 1, "a paused session keeps its reservation");
    let resumed = agent.client().command(&path(&first, "/resume?wait=running")).expect(202);
    assert_eq!(resumed["state"], "running");

    let pid = command_pid(&agent, &first);
    agent.delete(&path(&first, "?wait=true")).expect(200);
    assert!(!lives(pid));
    assert_eq!(agent.sessions(false), Vec::<Value>::new());
    assert_eq!(agent.sessions(true).len(), 1, "it stays known for retries");
    assert_eq!(agent.process_directories(), Vec::<String>::new());
    agent.delete(&path(&first, "")).expect(200);
    agent.client().command(&path(&first, "/start")).refused(409, "conflict");
}

#[test]
fn the_command_line_does_the_same() {
    let agent = Agent::start(ROOMY);
    let added = ["workspace", "add", "shell", "--cores", "0.5", "--memory", "64MiB", "--port", "80", "--"];
    agent.cli(&[&added[..], &["/bin/sh", "-c", SERVE]].concat()).ok();
    let session = agent.cli(&["session", "create", "shell", "--user", "alice", "-o", "json"]).json();
    assert_eq!((&session["state"], &session["cores"]), (&json!("running"), &json!(0.5)));
    let short = &id(&session)[..8];
    assert!(agent.cli(&["session", "ls"]).ok().contains(short));
    assert!(agent.cli(&["session", "show", short]).ok().contains("running"));
    until("its log", || agent.cli(&["session", "logs", short]).ok() == "up\n");
    for (verb, state) in [("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")] {
        agent.cli(&["session", verb, short]).ok();
        agent.until_state(short, state);
    }
    agent.cli(&["session", "keepalive", short, "--by", "bob"]).ok();
    assert_eq!(agent.session(short)["kept_alive_by"], "bob");
    agent.cli(&["session", "extend", short, "--ttl", "1h"]).ok();
    assert!(agent.cli(&["session", "explain", short]).ok().contains("one"));
    agent.cli(&["session", "rm", short]).ok();
    assert!(!agent.cli(&["session", "ls"]).ok().contains(short));
    assert!(agent.cli(&["session", "ls", "--all"]).ok().contains(short));
    assert!(agent.cli(&["session", "show", "zzzzzzzz"]).failed(1).contains("no session"));
    agent.cli(&["session", "create", "nothing"]).failed(1);
    agent.cli(&["session", "create"]).failed(2);
    assert_eq!(agent.cli_with(&["status"], &[("OSTLER_SOCKET", "/nowhere/ostler.sock")], "").code, 4);
}

#[test]
fn a_command_that_exits_is_shown_with_its_exit_code() {
    let agent = Agent::start(ROOMY);
    for (name, script, state, code) in
        [("good", "exit 0", "stopped", 0), ("bad", "exit 3", "failed", 3), ("killed", "kill -9 $$", "failed", 137)]
    {
        agent.workspace(name, script, &json!({}));
        let session = agent.create(name, "alice").expect(202);
        let ended = agent.until_state(id(&session), state);
        assert_eq!((&ended["exit_code"], &ended["end_reason"]), (&json!(code), &json!("exited")), "{name}: {ended}");
    }
    agent
        .post("/v1/workspaces", &json!({"name": "none", "command": ["/no/such"], "cores": 1, "memory_bytes": 64 << 20}))
        .expect(201);
    let failed = agent.post("/v1/sessions?wait=running", &json!({"workspace": "none", "user": "alice"})).expect(202);
    assert_eq!((&failed["state"], &failed["end_reason"]), (&json!("failed"), &json!("start_failed")));
    assert!(failed["message"].as_str().unwrap().contains("/no/such"), "{failed}");
    assert_eq!(agent.node()["sessions"], 0);
    // The command line says why it does not run.
    let told = agent.cli(&["session", "create", "none"]).failed(1);
    assert!(told.contains("/no/such"), "{told}");
}

#[test]
fn the_longest_environment_that_a_workspace_may_have_starts() {
    let agent = Agent::start(ROOMY);
    // With users of 1024 bytes this is 1 byte below the kernel's 128 KiB, with the name, `=` and NUL.
    let templates = json!({"BIG": format!("{}{}", "{user}".repeat(127), "x".repeat(1018))});
    let plain = (0..27).map(|i| (format!("V{i}"), json!("x".repeat(32 << 10))));
    let mut env: serde_json::Map<String, Value> = plain.collect();
    env.extend(templates.as_object().unwrap().clone());
    agent.workspace("big", "echo ${#BIG} $V26 | wc -c; exec sleep 600", &json!({"env": env}));
    let session = agent.running("big", &"\u{1f600}".repeat(256));
    let lengths = format!("{}\n", "131066 ".len() + (32 << 10) + "\n".len());
    until("the command has it", || agent.get(&path(&session, "/logs")).text() == lengths);
    env.insert("BIG".to_owned(), json!("{user}".repeat(128)));
    let request = json!({"workspace": "big", "user": "alice", "env": {"BIG": env["BIG"]}});
    agent.post("/v1/sessions", &request).refused(422, "invalid");
}

#[test]
fn logs_are_kept_followed_and_cut() {
    let agent = Agent::start(ROOMY);
    let go = agent.directory().join("go");
    agent.workspace(
        "talk",
        &format!(
            "for n in 1 2 3; do echo line $n; done; until [ -e {} ]; do sleep 0.05; done; echo last",
            go.display()
        ),
        &json!({}),
    );
    let session = agent.running("talk", "alice");
    until("three lines", || agent.get(&path(&session, "/logs")).text() == "line 1\nline 2\nline 3\n");
    let logs = agent.get(&path(&session, "/logs?tail=1"));
    assert_eq!(logs.text(), "line 3\n");
    assert!(logs.header("content-type").unwrap().starts_with("text/plain"));

    // A follower sees output as it is written, and the end.
    let mut following = agent.command(&["session", "logs", "--follow", id(&session)]).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.by_ref().take(3).collect::<Vec<_>>(), ["line 1", "line 2", "line 3"]);
    std::fs::write(go, "").unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["last"]);
    assert!(following.wait().unwrap().success());
    agent.until_state(id(&session), "stopped");
    let whole = agent.get(&path(&session, "/logs"));
    assert!(whole.text().ends_with("last\n"), "the log outlives the run");
    assert_eq!(whole.header("x-accel-buffering"), None);
    let followed = agent.get(&path(&session, "/logs?follow=true"));
    assert_eq!((followed.header("x-accel-buffering"), followed.text()), (Some("no"), whole.text()));
}

#[test]
fn ttl_and_idle_timeout_end_sessions_and_keepalive_keeps_them() {
    let agent = Agent::start(ROOMY);
    agent.workspace("brief", SERVE, &json!({"ttl_seconds": 2}));
    agent.workspace("idle", SERVE, &json!({"idle_timeout_seconds": 2}));
    let brief = agent.running("brief", "alice");
    let extended = agent.running("brief", "alice");
    let idle = agent.running("idle", "alice");
    let later = agent.post(&path(&extended, "/extend"), &json!({"ttl_seconds": 600})).expect(202);
    assert!(millis(&later["expires_at"]) > millis(&extended["expires_at"]) + 500_000);
    let same = agent.post(&path(&extended, "/extend"), &json!({"ttl_seconds": 1})).expect(202);
    // The time is shown by the wall clock, which rounds and may be set.
    let moved = millis(&same["expires_at"]) - millis(&later["expires_at"]);
    assert!(moved.abs() < 1000, "never shortened, but by {moved} ms");
    let kept = agent.running("idle", "alice");
    let pid = command_pid(&agent, &brief);

    let started = Instant::now();
    let mut ended_while_kept = None;
    while started.elapsed() < Duration::from_secs(5) || ended_while_kept.is_none() {
        assert!(started.elapsed() < Duration::from_secs(60), "no session ends: {:?}", agent.sessions(false));
        let session = agent.post(&path(&kept, "/keepalive"), &json!({"by": "bob"})).expect(202);
        assert_eq!((&session["state"], &session["kept_alive_by"]), (&json!("running"), &json!("bob")));
        let ended = agent.session(id(&idle));
        if ended["state"] == "stopped" {
            assert_eq!(ended["end_reason"], "idle_expired", "{ended}");
            ended_while_kept = Some(ended);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    until("the brief one is gone", || !ids(&agent.get("/v1/sessions").expect(200)).contains(&id(&brief).to_owned()));
    assert!(!lives(pid), "its ttl removed it");
    assert_eq!(agent.session(id(&brief))["end_reason"], "ttl_expired");
    assert_eq!(agent.session(id(&extended))["state"], "running");
    agent.until_state(id(&kept), "stopped");
}

#[test]
fn lists_are_filtered_and_paged() {
    let agent = Agent::start(ROOMY);
    agent.workspace("a", SERVE, &json!({}));
    agent.workspace("b", SERVE, &json!({}));
    let mut made = Vec::new();
    for n in 0..5 {
        let user = if n % 2 == 0 { "alice" } else { "bob" };
        made.push(agent.running(if n < 2 { "a" } else { "b" }, user));
    }
    agent.client().command(&path(&made[4], "/stop?wait=stopped")).expect(202);
    agent.delete(&path(&made[3], "?wait=true")).expect(200);
    let all: Vec<String> = made.iter().map(|session| id(session).to_owned()).collect();
    let listed = |query: &str| ids(&agent.get(&format!("/v1/sessions?{query}")).expect(200));
    let only = |wanted: &[usize]| wanted.iter().map(|&n| all[n].clone()).collect::<Vec<_>>();
    assert_eq!(listed(""), only(&[0, 1, 2, 4]), "oldest first, without removed sessions");
    assert_eq!(listed("all=true"), only(&[0, 1, 2, 3, 4]));
    assert_eq!(listed("user=alice"), only(&[0, 2, 4]));
    assert_eq!(listed("workspace=b"), only(&[2, 4]));
    assert_eq!(listed("state=stopped"), only(&[4]));
    assert_eq!(listed("user=alice&workspace=b&state=running"), only(&[2]));
    assert_eq!(listed("node=one"), only(&[0, 1, 2, 4]));
    assert_eq!(listed("node=other"), Vec::<String>::new());
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = agent.get(&format!("/v1/sessions?limit=3{cursor}")).expect(200);
        seen.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        assert!(seen.len() <= 3, "the second page is the last");
    }
    assert_eq!(seen, only(&[0, 1, 2, 4]));
}

#[test]
fn a_secret_is_shown_at_creation_and_to_permitted_roles_only() {
    let agent = Agent::start(ROOMY);
    let env = json!({"env": {"PASSWORD": "{secret}", "WHO": "{user}/{session}"}});
    agent.workspace("desk", "echo \"$WHO ${#PASSWORD}\"; exec sleep 600", &env);
    let session = agent.running("desk", "alice");
    let secret = session["secret"].as_str().expect("the answer to the creation holds it").to_owned();
    assert!(secret.len() >= 20, "{secret}");
    let said = format!("alice/{} {}\n", id(&session), secret.len());
    until("the command sees it", || agent.get(&path(&session, "/logs")).text() == said);

    let (read, operate) = (agent.token("read"), agent.token("operate"));
    let told = agent.tcp(Some(&operate)).get(&path(&session, "/secret")).expect(200);
    assert_eq!(told, json!({"secret": secret}));
    agent.tcp(Some(&read)).get(&path(&session, "/secret")).refused(403, "forbidden");
    agent.client().command(&path(&session, "/stop?wait=stopped")).expect(202);
    for shown in ["", "/explain", "/logs"] {
        assert!(!agent.get(&path(&session, shown)).text().contains(&secret), "{shown}");
    }
    for shown in ["/v1/sessions?all=true", "/v1/workspaces", "/v1/nodes", "/metrics", "/v1/status"] {
        assert!(!agent.get(shown).text().contains(&secret), "{shown}");
    }
    assert!(!agent.log().contains(&secret));
    let other = agent.running("desk", "alice");
    assert_ne!(other["secret"], session["secret"]);
    agent.workspace("plain", SERVE, &json!({}));
    let plain = agent.running("plain", "alice");
    assert_eq!(plain.get("secret"), None);
    assert_eq!(agent.get(&path(&plain, "/secret")).expect(200), json!({"secret": null}));
}

#[test]
fn one_key_is_one_session_through_crashes_and_after_its_end() {
    let mut agent = Agent::start(ROOMY);
    agent.workspace("shell", SERVE, &json!({"env": {"PASSWORD": "{secret}"}}));
    let body = json!({"workspace": "shell", "user": "alice"});
    let keyed =
        |body: &Value, key: &str| Request::new("POST", "/v1/sessions").json(body).header("idempotency-key", key);
    let made = agent.client().send(&keyed(&body, "k1"));
    let location = made.header("location").unwrap().to_owned();
    let made = made.expect(202);
    assert_eq!(location, path(&made, ""));
    let again = |agent: &Agent| {
        let replayed = agent.client().send(&keyed(&body, "k1")).expect(200);
        assert_eq!(replayed["id"], made["id"]);
        agent
            .client()
            .send(&keyed(&json!({"workspace": "shell", "user": "bob"}), "k1"))
            .refused(422, "idempotency_mismatch");
        assert_eq!(agent.sessions(true).len(), 1);
        replayed
    };
    assert_eq!(again(&agent)["secret"], made["secret"], "a client that lost the first answer needs it");
    agent.kill9();
    agent.up();
    assert_eq!(again(&agent)["secret"], made["secret"]);
    agent.delete(&path(&made, "?wait=true")).expect(200);
    again(&agent);
    agent.kill9();
    agent.up();
    again(&agent);
    assert_eq!(agent.sessions(false), Vec::<Value>::new(), "a retry creates no new session");
    let other = agent.client().send(&keyed(&body, "k2")).expect(202);
    assert_ne!(other["id"], made["id"]);
}

#[test]
fn a_dry_run_and_a_placement_are_explained() {
    let agent = Agent::start("dev = { physical_cores = 4, physical_memory = '4GiB' }");
    agent.workspace("shell", SERVE, &json!({"cores": 3}));
    let body = json!({"workspace": "shell", "user": "alice"});
    let plan = agent.post("/v1/sessions?dry_run=true", &body).expect(200);
    assert!(plan.to_string().contains("\"one\""), "{plan}");
    assert_eq!(agent.sessions(true).len(), 0, "a dry run creates nothing");
    let session = agent.running("shell", "alice");
    let explanation = agent.get(&path(&session, "/explain")).expect(200);
    assert!(explanation.to_string().contains("\"one\""), "{explanation}");
    let full = agent.post("/v1/sessions?dry_run=true", &body).expect(200);
    assert!(full.to_string().contains("no_capacity"), "{full}");
    let told = agent.cli(&["session", "create", "shell", "--dry-run"]);
    assert!(told.stdout.contains("one"), "{told:?}");
    agent
        .post("/v1/sessions?dry_run=true", &json!({"workspace": "nothing", "user": "alice"}))
        .refused(404, "not_found");
}

#[test]
fn limits_of_users_and_nodes_hold() {
    let limits = "limits = { max_sessions_per_user = 2, max_sessions_per_node = 3 }";
    let agent = Agent::start(&format!("{ROOMY}\n{limits}"));
    agent.workspace("shell", SERVE, &json!({}));
    let first = agent.running("shell", "alice");
    agent.running("shell", "alice");
    let error = agent.create("shell", "alice").refused(429, "quota_exceeded");
    assert!(error["message"].as_str().unwrap().contains("max_sessions_per_user"), "{error}");
    agent.cli(&["session", "create", "shell", "--user", "alice"]).failed(3);
    let other = agent.running("shell", "bob");
    let full = agent.create("shell", "carol");
    assert!(full.header("retry-after").is_some());
    let error = full.refused(503, "no_capacity");
    assert_eq!((&error["nodes"][0]["dimension"], &error["nodes"][0]["available"]), (&json!("sessions"), &json!(0.0)));
    // A stopped session counts for neither limit. After a start it counts again.
    agent.client().command(&path(&first, "/stop?wait=stopped")).expect(202);
    let second = agent.running("shell", "alice");
    agent.delete(&path(&other, "?wait=true")).expect(200);
    agent.client().command(&path(&first, "/start")).refused(429, "quota_exceeded");
    agent.delete(&path(&second, "?wait=true")).expect(200);
    agent.client().command(&path(&first, "/start?wait=running")).expect(202);
}

#[test]
fn a_drained_node_admits_nothing_and_names_its_blockers() {
    let agent = Agent::start(ROOMY);
    agent.workspace("shell", SERVE, &json!({}));
    let first = agent.running("shell", "alice");
    let second = agent.running("shell", "bob");
    agent.cli(&["node", "drain", "one", "--message", "new disk"]).ok();
    let drain = agent.node()["drain"].clone();
    let mut blockers: Vec<&str> = drain["blockers"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    blockers.sort_unstable();
    let mut expected = vec![id(&first), id(&second)];
    expected.sort_unstable();
    assert_eq!(blockers, expected);
    assert_eq!((&drain["message"], &agent.node()["enabled"]), (&json!("new disk"), &json!(true)));
    let refused = agent.create("shell", "carol");
    assert!(refused.header("retry-after").is_some());
    let error = refused.refused(503, "node_disabled");
    assert_eq!(error["nodes"][0]["reason"], "draining", "{error}");
    agent.cli(&["session", "create", "shell"]).failed(3);
    assert_eq!(agent.session(id(&first))["state"], "running", "a drain stops nothing by itself");

    // The deadline passes: without --stop-sessions nothing is stopped, and the waiting command says so.
    let waited = agent.cli(&["node", "drain", "one", "--wait", "--deadline", "1s"]).failed(1);
    assert!(waited.contains(&id(&first)[..8]) || waited.contains("2 sessions"), "{waited}");
    assert!(!agent.node()["drain"].is_null(), "it stays drained");
    agent.cli(&["node", "drain", "one", "--wait", "--deadline", "1s", "--stop-sessions"]).ok();
    for session in [&first, &second] {
        let ended = agent.session(id(session));
        assert_eq!((&ended["state"], &ended["end_reason"]), (&json!("stopped"), &json!("drained")), "{ended}");
    }
    assert_eq!(agent.node()["drain"]["blockers"], json!([]));
    agent.client().command(&path(&first, "/start")).refused(503, "node_disabled");
    agent.cli(&["node", "undrain", "one"]).ok();
    assert!(agent.node()["drain"].is_null());
    agent.client().command(&path(&first, "/start?wait=running")).expect(202);
}

#[test]
fn a_drain_survives_a_crash() {
    let mut agent = Agent::start(ROOMY);
    agent.post("/v1/nodes/self/drain", &json!({"message": "why"})).expect(200);
    agent.kill9();
    agent.up();
    assert_eq!(agent.node()["drain"]["message"], "why");
    agent.delete("/v1/nodes/self/drain").expect(200);
    agent.restart();
    assert!(agent.node()["drain"].is_null());
}

#[test]
fn a_disabled_node_admits_nothing_and_stops_nothing() {
    let agent = Agent::start(ROOMY);
    agent.workspace("shell", SERVE, &json!({}));
    let first = agent.running("shell", "alice");
    let stopped = agent.running("shell", "alice");
    agent.client().command(&path(&stopped, "/stop?wait=stopped")).expect(202);
    agent.cli(&["node", "disable", "one"]).ok();
    let error = agent.create("shell", "bob").refused(503, "node_disabled");
    assert_eq!((&error["nodes"][0]["reason"], &error["retryable"]), (&json!("disabled"), &json!(true)));
    agent.client().command(&path(&stopped, "/start")).refused(503, "node_disabled");
    agent.cli(&["session", "create", "shell"]).failed(3);
    assert_eq!(agent.session(id(&first))["state"], "running");
    agent.cli(&["node", "enable", "one"]).ok();
    agent.running("shell", "bob");
}

#[test]
fn users_are_named_as_identity_providers_name_them() {
    let mut agent = Agent::prepare(&format!("{ROOMY}\nlimits = {{ max_sessions_per_user = 2 }}"));
    agent.up();
    let home = json!({"volumes": [{"name": "home-{user}", "path": "/home"}], "env": {"WHO": "{user}"}});
    let script = "echo \"$WHO\"; for v in $(env | grep ^OSTLER_VOLUME_ | cut -d= -f2-); do touch \"$v/mine\"; \
                  ls \"$v\" | wc -l; done; exec sleep 600";
    agent.workspace("shell", script, &home);
    let long = "ä".repeat(256);
    let users = ["auth0|5f7c8ec7", "Jörg Müller", "jörg müller", "CN=a,O=b/c", "{secret}", "..", "漢字", &long];
    for user in users {
        let session = agent.running("shell", user);
        assert_eq!(session["user"], user);
        until("it has a volume of its own", || agent.get(&path(&session, "/logs")).text() == format!("{user}\n1\n"));
        let listed = agent.cli(&["session", "ls", "--user", user, "-o", "json"]).json();
        assert_eq!(ids(&listed), [id(&session)]);
        assert!(agent.cli(&["session", "ls"]).ok().contains(user));
    }
    assert!(agent.log().contains("user=\"Jörg Müller\" workspace="), "no user can write a field of the log");
    let volumes = agent.get("/v1/nodes/self/volumes").expect(200)["items"].clone();
    assert_eq!(volumes.as_array().unwrap().len(), users.len(), "{volumes}");
    // Typed in another way it is the same user, also for the quota.
    agent.running("shell", "Jo\u{308}rg Mu\u{308}ller");
    agent.create("shell", "J\u{f6}rg M\u{fc}ller").refused(429, "quota_exceeded");
    for session in agent.sessions(false) {
        agent.delete(&path(&session, "?wait=true")).expect(200);
    }
    for user in users {
        agent.cli(&["volume", "rm", "self", &format!("home-{user}")]).ok();
    }
    assert_eq!(agent.get("/v1/nodes/self/volumes").expect(200)["items"], json!([]));
}

#[test]
fn a_volume_is_never_given_to_another_user() {
    let agent = Agent::start(ROOMY);
    let volumes = json!({"volumes": [{"name": "{user}-{workspace}", "path": "/home"}]});
    agent.workspace("c", SERVE, &volumes);
    agent.workspace("b-c", SERVE, &volumes);
    agent.running("c", "a-b");
    // The name of this one's volume is the same text.
    let other = agent.create("b-c", "a").expect(202);
    let other = agent.until_state(id(&other), "failed");
    let told = other["message"].as_str().unwrap();
    assert!(told.contains("volume a-b-c belongs to user a-b, not to a; change the volume's name"), "{told}");
    agent.running("c", "a-b");
}

#[test]
fn named_volumes_belong_to_a_user_and_outlive_sessions() {
    let agent = Agent::start(ROOMY);
    let volumes = json!({"volumes": [{"name": "home-{user}", "path": "/home"}]});
    agent.workspace(
        "desk",
        "cat \"$OSTLER_VOLUME_HOME_ALICE/note\" 2>/dev/null; env | grep VOLUME; exec sleep 600",
        &volumes,
    );
    let session = agent.running("desk", "alice");
    until("it sees its volume", || agent.get(&path(&session, "/logs")).text().contains("OSTLER_VOLUME_"));
    let listed = agent.get("/v1/nodes/self/volumes").expect(200);
    assert!(listed.to_string().contains("home-alice"), "{listed}");
    agent.delete("/v1/nodes/self/volumes/home-alice").refused(409, "conflict");
    agent.delete(&path(&session, "?wait=true")).expect(200);
    assert!(agent.cli(&["volume", "ls"]).ok().contains("home-alice"), "a volume outlives its sessions");
    assert_eq!(agent.delete("/v1/nodes/self/volumes/home-alice").status, 204);
    assert!(!agent.cli(&["volume", "ls"]).ok().contains("home-alice"));
}
