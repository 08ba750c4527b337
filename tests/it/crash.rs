//! The agent dies, is stopped or replaced: sessions keep running, and nothing is lost or done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::agent::{Agent, lives, until};
use crate::support::http::{Client, Request, Response};
use crate::support::random::Random;

const ROOMY: &str = "dev = { physical_cores = 1000, physical_memory = '1000GiB' }";

fn id(session: &Value) -> &str {
    session["id"].as_str().unwrap()
}

fn pids(agent: &Agent, session: &Value) -> (Value, Value) {
    let state = agent.process_state(id(session));
    (state["shim"]["pid"].clone(), state["command"]["pid"].clone())
}

/// Two sessions, one of them paused, keep running while the agent is down, and the next agent adopts them.
fn sessions_go_on(while_away: impl FnOnce(&mut Agent)) {
    let mut agent = Agent::start(ROOMY);
    agent.workspace(
        "shell",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done",
        &json!({"ports": [{"container_port": 80}]}),
    );
    let sessions = [agent.running("shell", "alice"), agent.running("shell", "bob")];
    let paused = format!("/v1/sessions/{}/pause?wait=paused", id(&sessions[1]));
    agent.client().command(&paused).expect(202);
    let before: Vec<_> = sessions.iter().map(|session| (agent.session(id(session)), pids(&agent, session))).collect();
    let allocated = agent.node()["resources"]["cores"]["allocated"].clone();

    while_away(&mut agent);

    for (session, processes) in &before {
        assert_eq!(&pids(&agent, session), processes, "the same processes");
        assert!(lives(processes.1.as_i64().unwrap()));
        let now = agent.session(id(session));
        for field in ["id", "state", "endpoints", "created_at", "user", "container_id", "attempt"] {
            assert_eq!(now[field], session[field], "{field}");
        }
    }
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], allocated);
    // The agent does not only list the sessions: it watches them, and they obey commands.
    let lines = || agent.get(&format!("/v1/sessions/{}/logs", id(&sessions[0]))).text().lines().count();
    let seen = lines();
    until("it keeps writing", || lines() > seen);
    let resumed = format!("/v1/sessions/{}/resume?wait=running", id(&sessions[1]));
    assert_eq!(agent.client().command(&resumed).expect(202)["state"], "running");
    for (session, (_, command)) in &before {
        agent.delete(&format!("/v1/sessions/{}?wait=true", id(session))).expect(200);
        assert!(!lives(command.as_i64().unwrap()));
    }
}

#[test]
fn sessions_outlive_a_killed_agent() {
    sessions_go_on(|agent| {
        agent.kill9();
        agent.up();
    });
}

#[test]
fn sessions_outlive_a_stopped_agent() {
    sessions_go_on(|agent| {
        assert!(agent.sigterm().success());
        assert!(!agent.socket().exists(), "a stopped agent leaves no socket");
        agent.up();
    });
}

#[test]
fn sessions_outlive_an_upgrade() {
    sessions_go_on(|agent| {
        let newer = agent.directory().join("ostler-next");
        fs::copy(env!("CARGO_BIN_EXE_ostler"), &newer).unwrap();
        agent.sigterm();
        agent.run_with(&newer);
        agent.up();
    });
}

#[test]
fn an_end_while_the_agent_is_down_is_reported_after_its_restart() {
    let mut agent = Agent::start(ROOMY);
    let go = agent.directory().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done; exit 5", go.display());
    agent.workspace("wait", &wait, &json!({}));
    agent.workspace("brief", "sleep 600", &json!({"ttl_seconds": 3}));
    let session = agent.running("wait", "alice");
    let brief = agent.running("brief", "alice");
    let (_, command) = pids(&agent, &session);
    let (_, overdue) = pids(&agent, &brief);
    agent.kill9();
    fs::write(go, "").unwrap();
    until("the command ends", || !lives(command.as_i64().unwrap()));
    let began = std::time::Instant::now();
    until("its time is over", || began.elapsed() > Duration::from_millis(3500));
    agent.up();
    let ended = agent.until_state(id(&session), "failed");
    assert_eq!((&ended["exit_code"], &ended["end_reason"]), (&json!(5), &json!("exited")));
    until("its ttl removes it", || !lives(overdue.as_i64().unwrap()));
    assert_eq!(agent.session(id(&brief))["end_reason"], "ttl_expired");
    until("both are released", || agent.node()["resources"]["cores"]["allocated"] == 0);
}

#[test]
fn two_agents_never_share_a_data_directory() {
    let agent = Agent::start(ROOMY);
    let other = agent.directory().join("other.toml");
    let text = fs::read_to_string(agent.config_file()).unwrap().replace("ostler.sock", "other.sock");
    fs::write(&other, text).unwrap();
    let refused = agent.cli(&["agent", "--dev", "--config", other.to_str().unwrap()]).failed(1);
    assert!(refused.contains("another agent runs on the data directory"), "{refused}");
    assert!(
        refused.contains(&agent.data_dir().display().to_string()) && refused.contains("node.data_dir"),
        "{refused}"
    );
    // They never share a socket either.
    let text = fs::read_to_string(agent.config_file()).unwrap().replace("/data\"", "/other\"");
    fs::write(&other, text).unwrap();
    let refused = agent.cli(&["agent", "--dev", "--config", other.to_str().unwrap()]).failed(1);
    assert!(refused.contains("another agent uses the socket"), "{refused}");
    agent.get("/readyz").expect(200);
}

#[test]
fn an_agent_waits_for_a_lock_that_a_dying_process_holds() {
    let mut agent = Agent::prepare(ROOMY);
    fs::create_dir(agent.data_dir()).unwrap();
    let lock = fs::File::create(agent.data_dir().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // As long as a start of a process takes on a very busy machine.
            std::thread::sleep(Duration::from_millis(700));
            drop(lock);
        });
        agent.up();
    });
}

#[test]
fn a_journal_that_cannot_be_read_is_rebuilt_from_the_running_sessions() {
    let mut agent = Agent::start(ROOMY);
    agent.workspace("shell", "sleep 600", &json!({}));
    let session = agent.running("shell", "alice");
    let processes = pids(&agent, &session);
    agent.kill9();
    let journal = agent.data_dir().join("sessions.redb");
    assert!(journal.exists(), "{:?}", fs::read_dir(agent.data_dir()).unwrap().collect::<Vec<_>>());
    fs::write(&journal, "this is no journal").unwrap();
    agent.up();
    let adopted = agent.until_state(id(&session), "running");
    assert_eq!((&adopted["user"], &adopted["workspace"]), (&json!("alice"), &json!("shell")));
    assert_eq!(pids(&agent, &session), processes);
    assert_eq!(agent.node()["resources"]["cores"]["allocated"], 1);
    until("the node says so", || agent.node()["conditions"].to_string().contains("journal_rebuilt"));
}

/// Clients that work at the same time.
const CLIENTS: usize = 16;
/// Sessions that they create in total.
const SESSIONS: usize = 200;
/// How many times the test kills the agent meanwhile.
const KILLS: usize = 10;

#[test]
fn repeated_kills_lose_no_session_and_create_none_twice() {
    let seed = std::env::var("OSTLER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    println!("OSTLER_SEED={seed}");
    let mut agent = Agent::start(ROOMY);
    agent.workspace("shell", "exec sleep 600", &json!({"cores": 1}));
    let hail = Hail { client: agent.client(), acknowledged: Mutex::default(), made: AtomicUsize::new(0) };

    std::thread::scope(|scope| {
        let hail = &hail;
        let clients: Vec<_> =
            (0..CLIENTS).map(|n| scope.spawn(move || hail.work(n, Random(seed + n as u64)))).collect();
        let mut random = Random(seed ^ 0xdead);
        for kill in 1..=KILLS {
            // The kills are spread evenly over the work, however fast this machine is.
            let threshold = SESSIONS * kill / (KILLS + 1);
            until("the clients make progress", || hail.made.load(Ordering::Relaxed) >= threshold);
            std::thread::sleep(Duration::from_millis(random.below(30)));
            agent.kill9();
            agent.up();
        }
        for client in clients {
            client.join().unwrap();
        }
    });

    let acknowledged = hail.acknowledged.into_inner().unwrap();
    assert_eq!(acknowledged.len(), SESSIONS, "one id for each key");
    check(&agent, &acknowledged);
    // Check again after a restart that reads everything back.
    agent.kill9();
    agent.up();
    check(&agent, &acknowledged);
}

struct Hail {
    client: Client,
    acknowledged: Mutex<Acknowledged>,
    made: AtomicUsize,
}

/// The acknowledged sessions by id: the key, and whether the session stays or was removed again.
type Acknowledged = BTreeMap<String, (String, bool)>;

impl Hail {
    /// Creates sessions, each with its own key, and removes about half of them.
    fn work(&self, client: usize, mut random: Random) {
        let share = SESSIONS / CLIENTS + usize::from(client < SESSIONS % CLIENTS);
        for n in 0..share {
            let key = format!("client {client} session {n}");
            let body = json!({"workspace": "shell", "user": format!("user-{client}")});
            let request = Request::new("POST", "/v1/sessions").json(&body).header("idempotency-key", &key);
            let answer = self.insist(&request, |status| matches!(status, 200 | 202));
            let id = id(&answer.json()).to_owned();
            // A retry returns the same session, however often it is sent and whatever happened in between.
            if random.below(4) == 0 {
                assert_eq!(answer_id(&self.insist(&request, |status| matches!(status, 200 | 202))), id, "{key}");
            }
            let earlier = self.note(&id, &key, true);
            assert_eq!(earlier, None, "{key} has the id of another key");
            self.made.fetch_add(1, Ordering::Relaxed);
            if random.below(2) == 0 {
                let request = Request::new("DELETE", &format!("/v1/sessions/{id}"));
                self.insist(&request, |status| matches!(status, 200 | 202));
                self.note(&id, &key, false);
            }
        }
    }

    /// Repeats a request until it succeeds: while the agent is down there is no answer.
    fn insist(&self, request: &Request, good: impl Fn(u16) -> bool) -> Response {
        for _ in 0..3000 {
            match self.client.try_send(request) {
                Ok(answer) if good(answer.status) => return answer,
                Ok(answer) => assert_eq!(answer.status, 503, "{} {}: {}", request.method, request.path, answer.text()),
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{} {} is never answered", request.method, request.path)
    }

    fn note(&self, id: &str, key: &str, stays: bool) -> Option<(String, bool)> {
        self.acknowledged.lock().unwrap().insert(id.to_owned(), (key.to_owned(), stays))
    }
}

fn answer_id(answer: &Response) -> String {
    id(&answer.json()).to_owned()
}

/// Checks that ledger, journal and processes agree with each other and with the answers to the clients.
fn check(agent: &Agent, acknowledged: &Acknowledged) {
    let kept: BTreeSet<String> =
        acknowledged.iter().filter(|(_, (_, stays))| *stays).map(|(id, _)| id.clone()).collect();
    // The agent removes and starts sessions after its answer.
    until("the kept sessions run and the others are removed", || {
        let sessions = agent.sessions(false);
        sessions.len() == kept.len() && sessions.iter().all(|session| session["state"] == "running")
    });
    let journal: BTreeSet<String> = agent.sessions(false).iter().map(|session| id(session).to_owned()).collect();
    assert_eq!(journal, kept, "no acknowledged session is lost, and no removed one stays");
    let remembered: BTreeSet<String> = agent.sessions(true).iter().map(|session| id(session).to_owned()).collect();
    assert_eq!(remembered, acknowledged.keys().cloned().collect(), "and no other session was created");
    let node = agent.node();
    assert_eq!(node["resources"]["cores"]["allocated"], kept.len(), "one core each");
    assert_eq!(node["sessions"], kept.len());
    let directories: BTreeSet<String> = agent.process_directories().into_iter().collect();
    assert_eq!(directories, kept, "one directory each");
    let commands: BTreeSet<i64> =
        kept.iter().map(|id| agent.process_state(id)["command"]["pid"].as_i64().unwrap()).collect();
    assert_eq!(commands.len(), kept.len(), "one process each");
    assert!(commands.iter().all(|pid| lives(*pid)));
    // Counted independently of the agent: no shim of a removed session is left.
    assert_eq!(shims(agent).len(), kept.len(), "{:?}", shims(agent));
}

/// The pids of the shims under this agent's data directory, as the kernel knows them.
fn shims(agent: &Agent) -> Vec<String> {
    let data_dir = agent.data_dir().display().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_shim = |pid: &String| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        arguments.contains(" shim ") && arguments.contains(&data_dir)
    };
    processes.filter(|name| name.bytes().all(|b| b.is_ascii_digit())).filter(is_shim).collect()
}
